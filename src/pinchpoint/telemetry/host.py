"""Source `host`: the machine the collector runs on. It is the service's machine only when the target is local.

What the machine does not offer (PSI on old kernels, TCP counters outside Linux) gives no samples: absence is not zero.
Ratios compare with the reading before, so the first reading has none.
"""

import os
from pathlib import Path
from typing import Any

import psutil

from pinchpoint.catalog import format_labels
from pinchpoint.clock import monotonic_ns
from pinchpoint.telemetry.config import Reading, own

US_PER_S = 1e6
PSI_RESOURCES = ("cpu", "memory", "io")


class Host:
    name = "host"

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._cores: list[Any] = psutil.cpu_times(percpu=True)

    def read(self) -> tuple[int, list[Reading]]:
        cores: list[Any] = psutil.cpu_times(percpu=True)
        readings = cpu_readings(self._cores, cores)
        self._cores = cores
        memory = psutil.virtual_memory()
        readings += [
            own("host.cpu_cores", float(len(cores))),
            own("host.load1", os.getloadavg()[0]),
            own("host.memory_available_bytes", float(memory.available)),
            own("host.memory_used_ratio", 1.0 - memory.available / memory.total),
        ]
        for nic, counters in psutil.net_io_counters(pernic=True).items():
            if counters.bytes_recv or counters.bytes_sent:
                label = format_labels({"nic": nic})
                readings.append(own("host.net_rx_bytes_total", float(counters.bytes_recv), label))
                readings.append(own("host.net_tx_bytes_total", float(counters.bytes_sent), label))
        readings += self._tcp() + self._pressure()
        return monotonic_ns(), readings

    def _tcp(self) -> list[Reading]:
        readings: list[Reading] = []
        for file, protocol, field, series in (
            ("net/snmp", "Tcp:", "RetransSegs", "host.tcp_retransmits_total"),
            ("net/netstat", "TcpExt:", "ListenOverflows", "host.listen_overflows_total"),
        ):
            value = named_counter(_text(self._proc / file), protocol, field)
            if value is not None:
                readings.append(own(series, value))
        return readings

    def _pressure(self) -> list[Reading]:
        readings: list[Reading] = []
        for resource in PSI_RESOURCES:
            stalled_s = some_stall_s(_text(self._proc / "pressure" / resource))
            if stalled_s is not None:
                readings.append(own(f"host.psi_{resource}_some_s_total", stalled_s))
        return readings


def cpu_readings(before: list[Any], after: list[Any]) -> list[Reading]:
    """Busy shares between two `psutil.cpu_times(percpu=True)`; empty when no clock tick went by or cores changed."""
    if len(before) != len(after):
        return []
    busy: list[float] = []
    total_all = busy_all = steal_all = 0.0
    for old, new in zip(before, after, strict=True):
        spent = {field: max(0.0, getattr(new, field) - getattr(old, field)) for field in new._fields}
        # Linux counts guest time in user time as well; it must not be counted twice.
        total = sum(spent.values()) - spent.get("guest", 0.0) - spent.get("guest_nice", 0.0)
        if total <= 0:
            continue
        steal = spent.get("steal", 0.0)
        used = max(0.0, total - spent.get("idle", 0.0) - spent.get("iowait", 0.0) - steal)
        busy.append(used / total)
        total_all += total
        busy_all += used
        steal_all += steal
    if not busy:
        return []
    return [
        own("host.cpu_used_ratio", busy_all / total_all),
        own("host.cpu_core_max_ratio", max(busy)),
        own("host.cpu_steal_ratio", steal_all / total_all),
    ]


def named_counter(text: str | None, protocol: str, field: str) -> float | None:
    """A field of /proc/net/snmp or netstat: a line of names, then a line of values, each starting with the protocol."""
    lines = [line.split() for line in (text or "").splitlines() if line.startswith(protocol + " ")]
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        if field in names and len(names) == len(values):
            return float(values[names.index(field)])
    return None


def some_stall_s(text: str | None) -> float | None:
    """The `some ... total=` of a /proc/pressure file, in seconds; the kernel counts microseconds."""
    for line in (text or "").splitlines():
        if line.startswith("some "):
            return float(line.rpartition("total=")[2]) / US_PER_S
    return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:  # absent on this kernel, switched off (EOPNOTSUPP) or hidden
        return None
