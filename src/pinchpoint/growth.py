"""How counters grew: per label set first, summed afterwards.

The surprising thing: the sum over label sets must not be differenced. When one of several label sets starts again from
zero, the sum falls by what that one had, and taking the fall for a restart would count all the others a second time.

A label set that appears late is of two kinds. Another kind of event of something read before (the first answer with
status 503) began at zero. Another thing (a second replica) comes with a history that belongs to no window.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

KIND_LABELS = frozenset(
    "status status_code code reason finished_reason finish_reason error err error_type method handler path endpoint le "
    "mode category cache_source source position".split()
)
"""Labels that tell kinds of events of one thing apart, in the pages of engines and exporters.

All others are taken to tell things apart: then a late label set adds nothing from before its first reading, which is
the smaller of the two errors.
"""


class Growth(NamedTuple):
    """Steps of counters, each over (from_s, to_s] and >= 0. All of shape (steps,), in order of to_s."""

    from_s: np.ndarray
    to_s: np.ndarray
    amount: np.ndarray
    child: np.ndarray
    """Which label set grew: an index, int."""

    def within(self, window_s: tuple[float, float] | None) -> "Growth":
        """The steps between readings that both lie inside the window."""
        if window_s is None:
            return self
        inside = (self.from_s >= window_s[0]) & (self.to_s <= window_s[1])
        return Growth(*(column[inside] for column in self))


def identity(labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What a label set is of, whichever kind of event it counts."""
    return tuple(sorted((key, value) for key, value in labels.items() if key not in KIND_LABELS))


def growth(
    t_s: np.ndarray, child: np.ndarray, value: np.ndarray, owner: Sequence[int], together: Sequence[int] | None = None
) -> Growth:
    """Steps between consecutive readings of each label set. A value that fell began again at zero.

    t_s, child, value: readings, shape (n,); child is the index of the label set, readings that are not finite are left
    out, several of one label set at one instant are added up. owner: per label set, of what it is (`identity`).
    together: per label set, the process it lives and dies with: where one of a group fell, all began again, also those
    that have overtaken their old value since. None: each alone.
    """
    finite = np.isfinite(value)
    t_s, child, value = t_s[finite], child[finite], value[finite]
    order = np.lexsort((t_s, child))
    t_s, child, value = t_s[order], child[order], value[order]
    if len(t_s) > 1:
        fresh = np.concatenate(([True], (np.diff(child) != 0) | (np.diff(t_s) != 0)))
        if not fresh.all():
            value = np.add.reduceat(value, np.flatnonzero(fresh))
            t_s, child = t_s[fresh], child[fresh]
    same = np.diff(child) == 0
    from_s, to_s, of = t_s[:-1][same], t_s[1:][same], child[1:][same]
    before, after = value[:-1][same], value[1:][same]
    fell = after < before
    if together is not None and fell.any():
        fell = _spread(fell, np.asarray(together)[of], from_s, to_s)
    amount = np.where(fell, after, after - before)
    born = _births(t_s, child, value, np.asarray(owner))
    from_s, to_s, amount, of = (
        np.concatenate((found, np.array([birth[i] for birth in born], found.dtype)))
        for i, found in enumerate((from_s, to_s, amount, of))
    )
    order = np.argsort(to_s, kind="stable")
    return Growth(from_s[order], to_s[order], amount[order], of[order])


def rate_between(steps: Growth) -> tuple[np.ndarray, np.ndarray]:
    """(t_s, rate per second): the sum of all label sets' rates between neighbouring instants, stamped with the later.

    Label sets that are read at different instants are added where their steps overlap. Stretches that nobody's step
    covers are left out.
    """
    if not len(steps.to_s):
        return np.empty(0), np.empty(0)
    edges = np.unique(np.concatenate((steps.from_s, steps.to_s)))
    first, last = np.searchsorted(edges, steps.from_s), np.searchsorted(edges, steps.to_s)
    cells = last - first
    per_s = steps.amount / (steps.to_s - steps.from_s)
    starts = np.cumsum(cells) - cells
    place = np.arange(cells.sum()) - np.repeat(starts, cells) + np.repeat(first, cells)
    rate = np.zeros(len(edges) - 1)
    np.add.at(rate, place, np.repeat(per_s, cells))
    covered = np.zeros(len(rate), bool)
    covered[place] = True
    return edges[1:][covered], rate[covered]


def quantile_bounds(edges: Sequence[np.ndarray], counts: Sequence[np.ndarray], q: float) -> tuple[float, float] | None:
    """Between which two bucket edges the q-quantile of all observations lies; None when there are none.

    edges: per histogram, the upper edges of its buckets, ascending, the last one inf; counts: observations up to each
    edge (cumulative), same shapes. low is below the order statistic under (n - 1) q, high at or above the one over it,
    so that numpy's linear, lower, higher and inverted_cdf quantiles all lie between. high is inf when that one is
    beyond the last edge; low is 0 below the first edge, where all observations are taken to be positive (-inf when an
    edge is negative).
    """
    known = np.unique(np.concatenate([np.asarray(each, float) for each in edges])) if len(edges) else np.empty(0)
    if not len(known):
        return None
    surely, perhaps = np.zeros(len(known)), np.zeros(len(known))
    for own_edges, own_counts in zip(edges, counts, strict=True):
        up_to = np.concatenate(([0.0], np.maximum.accumulate(np.asarray(own_counts, float))))
        # Of a histogram that lacks an edge, its neighbouring edges bound how many observations lie below it.
        surely += up_to[np.searchsorted(own_edges, known, side="right")]
        perhaps += up_to[np.minimum(np.searchsorted(own_edges, known, side="left") + 1, len(own_edges))]
    n = surely[-1]
    if n < 1:
        return None
    place = (n - 1) * q
    low_place, high_place = math.floor(place), min(math.ceil(place), n - 1)
    below = np.flatnonzero(perhaps <= low_place)
    reached = np.flatnonzero(surely >= high_place + 1)
    low = float(known[below[-1]]) if len(below) else (0.0 if known[0] >= 0 else -math.inf)
    return low, float(known[reached[0]]) if len(reached) else math.inf


def _spread(fell: np.ndarray, group: np.ndarray, from_s: np.ndarray, to_s: np.ndarray) -> np.ndarray:
    """Steps that share group and instants with one that fell."""
    keys = np.stack((group.astype(float), from_s, to_s))
    _, step = np.unique(keys, axis=1, return_inverse=True)
    step = step.ravel()
    return np.isin(step, step[fell])


def _births(
    t_s: np.ndarray, child: np.ndarray, value: np.ndarray, owner: np.ndarray
) -> list[tuple[float, float, float, int]]:
    """(from, to, amount, child) of label sets that appeared beside others of the same owner."""
    if not len(t_s):
        return []
    starts = np.flatnonzero(np.concatenate(([True], np.diff(child) != 0)))
    owners = owner[child]
    first_s = np.full(owner.max() + 1, np.inf)
    np.minimum.at(first_s, owners, t_s)
    found: list[tuple[float, float, float, int]] = []
    for place in starts[t_s[starts] > first_s[owners[starts]]]:
        born_s = t_s[place]
        before_s = t_s[(owners == owners[place]) & (t_s < born_s)].max()
        found.append((float(before_s), float(born_s), float(value[place]), int(child[place])))
    return found
