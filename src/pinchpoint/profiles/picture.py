"""What the page draws: the hierarchy of where the GPU's time went, and a timeline of a bounded number of intervals."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pinchpoint.profiles.idle import KINDS, Gaps
from pinchpoint.profiles.intervals import shares
from pinchpoint.profiles.kernels import category_ids
from pinchpoint.profiles.layering import LAYERS, NO_LAYER
from pinchpoint.profiles.model import Interval, Lane, Level, OverviewRow, Step
from pinchpoint.profiles.trace import Gpu

NS_PER_S = 1e9
INTERVAL_NAME_CHARS = 160
"""A thousand intervals with names of templates in full would be most of the page."""
OUTSIDE = "outside steps"
NOWHERE = "no layer told"


def overview(
    names: list[str], gpu: Gpu, categories: NDArray[np.int32], layers: NDArray[np.int8] | None,
    step_of: NDArray[np.int32], step_kinds: Sequence[str], gaps: Gaps, label: str, limit: int,
) -> tuple[OverviewRow, ...]:  # fmt: skip
    """Rows from the root down, parents before their children, longest first. step_kinds: the kind of each step; they
    are drawn together by kind. A gap belongs to the kind of step that follows it. Small boxes beyond the limit are
    gathered in one box of their parent."""
    kinds = [*dict.fromkeys(step_kinds), OUTSIDE]
    kind_of_step = np.array([kinds.index(kind) for kind in step_kinds] + [len(kinds) - 1], np.int64)
    kind = kind_of_step[step_of]  # NO_STEP is -1: the last
    fair_ns = shares(gpu.start, gpu.end)
    layer = np.full(len(gpu.start), NO_LAYER, np.int64) if layers is None else layers.astype(np.int64)
    keys = np.stack([kind, layer, categories.astype(np.int64), gpu.name.astype(np.int64)], axis=1)
    unique, inverse = np.unique(keys, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    totals = np.bincount(inverse, weights=fair_ns, minlength=len(unique))
    counts = np.bincount(inverse, minlength=len(unique))
    idle_ns = np.bincount(kind[gaps.after], weights=gaps.ends - gaps.starts, minlength=len(kinds))
    idle_counts = np.bincount(kind[gaps.after], minlength=len(kinds))
    tree: dict[tuple[str, ...], tuple[float, int, Level, str | None]] = {}

    def put(path: tuple[str, ...], level: Level, category: str | None, nanoseconds: float, count: int) -> None:
        before = tree.get(path, (0.0, 0, level, category))
        tree[path] = (before[0] + nanoseconds, before[1] + count, level, category)

    ids = category_ids()
    only_outside = len(step_kinds) == 0
    for (kind_at, layer_at, category_at, name_at), total, count in zip(
        unique.tolist(), totals.tolist(), counts.tolist(), strict=True
    ):
        path: tuple[str, ...] = (label,)
        put(path, "rank", None, total, count)
        if not only_outside:
            path = (*path, kinds[kind_at])
            put(path, "step", None, total, count)
        if layers is not None:
            path = (*path, LAYERS[layer_at] if layer_at != NO_LAYER else NOWHERE)
            put(path, "layer", None, total, count)
        category = ids[category_at]
        path = (*path, category)
        put(path, "category", category, total, count)
        put((*path, names[name_at]), "kernel", category, total, count)
    for kind_at, (total, count) in enumerate(zip(idle_ns.tolist(), idle_counts.tolist(), strict=True)):
        if total > 0:
            path = (label,)
            put(path, "rank", None, total, 0)
            if not only_outside:
                path = (*path, kinds[kind_at])
                put(path, "step", None, total, 0)
            put((*path, "idle"), "category", "idle", total, count)
    return _flatten(tree, limit)


def _flatten(tree: dict[tuple[str, ...], tuple[float, int, Level, str | None]], limit: int) -> tuple[OverviewRow, ...]:
    """Boxes above kernels all stay; of the kernels the longest, the rest gathered per category."""
    kernels = sorted((path for path, row in tree.items() if row[2] == "kernel"), key=lambda path: -tree[path][0])
    room = max(0, limit - (len(tree) - len(kernels)))
    rest: dict[tuple[str, ...], tuple[float, int, Level, str | None]] = {}
    left_out: dict[tuple[str, ...], int] = {}
    for path in kernels[room:]:
        total, count, level, category = tree.pop(path)
        gathered = rest.get(path[:-1], (0.0, 0, level, category))
        rest[path[:-1]] = (gathered[0] + total, gathered[1] + count, level, category)
        left_out[path[:-1]] = left_out.get(path[:-1], 0) + 1
    for path, row in rest.items():
        tree[(*path, f"{left_out[path]} other kernels")] = row
    children: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for path in tree:
        children.setdefault(path[:-1], []).append(path)
    rows: list[OverviewRow] = []

    def visit(path: tuple[str, ...], parent: int | None) -> None:
        total, count, level, category = tree[path]
        rows.append(
            OverviewRow(
                level=level, name=path[-1], category=category, parent=parent, duration_s=total / NS_PER_S, count=count
            )
        )
        own = len(rows) - 1
        for child in sorted(children.get(path, []), key=lambda one: -tree[one][0]):
            visit(child, own)

    for root in children.get((), []):
        visit(root, None)
    return tuple(rows)


def timeline(
    names: list[str], gpu: Gpu, categories: NDArray[np.int32], steps: Sequence[Step], gaps: Gaps, zero_ns: int,
    *, intervals: int, lanes: int,
) -> tuple[Lane, ...]:  # fmt: skip
    """Steps first, then the streams with most work, then idle gaps by class."""
    ids = category_ids()
    found: list[Lane] = []
    if steps:
        found.append(_steps_lane(steps, intervals))
    streams, places = np.unique(gpu.stream, return_inverse=True)
    work = np.bincount(places, weights=gpu.end - gpu.start)
    for place in np.argsort(-work, kind="stable")[:lanes].tolist():
        rows = np.flatnonzero(places == place)
        found.append(
            _lane(
                f"stream {streams[place]}", "stream", gpu.start[rows], gpu.end[rows], categories[rows], ids,
                [names[number] for number in gpu.name[rows].tolist()], zero_ns, intervals,
            )
        )  # fmt: skip
    if len(gaps.starts):
        titles = [KINDS[number] for number in gaps.kind.tolist()]
        found.append(_lane("idle", "idle", gaps.starts, gaps.ends, gaps.kind, KINDS, titles, zero_ns, intervals))
    return tuple(found)


def _steps_lane(steps: Sequence[Step], limit: int) -> Lane:
    shown = steps[:limit]
    rows = tuple(
        Interval(
            start_s=step.start_s, end_s=step.end_s, category=step.kind, name=step.name, events=step.kernels,
            busy_s=step.gpu_busy_s if step.gpu_busy_s is not None else step.end_s - step.start_s,
        )
        for step in shown
    )  # fmt: skip
    return Lane(name="steps", kind="steps", intervals=rows, thinned=len(shown) < len(steps))


def _lane(
    name: str, kind: Literal["stream", "idle"], starts: NDArray[np.int64], ends: NDArray[np.int64],
    numbers: NDArray[np.integer], titles: Sequence[str],
    names: list[str], zero_ns: int, limit: int,
) -> Lane:  # fmt: skip
    """All intervals while they are few; else neighbours closer than a pixel become one, of the category that takes most
    of it."""
    order = np.argsort(starts, kind="stable")
    starts, ends, numbers = starts[order], ends[order], numbers[order]
    if len(starts) <= limit:
        groups = np.arange(len(starts))
    else:
        # One cell of time per interval that may be kept; what begins in the same cell is drawn as one.
        width = max(1, -(-int(ends.max() - starts[0] + 1) // limit))
        _, groups = np.unique((starts - starts[0]) // width, return_inverse=True)
    lengths = ends - starts
    fair = shares(starts, ends)
    firsts = np.flatnonzero(np.r_[True, np.diff(groups) > 0])
    lasts = np.r_[firsts[1:], len(starts)]
    rows = []
    for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
        part = slice(first, last)
        weights = np.bincount(numbers[part].astype(np.int64), weights=lengths[part])
        longest = first + int(lengths[part].argmax())
        rows.append(
            Interval(
                start_s=(int(starts[first]) - zero_ns) / NS_PER_S, end_s=(int(ends[part].max()) - zero_ns) / NS_PER_S,
                busy_s=float(fair[part].sum()) / NS_PER_S, category=titles[int(weights.argmax())],
                name=names[int(order[longest])][:INTERVAL_NAME_CHARS], events=last - first,
            )
        )  # fmt: skip
    return Lane(name=name, kind=kind, intervals=tuple(rows), thinned=len(rows) < len(starts))
