"""From stages to a capacity interval. Used by the search while it runs and to judge an old run against a new SLO.

Two things are said of the capacity, and they are kept apart. The *estimate* is a point and a 95 % interval from all
steps together (crossing.py). The *proof* needs no model but that more load is never better: a rate that passed the
sequential test and a rate that failed it. An interval is proven when a rate at or above its lower end passed and a
rate at or below its upper end failed.

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

from pinchpoint.crossing import Crossing, Seen, crossing_of
from pinchpoint.model import Capacity, Slo, StageResult
from pinchpoint.stats import SequentialBinomial

_N = TypeVar("_N", int, float)

CONFIDENCE = 0.95


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

    def only(self, slo: Slo) -> "Tally":
        """Without the counts of other SLOs."""
        return Tally(
            {text: n for text, n in self.attainment.items() if text == slo.text},
            {text: n for text, n in self.independent.items() if text == slo.text},
        )

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


class StepCounts(msgspec.Struct, frozen=True):
    """What one step at a fixed rate says. rate_rps: asked. came_rps: arrivals per second as they were: chance makes a
    step of 100 requests a tenth lighter or heavier than it was asked to be, and the service saw what came. effective:
    SLO text -> independent share of its requests. sustained: False when the backlog grew all the time. arrived:
    requests that came_rps was counted from; None: it was not counted. seconds: how long arrivals counted; None: long
    enough."""

    rate_rps: float
    came_rps: float
    attainment: Mapping[str, tuple[int, int]]
    effective: Mapping[str, float]
    sustained: bool = True
    arrived: int | None = None
    seconds: float | None = None

    @property
    def tally(self) -> Tally:
        return Tally.of(self.attainment, self.effective)

    def seen(self, slo: Slo) -> Seen:
        met, counted = self.attainment.get(slo.text, (0, 0))
        return Seen(self.came_rps, counted - met, counted, self.effective.get(slo.text, 1.0), self.arrived)


def tallies_of(steps: Iterable[StepCounts]) -> dict[float, Tally]:
    """rate -> pooled counts of the steps at that rate."""
    tallies: dict[float, Tally] = {}
    for step in steps:
        tallies[step.rate_rps] = tallies.get(step.rate_rps, Tally()).plus(step.tally)
    return tallies


class Proof(msgspec.Struct, frozen=True):
    """Highest rate that passed the sequential test, lowest that failed it; None where none did."""

    passed_rps: float | None
    failed_rps: float | None


def proof_of(tallies: Mapping[float, Tally], slos: Sequence[Slo], unsustained: Collection[float] = ()) -> Proof:
    """What the test decides without a model.

    More load is never better: if a rate misses more than is allowed, every higher one does. So what was offered at
    neighbouring rates is tested together: if from 5 to 7 req/s all requests together pass, then 5 does; if they fail,
    then 7 does. A backlog that grew fails its rate. Passes at or above a fail do not count.
    """
    rates = sorted(tallies)
    failed = [rate_rps for rate_rps in rates if rate_rps in unsustained]
    passed: list[float | None] = []
    for slo in slos:
        best: float | None = None
        for i, low_rps in enumerate(rates):
            pooled = Tally()
            for high_rps in rates[i:]:
                pooled = pooled.plus(tallies[high_rps].only(slo))
                decision = pooled.decide_slo(slo, slos)
                if decision == "pass":
                    best = low_rps
                elif decision == "fail":
                    failed.append(high_rps)
        passed.append(best)
    failed_rps = min(failed, default=None)
    if not passed or any(rate_rps is None for rate_rps in passed):
        return Proof(None, failed_rps)
    passed_rps = min(rate_rps for rate_rps in passed if rate_rps is not None)
    if failed_rps is not None and passed_rps >= failed_rps:
        passed_rps = max((rate_rps for rate_rps in rates if rate_rps < failed_rps), default=None)
    return Proof(passed_rps, failed_rps)


CONTRADICTION_RATIO = 1.25
"""A pass at a rate so far above one that provably failed is chance, a cache or a service that fell silent."""


LIMITS_MIN = 1.5
"""A step has to be so many times as long as a limit on TTFT or E2E, so that a queue can grow to it."""


def posterior_of(steps: Sequence[StepCounts], slos: Sequence[Slo]) -> Crossing | None:
    """What all steps together say of the capacity; None without any.

    A step whose backlog grew says that its rate is too high, and its latencies say nothing: they had only begun to
    rise. A pass says nothing if the step was too short for a queue to reach the limit, nor if it is far above a proven
    fail.
    """
    tallies = tallies_of(steps)
    told: list[list[Seen]] = []
    for slo in slos:
        failed_rps = proof_of(tallies, (slo,)).failed_rps or math.inf
        told.append([step.seen(slo) for step in steps if _tells(step, slo, failed_rps)])
    return crossing_of(
        told,
        [1 - slo.attainment_ratio for slo in slos],
        [step.came_rps for step in steps if not step.sustained],
    )


def _tells(step: StepCounts, slo: Slo, failed_rps: float) -> bool:
    met, counted = step.attainment.get(slo.text, (0, 0))
    short = slo.metric in ("ttft", "e2e") and step.seconds is not None and step.seconds < LIMITS_MIN * slo.limit
    lucky = short or step.rate_rps > CONTRADICTION_RATIO * failed_rps
    return step.sustained and not (lucky and met >= slo.attainment_ratio * counted)


LOWER_QUANTILE, UPPER_QUANTILE = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2


def estimate_of(steps: Sequence[StepCounts], slos: Sequence[Slo]) -> tuple[Interval, float | None]:
    """The interval and the point. Where nothing failed the interval is open above, where nothing passed it is open
    below, and there is no point: no model says how far it is to what was never seen."""
    unsustained = {step.rate_rps for step in steps if not step.sustained}
    tallies = tallies_of(steps)
    bracket = interval_of(tallies, slos, unsustained)
    posterior = posterior_of(steps, slos)
    if bracket.lower_rps is None or bracket.upper_rps is None or posterior is None:
        return bracket, None
    lower_rps, upper_rps = _neat(posterior.quantile(LOWER_QUANTILE)), _neat(posterior.quantile(UPPER_QUANTILE))
    proof = proof_of(tallies, slos, unsustained)
    return Interval(
        lower_rps,
        proof.passed_rps is not None and proof.passed_rps >= lower_rps,
        upper_rps,
        proof.failed_rps is not None and proof.failed_rps <= upper_rps,
    ), _neat(posterior.quantile(0.5))


def capacity_of(
    stages: Sequence[StageResult], slos: Sequence[Slo], *, unsustained: frozenset[int] = frozenset()
) -> Capacity | None:
    """Capacity from open-loop stages (kinds search, overload, load with a rate). None when there is none.

    unsustained: indices of stages that failed because their backlog grew.
    """
    steps = [
        StepCounts(
            stage.rate_rps,
            stage.achieved_rps or stage.rate_rps,
            stage.attainment,
            stage.effective,
            stage.index not in unsustained,
            stage.requests if stage.achieved_rps else None,
            stage.duration_s,
        )
        for stage in stages
        if stage.rate_rps is not None and stage.requests
    ]
    if not steps:
        return None
    interval, best_rps = estimate_of(steps, slos)
    tallies = tallies_of(steps)
    proof = proof_of(tallies, slos, {step.rate_rps for step in steps if not step.sustained})
    return Capacity(
        lower_rps=interval.lower_rps,
        upper_rps=interval.upper_rps,
        confidence=CONFIDENCE,
        proven=(interval.lower_rps is None or interval.lower_proven)
        and (interval.upper_rps is None or interval.upper_proven),
        limiting_slo=_limiting(steps, slos, tallies, interval),
        note="; ".join(_notes(interval, proof, tallies, slos)),
        best_rps=best_rps,
        passed_rps=proof.passed_rps,
        failed_rps=proof.failed_rps,
    )


def _limiting(
    steps: Sequence[StepCounts], slos: Sequence[Slo], tallies: Mapping[float, Tally], interval: Interval
) -> str | None:
    """The SLO that most probably breaks first; None when none breaks."""
    if interval.upper_rps is None:
        return None
    if interval.lower_rps is None:
        return limiting_slo(tallies[interval.upper_rps].attainment, slos)
    posterior = posterior_of(steps, slos)
    assert posterior is not None
    return slos[max(range(len(slos)), key=lambda k: posterior.by_slo[k])].text


def _notes(interval: Interval, proof: Proof, tallies: Mapping[float, Tally], slos: Sequence[Slo]) -> list[str]:
    if interval.upper_rps is None:
        notes = ["no rate failed: the capacity is at least the lower end"]
        if interval.lower_rps is not None and not interval.lower_proven:
            notes.append(f"the lower end is a best estimate: {_what_is_missing(tallies[interval.lower_rps], slos)}")
        return notes
    if interval.lower_rps is None:
        notes = ["no rate passed: the capacity is below the upper end"]
        if not interval.upper_proven:
            notes.append("the upper end is a best estimate: too few of its misses are independent to prove a failure")
        return notes
    passed = "no rate passed" if proof.passed_rps is None else f"{proof.passed_rps:g} req/s passed"
    failed = "none failed" if proof.failed_rps is None else f"{proof.failed_rps:g} req/s failed"
    if interval.lower_proven and interval.upper_proven:
        return []
    ends = {(False, False): "both ends are", (False, True): "the lower end is", (True, False): "the upper end is"}
    which = ends[interval.lower_proven, interval.upper_proven]
    return [f"{which} estimated from all steps together; on its own, {passed} and {failed} the sequential test"]


def _neat(rate_rps: float) -> float:
    """Three significant digits: a rate that a person can read, type and compare."""
    return float(f"{rate_rps:.3g}")


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
