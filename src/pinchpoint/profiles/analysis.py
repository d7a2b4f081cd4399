"""From the columns of a trace to what is said of each of its devices."""

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from pinchpoint.profiles import idle, launching, layering, picture, roofline, stepping
from pinchpoint.profiles.intervals import Cover, intersect, join, length_within, subtract, union
from pinchpoint.profiles.kernels import (
    OTHER,
    catalogue,
    category_ids,
    category_of,
    classify,
    numbers_of,
    uses_matrix_unit,
)
from pinchpoint.profiles.model import (
    CategoryTime,
    Device,
    GpuTime,
    HostOp,
    HostTime,
    KernelTime,
    MatrixUnits,
    Overlap,
    RankAnalysis,
    Step,
    StepKind,
    StepSummary,
)
from pinchpoint.profiles.peaks import with_peaks
from pinchpoint.profiles.source import Limits
from pinchpoint.profiles.stepping import Steps
from pinchpoint.profiles.trace import COPY_KINDS, KERNEL, MEMCPY, Gpu, Summary, Totals, Trace, copy_kind

NS_PER_S = 1e9
STEP_KINDS: tuple[StepKind, ...] = ("prefill", "mixed", "decode", "unknown")
MATRIX_CATEGORIES = ("gemm", "moe_experts", "attention_prefill", "attention_decode", "attention", "convolution")
"""What matrix units are for."""


def of_trace(trace: Trace, limits: Limits) -> list[RankAnalysis]:
    """One per device of the trace; one without a device if nothing ran on any."""
    zero_ns, end_ns = _extent(trace)
    host = _host(trace, limits)
    numbers, counts = np.unique(trace.gpu.device, return_counts=True)
    devices = sorted(numbers[np.argsort(-counts, kind="stable")[: limits.devices]].tolist())
    if len(devices) < len(numbers):
        trace.notes.append(f"The file names {len(numbers):,} devices; the {len(devices)} with most work are analysed.")
    if not devices:
        return [_without_gpu(trace, zero_ns, end_ns, host, limits)]
    return [_of_device(trace, device, zero_ns, host, limits, alone=len(devices) == 1) for device in devices]


def _extent(trace: Trace) -> tuple[int, int]:
    columns = [rows for rows in (trace.gpu, trace.calls, trace.ops, trace.ranges) if len(rows.start)]
    if not columns:
        return 0, 0
    return min(int(rows.start.min()) for rows in columns), max(int(rows.end.max()) for rows in columns)


def _label(trace: Trace, device: int | None, *, alone: bool) -> str:
    if trace.rank is not None:
        return f"rank {trace.rank}" if alone or device is None else f"rank {trace.rank}, GPU {device}"
    return f"GPU {device}" if device is not None else "host"


def _origin(trace: Trace, zero_ns: int) -> int | None:
    return None if trace.clock_zero_unix_ns is None else trace.clock_zero_unix_ns + zero_ns


def _without_gpu(trace: Trace, zero_ns: int, end_ns: int, host: HostTime | None, limits: Limits) -> RankAnalysis:
    empty = Gpu(**{name: column[:0] for name, column in _columns(trace.gpu).items()})
    steps = stepping.find(trace, empty)
    described = _describe_steps(trace, empty, np.empty(0, np.int32), steps, None, zero_ns)
    notes = [
        "The file shows no work on a GPU: the model ran on the CPU, the profiler was not asked for GPU activity "
        "(torch.profiler's ProfilerActivity.CUDA), or the file ends before it.",
        *trace.notes,
    ]
    return RankAnalysis(
        label=_label(trace, None, alone=True), file=trace.file, rank=trace.rank, world_size=trace.world_size,
        device=None, origin_unix_ns=_origin(trace, zero_ns), span_s=(end_ns - zero_ns) / NS_PER_S, host=host,
        steps=tuple(described[: limits.steps]), steps_left_out=max(0, len(described) - limits.steps),
        steps_from=steps.told_by, step_summary=_summarise(described), notes=tuple(notes),
    )  # fmt: skip


def _columns(gpu: Gpu) -> dict[str, NDArray]:
    return {name: getattr(gpu, name) for name in Gpu.__slots__}


def _of_device(
    trace: Trace, index: int, zero_ns: int, host: HostTime | None, limits: Limits, *, alone: bool
) -> RankAnalysis:
    rows = np.flatnonzero(trace.gpu.device == index)
    rows = rows[np.lexsort((trace.gpu.end[rows], trace.gpu.start[rows]))]
    gpu = Gpu(**{name: column[rows] for name, column in _columns(trace.gpu).items()})
    device = with_peaks(_device(trace, index, alone=alone))
    steps = stepping.find(trace, gpu)
    categories = stepping.settle_attention(classify(trace.names, gpu), steps)
    busy = union(gpu.start, gpu.end)
    start_ns, end_ns = int(gpu.start.min()), int(gpu.end.max())
    span_ns = end_ns - start_ns
    gaps = idle.find(trace, gpu, busy, steps)
    is_talk = np.isin(categories, list(numbers_of("communication")))
    is_copy = np.isin(categories, list(numbers_of("copy"))) | (gpu.kind == MEMCPY)  # fills run on the compute units
    talk = union(gpu.start[is_talk], gpu.end[is_talk])
    copy = union(gpu.start[is_copy], gpu.end[is_copy])
    compute = union(gpu.start[~is_talk & ~is_copy], gpu.end[~is_talk & ~is_copy])
    layers = layering.assign(trace, gpu)
    described = _describe_steps(trace, gpu, categories, steps, busy, zero_ns)
    totals_ns = float((gpu.end - gpu.start)[gpu.kind == KERNEL].sum())
    ids = category_ids()
    unclassified_ns = float((gpu.end - gpu.start)[categories == ids.index(OTHER)].sum())
    kernels = _kernels(trace, gpu, categories)
    return RankAnalysis(
        label=_label(trace, index, alone=alone),
        file=trace.file,
        rank=trace.rank,
        world_size=trace.world_size,
        device=device,
        origin_unix_ns=_origin(trace, zero_ns),
        span_s=span_ns / NS_PER_S,
        gpu=_gpu_time(gpu, busy, compute, talk, copy, span_ns),
        idle=gaps.classes(span_ns),
        largest_gaps=idle.largest(trace, gpu, gaps, zero_ns, limits.gaps),
        categories=_categories(gpu, categories, busy.total_ns),
        unclassified_share=unclassified_ns / totals_ns if totals_ns else None,
        overlap=_overlap(gpu, categories, compute, talk),
        launch=launching.overhead(trace, gpu, span_ns),
        kernels=kernels[: limits.kernels],
        kernel_names=len(kernels),
        layers=()
        if layers is None
        else layering.times(gpu, layers, busy.total_ns, stepping.launch_rows(trace.calls, gpu.link)),
        steps=tuple(described[: limits.steps]),
        steps_left_out=max(0, len(described) - limits.steps),
        steps_from=steps.told_by,
        step_summary=_summarise(described),
        matrix_units=_matrix_units(kernels, "dlprof" if trace.matrix_units else "names"),
        roofline=roofline.rows(trace, gpu, device, limits.roofline_rows),
        host=host,
        overview=picture.overview(
            trace.names, gpu, categories, layers, steps.of_gpu, [step.kind for step in described], gaps,
            _label(trace, index, alone=alone), limits.overview_rows,
        ),
        timeline=picture.timeline(
            trace.names, gpu, categories, described, gaps, zero_ns,
            intervals=limits.lane_intervals, lanes=limits.lanes,
        ),
        notes=tuple(_notes(trace, gpu, device, layers, steps)),
    )  # fmt: skip


def _device(trace: Trace, index: int, *, alone: bool) -> Device:
    """ROCm numbers devices in events otherwise than in the list of devices; where there is one of each they are the
    same."""
    known = trace.devices.get(index)
    if known is None and alone and len(trace.devices) == 1:
        known = msgspec.structs.replace(next(iter(trace.devices.values())), index=index)
    return known or Device(index=index)


def _notes(trace: Trace, gpu: Gpu, device: Device, layers: NDArray[np.int8] | None, steps: Steps) -> list[str]:
    notes = list(trace.notes)
    linked = stepping.launch_rows(trace.calls, gpu.link) >= 0
    if not linked.all():
        share = 1 - float(linked.mean())
        notes.append(
            f"{share:.0%} of the GPU's work is not linked to the call that launched it: what the host did before it, "
            "its step and its layer cannot be told. Capture CPU and GPU activity together, from before the launches on."
        )
    if steps.told_by is None:
        notes.append(
            "No range names the engine's steps. vLLM and SGLang write them into PyTorch's profiles; for Nsight Systems "
            "turn on the engine's NVTX ranges."
        )
    if layers is None:
        notes.append(
            "No range names the model's layers: with PyTorch's profiler capture with_stack and with_modules, with "
            "Nsight Systems the engine's layer-wise NVTX ranges."
        )
    if gpu.graph.any() and layers is not None:
        notes.append("Kernels replayed from a graph belong to the module that launched the graph, not to their layer.")
    if device.name and device.peak_flops is None:
        notes.append(f"No data-sheet figures for a device named {device.name}: no distance from its roofline.")
    return notes


def _gpu_time(gpu: Gpu, busy: Cover, compute: Cover, talk: Cover, copy: Cover, span_ns: int) -> GpuTime:
    exposed_talk = subtract(talk, compute)
    exposed_copy = subtract(copy, join(compute, talk))
    return GpuTime(
        span_s=span_ns / NS_PER_S,
        busy_s=busy.total_ns / NS_PER_S,
        idle_s=(span_ns - busy.total_ns) / NS_PER_S,
        compute_s=compute.total_ns / NS_PER_S,
        exposed_communication_s=exposed_talk.total_ns / NS_PER_S,
        exposed_copy_s=exposed_copy.total_ns / NS_PER_S,
        communication_s=talk.total_ns / NS_PER_S,
        copy_s=copy.total_ns / NS_PER_S,
        busy_share=busy.total_ns / span_ns if span_ns else 1.0,
        kernels=int((gpu.kind == KERNEL).sum()),
        copies=int((gpu.kind != KERNEL).sum()),
        streams=len(np.unique(gpu.stream)),
    )


def _categories(gpu: Gpu, categories: NDArray[np.int32], busy_ns: int) -> tuple[CategoryTime, ...]:
    rows = []
    titles = catalogue().categories
    for number in np.unique(categories).tolist():
        mine = categories == number
        total = union(gpu.start[mine], gpu.end[mine]).total_ns
        identity = category_ids()[number]
        rows.append(
            CategoryTime(
                category=identity, title=titles[identity], busy_s=total / NS_PER_S,
                total_s=int((gpu.end - gpu.start)[mine].sum()) / NS_PER_S,
                share=total / busy_ns if busy_ns else 0.0, kernels=int(mine.sum()),
            )
        )  # fmt: skip
    return tuple(sorted(rows, key=lambda row: -row.total_s))


def _overlap(gpu: Gpu, categories: NDArray[np.int32], compute: Cover, talk: Cover) -> Overlap | None:
    if talk.empty:
        return None
    hidden = intersect(talk, compute).total_ns
    by_kind = {}
    for number in numbers_of("communication"):
        mine = categories == number
        if mine.any():
            by_kind[category_ids()[number]] = union(gpu.start[mine], gpu.end[mine]).total_ns / NS_PER_S
    return Overlap(
        communication_s=talk.total_ns / NS_PER_S, hidden_s=hidden / NS_PER_S,
        exposed_s=(talk.total_ns - hidden) / NS_PER_S, hidden_share=hidden / talk.total_ns, by_kind=by_kind,
    )  # fmt: skip


def _kernels(trace: Trace, gpu: Gpu, categories: NDArray[np.int32]) -> tuple[KernelTime, ...]:
    """All names, longest total first. One name in two categories (attention by the step) makes two rows."""
    durations = gpu.end - gpu.start
    overall = float(durations.sum()) or 1.0
    keys = gpu.name.astype(np.int64) << 16 | categories.astype(np.int64)
    order = np.lexsort((durations, keys))
    unique, firsts = np.unique(keys[order], return_index=True)
    bounds = np.append(firsts, len(order))
    rows = []
    for place, key in enumerate(unique.tolist()):
        mine = durations[order[bounds[place] : bounds[place + 1]]]
        name, category = trace.names[key >> 16], category_ids()[key & 0xFFFF]
        total = int(mine.sum())
        rows.append(
            KernelTime(
                name=name, category=category, calls=len(mine), total_s=total / NS_PER_S, share=total / overall,
                mean_s=total / len(mine) / NS_PER_S, p99_s=float(np.percentile(mine, 99)) / NS_PER_S,
                min_s=int(mine[0]) / NS_PER_S, max_s=int(mine[-1]) / NS_PER_S,
                matrix_unit=_matrix_unit(trace, key >> 16) if category in MATRIX_CATEGORIES else None,
            )
        )  # fmt: skip
    return tuple(sorted(rows, key=lambda row: -row.total_s))


def _matrix_unit(trace: Trace, name: int) -> bool | None:
    told = trace.matrix_units.get(name)
    return uses_matrix_unit(trace.names[name]) if told is None else told


def _matrix_units(kernels: Sequence[KernelTime], source: Literal["names", "dlprof"]) -> MatrixUnits | None:
    mine = [row for row in kernels if row.category in MATRIX_CATEGORIES]
    if not mine:
        return None
    used, unused, unknown = (
        sum(row.total_s for row in mine if row.matrix_unit is answer) for answer in (True, False, None)
    )
    told = used + unused
    return MatrixUnits(
        used_s=used, unused_s=unused, unknown_s=unknown, used_share=used / told if told else None, source=source
    )


def _describe_steps(
    trace: Trace, gpu: Gpu, categories: NDArray[np.int32], steps: Steps, busy: Cover | None, zero_ns: int
) -> list[Step]:
    """In the order of their begin. busy: of the device, None without one."""
    count = len(steps.names)
    if not count:
        return []
    ids = category_ids()
    order = np.argsort(steps.of_gpu, kind="stable")
    owners = steps.of_gpu[order]
    firsts, lasts = (np.searchsorted(owners, np.arange(count), side=side) for side in ("left", "right"))
    found = []
    for index in range(count):
        rows = order[firsts[index] : lasts[index]]
        shape = steps.shapes[index]
        kind: StepKind = shape.kind
        told: Literal["range", "kernels", "none"] = "range" if kind != "unknown" else "none"
        host_start, host_end = int(steps.host_start[index]), int(steps.host_end[index])
        start, end, gpu_busy, idle_ns = host_start, host_end, None, None
        by_category: dict[str, float] = {}
        if len(rows):
            start, end = int(gpu.start[rows].min()), int(gpu.end[rows].max())
            gpu_busy = union(gpu.start[rows], gpu.end[rows]).total_ns
            if busy is not None:
                idle_ns = end - start - int(length_within(busy, np.array([start]), np.array([end]))[0])
            for number in np.unique(categories[rows]).tolist():
                mine = rows[categories[rows] == number]
                by_category[ids[number]] = union(gpu.start[mine], gpu.end[mine]).total_ns / NS_PER_S
            if kind == "unknown":
                kind = stepping.kind_by_kernels(np.bincount(categories[rows], minlength=len(ids)))
                told = "kernels" if kind != "unknown" else "none"
        found.append(
            Step(
                index=index, name=steps.names[index], kind=kind, kind_from=told,
                start_s=(start - zero_ns) / NS_PER_S, end_s=(end - zero_ns) / NS_PER_S,
                host_start_s=(host_start - zero_ns) / NS_PER_S, host_end_s=(host_end - zero_ns) / NS_PER_S,
                gpu_busy_s=None if gpu_busy is None else gpu_busy / NS_PER_S,
                idle_s=None if idle_ns is None else idle_ns / NS_PER_S, kernels=len(rows),
                prefill_tokens=shape.prefill_tokens, decode_tokens=shape.decode_tokens, sequences=shape.sequences,
                categories=dict(sorted(by_category.items(), key=lambda row: -row[1])),
            )
        )  # fmt: skip
    return found


def _summarise(steps: Sequence[Step]) -> tuple[StepSummary, ...]:
    rows = []
    starts = np.array([step.start_s for step in steps])
    periods = np.append(np.diff(starts), np.nan)
    for kind in STEP_KINDS:
        mine = [step for step in steps if step.kind == kind]
        if not mine:
            continue
        durations = np.array([round((step.end_s - step.start_s) * NS_PER_S) for step in mine], np.int64)
        busy = [step.gpu_busy_s for step in mine if step.gpu_busy_s is not None]
        lasting = sum(step.end_s - step.start_s for step in mine if step.gpu_busy_s is not None)
        by_category: dict[str, float] = {}
        for step in mine:
            for category, seconds in step.categories.items():
                by_category[category] = by_category.get(category, 0.0) + seconds
        following = periods[[step.index for step in mine]]
        following = following[~np.isnan(following)]
        total = sum(busy)
        ordered = sorted(by_category.items(), key=lambda row: -row[1])
        rows.append(
            StepSummary(
                kind=kind, steps=len(mine), duration=launching.percentiles(durations),
                gpu_busy_share=total / lasting if lasting else None,
                period_s=float(np.median(following)) if len(following) else None,
                categories={name: seconds / total for name, seconds in ordered} if total else {},
            )
        )  # fmt: skip
    return tuple(sorted(rows, key=lambda row: -row.steps))


def _host(trace: Trace, limits: Limits) -> HostTime | None:
    """Operators of the CPU; None where the file has none."""
    ops = trace.ops
    if not len(ops.start):
        return None
    zero_ns, end_ns = int(ops.start.min()), int(ops.end.max())
    own = (ops.end - ops.start).astype(np.int64)
    for thread in np.unique(ops.thread).tolist():
        rows = np.flatnonzero(ops.thread == thread)
        rows = rows[np.lexsort((-ops.end[rows], ops.start[rows]))]
        _take_children(rows.tolist(), ops.start, ops.end, own)
    selfs = np.bincount(ops.name, weights=own)
    counts = np.bincount(ops.name)
    found = [
        HostOp(
            name=trace.names[number], calls=int(counts[number]), self_s=float(selfs[number]) / NS_PER_S,
            busy_s=union(ops.start[ops.name == number], ops.end[ops.name == number]).total_ns / NS_PER_S,
        )
        for number in np.argsort(-selfs, kind="stable")[: limits.host_ops].tolist() if counts[number]
    ]  # fmt: skip
    return HostTime(
        span_s=(end_ns - zero_ns) / NS_PER_S, ops_busy_s=union(ops.start, ops.end).total_ns / NS_PER_S,
        ops=tuple(found), threads=len(np.unique(ops.thread)),
    )  # fmt: skip


def _take_children(rows: list[int], starts: NDArray[np.int64], ends: NDArray[np.int64], own: NDArray[np.int64]) -> None:
    """Takes from each range of one thread the time of those right inside it."""
    stack: list[int] = []
    for row in rows:
        while stack and ends[stack[-1]] <= starts[row]:
            stack.pop()
        if stack:
            outer = stack[-1]
            own[outer] -= max(0, min(int(ends[row]), int(ends[outer])) - int(starts[row]))
        stack.append(row)


def of_summary(summary: Summary, limits: Limits) -> RankAnalysis:
    """Of a file that holds totals only: no busy time, no gaps, no steps."""
    overall = sum(row.total_s for row in summary.gpu) or 1.0
    rows: list[KernelTime] = []
    for row in summary.gpu:
        category = summary_category(row)
        matrix = row.matrix_unit
        if matrix is None and category in MATRIX_CATEGORIES:
            matrix = uses_matrix_unit(row.name)
        rows.append(
            KernelTime(
                name=row.name, category=category, calls=row.calls, total_s=row.total_s, share=row.total_s / overall,
                mean_s=row.total_s / row.calls if row.calls else 0.0, min_s=row.min_s, max_s=row.max_s,
                matrix_unit=matrix if category in MATRIX_CATEGORIES else None,
            )
        )  # fmt: skip
    rows.sort(key=lambda row: -row.total_s)
    titles = catalogue().categories
    by_category: dict[str, tuple[float, int]] = {}
    for row in rows:
        seconds, calls = by_category.get(row.category, (0.0, 0))
        by_category[row.category] = (seconds + row.total_s, calls + row.calls)
    kernel_total = sum(row.total_s for row in summary.gpu if row.kind == KERNEL)
    told_by = "dlprof" if summary.format.startswith("dlprof") else "names"
    calls = sorted(summary.calls, key=lambda row: -row.total_s)
    return RankAnalysis(
        label="all GPUs" if summary.device is None else f"GPU {summary.device.index}",
        file=summary.file, rank=None, world_size=None,
        device=None if summary.device is None else with_peaks(summary.device),
        origin_unix_ns=None, span_s=0.0,
        categories=tuple(
            CategoryTime(
                category=category, title=titles[category], busy_s=None, total_s=seconds, share=seconds / overall,
                kernels=count,
            )
            for category, (seconds, count) in sorted(by_category.items(), key=lambda row: -row[1][0])
        ),
        unclassified_share=by_category.get(OTHER, (0.0, 0))[0] / kernel_total if kernel_total else None,
        kernels=tuple(rows[: limits.kernels]), kernel_names=len(rows), matrix_units=_matrix_units(rows, told_by),
        host=None if not calls else HostTime(
            span_s=0.0, ops_busy_s=sum(row.total_s for row in calls), threads=0,
            ops=tuple(
                HostOp(name=row.name, calls=row.calls, busy_s=row.total_s, self_s=row.total_s)
                for row in calls[: limits.host_ops]
            ),
        ),
        notes=("The file holds totals only: no busy time, gaps, steps or overlap can be told from it.", *summary.notes),
    )  # fmt: skip


def summary_category(row: Totals) -> str:
    """As for a row of work, from a name alone."""
    if row.kind == KERNEL:
        return category_of(row.name)
    if row.kind == MEMCPY:
        way = COPY_KINDS[copy_kind(row.name)]
        return f"memcpy_{way}" if way in ("h2d", "d2h", "d2d", "p2p") else "memcpy_other"
    return "memset"
