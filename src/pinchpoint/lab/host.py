"""The machine of one replica: how long CPU work takes on it, its memory, its disk, and what exporters read there.

Sans IO. CPU time is asked for in pieces, in about the order of time; a piece that meets a used-up quota runs in the
next period, as in the kernel's bandwidth control. Not here: the network (path.py), GPUs (accelerator.py).
"""

import math
import random
from collections.abc import Sequence

from pinchpoint.clock import NS_PER_S
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.path import HostNetwork
from pinchpoint.lab.readings import HostReading, ProcessReading

PERIOD_NS = NS_PER_S // 10
"""cpu.cfs_period_us, kernel default."""
SLICE_NS = 3_000_000
"""sched_base_slice_ns on machines with eight or more cores."""
MEMORY_BOUND_RATIO = 0.6
"""Share of CPU time that waits for memory in interpreters and schedulers; order of magnitude."""
REMOTE_ACCESS_RATIO = 1.7
"""Latency of the far socket's memory over that of the near one."""
SPIN_NS = NS_PER_S // 10
"""An engine's threads poll the GPU between steps; so long after its last step one counts as runnable."""
PAGE_BYTES = 4096
SWAP_READ_NS = 100_000
"""One page from a solid-state disk."""
PAGES_PER_REQUEST = 1500
PAGES_PER_CHUNK = 5
"""Pages that an API process touches for a request and a chunk; order of magnitude."""
SWAP_RATIO = 2.0
"""Swap space over memory."""
SYSTEM_BYTES = 1.0e9
ENGINE_RSS_BYTES = 2.5e9
"""Of an engine's process without its weights, which are on the GPU."""
SYSTEM_SHARE_RATIO = 0.15
"""Of CPU time, what is spent in the kernel by a process that mostly computes."""
MODES = ("user", "system", "softirq", "steal", "iowait", "idle")
LOAD_MEAN_S = 60.0
LISTENING_FILES = 24
"""Open files of an API process without connections."""
BASE_RSS_BYTES = 750e6
"""A vLLM API process without load, as its own metrics page tells."""
RSS_PER_CONNECTION_BYTES = 64e3
"""Buffers and request state; order of magnitude."""


CORE_SIGMA = 0.5
"""Log-normal spread of load over the cores of an idle-ish machine; order of magnitude of /proc/stat on servers."""
MIGRATION_S = 20.0
MIGRATION_RATIO = 0.4
"""How long and how far a core is busier or idler than usual, for threads migrate; order of magnitude."""


def spread(total: float, room: list[float], weights: list[float]) -> list[float]:
    """`total` over places by their weights, none above its room; what a full place cannot take, the others do.

    The parts add up to total, or to all the room there is.
    """
    taken = [0.0] * len(room)
    open_places = [place for place, space in enumerate(room) if space > 0]
    while total > 0 and open_places:
        scale = total / sum(weights[place] for place in open_places)
        full = [place for place in open_places if weights[place] * scale >= room[place] - taken[place]]
        if not full:
            for place in open_places:
                taken[place] += weights[place] * scale
            break
        for place in full:
            total -= room[place] - taken[place]
            taken[place] = room[place]
        open_places = [place for place in open_places if place not in full]
    return taken


class Process:
    """CPU time of one process that does one piece of work at a time."""

    __slots__ = ("_cpu_ns", "_from_ns", "_piece_ns", "busy_until_ns", "name", "rss_bytes", "spins", "started_ns")

    def __init__(self, name: str, started_ns: int, rss_bytes: float, *, spins: bool = False) -> None:
        self.name = name
        self.started_ns = started_ns
        self.rss_bytes = rss_bytes
        self.spins = spins
        """It polls between its pieces of work."""
        self.busy_until_ns = started_ns
        self._cpu_ns = 0
        self._from_ns = started_ns
        self._piece_ns = 0

    def account(self, from_ns: int, until_ns: int, cpu_ns: int) -> None:
        """A piece of work with so much CPU time fills this stretch."""
        self._cpu_ns += cpu_ns
        self._from_ns, self.busy_until_ns, self._piece_ns = from_ns, until_ns, cpu_ns

    def cpu_ns(self, t_ns: int) -> float:
        """Used by t_ns; the piece under way counts by its share."""
        if t_ns >= self.busy_until_ns or self.busy_until_ns == self._from_ns:
            return self._cpu_ns
        ahead = (self.busy_until_ns - max(t_ns, self._from_ns)) / (self.busy_until_ns - self._from_ns)
        return self._cpu_ns - self._piece_ns * ahead

    def runnable(self, t_ns: int) -> bool:
        return self.busy_until_ns + (SPIN_NS if self.spins and self._cpu_ns else 0) > t_ns


class Host:
    """CPU, memory and disk of the machine on which one replica runs; lives longer than the replica's processes."""

    def __init__(self, params: LabParams, seed: int, network: HostNetwork, t_ns: int = 0) -> None:
        self._random = random.Random(seed)
        self.network = network
        self.processes: list[Process] = []
        self.oom_kills = 0
        self._used_ns: dict[int, int] = {}
        """Period of 100 ms -> CPU time of the quota that is used in it."""
        self._throttled_period = -1
        self._throttled_periods = 0
        self._throttled_ns = 0
        self._periods = 0
        self._cpu_wait_ns = 0.0
        self._cpu_pressure_ns = 0.0
        self._io_wait_ns = 0.0
        self._io_pressure_ns = 0.0
        self._memory_wait_ns = 0.0
        self._memory_pressure_ns = 0.0
        self._disk_free_ns = 0
        self._disk_busy_ns = 0
        self._disk_written_bytes = 0
        self._swap_in_pages = 0.0
        self._swap_out_pages = 0.0
        self._swapped_bytes = 0.0
        self._foreign_pages = 0.0
        self._load1 = 0.0
        self._accrued_ns = t_ns
        self._accrued_own_ns = 0.0
        self._accrued_softirq_ns = 0
        self._gone_cpu_ns = 0.0
        """Of processes that have ended."""
        self._cores: list[dict[str, float]] = []
        self._ways = random.Random(f"cores {seed}")
        self._core_ways: list[tuple[float, float]] = []
        """Of each core, how busy it is beside others in the long run, and where in its cycle it begins."""
        self._apply(params)

    def _apply(self, params: LabParams) -> None:
        host = params.host
        self._params = params
        self._quota_ns = None if host.cpu_quota_cores is None else round(host.cpu_quota_cores * PERIOD_NS)
        gpus_per_engine = params.tensor_parallel * params.pipeline_parallel
        self._worker_threads = params.data_parallel * gpus_per_engine if gpus_per_engine > 1 else 0
        """Processes beside the engine's own that drive a GPU each; they poll while the engine steps."""
        own = params.front.api_processes + params.front.tokenizer_threads + params.data_parallel + self._worker_threads
        self._crowded = own + host.neighbour_cores > host.cores
        self._slowdown = (1 + MEMORY_BOUND_RATIO * (REMOTE_ACCESS_RATIO - 1) * host.numa_remote_ratio) / max(
            1e-3, 1 - host.steal_ratio
        )
        self.unhindered = self._quota_ns is None and not self._crowded and self._slowdown == 1.0
        """CPU work takes as long as it has CPU time."""
        while len(self._cores) < host.cores:
            self._cores.append(dict.fromkeys(MODES, 0.0))
            self._core_ways.append((self._ways.lognormvariate(0.0, CORE_SIGMA), self._ways.random()))

    def change(self, t_ns: int, params: LabParams) -> None:
        self._accrue(t_ns)
        self._apply(params)

    # CPU

    def elapse(self, t_ns: int, cpu_ns: int, process: Process) -> int:
        """When a process that is on a core at t_ns has had so much CPU time. It does not account for it."""
        if self.unhindered:
            return t_ns + cpu_ns
        self._foreign_pages += self._params.host.numa_remote_ratio * cpu_ns / NS_PER_S * FOREIGN_PAGES_PER_CPU_S
        crowd = self._crowd(t_ns, process)
        stretch = self._slowdown * crowd
        if crowd > 1:
            self._cpu_wait_ns += cpu_ns * self._slowdown * (crowd - 1)
        if self._quota_ns is None:
            return t_ns + round(cpu_ns * stretch)
        return self._in_quota(t_ns, cpu_ns, stretch, self._quota_ns)

    def wake(self, process: Process, t_ns: int) -> int:
        """When a process that slept until t_ns gets a core: others finish their slice first if none is free."""
        if self.unhindered or not self._crowded:
            return t_ns
        crowd = self._crowd(t_ns, process)
        if crowd <= 1:
            return t_ns
        wait_ns = round(self._random.random() * (crowd - 1) * SLICE_NS)
        self._cpu_wait_ns += wait_ns
        return t_ns + wait_ns

    def _crowd(self, t_ns: int, caller: Process) -> float:
        """Runnable threads per core, at least 1; the caller is one of them."""
        if not self._crowded:
            return 1.0
        return max(1.0, self._runnable(t_ns, caller) / self._params.host.cores)

    def _runnable(self, t_ns: int, caller: Process | None = None) -> float:
        own = sum(process is caller or process.runnable(t_ns) for process in self.processes)
        workers = self._worker_threads if any(p.spins and p.runnable(t_ns) for p in self.processes) else 0
        return self._params.host.neighbour_cores + own + workers

    def _in_quota(self, t_ns: int, cpu_ns: int, stretch: float, quota_ns: int) -> int:
        used_ns, need_ns = self._used_ns, float(cpu_ns)
        at_ns = float(t_ns)
        while need_ns > 0:
            period = int(at_ns // PERIOD_NS)
            end_ns = (period + 1) * PERIOD_NS
            room_ns = quota_ns - used_ns.get(period, 0)
            if room_ns <= 0:
                if period > self._throttled_period:
                    self._throttled_period = period
                    self._throttled_periods += 1
                    self._throttled_ns += round(end_ns - at_ns)
                at_ns = end_ns
                continue
            take_ns = min(need_ns, room_ns, max(1.0, (end_ns - at_ns) / stretch))
            used_ns[period] = used_ns.get(period, 0) + math.ceil(take_ns)
            need_ns -= take_ns
            at_ns += take_ns * stretch
        if len(used_ns) > KEPT_PERIODS:
            now = t_ns // PERIOD_NS
            self._used_ns = {period: used for period, used in used_ns.items() if period >= now - 1}
        return math.ceil(at_ns)

    # Memory and disk

    @property
    def out_of_memory(self) -> bool:
        host = self._params.host
        space_bytes = host.memory_bytes * (1 + (SWAP_RATIO if host.swap else 0))
        return self._used_bytes() > space_bytes

    def _used_bytes(self) -> float:
        return SYSTEM_BYTES + sum(process.rss_bytes for process in self.processes)

    def note_memory(self) -> None:
        """Processes have grown or ended: what does not fit is swapped out."""
        swapped_bytes = max(0.0, self._used_bytes() - self._params.host.memory_bytes) if self._params.host.swap else 0.0
        self._swap_out_pages += max(0.0, swapped_bytes - self._swapped_bytes) / PAGE_BYTES
        self._swapped_bytes = swapped_bytes

    @property
    def swapping(self) -> bool:
        return self._swapped_bytes > 0

    def fault_ns(self, pages: int) -> int:
        """How long a process stands still that touches so many pages, some of which are swapped out."""
        if self._swapped_bytes <= 0:
            return 0
        missing = pages * self._swapped_bytes / self._used_bytes()
        self._swap_in_pages += missing
        self._swap_out_pages += missing  # something else has to go
        stall_ns = missing * SWAP_READ_NS
        self._memory_wait_ns += stall_ns
        return round(stall_ns)

    def write_log(self, t_ns: int, writes: int = 1) -> int:
        """When so many records, written one after the other, are on the disk."""
        size_bytes = writes * self._params.front.log_bytes_per_write
        cost_ns = round(size_bytes / self._params.host.disk_write_bytes_per_s * NS_PER_S)
        self._disk_free_ns = max(self._disk_free_ns, t_ns) + cost_ns
        self._disk_busy_ns += cost_ns
        self._disk_written_bytes += size_bytes
        self._io_wait_ns += self._disk_free_ns - t_ns
        return self._disk_free_ns

    # Exporters

    def forget_processes(self, t_ns: int) -> None:
        """All processes of the replica end; their CPU time stays used."""
        self._accrue(t_ns)
        self._gone_cpu_ns += sum(process.cpu_ns(t_ns) for process in self.processes)
        self.processes.clear()
        self.note_memory()

    def _accrue(self, t_ns: int) -> None:
        """Spreads what has happened since the last call over the cores' modes and the pressure clocks."""
        span_ns = t_ns - self._accrued_ns
        if span_ns <= 0:
            return
        self._accrued_ns = t_ns
        host = self._params.host
        own_ns = self._gone_cpu_ns + sum(process.cpu_ns(t_ns) for process in self.processes)
        own_span_ns = max(0.0, own_ns - self._accrued_own_ns)
        self._accrued_own_ns = max(own_ns, self._accrued_own_ns)
        softirq_ns = min(span_ns, max(0, self.network.softirq_ns(t_ns) - self._accrued_softirq_ns))
        self._accrued_softirq_ns += softirq_ns
        room_ns = host.cores * span_ns * (1 - host.steal_ratio)
        busy_ns = min(room_ns, own_span_ns + host.neighbour_cores * span_ns)
        steal_ns = busy_ns * host.steal_ratio / max(1e-3, 1 - host.steal_ratio)
        self._cpu_pressure_ns += span_ns if host.neighbour_cores > host.cores else min(span_ns, self._cpu_wait_ns)
        self._cpu_wait_ns = max(0.0, self._cpu_wait_ns - span_ns)
        io_ns = min(span_ns, self._io_wait_ns)
        self._io_pressure_ns += io_ns
        self._io_wait_ns -= io_ns
        memory_ns = min(span_ns, self._memory_wait_ns)
        self._memory_pressure_ns += memory_ns
        self._memory_wait_ns -= memory_ns
        left_ns = [float(span_ns)] * host.cores
        left_ns[0] -= softirq_ns
        self._cores[0]["softirq"] += softirq_ns / NS_PER_S
        for mode, ns in (
            ("steal", steal_ns),
            ("user", busy_ns * (1 - SYSTEM_SHARE_RATIO)),
            ("system", busy_ns * SYSTEM_SHARE_RATIO),
            ("iowait", float(io_ns + memory_ns)),
        ):
            for core, left, taken_ns in zip(
                self._cores, range(host.cores), spread(ns, left_ns, self._leanings(t_ns)), strict=False
            ):
                core[mode] += taken_ns / NS_PER_S
                left_ns[left] -= taken_ns
        for core, ns in zip(self._cores, left_ns, strict=False):
            core["idle"] += max(0.0, ns) / NS_PER_S
        own = own_span_ns / span_ns * self._slowdown
        runnable = host.neighbour_cores + own * max(1.0, host.neighbour_cores / host.cores)
        self._load1 += (runnable - self._load1) * -math.expm1(-span_ns / NS_PER_S / LOAD_MEAN_S)
        if self._quota_ns is not None:
            self._periods += t_ns // PERIOD_NS - (t_ns - span_ns) // PERIOD_NS

    def _leanings(self, t_ns: int) -> list[float]:
        """How much the kernel likes each core now: some more than others, and that shifts as threads migrate."""
        turns = t_ns / NS_PER_S / MIGRATION_S
        return [
            weight * (1 + MIGRATION_RATIO * math.sin(2 * math.pi * (turns + phase)))
            for weight, phase in self._core_ways[: self._params.host.cores]
        ]

    def reading(self, t_ns: int, files_open: Sequence[int]) -> HostReading:
        """files_open: of the API processes, in their order; other processes hold LISTENING_FILES."""
        self._accrue(t_ns)
        host, network = self._params.host, self.network
        processes: list[ProcessReading] = []
        for index, process in enumerate(self.processes):
            cpu_s = process.cpu_ns(t_ns) / NS_PER_S
            processes.append(
                ProcessReading(
                    name=process.name,
                    cpu_s_total=cpu_s,
                    thread_cpu_max_s_total=cpu_s,
                    rss_bytes=process.rss_bytes,
                    open_fds=files_open[index] if index < len(files_open) else LISTENING_FILES,
                    max_fds=host.nofile,
                    threads=1,
                    started_s=process.started_ns / NS_PER_S,
                )
            )
        used_bytes = self._used_bytes() - self._swapped_bytes
        return HostReading(
            cores=host.cores,
            cpu_s_total=[dict(core) for core in self._cores[: host.cores]],
            runnable=self._runnable(t_ns),
            load1=self._load1,
            cpu_pressure_s_total=self._cpu_pressure_ns / NS_PER_S,
            io_pressure_s_total=self._io_pressure_ns / NS_PER_S,
            memory_pressure_s_total=self._memory_pressure_ns / NS_PER_S,
            throttled_periods_total=self._throttled_periods,
            throttled_s_total=self._throttled_ns / NS_PER_S,
            periods_total=self._periods,
            memory_total_bytes=host.memory_bytes,
            memory_available_bytes=max(0.0, host.memory_bytes - used_bytes),
            swap_in_pages_total=self._swap_in_pages,
            swap_out_pages_total=self._swap_out_pages,
            major_faults_total=self._swap_in_pages,
            oom_kills_total=self.oom_kills,
            disk_busy_s_total=(self._disk_busy_ns - max(0, self._disk_free_ns - t_ns)) / NS_PER_S,
            disk_written_bytes_total=float(self._disk_written_bytes),
            net_rx_bytes_total=network.rx_bytes,
            net_tx_bytes_total=network.tx_bytes,
            net_speed_bytes_per_s=network.speed_bytes_per_s,
            segments_out_total=network.segments_out,
            retransmits_total=network.retransmits,
            listen_overflows_total=network.listen_overflows,
            listen_drops_total=network.listen_drops,
            connections_established=network.established(t_ns),
            connections_time_wait=network.time_wait(t_ns),
            conntrack_entries=network.conntrack_entries(t_ns),
            conntrack_max=host.conntrack_max,
            conntrack_dropped_total=network.conntrack_drops,
            files_open=sum(process.open_fds for process in processes),
            softnet_processed_total=network.packets,
            softnet_squeezed_total=network.squeezed,
            softnet_dropped_total=network.softnet_drops,
            numa_foreign_total=self._foreign_pages,
            processes=processes,
        )


FOREIGN_PAGES_PER_CPU_S = 2000.0
"""Pages that a busy process gets per second of CPU time; order of magnitude."""
KEPT_PERIODS = 256
