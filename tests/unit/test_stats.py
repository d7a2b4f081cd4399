"""Statistics against scipy and against their own promises."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats as oracle

from pinchpoint.stats import (
    SequentialBinomial,
    _binomial_cdf,
    clustered_ratio,
    dependent_quantile_intervals,
    effective_ratio,
    effective_share,
    is_stationary,
    linear_fit,
    mann_whitney_p,
    mean_interval,
    quantile,
    quantile_interval,
    theil_sen_slope,
)


def test_a_quantile_of_too_few_values_is_not_given() -> None:
    assert quantile(np.arange(39.0), 0.95) is None
    assert quantile(np.arange(40.0), 0.95) == pytest.approx(37.05)
    assert quantile(np.empty(0), 0.5) is None


def test_quantile_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    truth = -math.log(0.05)  # p95 of the exponential
    covered = 0
    for _ in range(400):
        interval = quantile_interval(rng.exponential(1, 200), 0.95)
        assert interval is not None
        covered += interval[0] <= truth <= interval[1]
    assert covered / 400 >= 0.93


def test_quantile_interval_does_not_exist_for_small_samples() -> None:
    assert quantile_interval(np.arange(20.0), 0.95) is None


@given(st.integers(1, 400), st.floats(0.01, 0.99))
def test_the_binomial_distribution_is_scipys(n: int, p: float) -> None:
    assert _binomial_cdf(n, p) == pytest.approx(oracle.binom.cdf(np.arange(n + 1), n, p), abs=1e-9)


values = st.lists(st.integers(0, 12).map(float), min_size=3, max_size=30)


@given(values, values)
def test_the_rank_test_is_scipys(first: list[float], second: list[float]) -> None:
    a, b = np.array(first), np.array(second)
    expected = oracle.mannwhitneyu(a, b, method="asymptotic").pvalue if len({*first, *second}) > 1 else 1.0
    assert mann_whitney_p(a, b) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(-9, 9)), min_size=4, max_size=25))
def test_the_slope_is_scipys_also_with_ties(points: list[tuple[int, int]]) -> None:
    t_s, y = np.array([float(t) for t, _ in points]), np.array([float(v) for _, v in points])
    assume(np.ptp(t_s) > 0 and np.ptp(y) > 0)
    slope, low, high = theil_sen_slope(t_s, y)
    expected = oracle.theilslopes(y, t_s, 0.95)
    assume(math.isfinite(expected[2]))  # scipy gives up where ties leave no variance
    assert (slope, low, high) == pytest.approx((expected[0], expected[2], expected[3]))


def decisions(true_share: float, *, runs: int, length: int, seed: int) -> list[str]:
    """What the sequential test says when one looks after every single request and stops at the first decision."""
    rng = np.random.default_rng(seed)
    results = []
    for _ in range(runs):
        test = SequentialBinomial(0.05, 0.05)
        for miss in rng.random(length) < true_share:
            test.add(int(miss), 1)
            if test.decision != "undecided":
                break
        results.append(test.decision)
    return results


def test_looking_after_every_request_keeps_the_error_below_alpha() -> None:
    at_the_limit = decisions(0.05, runs=400, length=400, seed=2)
    assert at_the_limit.count("pass") + at_the_limit.count("fail") <= 0.05 * 400 + 3 * math.sqrt(400 * 0.05 * 0.95)


def test_clearly_good_and_clearly_bad_services_are_told_apart() -> None:
    assert set(decisions(0.0, runs=1, length=100, seed=3)) == {"pass"}
    assert set(decisions(0.5, runs=50, length=100, seed=4)) == {"fail"}


def test_the_slope_of_a_line_with_outliers_is_theil_sens() -> None:
    t_s = np.arange(20.0)
    values = 2 * t_s
    values[5] = 500
    slope, low, high = theil_sen_slope(t_s, values)
    expected = oracle.theilslopes(values, t_s, 0.95)
    assert (slope, low, high) == (pytest.approx(2), pytest.approx(expected[2]), pytest.approx(expected[3]))
    assert theil_sen_slope(t_s[:3], values[:3]) == (0.0, -math.inf, math.inf)


def test_the_price_of_a_percentile_is_the_smallest_clean_sample_that_passes() -> None:
    n = SequentialBinomial.requests_to_pass(0.05, 0.05)
    for count, expected in ((n, "pass"), (n - 1, "undecided")):
        test = SequentialBinomial(0.05, 0.05)
        test.add(0, count)
        assert test.decision == expected
    assert SequentialBinomial.requests_to_pass(0.01, 0.05) > 4 * n


def test_misses_in_runs_count_less_than_scattered_ones() -> None:
    scattered = [i % 5 == 0 for i in range(100)]
    in_one_run = [i < 20 for i in range(100)]
    assert effective_ratio(scattered) == 1.0
    assert effective_ratio(in_one_run) < 0.1
    assert effective_ratio([True] * 50) == 1.0
    assert effective_ratio([]) == 1.0


def test_effective_number_matches_the_variance_of_an_autoregressive_mean() -> None:
    rng = np.random.default_rng(5)
    share, stay = 0.3, 0.6  # a two-state chain whose lag-1 autocorrelation is `stay`
    means, ratios = [], []
    for _ in range(300):
        state = rng.random() < share
        chain = []
        for _ in range(400):
            if rng.random() > stay:
                state = rng.random() < share
            chain.append(bool(state))
        means.append(np.mean(chain))
        ratios.append(effective_ratio(chain))
    effective_n = share * (1 - share) / np.var(means)
    assert np.mean(ratios) * 400 == pytest.approx(effective_n, rel=0.25)


def test_noise_is_stationary_and_a_warming_service_is_not() -> None:
    rng = np.random.default_rng(6)
    assert is_stationary(rng.normal(1.0, 0.05, 20).tolist())
    assert not is_stationary([3.0, 2.5, 2.2, 2.0, 1.4, 1.2, 1.1, 1.0, 1.0, 1.0])
    assert not is_stationary([1.0, 1.0])


@settings(max_examples=30)
@given(st.floats(-5, 5), st.floats(-5, 5))
def test_a_line_is_found_again(intercept: float, slope: float) -> None:
    x = np.arange(10.0)
    fit = linear_fit(x, intercept + slope * x)
    assert fit is not None
    assert fit == (pytest.approx(intercept, abs=1e-6), pytest.approx(slope, abs=1e-6))
    assert linear_fit(np.ones(5), np.arange(5.0)) is None


def waits_in_a_queue(rng: np.random.Generator, n: int, load: float) -> np.ndarray:
    """Sojourn times of n customers of an M/M/1 queue (Lindley), settled; exponential with mean 1 / (1 - load)."""
    settle = 4000
    steps = rng.exponential(1, n + settle) - rng.exponential(1 / load, n + settle)
    walk = np.concatenate([[0.0], np.cumsum(steps)])
    waiting = (walk - np.minimum.accumulate(walk))[:-1]
    return (waiting + rng.exponential(1, n + settle))[settle:]


def autoregressive(rng: np.random.Generator, n: int, r: float) -> np.ndarray:
    noise = rng.normal(size=n) * math.sqrt(1 - r * r)
    x = np.empty(n)
    x[0] = rng.normal()
    for i in range(1, n):
        x[i] = r * x[i - 1] + noise[i]
    return x


def test_effective_share_matches_the_variance_of_an_autoregressive_mean() -> None:
    rng = np.random.default_rng(8)
    series = [autoregressive(rng, 600, 0.7) for _ in range(200)]
    effective_n = 1 / np.var([x.mean() for x in series])
    assert np.mean([effective_share(x) for x in series]) * 600 == pytest.approx(effective_n, rel=0.25)


@given(st.lists(st.floats(-1e6, 1e6), max_size=60).map(np.array))
def test_an_effective_share_is_a_share(values: np.ndarray) -> None:
    assert 0 < effective_share(values) <= 1
    assert effective_share(np.ones(20)) == 1.0


@pytest.mark.parametrize(
    ("q", "truth", "make"),
    [
        (0.5, math.log(2) / 0.5, lambda rng: waits_in_a_queue(rng, 2000, 0.5)),
        (0.95, -math.log(0.05) / 0.5, lambda rng: waits_in_a_queue(rng, 2000, 0.5)),
        (0.5, math.log(2) / 0.2, lambda rng: waits_in_a_queue(rng, 2000, 0.8)),
        (0.5, 0.0, lambda rng: autoregressive(rng, 1000, 0.9)),
        (0.95, 1.6449, lambda rng: autoregressive(rng, 1000, 0.6)),
        (0.99, -math.log(0.01), lambda rng: rng.exponential(1, 1000)),
    ],
)
def test_the_interval_of_dependent_values_covers_as_often_as_it_says(q: float, truth: float, make) -> None:
    rng = np.random.default_rng(9)
    intervals = [dependent_quantile_intervals(make(rng), (q,))[0] for _ in range(120)]
    known = [interval for interval in intervals if interval is not None]
    assert len(known) >= 100
    assert sum(low <= truth <= high for low, high in known) / len(known) >= 0.92


def test_an_interval_that_takes_a_queue_for_independent_covers_too_seldom() -> None:
    rng = np.random.default_rng(10)
    truth = math.log(2) / 0.2
    naive = [quantile_interval(waits_in_a_queue(rng, 2000, 0.8), 0.5) for _ in range(100)]
    assert sum(low <= truth <= high for low, high in filter(None, naive)) / 100 < 0.6


@given(st.lists(st.integers(0, 50).map(float), min_size=1, max_size=80).map(np.array))
def test_an_interval_holds_its_quantile_and_is_never_narrower_than_that_of_independent_values(
    values: np.ndarray,
) -> None:
    for q, interval in zip((0.5, 0.9), dependent_quantile_intervals(values, (0.5, 0.9)), strict=True):
        independent = quantile_interval(values, q)
        if interval is None:
            continue
        assert interval[0] <= np.quantile(values, q) <= interval[1]
        assert independent is not None
        assert interval[0] <= independent[0] and independent[1] <= interval[1]


def test_no_values_have_no_interval() -> None:
    assert dependent_quantile_intervals(np.empty(0), (0.5, 0.99)) == [None, None]
    assert mean_interval(np.arange(5.0)) is None
    assert clustered_ratio(np.ones(9), np.ones(9)) is None


def test_the_interval_of_a_mean_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(11)
    intervals = [mean_interval(waits_in_a_queue(rng, 2000, 0.5)) for _ in range(200)]
    assert sum(low <= 2.0 <= high for low, high in filter(None, intervals)) / 200 >= 0.91


def test_the_error_of_a_clustered_ratio_is_that_seen_over_repetitions() -> None:
    """Requests differ in pace, so the gaps of one resemble each other and count far less than their number."""
    rng = np.random.default_rng(12)
    ratios, errors = [], []
    for _ in range(300):
        sizes = rng.integers(20, 200, 80)
        pace = rng.normal(size=80)
        hits = np.array([(rng.normal(size=m) * 0.5 + p <= 0.8).sum() for m, p in zip(sizes, pace, strict=True)])
        found = clustered_ratio(hits, sizes)
        assert found is not None
        ratios.append(found[0])
        errors.append(found[1])
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.15)
    assert np.mean(errors) > 3 * math.sqrt(0.79 * 0.21 / (80 * 110))
