"""Fewer points, same picture: a long run is thinned so that every spike survives, and holes in telemetry stay holes."""

import math

import numpy as np

from pinchpoint.series import Series

STALE_PERIODS = 3.0
"""A reading older than this many sampling periods is a hole, not a value."""
JUST_STALE = 1.001
"""Where a hole begins, in units of that age."""
HOLES_RATIO = 0.125


def align(series: list[Series]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Several series on the union of their instants. Each value is the newest reading, NaN once that is stale.

    Extra instants are added where a reading turns stale, so that a line ends there instead of reaching across the hole.
    """
    ages_s = [STALE_PERIODS * float(np.median(np.diff(s.t_s))) if len(s) > 1 else math.inf for s in series]
    instants = [s.t_s for s in series]
    for s, age_s in zip(series, ages_s, strict=True):
        holes = np.flatnonzero(np.diff(s.t_s) > age_s)
        instants.append(s.t_s[holes] + age_s * JUST_STALE)
    t_s = np.unique(np.concatenate(instants))
    columns = []
    for s, age_s in zip(series, ages_s, strict=True):
        newest = np.searchsorted(s.t_s, t_s, side="right") - 1
        value = s.value[np.maximum(newest, 0)].astype(float)
        value[(newest < 0) | (t_s - s.t_s[np.maximum(newest, 0)] > age_s)] = np.nan
        columns.append(value)
    return t_s, columns


def thin(values: np.ndarray, points_max: int) -> np.ndarray:
    """Indices to keep, ascending, about `points_max` of them, of values in time order; NaN marks a hole.

    Each bucket keeps its smallest and its largest value, so that no spike is lost; the first instant of a hole is kept
    too, up to HOLES_RATIO of the points.
    """
    count = len(values)
    if count <= points_max:
        return np.arange(count)
    bucket = (np.arange(count) * (points_max // 2)) // count
    known = np.isfinite(values)
    order = np.lexsort((np.where(known, values, np.inf), bucket))
    first = np.flatnonzero(np.diff(bucket[order], prepend=-1))
    smallest = order[first]
    order = np.lexsort((np.where(known, -values, np.inf), bucket))
    largest = order[first]
    holes = np.flatnonzero(~known & np.roll(known, 1))
    return np.unique(np.concatenate([[0, count - 1], smallest, largest, holes[: int(HOLES_RATIO * points_max)]]))
