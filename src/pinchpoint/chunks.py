"""What is kept of the arrivals of tokens: per request their number and largest gap, for the run how many came when.

Arrivals are read once, batch by batch, and not kept: a digest grows with the requests and with the length of the run,
not with its tokens.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from pinchpoint.clock import NS_PER_S

if TYPE_CHECKING:
    import pyarrow as pa

BIN_NS = 10_000_000
"""10 ms: rates are asked for over windows of a second and more."""
BINS_MAX = 1 << 20
"""8 MiB of counts, nearly three hours of 10 ms. Longer runs get bins of twice the width, as often as it takes."""
CHUNK_COLUMNS = ("chunk_ns", "chunk_tokens")
"""Columns of records that a digest reads."""


class Arrivals:
    """How many tokens arrived in each of equally wide bins since t0. Arrivals before t0 are not counted."""

    def __init__(self, t0_ns: int, bin_ns: int = BIN_NS, bins_max: int = BINS_MAX) -> None:
        self._t0_ns = t0_ns
        self._bins_max = bins_max
        self.bin_ns = bin_ns
        self.counts = np.zeros(0, np.int64)

    def add(self, instants_ns: np.ndarray, tokens: np.ndarray | None) -> None:
        """instants_ns: int64 of shape (n,), in any order. tokens: how many came at each, None = one."""
        offsets_ns = instants_ns - self._t0_ns
        if len(offsets_ns) and int(offsets_ns.min()) < 0:
            since = offsets_ns >= 0
            offsets_ns, tokens = offsets_ns[since], None if tokens is None else tokens[since]
        if not len(offsets_ns):
            return
        while int(offsets_ns.max()) // self.bin_ns >= self._bins_max:
            self._widen()
        bins = offsets_ns // self.bin_ns
        first = int(bins.min())
        counted = np.bincount(bins - first, weights=tokens).astype(np.int64)
        end = first + len(counted)
        if end > len(self.counts):
            self.counts = np.pad(self.counts, (0, max(end, 2 * len(self.counts)) - len(self.counts)))
        self.counts[first:end] += counted

    def _widen(self) -> None:
        self.bin_ns *= 2
        self.counts = np.pad(self.counts, (0, len(self.counts) % 2)).reshape(-1, 2).sum(axis=1)


class ChunkDigest:
    """Digest of the records' chunk columns, in the order of the records."""

    def __init__(self, batches: "Iterable[pa.RecordBatch]", t0_ns: int) -> None:
        """batches: with at least CHUNK_COLUMNS; read to their end."""
        arrivals = Arrivals(t0_ns)
        counts: list[np.ndarray] = [np.empty(0, np.int64)]
        gaps: list[np.ndarray] = [np.empty(0)]
        for batch in batches:
            instants_ns, starts = _flat(batch.column("chunk_ns"))
            counts.append(np.diff(starts))
            gaps.append(_largest_gaps_s(instants_ns, starts))
            arrivals.add(instants_ns, _tokens(batch.column("chunk_tokens"), starts))
        self.count = np.concatenate(counts)
        """Events with text per request, int64 of shape (requests,)."""
        self.gap_max_s = np.concatenate(gaps)
        """Largest gap between two of them, shape (requests,); NaN for fewer than two."""
        self._bin_s = arrivals.bin_ns / NS_PER_S
        self._until = np.concatenate([[0], np.cumsum(arrivals.counts)])

    @property
    def tokens(self) -> int:
        """Tokens that arrived in the run."""
        return int(self._until[-1])

    def tokens_until(self, t_s: np.ndarray | tuple[float, float]) -> np.ndarray:
        """Tokens that had arrived at each instant, in seconds since t0: float of the shape of t_s.

        Taken as evenly spread within 10 ms (in runs of more than three hours 20 ms and so on).
        """
        position = np.clip(np.asarray(t_s, float) / self._bin_s, 0.0, len(self._until) - 1)
        before = np.floor(position).astype(np.int64)
        after = np.minimum(before + 1, len(self._until) - 1)
        return self._until[before] + (position - before) * (self._until[after] - self._until[before])


def _flat(lists: Any) -> tuple[np.ndarray, np.ndarray]:
    """Items of a ListArray as one array, and where each list starts in it, ended by the number of items.

    A null list has no items.
    """
    lengths = np.asarray(lists.value_lengths().fill_null(0))
    return np.asarray(lists.flatten()), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _largest_gaps_s(instants_ns: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Largest difference of neighbours in each list; NaN for lists of fewer than two."""
    result = np.full(len(starts) - 1, np.nan)
    several = np.diff(starts) >= 2
    if not several.any():
        return result
    gaps_ns = np.diff(instants_ns)
    # From the last item of a list to the first of the next there is no gap.
    borders = starts[1:-1]
    borders = borders[(borders > 0) & (borders < len(instants_ns))]
    gaps_ns[borders - 1] = np.iinfo(np.int64).min
    result[several] = np.maximum.reduceat(gaps_ns, starts[:-1][several]) / NS_PER_S
    return result


def _tokens(lists: Any, starts: np.ndarray) -> np.ndarray | None:
    """Tokens of each event; None when it is one for all. A list that is null or does not fit its events: one each."""
    if lists.null_count == len(lists):
        return None
    tokens, token_starts = _flat(lists)
    lengths = np.diff(starts)
    fits = np.diff(token_starts) == lengths
    result = np.ones(int(starts[-1]), np.int64)
    result[np.repeat(fits, lengths)] = tokens[np.repeat(fits, np.diff(token_starts))]
    return result
