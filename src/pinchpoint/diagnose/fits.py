"""Small estimators behind the features: flat tops, time averages of counts, cost lines. Pure numpy, no runs."""

import msgspec
import numpy as np

from pinchpoint.stats import linear_fit, theil_sen_slope

FLAT_TOP_TOLERANCE_RATIO = 0.03
"""A large batch is read a few sequences short of its cap: those that ended in the step are gone, their successors
come with the next one."""
FLAT_TOP_MIN_READINGS = 5
COST_LINE_BINS = 12
COST_LINE_MIN_REQUESTS = 12
COST_LINE_MIN_SPREAD_RATIO = 1.5
"""Streams must vary by half at least, or the slope is an extrapolation of noise."""
SLOPE_SAMPLE_MAX = 300
"""The median slope looks at every pair; 300 points are 45 000 pairs."""
SLOPE_SEED = 1
PROMPT_SPREAD_MIN_RATIO = 0.05


class FlatTop(msgspec.Struct, frozen=True):
    """A count that stays at its highest value: `share` of `readings` lie at `value`, within `tolerance`."""

    value: float
    share: float
    readings: int
    source: str


def flat_top(values: np.ndarray, source: str, tolerance: float) -> FlatTop | None:
    """None with too few readings or when the count never reaches one."""
    if len(values) < FLAT_TOP_MIN_READINGS or values.max() < 1:
        return None
    top = float(values.max())
    slack = max(tolerance, FLAT_TOP_TOLERANCE_RATIO * top)
    return FlatTop(top, float((values >= top - slack).mean()), len(values), source)


class ActiveCount:
    """How many intervals [start, end) are open at an instant, and on average over a stretch."""

    def __init__(self, start_s: np.ndarray, end_s: np.ndarray) -> None:
        known = np.isfinite(start_s) & np.isfinite(end_s)
        self._start = np.sort(start_s[known])
        self._end = np.sort(end_s[known])
        self._start_sum = np.concatenate([[0.0], np.cumsum(self._start)])
        self._end_sum = np.concatenate([[0.0], np.cumsum(self._end)])

    def at(self, t_s: np.ndarray) -> np.ndarray:
        opened = np.searchsorted(self._start, t_s, side="right")
        return opened - np.searchsorted(self._end, t_s, side="right")

    def _integral(self, t_s: np.ndarray) -> np.ndarray:
        opened = np.searchsorted(self._start, t_s, side="right")
        closed = np.searchsorted(self._end, t_s, side="right")
        return (opened * t_s - self._start_sum[opened]) - (closed * t_s - self._end_sum[closed])

    def mean_over(self, t0_s: np.ndarray, t1_s: np.ndarray) -> np.ndarray:
        """Time average over each [t0, t1); NaN where empty."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(t1_s > t0_s, (self._integral(t1_s) - self._integral(t0_s)) / (t1_s - t0_s), np.nan)


class CostLine(msgspec.Struct, frozen=True):
    """Time per token against streams: `a_s + b_s * n`, fitted for n in [n_min, n_max]."""

    a_s: float
    b_s: float
    n_min: float
    n_max: float
    requests: int

    def gain_of_doubling(self, n: float) -> float:
        """Token rate with 2n streams over that with n: 2 (a + b n) / (a + 2 b n). 2 = free, 1 = nothing gained."""
        at_n, at_2n = self.a_s + self.b_s * n, self.a_s + 2 * self.b_s * n
        return 2 * at_n / at_2n if at_2n > 0 else 1.0


def cost_line(streams: np.ndarray, tpot_s: np.ndarray) -> CostLine | None:
    """Least squares through the medians of bins of equal count, so that a few stalled requests do not tilt it.

    A negative slope or intercept is set to zero and the other refitted through the medians: neither has a meaning.
    None when there are too few requests or the number of streams hardly varied.
    """
    known = np.isfinite(streams) & np.isfinite(tpot_s)
    x, y = streams[known], tpot_s[known]
    if len(x) < COST_LINE_MIN_REQUESTS:
        return None
    order = np.argsort(x)
    bins = np.array_split(order, min(COST_LINE_BINS, len(x) // 3))
    x_bin = np.array([np.median(x[rows]) for rows in bins])
    y_bin = np.array([np.median(y[rows]) for rows in bins])
    if x_bin[-1] < COST_LINE_MIN_SPREAD_RATIO * max(x_bin[0], 1.0):
        return None
    fit = linear_fit(x_bin, y_bin)
    if fit is None:
        return None
    a_s, b_s = fit
    if b_s < 0:
        a_s, b_s = float(np.median(y_bin)), 0.0
    elif a_s < 0:
        a_s, b_s = 0.0, float(np.median(y_bin / x_bin))
    return CostLine(a_s, b_s, float(x_bin[0]), float(x_bin[-1]), len(x))


class Slope(msgspec.Struct, frozen=True):
    """Median slope with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int
    source: str


def median_slope(x: np.ndarray, y: np.ndarray, source: str) -> Slope | None:
    """None when x hardly varies or too few pairs are known."""
    known = np.isfinite(x) & np.isfinite(y)
    x, y = x[known], y[known]
    if len(x) < COST_LINE_MIN_REQUESTS or np.std(x) < PROMPT_SPREAD_MIN_RATIO * abs(np.mean(x)):
        return None
    if len(x) > SLOPE_SAMPLE_MAX:
        rows = np.random.default_rng(SLOPE_SEED).choice(len(x), SLOPE_SAMPLE_MAX, replace=False)
        x, y = x[rows], y[rows]
    value, low, high = theil_sen_slope(x, y)
    return Slope(value, low, high, len(x), source)
