"""What it takes the host to start work on the GPU: launching calls, queues, synchronisation."""

import re

import numpy as np
from numpy.typing import NDArray

from pinchpoint.profiles.intervals import union
from pinchpoint.profiles.model import LaunchOverhead, Percentiles
from pinchpoint.profiles.stepping import GRAPH_LAUNCH, at, launch_rows
from pinchpoint.profiles.trace import KERNEL, Gpu, Trace

NS_PER_S = 1e9
SLOW_CALL_NS = 50_000
"""Holistic Trace Analysis counts calls above this as slow."""
_LAUNCH = re.compile(
    r"^(cuda|cu|hip)\w*Launch(?!HostFunc)\w*$|^hccl?Launch|^aclrtLaunch|GraphLaunch|^LaunchKernel", re.IGNORECASE
)
_SYNCHRONISE = re.compile(r"^(cuda|cu|hip|aclrt)\w*Synchronize", re.IGNORECASE)


def percentiles(values_ns: NDArray[np.int64]) -> Percentiles:
    """Of at least one duration."""
    p50, p90, p99 = np.percentile(values_ns, (50, 90, 99)) / NS_PER_S
    return Percentiles(
        count=len(values_ns), mean_s=float(values_ns.mean()) / NS_PER_S, p50_s=float(p50), p90_s=float(p90),
        p99_s=float(p99), max_s=int(values_ns.max()) / NS_PER_S,
    )  # fmt: skip


def overhead(trace: Trace, gpu: Gpu, span_ns: int) -> LaunchOverhead | None:
    """None where the file holds no launching calls. gpu: the rows of one device; calls that launched work on another
    device are not counted."""
    calls = trace.calls
    launching = [number for number in np.unique(calls.name).tolist() if _LAUNCH.search(trace.names[number])]
    rows = launch_rows(calls, gpu.link)
    elsewhere = np.zeros(len(calls.start), bool)
    all_rows = launch_rows(calls, trace.gpu.link)
    elsewhere[all_rows[all_rows >= 0]] = True
    mine = np.zeros(len(calls.start), bool)
    mine[rows[rows >= 0]] = True
    # A launch whose work is not in the file belongs to the device that its thread works for.
    own_thread = np.isin(calls.thread, np.unique(calls.thread[mine]))
    launches = np.isin(calls.name, launching) & (mine | (own_thread & ~elsewhere))
    if not launches.any():
        return None
    durations = calls.end[launches] - calls.start[launches]
    graph_names = [number for number in launching if GRAPH_LAUNCH.search(trace.names[number])]
    by_graph = np.isin(calls.name, graph_names)
    synchronising = [number for number in np.unique(calls.name).tolist() if _SYNCHRONISE.search(trace.names[number])]
    waits = np.isin(calls.name, synchronising)
    kernels = gpu.kind == KERNEL
    median = float(np.median(durations))
    threads = np.unique(calls.thread[launches]).tolist()
    busiest = max(
        union(calls.start[launches & (calls.thread == one)], calls.end[launches & (calls.thread == one)]).total_ns
        for one in threads
    )
    linked = np.flatnonzero(kernels & (rows >= 0))
    linked = linked[launches[rows[linked]]]
    # The first kernel of each launch: gpu is in the order of starts.
    _, first = np.unique(rows[linked], return_index=True)
    first = linked[first]
    delay = np.maximum(gpu.start[first] - calls.end[rows[first]], 0)
    return LaunchOverhead(
        launches=int(launches.sum()),
        launches_per_s=float(launches.sum()) / span_ns * NS_PER_S if span_ns else 0.0,
        call=percentiles(durations),
        queue_delay=percentiles(delay) if len(delay) else None,
        host_busy_s=busiest / NS_PER_S,
        host_busy_share=min(1.0, busiest / span_ns) if span_ns else 0.0,
        slow_calls=int((durations > SLOW_CALL_NS).sum()),
        graph_launches=int((launches & by_graph).sum()),
        kernels_in_graphs=int((kernels & (gpu.graph | at(by_graph, rows))).sum()),
        short_kernels=int((kernels & (gpu.end - gpu.start < median)).sum()),
        synchronisations=int(waits.sum()),
        synchronisation_s=union(calls.start[waits], calls.end[waits]).total_ns / NS_PER_S,
    )
