"""Sources `server` and `client`: what named processes and their descendants use of this machine.

CPU is the increase of user + system time between two readings, over processes that were there at both, so a process
that came or went in between adds nothing. Time is counted in clock ticks of 10 ms: half a second resolves 0.02 cores.

The surprising thing: whole-process CPU can hide a limit. A Python API server that is full uses one core in one
thread, and looks idle on a 64-core machine; hence the busiest thread of the listening process.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import psutil

from pinchpoint.catalog import format_labels
from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.telemetry.config import Reading, event, own

TREE_PERIOD_S = 2.0
"""How often descendants are looked for: it reads every process of the machine, and services rarely fork under load."""


class _Cpu(NamedTuple):
    """Cumulative seconds, by process and by (process, thread)."""

    at_ns: int
    processes: dict[int, float]
    threads: dict[tuple[int, int], float]


class ProcessTree:
    """Given processes and their descendants. A pid that was given to another program meanwhile counts as gone."""

    def __init__(self, pids: Sequence[int], leave_out: Sequence[int] = ()) -> None:
        self._leave_out = frozenset(leave_out)
        self._roots: dict[int, psutil.Process | None] = {pid: _process(pid) for pid in pids}
        self._members: dict[int, psutil.Process] = {}
        self._looked_ns: int | None = None

    @property
    def roots(self) -> list[psutil.Process]:
        return [root for root in self._roots.values() if root is not None]

    @property
    def gone(self) -> list[int]:
        return [pid for pid, root in self._roots.items() if root is None]

    def members(self, now_ns: int) -> list[psutil.Process]:
        """Living processes, roots first."""
        for pid, root in self._roots.items():
            if root is not None and not root.is_running():
                self._roots[pid] = None
        if self._looked_ns is None or now_ns - self._looked_ns >= TREE_PERIOD_S * NS_PER_S:
            self._looked_ns = now_ns
            self._members = {}
            for root in self.roots:
                self._members[root.pid] = root
                try:
                    for child in root.children(recursive=True):
                        self._members.setdefault(child.pid, child)
                except psutil.Error:
                    continue
        return [p for pid, p in self._members.items() if pid not in self._leave_out and p.is_running()]


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None


class Server:
    """The processes of the service. `pids` are those that listen."""

    name = "server"

    def __init__(self, pids: Sequence[int]) -> None:
        self._tree = ProcessTree(pids)
        self._before: _Cpu | None = None

    def read(self) -> tuple[int, list[Reading]]:
        now_ns = monotonic_ns()
        members = self._tree.members(now_ns)
        listeners = {root.pid for root in self._tree.roots}
        cpu = _cpu(members, listeners)
        readings = [event("process_gone", format_labels({"pid": str(pid)})) for pid in self._tree.gone]
        if self._before is not None:
            spent = _cores(self._before, cpu)
            if spent.processes:
                readings.append(own("server.cpu_cores", sum(spent.processes.values())))
            listening = [cores for pid, cores in spent.processes.items() if pid in listeners]
            if listening:
                readings.append(own("server.listener_cpu_cores", max(listening)))
            if spent.threads:
                readings.append(own("server.thread_cpu_max_cores", max(spent.threads.values())))
        self._before = cpu
        return now_ns, readings + _memory("server", members) + _threads(members) + _files(self._tree.roots)


class Client:
    """The load generator's processes, without the collector itself."""

    name = "client"

    def __init__(self, pids: Sequence[int]) -> None:
        self._tree = ProcessTree(pids, leave_out=(os.getpid(),))
        self._before: _Cpu | None = None

    def read(self) -> tuple[int, list[Reading]]:
        now_ns = monotonic_ns()
        members = self._tree.members(now_ns)
        cpu = _cpu(members, frozenset())
        readings = [event("process_gone", format_labels({"pid": str(pid)})) for pid in self._tree.gone]
        if self._before is not None:
            spent = _cores(self._before, cpu).processes
            if spent:
                readings.append(own("client.cpu_cores", sum(spent.values())))
                readings.append(own("client.process_cpu_max_cores", max(spent.values())))
        self._before = cpu
        return now_ns, readings + _memory("client", members)


def _cpu(members: Sequence[psutil.Process], with_threads: "frozenset[int] | set[int]") -> _Cpu:
    processes: dict[int, float] = {}
    threads: dict[tuple[int, int], float] = {}
    at_ns = monotonic_ns()
    for process in members:
        try:
            times = process.cpu_times()
            processes[process.pid] = times.user + times.system
            if process.pid in with_threads:
                for thread in process.threads():
                    threads[process.pid, thread.id] = thread.user_time + thread.system_time
        except psutil.Error:  # ended meanwhile, or not ours to see
            continue
    return _Cpu(at_ns, processes, threads)


def _cores(before: _Cpu, after: _Cpu) -> _Cpu:
    """Cores used between two readings; the fields hold cores instead of seconds."""
    elapsed_s = (after.at_ns - before.at_ns) / NS_PER_S
    if elapsed_s <= 0:
        return _Cpu(after.at_ns, {}, {})
    return _Cpu(
        after.at_ns,
        {k: max(0.0, v - before.processes[k]) / elapsed_s for k, v in after.processes.items() if k in before.processes},
        {k: max(0.0, v - before.threads[k]) / elapsed_s for k, v in after.threads.items() if k in before.threads},
    )


def _memory(layer: str, members: Sequence[psutil.Process]) -> list[Reading]:
    rss_bytes: list[int] = []
    for process in members:
        try:
            rss_bytes.append(process.memory_info().rss)
        except psutil.Error:
            continue
    return [own(f"{layer}.rss_bytes", float(sum(rss_bytes)))] if rss_bytes else []


def _threads(members: Sequence[psutil.Process]) -> list[Reading]:
    counts: list[int] = []
    for process in members:
        try:
            counts.append(process.num_threads())
        except psutil.Error:
            continue
    if not counts:
        return []
    return [own("server.threads", float(sum(counts))), own("server.processes", float(len(counts)))]


def _files(listeners: Sequence[psutil.Process]) -> list[Reading]:
    """Open files of the listeners and the lowest limit; nothing for processes of other users."""
    counts: list[int] = []
    limits: list[int] = []
    for process in listeners:
        try:
            counts.append(process.num_fds())
            limits.append(process.rlimit(psutil.RLIMIT_NOFILE)[0])
        except (psutil.Error, AttributeError):  # rlimit exists on Linux only
            continue
    readings = [own("server.open_files", float(sum(counts)))] if counts else []
    return readings + ([own("server.open_files_limit", float(min(limits)))] if limits else [])
