"""What the control groups of a process grant it, and how often they held it back; versions 1 and 2.

Throttling is cheap to read and read every time; quota and memory are read rarely, because the kernel gathers the
statistics of a memory group from all cores for every reading.
"""

from pathlib import Path
from typing import Literal

from pinchpoint.cgroup import cpu_groups, memory_group, quota_cores, read_throttling
from pinchpoint.clock import NS_PER_S
from pinchpoint.telemetry.config import Reading, own
from pinchpoint.telemetry.kept_file import KeptFile, as_number, read_once

PERIOD_S = 5.0
UNLIMITED = 1 << 60
"""Version 1 says "no limit" with a number near 2^63."""
USED = ("memory.current", "memory.usage_in_bytes")
LIMIT = ("memory.max", "memory.limit_in_bytes")
RECLAIMABLE = (b"total_inactive_file", b"inactive_file")
"""Names in memory.stat of version 1 (with everything below) and of version 2."""


class Cgroups:
    """Readings named after `layer`. `process` is the /proc directory of a process in the groups."""

    def __init__(self, layer: Literal["host", "server"], process: Path, mount: Path) -> None:
        self._layer = layer
        self._groups = cpu_groups(process, mount)
        self._stats = [KeptFile(group / "cpu.stat") for group in self._groups]
        self._memory = memory_group(process, mount)
        self._rare: list[Reading] = []
        self._read_ns: int | None = None

    def read(self, now_ns: int) -> list[Reading]:
        if self._read_ns is None or now_ns - self._read_ns >= PERIOD_S * NS_PER_S:
            self._read_ns = now_ns
            self._rare = self._quota() + self._memory_readings()
        return self._throttling() + self._rare

    def _throttling(self) -> list[Reading]:
        counted = [counts for file in self._stats if (counts := read_throttling(file.read())) is not None]
        if not counted:
            return []
        held_ns = sum(held for _, _, held in counted)
        return [
            own(f"{self._layer}.cgroup_periods_total", float(sum(periods for periods, _, _ in counted))),
            own(f"{self._layer}.cgroup_throttled_periods_total", float(sum(held for _, held, _ in counted))),
            own(f"{self._layer}.cgroup_throttled_s_total", held_ns / NS_PER_S),
        ]

    def _quota(self) -> list[Reading]:
        quota = quota_cores(self._groups)
        return [] if quota is None else [own(f"{self._layer}.cgroup_quota_cores", quota)]

    def _memory_readings(self) -> list[Reading]:
        if self._memory is None:
            return []
        readings: list[Reading] = []
        used, limit = _first(self._memory, USED), _first(self._memory, LIMIT)
        if used is not None:
            held = max(0.0, used - reclaimable_bytes(read_once(self._memory / "memory.stat")))
            readings.append(own(f"{self._layer}.cgroup_memory_bytes", held))
        if limit is not None and limit < UNLIMITED:
            readings.append(own(f"{self._layer}.cgroup_memory_limit_bytes", limit))
        return readings


def reclaimable_bytes(stat: bytes) -> float:
    """Page cache of a memory group that nobody used lately: given up before anything is killed. 0 when not told."""
    found: dict[bytes, float] = {}
    for line in stat.splitlines():
        name, _, value = line.partition(b" ")
        if name in RECLAIMABLE:
            found[name] = float(value)
    return next((found[name] for name in RECLAIMABLE if name in found), 0.0)


def _first(group: Path, names: tuple[str, ...]) -> float | None:
    return next((number for name in names if (number := as_number(read_once(group / name))) is not None), None)
