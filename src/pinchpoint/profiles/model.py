"""What an analysis of profiles says: plain structs that go to text, page and JSON.

Units are in the names. None always means "this file does not say", never zero. Instants (start_s, end_s) are seconds
from the zero of their rank, the first instant that the rank's file holds; RankAnalysis.origin_unix_ns names that zero
on the wall clock where the file does. busy_s figures are lengths of interval unions, total_s figures are sums of
durations: with kernels side by side on two streams a total exceeds a busy time, and only busy times compare to a span.
"""

from typing import Literal

import msgspec

Format = Literal["kineto", "nsys_sqlite", "nsys_csv", "dlprof_sqlite", "dlprof_csv", "rocprofv3_json", "rocprof_csv"]
StepKind = Literal["prefill", "decode", "mixed", "unknown"]
IdleKind = Literal["launch_bound", "host_bound", "communication_wait", "data_copy", "queued", "unknown"]
Level = Literal["rank", "step", "layer", "category", "kernel"]

IDLE_MEANING: dict[str, str] = {
    "launch_bound": "inside a step the GPU had nothing queued and waited for the next launch",
    "host_bound": "between steps the GPU waited for the host to begin the next one",
    "communication_wait": "the host was inside a collective or a receive",
    "data_copy": "the host was copying or loading data",
    "queued": "the next work was queued already: the device's own turn-around, or a wait on another stream",
    "unknown": "the file does not link what came next to its launch",
}


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Something in a file that could not be read, in words; the rest of the file was.

    byte_offset: where in the uncompressed file. events_lost: None when it cannot be counted.
    """

    file: str
    what: str
    byte_offset: int | None = None
    events_lost: int | None = None


class ProfileFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was given. bytes_read: uncompressed. complete: False when a part of it was lost (see problems)."""

    path: str
    format: Format
    bytes_read: int
    events_read: int
    complete: bool


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """index: as the file numbers it. peaks: by data sheet for a name that is known; the precision is bf16 or fp16."""

    index: int
    name: str | None = None
    compute_units: int | None = None
    memory_bytes: int | None = None
    peak_flops: float | None = None
    peak_bytes_per_s: float | None = None


class GpuTime(msgspec.Struct, frozen=True, kw_only=True):
    """How one device spent its span, from its first activity to the end of its last. The four parts
    compute + exposed communication + exposed copy + idle add up to span_s; by precedence, an instant at which a
    compute kernel runs is compute whatever else runs."""

    span_s: float
    busy_s: float
    idle_s: float
    compute_s: float
    exposed_communication_s: float
    exposed_copy_s: float
    communication_s: float
    copy_s: float
    busy_share: float
    kernels: int
    copies: int
    streams: int


class IdleClass(msgspec.Struct, frozen=True, kw_only=True):
    """Gaps of one class (IDLE_MEANING). share: of the device's span."""

    kind: IdleKind
    gaps: int
    total_s: float
    largest_s: float
    share: float


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """One of the largest gaps. host_call, host_op: what the host did for most of it; before, after: the GPU's work."""

    kind: IdleKind
    start_s: float
    duration_s: float
    before: str | None
    after: str | None
    host_call: str | None = None
    host_op: str | None = None


class CategoryTime(msgspec.Struct, frozen=True, kw_only=True):
    """One category of kernels.toml. busy_s: union, None where the file holds totals only. share: of the device's busy
    time (of all totals where there is no union); shares of several categories can pass 1 where streams overlap."""

    category: str
    title: str
    busy_s: float | None
    total_s: float
    share: float
    kernels: int


class KernelTime(msgspec.Struct, frozen=True, kw_only=True):
    """One kernel (or kind of copy) by name. share: of the totals of all kernels. matrix_unit: whether it runs on tensor
    or matrix cores by its name, None when the name does not tell."""

    name: str
    category: str
    calls: int
    total_s: float
    share: float
    mean_s: float
    p99_s: float | None = None
    min_s: float | None = None
    max_s: float | None = None
    matrix_unit: bool | None = None


class Overlap(msgspec.Struct, frozen=True, kw_only=True):
    """Communication kernels against compute kernels. hidden_share: of communication, 0 to 1."""

    communication_s: float
    hidden_s: float
    exposed_s: float
    hidden_share: float
    by_kind: dict[str, float]
    """Union per kind of collective (category name -> s)."""


class Percentiles(msgspec.Struct, frozen=True, kw_only=True):
    """Of a sample in seconds."""

    count: int
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float


class LaunchOverhead(msgspec.Struct, frozen=True, kw_only=True):
    """What it takes the host to start work. call: how long the launching calls take on the CPU; queue_delay: from the
    end of the call to the begin of the work (of the first kernel of a graph), 0 where work began within the call;
    a long queue is a GPU that is behind, a short one with idle gaps is a host that is behind. host_busy_share: the part
    of the span that the launching calls take on the busiest thread. slow_calls: longer than 50 us."""

    launches: int
    launches_per_s: float
    call: Percentiles
    queue_delay: Percentiles | None
    host_busy_s: float
    host_busy_share: float
    slow_calls: int
    graph_launches: int
    kernels_in_graphs: int
    short_kernels: int
    """Kernels shorter than the median launching call: launching them takes longer than running them."""
    synchronisations: int
    synchronisation_s: float


class LayerTime(msgspec.Struct, frozen=True, kw_only=True):
    """Work launched inside the module or range of a kind of layer. layer: attention, ffn, moe, norm, embedding,
    head, or other. launches: calls that launched it."""

    layer: str
    launches: int
    kernels: int
    busy_s: float
    share: float


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One step of the engine. start_s, end_s: of its GPU work where it has some, else of its range on the host.
    idle_s: within those. Tokens and sequences as the range's name says, None when it does not."""

    index: int
    name: str
    kind: StepKind
    kind_from: Literal["range", "kernels", "none"]
    start_s: float
    end_s: float
    host_start_s: float | None
    host_end_s: float | None
    gpu_busy_s: float | None
    idle_s: float | None
    kernels: int
    prefill_tokens: int | None = None
    decode_tokens: int | None = None
    sequences: int | None = None
    categories: dict[str, float] = msgspec.field(default_factory=dict)
    """Union per category in seconds."""


class StepSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Steps of one kind. period_s: median from the begin of one to the begin of the next step of any kind."""

    kind: StepKind
    steps: int
    duration: Percentiles
    gpu_busy_share: float | None
    period_s: float | None
    categories: dict[str, float]
    """Share of the steps' busy time per category."""


class MatrixUnits(msgspec.Struct, frozen=True, kw_only=True):
    """Use of tensor cores (NVIDIA) or matrix cores (AMD) in the time of GEMM and attention kernels, told by name
    or counter. The three times add up to the total of those kernels."""

    used_s: float
    unused_s: float
    unknown_s: float
    used_share: float | None
    """used / (used + unused); None when no kernel's name tells."""
    source: Literal["names", "counters", "dlprof"]


class RooflineRow(msgspec.Struct, frozen=True, kw_only=True):
    """Calls of one operator with one set of shapes. flops, bytes: of one call, counting each operand once.
    bound: what the named device's data sheet says limits it. share_of_peak: achieved over what the roofline allows."""

    op: str
    shapes: str
    calls: int
    kernel_total_s: float
    flops: float
    bytes: float
    flops_per_s: float
    bytes_per_s: float
    bound: Literal["compute", "memory"] | None = None
    share_of_peak: float | None = None


class HostOp(msgspec.Struct, frozen=True, kw_only=True):
    """An operator on the CPU. self_s: without the operators inside it. busy_s: union over threads."""

    name: str
    calls: int
    busy_s: float
    self_s: float


class HostTime(msgspec.Struct, frozen=True, kw_only=True):
    """What the CPU did. ops_busy_s: union of all operators over all threads."""

    span_s: float
    ops_busy_s: float
    ops: tuple[HostOp, ...]
    threads: int


class OverviewRow(msgspec.Struct, frozen=True, kw_only=True):
    """A box of the flame-like picture. Children of a row add up to it or less: where n kernels run at once each gets
    1/n of the time. parent: the index of its row in the overview, None for the root. Idle time has its own boxes of
    level category and name "idle"."""

    level: Level
    name: str
    category: str | None
    parent: int | None
    duration_s: float
    count: int


class Interval(msgspec.Struct, frozen=True, kw_only=True):
    """busy_s: how much of it is work, when several events were thinned into one. name: of the longest."""

    start_s: float
    end_s: float
    busy_s: float
    category: str
    name: str
    events: int


class Lane(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the timeline. kind: stream (GPU), steps, or idle (gaps by class)."""

    name: str
    kind: Literal["steps", "stream", "idle"]
    intervals: tuple[Interval, ...]
    thinned: bool


class RankAnalysis(msgspec.Struct, frozen=True, kw_only=True):
    """One device of one file, or one file without a device.

    file: index in Analysis.files. gpu and what follows from it: None or empty when the file shows no GPU work.
    """

    label: str
    file: int
    rank: int | None
    world_size: int | None
    device: Device | None
    origin_unix_ns: int | None
    span_s: float
    gpu: GpuTime | None = None
    idle: tuple[IdleClass, ...] = ()
    largest_gaps: tuple[Gap, ...] = ()
    categories: tuple[CategoryTime, ...] = ()
    unclassified_share: float | None = None
    """Time of kernels that no pattern names, over the totals of all kernels."""
    overlap: Overlap | None = None
    launch: LaunchOverhead | None = None
    kernels: tuple[KernelTime, ...] = ()
    kernel_names: int = 0
    """How many different names there are; kernels holds the longest of them."""
    layers: tuple[LayerTime, ...] = ()
    steps: tuple[Step, ...] = ()
    steps_from: str | None = None
    """What the steps were told by, in words."""
    steps_left_out: int = 0
    """Beyond the bound of steps; the summary counts them all."""
    step_summary: tuple[StepSummary, ...] = ()
    matrix_units: MatrixUnits | None = None
    roofline: tuple[RooflineRow, ...] = ()
    host: HostTime | None = None
    overview: tuple[OverviewRow, ...] = ()
    timeline: tuple[Lane, ...] = ()
    notes: tuple[str, ...] = ()
    """What cannot be known from this file and how to capture it, in sentences."""


class AcrossRanks(msgspec.Struct, frozen=True, kw_only=True):
    """Devices that ran together. slowest: the label whose compute takes longest; the others wait for it inside their
    collectives. compute_imbalance: the longest compute time over the mean, 1 is even. waiting_s: per label, the time in
    collectives beyond that of the device that spends least in them."""

    devices: int
    busy_share_min: float
    busy_share_mean: float
    busy_share_max: float
    compute_imbalance: float
    slowest: str
    waiting_s: dict[str, float]


class Analysis(msgspec.Struct, frozen=True, kw_only=True):
    """All files that were given."""

    files: tuple[ProfileFile, ...]
    format: Format | Literal["mixed"]
    ranks: tuple[RankAnalysis, ...]
    across_ranks: AcrossRanks | None
    problems: tuple[Problem, ...]
