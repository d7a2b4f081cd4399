"""CPU time and memory of a command and all its descendants, over time.

`Tree(command).wait()` runs a command in a group of its own and returns a `Usage`: CPU seconds as a function of time, so
that what the load phase cost can be told from start-up and from what came after. How the CPU time is read:

    cgroup v1    cpuacct.usage of a control group made for the run: exact, dead children included
    cgroup v2    usage_usec of cpu.stat, likewise
    /proc        user and system time of the living tree and of the children it has waited for, in ticks of 10 ms; a
                 child that ends while nobody has waited for it yet is missing for that long

The first that works is used; `Usage.method` says which.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

SAMPLE_PERIOD_S = 0.05
PROCESSES_EVERY = 4
"""Memory and CPU by process are read at every fourth sample: they cost two files per process."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_STAT_PARENT, _STAT_UTIME, _STAT_CUTIME_END = 1, 11, 15
"""Positions in /proc/PID/stat after the command name (proc(5): fields 4, 14 to 17)."""
_KILL_AFTER_S = 2.0


def _fields(pid: int) -> list[str] | None:
    """What follows the name in /proc/PID/stat; None when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def descendants(root: int) -> list[int]:
    """root and every living process below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _fields(int(entry.name))):
            children.setdefault(int(fields[_STAT_PARENT]), []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, [])
    return found


def process_cpu_s(pid: int, *, children: bool = True) -> float:
    """User and system time of one process, with the children it has waited for unless told otherwise; 0 when gone."""
    fields = _fields(pid)
    end = _STAT_CUTIME_END if children else _STAT_UTIME + 2
    return sum(int(text) for text in fields[_STAT_UTIME:end]) / TICKS_PER_S if fields else 0.0


def host_cpu_s() -> tuple[float, float]:
    """Time since boot that the cores of this host were busy, for whomever, and that a hypervisor took from them."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _, _, irq, softirq, steal = map(int, words)
    return (user + nice + system + irq + softirq) / TICKS_PER_S, steal / TICKS_PER_S


class _Group:
    """A control group for one run."""

    def __init__(self, path: Path, usage_file: str, method: str) -> None:
        self.path = path
        self.method = method
        self._usage = path / usage_file
        path.mkdir()
        self.cpu_s()

    def cpu_s(self) -> float:
        text = self._usage.read_text()
        if text.startswith("usage_usec"):
            return int(text.split()[1]) / 1e6
        return int(text) / 1e9

    def pids(self) -> list[int]:
        return [int(word) for word in (self.path / "cgroup.procs").read_text().split()]

    def enter(self) -> None:
        """Called in the child, between fork and exec."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self.path.rmdir()


def _make_group() -> _Group | None:
    name = f"pinchpoint-bench-{os.getpid()}-{time.monotonic_ns()}"
    places = [
        (Path("/sys/fs/cgroup/cpuacct"), "cpuacct.usage", "cgroup v1"),
        (Path("/sys/fs/cgroup/cpu,cpuacct"), "cpuacct.usage", "cgroup v1"),
        (Path("/sys/fs/cgroup"), "cpu.stat", "cgroup v2"),
        (Path("/sys/fs/cgroup/unified"), "cpu.stat", "cgroup v2"),
    ]
    for root, usage_file, method in places:
        if not (root / "cgroup.procs").exists():
            continue
        try:
            return _Group(root / name, usage_file, method)
        except OSError:
            with contextlib.suppress(OSError):
                (root / name).rmdir()
    return None


@dataclass
class Usage:
    """A finished run of a command. Instants are monotonic ns; `cpu_s` is cumulated over the tree at `t_ns`."""

    command: list[str]
    method: str
    exec_ns: int
    exit_ns: int
    exit_code: int | None
    """None: it was killed because it took longer than allowed."""
    stdout: str
    stderr: str
    t_ns: np.ndarray
    cpu_s: np.ndarray
    host_s: np.ndarray
    stolen_s: np.ndarray
    beside_s: np.ndarray
    """CPU time of the process named as `beside`, the server."""
    peak_rss: dict[int, int] = field(default_factory=dict)
    """pid -> most resident bytes it ever had."""
    process_s: dict[int, float] = field(default_factory=dict)
    """pid -> CPU seconds of that process alone over its life, when last looked at (within 0.2 s of its end)."""

    def cpu_between_s(self, begin_ns: int, end_ns: int) -> float:
        """CPU seconds of the tree in a stretch of time, between samples by interpolation."""
        return self._between(self.cpu_s, begin_ns, end_ns)

    def foreign_cores(self, begin_ns: int, end_ns: int) -> float:
        """Cores that were busy for neither the command nor the server: the noise of the host."""
        busy = self._between(self.host_s, begin_ns, end_ns)
        ours = self.cpu_between_s(begin_ns, end_ns) + self._between(self.beside_s, begin_ns, end_ns)
        return (busy - ours) * 1e9 / max(1, end_ns - begin_ns)

    def stolen_cores(self, begin_ns: int, end_ns: int) -> float:
        """Cores that the hypervisor took away."""
        return self._between(self.stolen_s, begin_ns, end_ns) * 1e9 / max(1, end_ns - begin_ns)

    def beside_cores(self, begin_ns: int, end_ns: int) -> float:
        return self._between(self.beside_s, begin_ns, end_ns) * 1e9 / max(1, end_ns - begin_ns)

    def _between(self, values: np.ndarray, begin_ns: int, end_ns: int) -> float:
        low, high = np.interp([begin_ns, end_ns], self.t_ns, values)
        return float(high - low)

    @property
    def wall_s(self) -> float:
        return (self.exit_ns - self.exec_ns) / 1e9

    @property
    def peak_rss_bytes(self) -> int:
        """Of the largest process."""
        return max(self.peak_rss.values(), default=0)


class Tree:
    """Starts `command` at once. `signal_all` reaches every process of the tree."""

    def __init__(self, command: list[str], *, beside: int | None = None, cwd: Path | None = None) -> None:
        self._command = [str(word) for word in command]
        self._beside = beside
        self._group = _make_group()
        self._samples: list[tuple[int, float, float, float, float]] = []
        self._peak_rss: dict[int, int] = {}
        self._process_s: dict[int, float] = {}
        self._ended = threading.Event()
        self._exec_ns = time.monotonic_ns()
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=cwd,
            preexec_fn=self._group.enter if self._group else None,
        )
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    @property
    def pids(self) -> list[int]:
        return self._group.pids() if self._group else descendants(self._process.pid)

    def signal_all(self, number: signal.Signals) -> None:
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _cpu_s(self) -> float:
        if self._group:
            return self._group.cpu_s()
        total_s = sum(process_cpu_s(pid) for pid in descendants(self._process.pid))
        return max(total_s, self._samples[-1][1] if self._samples else 0.0)

    def _take(self) -> None:
        beside_s = process_cpu_s(self._beside) if self._beside else 0.0
        self._samples.append((time.monotonic_ns(), self._cpu_s(), *host_cpu_s(), beside_s))

    def _sample(self) -> None:
        count = 0
        while not self._ended.wait(SAMPLE_PERIOD_S):
            self._take()
            count += 1
            if count % PROCESSES_EVERY == 0:
                self._read_processes()

    def _read_processes(self) -> None:
        for pid in self.pids:
            self._process_s[pid] = process_cpu_s(pid, children=False) or self._process_s.get(pid, 0.0)
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        self._peak_rss[pid] = int(line.split()[1]) * 1024

    def wait(self, timeout_s: float) -> Usage:
        """Until the command ends; a tree that outlives the timeout is killed. Never leaves a process behind."""
        code: int | None = None
        try:
            stdout, stderr = self._process.communicate(timeout=timeout_s)
            code = self._process.returncode
        except subprocess.TimeoutExpired:
            self.signal_all(signal.SIGKILL)
            stdout, stderr = self._process.communicate()
        exit_ns = time.monotonic_ns()
        self._ended.set()
        self._sampler.join()
        self._take()
        self._end_group()
        t_ns, cpu_s, host_s, stolen_s, beside_s = (np.array(column) for column in zip(*self._samples, strict=True))
        return Usage(
            self._command,
            self._group.method if self._group else "/proc",
            self._exec_ns,
            exit_ns,
            code,
            stdout,
            stderr,
            np.concatenate([[self._exec_ns], t_ns]),
            np.concatenate([[0.0], cpu_s]),
            np.concatenate([[host_s[0]], host_s]),
            np.concatenate([[stolen_s[0]], stolen_s]),
            np.concatenate([[beside_s[0]], beside_s]),
            self._peak_rss,
            self._process_s,
        )

    def _end_group(self) -> None:
        if not self._group:
            return
        deadline_s = time.monotonic() + _KILL_AFTER_S
        while self._group.pids() and time.monotonic() < deadline_s:
            time.sleep(SAMPLE_PERIOD_S)
        for pid in self._group.pids():  # left behind by the command, in the group made for it
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while self._group.pids() and time.monotonic() < deadline_s + _KILL_AFTER_S:
            time.sleep(SAMPLE_PERIOD_S)
        self._group.remove()
