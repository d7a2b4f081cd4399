"""Decode-bound: each further stream slows all streams; the step itself is at the limit of the machine.

What it means      A decode step reads the weights once and the KV cache of every stream, and computes for each.
                   When the second and third dominate, tokens per second stop growing with the batch. A limit of
                   the machine under this model, not a fault.
How it shows       TPOT rises with the number of streams and breaks its SLO before a queue forms; or all slots are
                   taken and doubling them would gain nothing.
Confused with      Slot cap (SEQ001): slots are full but the step is nearly as fast as for a single stream.
                   Prefill-bound (PRE001): TPOT rises because prompts share the steps.
                   Event loop (API001): tokens are late at the client while the engine's own token times stay.
What to do         Fewer bytes per token, more machines, or a smaller batch where the TPOT limit matters more than
                   throughput.
How it is decided  From the fit time per token = a + b n over the streams n beside each request.
Sources            Roofline, Williams et al. 2009; "Mind the memory gap" (arXiv 2503.08311) on decoding plateaus.
"""

from pinchpoint.diagnose.clues import (
    compute_of,
    event_loop,
    inflation_by_compute,
    inflation_by_prefill,
    is_queueing,
    no_preemption,
    token_kind,
)
from pinchpoint.diagnose.features import Features
from pinchpoint.diagnose.rule import Clue, Outcome, Param, RemedySpec, Rule, clue, odds, ramp

RULE = Rule(
    code="DEC001",
    name="decode-bound",
    title="decode speed (each stream slows the others)",
    layer="model inference",
    kind="physical-limit",
    needs=("engine.requests_running", "engine.requests_waiting", "engine.itl_s"),
    explains=("tpot", "itl", "e2e", "ttft"),
    params={
        "growth_low": Param(1.15, "ratio", "less is the variation of mean context length"),
        "growth_high": Param(1.7, "ratio", "the streams' own cost approaches the fixed cost of a step"),
        "gain_spent": Param(1.1, "ratio", "twice the batch carries a tenth more"),
        "gain_neutral": Param(1.3, "ratio", "see SEQ001"),
        "gain_free": Param(1.7, "ratio", "see SEQ001"),
        "use_low": Param(0.3, "ratio", "prefill takes less than a third of the time"),
        "use_high": Param(0.7, "ratio", "prefill takes most of the time"),
        "tpot_misses": Param(0.5, "ratio", "most of the missed promises are about token pace"),
        "engine_flat": Param(1.3, "ratio", "the engine's own inter-token time grew less than a third"),
        "client_grew": Param(1.5, "ratio", "the client's grew by half at least"),
        "odds_growth": odds(4),
        "odds_no_growth": odds(30),
        "odds_gain": odds(20),
        "odds_free": odds(12),
        "odds_misses": odds(4),
        "odds_prefill": odds(2),
        "odds_is_prefill": odds(15),
        "odds_engine": odds(20),
        "odds_engine_agrees": odds(2),
    },
    remedies=(
        RemedySpec(
            "quantise the weights: a step reads half the bytes or less",
            {
                "vllm": "--quantization fp8",
                "sglang": "--quantization fp8",
                "llama.cpp": "-m MODEL of a smaller GGUF type",
            },
        ),
        RemedySpec(
            "store the KV cache in 8 bits",
            {
                "vllm": "--kv-cache-dtype fp8",
                "sglang": "--kv-cache-dtype fp8_e5m2",
                "llama.cpp": "-ctk q8_0 -ctv q8_0",
            },
        ),
        RemedySpec(
            "keep the batch at {batch} streams, where token pace meets its SLO, and add replicas for the rest",
            {
                "vllm": "--max-num-seqs {batch}",
                "sglang": "--max-running-requests {batch}",
                "tgi": "--max-batch-size {batch}",
                "tensorrt-llm": "max_batch_size: {batch}",
                "llama.cpp": "-np {batch}",
            },
        ),
        RemedySpec(
            "shard over more devices or add replicas",
            {
                "vllm": "--tensor-parallel-size N",
                "sglang": "--tp N",
                "tgi": "--num-shard N",
                "llama.cpp": "-t THREADS on a host with more cores or memory channels",
            },
        ),
        RemedySpec(
            "speculative decoding, if the batch is small",
            {"vllm": "--speculative-config JSON", "llama.cpp": "-md DRAFT_MODEL"},
            only_engines=True,
        ),
    ),
    confirm="Run short prompts with long answers at several concurrencies: tokens per second level off at one value.",
)


def evaluate(f: Features) -> Outcome:
    missing = f.view.missing(*RULE.needs[:2]) + f.view.missing("engine.itl_s_sum")
    growth = f.growth("tpot_s")
    if growth is None:
        why = "the time per output token is unknown: the answers do not stream or arrive in one piece"
        if not f.streams_void:
            why = "there are no two stages whose time per output token can be compared"
        return Outcome(missing=missing, not_evaluable=why)
    clues: list[Clue] = [*_growth(f, growth), *_gain(f), *_misses(f), *_prefill(f), *_engine(f)]
    clues += token_kind(f, prefill=False)
    clues += [*no_preemption(f), *event_loop(f, wanted=False)]
    return Outcome(tuple(clues), missing, values=_values(f))


def _own(f: Features, strength: float) -> float:
    """Support for decoding, less what prompts would show as well because both are arithmetic on the same units."""
    compute, explained = compute_of(f), inflation_by_compute(f)
    if strength <= 0 or compute is None or explained is None:
        return strength
    return strength * (1 - compute.weight * min(explained, 1.0))


def _growth(f: Features, growth: float) -> list[Clue]:
    """Growth of TPOT from light load to the first failing stage or overload, whichever is larger."""
    first = f.first_fail
    if first is not None and f.base is not None and first.tpot_s and f.base.tpot_s:
        growth = max(growth, first.tpot_s / f.base.tpot_s)
    text = f"median TPOT grew {growth:.2f}x with load"
    share = inflation_by_prefill(f)
    if share is not None:
        growth **= 1 - min(share, 1.0)
        text += f", {growth:.2f}x once the time of prompts is taken out"
    low, high = RULE["growth_low"], RULE["growth_high"]
    return [
        clue(
            "growth",
            _own(f, ramp(growth, low, high, -RULE.ln("odds_no_growth"), RULE.ln("odds_growth"))),
            text,
            observed=growth,
            reference=high,
            unit="ratio",
            source=RULE.source("growth_high"),
            window="base to stressed",
        )
    ]


def _gain(f: Features) -> list[Clue]:
    line, top, s = f.decode_cost or f.token_cost, f.running_top, f.stressed
    if line is None or s is None:
        return []
    n = top.value if top is not None else s.streams_mean
    gain = line.gain_of_doubling(n)
    alone = " (prompts taken out)" if f.decode_cost is not None else ""
    fitted = f"time per token{alone} fits {line.a_s * 1e3:.1f} ms + {line.b_s * 1e3:.2f} ms per stream"
    if gain <= RULE["gain_neutral"]:
        strength = _own(f, ramp(gain, RULE["gain_spent"], RULE["gain_neutral"], RULE.ln("odds_gain"), 0.0))
    elif is_queueing(f):
        strength = ramp(gain, RULE["gain_neutral"], RULE["gain_free"], 0.0, -RULE.ln("odds_free"))
    else:
        # A step that still gains from a larger batch may nevertheless be too slow for the promise made.
        strength = 0.0
    return [
        clue(
            "gain",
            strength,
            f"{fitted}: twice the {n:.0f} streams would carry {gain:.2f}x",
            observed=gain,
            reference=RULE["gain_spent"],
            unit="ratio",
            source=RULE.source("gain_spent"),
            window=f"{line.requests} answers of all stages",
        )
    ]


def _misses(f: Features) -> list[Clue]:
    """Which promise breaks in the lowest failing stage."""
    stage = f.first_fail
    if stage is None:
        return []
    missed: dict[str, int] = {}
    for slo in f.slos:
        met, counted = stage.result.attainment.get(slo.text, (0, 0))
        missed[slo.metric] = missed.get(slo.metric, 0) + counted - met
    total = sum(missed.values())
    if not total or not any(slo.metric in ("tpot", "itl") for slo in f.slos):
        return []
    share = (missed.get("tpot", 0) + missed.get("itl", 0)) / total
    return [
        clue(
            "misses",
            RULE.ln("odds_misses") if share >= RULE["tpot_misses"] else 0.0,
            f"{share:.0%} of the misses in the lowest failing stage are about token pace",
            observed=share,
            reference=RULE["tpot_misses"],
            unit="ratio",
            source=RULE.source("tpot_misses"),
            window=stage.stage.name,
        )
    ]


def _prefill(f: Features) -> list[Clue]:
    clues: list[Clue] = []
    use = f.prefill_utilisation(f.stressed)
    if use is not None:
        shown = use[0] if use[0] is not None else use[2]
        if use[0] is not None or shown < RULE["use_low"]:
            low, high = RULE["use_low"], RULE["use_high"]
            clues.append(
                clue(
                    "prefill",
                    ramp(shown, low, high, RULE.ln("odds_prefill"), -RULE.ln("odds_is_prefill")),
                    f"prompts took {'at most ' if use[0] is None else ''}{min(shown, 1.0):.0%} of the engine's time",
                    observed=shown,
                    reference=low,
                    unit="ratio",
                    source=RULE.source("use_low"),
                )
            )
    inflation = inflation_by_prefill(f)
    if inflation is not None:
        strength = ramp(inflation, 0.0, 1.0, RULE.ln("odds_prefill"), -RULE.ln("odds_is_prefill"))
        clues.append(
            clue(
                "prefill",
                strength,
                f"prompts in the same steps explain {min(inflation, 1.0):.0%} of the growth of TPOT",
                observed=inflation,
                unit="ratio",
            )
        )
    return clues


def _engine(f: Features) -> list[Clue]:
    """The engine's own inter-token time, where it is exported: late tokens it did not produce late are not decoding."""
    engine, client = f.growth("engine_itl_s"), f.growth("tpot_s")
    if engine is None or client is None or client < RULE["client_grew"]:
        return []
    flat = engine < RULE["engine_flat"]
    return [
        clue(
            "engine",
            -RULE.ln("odds_engine") if flat else RULE.ln("odds_engine_agrees"),
            f"by the engine's own clock the time between tokens grew {engine:.2f}x, seen from the client {client:.2f}x",
            series=("engine.itl_s",),
            observed=engine,
            reference=RULE["engine_flat"],
            unit="ratio",
            source=RULE.source("engine_flat"),
        )
    ]


def _values(f: Features) -> dict[str, str]:
    line = f.token_cost
    limits_s = [slo.limit for slo in f.slos if slo.metric == "tpot"]
    if line is None or not limits_s or line.b_s <= 0:
        return {}
    batch = int((min(limits_s) - line.a_s) / line.b_s)
    return {"batch": str(batch)} if 1 <= batch <= line.n_max else {}
