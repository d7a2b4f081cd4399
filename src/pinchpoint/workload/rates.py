"""The rate of arrivals over time as pieces of one rate each, as many as the counts give reason for.

Counts of equal bins are cut where the likelihood of Poisson counts gains more than a penalty (optimal partitioning,
Jackson et al. 2005). Counts that scatter more than Poisson's by themselves gain the same by accident, so the gain is
divided by their dispersion, which is taken from neighbouring bins and so does not see slow changes.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

BINS_MAX = 2000
BIN_REQUESTS = 5.0
"""Expected in a bin: fewer tell nothing, more blur the edges."""
PENALTY = 1.5
"""Times the logarithm of the number of bins, for each further piece; between the criteria of Akaike and Schwarz for the
two parameters that a piece has, its edge and its rate."""
PIECES_MAX = 200
"""More cannot be read in a plan."""


@dataclass(frozen=True)
class Pieces:
    """lengths_s and rates_rps, shape (k,); the first begins at 0."""

    lengths_s: np.ndarray
    rates_rps: np.ndarray

    def expected(self, t_s: np.ndarray) -> np.ndarray:
        """Cumulated rate up to t_s."""
        edges = np.concatenate([[0.0], np.cumsum(self.lengths_s)])
        return np.interp(t_s, edges, np.concatenate([[0.0], np.cumsum(self.lengths_s * self.rates_rps)]))

    @property
    def mean_rps(self) -> float:
        return float(self.lengths_s @ self.rates_rps / self.lengths_s.sum())


def bin_s(count: int, span_s: float, grid_s: float) -> float:
    """Width of the bins for so many requests in span_s; a whole number of steps of their grid of instants."""
    width_s = max(BIN_REQUESTS * span_s / max(count, 1), span_s / BINS_MAX)
    return float(np.ceil(width_s / grid_s - 1e-9) * grid_s) if grid_s else width_s


def pieces_of(counts: np.ndarray, observed_s: np.ndarray, width_s: float) -> Pieces:
    """counts: of bins of width_s one after the other. observed_s: time in each of them that was looked at; where it is
    0 nothing is known, and the rate is that of the piece around it."""
    known = np.flatnonzero(observed_s > 0)
    n, t = counts[known].astype(float), observed_s[known]
    dispersion = dispersion_of(n, t)
    penalty = PENALTY * np.log(max(len(n), 2))
    edges = _cut(n, t, dispersion, penalty)
    while len(edges) - 1 > PIECES_MAX:
        penalty *= 2
        edges = _cut(n, t, dispersion, penalty)
    rates = np.array([n[a:b].sum() / t[a:b].sum() for a, b in pairwise(edges)])
    # A piece ends where the first bin of the next begins to be known.
    starts = np.concatenate([[0], known[edges[1:-1]], [len(counts)]])
    return Pieces(np.diff(starts) * width_s, rates)


def dispersion_of(counts: np.ndarray, observed_s: np.ndarray) -> float:
    """Variance over mean of counts, from the differences of neighbours; at least 1."""
    if len(counts) < 2:
        return 1.0
    a, b, s, t = counts[:-1], counts[1:], observed_s[:-1], observed_s[1:]
    expected = (a + b) / (s + t)
    variance = expected * (1 / s + 1 / t)
    known = variance > 0
    return max(1.0, float(np.mean((a / s - b / t)[known] ** 2 / variance[known]))) if known.any() else 1.0


def _cut(counts: np.ndarray, observed_s: np.ndarray, dispersion: float, penalty: float) -> list[int]:
    """Edges of the pieces, as places among the bins, from 0 to their number."""
    n = len(counts)
    sums, times = np.concatenate([[0.0], np.cumsum(counts)]), np.concatenate([[0.0], np.cumsum(observed_s)])
    cost, back = np.zeros(n + 1), np.zeros(n + 1, np.int64)
    cost[0] = -penalty
    for end in range(1, n + 1):
        count, time = sums[end] - sums[:end], times[end] - times[:end]
        gain = np.where(count > 0, count * np.log(np.maximum(count, 1) / time), 0.0)
        total = cost[:end] - 2 / dispersion * gain + penalty
        back[end] = int(np.argmin(total))
        cost[end] = total[back[end]]
    edges = [n]
    while edges[-1] > 0:
        edges.append(int(back[edges[-1]]))
    return edges[::-1]
