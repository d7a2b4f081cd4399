"""Estimators against brute force and against lines they must find again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinchpoint.diagnose.fits import ActiveCount, CostLine, cost_line, flat_top, median_slope

spans = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 30)), min_size=1, max_size=20)


@given(spans, st.integers(0, 60), st.integers(1, 40))
def test_mean_count_over_a_stretch_equals_the_sum_of_overlaps(found, t0: int, length: int) -> None:
    start = np.array([s for s, _ in found], dtype=float)
    end = start + np.array([d for _, d in found])
    overlap = sum(max(0.0, min(e, t0 + length) - max(s, t0)) for s, e in zip(start, end, strict=True))
    mean = ActiveCount(start, end).mean_over(np.array([float(t0)]), np.array([float(t0 + length)]))
    assert mean[0] == pytest.approx(overlap / length, abs=1e-9)


@given(spans, st.integers(0, 60))
def test_count_at_an_instant_equals_the_open_spans(found, t: int) -> None:
    start = np.array([s for s, _ in found], dtype=float)
    end = start + np.array([d for _, d in found])
    assert ActiveCount(start, end).at(np.array([float(t)]))[0] == sum((start <= t) & (t < end))


@settings(max_examples=40)
@given(st.floats(1e-3, 0.1), st.floats(0, 0.01), st.integers(0, 99))
def test_cost_line_finds_the_line_it_was_given_despite_stalls(a: float, b: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = rng.uniform(1, 16, 300)
    tpot = (a + b * n) * rng.uniform(0.98, 1.02, 300)
    tpot[rng.random(300) < 0.05] *= 20
    line = cost_line(n, tpot)
    assert line is not None
    assert line.a_s + line.b_s * 8 == pytest.approx(a + b * 8, rel=0.05)


def test_cost_line_needs_streams_that_vary() -> None:
    assert cost_line(np.full(100, 1.0), np.full(100, 0.01)) is None


@given(st.floats(0, 1, allow_subnormal=False), st.floats(0, 1, allow_subnormal=False), st.floats(1, 100))
def test_doubling_the_batch_gains_between_nothing_and_twice(a: float, b: float, n: float) -> None:
    assert 1 - 1e-9 <= CostLine(a, b, 1, n, 99).gain_of_doubling(n) <= 2 + 1e-9


def test_flat_top_tells_a_cap_from_a_count_that_wanders() -> None:
    rng = np.random.default_rng(1)
    capped, wandering = flat_top(np.minimum(rng.poisson(9, 200), 6), "x", 0.5), flat_top(rng.poisson(6, 200), "x", 0.5)
    assert capped is not None and capped.value == 6 and capped.share > 0.8
    assert wandering is not None and wandering.share < 0.1


def test_slope_of_prompts_of_one_length_is_unknown() -> None:
    assert median_slope(np.full(50, 256.0), np.linspace(0, 1, 50), "x") is None
