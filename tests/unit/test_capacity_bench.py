"""The bench that scores the capacity search: its cases, its truth and what it is compared with."""

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import capacity_rivals
import capacity_truth
from capacity_cases import CASES_PER_FAMILY, FAMILIES, Case, Drift, drawn

from pinchpoint.slo import parse_slos


@pytest.fixture
def bucket() -> Case:
    """A token bucket: its capacity is a little above its rate, whatever the engine does."""
    params = {"rate_limit_rps": 8.0, "rate_limit_burst_requests": 20.0}
    return Case("bucket", "token-bucket", "tuning", params, 60, 16, None, None, None, 95, 1)


def test_the_generator_draws_the_same_cases_and_halves_every_family() -> None:
    for family in FAMILIES:
        cases = [drawn(family, i, 0) for i in range(CASES_PER_FAMILY)]
        assert cases == [drawn(family, i, 0) for i in range(CASES_PER_FAMILY)]
        assert sum(case.half == "tuning" for case in cases) == CASES_PER_FAMILY / 2
        for case in cases:
            case.lab().validate()


def test_the_crossing_is_interpolated_between_shares_made_monotone() -> None:
    rates = [4.0, 5.0, 6.0]
    assert capacity_truth.crossing(rates, [(0, 1000), (50, 1000), (300, 1000)], 0.05) == pytest.approx(5, rel=0.01)
    lucky = capacity_truth.crossing(rates, [(58, 1000), (40, 1000), (300, 1000)], 0.05)
    assert lucky == pytest.approx(math.sqrt(4 * 5), rel=0.02)
    assert capacity_truth.crossing(rates, [(0, 100), (0, 100), (1, 100)], 0.05) == math.inf
    assert capacity_truth.crossing(rates, [(9, 100), (20, 100), (30, 100)], 0.05) == -math.inf


def test_the_other_methods_find_a_token_bucket_and_count_what_they_took(bucket: Case) -> None:
    slos = tuple(slo.text for slo in parse_slos(["errors < 5%"]))
    truth = capacity_truth.Truth(bucket, slos, 8.2, 0.1, slos[0], 0.2, 0, "")
    for method in (capacity_rivals.sweep, capacity_rivals.bisection):
        found = method(truth, 400, 7)
        assert found.best_rps == pytest.approx(8.2, rel=0.2)
        assert found.requests >= 5 * 350 and found.seconds > 100


def test_a_drifting_service_takes_longer_at_its_end(bucket: Case) -> None:
    steady = capacity_truth.Bench(bucket, bucket.lab()).open(5.0, 200, 1)
    slower = capacity_truth.Bench(bucket, bucket.lab(), drift=Drift(wave_ratio=0.5, wave_period_s=160.0)).open(
        5.0, 200, 1
    )
    assert slower.tpot_s[:150].mean() > 1.2 * steady.tpot_s[:150].mean()


def test_a_case_is_known_by_what_its_service_answers(bucket: Case) -> None:
    slower = Case(
        "bucket", "token-bucket", "tuning", {**bucket.params, "step_overhead_s": 5e-3}, 60, 16, *[None] * 3, 95, 1
    )
    assert capacity_truth.fingerprint_of(bucket) == capacity_truth.fingerprint_of(bucket)
    assert capacity_truth.fingerprint_of(bucket) != capacity_truth.fingerprint_of(slower)
