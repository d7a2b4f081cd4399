"""Which catalogued series the timeline shows, in which chart, and what a reader should look for in it. Data only."""

import msgspec


class Panel(msgspec.Struct, frozen=True):
    """One chart of the timeline that shows catalogued series: (series, label) pairs in one unit."""

    key: str
    title: str
    reading: str
    axis: str
    unit: str
    series: tuple[tuple[str, str], ...]


PANELS = (
    Panel(
        "engine",
        "Requests inside the engine",
        "A running line that stays flat while the waiting line climbs is a full batch: admission is the bottleneck.",
        "requests",
        "count",
        (("engine.requests_running", "running"), ("engine.requests_waiting", "waiting")),
    ),
    Panel(
        "kv",
        "KV cache in use",
        "Near 100 % the engine has to refuse or preempt sequences; far below, memory is not the limit.",
        "share used",
        "ratio",
        (("engine.kv_used_ratio", "KV cache"),),
    ),
    Panel(
        "preemptions",
        "Preemptions",
        "Each one is work thrown away and done again. The line should lie at zero.",
        "per second",
        "rate",
        (("engine.preemptions_total", "preemptions"),),
    ),
    Panel(
        "gpu",
        "GPU activity",
        "Tensor activity near its ceiling means compute-bound; memory activity near its ceiling, bandwidth-bound.",
        "share active",
        "ratio",
        (
            ("gpu.sm_active_ratio", "SM"),
            ("gpu.tensor_active_ratio", "tensor cores"),
            ("gpu.dram_active_ratio", "memory"),
            ("gpu.util_ratio", "utilisation"),
        ),
    ),
    Panel(
        "server",
        "CPU of the service",
        "A thread that sits at one core is a serial bottleneck, whatever the total says.",
        "cores",
        "count",
        (
            ("server.cpu_cores", "all processes"),
            ("server.listener_cpu_cores", "listening process"),
            ("server.thread_cpu_max_cores", "busiest thread"),
        ),
    ),
    Panel(
        "null",
        "Latency of a request that needs no model",
        "When this rises with the load, the front of the service is busy before any model work begins.",
        "latency",
        "s",
        (("probe.null_request_s", "null request"),),
    ),
    Panel(
        "host",
        "CPU of the host under test",
        "As seen from the machine that ran the load.",
        "share busy",
        "ratio",
        (
            ("host.cpu_used_ratio", "all cores"),
            ("host.cpu_core_max_ratio", "busiest core"),
            ("host.cpu_steal_ratio", "stolen"),
        ),
    ),
    Panel(
        "client",
        "Load generator",
        "Must stay far from 100 %: a busy generator measures itself.",
        "share busy",
        "ratio",
        (("client.loop_busy_ratio", "event loop busy"),),
    ),
)
