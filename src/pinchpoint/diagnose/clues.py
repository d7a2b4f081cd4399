"""Clues that several rules read the same way: latency shape, engine queue, event-loop delay, who took the step time.

Each returns a list, empty when its telemetry is missing: a reading that is not there speaks neither for nor against.
"""

import math

import msgspec

from pinchpoint.diagnose.features import PREFILL_SHARE_MAX, Features
from pinchpoint.diagnose.rule import Clue, Param, clue, odds, ramp
from pinchpoint.units import format_duration

SHARED: dict[str, Param] = {
    "explodes": Param(3.0, "ratio", "a queue multiplies TTFT; prefill beside a fuller batch rarely triples it"),
    "flat": Param(1.5, "ratio", "TPOT of a batch whose size is capped moves little"),
    "rises": Param(2.0, "ratio", "TPOT of a batch that runs into bandwidth or compute at least doubles"),
    "queue_min": Param(0.5, "requests", "half a request waiting on average is a queue, less is scheduling"),
    "null_share_low": Param(0.05, "ratio", "a null request that shares under 5 % of the added wait saw no queue"),
    "null_share_high": Param(0.3, "ratio", "a request passes the event loop at least twice, a null request once"),
    "compute_like": Param(2.0, "ratio", "a stream's token costs what a prompt token costs: both are arithmetic"),
    "memory_like": Param(4.0, "ratio", "a stream's token costs far more than arithmetic: it reads its context"),
    "prompts_half": Param(0.5, "ratio", "as many prompt tokens as generated ones"),
    "prompts_lead": Param(0.65, "ratio", "about two prompt tokens for each generated one"),
    "odds_kind": odds(8),
    "odds_shape": odds(3),
    "odds_queue": odds(2),
    "odds_no_queue": odds(20),
    "odds_loop": odds(10, "starting value for a null latency ten times its baseline; " + "judgement"),
}


def ln(name: str) -> float:
    return math.log(SHARED[name].value)


def queue_shape(f: Features) -> list[Clue]:
    """TTFT explodes while TPOT stays: admission is limited, not the step."""
    ttft, tpot = f.growth("ttft_s"), f.growth("tpot_s")
    if ttft is None or tpot is None:
        return []
    explodes, flat, rises = (SHARED[name].value for name in ("explodes", "flat", "rises"))
    strength = 0.0
    if ttft >= explodes:
        strength = ramp(tpot, flat, rises, ln("odds_shape"), -ln("odds_shape"))
    elif ttft < flat:
        strength = -ln("odds_shape")
    return [
        clue(
            "latency shape",
            strength,
            f"median TTFT grew {ttft:.1f}x from light load to overload, TPOT {tpot:.2f}x",
            observed=tpot,
            reference=flat,
            unit="ratio",
            source=SHARED["flat"].source,
            window="base to stressed",
        )
    ]


def engine_queue(f: Features, *, wanted: bool) -> list[Clue]:
    """Requests wait inside the engine. wanted: whether the cause makes them wait there."""
    s = f.stressed
    if s is None or s.waiting_mean is None:
        return []
    queued = s.waiting_mean >= SHARED["queue_min"].value
    strength = ln("odds_queue") if queued == wanted else -ln("odds_no_queue" if wanted else "odds_queue")
    return [
        clue(
            "queue",
            strength,
            f"{s.waiting_mean:.1f} requests waited inside the engine on average under stress",
            series=("engine.requests_waiting",),
            observed=s.waiting_mean,
            reference=SHARED["queue_min"].value,
            unit="requests",
            source=SHARED["queue_min"].source,
            window=s.stage.name,
        )
    ]


def null_share(f: Features) -> float | None:
    """Added latency of the null request over the added TTFT (e2e where TTFT is void); None when not measured."""
    added_null = f.excess("null_s")
    added = f.excess("ttft_s")
    if added is None or f.streams_void:
        added = f.excess("e2e_s")
    if added_null is None or added is None or added <= 0:
        return None
    return max(added_null, 0.0) / added


def event_loop(f: Features, *, wanted: bool) -> list[Clue]:
    """The null request shares the added wait, so the wait is in front of the engine. wanted: cause makes it share."""
    share, s, base = null_share(f), f.stressed, f.base
    if share is None or s is None or base is None or s.null_s is None or base.null_s is None:
        return []
    low, high = SHARED["null_share_low"].value, SHARED["null_share_high"].value
    strength = ramp(share, low, high, -ln("odds_loop"), ln("odds_loop"))
    if not wanted:
        strength = min(-strength, ln("odds_queue"))
    return [
        clue(
            "event loop",
            strength,
            f"a request that never touches the model took {format_duration(base.null_s)} at light load and "
            f"{format_duration(s.null_s)} under stress: {share:.0%} of the added wait",
            series=("probe.null_request_s",),
            observed=share,
            reference=high,
            unit="ratio",
            source=SHARED["null_share_high"].source,
            window="base to stressed",
        )
    ]


def preemption(f: Features) -> float | None:
    """Preemptions per finished request in the worst failing or stressed stage; None when not counted."""
    values = [s.preemptions_per_request for s in (*f.failing, f.stressed) if s is not None]
    known = [v for v in values if v is not None]
    return max(known) if known else None


PREEMPTION_MATERIAL = Param(
    0.05, "preemptions per request", "each preemption repeats a prefill; at 1 in 20 the waste is felt"
)
PREEMPTION_STRONG = Param(0.2, "preemptions per request", "every fifth request repeats its prefill")
PREEMPTION_AGAINST = (odds(5), odds(60))
"""Against causes that leave running requests alone, at the material and at the strong rate."""


def no_preemption(f: Features) -> list[Clue]:
    """Evictions speak against causes that leave running requests alone."""
    rate = preemption(f)
    if rate is None or rate < PREEMPTION_MATERIAL.value:
        return []
    return [
        clue(
            "preemption",
            ramp(
                rate,
                PREEMPTION_MATERIAL.value,
                PREEMPTION_STRONG.value,
                *(-math.log(p.value) for p in PREEMPTION_AGAINST),
            ),
            f"{rate:.2f} preemptions per finished request: the KV cache is overrun",
            series=("engine.preemptions_total",),
            observed=rate,
            reference=PREEMPTION_MATERIAL.value,
            unit=PREEMPTION_MATERIAL.unit,
            source=PREEMPTION_MATERIAL.source,
        )
    ]


class Compute(msgspec.Struct, frozen=True):
    """What a stream's token costs beside a prompt token, and what all tokens took in the stressed stage.

    ratio: slope of the decode step in the batch over the cost of a prompt token. About one or less: a step pays for
    arithmetic, the same for both kinds of token. Far above: it pays for reading the contexts. prompt_share: prompt
    tokens over all tokens. use: share of time that the arithmetic of all tokens needs at that cost.
    weight: 1 = arithmetic is what grows and prompts lead it, 0 = not.
    """

    ratio: float
    prompt_share: float
    use: float
    weight: float


def compute_of(f: Features) -> Compute | None:
    """None when the cost of a prompt token or of a stream is not known, or no token came."""
    cost, line, s = f.prefill_cost, f.decode_cost, f.stressed
    if cost is None or not cost.value or line is None or s is None or s.prompt_tokens_per_s is None:
        return None
    # An engine that counts tokens when an answer ends counts too few while answers pile up, and a client that gets
    # several tokens in one event too few always.
    generated = max(s.generation_tokens_per_s or 0.0, f.view.token_rate(s.window_s) or 0.0)
    tokens = s.prompt_tokens_per_s + generated
    if tokens <= 0:
        return None
    ratio, share = line.b_s / cost.value, s.prompt_tokens_per_s / tokens
    weight = ramp(ratio, SHARED["compute_like"].value, SHARED["memory_like"].value, 1.0, 0.0)
    weight *= ramp(share, SHARED["prompts_half"].value, SHARED["prompts_lead"].value, 0.0, 1.0)
    return Compute(ratio, share, cost.value * tokens, weight)


def token_kind(f: Features, *, prefill: bool) -> list[Clue]:
    """Whether a stream costs arithmetic or memory reads. prefill: speak for prefill compute, else for decoding."""
    compute = compute_of(f)
    if compute is None or not is_slower(f):
        return []
    low, high = SHARED["compute_like"].value, SHARED["memory_like"].value
    toward_prefill = ramp(compute.ratio, low, high, ln("odds_kind"), -ln("odds_kind"))
    if toward_prefill > 0:
        half, lead = SHARED["prompts_half"].value, SHARED["prompts_lead"].value
        toward_prefill *= ramp(compute.prompt_share, half, lead, 0.0, 1.0)
    return [
        clue(
            "kind",
            toward_prefill if prefill else -toward_prefill,
            f"each further stream adds {compute.ratio:.1f}x the time of a prompt token to a step, and "
            f"{compute.prompt_share:.0%} of the tokens are prompt tokens",
            observed=compute.ratio,
            reference=low if prefill else high,
            unit="ratio",
            source=SHARED["compute_like" if prefill else "memory_like"].source,
        )
    ]


def is_slower(f: Features) -> bool:
    """TPOT under stress has clearly left that of light load."""
    growth = f.growth("tpot_s")
    return growth is not None and growth >= SHARED["flat"].value


def inflation_by_prefill(f: Features) -> float | None:
    """Share of the growth of TPOT that prompts in the same steps account for, in logarithms.

    With prompts taking a share u of engine time, decoding proceeds 1 / (1 - u) slower. None when TPOT did not grow
    or u is unknown.
    """
    use, before = f.prefill_utilisation(f.stressed), f.prefill_utilisation(f.base)
    if use is None or before is None or use[0] is None:
        return None
    return _share_of_growth(f, before[0] or 0.0, use[0])


def inflation_by_compute(f: Features) -> float | None:
    """As inflation_by_prefill, with the arithmetic of generated tokens counted too as far as it is arithmetic."""
    prompts, compute = inflation_by_prefill(f), compute_of(f)
    if prompts is None or compute is None or compute.weight == 0:
        return prompts
    whole = _share_of_growth(f, 0.0, compute.use)
    return prompts if whole is None else max(prompts, compute.weight * whole)


def _share_of_growth(f: Features, use_before: float, use_now: float) -> float | None:
    growth = f.growth("tpot_s")
    if growth is None or not is_slower(f):
        return None
    free_before, free_now = 1 - min(use_before, PREFILL_SHARE_MAX), 1 - min(use_now, PREFILL_SHARE_MAX)
    return max(math.log(free_before / free_now), 0.0) / math.log(growth)


def is_queueing(f: Features) -> bool:
    """Requests wait somewhere under stress: in the engine's queue or, unseen, before their first token."""
    s = f.stressed
    if s is None:
        return False
    if s.waiting_mean is not None:
        return s.waiting_mean >= SHARED["queue_min"].value
    return (f.growth("ttft_s") or 0.0) >= SHARED["explodes"].value
