"""CPU of the machine: shares by mode and core, tasks that want to run, switches, interrupts.

Sources: /proc/stat, /proc/loadavg (proc(5)) and /proc/schedstat (Documentation/scheduler/sched-stats.rst).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pinchpoint.clock import NS_PER_S
from pinchpoint.telemetry.config import Reading, own
from pinchpoint.telemetry.kept_file import KeptFile, label

MAX_CORES_TOLD = 128
"""Cores whose own share is told, the busiest first. Our bound, for the size of the run directory."""
STAT_COUNTERS = {
    b"ctxt": "host.context_switches_total",
    b"intr": "host.interrupts_total",
    b"processes": "host.forks_total",
    b"procs_running": "host.runnable",
    b"procs_blocked": "host.blocked",
}
RUN_FIELD, WAIT_FIELD = 7, 8
"""Places in a `cpuN` line of /proc/schedstat: nanoseconds tasks ran, and waited, on that core."""
MODES = {
    "host.cpu_user_ratio": ("user", "nice"),
    "host.cpu_system_ratio": ("system",),
    "host.cpu_iowait_ratio": ("iowait",),
    "host.cpu_irq_ratio": ("irq",),
    "host.cpu_softirq_ratio": ("softirq",),
}


class CpuTimes(NamedTuple):
    """Time of one core by mode since the machine started, in clock ticks. `guest` is in `user` as well."""

    user: int
    nice: int
    system: int
    idle: int
    iowait: int
    irq: int
    softirq: int
    steal: int
    guest: int
    guest_nice: int


class CoreShares(NamedTuple):
    """What one core did between two readings. Shares of its own time; `total` weighs cores against each other."""

    core: int
    total: float
    busy: float
    modes: dict[str, float]


class Cpu:
    def __init__(self, proc: Path) -> None:
        self._stat = KeptFile(proc / "stat")
        self._loadavg = KeptFile(proc / "loadavg")
        self._schedstat = KeptFile(proc / "schedstat")
        self._before, _ = parse_stat(self._stat.read())

    def read(self, now_ns: int) -> list[Reading]:
        cores, readings = parse_stat(self._stat.read())
        if self._before.keys() == cores.keys():
            shares = core_shares(list(self._before.values()), list(cores.values()), list(cores))
            readings += whole_machine(shares) + by_mode(shares) + by_core(shares)
        self._before = cores
        if cores:
            readings.append(own("host.cpu_cores", float(len(cores))))
        load = self._loadavg.read().split(maxsplit=1)
        if load:
            readings.append(own("host.load1", float(load[0])))
        return readings + parse_schedstat(self._schedstat.read())


def parse_stat(text: bytes) -> tuple[dict[int, CpuTimes], list[Reading]]:
    """Times by number of the core, and the machine's counters, of /proc/stat."""
    cores: dict[int, CpuTimes] = {}
    readings: list[Reading] = []
    for line in text.splitlines():
        if line.startswith(b"cpu"):
            name, *values = line.split()
            if len(name) > len(b"cpu"):
                # Kernels before 2.6.33 lack the last ones.
                ticks = [int(value) for value in values[: len(CpuTimes._fields)]]
                cores[int(name[len(b"cpu") :])] = CpuTimes(*ticks, *[0] * (len(CpuTimes._fields) - len(ticks)))
            continue
        words = line.split(maxsplit=2)
        if words and words[0] in STAT_COUNTERS:
            readings.append(own(STAT_COUNTERS[words[0]], float(words[1])))
    return cores, readings


def parse_schedstat(text: bytes) -> list[Reading]:
    """Time tasks ran and waited for a core, over all cores. Empty on kernels that do not count it."""
    ran_ns = waited_ns = 0
    counted = False
    for line in text.splitlines():
        words = line.split()
        if words and words[0].startswith(b"cpu") and len(words) > WAIT_FIELD:
            ran_ns += int(words[RUN_FIELD])
            waited_ns += int(words[WAIT_FIELD])
            counted = True
    if not counted:
        return []
    return [own("host.run_s_total", ran_ns / NS_PER_S), own("host.run_queue_wait_s_total", waited_ns / NS_PER_S)]


def core_shares(before: Sequence[Any], after: Sequence[Any], cores: Sequence[int]) -> list[CoreShares]:
    """Shares of each core between two readings of named tuples of modes, whatever modes they have.

    Cores on which no clock tick went by are left out; so is everything when cores came or went.
    """
    if len(before) != len(after):
        return []
    shares: list[CoreShares] = []
    for core, old, new in zip(cores, before, after, strict=True):
        spent = {mode: max(0.0, now - then) for mode, then, now in zip(new._fields, old, new, strict=True)}
        # Linux counts guest time in user time as well; it must not be counted twice.
        total = sum(spent.values()) - spent.get("guest", 0.0) - spent.get("guest_nice", 0.0)
        if total <= 0:
            continue
        idle = spent.get("idle", 0.0) + spent.get("iowait", 0.0) + spent.get("steal", 0.0)
        modes = {mode: value / total for mode, value in spent.items()}
        shares.append(CoreShares(core, total, max(0.0, total - idle) / total, modes))
    return shares


def cpu_readings(before: Sequence[Any], after: Sequence[Any]) -> list[Reading]:
    """Busy and stolen shares between two readings of every core; empty when no tick went by or cores changed."""
    return whole_machine(core_shares(before, after, range(len(after))))


def whole_machine(shares: Sequence[CoreShares]) -> list[Reading]:
    if not shares:
        return []
    total = sum(share.total for share in shares)
    return [
        own("host.cpu_used_ratio", sum(share.busy * share.total for share in shares) / total),
        own("host.cpu_core_max_ratio", max(share.busy for share in shares)),
        own("host.cpu_steal_ratio", _mean(shares, ("steal",), total)),
    ]


def by_mode(shares: Sequence[CoreShares]) -> list[Reading]:
    """Shares of all cores by mode, and the most soft interrupts on one core. Modes the system lacks are left out."""
    if not shares:
        return []
    total = sum(share.total for share in shares)
    readings = [
        own(series, _mean(shares, modes, total)) for series, modes in MODES.items() if modes[0] in shares[0].modes
    ]
    softirq = [share.modes["softirq"] for share in shares if "softirq" in share.modes]
    return [*readings, own("host.cpu_core_softirq_max_ratio", max(softirq))] if softirq else readings


def by_core(shares: Sequence[CoreShares]) -> list[Reading]:
    told = shares
    if len(shares) > MAX_CORES_TOLD:
        told = sorted(shares, key=lambda share: -share.busy)[:MAX_CORES_TOLD]
    return [own("host.core_used_ratio", share.busy, label("cpu", str(share.core))) for share in told]


def _mean(shares: Sequence[CoreShares], modes: Sequence[str], total: float) -> float:
    return sum(sum(share.modes.get(mode, 0.0) for mode in modes) * share.total for share in shares) / total
