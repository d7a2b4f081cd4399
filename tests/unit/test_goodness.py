"""Distances between distributions, against scipy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as oracle
from scipy.special import gammainc

from pinchpoint.goodness import MIN_FOR_FIT, fit, gamma_cdf, two_sample_distance

samples = st.lists(st.integers(0, 30).map(float), min_size=1, max_size=40).map(np.array)


@settings(max_examples=100)
@given(samples, samples)
def test_the_distance_of_two_samples_is_scipys(first: np.ndarray, second: np.ndarray) -> None:
    assert two_sample_distance(first, second) == pytest.approx(oracle.ks_2samp(first, second, method="asymp").statistic)
    assert two_sample_distance(first, np.empty(0)) is None


@given(samples, st.floats(0.001, 2))
def test_shifts_within_the_tolerance_are_no_distance(values: np.ndarray, tolerance: float) -> None:
    shifts = np.random.default_rng(1).uniform(-0.99 * tolerance, 0.99 * tolerance, len(values))
    assert two_sample_distance(values, values + shifts, tolerance) == 0.0
    assert two_sample_distance(values, values + 1000.0, tolerance) == 1.0


@settings(max_examples=100)
@given(st.floats(0.05, 60.0), st.lists(st.floats(0, 200), min_size=1, max_size=20).map(np.array))
def test_the_gamma_law_is_scipys(shape: float, x: np.ndarray) -> None:
    assert gamma_cdf(x, shape) == pytest.approx(gammainc(shape, x), abs=1e-9)


@pytest.mark.parametrize("n", [MIN_FOR_FIT, 30, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_distance_and_p_of_a_fit_are_scipys(n: int, seed: int) -> None:
    values = np.random.default_rng(seed).exponential(1.1, n)
    found = fit(values, lambda x: 1 - np.exp(-x))
    expected = oracle.kstest(values, "expon")
    assert found is not None
    assert found[0] == pytest.approx(expected.statistic)
    assert found[1] == pytest.approx(expected.pvalue, abs=0.02)


def test_a_true_law_is_refused_as_often_as_the_level_says() -> None:
    rng = np.random.default_rng(7)
    fits = [fit(rng.exponential(1, 40), lambda x: 1 - np.exp(-x)) for _ in range(400)]
    refused = sum(found is not None and found[1] < 0.05 for found in fits)
    assert 0.02 <= refused / 400 <= 0.08


def test_a_few_values_fit_nothing() -> None:
    assert fit(np.ones(MIN_FOR_FIT - 1), lambda x: x) is None
