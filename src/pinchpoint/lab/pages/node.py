"""The pages of node_exporter for one machine, and of cAdvisor for the replica's container on it.

Families, types and labels are node_exporter's, which exposes most of /proc/net and /proc/vmstat as untyped. Left out:
everything of machines that HostReading does not hold, among it file systems, NFS, InfiniBand, hwmon, interrupts,
context switches, per-CPU schedstat and softnet (all packets are shown on CPU 0), load over 5 and 15 minutes, reads of
disks, drops and errors of cards, IRQ pressure, and the exporter's own `go_*`, `process_*` and `promhttp_*`.
"""

from collections.abc import Sequence

from pinchpoint.lab.pages.text import EPOCH_UNIX_S, GO, Labels, Page, Sample, labelled
from pinchpoint.lab.readings import HostReading, ProcessReading

MODES = ("idle", "iowait", "irq", "nice", "softirq", "steal", "system", "user")
DISK, NIC = "nvme0n1", "eth0"
MAX_FILES = 9_223_372_036_854_775_807
"""fs.file-max of current kernels."""


def page(
    host: HostReading, hostname: str = "gpu-node-0", *, now_s: float = 0.0, epoch_unix_s: float = EPOCH_UNIX_S
) -> str:
    """node_exporter's page, families in alphabetical order as it writes them.

    now_s: the lab's instant. epoch_unix_s: the wall clock at instant 0, at which the machine has started.
    """
    families: list[tuple[str, str, str, Sequence[Sample]]] = []

    def add(name: str, kind: str, help_text: str, value: float, labels: Labels = ()) -> None:
        families.append((f"node_{name}", kind, help_text, [(labels, value)]))

    cpus = [
        (labelled(cpu=cpu, mode=mode), modes.get(mode, 0.0))
        for cpu, modes in enumerate(host.cpu_s_total)
        for mode in MODES
    ]
    add("boot_time_seconds", "gauge", "Start of the machine, Unix time.", epoch_unix_s)
    families.append(("node_cpu_seconds_total", "counter", "CPU time by mode.", cpus))
    disk, nic, cpu0, node0 = labelled(device=DISK), labelled(device=NIC), labelled(cpu=0), labelled(node=0)
    add("disk_io_time_seconds_total", "counter", "Time doing I/O.", host.disk_busy_s_total, disk)
    add("disk_written_bytes_total", "counter", "Bytes written.", host.disk_written_bytes_total, disk)
    add("filefd_allocated", "gauge", "Open files.", host.files_open)
    add("filefd_maximum", "gauge", "Limit of open files.", MAX_FILES)
    add("load1", "gauge", "Load over 1 minute.", host.load1)
    add("memory_MemAvailable_bytes", "gauge", "Memory available.", host.memory_available_bytes)
    add("memory_MemTotal_bytes", "gauge", "Memory.", host.memory_total_bytes)
    add("memory_numa_numa_foreign_total", "counter", "Pages meant for another node.", host.numa_foreign_total, node0)
    for name, value in (
        ("TcpExt_ListenDrops", host.listen_drops_total),
        ("TcpExt_ListenOverflows", host.listen_overflows_total),
        ("Tcp_CurrEstab", host.connections_established),
        ("Tcp_OutSegs", host.segments_out_total),
        ("Tcp_RetransSegs", host.retransmits_total),
    ):
        add(f"netstat_{name}", "untyped", f"{name} of the kernel.", value)
    add("network_receive_bytes_total", "counter", "Bytes received.", host.net_rx_bytes_total, nic)
    add("network_speed_bytes", "gauge", "Speed of the card, bytes/s.", host.net_speed_bytes_per_s, nic)
    add("network_transmit_bytes_total", "counter", "Bytes sent.", host.net_tx_bytes_total, nic)
    add("nf_conntrack_entries", "gauge", "Flows in the connection table.", host.conntrack_entries)
    add("nf_conntrack_entries_limit", "gauge", "Size of the connection table.", host.conntrack_max)
    add("nf_conntrack_stat_drop", "gauge", "Packets dropped, the table being full.", host.conntrack_dropped_total)
    add("pressure_cpu_waiting_seconds_total", "counter", "Time some waited for a CPU.", host.cpu_pressure_s_total)
    add("pressure_io_waiting_seconds_total", "counter", "Time some waited for I/O.", host.io_pressure_s_total)
    add(
        "pressure_memory_waiting_seconds_total", "counter", "Time some waited for memory.", host.memory_pressure_s_total
    )
    add("procs_running", "gauge", "Runnable processes.", round(host.runnable))
    add("sockstat_TCP_inuse", "gauge", "TCP sockets in use.", host.connections_established)
    add("sockstat_TCP_tw", "gauge", "TCP sockets in TIME-WAIT.", host.connections_time_wait)
    add("softnet_dropped_total", "counter", "Packets dropped.", host.softnet_dropped_total, cpu0)
    add("softnet_processed_total", "counter", "Packets processed.", host.softnet_processed_total, cpu0)
    add("softnet_times_squeezed_total", "counter", "Rounds that ran out of quota.", host.softnet_squeezed_total, cpu0)
    add("time_seconds", "gauge", "Wall clock, Unix time.", epoch_unix_s + now_s)
    uname = labelled(
        domainname="(none)", machine="x86_64", nodename=hostname, release="6.8.0-60-generic", sysname="Linux",
        version="#63-Ubuntu SMP PREEMPT_DYNAMIC",
    )  # fmt: skip
    add("uname_info", "gauge", "System call uname.", 1, uname)
    for name, value in (
        ("oom_kill", host.oom_kills_total),
        ("pgmajfault", host.major_faults_total),
        ("pswpin", host.swap_in_pages_total),
        ("pswpout", host.swap_out_pages_total),
    ):
        add(f"vmstat_{name}", "untyped", f"{name} of /proc/vmstat.", value)
    out = Page(GO)
    for name, kind, help_text, samples in families:
        out.family(name, kind, help_text, samples)
    return out.text()


def container_page(
    host: HostReading, pod: str = "llm-0", container: str = "server", quota_cores: float | None = None
) -> str:
    """cAdvisor's page for the replica's container: CPU of its processes, throttling, memory, threads.

    quota_cores: None is no quota, and then no quota family. The container's figures are the sum of its processes.
    """
    labels = labelled(
        container=container, id=f"/kubepods/pod-{pod}", image="", name=container, namespace="default", pod=pod
    )
    processes: list[ProcessReading] = host.processes
    out = Page(GO)
    for name, kind, help_text, value in (
        ("cpu_cfs_periods_total", "counter", "Enforcement periods.", host.periods_total),
        ("cpu_cfs_throttled_periods_total", "counter", "Throttled periods.", host.throttled_periods_total),
        ("cpu_cfs_throttled_seconds_total", "counter", "Time throttled.", host.throttled_s_total),
    ):
        out.family(f"container_{name}", kind, help_text, [(labels, value)])
    whole = (*labels[:1], ("cpu", "total"), *labels[1:])
    cpu_s = sum(process.cpu_s_total for process in processes)
    out.family("container_cpu_usage_seconds_total", "counter", "CPU time.", [(whole, cpu_s)])
    for name, help_text, value in (
        ("file_descriptors", "Open file descriptors.", sum(process.open_fds for process in processes)),
        ("memory_working_set_bytes", "Working set.", sum(process.rss_bytes for process in processes)),
        ("processes", "Processes.", len(processes)),
        ("threads", "Threads.", sum(process.threads for process in processes)),
    ):
        out.family(f"container_{name}", "gauge", help_text, [(labels, value)])
    out.family("container_oom_events_total", "counter", "Out-of-memory kills.", [(labels, host.oom_kills_total)])
    if quota_cores is not None:
        period_us = 100_000  # kernel default
        out.family("container_spec_cpu_period", "gauge", "CPU period.", [(labels, period_us)])
        out.family("container_spec_cpu_quota", "gauge", "CPU quota.", [(labels, round(quota_cores * period_us))])
    return out.text()
