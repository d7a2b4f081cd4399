"""From stages to a capacity interval. Used by the search while it runs and to judge an old run against a new SLO.

A stage passes when the sequential test rejects, at `1 - confidence`, that the share of misses is above what the SLO
allows, for every SLO; it fails when one SLO is rejected the other way or the stage could not be sustained. Too few
requests leave it undecided, and then the point estimate places it, and the interval is marked as not proven.

The tests treat requests as independent. Requests in one batch are not quite: docs/explanation/capacity.md says what
that means for the stated confidence.
"""

from collections.abc import Sequence

from pinchpoint.model import Capacity, Slo, StageResult
from pinchpoint.stats import SequentialBinomial

CONFIDENCE = 0.95
ACHIEVED_RATIO_MIN = 0.9
"""A stage whose completions stay below this share of the offered rate did not sustain it."""


def decide(
    attainment: dict[str, tuple[int, int]], slos: Sequence[Slo], confidence: float = CONFIDENCE
) -> tuple[str, str]:
    """('pass' | 'fail' | 'undecided', reason) for counts of (met, counted) per SLO text.

    The error budget is shared by the SLOs (Bonferroni), so the confidence holds for the stage as a whole.
    """
    alpha = (1 - confidence) / max(len(slos), 1)
    undecided: list[str] = []
    for slo in slos:
        met, counted = attainment.get(slo.text, (0, 0))
        test = SequentialBinomial(1 - slo.attainment_ratio, alpha)
        test.add(counted - met, counted)
        if test.decision == "fail":
            return "fail", f"{slo.text}: {counted - met} of {counted} requests missed it"
        if test.decision == "undecided":
            undecided.append(f"{slo.text}: {counted - met} of {counted} missed")
    if undecided:
        return "undecided", "; ".join(undecided)
    return "pass", "every SLO held"


def leans_pass(attainment: dict[str, tuple[int, int]], slos: Sequence[Slo]) -> bool:
    """Point estimate for an undecided stage: every SLO's observed share is met, on at least one request."""
    counts = [attainment.get(slo.text, (0, 0)) for slo in slos]
    return any(counted for _, counted in counts) and all(
        counted == 0 or met / counted >= slo.attainment_ratio for slo, (met, counted) in zip(slos, counts, strict=True)
    )


def requests_needed(slos: Sequence[Slo], confidence: float = CONFIDENCE) -> int:
    """Requests that a stage needs to pass without a single miss."""
    alpha = (1 - confidence) / max(len(slos), 1)
    return max(SequentialBinomial.requests_to_pass(1 - slo.attainment_ratio, alpha) for slo in slos)


def limiting_slo(attainment: dict[str, tuple[int, int]], slos: Sequence[Slo]) -> str | None:
    """The SLO with the largest share of misses relative to what it allows; None when none is missed."""
    worst, worst_excess = None, 0.0
    for slo in slos:
        met, counted = attainment.get(slo.text, (0, 0))
        if counted and (excess := (1 - met / counted) / (1 - slo.attainment_ratio)) > worst_excess:
            worst, worst_excess = slo.text, excess
    return worst if worst_excess > 1 else None


def capacity_of(
    stages: Sequence[StageResult], slos: Sequence[Slo], *, unsustained: frozenset[int] = frozenset()
) -> Capacity | None:
    """Interval from open-loop stages (kinds search, overload, load with a rate). None when there is none.

    unsustained: indices of stages that failed because their backlog grew. A pass above a fail at the same or a lower
    rate is possible by chance; the lowest fail then bounds the interval and passes above it are ignored.
    """
    rated = sorted((s for s in stages if s.rate_rps is not None and s.requests), key=lambda s: s.rate_rps or 0.0)
    if not rated:
        return None
    judged: list[tuple[float, str, bool, StageResult]] = []
    for stage in rated:
        decision, _ = decide(stage.attainment, slos)
        proven = decision != "undecided"
        if stage.index in unsustained and decision != "fail":
            decision, proven = "fail", True
        elif decision == "undecided":
            decision = "pass" if leans_pass(stage.attainment, slos) else "fail"
        judged.append((stage.rate_rps or 0.0, decision, proven, stage))
    fails = [entry for entry in judged if entry[1] == "fail"]
    lowest_fail = fails[0] if fails else None
    passes = [entry for entry in judged if entry[1] == "pass" and (lowest_fail is None or entry[0] < lowest_fail[0])]
    highest_pass = passes[-1] if passes else None
    notes: list[str] = []
    if lowest_fail is None:
        notes.append("no rate failed: the capacity is at least the lower end")
    if highest_pass is None:
        notes.append("no rate passed: the capacity is below the upper end")
    unproven = [entry[0] for entry in (highest_pass, lowest_fail) if entry is not None and not entry[2]]
    if unproven:
        notes.append(
            f"an end of the interval rests on too few requests for {CONFIDENCE:.0%}; "
            f"a stage needs {requests_needed(slos)} requests without a miss (raise --budget)"
        )
    return Capacity(
        lower_rps=highest_pass[0] if highest_pass else None,
        upper_rps=lowest_fail[0] if lowest_fail else None,
        confidence=CONFIDENCE,
        proven=not unproven,
        limiting_slo=limiting_slo(lowest_fail[3].attainment, slos) if lowest_fail else None,
        note="; ".join(notes),
    )
