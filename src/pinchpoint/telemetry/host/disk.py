"""Disks of the machine (Documentation/admin-guide/iostats.rst): whole disks only, and only those ever used."""

import os
from pathlib import Path

from pinchpoint.clock import NS_PER_S
from pinchpoint.telemetry.config import Reading, own
from pinchpoint.telemetry.kept_file import KeptFile, label

SECTOR_BYTES = 512
"""The unit of /proc/diskstats, whatever the disk's own sector is."""
MS_PER_S = 1e3
LOOK_AGAIN_S = 30.0
"""How often new disks are looked for."""
FIELDS = (
    (3, "host.disk_reads_total", 1.0),
    (5, "host.disk_read_bytes_total", SECTOR_BYTES),
    (6, "host.disk_read_s_total", 1 / MS_PER_S),
    (7, "host.disk_writes_total", 1.0),
    (9, "host.disk_written_bytes_total", SECTOR_BYTES),
    (10, "host.disk_write_s_total", 1 / MS_PER_S),
    (12, "host.disk_busy_s_total", 1 / MS_PER_S),
    (13, "host.disk_queue_s_total", 1 / MS_PER_S),
)
"""Place in a line, series, and what turns the kernel's unit into ours."""
NAME, READS, WRITES = 2, 3, 7


class Disks:
    def __init__(self, proc: Path, sys: Path) -> None:
        self._diskstats = KeptFile(proc / "diskstats")
        self._block = sys / "block"
        self._disks: frozenset[str] | None = None
        self._looked_ns: int | None = None

    def read(self, now_ns: int) -> list[Reading]:
        if self._looked_ns is None or now_ns - self._looked_ns >= LOOK_AGAIN_S * NS_PER_S:
            self._looked_ns = now_ns
            self._disks = whole_disks(self._block)
        return parse_diskstats(self._diskstats.read(), self._disks)


def whole_disks(block: Path) -> frozenset[str] | None:
    """Names of disks, partitions left out; None when the system does not tell."""
    try:
        return frozenset(os.listdir(block))  # noqa: PTH208 - names are wanted
    except OSError:
        return None


def parse_diskstats(text: bytes, disks: frozenset[str] | None) -> list[Reading]:
    """Readings of the given disks; of everything listed when `disks` is None, partitions included."""
    readings: list[Reading] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) <= FIELDS[-1][0] or words[READS] == b"0" == words[WRITES]:
            continue
        name = words[NAME].decode("utf-8", "replace")
        if disks is None or name in disks:
            disk = label("disk", name)
            readings += [own(series, float(words[place]) * scale, disk) for place, series, scale in FIELDS]
    return readings
