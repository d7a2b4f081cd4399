"""The histogram against the values that went into it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinchpoint.histogram import RELATIVE_WIDTH, LogHistogram

in_range = st.lists(st.floats(1e-6, 3600.0), min_size=1, max_size=60).map(np.array)
gaps = st.lists(st.floats(0.0, 7200.0), max_size=40).map(lambda values: np.array(values, dtype=float))


def filled(values: np.ndarray) -> LogHistogram:
    histogram = LogHistogram()
    histogram.add(values)
    return histogram


def test_a_bucket_is_at_most_a_twentieth_of_a_percent_wide() -> None:
    assert RELATIVE_WIDTH <= 0.0005


@settings(max_examples=200)
@given(in_range, st.floats(0, 1))
def test_a_quantile_is_off_by_half_a_bucket_at_most(values: np.ndarray, q: float) -> None:
    assert filled(values).quantile(q) == pytest.approx(float(np.quantile(values, q)), rel=RELATIVE_WIDTH / 2 + 1e-9)


@given(gaps)
def test_number_mean_and_extremes_are_exact(values: np.ndarray) -> None:
    histogram = filled(values)
    assert histogram.n == len(values)
    if not len(values):
        assert histogram.mean is None and histogram.quantile(0.5) is None
        return
    assert histogram.mean == pytest.approx(float(values.mean()))
    assert (histogram.min, histogram.max) == (values.min(), values.max())
    assert (histogram.quantile(0), histogram.quantile(1)) == (values.min(), values.max())


@given(gaps, gaps, st.floats(0, 1))
def test_merging_is_counting_everything_in_one(first: np.ndarray, second: np.ndarray, q: float) -> None:
    merged, whole = filled(first), filled(np.concatenate([first, second]))
    merged.merge(filled(second))
    assert (merged.n, merged.min, merged.max) == (whole.n, whole.min, whole.max)
    assert merged.quantile(q) == pytest.approx(whole.quantile(q))


def test_gaps_of_nothing_stay_nothing() -> None:
    """Events that share a read have one stamp; their gap is 0 and not half a microsecond."""
    assert filled(np.zeros(50)).quantile(0.5) == 0.0


def test_values_beyond_the_range_stand_for_their_mean() -> None:
    histogram = filled(np.array([1.0, 4000.0, 5000.0, 6000.0, 7000.0]))
    assert histogram.quantile(0.5) == pytest.approx(5500.0)
    assert histogram.quantile(1.0) == 7000.0


@pytest.mark.parametrize("bad", [-1e-9, np.nan, np.inf])
def test_what_is_no_duration_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        filled(np.array([1.0, bad]))


def test_histograms_of_different_ranges_do_not_mix() -> None:
    with pytest.raises(ValueError, match="same range"):
        LogHistogram().merge(LogHistogram(1e-3, 1.0))
