"""From stages to a capacity interval. Used by the search while it runs and to judge an old run against a new SLO.

A stage passes when the sequential test rejects, at `1 - confidence`, that the share of misses is above what the SLO
allows, for every SLO; it fails when one SLO is rejected the other way or the stage could not be sustained. Too few
requests leave it undecided, and then the point estimate places it, and the interval is marked as not proven.

Requests that wait in one queue share their fate, so misses come in runs. Counts are therefore scaled by the share of
requests that is effectively independent before they are tested; docs/explanation/capacity.md has the details.
"""

import math
from collections.abc import Mapping, Sequence
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
        counted - met <= math.ceil((1 - slo.attainment_ratio) * counted - ROUNDING) for slo, met, counted in counts
    )


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


def capacity_of(
    stages: Sequence[StageResult], slos: Sequence[Slo], *, unsustained: frozenset[int] = frozenset()
) -> Capacity | None:
    """Interval from open-loop stages (kinds search, overload, load with a rate). None when there is none.

    unsustained: indices of stages that failed because their backlog grew. A pass above a fail at the same or a lower
    rate is possible by chance; the lowest fail then bounds the interval and passes above it are ignored.
    """
    by_rate: dict[float, Tally] = {}
    failed_rates: set[float] = set()
    for stage in stages:
        if stage.rate_rps is None or not stage.requests:
            continue
        tally = Tally.of(stage.attainment, stage.effective)
        by_rate[stage.rate_rps] = by_rate.get(stage.rate_rps, Tally()).plus(tally)
        if stage.index in unsustained:
            failed_rates.add(stage.rate_rps)
    if not by_rate:
        return None
    judged: list[tuple[float, str, bool, Tally]] = []
    for rate_rps, tally in sorted(by_rate.items()):
        decision, _ = tally.decide(slos)
        proven = decision != "undecided"
        if rate_rps in failed_rates and decision != "fail":
            decision, proven = "fail", True
        elif decision == "undecided":
            decision = "pass" if tally.leans_pass(slos) else "fail"
        judged.append((rate_rps, decision, proven, tally))
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
