"""Memory of the machine: what is free, what waits for a disk, swapping, faults (proc(5): meminfo, vmstat)."""

from pathlib import Path

from pinchpoint.telemetry.config import Reading, own
from pinchpoint.telemetry.kept_file import KeptFile

BYTES_PER_KB = 1024
"""/proc/meminfo says kB and means KiB."""
AMOUNTS = {
    b"MemTotal": "host.memory_total_bytes",
    b"MemFree": "host.memory_free_bytes",
    b"MemAvailable": "host.memory_available_bytes",
    b"Cached": "host.memory_cached_bytes",
    b"Dirty": "host.memory_dirty_bytes",
    b"Writeback": "host.memory_writeback_bytes",
    b"Slab": "host.memory_slab_bytes",
    b"SwapTotal": "host.swap_total_bytes",
    b"SwapFree": "host.swap_free_bytes",
}
HUGE_PAGES = {b"HugePages_Total": "host.hugepages", b"HugePages_Free": "host.hugepages_free"}
EVENTS = {
    b"pswpin": "host.swap_in_pages_total",
    b"pswpout": "host.swap_out_pages_total",
    b"pgfault": "host.page_faults_total",
    b"pgmajfault": "host.major_faults_total",
    b"oom_kill": "host.oom_kills_total",
    b"numa_foreign": "host.numa_foreign_total",
}


class Memory:
    def __init__(self, proc: Path) -> None:
        self._meminfo = KeptFile(proc / "meminfo")
        self._vmstat = KeptFile(proc / "vmstat")

    def read(self, now_ns: int) -> list[Reading]:
        return parse_meminfo(self._meminfo.read()) + parse_vmstat(self._vmstat.read())


def parse_meminfo(text: bytes) -> list[Reading]:
    readings: list[Reading] = []
    found: dict[bytes, int] = {}
    for line in text.splitlines():
        name, _, rest = line.partition(b":")
        if name in AMOUNTS:
            found[name] = int(rest.split()[0]) * BYTES_PER_KB
            readings.append(own(AMOUNTS[name], float(found[name])))
        elif name in HUGE_PAGES:
            readings.append(own(HUGE_PAGES[name], float(rest)))
    if found.get(b"MemTotal") and b"MemAvailable" in found:
        readings.append(own("host.memory_used_ratio", 1.0 - found[b"MemAvailable"] / found[b"MemTotal"]))
    return readings


def parse_vmstat(text: bytes) -> list[Reading]:
    readings: list[Reading] = []
    for line in text.splitlines():
        name, _, value = line.partition(b" ")
        if name in EVENTS:
            readings.append(own(EVENTS[name], float(value)))
    return readings
