"""Reads the database of NVIDIA's DLProf (discontinued after version 1.8): its views of kernels, iterations and shares.

Times are nanoseconds. DLProf itself knows which kernels use tensor cores, so that is taken from it and not from names.
"""

from pathlib import Path

from pinchpoint.profiles.database import Database, opened
from pinchpoint.profiles.model import Device
from pinchpoint.profiles.source import Limits
from pinchpoint.profiles.trace import (
    KERNEL,
    MEMCPY,
    MEMSET,
    NAME_CHARS,
    GpuRows,
    HostRows,
    Names,
    Reading,
    Summary,
    Totals,
    Trace,
    copy_kind,
    no_host,
)

BREAKDOWN = {
    "tc_duration_pct": "kernels on tensor cores", "non_tc_duration_pct": "other kernels",
    "memory_duration_pct": "copies",
    "dataloader_duration_pct": "loading data", "io_duration_pct": "input and output", "cpu_duration_pct": "the CPU",
    "other_duration_pct": "other",
}  # fmt: skip


def is_dlprof(database: Database) -> bool:
    return any(
        name in database.columns for name in ("view_op_nodes", "view_iteration_kernels", "view_performance_summary")
    )


def read(path: Path, limits: Limits, file: int) -> Reading:
    """Kernels one by one where the database lists them, else totals per operator."""
    with opened(path, limits) as (database, source):
        notes = _notes(database)
        devices = _devices(database)
        trace, on_tensor_cores = _kernels(database, file)
        if trace is not None:
            trace.notes += notes
            trace.devices = devices
            trace.matrix_units = on_tensor_cores
            events = len(trace.gpu.start)
            return Reading("dlprof_sqlite", [trace], [], source.bytes_read, events, source.problems)
        rows = _ops(database)
        summary = Summary(format="dlprof_sqlite", file=file, gpu=rows, calls=[], notes=notes)
        if len(devices) == 1:
            summary.device = next(iter(devices.values()))
        return Reading("dlprof_sqlite", [], [summary], source.bytes_read, len(rows), source.problems)


def _kernels(database: Database, file: int) -> tuple[Trace | None, dict[int, bool]]:
    """And for each number of a name whether DLProf says that it uses tensor cores."""
    view = "view_iteration_kernels"
    if not database.has(view, "kernel_name", "kernel_timestamp", "kernel_duration"):
        return None, {}
    have = database.columns[view]
    device = "device_id" if "device_id" in have else "0"
    uses = "uses_tc" if "uses_tc" in have else "NULL"
    names, gpu = Names(), GpuRows()
    answers: dict[int, bool] = {}
    query = (
        f"SELECT DISTINCT SUBSTR(COALESCE(kernel_name, ''), 1, {NAME_CHARS}), CAST(kernel_timestamp AS INTEGER), "
        f"CAST(kernel_duration AS INTEGER), CAST(COALESCE({device}, 0) AS INTEGER), {uses} FROM {view}"
    )
    for text, start, duration, index, used in database.rows(query, view):
        if start is None or duration is None:
            continue
        number = names.number(str(text))
        kind = MEMCPY if "memcpy" in text.lower() else MEMSET if "memset" in text.lower() else KERNEL
        gpu.add(
            start=start, end=start + max(0, duration), name=number, kind=kind, device=max(0, min(index, 1 << 20)),
            copy=copy_kind(text) if kind == MEMCPY else 0,
        )  # fmt: skip
        if used is not None:
            answers[number] = str(used).lower() in ("1", "true", "yes")
    ranges = HostRows()
    view = "view_iterations_profiled"
    if database.has(view, "iter_value", "start_time", "duration"):
        query = f"SELECT iter_value, CAST(start_time AS INTEGER), CAST(duration AS INTEGER) FROM {view}"
        for value, start, duration in database.rows(query, view):
            if start is not None and duration is not None:
                ranges.add(start, start + max(0, duration), names.number(f"iteration {value}"), 0)
    done = gpu.done()
    if not len(done.start):
        return None, {}
    trace = Trace(
        format="dlprof_sqlite", file=file, names=names.texts, gpu=done, calls=no_host(), ops=no_host(),
        ranges=ranges.done(), modules=no_host(),
    )  # fmt: skip
    return trace, answers


def _ops(database: Database) -> list[Totals]:
    view = "view_op_nodes"
    if not database.has(view, "op_node_name", "gpu_time"):
        return []
    have = database.columns[view]
    calls = next((column for column in ("kernel_calls", "num_calls") if column in have), "1")
    uses = "using_tc" if "using_tc" in have else "NULL"
    query = (
        f"SELECT SUBSTR(COALESCE(op_node_name, ''), 1, {NAME_CHARS}), CAST(gpu_time AS REAL), "
        f"CAST(COALESCE({calls}, 0) AS INTEGER), {uses} FROM {view}"
    )
    rows = []
    for name, nanoseconds, count, used in database.rows(query, view):
        if nanoseconds:
            answer = None if used is None else str(used).lower() in ("1", "true", "yes")
            rows.append(Totals(str(name), KERNEL, count, nanoseconds / 1e9, matrix_unit=answer))
    return rows


def _devices(database: Database) -> dict[int, Device]:
    view = "view_gpu_devices"
    if not database.has(view, "device_id", "gpu_name"):
        return {}
    units = "sm_count" if "sm_count" in database.columns[view] else "NULL"
    return {
        index: Device(index=index, name=str(name) or None, compute_units=count if isinstance(count, int) else None)
        for index, name, count in database.rows(f"SELECT device_id, gpu_name, {units} FROM {view}", view)
        if isinstance(index, int)
    }


def _notes(database: Database) -> list[str]:
    """What DLProf worked out itself, in sentences."""
    notes = []
    view = "view_resource_usage_breakdown"
    columns = [column for column in BREAKDOWN if database.has(view, column)]
    if columns:
        for row in database.rows(f"SELECT {', '.join(columns)} FROM {view} LIMIT 1", view):
            shares = [
                f"{BREAKDOWN[column]} {float(value):.1f} %"
                for column, value in zip(columns, row, strict=True) if isinstance(value, int | float)
            ]  # fmt: skip
            notes.append("DLProf's own breakdown of the time: " + ", ".join(shares) + ".")
    view = "view_performance_summary"
    if database.has(view, "gpu_utilization", "tc_utilization"):
        for gpu, tensor in database.rows(f"SELECT gpu_utilization, tc_utilization FROM {view} LIMIT 1", view):
            if isinstance(gpu, int | float) and isinstance(tensor, int | float):
                notes.append(f"DLProf says: GPU utilisation {gpu:.1f} %, tensor cores {tensor:.1f} %.")
    return notes
