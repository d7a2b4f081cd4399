"""Reads the SQLite export of Nsight Systems. Tables and columns differ between versions and vanish when they would be
empty, so everything is looked for and nothing is required but some work on a GPU or ranges. Instants are nanoseconds.
"""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pinchpoint.errors import UsageError
from pinchpoint.profiles.database import Database, opened
from pinchpoint.profiles.model import Device
from pinchpoint.profiles.source import Limits
from pinchpoint.profiles.trace import (
    COPY_KINDS,
    KERNEL,
    MEMCPY,
    MEMSET,
    NAME_CHARS,
    NO_LINK,
    Gpu,
    Host,
    HostRows,
    Names,
    Reading,
    Trace,
    no_host,
)

COPIES = {1: "h2d", 2: "d2h", 3: "h2d", 4: "d2h", 8: "d2d", 9: "h2h", 10: "p2p", 11: "h2d", 12: "d2h", 13: "d2d"}
"""ENUM_CUDA_MEMCPY_OPER; 3 and 4 are to and from arrays, 11 to 13 those of unified memory."""
PUSH_POP, START_END = 59, 60
"""NVTX ranges among ENUM_NSYS_EVENT_TYPE."""
_VERSION_SUFFIX = re.compile(r"_v\d+$")
"""cudaLaunchKernel_v7000: CUPTI names the version of the ABI."""
_OPERATOR = re.compile(r"^([\w.:~<>]+::[\w.:~<>]+), (?:op_id|seq|sizes|input_op_ids) ?= ?")
"""torch.autograd.profiler.emit_nvtx: 'aten::add, op_id = 314359'."""
KERNELS = "CUPTI_ACTIVITY_KIND_KERNEL"
GRAPHS = "CUPTI_ACTIVITY_KIND_GRAPH_TRACE"
LINK_BITS = 32
"""Numbers of calls count up per process and fit 32 bits; above them goes the process."""


def is_nsys(database: Database) -> bool:
    return "StringIds" in database.columns or any(name.startswith("CUPTI_") for name in database.columns)


def read(path: Path, limits: Limits, file: int) -> Reading:
    """One export. All processes and devices come in one Trace."""
    with opened(path, limits) as (database, source):
        if not is_nsys(database):
            raise UsageError(f"{path} is an SQLite database, but neither of Nsight Systems nor of DLProf")
        names = Names()
        numbers = _strings(database, names)
        gpu = _gpu(database, names, numbers)
        threads: dict[int, int] = {}
        calls = _calls(database, names, numbers, threads)
        ops, ranges = _ranges(database, names, threads)
        trace = Trace(
            format="nsys_sqlite", file=file, names=names.texts, gpu=gpu, calls=calls, ops=ops, ranges=ranges,
            modules=no_host(), devices=_devices(database), clock_zero_unix_ns=_zero(database),
        )  # fmt: skip
        if GRAPHS in database.columns and len(database.numbers(GRAPHS, ["start"])):
            trace.notes.append(
                "Graphs were traced as a whole: their kernels are not in the file. Capture with "
                "--cuda-graph-trace=node."
            )
        events = len(gpu.start) + len(calls.start) + len(ops.start) + len(ranges.start)
        if not events and not source.problems:
            trace.notes.append("The export holds no CUDA activity and no ranges: capture with --trace=cuda,nvtx.")
        return Reading("nsys_sqlite", [trace], [], source.bytes_read, events, source.problems)


def _strings(database: Database, names: Names) -> NDArray[np.int64]:
    """From the file's number of a string to ours; -1 for numbers that do not exist."""
    found: dict[int, int] = {}
    if database.has("StringIds", "id", "value"):
        query = f"SELECT CAST(id AS INTEGER), SUBSTR(COALESCE(value, ''), 1, {NAME_CHARS}) FROM StringIds"
        for number, text in database.rows(query, "StringIds"):
            found[number] = names.number(_VERSION_SUFFIX.sub("", str(text)))
    largest = max((number for number in found if number < 1 << 28), default=0)
    numbers = np.full(largest + 1, -1, np.int64)
    for number, ours in found.items():
        if 0 <= number <= largest:
            numbers[number] = ours
    return numbers


def _named(numbers: NDArray[np.int64], ids: NDArray[np.int64], missing: int) -> NDArray[np.int32]:
    inside = (ids >= 0) & (ids < len(numbers))
    ours = np.where(inside, numbers[np.where(inside, ids, 0)], -1)
    return np.where(ours >= 0, ours, missing).astype(np.int32)


def _process(global_id: NDArray[np.int64]) -> NDArray[np.int64]:
    """Nsight's serialised id: hardware and VM, then 24 bits of process, then 24 bits of thread."""
    return global_id // 0x1000000 % 0x1000000


def _links(global_id: NDArray[np.int64], correlation: NDArray[np.int64]) -> NDArray[np.int64]:
    known = (correlation > 0) & (correlation < 1 << LINK_BITS)
    return np.where(known, _process(global_id) << LINK_BITS | correlation, NO_LINK)


def _gpu(database: Database, names: Names, numbers: NDArray[np.int64]) -> Gpu:
    parts = []
    place = ["start", "end", "deviceId", "streamId", "globalPid", "correlationId", "graphNodeId"]
    absent = {"graphNodeId": -1, "correlationId": -1}
    unnamed = names.number("(unnamed)")
    kernel_names = database.columns.get(KERNELS, [])
    name_column = next((name for name in ("demangledName", "shortName", "mangledName") if name in kernel_names), "name")
    rows = database.numbers(KERNELS, [*place, name_column], absent)
    parts.append((rows[:, :7], _named(numbers, rows[:, 7], unnamed), KERNEL, 0, np.zeros(len(rows), np.int64)))
    rows = database.numbers("CUPTI_ACTIVITY_KIND_MEMCPY", [*place, "copyKind", "bytes"], absent)
    for kind in np.unique(rows[:, 7]).tolist():
        mine = rows[rows[:, 7] == kind]
        way = COPIES.get(kind, "")
        name = names.number(f"Memcpy {way.upper()}" if way else "Memcpy")
        parts.append((mine[:, :7], np.full(len(mine), name, np.int32), MEMCPY, COPY_KINDS.index(way), mine[:, 8]))
    rows = database.numbers("CUPTI_ACTIVITY_KIND_MEMSET", [*place, "bytes"], absent)
    parts.append((rows[:, :7], np.full(len(rows), names.number("Memset"), np.int32), MEMSET, 0, rows[:, 7]))
    rows = database.numbers(GRAPHS, [*place, "graphId"], absent)
    for graph in np.unique(rows[:, 7]).tolist():
        mine = rows[rows[:, 7] == graph]
        parts.append(
            (mine[:, :7], np.full(len(mine), names.number(f"CUDA graph {graph}"), np.int32), KERNEL, 0, mine[:, 7] * 0)
        )
    table = np.concatenate([part[0] for part in parts])
    return Gpu(
        start=table[:, 0],
        end=np.maximum(table[:, 0], table[:, 1]),
        name=np.concatenate([part[1] for part in parts]),
        kind=np.concatenate([np.full(len(part[0]), part[2], np.int8) for part in parts]),
        copy=np.concatenate([np.full(len(part[0]), part[3], np.int8) for part in parts]),
        device=table[:, 2].astype(np.int32),
        stream=table[:, 3],
        link=_links(table[:, 4], table[:, 5]),
        op=np.full(len(table), NO_LINK, np.int64),
        bytes=np.concatenate([part[4] for part in parts]),
        graph=table[:, 6] >= 0,
    )


def _thread_numbers(global_ids: NDArray[np.int64], threads: dict[int, int]) -> NDArray[np.int32]:
    """The same number for the same thread in all tables."""
    unique, inverse = np.unique(global_ids, return_inverse=True)
    ours = np.array([threads.setdefault(thread, len(threads)) for thread in unique.tolist()], np.int32)
    return ours[inverse.reshape(-1)] if len(unique) else np.empty(0, np.int32)


def _calls(database: Database, names: Names, numbers: NDArray[np.int64], threads: dict[int, int]) -> Host:
    columns = ["start", "end", "globalTid", "correlationId", "nameId"]
    rows = database.numbers("CUPTI_ACTIVITY_KIND_RUNTIME", columns, {"correlationId": -1, "nameId": -1})
    return Host(
        start=rows[:, 0],
        end=np.maximum(rows[:, 0], rows[:, 1]),
        name=_named(numbers, rows[:, 4], names.number("(unnamed)")),
        thread=_thread_numbers(rows[:, 2], threads),
        link=_links(rows[:, 2], rows[:, 3]),
        shape=np.full(len(rows), -1, np.int32),
    )


def _ranges(database: Database, names: Names, threads: dict[int, int]) -> tuple[Host, Host]:
    """NVTX ranges: those that PyTorch writes for its operators, and all others."""
    ops, ranges = HostRows(), HostRows()
    if database.has("NVTX_EVENTS", "start", "end", "globalTid"):
        have = database.columns["NVTX_EVENTS"]
        own = "e.text" if "text" in have else "NULL"
        registered = "s.value" if "textId" in have and "StringIds" in database.columns else "NULL"
        join = "LEFT JOIN StringIds s ON s.id = e.textId" if registered != "NULL" else ""
        chosen = f"AND e.eventType IN ({PUSH_POP}, {START_END})" if "eventType" in have else ""
        query = (
            f"SELECT CAST(e.start AS INTEGER), CAST(e.end AS INTEGER), CAST(COALESCE(e.globalTid, 0) AS INTEGER), "
            f"SUBSTR(COALESCE({own}, {registered}, ''), 1, {NAME_CHARS}) FROM NVTX_EVENTS e {join} "
            f"WHERE e.end IS NOT NULL {chosen}"
        )
        for start, end, thread, text in database.rows(query, "NVTX_EVENTS"):
            if start is None or not text:
                continue
            number = threads.setdefault(thread, len(threads))
            operator = _OPERATOR.match(text)
            if operator:
                ops.add(start, end, names.number(operator[1]), number)
            else:
                ranges.add(start, end, names.number(text), number)
    return ops.done(), ranges.done()


def _devices(database: Database) -> dict[int, Device]:
    table = "TARGET_INFO_GPU"
    if not database.has(table, "id", "name"):
        return {}
    have = database.columns[table]
    units = "smCount" if "smCount" in have else "NULL"
    memory = "totalMemory" if "totalMemory" in have else "NULL"
    number = "cuDevice" if "cuDevice" in have else "id"
    found = {}
    for index, name, compute_units, size in database.rows(
        f"SELECT {number}, name, {units}, {memory} FROM {table}", table
    ):
        if isinstance(index, int):
            found[index] = Device(
                index=index, name=str(name) or None,
                compute_units=compute_units if isinstance(compute_units, int) else None,
                memory_bytes=size if isinstance(size, int) else None,
            )  # fmt: skip
    return found


def _zero(database: Database) -> int | None:
    """Instants count from the begin of the session, whose wall clock the file names."""
    rows = database.numbers("TARGET_INFO_SESSION_START_TIME", ["utcEpochNs"])
    return int(rows[0, 0]) or None if len(rows) else None
