"""What /proc tells of one process and its threads (proc(5)). Values as the kernel counts them; no rates.

For what changes with every reading. Files of a process that ended, or that are not ours to see, read as None.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pinchpoint.clock import NS_PER_S
from pinchpoint.telemetry.kept_file import read_once

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
BYTES_PER_KB = 1024
DEAD = (b"Z", b"X", b"x")
"""States of a process that has ended and waits for its parent to take note."""
STATE, PARENT, MAJOR_FAULTS, USER, SYSTEM, THREADS, STARTED, RSS = 0, 1, 9, 11, 12, 17, 19, 21
"""Places behind the name in /proc/PID/stat."""


class ProcessStat(NamedTuple):
    """One reading of /proc/PID/stat."""

    pid: int
    name: str
    """At most 15 characters; chosen by the process itself."""
    parent: int
    started_ticks: int
    """Since the machine started; tells two processes of one number apart."""
    cpu_s: float
    """User and system, all threads, those that ended too. In steps of a clock tick, 10 ms."""
    threads: int
    rss_bytes: int
    major_faults: int


class ThreadTimes(NamedTuple):
    """Of one thread since it began. Not `exact`: CPU comes in steps of a clock tick, and waiting is unknown."""

    cpu_s: float
    waited_s: float
    """Ready, and waiting for a core."""
    exact: bool


def process_stat(proc: str, pid: int) -> ProcessStat | None:
    """None when the process has ended."""
    parsed = _split_stat(read_once(f"{proc}/{pid}/stat"))
    if parsed is None:
        return None
    name, words = parsed
    if words[STATE] in DEAD:
        return None
    return ProcessStat(
        pid,
        name,
        int(words[PARENT]),
        int(words[STARTED]),
        (int(words[USER]) + int(words[SYSTEM])) / TICKS_PER_S,
        int(words[THREADS]),
        int(words[RSS]) * PAGE_BYTES,
        int(words[MAJOR_FAULTS]),
    )


def thread_ids(proc: str, pid: int, most: int) -> list[str]:
    """The first `most` threads, oldest first."""
    try:
        return os.listdir(f"{proc}/{pid}/task")[:most]  # noqa: PTH208 - names are wanted
    except OSError:
        return []


def thread_times(proc: str, pid: int, tid: str) -> ThreadTimes | None:
    words = read_once(f"{proc}/{pid}/task/{tid}/schedstat").split()
    if len(words) == 3 and words != [b"0", b"0", b"0"]:  # all zero: the kernel does not count
        return ThreadTimes(int(words[0]) / NS_PER_S, int(words[1]) / NS_PER_S, True)
    parsed = _split_stat(read_once(f"{proc}/{pid}/task/{tid}/stat"))
    if parsed is None:
        return None
    return ThreadTimes((int(parsed[1][USER]) + int(parsed[1][SYSTEM])) / TICKS_PER_S, 0.0, False)


def thread_name(proc: str, pid: int, tid: str) -> str:
    return read_once(f"{proc}/{pid}/task/{tid}/comm").decode("utf-8", "replace").rstrip("\n")


def switches(proc: str, pid: int) -> tuple[int, int] | None:
    """Voluntary and involuntary context switches of the main thread."""
    fields = _fields(read_once(f"{proc}/{pid}/status"), (b"voluntary_ctxt_switches", b"nonvoluntary_ctxt_switches"))
    return None if fields is None else (fields[0], fields[1])


def disk_bytes(proc: str, pid: int) -> tuple[int, int] | None:
    """Read from and written to disks, page cache aside. None for processes of other users."""
    fields = _fields(read_once(f"{proc}/{pid}/io"), (b"read_bytes", b"write_bytes"))
    return None if fields is None else (fields[0], fields[1])


def pss_bytes(proc: str, pid: int) -> int | None:
    """Memory with shared pages divided among those who share them. Walks the page table: not for every reading."""
    fields = _fields(read_once(f"{proc}/{pid}/smaps_rollup"), (b"Pss",))
    return None if fields is None else fields[0] * BYTES_PER_KB


def open_files(proc: str, pid: int) -> int | None:
    """Since Linux 6.2 the size of the directory; before that its entries are counted. None for other users'."""
    directory = Path(proc, str(pid), "fd")
    try:
        return directory.stat().st_size or len(os.listdir(directory))  # noqa: PTH208 - only their number is wanted
    except OSError:
        return None


def open_files_limit(proc: str, pid: int) -> int | None:
    """Soft limit. None when there is none."""
    for line in read_once(f"{proc}/{pid}/limits").splitlines():
        if line.startswith(b"Max open files"):
            soft = line.split()[3]
            return int(soft) if soft.isdigit() else None
    return None


def children(proc: str, pid: int) -> list[int] | None:
    """Processes begun by any thread of this one; None on kernels that do not list them."""
    found: list[int] = []
    listed = False
    for tid in thread_ids(proc, pid, most=1 << 16):
        path = f"{proc}/{pid}/task/{tid}/children"
        text = read_once(path)
        listed = listed or bool(text) or Path(path).exists()
        if not listed:
            return None
        found += [int(word) for word in text.split()]
    return found if listed else None


def children_by_parent(proc: str) -> dict[int, list[int]]:
    """From a walk over all processes of the machine."""
    found: dict[int, list[int]] = {}
    try:
        entries = os.listdir(proc)  # noqa: PTH208 - names are wanted
    except OSError:
        return found
    for entry in entries:
        if entry.isdigit() and (stat := process_stat(proc, int(entry))) is not None:
            found.setdefault(stat.parent, []).append(stat.pid)
    return found


def _split_stat(text: bytes) -> tuple[str, list[bytes]] | None:
    """Name, and what stands behind it. The name may hold blanks and brackets; its last bracket is the last of all."""
    head, bracket, rest = text.rpartition(b")")
    words = rest.split()
    if not bracket or len(words) <= RSS:
        return None
    return head.partition(b"(")[2].decode("utf-8", "replace"), words


def _fields(text: bytes, names: Iterable[bytes]) -> tuple[int, ...] | None:
    """Numbers of `name: number` lines; None when one of them is missing."""
    found: dict[bytes, int] = {}
    for line in text.splitlines():
        name, colon, rest = line.partition(b":")
        words = rest.split()
        if colon and words and words[0].isdigit():
            found[name] = int(words[0])
    try:
        return tuple(found[name] for name in names)
    except KeyError:
        return None
