"""Reads the JSON of AMD's rocprofv3: kernel dispatches and copies, with the calls of HIP where they were traced.

The dispatches stream by; what names them (symbols, agents, strings) stands before or behind them in the file, so their
numbers are resolved at the end. Times are nanoseconds.
"""

import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pinchpoint.errors import UsageError
from pinchpoint.profiles.json_stream import ArrayReader, note_damages
from pinchpoint.profiles.model import Device
from pinchpoint.profiles.source import Limits, Source
from pinchpoint.profiles.trace import (
    KERNEL,
    MEMCPY,
    NO_LINK,
    Gpu,
    GpuRows,
    Names,
    Reading,
    Trace,
    copy_kind,
    no_host,
)

_DISPATCHES = re.compile(rb'"kernel_dispatch"\s*:\s*\[\s*(?=\{)')
_TOOL = b'"rocprofiler-sdk-tool"'


class _Handle(msgspec.Struct, gc=False):
    handle: int = 0


class _Correlation(msgspec.Struct, gc=False):
    internal: int = NO_LINK


class _Dispatch(msgspec.Struct, gc=False):
    agent_id: _Handle = msgspec.field(default_factory=_Handle)
    queue_id: _Handle = msgspec.field(default_factory=_Handle)
    kernel_id: int = -1


class _Record(msgspec.Struct, gc=False):
    """A kernel dispatch."""

    start_timestamp: int = 0
    end_timestamp: int = 0
    correlation_id: _Correlation = msgspec.field(default_factory=_Correlation)
    dispatch_info: _Dispatch = msgspec.field(default_factory=_Dispatch)
    stream_id: _Handle = msgspec.field(default_factory=_Handle)


class _Copy(msgspec.Struct):
    start_timestamp: int = 0
    end_timestamp: int = 0
    operation: int = -1
    correlation_id: _Correlation = msgspec.field(default_factory=_Correlation)
    dst_agent_id: _Handle = msgspec.field(default_factory=_Handle)
    src_agent_id: _Handle = msgspec.field(default_factory=_Handle)
    bytes: int = 0


class _Symbol(msgspec.Struct):
    kernel_id: int = -1
    formatted_kernel_name: str = ""
    kernel_name: str = ""


class _Agent(msgspec.Struct):
    id: _Handle = msgspec.field(default_factory=_Handle)
    type: int = 0
    name: str = ""
    product_name: str = ""
    cu_count: int = 0
    logical_node_type_id: int = -1


GPU_AGENT = 2
"""rocprofiler's agent type; 1 is a CPU."""

_MANY = msgspec.json.Decoder(list[_Record])
_ONE = msgspec.json.Decoder(_Record)


def looks_like_rocprof(head: bytes) -> bool:
    return _TOOL in head[:4096]


def read(path: Path, limits: Limits, file: int) -> Reading:
    """One result file. Raises UsageError if it lists no dispatches."""
    source = Source(path, limits)
    reader = ArrayReader(_MANY, _ONE)
    gpu = GpuRows()
    count = 0
    handles: dict[int, int] = {}
    for batch in reader.items(source.pieces(), _first_dispatch):
        count += len(batch)
        for row in batch:
            info = row.dispatch_info
            gpu.add(
                start=row.start_timestamp, end=row.end_timestamp, name=max(-1, info.kernel_id), kind=KERNEL,
                device=handles.setdefault(info.agent_id.handle, len(handles)),
                stream=row.stream_id.handle or info.queue_id.handle, link=row.correlation_id.internal,
            )  # fmt: skip
    note_damages(source, reader.damages)
    if not reader.found:
        raise UsageError(
            f"{path} is a result of rocprofv3 without kernel dispatches; run it with --kernel-trace, or "
            "copy it again if it was cut off before them"
        )
    if not reader.closed:
        source.lost("the result ends inside the list of dispatches: it was cut off", byte_offset=source.bytes_read)
    names = Names()
    around = _around(reader.head, reader.tail)
    symbols = _symbols(around, names, reader.head)
    unnamed = names.number("(unnamed)")
    dispatched = gpu.done()
    dispatched.name = np.array([symbols.get(number, unnamed) for number in dispatched.name.tolist()], np.int32)
    copies = _copies(around, names, handles)
    for column in dispatched.__slots__:
        setattr(dispatched, column, np.concatenate([getattr(dispatched, column), getattr(copies, column)]))
    trace = Trace(
        format="rocprofv3_json", file=file, names=names.texts, gpu=dispatched, calls=no_host(), ops=no_host(),
        ranges=no_host(), modules=no_host(), devices=_devices(around, handles),
    )  # fmt: skip
    trace.notes.append(
        "The calls of HIP are not read from rocprofv3's results: use PyTorch's profiler to see the launches."
    )
    return Reading("rocprofv3_json", [trace], [], source.bytes_read, count + len(copies.start), source.problems)


def _first_dispatch(text: bytes) -> int | None:
    found = _DISPATCHES.search(text)
    return found.end() if found else None


def _around(head: bytes, tail: bytes) -> dict[str, Any]:
    """What stands before and behind the dispatches: the whole without them, or as much as can be read."""
    for text in (head + b"]" + tail, head + b"]}}]}"):
        try:
            tools = msgspec.json.decode(text)["rocprofiler-sdk-tool"]
            return tools[0]
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError, IndexError, TypeError, RecursionError):
            continue
    return {}


_SYMBOL = re.compile(rb'\{[^{}]*"kernel_id"\s*:\s*\d+[^{}]*(?:\{[^{}]*\}[^{}]*)*\}')


def _symbols(around: dict[str, Any], names: Names, head: bytes) -> dict[int, int]:
    """From the number of a kernel to that of its name."""
    try:
        rows = msgspec.convert(around.get("kernel_symbols", []), list[_Symbol], strict=False)
    except msgspec.ValidationError:
        rows = []
    if not rows:
        for text in _SYMBOL.findall(head):
            try:
                rows.append(msgspec.json.decode(text, type=_Symbol))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
    return {
        row.kernel_id: names.number((row.formatted_kernel_name or row.kernel_name).removesuffix(".kd")) for row in rows
    }


def _copies(around: dict[str, Any], names: Names, handles: dict[int, int]) -> Gpu:
    gpu = GpuRows()
    records = around.get("buffer_records", {})
    operations: dict[int, str] = {}
    strings = around.get("strings", {})
    for row in strings.get("buffer_records", []) if isinstance(strings, dict) else []:
        if isinstance(row, dict) and row.get("kind") == "MEMORY_COPY":
            operations = dict(enumerate(str(name) for name in row.get("operations", [])))
    try:
        rows = msgspec.convert(records.get("memory_copy", []), list[_Copy], strict=False)
    except (msgspec.ValidationError, AttributeError):
        rows = []
    for row in rows:
        way = operations.get(row.operation, "").replace("_", "").lower()
        text = f"Memcpy {operations.get(row.operation, '')}".strip()
        handle = next((one.handle for one in (row.dst_agent_id, row.src_agent_id) if one.handle in handles), None)
        gpu.add(
            start=row.start_timestamp, end=row.end_timestamp, name=names.number(text), kind=MEMCPY,
            copy=copy_kind(way), device=handles.get(handle, 0) if handle is not None else 0,
            link=row.correlation_id.internal, size_bytes=max(0, row.bytes), stream=-1,
        )  # fmt: skip
    return gpu.done()


def _devices(around: dict[str, Any], handles: dict[int, int]) -> dict[int, Device]:
    try:
        agents = msgspec.convert(around.get("agents", []), list[_Agent], strict=False)
    except msgspec.ValidationError:
        return {}
    found = {}
    for agent in agents:
        index = handles.get(agent.id.handle)
        if index is not None and agent.type == GPU_AGENT:
            found[index] = Device(
                index=index, name=agent.product_name or agent.name or None, compute_units=agent.cu_count or None
            )
    return found
