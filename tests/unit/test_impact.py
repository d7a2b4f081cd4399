"""A fault's label is worth what the fault moves: paired virtual runs, with and without it."""

import math

import numpy as np
import pytest

from pinchpoint.impact import INDICATORS, Impact, compared, measure_impact
from pinchpoint.lab.faults import FAULTS
from pinchpoint.lab.scenario import choose_scenario

ONE_OF_EACH_LAYER = ["client-pool", "dependency", "slot-cap", "clock-lock", "packet-loss"]


@pytest.mark.parametrize("name", ONE_OF_EACH_LAYER)
def test_a_fault_moves_its_indicator_by_more_than_a_tenth_and_three_sigma(name: str) -> None:
    impact = measure_impact(choose_scenario(name), pairs=3)
    assert impact.has_impact, impact
    assert impact.faulty > 1.1 * impact.healthy


def test_a_fault_that_changes_next_to_nothing_has_no_impact() -> None:
    scenario = choose_scenario("slot-cap")
    harmless = type(scenario)(
        faults=scenario.faults,
        severity="moderate",
        onset_s=0,
        before=scenario.before,
        after=scenario.before.changed({"max_num_seqs": 250}),
        seed=1,
    )
    assert not measure_impact(harmless, pairs=2).has_impact


def test_a_healthy_service_has_no_impact_to_measure() -> None:
    with pytest.raises(ValueError, match="healthy"):
        measure_impact(choose_scenario("none"))


def test_every_fault_names_an_indicator_that_there_is() -> None:
    assert {fault.indicator for fault in FAULTS.values() if fault.indicator} <= set(INDICATORS)


def test_times_change_in_relation_and_shares_by_their_difference() -> None:
    before, after = np.array([1.0, 2.0, 3.0]), np.array([1.5, 2.6, 3.4])
    assert compared("ttft_p95_s", before, 1.25 * before)[0] == pytest.approx(0.25)
    assert compared("error_ratio", before, after)[0] == pytest.approx(0.5)
    assert compared("error_ratio", before, after)[1] == pytest.approx(0.5 / (0.1 / math.sqrt(3)))


def test_an_effect_is_sure_by_its_constancy_or_by_how_far_it_lies_beyond_the_noise() -> None:
    noisy, steady = np.array([1.0, 2.0, 4.0]), np.array([1.0, 1.01, 0.99])
    assert compared("ttft_p95_s", noisy, 1.2 * noisy)[1] > 1e6  # the same in every pair
    bursts = np.array([0.0, 0.9, 0.3])
    assert compared("error_ratio", np.zeros(3), bursts) == (pytest.approx(0.4), math.inf)  # a healthy one has none
    assert compared("ttft_p95_s", steady, np.array([2.0, 9.0, 30.0]))[1] > 100
    assert abs(compared("ttft_p95_s", noisy, np.array([2.0, 1.5, 5.0]))[1]) < 3


def test_equal_differences_are_beyond_any_number_of_sigma_unless_they_are_zero() -> None:
    ones = np.ones(3)
    assert compared("ttft_p95_s", ones, 2 * ones) == (pytest.approx(1.0), math.inf)
    assert compared("ttft_p95_s", ones, ones) == (0.0, 0.0)
    assert compared("completed_rps", np.zeros(3), np.ones(3)) == (math.inf, math.inf)


@pytest.mark.parametrize(
    ("change", "sigmas", "has_impact"), [(0.5, 5, True), (-0.5, -5, True), (0.05, 9, False), (0.5, 2, False)]
)
def test_an_impact_is_large_and_certain(change: float, sigmas: float, has_impact: bool) -> None:
    impact = Impact("slot-cap", "mild", "ttft_p95_s", 1.0, 1.0 + change, change, sigmas, 5, 10.0)
    assert impact.has_impact is has_impact
