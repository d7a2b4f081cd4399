"""Traces as PyTorch's profiler (Kineto) writes them, made from simulated steps.

The format is Chrome's trace events: complete events with instants and durations in microseconds, categories
user_annotation, cpu_op, cuda_runtime, kernel and gpu_memcpy, and flows ac2g from a launch to what it started. Read by
Perfetto and by tools that analyse Kineto traces.

What is consistent with the simulation: when each step ran and how long, what its parts took together (StepCost), and
why the GPU stood still: waiting for the host at the beginning of a step, for launches within it, between steps for
nothing to do. How a part's time is spread over its kernels is a plausible picture only, and all of them run on one
stream. One trace shows the first GPU of one engine.
"""

import gzip
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from pinchpoint.clock import NS_PER_S
from pinchpoint.lab.kernels import Kernel, kernels_of
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.work import StepCost, StepWork

US_PER_S = 1e6
STREAM = 7
"""PyTorch's first stream beside the default one, in most published traces."""
CONTEXT = 1
LAUNCH_TO_START_S = 4e-6
"""From the launch call to the kernel's begin on an idle GPU; 3 to 6 us in published H100 traces."""
LAUNCH_CALL_S = 3e-6
GRAPH_LAUNCH_CALL_S = 20e-6
OP_S = 5e-6
"""An operator around its launch."""
KERNEL_MIN_S = 1.5e-6
"""No kernel takes less: the shortest in published traces of A100 and H100 take 1.2 to 2 us, whatever they do."""
THREADS_PER_BLOCK = 128
BASE_UNIX_NS = 1_767_189_312 * NS_PER_S
"""Instants in a trace are relative to a date that the trace names, as Kineto's are."""
SMS = {"A100": 108, "H100": 132, "H200": 132, "B200": 148, "L40S": 142, "RTX4090": 128, "RTXPRO6000": 188, "910B2": 24}
"""Multiprocessors by data sheet (AI cores on Ascend)."""
CAPABILITY = {"A100": (8, 0), "H100": (9, 0), "H200": (9, 0), "B200": (10, 0), "L40S": (8, 9), "RTX4090": (8, 9)}


class StepRecord(msgspec.Struct, frozen=True):
    """One step that was profiled. start_s: on the service's clock. cost without noise; duration_s with it."""

    start_s: float
    duration_s: float
    work: StepWork
    cost: StepCost


def trace(
    steps: Sequence[StepRecord], params: LabParams, *, origin_unix_ns: int, pid: int, window_s: tuple[float, float]
) -> dict[str, Any]:
    """The trace as an object. origin_unix_ns: the wall clock at instant 0 of the service; window_s: from the start of
    profiling to its end. pid: of the engine's process."""
    zero_us = (origin_unix_ns - BASE_UNIX_NS) / 1e3
    writer = _Writer(params, zero_us, pid)
    events = [*_names(params, pid, zero_us + window_s[0] * US_PER_S)]
    for step in steps:
        events += writer.step(step)
    begin_us, end_us = (round(zero_us + instant * US_PER_S, 3) for instant in window_s)
    events.append(
        {
            "ph": "X",
            "cat": "Trace",
            "ts": begin_us,
            "dur": round(end_us - begin_us, 3),
            "pid": "Spans",
            "tid": "PyTorch Profiler",
            "name": "PyTorch Profiler (0)",
            "args": {"Op count": 0},
        }
    )
    mark = {"ph": "i", "s": "g", "pid": "Traces", "tid": "Trace PyTorch Profiler"}
    events.append({**mark, "name": "Iteration Start: PyTorch Profiler", "ts": begin_us})
    events.append({"ph": "i", "s": "g", "name": "Record Window End", "pid": "", "tid": "", "ts": end_us})
    ways = params.tensor_parallel * params.pipeline_parallel
    return {
        "schemaVersion": 1,
        "deviceProperties": [_device(params)],
        "distributedInfo": {
            "backend": "nccl",
            "rank": 0,
            "world_size": ways,
            "pg_count": 1,
            "pg_config": [
                {"pg_name": "0", "pg_desc": "default_pg", "backend_config": "cuda:nccl", "pg_size": ways,
                 "ranks": list(range(ways))}
            ],
        },
        "with_flops": 0,
        "record_shapes": 0,
        "with_stack": 0,
        "displayTimeUnit": "ms",
        "baseTimeNanoseconds": BASE_UNIX_NS,
        "traceEvents": events,
        "traceName": "rank0.pt.trace.json",
    }  # fmt: skip


def encode(content: dict[str, Any]) -> bytes:
    """As it is written to a .json.gz file."""
    return gzip.compress(msgspec.json.encode(content), compresslevel=4)


def _device(params: LabParams) -> dict[str, Any]:
    major, minor = CAPABILITY.get(params.gpu, (9, 0))
    return {
        "id": 0,
        "name": params.gpu_spec.product_name,
        "totalGlobalMem": int(params.gpu_spec.memory_bytes),
        "computeMajor": major,
        "computeMinor": minor,
        "maxThreadsPerBlock": 1024,
        "maxThreadsPerMultiprocessor": 2048,
        "regsPerBlock": 65536,
        "warpSize": 32,
        "numSms": SMS.get(params.gpu, 132),
    }


def _names(params: LabParams, pid: int, ts: float) -> Iterator[dict[str, Any]]:
    worker = "VLLM::Worker" if params.dialect == "vllm" else "sglang::scheduler"
    for owner, name, label, order in ((pid, worker, "CPU", pid), (0, worker, "GPU 0", 5_000_000)):
        head = {"ph": "M", "ts": ts, "pid": owner, "tid": 0}
        yield {**head, "name": "process_name", "args": {"name": name}}
        yield {**head, "name": "process_labels", "args": {"labels": label}}
        yield {**head, "name": "process_sort_index", "args": {"sort_index": order}}
    yield {"ph": "M", "ts": ts, "pid": pid, "tid": pid, "name": "thread_name", "args": {"name": f"thread {pid}"}}
    yield {"ph": "M", "ts": ts, "pid": 0, "tid": STREAM, "name": "thread_name", "args": {"name": f"stream {STREAM}"}}


class _Writer:
    """Numbers operators and launches through the whole trace."""

    def __init__(self, params: LabParams, zero_us: float, pid: int) -> None:
        self._params = params
        self._zero_us = zero_us
        self._pid = pid
        self._correlation = 1_000
        self._operator = 0
        self._sms = SMS.get(params.gpu, 132)

    def step(self, step: StepRecord) -> Iterator[dict[str, Any]]:
        cost, params = step.cost, self._params
        kernels = kernels_of(params, step.work, cost)
        scale = step.duration_s / cost.total_s  # noise, and what slowed this step alone
        durations_s = _durations(kernels, cost, scale)
        lead_s = (cost.host_s + cost.compile_s) * scale
        gap_s = (cost.launch_s + cost.neighbour_s) * scale / max(1, len(kernels) - 1)
        starts_s = []
        at_s = step.start_s + lead_s
        for duration_s in durations_s:
            starts_s.append(at_s)
            at_s += duration_s + gap_s
        yield self._event("user_annotation", _annotation(params, step.work), step.start_s, step.duration_s)
        if cost.graphed:
            yield from self._graph(kernels, starts_s, durations_s, step.start_s)
        else:
            yield from self._eager(kernels, starts_s, durations_s, cost.launch_s > 0)

    def _graph(
        self, kernels: list[Kernel], starts_s: list[float], durations_s: list[float], begin_s: float
    ) -> Iterator[dict[str, Any]]:
        """One launch for all of them."""
        correlation = self._next_correlation()
        launch_s = max(begin_s, starts_s[0] - LAUNCH_TO_START_S - GRAPH_LAUNCH_CALL_S)
        yield self._launch("cudaGraphLaunch", 311, launch_s, GRAPH_LAUNCH_CALL_S, correlation)
        for node, (kernel, start_s, duration_s) in enumerate(zip(kernels, starts_s, durations_s, strict=True)):
            extra = {"graph id": 1, "graph node id": node}
            yield from self._on_gpu(kernel, start_s, duration_s, correlation, extra)

    def _eager(
        self, kernels: list[Kernel], starts_s: list[float], durations_s: list[float], launch_bound: bool
    ) -> Iterator[dict[str, Any]]:
        """One operator and launch for each. Where the GPU is what takes the time, the host runs ahead of it."""
        ahead_s = starts_s[0] - LAUNCH_TO_START_S
        for index, (kernel, start_s, duration_s) in enumerate(zip(kernels, starts_s, durations_s, strict=True)):
            launch_s = start_s - LAUNCH_TO_START_S
            if not launch_bound:
                launch_s = min(launch_s, ahead_s + index * self._params.kernel_launch_s)
            correlation = self._next_correlation()
            op_s = launch_s - (OP_S - LAUNCH_CALL_S)
            op = self._event("cpu_op", kernel.op, op_s, OP_S)
            yield op
            name, number = ("cudaMemcpyAsync", 41) if kernel.copy_bytes else ("cudaLaunchKernel", 211)
            external = op["args"]["External id"]
            yield self._launch(name, number, launch_s, LAUNCH_CALL_S, correlation, external)
            yield from self._on_gpu(kernel, start_s, duration_s, correlation, {"External id": external})

    def _launch(
        self, name: str, number: int, start_s: float, duration_s: float, correlation: int, external: int | None = None
    ) -> dict[str, Any]:
        args: dict[str, Any] = {} if external is None else {"External id": external}
        return {
            "ph": "X", "cat": "cuda_runtime", "name": name, "pid": self._pid, "tid": self._pid,
            "ts": self._us(start_s), "dur": round(duration_s * US_PER_S, 3),
            "args": args | {"cbid": number, "correlation": correlation},
        }  # fmt: skip

    def _on_gpu(
        self, kernel: Kernel, start_s: float, duration_s: float, correlation: int, extra: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        ts, dur = self._us(start_s), round(duration_s * US_PER_S, 3)
        flow = {"id": correlation, "cat": "ac2g", "name": "ac2g"}
        if extra.get("graph node id", 0) == 0:
            launched_us = self._us(start_s - LAUNCH_TO_START_S)
            yield {"ph": "s", **flow, "pid": self._pid, "tid": self._pid, "ts": launched_us}
        yield {"ph": "f", **flow, "pid": 0, "tid": STREAM, "ts": ts, "bp": "e"}
        place = {"device": 0, "context": CONTEXT, "stream": STREAM, "correlation": correlation}
        head = {"ph": "X", "name": kernel.name, "pid": 0, "tid": STREAM, "ts": ts, "dur": dur}
        if kernel.copy_bytes:
            rate = kernel.copy_bytes / duration_s / 1e9 if duration_s else 0.0
            args = {**extra, **place, "bytes": kernel.copy_bytes, "memory bandwidth (GB/s)": round(rate, 3)}
            yield {**head, "cat": "gpu_memcpy", "args": args}
            return
        blocks = self._sms * 2 if kernel.part in ("gemm", "attention") else max(1, self._sms // 2)
        warps = blocks * THREADS_PER_BLOCK / 32 / self._sms
        args = {
            **extra, **place, "queued": 0, "registers per thread": 64, "shared memory": 0,
            "blocks per SM": round(blocks / self._sms, 6), "warps per SM": round(warps, 6),
            "grid": [blocks, 1, 1], "block": [THREADS_PER_BLOCK, 1, 1],
            "est. achieved occupancy %": min(100, round(warps / 64 * 100)),
        }  # fmt: skip
        yield {**head, "cat": "kernel", "args": args}

    def _event(self, category: str, name: str, start_s: float, duration_s: float) -> dict[str, Any]:
        self._operator += 1
        args = {"External id": self._operator, "Record function id": 0, "Ev Idx": self._operator - 1}
        return {
            "ph": "X", "cat": category, "name": name, "pid": self._pid, "tid": self._pid,
            "ts": self._us(start_s), "dur": round(duration_s * US_PER_S, 3), "args": args,
        }  # fmt: skip

    def _next_correlation(self) -> int:
        self._correlation += 1
        return self._correlation

    def _us(self, instant_s: float) -> float:
        return round(self._zero_us + instant_s * US_PER_S, 3)


def _durations(kernels: list[Kernel], cost: StepCost, scale: float) -> list[float]:
    """Each part's time over its kernels by weight. Time of a part that has no kernel goes to the products.

    What kernels need to last as long as the shortest do is taken from the longer ones, so the sum stays the step's.
    """
    weights: dict[str, float] = {}
    for kernel in kernels:
        weights[kernel.part] = weights.get(kernel.part, 0.0) + kernel.weight
    seconds = {
        "gemm": cost.gemm_s,
        "attention": cost.attention_s,
        "small": cost.small_s,
        "communication": cost.communication_s,
        "sampling": cost.sampling_s,
        "encoder": cost.encoder_s,
        "copy": cost.copy_s,
    }
    for part in [part for part in seconds if part not in weights]:
        seconds["gemm"] += seconds.pop(part)
    rates = {part: scale * seconds[part] / weights[part] for part in weights}
    return _lifted([kernel.weight * rates[kernel.part] for kernel in kernels], KERNEL_MIN_S)


def _lifted(durations_s: list[float], least_s: float) -> list[float]:
    """None below `least_s`, the same sum; all alike where the sum does not allow it."""
    spare_s = sum(durations_s) - least_s * len(durations_s)
    if spare_s <= 0:
        return [sum(durations_s) / len(durations_s)] * len(durations_s) if durations_s else []
    above_s = sum(max(0.0, duration_s - least_s) for duration_s in durations_s)
    return [least_s + max(0.0, duration_s - least_s) * spare_s / above_s for duration_s in durations_s]


def _annotation(params: LabParams, work: StepWork) -> str:
    """What the engine calls the step in its own profile."""
    decode_tokens = work.tokens - work.prefill_tokens
    generating = min(work.sequences, decode_tokens)
    prompts = work.sequences - generating
    if params.dialect == "sglang":
        kind, size = ("EXTEND", work.prefill_tokens) if work.prefill_tokens else ("DECODE", decode_tokens)
        return f"step[{kind} bs={work.sequences} toks={size}]"
    return f"execute_context_{prompts}({work.prefill_tokens})_generation_{generating}({decode_tokens})"
