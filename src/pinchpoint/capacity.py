"""From stages to a capacity interval. Used by the search while it runs and to judge an old run against a new SLO.

A stage passes when the sequential test rejects, at `1 - confidence`, that the share of misses is above what the SLO
allows, for every SLO; it fails when one SLO is rejected the other way or the stage could not be sustained. Too few
requests leave it undecided, and then the point estimate places it, and the interval is marked as not proven.

Requests that wait in one queue share their fate, so misses come in runs. Counts are therefore scaled by the share of
requests that is effectively independent before they are tested; docs/explanation/capacity.md has the details.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from pinchpoint.model import Capacity, Slo, StageResult
from pinchpoint.stats import SequentialBinomial

_N = TypeVar("_N", int, float)

CONFIDENCE = 0.95
ACHIEVED_RATIO_MIN = 0.9
"""A stage whose completions stay below this share of the offered rate did not sustain it."""


class Tally(msgspec.Struct, frozen=True):
    """Counts per SLO text: requests that (met it, count), and the same scaled to effectively independent requests."""

    attainment: dict[str, tuple[int, int]] = {}
    independent: dict[str, tuple[float, float]] = {}

    @staticmethod
    def of(attainment: Mapping[str, tuple[int, int]], effective: Mapping[str, float]) -> "Tally":
        """effective: SLO text -> independent share of its requests."""
        scaled = {
            text: (met * effective.get(text, 1.0), counted * effective.get(text, 1.0))
            for text, (met, counted) in attainment.items()
        }
        return Tally(dict(attainment), scaled)

    def plus(self, other: "Tally") -> "Tally":
        """Both together. Valid for one rate: the sequential test does not mind how its requests were spread."""
        return Tally(_added(self.attainment, other.attainment), _added(self.independent, other.independent))

    def counted(self, slo: Slo) -> int:
        return self.attainment.get(slo.text, (0, 0))[1]

    def decide_slo(self, slo: Slo, slos: Sequence[Slo]) -> str:
        """'pass', 'fail' or 'undecided' for one of `slos`; they share the error budget (Bonferroni)."""
        met, counted = self.independent.get(slo.text, (0.0, 0.0))
        test = SequentialBinomial(1 - slo.attainment_ratio, (1 - CONFIDENCE) / max(len(slos), 1))
        test.add(counted - met, counted)
        return test.decision

    def decide(self, slos: Sequence[Slo]) -> tuple[str, str]:
        """('pass' | 'fail' | 'undecided', reason) for all SLOs together, at CONFIDENCE."""
        undecided: list[str] = []
        for slo in slos:
            met, counted = self.attainment.get(slo.text, (0, 0))
            decision = self.decide_slo(slo, slos)
            if decision == "fail":
                return "fail", f"{slo.text}: {counted - met} of {counted} requests missed it"
            if decision == "undecided":
                undecided.append(f"{slo.text}: {counted - met} of {counted} missed")
        return ("undecided", "; ".join(undecided)) if undecided else ("pass", "every SLO held")

    def leans_pass(self, slos: Sequence[Slo]) -> bool:
        return leans_pass(self.attainment, slos)


def _added(a: Mapping[str, tuple[_N, _N]], b: Mapping[str, tuple[_N, _N]]) -> dict[str, tuple[_N, _N]]:
    result = dict(a)
    for text, (met, counted) in b.items():
        earlier = result.get(text)
        result[text] = (met + earlier[0], counted + earlier[1]) if earlier else (met, counted)
    return result


def decide(
    attainment: Mapping[str, tuple[int, int]], slos: Sequence[Slo], effective: Mapping[str, float] | None = None
) -> tuple[str, str]:
    """Decision and reason for the counts of one stage; see Tally."""
    return Tally.of(attainment, effective or {}).decide(slos)


def leans_pass(attainment: Mapping[str, tuple[int, int]], slos: Sequence[Slo]) -> bool:
    """Best guess for an undecided stage: no SLO has more misses than its allowance for that many requests, rounded up.

    False when nothing was counted.
    """
    counts = [(slo, *attainment.get(slo.text, (0, 0))) for slo in slos]
    return any(counted for _, _, counted in counts) and all(
        _within_allowance(slo, counted - met, counted) for slo, met, counted in counts
    )


def _within_allowance(slo: Slo, misses: int, counted: int) -> bool:
    return misses <= math.ceil((1 - slo.attainment_ratio) * counted - ROUNDING)


ROUNDING = 1e-9
"""0.05 * 20 is a little more than 1 in binary."""


def requests_needed(slos: Sequence[Slo], *, alpha_shared_by: int | None = None) -> int:
    """Requests that a stage needs to pass `slos` without a single miss. alpha_shared_by: number of SLOs in all."""
    alpha = (1 - CONFIDENCE) / max(alpha_shared_by or len(slos), 1)
    return max(SequentialBinomial.requests_to_pass(1 - slo.attainment_ratio, alpha) for slo in slos)


def limiting_slo(attainment: Mapping[str, tuple[int, int]], slos: Sequence[Slo]) -> str | None:
    """The SLO with the largest share of misses relative to what it allows; None when none is missed."""
    worst, worst_excess = None, 0.0
    for slo in slos:
        met, counted = attainment.get(slo.text, (0, 0))
        if counted and (excess := (1 - met / counted) / (1 - slo.attainment_ratio)) > worst_excess:
            worst, worst_excess = slo.text, excess
    return worst if worst_excess > 1 else None


class Interval(msgspec.Struct, frozen=True):
    """Ends of the capacity interval and whether each was decided by the test; None where no rate is on that side."""

    lower_rps: float | None
    lower_proven: bool
    upper_rps: float | None
    upper_proven: bool


def interval_of(tallies: Mapping[float, Tally], slos: Sequence[Slo], unsustained: Collection[float] = ()) -> Interval:
    """The highest rate that passes and the lowest that fails, given the counts at every rate tried.

    More load never makes an SLO easier to keep, so rates that the test leaves undecided are placed by a fit of the
    share of misses that does not fall with the rate (isotonic regression): one unlucky step then neither ends the
    interval nor is ignored. A proven fail stands, and rates above it are not passes.
    """
    leans = _isotonic_leans(tallies, slos)
    decisions: dict[float, tuple[str, bool]] = {}
    for rate_rps, tally in tallies.items():
        decision, _ = tally.decide(slos)
        if rate_rps in unsustained and decision != "fail":
            decisions[rate_rps] = ("fail", True)
        elif decision == "undecided":
            decisions[rate_rps] = ("pass" if leans[rate_rps] else "fail", False)
        else:
            decisions[rate_rps] = (decision, True)
    proven_fail_rps = min((r for r, (d, proven) in decisions.items() if d == "fail" and proven), default=math.inf)
    proven_pass_rps = max(
        (r for r, (d, proven) in decisions.items() if d == "pass" and proven and r < proven_fail_rps), default=0.0
    )
    fails = [r for r, (d, _) in decisions.items() if d == "fail" and r > proven_pass_rps]
    upper_rps = min(fails, default=None)
    passes = [r for r, (d, _) in decisions.items() if d == "pass" and (upper_rps is None or r < upper_rps)]
    lower_rps = max(passes, default=None)
    return Interval(
        lower_rps,
        lower_rps is not None and decisions[lower_rps][1],
        upper_rps,
        upper_rps is not None and decisions[upper_rps][1],
    )


def _isotonic_leans(tallies: Mapping[float, Tally], slos: Sequence[Slo]) -> dict[float, bool]:
    """rate -> whether every SLO's fitted share of misses is within its allowance. Pool-adjacent-violators, weighted.

    A block of pooled rates is held against its allowance as one stage is (leans_pass): misses rounded up.
    """
    rates = sorted(tallies)
    leans = dict.fromkeys(rates, True)
    for slo in slos:
        blocks: list[tuple[int, int, list[float]]] = []
        for rate_rps in rates:
            met, counted = tallies[rate_rps].attainment.get(slo.text, (0, 0))
            if not counted:
                continue
            blocks.append((counted - met, counted, [rate_rps]))
            while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] > blocks[-1][0] * blocks[-2][1]:
                (misses_a, n_a, rates_a), (misses_b, n_b, rates_b) = blocks[-2], blocks[-1]
                blocks[-2:] = [(misses_a + misses_b, n_a + n_b, rates_a + rates_b)]
        for misses, counted, members in blocks:
            if not _within_allowance(slo, misses, counted):
                for rate_rps in members:
                    leans[rate_rps] = False
    return leans


def tallies_of(stages: Iterable[StageResult]) -> dict[float, Tally]:
    """rate -> pooled counts of the open-loop stages at that rate."""
    tallies: dict[float, Tally] = {}
    for stage in stages:
        if stage.rate_rps is not None and stage.requests:
            tally = Tally.of(stage.attainment, stage.effective)
            tallies[stage.rate_rps] = tallies.get(stage.rate_rps, Tally()).plus(tally)
    return tallies


def capacity_of(
    stages: Sequence[StageResult], slos: Sequence[Slo], *, unsustained: frozenset[int] = frozenset()
) -> Capacity | None:
    """Interval from open-loop stages (kinds search, overload, load with a rate). None when there is none.

    unsustained: indices of stages that failed because their backlog grew.
    """
    tallies = tallies_of(stages)
    if not tallies:
        return None
    failed_rates = {stage.rate_rps for stage in stages if stage.index in unsustained and stage.rate_rps is not None}
    interval = interval_of(tallies, slos, failed_rates)
    notes: list[str] = []
    if interval.upper_rps is None:
        notes.append("no rate failed: the capacity is at least the lower end")
    if interval.lower_rps is None:
        notes.append("no rate passed: the capacity is below the upper end")
    if interval.lower_rps is not None and not interval.lower_proven:
        notes.append(f"the lower end is a best estimate: {_what_is_missing(tallies[interval.lower_rps], slos)}")
    if interval.upper_rps is not None and not interval.upper_proven:
        notes.append("the upper end is a best estimate: too few of its misses are independent to prove a failure")
    return Capacity(
        lower_rps=interval.lower_rps,
        upper_rps=interval.upper_rps,
        confidence=CONFIDENCE,
        proven=(interval.lower_rps is None or interval.lower_proven)
        and (interval.upper_rps is None or interval.upper_proven),
        limiting_slo=limiting_slo(tallies[interval.upper_rps].attainment, slos) if interval.upper_rps else None,
        note="; ".join(notes),
    )


def _what_is_missing(tally: Tally, slos: Sequence[Slo]) -> str:
    """Which SLOs the counts do not prove, and how many clean requests each would have needed."""
    parts: list[str] = []
    for slo in slos:
        if tally.decide_slo(slo, slos) != "undecided":
            continue
        met, counted = tally.attainment.get(slo.text, (0, 0))
        needed = requests_needed((slo,), alpha_shared_by=len(slos))
        missed = f"{counted - met} of {counted} requests missed {slo.text}"
        parts.append(f"{missed} (proof takes {needed} without a miss)" if counted < needed else missed)
    return ", ".join(parts)
