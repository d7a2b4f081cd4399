"""KV-limited admission: requests wait for free KV blocks; those that run are safe.

What it means      The engine admits a request only when its tokens fit the pool (a conservative scheduler, or a
                   token budget). The pool is spoken for, so the queue grows although slots are free.
How it shows       KV stays high, nobody is evicted, running lies below the slot cap and wanders with the lengths
                   of the requests; TTFT explodes, TPOT stays.
Confused with      Slot cap (SEQ001): same latency shape; running flat at the cap, KV with room.
                   Prefill-bound (PRE001): the queue grows while KV is low.
What to do         More pool, smaller sequences, or a less conservative scheduler.
How it is decided  By the KV gauge, or, where the service tells its pool size, by the number of running sequences
                   that fit it. A scheduler that reserves the whole answer leaves the not yet written half of it
                   unused, so the gauge then levels off at (ISL + OSL/2) / (ISL + OSL).
Sources            vLLM scheduler: the waiting loop breaks when blocks cannot be allocated; TensorRT-LLM
                   GUARANTEED_NO_EVICT; SGLang hyperparameter tuning (schedule conservativeness).
"""

from pinchpoint.diagnose.clues import engine_queue, event_loop, no_preemption, queue_shape
from pinchpoint.diagnose.features import Features
from pinchpoint.diagnose.rule import Clue, Outcome, Param, RemedySpec, Rule, clue, odds, ramp

RULE = Rule(
    code="KV002",
    name="kv-limited-admission",
    title="the KV cache (admission waits for free blocks)",
    layer="model inference",
    kind="fault",
    needs=("engine.kv_used_ratio", "engine.requests_running", "engine.requests_waiting", "engine.preemptions_total"),
    explains=("ttft", "e2e"),
    params={
        "kv_high": Param(0.9, "ratio", "a pool this full cannot take a sequence of ordinary length"),
        "kv_room": Param(0.75, "ratio", "a quarter of the pool free admits further sequences"),
        "fit_low": Param(0.7, "ratio", "running over what the pool holds; lengths are means, so 30 % slack"),
        "fit_high": Param(1.45, "ratio", "the same, were every running sequence only half written"),
        "below_cap": Param(0.95, "ratio", "running this close to the slot cap may be the cap itself"),
        "flat_share": Param(0.7, "ratio", "see SEQ001: a count held by slots hardly moves"),
        "uneven_share": Param(0.4, "ratio", "see SEQ001"),
        "odds_kv": odds(10, "starting value for KV above 0.95, a queue and no preemption; judgement"),
        "odds_kv_room": odds(60),
        "odds_reserved": odds(4),
        "odds_fit": odds(3),
        "odds_below_cap": odds(3),
        "odds_at_cap": odds(10),
        "odds_uneven": odds(2),
    },
    remedies=(
        RemedySpec(
            "give the KV cache more memory",
            {
                "vllm": "--gpu-memory-utilization 0.95",
                "sglang": "--mem-fraction-static 0.92",
                "tgi": "--max-batch-total-tokens TOKENS",
                "tensorrt-llm": "kv_cache_config.free_gpu_memory_fraction: 0.95",
                "llama.cpp": "-c TOKENS",
            },
        ),
        RemedySpec(
            "store the KV cache in 8 bits: twice the tokens in the same memory",
            {"vllm": "--kv-cache-dtype fp8", "sglang": "--kv-cache-dtype fp8_e5m2", "tgi": "--kv-cache-dtype fp8_e5m2"},
        ),
        RemedySpec("reserve less per request", {"sglang": "--schedule-conservativeness 0.3"}, only_engines=True),
        RemedySpec("add replicas, or shorten prompts and answers: the pool holds about {fitting} of these requests"),
    ),
    confirm="Halve the output length at the same request rate: the number of running requests rises in proportion.",
)


def evaluate(f: Features) -> Outcome:
    s = f.stressed
    missing = f.view.missing(*RULE.needs)
    isl, osl = f.lengths
    fitting = f.limits.kv_tokens / (isl + osl) if f.limits.kv_tokens and isl and osl else None
    if s is None or (s.kv_p90 is None and fitting is None):
        why = "neither the KV gauge nor the size of the pool is known"
        if f.engine == "llama.cpp":
            why += "; llama.cpp has no KV gauge, each slot has its own context"
        else:
            why += "; without the engine's metrics page KV-limited admission and a slot cap look the same"
        return Outcome(missing=missing, not_evaluable=why)
    clues: list[Clue] = [*_pool(f, fitting), *_batch(f)]
    clues += [*queue_shape(f), *engine_queue(f, wanted=True), *no_preemption(f), *event_loop(f, wanted=False)]
    if s.preemptions is None:
        text = "whether running requests are evicted as well (KV001) cannot be told without the engine's counter"
        clues.append(clue("eviction", 0.0, text, series=("engine.preemptions_total",)))
    return Outcome(tuple(clues), missing, values={"fitting": f"{fitting:.0f}"} if fitting else {})


def _pool(f: Features, fitting: float | None) -> list[Clue]:
    s = f.stressed
    assert s is not None
    clues: list[Clue] = []
    if s.kv_p90 is not None:
        isl, osl = f.lengths
        reserved = (isl + osl / 2) / (isl + osl) if isl and osl else 1.0
        high, room = RULE["kv_high"], RULE["kv_room"]
        if s.kv_p90 >= high or s.kv_p90 < room * reserved:
            strength = RULE.ln("odds_kv") if s.kv_p90 >= high else -RULE.ln("odds_kv_room")
        else:
            # Between: full if the answers' unwritten halves are reserved, room otherwise.
            strength = ramp(s.kv_p90, room * reserved, high * reserved, -RULE.ln("odds_kv"), RULE.ln("odds_reserved"))
        clues.append(
            clue(
                "pool",
                strength,
                f"the KV cache was {s.kv_p90:.0%} used (p90) under stress",
                series=("engine.kv_used_ratio",),
                observed=s.kv_p90,
                reference=high,
                unit="ratio",
                source=RULE.source("kv_high"),
                window=s.stage.name,
            )
        )
    running = s.running_p90 if s.running_p90 is not None else s.streams_mean
    if fitting:
        fit = running / fitting
        inside = RULE["fit_low"] <= fit <= RULE["fit_high"]
        clues.append(
            clue(
                "fit",
                RULE.ln("odds_fit") if inside else -RULE.ln("odds_fit"),
                f"{running:.0f} requests ran at once; the pool of {f.limits.kv_tokens} tokens holds {fitting:.0f} "
                "whole ones",
                observed=running,
                reference=fitting,
                unit="sequences",
                source=RULE.source("fit_low"),
            )
        )
    return clues


def _batch(f: Features) -> list[Clue]:
    s, top, cap = f.stressed, f.running_top, f.limits.max_sequences
    assert s is not None
    if top is None or top.source != "engine":
        return []
    if cap is not None:
        below = top.value < RULE["below_cap"] * cap
        strength = RULE.ln("odds_below_cap") if below else -RULE.ln("odds_at_cap")
        text = f"running peaked at {top.value:.0f}, the slot cap is {cap}"
        return [
            clue("batch", strength, text, series=("engine.requests_running",), observed=top.value, reference=float(cap))
        ]
    strength = ramp(
        top.share, RULE["uneven_share"], RULE["flat_share"], RULE.ln("odds_uneven"), -RULE.ln("odds_uneven")
    )
    text = f"running was at its top of {top.value:.0f} in {top.share:.0%} of the readings"
    return [
        clue(
            "batch",
            strength,
            text,
            series=("engine.requests_running",),
            observed=top.share,
            reference=RULE["flat_share"],
            unit="ratio",
            source=RULE.source("flat_share"),
        )
    ]
