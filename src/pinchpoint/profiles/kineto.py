"""Reads traces of PyTorch's profiler (Kineto): Chrome trace events in JSON, plain or gzip, as a stream.

Events that nothing asks for (Python functions that are no modules, flows, memory instants) are passed over, so that
memory grows with what is analysed and not with the file. Instants are microseconds in the file, made nanoseconds here.
"""

import re
from pathlib import Path
from typing import Any

import msgspec

from pinchpoint.errors import UsageError
from pinchpoint.profiles.json_stream import ArrayReader, note_damages
from pinchpoint.profiles.model import Device
from pinchpoint.profiles.source import Limits, Source
from pinchpoint.profiles.trace import (
    KERNEL,
    MEMCPY,
    MEMSET,
    NO_LINK,
    GpuRows,
    HostRows,
    Names,
    Reading,
    Trace,
    copy_kind,
)

NS_PER_US = 1000.0
ON_GPU = {"kernel": KERNEL, "gpu_memcpy": MEMCPY, "gpu_memset": MEMSET}
ON_GPU |= {"Kernel": KERNEL, "Memcpy": MEMCPY, "Memset": MEMSET}  # spelt so before PyTorch 1.11
CALLS = frozenset({"cuda_runtime", "cuda_driver", "Runtime", "hip_runtime", "privateuse1_runtime", "xpu_runtime"})
OPS = frozenset({"cpu_op", "Operator"})
RANGES = frozenset({"user_annotation"})
MODULE_PREFIX = "nn.Module: "
_START = re.compile(rb'"traceEvents"\s*:\s*\[')
_RANK_IN_NAME = re.compile(r"(?<![a-z0-9])(?:rank|tp|worker)[-_ ]?(\d+)", re.IGNORECASE)

Number = int | float | str | None


class Args(msgspec.Struct, gc=False):
    """What is read of an event's arguments."""

    correlation: Number = None
    external_id: Number = msgspec.field(default=None, name="External id")
    old_external_id: Number = msgspec.field(default=None, name="external id")
    device: Number = None
    stream: Number = None
    bytes: Number = None
    graph_node: Number = msgspec.field(default=None, name="graph node id")
    input_dims: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Input Dims")
    input_shapes: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Input dims")
    concrete: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Concrete Inputs")
    input_type: msgspec.Raw = msgspec.field(default=msgspec.Raw(b""), name="Input type")


class Event(msgspec.Struct, gc=False):
    """One trace event; everything may be missing."""

    ph: str | None = None
    cat: str | None = None
    name: str | None = None
    pid: int | float | str | None = None
    tid: int | float | str | None = None
    ts: int | float | str | None = None
    dur: int | float | str | None = None
    args: Args | None = None


_MANY = msgspec.json.Decoder(list[Event])
_ONE = msgspec.json.Decoder(Event)


class DeviceProperties(msgspec.Struct):
    id: int = 0
    name: str = ""
    total_memory: int | None = msgspec.field(default=None, name="totalGlobalMem")
    units: int | None = msgspec.field(default=None, name="numSms")


class Distributed(msgspec.Struct):
    rank: int | None = None
    world_size: int | None = None


def looks_like_kineto(head: bytes) -> bool:
    """Whether the begin of a file may be one: an object that names traceEvents or what Kineto writes before them, or
    an array of events."""
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text[:1] == b"[":
        return b'"ph"' in text
    return text[:1] == b"{" and any(
        word in text for word in (b'"traceEvents"', b'"schemaVersion"', b'"deviceProperties"', b'"distributedInfo"')
    )


def read(path: Path, limits: Limits, file: int) -> Reading:
    """One file. file: its number among those given. Raises UsageError if it holds no events at all."""
    source = Source(path, limits)
    reader = ArrayReader(_MANY, _ONE)
    events = _Events()
    for batch in reader.items(source.pieces(), _first_event):
        for event in batch:
            events.take(event)
    note_damages(source, reader.damages)
    if not reader.found:
        raise UsageError(f"{path} is JSON without traceEvents: not a trace of PyTorch's profiler")
    if not reader.closed:
        source.lost("the trace ends before its closing bracket: it was cut off", byte_offset=source.bytes_read)
    if events.incomplete:
        source.lost("events without an instant, or with one that is no number, were left out",
                    events_lost=events.incomplete)  # fmt: skip
    trace = events.trace(file)
    _around(trace, reader.head, reader.tail, path)
    return Reading("kineto", [trace], [], source.bytes_read, events.count, source.problems)


def _first_event(text: bytes) -> int | None:
    if text.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
        return text.index(b"[") + 1
    found = _START.search(text)
    return found.end() if found else None


class _Events:
    """Sorts events into columns."""

    def __init__(self) -> None:
        self.count = 0
        self.incomplete = 0
        self._names = Names()
        self._gpu = GpuRows()
        self._calls, self._ops, self._ranges, self._modules = HostRows(), HostRows(), HostRows(), HostRows()
        self._threads: dict[tuple[object, object], int] = {}
        self._shapes: dict[bytes, int] = {}
        self._kept: dict[str, bool] = {}

    def take(self, event: Event) -> None:
        self.count += 1
        category = event.cat
        if event.ph != "X" or category is None:
            return
        if category == "python_function":
            if event.name is None or not event.name.startswith(MODULE_PREFIX):
                return
        elif not (category in ON_GPU or category in CALLS or category in OPS or category in RANGES):
            return
        try:
            start = round(float(event.ts) * NS_PER_US)  # pyright: ignore[reportArgumentType]
            end = start + round(float(event.dur or 0) * NS_PER_US)
        except (TypeError, ValueError, OverflowError):
            self.incomplete += 1
            return
        if not -(1 << 62) < start <= end < 1 << 62:
            self.incomplete += 1
            return
        name = self._names.number(event.name or "")
        args = event.args or NO_ARGS
        kind = ON_GPU.get(category)
        if kind is not None:
            self._on_gpu(event, args, kind, start, end, name)
            return
        thread = self._threads.setdefault((event.pid, event.tid), len(self._threads))
        if category in CALLS:
            self._calls.add(start, end, name, thread, _whole(args.correlation))
        elif category in OPS:
            self._ops.add(start, end, name, thread, _external(args), self._shape(event, args))
        elif category in RANGES:
            self._ranges.add(start, end, name, thread, _external(args))
        else:
            self._modules.add(start, end, name, thread)

    def _on_gpu(self, event: Event, args: Args, kind: int, start: int, end: int, name: int) -> None:
        device = _whole(args.device)
        if device == NO_LINK:
            device = _whole(event.pid)
        stream = _whole(args.stream)
        if stream == NO_LINK:
            stream = _whole(event.tid)
        self._gpu.add(
            start=start,
            end=end,
            name=name,
            kind=kind,
            copy=copy_kind(event.name or "") if kind == MEMCPY else 0,
            device=min(max(device, 0), 1 << 20),
            stream=stream,
            link=_whole(args.correlation),
            op=_external(args),
            size_bytes=max(0, _whole(args.bytes)),
            graph=args.graph_node not in (None, 0, "0"),
        )

    def _shape(self, event: Event, args: Args) -> int:
        """Only attention asks for the values of its arguments (whether it is causal)."""
        dims = bytes(args.input_dims) or bytes(args.input_shapes)
        if not dims or len(dims) > LONGEST_SHAPE_BYTES:
            return -1
        values = bytes(args.concrete) if "attention" in (event.name or "") else b""
        text = b"[" + dims + b"," + (bytes(args.input_type) or b"[]") + b"," + (values or b"[]") + b"]"
        return self._shapes.setdefault(text, len(self._shapes))

    def trace(self, file: int) -> Trace:
        return Trace(
            format="kineto",
            file=file,
            names=self._names.texts,
            gpu=self._gpu.done(),
            calls=self._calls.done(),
            ops=self._ops.done(),
            ranges=self._ranges.done(),
            modules=self._modules.done(),
            shapes=list(self._shapes),
        )


NO_ARGS = Args()
LONGEST_SHAPE_BYTES = 4_000
"""Longer lists of dimensions belong to operators over thousands of tensors, which no formula here covers."""


def _whole(value: Number) -> int:
    """A number that may be written as text; NO_LINK for none."""
    if type(value) is int:
        return value if -(1 << 62) < value < 1 << 62 else NO_LINK
    if value is None:
        return NO_LINK
    try:
        number = int(float(value))
    except (ValueError, OverflowError):
        return NO_LINK
    return number if -(1 << 62) < number < 1 << 62 else NO_LINK


def _external(args: Args) -> int:
    return _whole(args.external_id if args.external_id is not None else args.old_external_id)


def _around(trace: Trace, head: bytes, tail: bytes, path: Path) -> None:
    """What stands before and behind the events: devices, rank, the clock's zero."""
    around: dict[str, Any] = {}
    for text in (head + b"]}", b'{"events":[]' + tail, b'{"events":[' + tail):
        try:
            around |= msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError, RecursionError):
            continue
    try:
        for row in msgspec.convert(around.get("deviceProperties", []), list[DeviceProperties], strict=False):
            trace.devices[row.id] = Device(
                index=row.id, name=row.name or None, compute_units=row.units, memory_bytes=row.total_memory
            )
        distributed = msgspec.convert(around.get("distributedInfo", {}), Distributed, strict=False)
        trace.rank, trace.world_size = distributed.rank, distributed.world_size
        trace.clock_zero_unix_ns = msgspec.convert(around.get("baseTimeNanoseconds"), int | None, strict=False)
    except msgspec.ValidationError as error:
        trace.notes.append(f"What the file says of devices and ranks could not be read: {error}.")
    if trace.rank is None and (named := _RANK_IN_NAME.search(path.name)):
        trace.rank = int(named[1])
    if not trace.clock_zero_unix_ns:
        # Before baseTimeNanoseconds existed, instants were microseconds of the wall clock.
        columns = [rows.start for rows in (trace.gpu, trace.calls, trace.ops, trace.ranges) if len(rows.start)]
        first = min((int(column.min()) for column in columns), default=0)
        trace.clock_zero_unix_ns = 0 if first > EARLIEST_UNIX_NS else None


EARLIEST_UNIX_NS = 1_400_000_000_000_000_000
"""May 2014; a clock since boot reads less than this for 44 years."""
