"""Why a GPU did nothing: each gap between its work put into a class by what came next and what the host did."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pinchpoint.profiles.intervals import Cover, length_within, union
from pinchpoint.profiles.model import Gap, IdleClass, IdleKind
from pinchpoint.profiles.stepping import NO_STEP, Steps, at, launch_rows
from pinchpoint.profiles.trace import Gpu, Host, Trace

NS_PER_S = 1e9
KINDS: tuple[IdleKind, ...] = ("launch_bound", "host_bound", "communication_wait", "data_copy", "queued", "unknown")
BETWEEN_STEPS_NS = 1_000_000
"""Where no steps are known, a wait for the host of 1 ms or more is taken for one between steps (nsys-ai's threshold for
a gap worth a look); launches within a step come far closer."""
MOST = 0.5
"""A class by what the host did needs it to have done that for half of the gap."""

_COLLECTIVE = re.compile(
    r"^(nccl|gloo|rccl|hccl|mpi|ucc|c10d|record_param_comms)[:_]|all_?reduce|all_?gather|reduce_scatter|all_?to_?all"
    r"|barrier|irecv|isend|\brecv\b|zmq.*recv|shm_broadcast|tcpstore", re.IGNORECASE,
)  # fmt: skip
_COPYING = re.compile(
    r"memcpy|hipMemcpy|DataLoader|load_batch|data_load|wait_for_batch|prefetch|copy_batch|pin_memory|to_device"
    r"|MemPrefetch", re.IGNORECASE,
)  # fmt: skip
BLOCKING_COPY_NS = 20_000
"""An asynchronous copy hands over in a few us, as a launch does; a call that takes longer waits for pageable memory."""
_ASYNCHRONOUS_COPY = re.compile(r"MemcpyAsync|MemcpyWithStream", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Gaps:
    """starts, ends in ns; kind: index in KINDS; before, after: rows of the GPU's work around each."""

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    kind: NDArray[np.int8]
    before: NDArray[np.int64]
    after: NDArray[np.int64]

    def classes(self, span_ns: int) -> tuple[IdleClass, ...]:
        lengths = self.ends - self.starts
        rows = []
        for number, kind in enumerate(KINDS):
            of_kind = lengths[self.kind == number]
            if len(of_kind):
                total = int(of_kind.sum())
                rows.append(
                    IdleClass(
                        kind=kind, gaps=len(of_kind), total_s=total / NS_PER_S,
                        largest_s=int(of_kind.max()) / NS_PER_S, share=total / span_ns if span_ns else 0.0,
                    )
                )  # fmt: skip
        return tuple(sorted(rows, key=lambda row: -row.total_s))


def find(trace: Trace, gpu: Gpu, busy: Cover, steps: Steps) -> Gaps:
    """Every gap between the first and the last work of one device. gpu: its rows in the order of their starts."""
    starts, ends = busy.ends[:-1], busy.starts[1:]
    if len(starts) == 0:
        empty = np.empty(0, np.int64)
        return Gaps(empty, empty, np.empty(0, np.int8), empty, empty)
    after = np.searchsorted(gpu.start, ends, side="left")
    reach = np.maximum.accumulate(gpu.end)
    last_to_end = np.maximum.accumulate(np.where(gpu.end == reach, np.arange(len(reach)), 0))
    before = last_to_end[np.maximum(after - 1, 0)]
    rows = launch_rows(trace.calls, gpu.link)[after]
    linked = rows >= 0
    returned = at(trace.calls.end, rows)
    late = linked & (returned > starts)  # also a launch that was being made when the GPU ran dry
    same_graph = linked & (gpu.link[after] == gpu.link[before])
    step_before, step_after = steps.of_gpu[before], steps.of_gpu[after]
    if steps.told_by is None:
        between = (ends - starts) >= BETWEEN_STEPS_NS
    else:
        between = (step_before != step_after) | (step_after == NO_STEP)
    kind = np.full(len(starts), KINDS.index("unknown"), np.int8)
    kind[linked] = KINDS.index("queued")
    kind[late & ~same_graph & between] = KINDS.index("host_bound")
    kind[late & ~same_graph & ~between] = KINDS.index("launch_bound")
    if not len(trace.calls.start) and steps.told_by is not None:
        kind[between] = KINDS.index("host_bound")
    waits = ~(linked & ~late) & ~same_graph
    lengths = np.maximum(ends - starts, 1)
    copying = length_within(_cover_of(trace, _is_copying), starts, ends) / lengths
    kind[waits & (copying >= MOST)] = KINDS.index("data_copy")
    talking = length_within(_cover_of(trace, _is_collective), starts, ends) / lengths
    kind[waits & (talking >= MOST)] = KINDS.index("communication_wait")
    return Gaps(starts, ends, kind, before, after)


def _is_collective(name: str) -> bool:
    return bool(_COLLECTIVE.search(name))


def _is_copying(name: str) -> bool:
    return bool(_COPYING.search(name))


def _cover_of(trace: Trace, test: Callable[[str], bool]) -> Cover:
    """When the host was in calls, operators or ranges whose names pass the test."""
    starts, ends = [], []
    for host in (trace.calls, trace.ops, trace.ranges):
        numbers = np.unique(host.name).tolist()
        chosen = [number for number in numbers if test(trace.names[number])]
        at_once = [number for number in chosen if _ASYNCHRONOUS_COPY.search(trace.names[number])]
        rows = np.isin(host.name, chosen)
        rows &= ~np.isin(host.name, at_once) | (host.end - host.start >= BLOCKING_COPY_NS)
        starts.append(host.start[rows])
        ends.append(host.end[rows])
    return union(np.concatenate(starts), np.concatenate(ends))


def largest(trace: Trace, gpu: Gpu, found: Gaps, zero_ns: int, limit: int) -> tuple[Gap, ...]:
    """The longest gaps with their neighbours and what the host did meanwhile."""
    order = np.argsort(-(found.ends - found.starts), kind="stable")[:limit]
    rows = []
    for index in order.tolist():
        start, end = int(found.starts[index]), int(found.ends[index])
        rows.append(
            Gap(
                kind=KINDS[found.kind[index]],
                start_s=(start - zero_ns) / NS_PER_S,
                duration_s=(end - start) / NS_PER_S,
                before=trace.names[gpu.name[found.before[index]]],
                after=trace.names[gpu.name[found.after[index]]],
                host_call=_longest_within(trace, trace.calls, start, end),
                host_op=_longest_within(trace, trace.ops, start, end),
            )
        )
    return tuple(rows)


def _longest_within(trace: Trace, host: Host, start: int, end: int) -> str | None:
    """The name that takes most of a window, if any takes a tenth of it."""
    inside = np.minimum(host.end, end) - np.maximum(host.start, start)
    rows = np.flatnonzero(inside > 0)
    if len(rows) == 0:
        return None
    totals = np.bincount(host.name[rows], weights=inside[rows])
    name = int(totals.argmax())
    return trace.names[name] if totals[name] >= (end - start) / 10 else None
