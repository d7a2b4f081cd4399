"""What exporters read off the simulated hardware: cumulative counters and gauges of the moment. No metric names."""

import msgspec

CLOCK_LOCKED, SW_POWER_CAP, HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, HW_POWER_BRAKE = 0x2, 0x4, 0x8, 0x20, 0x40, 0x80
"""Bits of NVML's clock-event reasons (nvmlClocksEventReasons in nvml.h); 0x1 is idle."""
GPU_IDLE = 0x1


class GpuReading(msgspec.Struct, gc=False):
    """One GPU at one instant. Names ending in _total are counters since the start; ratios and rates are of the last
    second."""

    index: int
    busy_ratio: float
    """Any kernel resident."""
    sm_active_ratio: float
    tensor_active_ratio: float
    dram_active_ratio: float
    memory_used_bytes: float
    memory_total_bytes: float
    sm_clock_hz: float
    sm_clock_max_hz: float
    memory_clock_hz: float
    power_w: float
    power_limit_w: float
    energy_j_total: float
    temperature_c: float
    memory_temperature_c: float
    clock_event_reasons: int
    power_violation_s_total: float
    thermal_violation_s_total: float
    pcie_tx_bytes_total: float
    pcie_rx_bytes_total: float
    pcie_replay_total: int
    link_tx_bytes_total: float
    link_rx_bytes_total: float
    link_errors_total: int
    ecc_uncorrected_total: int
    last_xid: int
    """0: none yet."""
    processes: int
    pcie_tx_bytes_per_s: float = 0.0
    pcie_rx_bytes_per_s: float = 0.0
    link_tx_bytes_per_s: float = 0.0
    link_rx_bytes_per_s: float = 0.0


class ProcessReading(msgspec.Struct, gc=False):
    """cpu_s_total is since its start; started_s on the service's clock."""

    name: str
    cpu_s_total: float
    thread_cpu_max_s_total: float
    rss_bytes: float
    open_fds: int
    max_fds: int
    threads: int
    started_s: float


class HostReading(msgspec.Struct, gc=False):
    """The machine of one replica at one instant."""

    cores: int
    cpu_s_total: list[dict[str, float]]
    """Per core, by mode: user, system, softirq, steal, iowait, idle."""
    runnable: float
    load1: float
    cpu_pressure_s_total: float
    io_pressure_s_total: float
    memory_pressure_s_total: float
    throttled_periods_total: int
    throttled_s_total: float
    periods_total: int
    memory_total_bytes: float
    memory_available_bytes: float
    swap_in_pages_total: float
    swap_out_pages_total: float
    major_faults_total: float
    oom_kills_total: int
    disk_busy_s_total: float
    disk_written_bytes_total: float
    net_rx_bytes_total: float
    net_tx_bytes_total: float
    net_speed_bytes_per_s: float
    segments_out_total: float
    retransmits_total: float
    listen_overflows_total: int
    listen_drops_total: int
    connections_established: int
    connections_time_wait: int
    conntrack_entries: int
    conntrack_max: int
    conntrack_dropped_total: int
    files_open: int
    softnet_processed_total: float
    softnet_squeezed_total: int
    softnet_dropped_total: int
    numa_foreign_total: float
    processes: list[ProcessReading]
