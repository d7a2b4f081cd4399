"""Sets of half-open intervals [start, end) in integer nanoseconds, vectorised.

A Cover is sorted, and its pieces neither touch nor overlap, so its length is a sum. Whatever is asked of the time of
several streams goes through one, because durations of work that ran side by side must not be added up.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Instants = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Cover:
    """starts[i] < ends[i] < starts[i + 1]; both int64 of one length."""

    starts: Instants
    ends: Instants

    @property
    def total_ns(self) -> int:
        return int((self.ends - self.starts).sum())

    @property
    def empty(self) -> bool:
        return len(self.starts) == 0


NOTHING = Cover(np.empty(0, np.int64), np.empty(0, np.int64))


def union(starts: Instants, ends: Instants) -> Cover:
    """The instants that lie in any of the intervals. Intervals that end where they start, or before, hold nothing."""
    keep = ends > starts
    starts, ends = starts[keep], ends[keep]
    if len(starts) == 0:
        return NOTHING
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], ends[order]
    reach = np.maximum.accumulate(ends)
    first = np.empty(len(starts), bool)
    first[0] = True
    np.greater(starts[1:], reach[:-1], out=first[1:])
    begins = np.flatnonzero(first)
    return Cover(starts[begins], reach[np.append(begins[1:], len(starts)) - 1])


def join(*covers: Cover) -> Cover:
    """The instants that lie in any of the covers."""
    return union(np.concatenate([cover.starts for cover in covers]), np.concatenate([cover.ends for cover in covers]))


def _combine(first: Cover, second: Cover, *, second_counts: bool) -> Cover:
    """Where first holds and second does (second_counts) or does not (not second_counts)."""
    edges = np.concatenate([first.starts, first.ends, second.starts, second.ends])
    if len(edges) == 0:
        return NOTHING
    edges = np.unique(edges)
    middles_in_first = inside(first, edges[:-1])
    middles_in_second = inside(second, edges[:-1])
    keep = middles_in_first & (middles_in_second == second_counts)
    return union(edges[:-1][keep], edges[1:][keep])


def intersect(first: Cover, second: Cover) -> Cover:
    """The instants in both."""
    return _combine(first, second, second_counts=True)


def subtract(first: Cover, second: Cover) -> Cover:
    """The instants in first and not in second."""
    return _combine(first, second, second_counts=False)


def gaps(cover: Cover, start: int, end: int) -> Cover:
    """The instants of [start, end) that are not in the cover."""
    return subtract(union(np.array([start], np.int64), np.array([end], np.int64)), cover)


def inside(cover: Cover, instants: Instants) -> NDArray[np.bool_]:
    """Whether each instant is in the cover."""
    if cover.empty:
        return np.zeros(len(instants), bool)
    at = np.searchsorted(cover.starts, instants, side="right") - 1
    return (at >= 0) & (instants < cover.ends[np.maximum(at, 0)])


def length_before(cover: Cover, instants: Instants) -> Instants:
    """How much of the cover lies before each instant, in ns."""
    if cover.empty:
        return np.zeros(len(instants), np.int64)
    whole = np.concatenate([[0], np.cumsum(cover.ends - cover.starts)])
    at = np.searchsorted(cover.starts, instants, side="right") - 1
    began = np.maximum(at, 0)
    part = np.clip(instants - cover.starts[began], 0, cover.ends[began] - cover.starts[began])
    return np.where(at < 0, 0, whole[began] + part)


def length_within(cover: Cover, starts: Instants, ends: Instants) -> Instants:
    """How much of the cover lies in each window, in ns. Windows may overlap each other."""
    return length_before(cover, np.maximum(ends, starts)) - length_before(cover, starts)


def shares(starts: Instants, ends: Instants) -> NDArray[np.float64]:
    """Each interval's fair part of the union in ns: where n of them run at once, each gets 1/n of the time. The parts
    of all add up to the length of the union."""
    ends = np.maximum(starts, ends)
    edges, where = np.unique(np.concatenate([starts, ends]), return_inverse=True)
    if len(edges) < 2:
        return np.zeros(len(starts))
    change = np.bincount(where[: len(starts)], minlength=len(edges)).astype(np.int64)
    change -= np.bincount(where[len(starts) :], minlength=len(edges)).astype(np.int64)
    running = np.cumsum(change)[:-1]
    fair = np.where(running > 0, np.diff(edges) / np.maximum(running, 1), 0.0)
    before = np.concatenate([[0.0], np.cumsum(fair)])
    return before[where[len(starts) :]] - before[where[: len(starts)]]


def latest_started(starts: Instants, ends: Instants, instants: Instants) -> NDArray[np.int64]:
    """For each instant, the index of the interval that began last among those that still run then, -1 for none.
    Intervals must nest (as ranges of one thread do)."""
    if len(starts) == 0:
        return np.full(len(instants), -1, np.int64)
    order = np.lexsort((-ends, starts))
    starts, ends = starts[order], ends[order]
    parents = np.full(len(starts), -1, np.int64)
    open_ends: list[int] = []
    open_at: list[int] = []
    for index, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        while open_ends and open_ends[-1] <= start:
            open_ends.pop()
            open_at.pop()
        if open_at:
            parents[index] = open_at[-1]
        open_ends.append(end)
        open_at.append(index)
    found = np.searchsorted(starts, instants, side="right") - 1
    while True:
        over = (found >= 0) & (ends[np.maximum(found, 0)] <= instants)
        if not over.any():
            break
        found[over] = parents[found[over]]
    return np.where(found >= 0, order[np.maximum(found, 0)], -1)
