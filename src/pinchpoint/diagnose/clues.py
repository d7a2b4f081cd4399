"""Clues that several rules read the same way: latency shape, engine queue, event-loop delay, who took the step time.

Each returns a list, empty when its telemetry is missing: a reading that is not there speaks neither for nor against.
"""

import math

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


def inflation_by_prefill(f: Features) -> float | None:
    """Share of the growth of TPOT that prompts in the same steps account for, in logarithms.

    With prompts taking a share u of engine time, decoding proceeds 1 / (1 - u) slower. None when TPOT did not grow
    or u is unknown.
    """
    stage = f.stressed
    use = f.prefill_utilisation(stage)
    base_use = f.prefill_utilisation(f.base)
    if use is None or base_use is None or use[0] is None or stage is None or f.base is None:
        return None
    if not stage.tpot_s or not f.base.tpot_s or stage.tpot_s < SHARED["flat"].value * f.base.tpot_s:
        return None
    free_before = 1 - min(base_use[0] or 0.0, PREFILL_SHARE_MAX)
    free_now = 1 - min(use[0], PREFILL_SHARE_MAX)
    return max(math.log(free_before / free_now), 0.0) / math.log(stage.tpot_s / f.base.tpot_s)


def is_queueing(f: Features) -> bool:
    """Requests wait somewhere under stress: in the engine's queue or, unseen, before their first token."""
    s = f.stressed
    if s is None:
        return False
    if s.waiting_mean is not None:
        return s.waiting_mean >= SHARED["queue_min"].value
    return (f.growth("ttft_s") or 0.0) >= SHARED["explodes"].value
