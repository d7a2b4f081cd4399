"""Laws of the posterior of the capacity."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinchpoint.crossing import Seen, crossing_of, independent_shares

ALLOWED = 0.05
STEPS = (Seen(4, 0, 200), Seen(5, 6, 200), Seen(6, 40, 200), Seen(9, 180, 200))


def median(steps: tuple[Seen, ...] | list[Seen], **more: object) -> float:
    found = crossing_of([steps], [ALLOWED], **more)  # type: ignore[arg-type]
    assert found is not None
    return found.quantile(0.5)


def test_the_point_lies_where_the_share_of_misses_crosses_what_is_allowed() -> None:
    assert 4.9 < median(STEPS) < 5.5


def test_nothing_counted_says_nothing() -> None:
    assert crossing_of([[]], [ALLOWED]) is None
    assert crossing_of([[Seen(4, 0, 0)]], [ALLOWED]) is None


@settings(deadline=None)
@given(factor=st.floats(0.01, 100))
def test_the_unit_of_the_rate_does_not_matter(factor: float) -> None:
    scaled = [Seen(step.rate_rps * factor, step.misses, step.counted) for step in STEPS]
    assert median(scaled) == pytest.approx(factor * median(STEPS), rel=0.003)


@settings(deadline=None)
@given(order=st.permutations(STEPS))
def test_the_order_of_the_steps_does_not_matter(order: list[Seen]) -> None:
    assert median(order) == pytest.approx(median(STEPS), rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(which=st.integers(0, 3), more=st.integers(1, 20))
def test_more_misses_never_raise_the_capacity(which: int, more: int) -> None:
    worse = list(STEPS)
    step = worse[which]
    worse[which] = Seen(step.rate_rps, min(step.misses + more, step.counted), step.counted)
    # In the grid's precision; which misses the step shares with others also says how dependent all are.
    assert median(worse) <= median(STEPS) * 1.01


def test_a_step_far_above_says_only_that_the_capacity_is_below_it() -> None:
    with_it = median([*STEPS, Seen(30, 190, 200)])
    with_fewer = median([*STEPS, Seen(30, 120, 200)])
    assert with_it == pytest.approx(with_fewer, rel=1e-6)
    assert with_it == pytest.approx(median(STEPS), rel=0.02)


def test_a_rate_whose_backlog_grew_is_above_the_capacity() -> None:
    found = crossing_of([[Seen(4, 0, 200), Seen(16, 190, 200)]], [ALLOWED], unsustained_rps=[6.0])
    assert found is not None and found.quantile(0.975) < 7


def test_the_capacity_is_that_of_the_slo_that_breaks_first() -> None:
    loose = [Seen(step.rate_rps * 1.5, step.misses, step.counted) for step in STEPS]
    both = crossing_of([STEPS, loose], [ALLOWED, ALLOWED])
    assert both is not None
    assert both.quantile(0.5) == pytest.approx(median(STEPS), rel=0.02)
    assert both.by_slo[0] > 0.9 and sum(both.by_slo) == pytest.approx(1)


def test_requests_that_share_their_fate_widen_the_interval() -> None:
    def width(effective: float) -> float:
        found = crossing_of([[Seen(s.rate_rps, s.misses, s.counted, effective) for s in STEPS]], [ALLOWED])
        assert found is not None
        return found.quantile(0.975) / found.quantile(0.025)

    assert width(0.05) > 1.1 * width(1.0)


def test_a_step_without_misses_is_as_dependent_as_those_with_some() -> None:
    steps = [Seen(4, 0, 200), Seen(5, 20, 200, effective=0.1)]
    clean, missed = independent_shares(steps, ALLOWED)
    assert clean < 0.2 and missed < 0.2


def test_few_arrivals_are_moved_towards_lighter_load() -> None:
    counted = [Seen(s.rate_rps, s.misses, s.counted, arrived=s.counted) for s in STEPS]
    assert median(counted) < median(STEPS)


@pytest.mark.parametrize("slope", [4.0, 12.0, 40.0, 100.0])
def test_intervals_hold_the_truth_as_often_as_they_say(slope: float) -> None:
    """Steps of independent requests around a known crossing, at rates as a search would choose them."""
    rng = np.random.default_rng(int(slope))
    held, errors = 0, []
    for _ in range(60):
        truth_rps = math.exp(rng.uniform(0, 3))
        steps = []
        for place in (-1.2, -0.5, 0.7, *rng.normal(0, 2 / slope, 5)):
            logit = math.log(ALLOWED / (1 - ALLOWED)) + slope * place
            n = int(rng.integers(60, 300))
            steps.append(Seen(truth_rps * math.exp(place), int(rng.binomial(n, 1 / (1 + math.exp(-logit)))), n))
        found = crossing_of([steps], [ALLOWED])
        assert found is not None
        held += found.quantile(0.025) <= truth_rps <= found.quantile(0.975)
        errors.append(abs(math.log(found.quantile(0.5) / truth_rps)))
    assert held >= 56
    assert float(np.median(errors)) < 0.35 / slope + 0.01
