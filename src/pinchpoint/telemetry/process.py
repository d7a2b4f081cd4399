"""Sources `server` and `client`: what named processes and their descendants use of this machine.

CPU is the increase of user + system time between two readings, over processes that were there at both, so a process
that came or went in between adds nothing. Time of processes is counted in clock ticks of 10 ms: half a second resolves
0.02 cores. Time of threads comes from the scheduler and is exact, where the kernel has it.

The surprising thing: whole-process CPU can hide a limit. A Python API server that is full uses one core in one
thread, and looks idle on a 64-core machine; hence the busiest threads, by name.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pinchpoint.catalog import format_labels
from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.telemetry.cgroups import Cgroups
from pinchpoint.telemetry.config import Reading, event, own
from pinchpoint.telemetry.kept_file import label
from pinchpoint.telemetry.process_files import (
    ProcessStat,
    ThreadTimes,
    disk_bytes,
    open_files,
    open_files_limit,
    pss_bytes,
    switches,
    thread_ids,
    thread_name,
    thread_times,
)
from pinchpoint.telemetry.process_tree import ProcessTree

MAX_PROCESSES_TOLD = 16
"""Processes told one by one, listeners first. Our bound; sums are over all."""
MAX_THREADS_TOLD = 8
MAX_THREADS_READ = 512
"""Threads of one process that are looked at. Our bound: each costs a file, some 10 us."""
BUSY_CORES = 0.05
"""Below this a process that does not listen has no thread worth looking at."""
TOLD_THREAD_CORES = 0.005
"""Threads below this are not told by name, but for the busiest one."""
RARE_PERIOD_S = 30.0
"""How often the proportional memory is read."""
MAX_PSS_RSS_BYTES = 4 << 30
"""Of a process with more resident memory the proportional part is not read: the walk over its pages takes
milliseconds per GB, and holds up the process when it wants more memory meanwhile."""
LIMIT_PERIOD_S = 10.0


class _Threads(NamedTuple):
    """Times of watched threads by (process, thread), read at one instant."""

    at_ns: int
    times: dict[tuple[int, str], ThreadTimes]


class _Spent(NamedTuple):
    """What one thread did between two readings, per second."""

    pid: int
    tid: str
    cores: float
    waited: float
    exact: bool


class Server:
    """The processes of the service. `pids` are those that listen. proc and sys: tests give their own."""

    name = "server"

    def __init__(self, pids: Sequence[int], proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> None:
        self._proc = os.fspath(proc)
        self._tree = ProcessTree(pids, proc=proc)
        self._cores = _ProcessCores()
        self._threads = _Threads(0, {})
        groups = next((proc / str(pid) for pid in pids if pid not in self._tree.gone), None)
        self._groups = Cgroups("server", groups, sys / "fs" / "cgroup") if groups is not None else None
        self._limit: float | None = None
        self._pss: list[Reading] = []
        self._limit_due_ns = self._pss_due_ns = 0

    def read(self) -> tuple[int, list[Reading]]:
        now_ns = monotonic_ns()
        roots, below = self._tree.members(now_ns)
        members = roots + below
        listeners = {root.pid for root in roots}
        cores = self._cores.since(now_ns, members)
        readings = [event("process_gone", format_labels({"pid": str(pid)})) for pid in self._tree.gone]
        if cores:
            readings.append(own("server.cpu_cores", sum(cores.values())))
        listening = [value for pid, value in cores.items() if pid in listeners]
        if listening:
            readings.append(own("server.listener_cpu_cores", max(listening)))
        readings += self._thread_readings(members, listeners, cores)
        readings += _sums("server", members)
        if members:
            readings.append(own("server.threads", float(sum(member.threads for member in members))))
            readings.append(own("server.processes", float(len(members))))
        for member in members[:MAX_PROCESSES_TOLD]:
            readings += self._one_process(member, cores.get(member.pid))
        readings += self._files(roots, now_ns) + self._proportional(members, now_ns)
        return now_ns, readings + (self._groups.read(now_ns) if self._groups is not None and members else [])

    def _thread_readings(
        self, members: Sequence[ProcessStat], listeners: set[int], cores: dict[int, float]
    ) -> list[Reading]:
        watched = [m.pid for m in members if m.pid in listeners or cores.get(m.pid, 0.0) >= BUSY_CORES]
        now = _Threads(monotonic_ns(), {})
        for pid in watched:
            for tid in thread_ids(self._proc, pid, MAX_THREADS_READ):
                times = thread_times(self._proc, pid, tid)
                if times is not None:
                    now.times[pid, tid] = times
        spent = spent_between(self._threads, now)
        self._threads = now
        if not spent:
            return []
        readings: list[Reading] = []
        of_listeners = [thread.cores for thread in spent if thread.pid in listeners]
        if of_listeners:
            readings.append(own("server.thread_cpu_max_cores", max(of_listeners)))
        waited = [thread.waited for thread in spent if thread.exact]
        if waited:
            readings.append(own("server.run_delay_cores", sum(waited)))
            readings.append(own("server.thread_run_delay_max_ratio", max(waited)))
        busiest = sorted(spent, key=lambda thread: -thread.cores)[:MAX_THREADS_TOLD]
        for place, thread in enumerate(busiest):
            if place == 0 or thread.cores >= TOLD_THREAD_CORES:
                name = thread_name(self._proc, thread.pid, thread.tid)
                labels = format_labels({"pid": str(thread.pid), "tid": thread.tid, "thread": name})
                readings.append(own("server.thread_cpu_cores", thread.cores, labels))
        return readings

    def _one_process(self, process: ProcessStat, cores: float | None) -> list[Reading]:
        labels = format_labels({"pid": str(process.pid), "process": process.name})
        readings = [own("server.major_faults_total", float(process.major_faults), labels)]
        if cores is not None:
            readings.append(own("server.process_cpu_cores", cores, labels))
        if (counts := switches(self._proc, process.pid)) is not None:
            readings.append(own("server.voluntary_switches_total", float(counts[0]), labels))
            readings.append(own("server.involuntary_switches_total", float(counts[1]), labels))
        if (amounts := disk_bytes(self._proc, process.pid)) is not None:
            readings.append(own("server.read_bytes_total", float(amounts[0]), labels))
            readings.append(own("server.write_bytes_total", float(amounts[1]), labels))
        return readings

    def _files(self, listeners: Sequence[ProcessStat], now_ns: int) -> list[Reading]:
        """Open files of the listeners and the lowest limit; nothing for processes of other users."""
        counts = [count for root in listeners if (count := open_files(self._proc, root.pid)) is not None]
        if now_ns >= self._limit_due_ns:
            self._limit_due_ns = now_ns + int(LIMIT_PERIOD_S * NS_PER_S)
            limits = [limit for root in listeners if (limit := open_files_limit(self._proc, root.pid)) is not None]
            self._limit = float(min(limits)) if limits else None
        readings = [own("server.open_files", float(sum(counts)))] if counts else []
        return readings if self._limit is None else [*readings, own("server.open_files_limit", self._limit)]

    def _proportional(self, members: Sequence[ProcessStat], now_ns: int) -> list[Reading]:
        """Read rarely, told every time. Only when it is known of every process: a part would pass for all of it."""
        if not members:
            return []
        if now_ns >= self._pss_due_ns:
            self._pss_due_ns = now_ns + int(RARE_PERIOD_S * NS_PER_S)
            self._pss = self._read_proportional(members)
        return self._pss

    def _read_proportional(self, members: Sequence[ProcessStat]) -> list[Reading]:
        if len(members) > MAX_PROCESSES_TOLD or max(m.rss_bytes for m in members) > MAX_PSS_RSS_BYTES:
            return []
        amounts = [pss_bytes(self._proc, member.pid) for member in members]
        known = [amount for amount in amounts if amount is not None]
        return [own("server.pss_bytes", float(sum(known)))] if len(known) == len(amounts) else []


class Client:
    """The load generator's processes, without the collector itself."""

    name = "client"

    def __init__(self, pids: Sequence[int], proc: Path = Path("/proc")) -> None:
        self._tree = ProcessTree(pids, leave_out=(os.getpid(),), proc=proc)
        self._cores = _ProcessCores()

    def read(self) -> tuple[int, list[Reading]]:
        now_ns = monotonic_ns()
        roots, below = self._tree.members(now_ns)
        cores = self._cores.since(now_ns, roots + below)
        readings = [event("process_gone", label("pid", str(pid))) for pid in self._tree.gone]
        if cores:
            readings.append(own("client.cpu_cores", sum(cores.values())))
            readings.append(own("client.process_cpu_max_cores", max(cores.values())))
        return now_ns, readings + _sums("client", roots + below)


class _ProcessCores:
    """Cores each process used since the reading before."""

    def __init__(self) -> None:
        self._at_ns = 0
        self._cpu_s: dict[tuple[int, int], float] = {}

    def since(self, now_ns: int, members: Sequence[ProcessStat]) -> dict[int, float]:
        """By process, for those that were there at both readings; empty at the first."""
        elapsed_s = (now_ns - self._at_ns) / NS_PER_S
        before, self._cpu_s = self._cpu_s, {(m.pid, m.started_ticks): m.cpu_s for m in members}
        self._at_ns = now_ns
        if elapsed_s <= 0:
            return {}
        return {
            pid: max(0.0, cpu_s - before[pid, started]) / elapsed_s
            for (pid, started), cpu_s in self._cpu_s.items()
            if (pid, started) in before
        }


def spent_between(before: _Threads, after: _Threads) -> list[_Spent]:
    """Cores used and share of time waited by threads that were there at both readings, counted in the same way."""
    elapsed_s = (after.at_ns - before.at_ns) / NS_PER_S
    if elapsed_s <= 0:
        return []
    spent: list[_Spent] = []
    for (pid, tid), now in after.times.items():
        then = before.times.get((pid, tid))
        if then is not None and then.exact == now.exact:
            cores = max(0.0, now.cpu_s - then.cpu_s) / elapsed_s
            waited = max(0.0, now.waited_s - then.waited_s) / elapsed_s
            spent.append(_Spent(pid, tid, cores, waited, now.exact))
    return spent


def _sums(layer: str, members: Sequence[ProcessStat]) -> list[Reading]:
    return [own(f"{layer}.rss_bytes", float(sum(member.rss_bytes for member in members)))] if members else []
