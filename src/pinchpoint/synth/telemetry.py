"""What collectors would have read off the lab's service: pages through the parser and catalogue of real ones.

Each replica shows the page of its engine, of a GPU exporter and of a host exporter; its processes and its host are
told in the words of the live collectors. With several replicas every reading carries which one it is of.
"""

from collections import namedtuple
from collections.abc import Iterable, Sequence
from typing import Any

from pinchpoint.catalog import format_labels, load_catalog, parse_labels
from pinchpoint.clock import NS_PER_S
from pinchpoint.lab.events import ReplicaState, ServiceState
from pinchpoint.lab.pages import dcgm, engine_page, node, npu
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.readings import HostReading, ProcessReading
from pinchpoint.rundir import PartWriter
from pinchpoint.synth.degrade import ENGINE, GPU, HOST, NODE, SERVER, Degrader
from pinchpoint.telemetry.config import Reading, event, own
from pinchpoint.telemetry.host import cpu_readings
from pinchpoint.telemetry.page import Page

EXPORTER_PERIOD_NS = NS_PER_S
"""Exporters of GPUs and hosts average over a second."""
NIC = "eth0"
LISTENER = "api"
"""Begins the names of the processes that listen."""


class Telemetry:
    """Writes what the state of the service shows, in the columns of model.SAMPLE_COLUMNS."""

    def __init__(self, samples: PartWriter, params: LabParams, degrader: Degrader) -> None:
        self._samples = samples
        self._params = params
        self._degrader = degrader
        self._catalog = load_catalog()
        self._pages: dict[tuple[str, int], Page] = {}
        self._before: dict[int, tuple[int, HostReading]] = {}
        self._labels: dict[tuple[str, int], str] = {}
        self._next_exporters_ns = 0

    @property
    def blind(self) -> bool:
        """Whether there is nobody who would read the service's state."""
        return self._degrader.blind

    def change(self, params: LabParams) -> None:
        self._params = params

    def take(self, t_ns: int, state: ServiceState) -> None:
        """One round of scrapes at t_ns."""
        exporters = t_ns >= self._next_exporters_ns
        if exporters:
            self._next_exporters_ns += EXPORTER_PERIOD_NS
        several = len(state.replicas) > 1
        for index, replica in enumerate(state.replicas):
            number = index if several else None
            self._scrape(t_ns, ENGINE, index, number, self._engine_text(t_ns, replica) if replica.up else None)
            self._machine(t_ns, index, number, replica.host)
            if exporters:
                if replica.gpus and self._degrader.sees(GPU):
                    self._scrape(t_ns, GPU, index, number, self._gpu_text(replica))
                if self._degrader.sees(NODE):
                    self._scrape(t_ns, NODE, index, number, node.page(replica.host, now_s=t_ns / NS_PER_S))

    def note(self, t_ns: int, source: str, readings: Iterable[Reading]) -> None:
        """Readings of the client's side."""
        self._samples.append((t_ns, 0, source, r.raw, r.series, r.labels, r.value) for r in readings)

    def _engine_text(self, t_ns: int, replica: ReplicaState) -> str | None:
        if not replica.engines or not self._degrader.sees(ENGINE):
            return None
        listeners = [p for p in replica.host.processes if p.name.startswith(LISTENER)]
        return engine_page(
            self._params.dialect,
            replica.engines,
            listeners[0] if len(listeners) == 1 else None,
            age="old" if self._degrader.old_names else "current",
            now_s=t_ns / NS_PER_S,
        )

    def _gpu_text(self, replica: ReplicaState) -> str:
        exporter = npu if self._params.gpu.startswith("910") else dcgm
        return exporter.page(replica.gpus, self._params.gpu)

    def _scrape(self, t_ns: int, source: str, index: int, replica: int | None, text: str | None) -> None:
        if not self._degrader.sees(source):
            return
        if text is None or self._degrader.loses():
            reason = "refused" if text is None else "timeout"
            self._put(t_ns, source, [event("scrape_failed", f"reason={reason}")], replica)
            return
        page = self._pages.get((source, index))
        if page is None:
            page = self._pages[source, index] = Page("", source, self._catalog)
        readings: Sequence[Reading] = page.read_page(text.encode())
        if source == ENGINE:
            readings = self._degrader.counters(f"{source}-{index}", t_ns, readings, self._catalog)
        self._put(t_ns, source, readings, replica)

    def _machine(self, t_ns: int, index: int, replica: int | None, host: HostReading) -> None:
        before = self._before.get(index)
        self._before[index] = (t_ns, host)
        if self._degrader.sees(HOST):
            self._put(t_ns, HOST, host_readings(before[1] if before else None, host), replica)
        if self._degrader.sees(SERVER):
            gap_s = (t_ns - before[0]) / NS_PER_S if before else 0.0
            earlier = before[1].processes if before else []
            self._put(t_ns, SERVER, server_readings(earlier, host.processes, gap_s), replica)

    def _put(self, t_ns: int, source: str, readings: Iterable[Reading], replica: int | None) -> None:
        stamp_ns = self._degrader.stamped_ns(t_ns)
        if replica is None:
            self._samples.append((stamp_ns, 0, source, r.raw, r.series, r.labels, r.value) for r in readings)
            return
        self._samples.append(
            (stamp_ns, 0, source, r.raw, r.series, self._of_replica(r.labels, replica), r.value) for r in readings
        )

    def _of_replica(self, labels: str, replica: int) -> str:
        known = self._labels.get((labels, replica))
        if known is None:
            known = format_labels({**parse_labels(labels), "replica": str(replica)})
            self._labels[labels, replica] = known
        return known


def host_readings(before: HostReading | None, host: HostReading) -> list[Reading]:
    """What telemetry.host would tell of this machine. before: the reading before, for what is told as a share."""
    readings: list[Reading] = []
    if before is not None:
        readings += cpu_readings(_times(before), _times(host))
    nic = format_labels({"nic": NIC})
    return [
        *readings,
        own("host.cpu_cores", float(host.cores)),
        own("host.load1", host.load1),
        own("host.memory_available_bytes", host.memory_available_bytes),
        own("host.memory_used_ratio", 1.0 - host.memory_available_bytes / host.memory_total_bytes),
        own("host.net_rx_bytes_total", host.net_rx_bytes_total, nic),
        own("host.net_tx_bytes_total", host.net_tx_bytes_total, nic),
        own("host.tcp_retransmits_total", host.retransmits_total),
        own("host.listen_overflows_total", float(host.listen_overflows_total)),
        own("host.psi_cpu_some_s_total", host.cpu_pressure_s_total),
        own("host.psi_memory_some_s_total", host.memory_pressure_s_total),
        own("host.psi_io_some_s_total", host.io_pressure_s_total),
    ]


def _times(host: HostReading) -> list[Any]:
    """Per core, in the shape of psutil.cpu_times(percpu=True)."""
    if not host.cpu_s_total:
        return []
    modes = tuple(host.cpu_s_total[0])
    kind = namedtuple("CpuTimes", modes)  # pyright: ignore[reportUntypedNamedTuple]
    return [kind(*(core[mode] for mode in modes)) for core in host.cpu_s_total]


def server_readings(before: Sequence[ProcessReading], now: Sequence[ProcessReading], gap_s: float) -> list[Reading]:
    """What telemetry.process would tell of the service's processes. A process that came in between adds no CPU."""
    earlier = {process.name: process for process in before}
    readings: list[Reading] = []
    known = [(earlier[p.name], p) for p in now if p.name in earlier and earlier[p.name].started_s == p.started_s]
    if known and gap_s > 0:
        cores = {p.name: max(0.0, p.cpu_s_total - b.cpu_s_total) / gap_s for b, p in known}
        threads = [max(0.0, p.thread_cpu_max_s_total - b.thread_cpu_max_s_total) / gap_s for b, p in known]
        readings.append(own("server.cpu_cores", sum(cores.values())))
        listening = [value for name, value in cores.items() if name.startswith(LISTENER)]
        if listening:
            readings.append(own("server.listener_cpu_cores", max(listening)))
            listener_threads = [t for t, (_, p) in zip(threads, known, strict=True) if p.name.startswith(LISTENER)]
            readings.append(own("server.thread_cpu_max_cores", max(listener_threads)))
    listeners = [process for process in now if process.name.startswith(LISTENER)]
    if now:
        readings += [
            own("server.rss_bytes", sum(process.rss_bytes for process in now)),
            own("server.threads", float(sum(process.threads for process in now))),
            own("server.processes", float(len(now))),
        ]
    if listeners:
        readings += [
            own("server.open_files", float(sum(process.open_fds for process in listeners))),
            own("server.open_files_limit", float(min(process.max_fds for process in listeners))),
        ]
    return readings
