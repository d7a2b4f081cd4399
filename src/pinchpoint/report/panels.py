"""Which catalogued series the timeline shows by layer, in which chart, and what a reader should look for. Data only.

A layer's panels are its most telling series. Everything else that a run has of the layer is drawn small below them, so
a series needs no panel to be seen.
"""

from typing import Literal

import msgspec

Shown = Literal["together", "largest", "each"]
"""together: one line, label sets added up (ratios: the largest of them). largest: one line, the largest of the label
sets at each instant. each: a line per label set."""
Unit = Literal["s", "ratio", "rate", "count", "bytes", "bytes/s", "W", "degC", "Hz", "J"]
"""How report.js writes a value."""


class Line(msgspec.Struct, frozen=True):
    """One series of a panel: a gauge as it is, a counter as its rate, a histogram as the mean of its observations.

    label: what it is; of `each` it stands before the label set when there are several series. over: another counter,
    by whose growth that of `series` is divided. by: label whose values make the lines of `each`, in place of whatever
    tells the label sets apart; label sets that share it are combined to the largest.
    """

    series: str
    label: str
    shown: Shown = "together"
    over: str | None = None
    by: str | None = None


class Panel(msgspec.Struct, frozen=True):
    """One chart. first_only: of the lines only the first that was read, the others say the same less well. several:
    drawn only with more than one line. limits: (gauge, label) pairs whose last value is drawn as a limit."""

    key: str
    layer: str
    title: str
    reading: str
    axis: str
    unit: Unit
    lines: tuple[Line, ...]
    first_only: bool = False
    several: bool = False
    limits: tuple[tuple[str, str], ...] = ()


class Layer(msgspec.Struct, frozen=True):
    """One part of the way of a request. catalogued: layers of the catalogue that belong to it. how_to: what to do when
    nothing of it was read."""

    key: str
    title: str
    intro: str
    catalogued: tuple[str, ...]
    how_to: str


LAYERS = (
    Layer(
        "client",
        "Load generator",
        "The measuring side: it must stay far from its own limits.",
        ("client",),
        "Nothing was told by the load generator: the run was made without one.",
    ),
    Layer(
        "network",
        "Network and front of the service",
        "The way to the service and back, and what answers before any model work.",
        ("probe", "network"),
        "No null request and no state of connections was read: the service has no page that answers without the model, "
        "and TCP's state is told on Linux, for connections that are neither gRPC nor a Unix socket.",
    ),
    Layer(
        "gateway",
        "Gateway, router and dependencies",
        "What stands between the client and the engine.",
        ("gateway",),
        "No metrics of a gateway or router were found; `pinchpoint telemetry URL` says which pages it looks for.",
    ),
    Layer(
        "engine",
        "Engine",
        "As the engine tells it itself.",
        ("engine",),
        "No metrics page of the engine was found; switch it on (SGLang: --enable-metrics, llama.cpp: --metrics; vLLM "
        "has it) or name it with --metrics-url.",
    ),
    Layer(
        "gpu",
        "Accelerator",
        "GPUs and other accelerators, from their driver or an exporter.",
        ("gpu",),
        "No accelerator was read; run Pinchpoint on its host, or an exporter beside it (dcgm-exporter for NVIDIA).",
    ),
    Layer(
        "host",
        "Host",
        "The machine: CPU, memory, disk, network stack.",
        ("host",),
        "No host was read; run Pinchpoint or `pinchpoint agent` on it, or a node-exporter.",
    ),
    Layer(
        "server",
        "Processes of the service",
        "What the service's own processes use.",
        ("server",),
        "The service's processes were not seen: that needs Pinchpoint on their host, with the right to look at them.",
    ),
    Layer(
        "source",
        "The collection itself",
        "How the readings came about.",
        ("source",),
        "",
    ),
)

PANELS = (
    # -- load generator
    Panel(
        "client",
        "client",
        "How busy the load generator was",
        "Must stay far from 100 %: a busy generator measures itself. Of several load processes the busiest.",
        "share busy",
        "ratio",
        (
            Line("client.loop_busy_ratio", "event loop busy", "largest"),
            Line("client.worker_cpu_cores", "CPU of a core", "largest"),
        ),
    ),
    Panel(
        "client-held",
        "client",
        "Time the load generator was held up",
        "Requests leave late, and arrivals are read late, by as much. Milliseconds are no harm.",
        "time",
        "s",
        (
            Line("client.loop_stall_max_s", "longest stop", "largest"),
            Line("client.run_queue_wait_s", "waited for a core", "largest"),
            Line("client.gc_pause_max_s", "garbage collection", "largest"),
        ),
    ),
    Panel(
        "client-sockets",
        "client",
        "Connections and sockets of the load generator",
        "Sockets in TIME-WAIT hold a local port each for a minute; at the limit no new connection can be made.",
        "sockets",
        "count",
        (
            Line("client.connections", "connections to the service"),
            Line("client.tcp_time_wait_sockets", "in TIME-WAIT", "largest"),
        ),
    ),
    Panel(
        "client-receive",
        "client",
        "Receiving too slowly",
        "Closed windows and dropped segments mean that this side did not read fast enough. Zero is right.",
        "per second",
        "rate",
        (
            Line("client.tcp_zero_window_total", "windows closed", "largest"),
            Line("client.tcp_receive_pruned_total", "segments pruned", "largest"),
            Line("client.tcp_receive_dropped_total", "segments dropped", "largest"),
        ),
    ),
    # -- network
    Panel(
        "null",
        "network",
        "Latency of a request that needs no model",
        "When this rises with the load, the front of the service is busy before any model work begins.",
        "latency",
        "s",
        (Line("probe.null_request_s", "null request", "each"),),
    ),
    Panel(
        "connect",
        "network",
        "Time to connect",
        "What it takes beyond the round trip of the network is a full accept queue or a slow TLS handshake.",
        "time",
        "s",
        (Line("probe.connect_s", "connect", "each", by="path"),),
    ),
    Panel(
        "rtt",
        "network",
        "Round-trip time of the load's connections",
        "As the kernel measures it. The distance to the shortest is queueing on the way.",
        "time",
        "s",
        (
            Line("network.rtt_s", "median", "largest"),
            Line("network.rtt_p95_s", "p95", "largest"),
            Line("network.rtt_min_s", "shortest", "largest"),
        ),
    ),
    Panel(
        "loss",
        "network",
        "Segments lost on the way",
        "Each one sent again delays its request by a round trip, and by 200 ms or more when a timer had to notice it.",
        "per second",
        "rate",
        (
            Line("network.retransmits_total", "sent again by us"),
            Line("network.out_of_order_total", "reached us out of order"),
            Line("client.tcp_timeouts_total", "timers of this host that ran out", "largest"),
        ),
    ),
    Panel(
        "traffic",
        "network",
        "Traffic of the load's connections",
        "Of the connections that are read, at most 32 of each load process.",
        "rate",
        "bytes/s",
        (Line("network.received_bytes_total", "received"), Line("network.sent_bytes_total", "sent")),
    ),
    # -- gateway
    Panel(
        "gateway-requests",
        "gateway",
        "Requests in the gateway",
        "Requests that wait here never reach the engine's own queue.",
        "requests",
        "count",
        (Line("gateway.requests_running", "running"), Line("gateway.requests_waiting", "waiting")),
    ),
    Panel(
        "gateway-time",
        "gateway",
        "Time in the gateway and behind it",
        "The whole and the backend's part of it; what is between them the gateway itself adds.",
        "mean time",
        "s",
        (
            Line("gateway.e2e_s", "whole request"),
            Line("gateway.backend_s", "backend"),
            Line("gateway.ttft_s", "to the first token"),
            Line("gateway.overhead_s", "overhead"),
            Line("gateway.self_s", "gateway itself"),
        ),
    ),
    Panel(
        "gateway-errors",
        "gateway",
        "Refusals, errors and retries of the gateway",
        "What the gateway turns away or sends again.",
        "per second",
        "rate",
        (
            Line("gateway.rejected_total", "rejected"),
            Line("gateway.errors_total", "errors"),
            Line("gateway.retries_total", "retries"),
            Line("gateway.backend_timeouts_total", "backend timeouts"),
        ),
    ),
    Panel(
        "gateway-workers",
        "gateway",
        "Requests at each backend",
        "Lines far apart mean that the router does not spread the load evenly.",
        "requests",
        "count",
        (Line("gateway.worker_requests_running", "running", "each"),),
        several=True,
    ),
    # -- engine
    Panel(
        "engine",
        "engine",
        "Requests inside the engine",
        "A running line that stays flat while the waiting line climbs is a full batch: admission is the bottleneck.",
        "requests",
        "count",
        (Line("engine.requests_running", "running"), Line("engine.requests_waiting", "waiting")),
    ),
    Panel(
        "kv",
        "engine",
        "KV cache in use",
        "Near 100 % the engine has to refuse or preempt sequences; far below, memory is not the limit.",
        "share used",
        "ratio",
        (Line("engine.kv_used_ratio", "KV cache"),),
    ),
    Panel(
        "preemptions",
        "engine",
        "Preemptions",
        "Each one is work thrown away and done again. The line should lie at zero.",
        "per second",
        "rate",
        (Line("engine.preemptions_total", "preemptions"),),
    ),
    Panel(
        "engine-queue",
        "engine",
        "Where requests spend their time in the engine",
        "Means of the requests that the engine counted between two readings. Queue time that grows is saturation.",
        "mean time",
        "s",
        (
            Line("engine.queue_time_s", "queue"),
            Line("engine.prefill_time_s", "prefill"),
            Line("engine.ttft_s", "to the first token"),
            Line("engine.decode_time_s", "decode"),
        ),
    ),
    Panel(
        "engine-gap",
        "engine",
        "Time between tokens, as the engine sees it",
        "Compare it with the time per output token above: the difference is made behind the engine.",
        "mean time",
        "s",
        (
            Line("engine.itl_s", "between tokens"),
            Line("engine.tpot_s", "per output token"),
            Line("engine.step_time_s", "step"),
        ),
    ),
    Panel(
        "engine-tokens",
        "engine",
        "Tokens the engine worked through",
        "Prompt tokens are computed many at a time, generated ones one per sequence and step.",
        "tokens/s",
        "rate",
        (Line("engine.prompt_tokens_total", "prompt"), Line("engine.generation_tokens_total", "generated")),
    ),
    Panel(
        "engine-step",
        "engine",
        "Tokens per step",
        "A full step stands at the engine's limit of tokens per step; few tokens mean that it has little to batch.",
        "tokens",
        "count",
        (Line("engine.step_tokens_total", "tokens per step", over="engine.steps_total"),),
    ),
    Panel(
        "engine-prefix",
        "engine",
        "Prefix cache",
        "Share of prompt tokens that did not have to be computed again.",
        "share hit",
        "ratio",
        (
            Line("engine.prefix_hit_tokens_total", "hits", over="engine.prefix_query_tokens_total"),
            Line("engine.prefix_hit_ratio", "hits"),
        ),
        first_only=True,
    ),
    Panel(
        "engine-speculation",
        "engine",
        "Speculative decoding",
        "Share of the drafted tokens that were accepted.",
        "share accepted",
        "ratio",
        (
            Line("engine.spec_accepted_tokens_total", "accepted", over="engine.spec_draft_tokens_total"),
            Line("engine.spec_accept_ratio", "accepted"),
        ),
        first_only=True,
    ),
    Panel(
        "engine-failed",
        "engine",
        "Requests the engine turned away or failed",
        "By the engine's own count.",
        "per second",
        "rate",
        (Line("engine.requests_rejected_total", "rejected"), Line("engine.requests_failed_total", "failed")),
    ),
    # -- accelerator
    Panel(
        "gpu",
        "gpu",
        "GPU activity",
        "Tensor activity near its ceiling means compute-bound; memory activity near its ceiling, bandwidth-bound. Of "
        "several GPUs the busiest.",
        "share active",
        "ratio",
        (
            Line("gpu.sm_active_ratio", "SM"),
            Line("gpu.tensor_active_ratio", "tensor cores"),
            Line("gpu.dram_active_ratio", "memory"),
            Line("gpu.util_ratio", "utilisation"),
        ),
    ),
    Panel(
        "gpu-each",
        "gpu",
        "Activity of each GPU",
        "One far below the others waits for them, or has less to do.",
        "share active",
        "ratio",
        (
            Line("gpu.sm_active_ratio", "SM", "each"),
            Line("gpu.engine_active_ratio", "engine", "each"),
            Line("gpu.util_ratio", "utilisation", "each"),
        ),
        first_only=True,
        several=True,
    ),
    Panel(
        "gpu-power",
        "gpu",
        "Power",
        "At its limit the clock is lowered until the power fits.",
        "power",
        "W",
        (Line("gpu.power_watts", "power", "each"),),
        limits=(("gpu.power_limit_watts", "power limit"),),
    ),
    Panel(
        "gpu-clock",
        "gpu",
        "Clock",
        "A clock that falls under load is held down by power, heat or a lock.",
        "SM clock",
        "Hz",
        (Line("gpu.sm_clock_hz", "SM clock", "each"),),
        limits=(("gpu.sm_clock_max_hz", "highest"),),
    ),
    Panel(
        "gpu-held",
        "gpu",
        "Clock held down, by reason",
        "Share of time in which the reason held the clock. Idle is no trouble; power and heat are.",
        "share of time",
        "ratio",
        (
            Line("gpu.power_violation_s_total", "power", "largest"),
            Line("gpu.thermal_violation_s_total", "heat", "largest"),
            Line("gpu.clock_event_ratio", "", "each", by="reason"),
        ),
    ),
    Panel(
        "gpu-temperature",
        "gpu",
        "Temperature",
        "Near its slowdown temperature a GPU lowers its clock.",
        "temperature",
        "degC",
        (Line("gpu.temperature_celsius", "GPU", "each"), Line("gpu.memory_temperature_celsius", "memory", "largest")),
        limits=(("gpu.slowdown_temperature_celsius", "slowdown"),),
    ),
    Panel(
        "gpu-memory",
        "gpu",
        "Device memory",
        "Engines take most of it at the start; a line that climbs is a leak or another process.",
        "used",
        "bytes",
        (Line("gpu.memory_used_bytes", "used", "each"),),
        limits=(("gpu.memory_total_bytes", "all of it"),),
    ),
    Panel(
        "gpu-traffic",
        "gpu",
        "Traffic over PCIe and links",
        "Links carry what GPUs exchange in every layer; PCIe carries what goes to and from the host. Of several GPUs "
        "the largest.",
        "rate",
        "bytes/s",
        (
            Line("gpu.pcie_rx_bytes_total", "PCIe in", "largest"),
            Line("gpu.pcie_tx_bytes_total", "PCIe out", "largest"),
            Line("gpu.pcie_rx_bytes_per_s", "PCIe in", "largest"),
            Line("gpu.pcie_tx_bytes_per_s", "PCIe out", "largest"),
            Line("gpu.pcie_bytes_per_s", "PCIe", "largest"),
            Line("gpu.link_rx_bytes_total", "link in", "largest"),
            Line("gpu.link_tx_bytes_total", "link out", "largest"),
            Line("gpu.link_rx_bytes_per_s", "link in", "largest"),
            Line("gpu.link_tx_bytes_per_s", "link out", "largest"),
        ),
    ),
    Panel(
        "gpu-errors",
        "gpu",
        "Errors of the accelerators",
        "Corrected ones are noise up to a point; uncorrected ones and Xid events end work.",
        "per second",
        "rate",
        (
            Line("gpu.ecc_uncorrected_total", "ECC, uncorrected"),
            Line("gpu.ecc_corrected_total", "ECC, corrected"),
            Line("gpu.link_errors_total", "link"),
            Line("gpu.pcie_replay_total", "PCIe replays"),
        ),
    ),
    Panel(
        "gpu-xid",
        "gpu",
        "Xid errors",
        "Number of the last error that the driver told of; zero when there was none.",
        "Xid",
        "count",
        (Line("gpu.xid_errors", "last Xid", "each"),),
    ),
    # -- host
    Panel(
        "host",
        "host",
        "CPU of the host under test",
        "As seen from the machine that ran the load. One busy core among idle ones is a serial bottleneck.",
        "share busy",
        "ratio",
        (
            Line("host.cpu_used_ratio", "all cores"),
            Line("host.cpu_core_max_ratio", "busiest core"),
            Line("host.cpu_steal_ratio", "stolen"),
        ),
    ),
    Panel(
        "host-kinds",
        "host",
        "What the CPU is busy with",
        "Soft interrupts on one core are a network bottleneck; waiting for I/O means a disk.",
        "share of time",
        "ratio",
        (
            Line("host.cpu_system_ratio", "kernel"),
            Line("host.cpu_softirq_ratio", "soft interrupts"),
            Line("host.cpu_core_softirq_max_ratio", "soft interrupts, busiest core"),
            Line("host.cpu_iowait_ratio", "waiting for I/O"),
        ),
    ),
    Panel(
        "host-pressure",
        "host",
        "Pressure",
        "Share of time in which some task had to wait for CPU, memory or disk (PSI of the kernel).",
        "share of time",
        "ratio",
        (
            Line("host.psi_cpu_some_s_total", "CPU"),
            Line("host.psi_memory_some_s_total", "memory"),
            Line("host.psi_io_some_s_total", "I/O"),
        ),
    ),
    Panel(
        "host-run",
        "host",
        "Run queue",
        "Tasks that can run. More than there are cores means that some wait.",
        "tasks",
        "count",
        (
            Line("host.runnable", "can run"),
            Line("host.blocked", "blocked on I/O"),
            Line("host.load1", "load average, 1 min"),
        ),
        limits=(("host.cpu_cores", "cores"),),
    ),
    Panel(
        "host-throttled",
        "host",
        "Held back by a CPU quota",
        "Time in which a control group had used up its quota, as a share of time, added over its threads or cores.",
        "share of time",
        "ratio",
        (
            Line("host.cgroup_throttled_s_total", "host", "largest"),
            Line("server.cgroup_throttled_s_total", "service", "largest"),
            Line("client.cgroup_throttled_s_total", "load generator", "largest"),
        ),
    ),
    Panel(
        "host-memory",
        "host",
        "Memory of the host",
        "With little left, the kernel begins to throw out what it will need again.",
        "share used",
        "ratio",
        (Line("host.memory_used_ratio", "memory"),),
    ),
    Panel(
        "host-faults",
        "host",
        "Reading pages back from disk",
        "Major faults and swapping stop whoever needs the page.",
        "per second",
        "rate",
        (
            Line("host.major_faults_total", "major faults"),
            Line("host.swap_in_pages_total", "pages swapped in"),
            Line("host.swap_out_pages_total", "pages swapped out"),
        ),
    ),
    Panel(
        "host-traffic",
        "host",
        "Traffic of the network interfaces",
        "A line that is cut off flat has reached the speed of the link.",
        "rate",
        "bytes/s",
        (
            Line("host.net_rx_bytes_total", "received", "each", by="nic"),
            Line("host.net_tx_bytes_total", "sent", "each", by="nic"),
        ),
    ),
    Panel(
        "host-network",
        "host",
        "Lost and refused by the network stack",
        "Any steady line here costs somebody time: a retransmission a round trip, an overflow a second or more.",
        "per second",
        "rate",
        (
            Line("host.tcp_retransmits_total", "TCP segments sent again"),
            Line("host.listen_overflows_total", "accept queue full"),
            Line("host.net_rx_drops_total", "dropped on receipt"),
            Line("host.softnet_dropped_total", "dropped by the kernel"),
            Line("host.conntrack_drops_total", "dropped by conntrack"),
        ),
    ),
    Panel(
        "host-disk",
        "host",
        "Disks busy",
        "Share of time in which a disk had something to do. Of several the busiest.",
        "share of time",
        "ratio",
        (Line("host.disk_busy_s_total", "busiest disk", "largest"),),
    ),
    # -- processes
    Panel(
        "server",
        "server",
        "CPU of the service",
        "A thread that sits at one core is a serial bottleneck, whatever the total says.",
        "cores",
        "count",
        (
            Line("server.cpu_cores", "all processes"),
            Line("server.listener_cpu_cores", "listening process"),
            Line("server.thread_cpu_max_cores", "busiest thread"),
        ),
    ),
    Panel(
        "server-wait",
        "server",
        "Waiting for a core",
        "Time that threads of the service could have run and did not get a core, in cores.",
        "cores",
        "count",
        (
            Line("server.run_delay_cores", "all threads"),
            Line("server.thread_run_delay_max_ratio", "one thread, at most"),
        ),
    ),
    Panel(
        "server-memory",
        "server",
        "Memory of the service",
        "A line that climbs through steps of equal load is a leak.",
        "resident",
        "bytes",
        (Line("server.rss_bytes", "resident"), Line("server.pss_bytes", "shared pages counted once")),
    ),
    Panel(
        "server-files",
        "server",
        "Open files and sockets of the service",
        "Each connection is one. At the limit no further connection is accepted.",
        "files",
        "count",
        (Line("server.open_files", "open"),),
        limits=(("server.open_files_limit", "limit"),),
    ),
    Panel(
        "server-switches",
        "server",
        "Context switches of the service",
        "Involuntary ones: a thread was taken off its core for another.",
        "per second",
        "rate",
        (
            Line("server.voluntary_switches_total", "voluntary"),
            Line("server.involuntary_switches_total", "involuntary"),
        ),
    ),
    # -- collection
    Panel(
        "source-scrape",
        "source",
        "How long a page took",
        "A page that is slow to come is a reading that is old, and a service that is busy in front.",
        "time",
        "s",
        (Line("source.scrape_s", "page", "each"),),
    ),
)
