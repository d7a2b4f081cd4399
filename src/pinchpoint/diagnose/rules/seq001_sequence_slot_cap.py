"""Sequence-slot cap: the engine runs as many requests as it may, and the others wait although it could do more.

What it means      The batch has a configured largest size. All slots are taken, so a new request waits for one to
                   end.
How it shows       Running has a flat top equal to the cap while requests wait; TTFT explodes, TPOT stays; KV is
                   not full.
Confused with      KV-limited admission (KV002): same latency shape, but KV is full and the top is not flat.
                   A batch that is full *and* spent (DEC001, PRE001): all slots taken, yet doubling them gains
                   nothing.
What to do         Raise the cap, as far as the KV cache and the TPOT limit allow.
How it is decided  The time per token is fitted as a + b n over the streams n beside each request. Doubling n then
                   gains 2 (a + b n) / (a + 2 b n). Only a cap whose doubling gains is the bottleneck. When n
                   could not vary (a cap of one or two), a and b are unknown and the prior holds that a batched
                   step costs little more than a single one, which is true of memory-bound decoding and of most
                   accelerators.
Sources            Little 1961 for the suggested value; vLLM scheduler: admission stops at max_num_seqs.
"""

import math

from pinchpoint.diagnose.clues import engine_queue, event_loop, is_queueing, no_preemption, queue_shape
from pinchpoint.diagnose.features import Features
from pinchpoint.diagnose.fits import FlatTop
from pinchpoint.diagnose.rule import Clue, Outcome, Param, RemedySpec, Rule, clue, odds, ramp

RULE = Rule(
    code="SEQ001",
    name="sequence-slot-cap",
    title="the sequence-slot cap",
    layer="model inference",
    kind="fault",
    needs=(
        "engine.requests_running",
        "engine.requests_waiting",
        "engine.kv_used_ratio",
    ),
    explains=("ttft", "e2e"),
    params={
        "flat_share": Param(0.7, "ratio", "a full batch is read below its cap only in the step after an end"),
        "uneven_share": Param(0.4, "ratio", "a count that wanders spends most of its time below its maximum"),
        "below_cap": Param(0.9, "ratio", "a batch that never comes within a tenth of the cap is not held by it"),
        "kv_room": Param(0.9, "ratio", "below this a new sequence of ordinary length still finds blocks"),
        "kv_full": Param(0.95, "ratio", "above this the pool may be what stops admission"),
        "gain_spent": Param(1.1, "ratio", "a tenth more throughput for twice the slots is not worth a cap"),
        "gain_neutral": Param(1.3, "ratio", "public sweeps: 8 to 32 slots gave +31 % where the cap was the limit"),
        "gain_free": Param(1.7, "ratio", "memory-bound decoding: a step costs nearly the same for twice the batch"),
        "odds_cap_known": odds(15, "starting value for running equal to the cap with KV below 0.9; judgement"),
        "odds_flat": odds(6),
        "odds_flat_client": odds(4),
        "odds_not_flat": odds(10),
        "odds_below_cap": odds(100),
        "odds_kv": odds(2),
        "odds_kv_full": odds(8),
        "odds_gain": odds(12),
        "odds_spent": odds(60),
        "odds_prior_step": odds(1.5),
        "headroom_sigmas": Param(2.0, "standard deviations", "Poisson count of sequences in service"),
        "growth_max": Param(8.0, "ratio", "a larger step than this is a guess beyond the fitted range"),
    },
    remedies=(
        RemedySpec(
            "raise the number of sequences the engine may run at once to {slots}",
            {
                "vllm": "--max-num-seqs {slots}",
                "sglang": "--max-running-requests {slots}",
                "tgi": "--max-batch-size {slots}",
                "tensorrt-llm": "max_batch_size: {slots}",
                "triton": "max_batch_size: {slots}",
                "llama.cpp": "-np {slots} -c {context}",
            },
            "about {gain} the throughput at twice the slots, from the fitted step time",
        ),
        RemedySpec("add replicas: each brings {cap} more slots"),
    ),
    confirm="Double the cap and repeat the overload stage: throughput rises and running follows the new cap.",
)


def evaluate(f: Features) -> Outcome:
    s, top = f.stressed, f.running_top
    missing = f.view.missing(*RULE.needs)
    if s is None or top is None:
        return Outcome(missing=missing, not_evaluable="neither the engine's batch nor the streams could be counted")
    cap = f.limits.max_sequences
    clues: list[Clue] = [*_top(f, top, cap), *queue_shape(f), *engine_queue(f, wanted=True), *_kv(f)]
    clues += [*no_preemption(f), *event_loop(f, wanted=False), *_gain(f, top)]
    shown = cap or round(top.value)
    return Outcome(tuple(clues), missing, values=_values(f, shown), title=f"{RULE.title} ({shown})")


def _top(f: Features, top: FlatTop, cap: int | None) -> list[Clue]:
    series = ("engine.requests_running",) if top.source == "engine" else ()
    who = "the engine's running gauge" if top.source == "engine" else "the client's count of active streams"
    common = {"series": series, "observed": top.share, "unit": "ratio", "window": f.stressed.stage.name}  # pyright: ignore
    if cap is not None and top.source == "engine" and top.value < RULE["below_cap"] * cap:
        return [
            clue(
                "top",
                -RULE.ln("odds_below_cap"),
                f"{who} never exceeded {top.value:.0f}, the service's cap is {cap}",
                reference=float(cap),
                source=RULE.source("below_cap"),
                series=series,
                observed=top.value,
                unit="sequences",
            )
        ]
    text = f"{who} stayed at its top of {top.value:.0f} in {top.share:.0%} of {top.readings} readings"
    positive = RULE.ln("odds_flat") if top.source == "engine" else RULE.ln("odds_flat_client")
    if cap is not None and top.value >= RULE["below_cap"] * cap:
        positive = RULE.ln("odds_cap_known")
        text += f", which is the service's cap ({cap})"
    strength = ramp(top.share, RULE["uneven_share"], RULE["flat_share"], -RULE.ln("odds_not_flat"), positive)
    found = [
        clue("top", strength, text, reference=RULE["flat_share"], source=RULE.source("flat_share"), **common)  # pyright: ignore
    ]
    if not f.view.has("engine.kv_used_ratio") and strength > 0 and cap is None:
        found.append(
            clue("kv", 0.0, "slot cap or KV-limited admission: without the engine's KV gauge these look the same")
        )
    return found


def _kv(f: Features) -> list[Clue]:
    kv = f.stressed.kv_p90 if f.stressed else None
    if kv is None:
        return []
    strength = ramp(kv, RULE["kv_room"], RULE["kv_full"], RULE.ln("odds_kv"), -RULE.ln("odds_kv_full"))
    text = f"the KV cache was {kv:.0%} used (p90)"
    return [
        clue(
            "kv",
            strength,
            text,
            series=("engine.kv_used_ratio",),
            observed=kv,
            reference=RULE["kv_room"],
            unit="ratio",
            source=RULE.source("kv_room"),
        )
    ]


def _gain(f: Features, top: FlatTop) -> list[Clue]:
    if not is_queueing(f):
        return []
    line = f.token_cost
    if line is None:
        return [
            clue(
                "gain",
                RULE.ln("odds_prior_step"),
                "the batch could not vary enough to measure what another sequence costs; a batched step usually costs "
                "little more than a single one",
                source="prior: decoding reads all weights once per step, whatever the batch",
            )
        ]
    gain = line.gain_of_doubling(top.value)
    if gain >= RULE["gain_neutral"]:
        strength = ramp(gain, RULE["gain_neutral"], RULE["gain_free"], 0.0, RULE.ln("odds_gain"))
    else:
        strength = ramp(gain, RULE["gain_spent"], RULE["gain_neutral"], -RULE.ln("odds_spent"), 0.0)
    return [
        clue(
            "gain",
            strength,
            f"time per token fits {line.a_s * 1e3:.1f} ms + {line.b_s * 1e3:.2f} ms per stream "
            f"({line.n_min:.0f} to {line.n_max:.0f} streams): twice the slots would carry {gain:.2f}x",
            observed=gain,
            reference=RULE["gain_neutral"],
            unit="ratio",
            source=RULE.source("gain_neutral"),
            window=f"{line.requests} answers of all stages",
        )
    ]


def _values(f: Features, cap: int) -> dict[str, str]:
    """Twice the cap, whose effect the fitted step predicts; more if the user's own highest rate needs more (Little)."""
    values = {"cap": str(cap)}
    line, osl = f.token_cost, f.lengths[1]
    target_rps = f.view.manifest.plan.get("max_rate_rps")
    slots = 2 * cap
    if line is not None:
        values["gain"] = f"{line.gain_of_doubling(cap):.2f}x"
        if osl and target_rps:
            # n = rate * OSL * (a + b n), solved for n; no solution when the step itself cannot carry the rate.
            free = 1 - target_rps * osl * line.b_s
            if free > 0:
                mean = target_rps * osl * line.a_s / free
                wanted = mean + RULE["headroom_sigmas"] * math.sqrt(mean)
                slots = max(math.ceil(wanted), slots)
    slots = min(slots, int(RULE["growth_max"] * cap))
    isl = f.lengths[0]
    if f.limits.kv_tokens and isl and osl:
        slots = max(min(slots, int(f.limits.kv_tokens / (isl + osl))), cap + 1)
    values["slots"] = str(slots)
    if f.limits.context_tokens:
        values["context"] = str(f.limits.context_tokens * slots)
    return values
