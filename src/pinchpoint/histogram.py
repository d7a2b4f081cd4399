"""A histogram of positive values in constant memory, for quantities that come by the million.

Buckets are the leading bits of the double: each power of two is cut into SUB_BUCKETS equal parts, so finding a bucket
is a shift and no logarithm. A quantile is the middle of its bucket, and therefore off by at most half of the relative
bucket width. Number, mean, smallest and largest value are exact.
"""

import math

import numpy as np

SUB_BUCKET_BITS = 11
SUB_BUCKETS = 1 << SUB_BUCKET_BITS
RELATIVE_WIDTH = 1 / SUB_BUCKETS
"""Width of a bucket over its lower edge, at most: 0.049 %."""
_SHIFT = 52 - SUB_BUCKET_BITS
"""A double has 52 bits of fraction."""


class LogHistogram:
    """Counts of values from `low` to `high`; values outside are counted, too, and stand for their own mean.

    The default range is that of gaps between tokens in seconds, 1 us to 1 h: 65,000 buckets, half a megabyte.
    """

    def __init__(self, low: float = 1e-6, high: float = 3600.0) -> None:
        if not 0 < low < high < math.inf:
            raise ValueError(f"a histogram needs 0 < low < high, got {low} and {high}")
        self.low = low
        self.high = high
        self.n = 0
        self.min = math.inf
        self.max = -math.inf
        self._sum = 0.0
        self._first = _bucket_of(np.array([low]))[0]
        buckets = int(_bucket_of(np.array([high]))[0] - self._first) + 1
        self._counts = np.zeros(buckets, np.int64)
        self._below_n, self._below_sum = 0, 0.0
        self._above_n, self._above_sum = 0, 0.0

    def add(self, values: np.ndarray) -> None:
        """Finite values >= 0, any shape."""
        values = np.asarray(values, dtype=np.float64).ravel()
        if not len(values):
            return
        smallest, largest = float(values.min()), float(values.max())
        if not (smallest >= 0 and largest < math.inf):
            raise ValueError(f"a histogram takes finite values >= 0, got {smallest} to {largest}")
        self.n += len(values)
        self._sum += float(values.sum())
        self.min, self.max = min(self.min, smallest), max(self.max, largest)
        if smallest < self.low:
            below = values < self.low
            self._below_n += int(below.sum())
            self._below_sum += float(values[below].sum())
            values = values[~below]
        if largest > self.high:
            above = values > self.high
            self._above_n += int(above.sum())
            self._above_sum += float(values[above].sum())
            values = values[~above]
        self._counts += np.bincount(_bucket_of(values) - self._first, minlength=len(self._counts))

    def merge(self, other: "LogHistogram") -> None:
        """Adds what another histogram of the same range has counted."""
        if (self.low, self.high) != (other.low, other.high):
            raise ValueError("only histograms of the same range can be merged")
        self.n += other.n
        self.min, self.max = min(self.min, other.min), max(self.max, other.max)
        self._sum += other._sum
        self._counts += other._counts
        self._below_n, self._below_sum = self._below_n + other._below_n, self._below_sum + other._below_sum
        self._above_n, self._above_sum = self._above_n + other._above_n, self._above_sum + other._above_sum

    @property
    def mean(self) -> float | None:
        return self._sum / self.n if self.n else None

    def quantile(self, q: float) -> float | None:
        """As numpy.quantile (linear between neighbours), each neighbour off by half a bucket at most; None if empty."""
        if not self.n:
            return None
        position = (self.n - 1) * min(max(q, 0.0), 1.0)
        below, above = math.floor(position), math.ceil(position)
        low = self._value_at(below)
        return low if above == below else low + (self._value_at(above) - low) * (position - below)

    def _value_at(self, rank: int) -> float:
        """The value of a rank, 0 to n - 1."""
        if rank == 0:
            return self.min
        if rank == self.n - 1:
            return self.max
        if rank < self._below_n:
            return self._below_sum / self._below_n
        if rank >= self.n - self._above_n:
            return self._above_sum / self._above_n
        bucket = int(np.searchsorted(np.cumsum(self._counts), rank - self._below_n, side="right"))
        edges = (np.array([bucket, bucket + 1]) + self._first << _SHIFT).view(np.float64)
        return min(max(float(edges.mean()), self.min), self.max)


def _bucket_of(values: np.ndarray) -> np.ndarray:
    """The leading bits of positive doubles grow with their value."""
    return values.view(np.int64) >> _SHIFT
