"""What other tools do to find a capacity, on the same virtual services: levels with a fixed number of requests.

Every level begins with an idle service, sends its requests as Poisson arrivals and waits for all answers; all of them
count. A level holds when the share that met each SLO is what the SLO promises. Both are told the range of rates in
which all capacities of the table lie (capacity_cases.CAPACITY_RANGE_RPS), which a user would have to guess.

sweep      SWEEP_LEVELS rates spaced evenly (in the ratio) over the range of the first two: one request at a time,
           and as fast as it goes (a burst of BURST_REQUESTS). The answer lies between the highest level that holds
           below the first that does not, and that one, where a straight line between their shares crosses what is
           allowed.
bisection  doubling from the lowest rate until a level does not hold, then halving the ratio until it is
           BISECTION_RATIO. The answer is the middle.
"""

import math
from collections.abc import Sequence

import msgspec
from capacity_cases import CAPACITY_RANGE_RPS
from capacity_truth import Bench, Truth, miss_shares

from pinchpoint.model import Slo
from pinchpoint.slo import parse_slos

SWEEP_LEVELS = 10
BURST_REQUESTS = 200
BISECTION_RATIO = 1.05


class Found(msgspec.Struct, frozen=True):
    """What a method says and what it took. lower_rps, upper_rps: the neighbouring levels."""

    best_rps: float | None
    lower_rps: float | None
    upper_rps: float | None
    requests: int
    seconds: float


def _excess(counts: Sequence[tuple[float, float]], slos: Sequence[Slo]) -> float:
    """Largest share of misses over what its SLO allows; above 1 the level does not hold."""
    return max(
        (m / n / (1 - slo.attainment_ratio) for slo, (m, n) in zip(slos, counts, strict=True) if n), default=math.inf
    )


def sweep(truth: Truth, requests: int, seed: int) -> Found:
    slos = parse_slos(list(truth.slos))
    bench = Bench(truth.case, truth.case.lab(), drift=truth.case.drift)
    idle = bench.one_by_one(20, seed)
    low_rps = 1 / float(idle.e2e_s.mean())
    burst = bench.burst(BURST_REQUESTS, seed + 1)
    answered = sum(status == "ok" for status in burst.status)
    high_rps = max(answered / burst.seconds, 2 * low_rps)
    ratio = (high_rps / low_rps) ** (1 / (SWEEP_LEVELS - 1))
    before: tuple[float, float] | None = None
    found: tuple[tuple[float, float], tuple[float, float]] | None = None
    for level in range(SWEEP_LEVELS):
        rate_rps = low_rps * ratio**level
        excess = _excess(miss_shares(bench.open(rate_rps, requests, seed + 2 + level), slos, 0.0), slos)
        if excess > 1 and before is not None and found is None:
            found = before, (rate_rps, excess)
        if excess <= 1:
            before = rate_rps, excess
    if found is None:
        best_rps = before[0] if before else None
        return Found(best_rps, best_rps, None, bench.requests, bench.seconds)
    (low, low_excess), (high, high_excess) = found
    best_rps = low + (high - low) * (1 - low_excess) / (high_excess - low_excess)
    return Found(best_rps, low, high, bench.requests, bench.seconds)


def bisection(truth: Truth, requests: int, seed: int) -> Found:
    slos = parse_slos(list(truth.slos))
    bench = Bench(truth.case, truth.case.lab(), drift=truth.case.drift)
    level = 0

    def holds(rate_rps: float) -> bool:
        nonlocal level
        level += 1
        return _excess(miss_shares(bench.open(rate_rps, requests, seed + level), slos, 0.0), slos) <= 1

    low_rps, high_rps = CAPACITY_RANGE_RPS[0] / 2, CAPACITY_RANGE_RPS[0]
    while high_rps < 4 * CAPACITY_RANGE_RPS[1] and holds(high_rps):
        low_rps, high_rps = high_rps, 2 * high_rps
    while high_rps / low_rps > BISECTION_RATIO:
        middle_rps = math.sqrt(low_rps * high_rps)
        low_rps, high_rps = (middle_rps, high_rps) if holds(middle_rps) else (low_rps, middle_rps)
    return Found(math.sqrt(low_rps * high_rps), low_rps, high_rps, bench.requests, bench.seconds)
