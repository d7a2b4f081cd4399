"""Numbers: quantiles with intervals, sequential tests, stationarity. Pure numpy, no knowledge of runs.

scipy is the oracle of the tests and not a requirement: three small functions are no reason for 140 MB.
"""

import math
from collections.abc import Sequence

import numpy as np

MIN_COUNT_FOR_QUANTILE = {0.5: 6, 0.9: 20, 0.95: 40, 0.99: 200, 0.999: 2000}
"""A quantile needs two expected observations beyond it (six in all for the median, so that an interval exists)."""


def quantile(values: np.ndarray, q: float) -> float | None:
    """Quantile of finite values, or None when too few lie beyond it to mean anything."""
    if len(values) < MIN_COUNT_FOR_QUANTILE.get(q, math.ceil(2 / min(q, 1 - q))):
        return None
    return float(np.quantile(values, q))


def quantile_interval(values: np.ndarray, q: float, confidence: float = 0.95) -> tuple[float, float] | None:
    """Distribution-free interval of a quantile from order statistics (Hahn & Meeker 1991, section 5.2).

    None when the sample is too small for an interval of that confidence to exist. Assumes independent values.
    """
    n = len(values)
    if n == 0:
        return None
    tail = (1 - confidence) / 2
    cumulative = _binomial_cdf(n, q)
    lower = int(np.searchsorted(cumulative, tail))
    upper = int(np.searchsorted(cumulative, 1 - tail)) + 1
    if lower < 1 or upper > n:
        return None
    ordered = np.sort(values)
    return float(ordered[lower - 1]), float(ordered[upper - 1])


def _binomial_cdf(n: int, p: float) -> np.ndarray:
    """P(X <= k) for k = 0 to n, from the ratio of neighbouring terms, in logarithms so that nothing underflows."""
    k = np.arange(1, n + 1)
    log_terms = np.concatenate([[0.0], np.cumsum(np.log((n - k + 1) / k) + math.log(p / (1 - p)))])
    return np.cumsum(np.exp(log_terms + n * math.log(1 - p)))


class SequentialBinomial:
    """Anytime-valid test of a miss share against the allowed share, looked at after every request.

    Mixture likelihood ratio: the evidence against a share p is M(p) = B(a + x, b + n - x) / (B(a, b) p^x (1-p)^(n-x)),
    which by Ville's inequality exceeds 1/alpha with probability at most alpha whenever p is true, no matter how often
    one looks (Robbins 1970; Howard et al. 2021). `fails` when the allowed share and all below are rejected, `passes`
    when the allowed share and all above are rejected. The prior Beta(a, b) has its mean at half of the allowed share,
    where a service under its limit lives; it affects how fast a decision comes, never whether it is right.
    """

    PRIOR_STRENGTH = 1.0
    """a + b in units of 1/allowed: the prior weighs as much as one expected allowed miss."""

    def __init__(self, allowed_ratio: float, alpha: float) -> None:
        if not 0 < allowed_ratio < 1:
            raise ValueError(f"allowed_ratio must be within (0, 1), got {allowed_ratio}")
        self.allowed_ratio = allowed_ratio
        self.alpha = alpha
        self.n = 0.0
        self.misses = 0.0
        self._a = self.PRIOR_STRENGTH / 2
        self._b = self.PRIOR_STRENGTH / allowed_ratio - self._a

    def add(self, misses: float, n: float) -> None:
        """Counts may be fractional: dependent requests are scaled to their effective number."""
        self.n += n
        self.misses += misses

    def _log_evidence_against(self) -> float:
        from math import lgamma, log

        a, b, x, n, p = self._a, self._b, self.misses, self.n, self.allowed_ratio
        log_marginal = lgamma(a + x) + lgamma(b + n - x) - lgamma(a + b + n) - (lgamma(a) + lgamma(b) - lgamma(a + b))
        return log_marginal - (x * log(p) + (n - x) * log(1 - p))

    @property
    def decision(self) -> str:
        """'pass', 'fail' or 'undecided'."""
        if self.n == 0 or self._log_evidence_against() < math.log(1 / self.alpha):
            return "undecided"
        return "fail" if self.misses / self.n > self.allowed_ratio else "pass"

    @staticmethod
    def requests_to_pass(allowed_ratio: float, alpha: float) -> int:
        """Smallest n that passes without a single miss: the price of a percentile."""
        low, high = 1, 2
        while not SequentialBinomial._passes_clean(allowed_ratio, alpha, high):
            high *= 2
        while low < high:
            middle = (low + high) // 2
            if SequentialBinomial._passes_clean(allowed_ratio, alpha, middle):
                high = middle
            else:
                low = middle + 1
        return low

    @staticmethod
    def _passes_clean(allowed_ratio: float, alpha: float, n: int) -> bool:
        test = SequentialBinomial(allowed_ratio, alpha)
        test.add(0, n)
        return test.decision == "pass"


def effective_ratio(outcomes: Sequence[bool]) -> float:
    """Share of a sequence's length that counts as independent, (1 - r) / (1 + r) with the lag-1 autocorrelation r.

    Requests in one queue share their fate: misses come in runs, and n of them carry less evidence than n independent
    ones. First-order autoregression (Bartlett 1935; Geyer 1992); r is taken as 0 when nothing or everything is a miss.
    """
    x = np.asarray(outcomes, dtype=float)
    if len(x) < 3 or np.ptp(x) == 0:
        return 1.0
    centred = x - x.mean()
    r = float((centred[:-1] * centred[1:]).sum() / (centred**2).sum())
    return (1 - max(r, 0.0)) / (1 + max(r, 0.0))


NORMAL_QUANTILE_975 = 1.959963984540054


def effective_share(values: np.ndarray) -> float:
    """Share of a series' length that counts as independent, from all its autocorrelations; within (0, 1].

    1 / (1 + 2 * sum of the autocorrelations), summed in pairs as long as the pairs are positive and made monotone
    (initial monotone sequence, Geyer 1992). Unlike `effective_ratio` it sees dependence that reaches far, as that of a
    queue does. 1.0 for fewer than three values and when nothing varies.
    """
    x = np.asarray(values, dtype=float)
    n = len(x)
    if n < 3 or np.ptp(x) == 0:
        return 1.0
    padded = 1 << (2 * n - 1).bit_length()
    spectrum = np.fft.rfft(x - x.mean(), padded)
    covariance = np.fft.irfft(spectrum * spectrum.conj(), padded)[: n - n % 2]
    pairs = (covariance[0::2] + covariance[1::2]) / covariance[0]
    ends = np.flatnonzero(pairs <= 0)
    positive = np.minimum.accumulate(pairs[: ends[0] if len(ends) else len(pairs)])
    return float(min(1.0, 1.0 / max(2.0 * positive.sum() - 1.0, 1.0)))


def dependent_quantile_intervals(
    values: np.ndarray, levels: Sequence[float], confidence: float = 0.95
) -> list[tuple[float, float] | None]:
    """One interval for each quantile level of a series in the order of time, whose neighbours may share their fate.

    After Woodruff (1952): the share of values at or below the quantile has a binomial interval with the *effective*
    number of values, and the ends of that interval are read off the ordered sample. The effective share is the smaller
    of that of the indicators "at or below the quantile" and that of the ranks: in the tails the indicators alone are
    too few to show their dependence. None when no interval of that confidence exists for so few values. With
    independent values it is `quantile_interval`.
    """
    n = len(values)
    if n == 0:
        return [None] * len(levels)
    ordered, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last_ranks = np.cumsum(counts)
    rank_share = effective_share((last_ranks - (counts - 1) / 2)[inverse])
    intervals: list[tuple[float, float] | None] = []
    for q in levels:
        at_or_below = values <= np.quantile(values, q)
        share = min(rank_share, effective_share(at_or_below))
        n_effective = max(1, math.floor(n * share + 1e-9))
        cumulative = _binomial_cdf(n_effective, q)
        tail = (1 - confidence) / 2
        lower = int(np.searchsorted(cumulative, tail))
        upper = int(np.searchsorted(cumulative, 1 - tail)) + 1
        if lower < 1 or upper > n_effective:
            intervals.append(None)
            continue
        lower_rank = (lower - 1) * n // n_effective + 1
        upper_rank = -(-upper * n // n_effective)
        positions = np.searchsorted(last_ranks, (lower_rank, upper_rank))
        intervals.append((float(ordered[positions[0]]), float(ordered[positions[1]])))
    return intervals


MIN_EFFECTIVE_FOR_MEAN = 10
"""Below so many independent values the normal approximation of a mean of skewed latencies is off by a lot."""
MIN_CLUSTERS = 10
"""Fewer requests than that give no standard error worth its name."""


def mean_interval(values: np.ndarray) -> tuple[float, float] | None:
    """95 % interval of the mean of a series in the order of time, by its effective number of values; None when that
    number is below MIN_EFFECTIVE_FOR_MEAN."""
    n_effective = len(values) * effective_share(values)
    if n_effective < MIN_EFFECTIVE_FOR_MEAN:
        return None
    mean = float(values.mean())
    half = NORMAL_QUANTILE_975 * float(values.std(ddof=1)) / math.sqrt(n_effective)
    return mean - half, mean + half


def clustered_ratio(parts: np.ndarray, sizes: np.ndarray) -> tuple[float, float] | None:
    """sum(parts) / sum(sizes) over clusters, and its standard error; None with fewer than MIN_CLUSTERS.

    Ratio estimator with a linearised variance between clusters (Cochran 1977, section 6.3). What happens inside of a
    cluster may depend on itself in any way. The clusters are in the order of time; neighbours that resemble each other
    count less (`effective_share` of the residuals). Clusters of size 0 are left out.
    """
    used = sizes > 0
    parts, sizes = parts[used].astype(float), sizes[used].astype(float)
    clusters, total = len(sizes), float(sizes.sum())
    if clusters < MIN_CLUSTERS:
        return None
    ratio = float(parts.sum()) / total
    residuals = parts - ratio * sizes
    variance = float((residuals**2).sum()) * clusters / (clusters - 1) / total**2
    return ratio, math.sqrt(variance / effective_share(residuals))


def mann_whitney_p(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided p of "both samples come from one distribution"; 1.0 when one is too small or all values are equal.

    Mann and Whitney 1947, normal approximation with corrections for ties and continuity.
    """
    n_a, n_b = len(first), len(second)
    if n_a < 3 or n_b < 3:
        return 1.0
    n = n_a + n_b
    _, inverse, ties = np.unique(np.concatenate([first, second]), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(ties) - (ties - 1) / 2)[inverse]
    u = float(ranks[:n_a].sum()) - n_a * (n_a + 1) / 2
    variance = n_a * n_b / 12 * ((n + 1) - float((ties**3 - ties).sum()) / (n * (n - 1)))
    if variance <= 0:
        return 1.0
    z = max(0.0, abs(u - n_a * n_b / 2) - 0.5) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2))


def is_stationary(values: Sequence[float], *, alpha: float = 0.05, tolerance_ratio: float = 0.15) -> bool:
    """Whether the second half looks like the first (Geweke 1992, with ranks in place of means).

    Not stationary only when the halves differ both significantly and by more than `tolerance_ratio` of the median:
    a difference that is real but negligible does not keep a warm-up going.
    """
    data = np.asarray(values, dtype=float)
    if len(data) < 6:
        return False
    first, second = data[: len(data) // 2], data[len(data) // 2 :]
    middle = float(np.median(data))
    shift_ratio = abs(float(np.median(second) - np.median(first))) / middle if middle > 0 else 0.0
    return shift_ratio <= tolerance_ratio or mann_whitney_p(first, second) > alpha


def theil_sen_slope(t_s: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """Median of the slopes between all pairs, and its 95 % interval (Sen 1968, with ties).

    (0, -inf, inf) with fewer than four points or when t does not vary. Quadratic in the number of points.
    """
    n = len(values)
    if n < 4 or np.ptp(t_s) == 0:
        return 0.0, -math.inf, math.inf
    later, earlier = np.tril_indices(n, -1)
    run, rise = t_s[later] - t_s[earlier], values[later] - values[earlier]
    slopes = np.sort(rise[run != 0] / run[run != 0])

    def tied(data: np.ndarray) -> float:
        counts = np.unique(data, return_counts=True)[1].astype(float)
        return float((counts * (counts - 1) * (2 * counts + 5)).sum())

    variance = (n * (n - 1) * (2 * n + 5) - tied(t_s) - tied(values)) / 18
    width = NORMAL_QUANTILE_975 * math.sqrt(max(variance, 0.0))
    low = max(round((len(slopes) - width) / 2) - 1, 0)
    high = min(round((len(slopes) + width) / 2), len(slopes) - 1)
    return float(np.median(slopes)), float(slopes[low]), float(slopes[high])


def linear_fit(x: np.ndarray, y: np.ndarray) -> tuple[float, float] | None:
    """Intercept and slope by least squares; None when x does not vary."""
    if len(x) < 3 or np.ptp(x) < 1e-9:
        return None
    slope, intercept = np.polyfit(x, y, 1)
    return float(intercept), float(slope)
