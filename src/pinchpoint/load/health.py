"""How well the load process itself is doing: what on its own host could make the service look slow.

Read once a second inside the loop, so it must be cheap: files under /proc are kept open and read again from their
start, only the lines that matter are split, and nothing is read whose cost grows with the machine (the steal time of
/proc/stat is the collector's business).

Counters of the network are those of the whole network namespace and grow (`_total`); every load process reads the same
ones. What belongs to one process alone is told as the amount since the reading before, because counters of several
processes that are read in turn cannot be told apart from one that restarts.
"""

import contextlib
import gc
import os
import resource
import time
from pathlib import Path

from pinchpoint.cgroup import CGROUP_MOUNT, cpu_groups, read_throttling
from pinchpoint.clock import NS_PER_S

READ_BYTES = 65536
"""Above the length of each of these files, of which /proc/net/netstat is the longest with about 4 kB."""
TCP_EXTENDED = {
    b"PruneCalled": "client.tcp_prune_calls_total",
    b"RcvPruned": "client.tcp_receive_pruned_total",
    b"TCPRcvQDrop": "client.tcp_receive_dropped_total",
    b"TCPRcvCollapsed": "client.tcp_receive_collapsed_total",
    b"TCPToZeroWindowAdv": "client.tcp_zero_window_total",
    b"TCPWantZeroWindowAdv": "client.tcp_zero_window_wanted_total",
    b"TCPTimeouts": "client.tcp_timeouts_total",
    b"TCPAbortOnMemory": "client.tcp_memory_aborts_total",
}
"""Counters of /proc/net/netstat that mean trouble at the receiving end, or a lossy way to it."""
TCP_BASIC = {b"RetransSegs": "client.tcp_retransmits_total", b"OutSegs": "client.tcp_segments_sent_total"}
"""Counters of /proc/net/snmp."""


class ClientHealth:
    """`read` returns canonical series of the catalogue. What this system does not tell is left out, never zero.

    proc and cgroup_mount: where the files lie; tests give their own. Linux has all of them, other systems few.
    """

    def __init__(self, proc: Path = Path("/proc/self"), cgroup_mount: Path = CGROUP_MOUNT) -> None:
        self._cgroups = [
            fd for group in cpu_groups(proc, cgroup_mount) if (fd := _open(group / "cpu.stat")) is not None
        ]
        self._snmp = _NamedCounters(proc / "net/snmp", b"Tcp:", TCP_BASIC)
        self._netstat = _NamedCounters(proc / "net/netstat", b"TcpExt:", TCP_EXTENDED)
        self._sockstat = _open(proc / "net/sockstat")
        self._schedstat = _open(proc / "schedstat")
        self._descriptors = proc / "fd"
        self._ports = local_ports()
        self._pauses = _GcPauses()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self._switches = usage.ru_nivcsw
        self._cpu_s = time.process_time()
        self._waited_ns = self._run_queue_ns()

    def read(self) -> dict[str, float]:
        """Readings by series name. Amounts of this process cover the time since the call before."""
        readings: dict[str, float] = {}
        self._snmp.add_to(readings)
        self._netstat.add_to(readings)
        self._add_throttling(readings)
        self._add_sockets(readings)
        self._add_process(readings)
        self._pauses.add_to(readings)
        return readings

    def close(self) -> None:
        self._pauses.close()
        self._snmp.close()
        self._netstat.close()
        for fd in (*self._cgroups, self._sockstat, self._schedstat):
            if fd is not None:
                os.close(fd)
        self._cgroups, self._sockstat, self._schedstat = [], None, None

    def _add_throttling(self, readings: dict[str, float]) -> None:
        counted = [counts for fd in self._cgroups if (counts := read_throttling(_read(fd))) is not None]
        if counted:
            readings["client.cgroup_periods_total"] = float(sum(periods for periods, _, _ in counted))
            readings["client.cgroup_throttled_periods_total"] = float(sum(held for _, held, _ in counted))
            readings["client.cgroup_throttled_s_total"] = sum(held_ns for _, _, held_ns in counted) / NS_PER_S

    def _add_sockets(self, readings: dict[str, float]) -> None:
        if self._sockstat is None:
            return
        for line in _read(self._sockstat).splitlines():
            if line.startswith(b"TCP:"):
                words = line.split()
                values = dict(zip(words[1::2], words[2::2], strict=False))
                with contextlib.suppress(KeyError, ValueError):
                    readings["client.tcp_sockets"] = float(values[b"inuse"])
                    readings["client.tcp_time_wait_sockets"] = float(values[b"tw"])
        if self._ports is not None:
            readings["client.ports_available"] = float(self._ports)

    def _add_process(self, readings: dict[str, float]) -> None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        readings["client.preemptions"] = float(usage.ru_nivcsw - self._switches)
        self._switches = usage.ru_nivcsw
        cpu_s = time.process_time()
        readings["client.worker_cpu_s"] = cpu_s - self._cpu_s
        self._cpu_s = cpu_s
        waited_ns = self._run_queue_ns()
        if waited_ns is not None and self._waited_ns is not None:
            readings["client.run_queue_wait_s"] = (waited_ns - self._waited_ns) / NS_PER_S
        self._waited_ns = waited_ns
        if (files := _open_files(self._descriptors)) is not None:
            readings["client.open_files"] = float(files)
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:
            readings["client.open_files_limit"] = float(soft)

    def _run_queue_ns(self) -> int | None:
        """Time that the main thread was ready to run and waited for a core; None where the kernel does not count it."""
        if self._schedstat is None:
            return None
        words = _read(self._schedstat).split()
        return int(words[1]) if len(words) > 1 else None


class _NamedCounters:
    """A file of line pairs, names above values, as /proc/net/snmp. The places of the names are looked up once."""

    def __init__(self, path: Path, prefix: bytes, wanted: dict[bytes, str]) -> None:
        self._fd = _open(path)
        self._prefix = prefix
        self._places: list[tuple[int, str]] = []
        lines = self._lines()
        if len(lines) >= 2:
            names = lines[0].split()
            self._places = [(names.index(name), series) for name, series in wanted.items() if name in names]

    def _lines(self) -> list[bytes]:
        if self._fd is None:
            return []
        return [line for line in _read(self._fd).splitlines() if line.startswith(self._prefix)]

    def add_to(self, readings: dict[str, float]) -> None:
        lines = self._lines()
        if len(lines) >= 2:
            values = lines[1].split()
            for place, series in self._places:
                if place < len(values):
                    readings[series] = float(values[place])

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class _GcPauses:
    """Counts the runs of the garbage collector and how long they stopped the process."""

    def __init__(self) -> None:
        self._began_ns: int | None = None
        self._runs = 0
        self._total_ns = 0
        self._longest_ns = 0
        gc.callbacks.append(self._on_gc)

    def _on_gc(self, phase: str, info: dict[str, int]) -> None:
        now_ns = time.monotonic_ns()
        if phase == "start":
            self._began_ns = now_ns
        elif self._began_ns is not None:
            took_ns = now_ns - self._began_ns
            self._runs += 1
            self._total_ns += took_ns
            self._longest_ns = max(self._longest_ns, took_ns)
            self._began_ns = None

    def add_to(self, readings: dict[str, float]) -> None:
        readings["client.gc_runs"] = float(self._runs)
        readings["client.gc_pause_s"] = self._total_ns / NS_PER_S
        readings["client.gc_pause_max_s"] = self._longest_ns / NS_PER_S
        self._runs = self._total_ns = self._longest_ns = 0

    def close(self) -> None:
        with contextlib.suppress(ValueError):  # closed before
            gc.callbacks.remove(self._on_gc)


def local_ports(path: Path = Path("/proc/sys/net/ipv4/ip_local_port_range")) -> int | None:
    """Local ports for outgoing connections to one address and port of the service; None where it is not told."""
    try:
        first, last = path.read_text(encoding="ascii").split()
        return int(last) - int(first) + 1
    except (OSError, ValueError):
        return None


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _read(fd: int) -> bytes:
    try:
        return os.pread(fd, READ_BYTES, 0)
    except OSError:  # the group or namespace is gone
        return b""


def _open_files(descriptors: Path) -> int | None:
    """Open descriptors of this process. Since Linux 6.2 the size of /proc/self/fd; counting them takes milliseconds
    with thousands of connections. Before that the lowest free number, which the kernel hands out first, stands for it:
    it is exact unless descriptors below it were closed just now."""
    with contextlib.suppress(OSError):
        if size := descriptors.stat().st_size:
            return size
        fd = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        os.close(fd)
        return fd
    return None
