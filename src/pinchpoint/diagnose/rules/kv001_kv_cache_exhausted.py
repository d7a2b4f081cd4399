"""KV cache exhausted: running requests are evicted and repeat their prefill.

What it means      Admission was optimistic; the block pool filled up while requests grew, so the engine evicts
                   some and computes them again. Capacity is spent twice, and throughput falls as load rises.
How it shows       Preemptions climb with load; KV is full; streams stall for seconds in the middle, so TPOT p95
                   leaves p50.
Confused with      KV-limited admission (KV002): the pool is full, but nobody is evicted and streams stay smooth.
                   A nearly full KV gauge alone proves nothing: a cache that is used well is full.
What to do         Make the pool larger or the sequences in it fewer or smaller.
How to confirm     Repeat at 0.8 x the rate: preemptions stop.
Sources            PagedAttention, Kwon et al. 2023, section 4.5; vLLM docs, optimization and tuning (preemption).
"""

from pinchpoint.diagnose.clues import PREEMPTION_MATERIAL, PREEMPTION_STRONG, event_loop, preemption
from pinchpoint.diagnose.features import Features
from pinchpoint.diagnose.rule import Clue, Outcome, Param, RemedySpec, Rule, clue, odds, ramp

RULE = Rule(
    code="KV001",
    name="kv-cache-exhausted",
    title="the KV cache (running requests are evicted)",
    layer="model inference",
    kind="fault",
    needs=("engine.preemptions_total", "engine.kv_used_ratio", "engine.requests_waiting"),
    explains=("ttft", "tpot", "itl", "e2e"),
    params={
        "material": PREEMPTION_MATERIAL,
        "strong": PREEMPTION_STRONG,
        "kv_full": Param(0.95, "ratio", "evictions start when no block is free"),
        "kv_room": Param(0.8, "ratio", "with a fifth of the pool free nobody needs to be evicted"),
        "recompute": Param(0.02, "ratio", "recomputed share of prompt tokens that can be told from noise"),
        "tail": Param(1.5, "ratio", "p95 of TPOT over p50; smooth batches stay below"),
        "odds_material": odds(6),
        "odds_strong": odds(40, "starting value 20 for more than 0.05 per request; judgement"),
        "odds_none": odds(100),
        "odds_kv": odds(2),
        "odds_kv_room": odds(8),
        "odds_recompute": odds(2),
        "odds_tail": odds(1.5),
    },
    remedies=(
        RemedySpec(
            "give the KV cache more memory",
            {
                "vllm": "--gpu-memory-utilization 0.95",
                "sglang": "--mem-fraction-static 0.92",
                "tensorrt-llm": "kv_cache_config.free_gpu_memory_fraction: 0.95",
                "llama.cpp": "-c TOKENS",
            },
        ),
        RemedySpec(
            "store the KV cache in 8 bits: twice the tokens in the same memory",
            {
                "vllm": "--kv-cache-dtype fp8",
                "sglang": "--kv-cache-dtype fp8_e5m2",
                "llama.cpp": "-ctk q8_0 -ctv q8_0",
            },
            "",
        ),
        RemedySpec(
            "admit fewer sequences: about {fitting} fit the cache without evictions",
            {
                "vllm": "--max-num-seqs {fitting}",
                "sglang": "--schedule-conservativeness 1.3",
                "tensorrt-llm": "scheduler policy GUARANTEED_NO_EVICT",
            },
        ),
        RemedySpec("shard the model over more devices or add replicas", {"vllm": "--tensor-parallel-size N"}),
    ),
    confirm="Repeat at 0.8 x the failing rate: preemptions stop and the slow streams disappear.",
)


def evaluate(f: Features) -> Outcome:
    rate = preemption(f)
    missing = f.view.missing(*RULE.needs)
    if rate is None:
        why = "evictions are not counted: " + (
            "this engine does not evict" if f.engine == "llama.cpp" else "the engine's metrics page was not readable"
        )
        return Outcome(missing=missing, not_evaluable=why)
    source = RULE.source("material")
    if rate < RULE["material"]:
        strength = ramp(rate, 0.0, RULE["material"], -RULE.ln("odds_none"), 0.0)
    else:
        strength = ramp(rate, RULE["material"], RULE["strong"], RULE.ln("odds_material"), RULE.ln("odds_strong"))
    clues: list[Clue] = [
        clue(
            "preemption",
            strength,
            f"{rate:.2f} preemptions per finished request in the worst stage",
            series=("engine.preemptions_total",),
            observed=rate,
            reference=RULE["material"],
            unit="per request",
            source=source,
        )
    ]
    s = f.stressed
    if s is not None and s.kv_p90 is not None:
        low = -RULE.ln("odds_kv_room")
        clues.append(
            clue(
                "kv",
                ramp(s.kv_p90, RULE["kv_room"], RULE["kv_full"], low, RULE.ln("odds_kv")),
                f"the KV cache was {s.kv_p90:.0%} used (p90)",
                series=("engine.kv_used_ratio",),
                observed=s.kv_p90,
                reference=RULE["kv_full"],
                unit="ratio",
                source=RULE.source("kv_full"),
            )
        )
    if s is not None and s.recomputed_ratio is not None and s.recomputed_ratio > RULE["recompute"]:
        clues.append(
            clue(
                "preemption",
                RULE.ln("odds_recompute"),
                f"{s.recomputed_ratio:.0%} of the prompt tokens were computed again after an eviction",
                series=("engine.recomputed_prompt_tokens_total",),
                observed=s.recomputed_ratio,
                reference=RULE["recompute"],
                unit="ratio",
                source=RULE.source("recompute"),
            )
        )
    if s is not None and s.tpot_s and s.tpot_p95_s:
        tail = s.tpot_p95_s / s.tpot_s
        if tail >= RULE["tail"]:
            clues.append(
                clue(
                    "tail",
                    RULE.ln("odds_tail"),
                    f"TPOT p95 is {tail:.1f}x its median: some streams stall",
                    observed=tail,
                    reference=RULE["tail"],
                    unit="ratio",
                    source=RULE.source("tail"),
                )
            )
    clues += event_loop(f, wanted=False)
    isl, osl = f.lengths
    values: dict[str, str] = {}
    if f.limits.kv_tokens and isl and osl:
        values["fitting"] = str(max(int(f.limits.kv_tokens / (isl + osl)), 1))
    return Outcome(tuple(clues), missing, values=values)
