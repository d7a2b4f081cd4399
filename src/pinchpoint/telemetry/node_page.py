"""From a host exporter's counters to the shares that the local host source tells, under the same names.

node_exporter counts CPU seconds by core and mode; the host of this machine is told as shares since the reading before.
Readers know one name per quantity, so the shares of a remote host are made here, with the arithmetic of the local one.
"""

from collections import namedtuple
from collections.abc import Iterable
from typing import Any

from pinchpoint.catalog import parse_labels
from pinchpoint.telemetry.config import Reading, own
from pinchpoint.telemetry.host.cpu import by_mode, core_shares, whole_machine

CPU_TIME = "host.cpu_s_total"
MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
"""Of node_exporter's label on Linux; other systems have fewer. The time of guests is in user time as well."""
AVAILABLE, TOTAL, USED = "host.memory_available_bytes", "host.memory_total_bytes", "host.memory_used_ratio"


class NodeShares:
    """Keeps the reading before. One per page; not for use from two threads."""

    def __init__(self, labels: str = "") -> None:
        """labels: of what is told, formatted; a remote host's name."""
        self._labels = labels
        self._before: dict[str, dict[str, float]] = {}
        self._places: dict[str, tuple[str, str]] = {}
        """Core and mode by formatted labels: the same text comes with every page."""

    def read(self, readings: Iterable[Reading]) -> list[Reading]:
        """What the page's readings say of shares: nothing for pages without CPU time or memory.

        What the page tells itself, as the agent's does, is not told twice. The first page gives no shares of CPU, and
        neither does one on which cores came or went.
        """
        cores: dict[str, dict[str, float]] = {}
        memory: dict[str, float] = {}
        told: set[str | None] = set()
        for reading in readings:
            told.add(reading.series)
            if reading.series == CPU_TIME:
                core, mode = self._place(reading.labels)
                cores.setdefault(core, {})[mode] = reading.value
            elif reading.series in (AVAILABLE, TOTAL):
                memory[reading.series] = reading.value
        shares = self._cpu(cores)
        if memory.get(TOTAL) and AVAILABLE in memory:
            shares.append(own(USED, 1.0 - memory[AVAILABLE] / memory[TOTAL]))
        return [share._replace(labels=self._labels) for share in shares if share.series not in told]

    def _place(self, labels: str) -> tuple[str, str]:
        place = self._places.get(labels)
        if place is None:
            parsed = parse_labels(labels)
            place = self._places[labels] = parsed.get("cpu", ""), parsed.get("mode", "")
        return place

    def _cpu(self, cores: dict[str, dict[str, float]]) -> list[Reading]:
        if not cores:
            return []
        before, self._before = self._before, cores
        told = [own("host.cpu_cores", float(len(cores)))]
        modes = [mode for mode in MODES if all(mode in core for core in cores.values())]
        if before.keys() != cores.keys() or not all(mode in core for core in before.values() for mode in modes):
            return told
        kind: Any = namedtuple("CpuTimes", modes)
        now = [kind(*(cores[core][mode] for mode in modes)) for core in cores]
        then = [kind(*(before[core][mode] for mode in modes)) for core in cores]
        shares = core_shares(then, now, range(len(now)))
        return told + whole_machine(shares) + by_mode(shares)
