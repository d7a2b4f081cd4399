"""What its control groups grant a process of the CPU: quota, and how often it was held back by it.

A quota counts for a group and everything below it, and each level keeps its own count of periods in which it was held
back. So all levels from the process up to the mount are read. In a container the kernel may name a path that is not
mounted there; then the mount itself is the container's group.
"""

import contextlib
import os
from pathlib import Path

NS_PER_US = 1000
CGROUP_MOUNT = Path("/sys/fs/cgroup")
V1_CONTROLLERS = ("cpu", "cpu,cpuacct", "cpuacct,cpu")
"""Names of the directory in which version 1 mounts the CPU controller."""


def cpu_groups(proc: Path = Path("/proc/self"), mount: Path = CGROUP_MOUNT) -> list[Path]:
    """Directories of the CPU groups this process is in, innermost first. Empty where there are no control groups."""
    try:
        lines = (proc / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found: list[Path] = []
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            found += _levels(mount, path) + _levels(mount / "unified", path)
        elif "cpu" in controllers.split(","):
            for name in V1_CONTROLLERS:
                found += _levels(mount / name, path)
    unique: dict[Path, Path] = {}
    for group in found:
        unique.setdefault(group.resolve(), group)  # "cpu" is often a link to "cpu,cpuacct"
    return [group for group in unique.values() if (group / "cpu.stat").exists()]


def memory_group(proc: Path = Path("/proc/self"), mount: Path = CGROUP_MOUNT) -> Path | None:
    """The innermost group that counts this process's memory; None where there is none, or only the machine's root."""
    try:
        lines = (proc / "cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        roots = (mount, mount / "unified") if controllers == "" else (mount / "memory",)
        if controllers and "memory" not in controllers.split(","):
            continue
        for level in (level for root in roots for level in _levels(root, path)):
            if any((level / name).exists() for name in ("memory.current", "memory.usage_in_bytes")):
                return level
    return None


def _levels(mount: Path, path: str) -> list[Path]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    levels = [mount.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)]
    return [level for level in levels if level.is_dir()]


def quota_cores(groups: list[Path]) -> float | None:
    """Cores that the tightest quota allows; None when no group has one."""
    quotas = [quota for group in groups if (quota := _quota_of(group)) is not None]
    return min(quotas, default=None)


def _quota_of(group: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        quota, _, period = (group / "cpu.max").read_text(encoding="ascii").strip().partition(" ")
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota_us = int((group / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        return None if quota_us <= 0 else quota_us / int((group / "cpu.cfs_period_us").read_text(encoding="ascii"))
    return None


def usable_cores(groups: list[Path] | None = None) -> float:
    """Cores that this process may use: its CPU affinity, and less where a quota allows less."""
    cores = float(len(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else float(os.cpu_count() or 1)
    quota = quota_cores(cpu_groups() if groups is None else groups)
    return cores if quota is None else min(cores, quota)


def read_throttling(stat: bytes) -> tuple[int, int, int] | None:
    """(periods, periods held back, nanoseconds held back) of a cpu.stat file; None when it does not count them.

    Version 2 counts microseconds as throttled_usec, version 1 nanoseconds as throttled_time.
    """
    values: dict[bytes, int] = {}
    for line in stat.splitlines():
        name, _, value = line.partition(b" ")
        if value.isdigit():
            values[name] = int(value)
    if b"nr_throttled" not in values:
        return None
    held_ns = values.get(b"throttled_time", values.get(b"throttled_usec", 0) * NS_PER_US)
    return values.get(b"nr_periods", 0), values[b"nr_throttled"], held_ns
