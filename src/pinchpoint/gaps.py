"""Gaps between the tokens of a run, digested in two passes over the records in memory that does not grow with tokens.

A gap is the time from one event that carried text to the next, as the user saw it; an event with several tokens ends
one gap. Gaps of completed requests count. The first pass fills a histogram. The second counts, for every request, how
many of its gaps are at or below each quantile, because gaps of one request are not independent and an interval that
took them for such would be far too narrow.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pinchpoint.clock import NS_PER_S
from pinchpoint.histogram import RELATIVE_WIDTH, LogHistogram
from pinchpoint.rundir import Run
from pinchpoint.stats import NORMAL_QUANTILE_975, clustered_ratio

if TYPE_CHECKING:
    import pyarrow as pa

HALF_WIDTH = RELATIVE_WIDTH / 2
"""How far a quantile of the histogram may be off, relative."""
MIN_REQUESTS_BEYOND = 5
"""Requests with gaps on either side of a quantile for which an interval is given. With fewer than 3.7 expected, the
chance that none of them shows is above the 2.5 % that the interval leaves to each side, however many gaps there are."""


@dataclass
class GapDigest:
    """Gaps of one set of requests, in seconds."""

    histogram: LogHistogram = field(default_factory=LogHistogram)
    mean_interval: tuple[float, float] | None = None
    intervals: dict[float, tuple[float, float] | None] = field(default_factory=dict)
    """Quantile level -> 95 % interval of the quantile; None where it does not exist."""


@dataclass
class _Clusters:
    """Per request, in the order of the records: when it was due, its gaps, their sum, and how many lie at or below
    each quantile; the smallest and the largest gap, NaN without any."""

    scheduled_ns: list[np.ndarray] = field(default_factory=list)
    gaps: list[np.ndarray] = field(default_factory=list)
    sum_s: list[np.ndarray] = field(default_factory=list)
    at_or_below: list[np.ndarray] = field(default_factory=list)
    min_s: list[np.ndarray] = field(default_factory=list)
    max_s: list[np.ndarray] = field(default_factory=list)


def digest_gaps(
    run: Run, request_ids: np.ndarray, group: np.ndarray, count: int, levels: Sequence[float]
) -> list[GapDigest]:
    """One digest for each of `count` groups, and a last one of all requests together.

    request_ids, group: the requests that count and the group of each, 0 to count - 1, shape (n,).
    """
    order = np.argsort(request_ids)
    ids, groups = request_ids[order], group[order]
    digests = [GapDigest() for _ in range(count + 1)]
    for batch in run.record_batches(("request_id", "chunk_ns")):
        gaps = _batch_gaps(batch)
        of_request = _groups_of(batch, ids, groups)
        for number, mask in _members(of_request, count):
            digests[number].histogram.add(gaps.of(mask))
    if count == 1:
        digests[1].histogram = digests[0].histogram
    thresholds_s = [[(digest.histogram.quantile(q) or 0.0) * (1 + HALF_WIDTH) for q in levels] for digest in digests]
    clusters = [_Clusters() for _ in digests]
    for batch in run.record_batches(("request_id", "scheduled_ns", "chunk_ns")):
        gaps = _batch_gaps(batch)
        of_request = _groups_of(batch, ids, groups)
        scheduled_ns = batch.column("scheduled_ns").to_numpy()
        for number, mask in _members(of_request, count):
            mine = clusters[number]
            mine.scheduled_ns.append(scheduled_ns[mask])
            mine.gaps.append(gaps.count[mask])
            mine.sum_s.append(gaps.sum_s[mask])
            mine.at_or_below.append(gaps.at_or_below(thresholds_s[number], mask))
            mine.min_s.append(gaps.extreme(np.minimum)[mask])
            mine.max_s.append(gaps.extreme(np.maximum)[mask])
    for digest, mine in zip(digests, clusters, strict=True):
        if mine.gaps:
            _intervals(digest, mine, levels)
    if count == 1:
        digests[1] = digests[0]
    return digests


def _members(of_request: np.ndarray, count: int) -> list[tuple[int, np.ndarray]]:
    """The groups that have requests in a batch, with their masks; the set of all comes last, unless it is the same as
    the only group."""
    present = [number for number in np.unique(of_request).tolist() if number >= 0]
    members = [(number, of_request == number) for number in present]
    if present and count > 1:
        members.append((count, of_request >= 0))
    return members


def _groups_of(batch: "pa.RecordBatch", ids: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The group of each request of a batch, -1 for those that do not count."""
    mine = batch.column("request_id").to_numpy()
    result = np.full(len(mine), -1)
    if len(ids):
        places = np.minimum(np.searchsorted(ids, mine), len(ids) - 1)
        found = ids[places] == mine
        result[found] = groups[places[found]]
    return result


@dataclass
class _BatchGaps:
    gap_s: np.ndarray  # of all requests of the batch, one after the other
    count: np.ndarray  # gaps of each request
    sum_s: np.ndarray  # and their sum

    def of(self, requests: np.ndarray) -> np.ndarray:
        return self.gap_s if requests.all() else self.gap_s[np.repeat(requests, self.count)]

    def at_or_below(self, thresholds_s: Sequence[float], requests: np.ndarray) -> np.ndarray:
        """Shape (requests picked, thresholds)."""
        ends = np.cumsum(self.count)
        result = np.empty((int(requests.sum()), len(thresholds_s)), np.int64)
        for i, threshold_s in enumerate(thresholds_s):
            running = np.concatenate([[0], np.cumsum(self.gap_s <= threshold_s)])
            result[:, i] = (running[ends] - running[ends - self.count])[requests]
        return result

    def extreme(self, of: np.ufunc) -> np.ndarray:
        """The smallest or largest gap of each request; NaN without any."""
        result = np.full(len(self.count), np.nan)
        some = self.count > 0
        if some.any():
            starts = np.cumsum(self.count) - self.count
            result[some] = of.reduceat(self.gap_s, starts[some])
        return result


def _batch_gaps(batch: "pa.RecordBatch") -> _BatchGaps:
    column = batch.column("chunk_ns")
    offsets = column.offsets.to_numpy().astype(np.int64)
    values = column.values.to_numpy()[offsets[0] : offsets[-1]] if len(offsets) else np.empty(0, np.int64)
    lengths = np.diff(offsets)
    count = np.maximum(lengths - 1, 0)
    ends = offsets[1:] - offsets[0]
    within = np.ones(max(len(values) - 1, 0), bool)
    borders = ends[:-1] - 1  # the step from the last event of one request to the first of the next
    within[borders[(borders >= 0) & (borders < len(within))]] = False
    sum_s = np.zeros(len(lengths))
    some = count > 0
    sum_s[some] = (values[ends[some] - 1] - values[ends[some] - lengths[some]]) / NS_PER_S
    return _BatchGaps(np.diff(values)[within] / NS_PER_S, count, sum_s)


def _intervals(digest: GapDigest, clusters: _Clusters, levels: Sequence[float]) -> None:
    order = np.argsort(np.concatenate(clusters.scheduled_ns), kind="stable")
    sizes = np.concatenate(clusters.gaps)[order]
    mean = clustered_ratio(np.concatenate(clusters.sum_s)[order], sizes)
    if mean is not None:
        half_s = NORMAL_QUANTILE_975 * mean[1]
        digest.mean_interval = (mean[0] - half_s, mean[0] + half_s)
    at_or_below = np.concatenate(clusters.at_or_below)[order]
    min_s, max_s = np.concatenate(clusters.min_s), np.concatenate(clusters.max_s)
    for i, q in enumerate(levels):
        quantile_s = digest.histogram.quantile(q) or 0.0
        below = int((min_s <= quantile_s * (1 + HALF_WIDTH)).sum())
        above = int((max_s >= quantile_s * (1 - HALF_WIDTH)).sum())
        share = clustered_ratio(at_or_below[:, i], sizes) if min(below, above) >= MIN_REQUESTS_BEYOND else None
        digest.intervals[q] = _interval(digest.histogram, q, share)


def _interval(histogram: LogHistogram, q: float, share: tuple[float, float] | None) -> tuple[float, float] | None:
    """The quantile's interval from the standard error of the share at or below it (Woodruff 1952); None when an end
    lies outside of what was seen."""
    if share is None:
        return None
    half = NORMAL_QUANTILE_975 * share[1]
    low, high = q - half, q + half
    if low * histogram.n < 1 or (1 - high) * histogram.n < 1:
        return None
    low_s, high_s = histogram.quantile(low), histogram.quantile(high)
    if low_s is None or high_s is None:
        return None
    return low_s * (1 - HALF_WIDTH), high_s * (1 + HALF_WIDTH)  # the histogram's own error
