"""Reads tables of kernels in CSV: totals of nsys stats and DLProf, of rocprof also one row a dispatch.

Columns are told by their headings, because versions order and spell them differently; the unit of a time stands in
brackets behind its heading, and is nanoseconds where none does. One file may hold several tables one behind the other,
as nsys stats prints them.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pinchpoint.errors import UsageError
from pinchpoint.profiles.model import Format
from pinchpoint.profiles.source import Limits, Source
from pinchpoint.profiles.trace import (
    KERNEL,
    MEMCPY,
    MEMSET,
    GpuRows,
    Names,
    Reading,
    Summary,
    Totals,
    Trace,
    copy_kind,
    no_host,
)

LONGEST_FIELD_CHARS = 1 << 20
UNIT_S = {
    "ns": 1e-9,
    "nsec": 1e-9,
    "us": 1e-6,
    "usec": 1e-6,
    "μs": 1e-6,
    "µs": 1e-6,
    "ms": 1e-3,
    "msec": 1e-3,
    "s": 1.0,
    "sec": 1.0,
}
_UNIT = re.compile(r"[(\[]\s*(ns|nsec|us|usec|μs|µs|ms|msec|s|sec)\s*[)\]]|(?<=[a-z])(Ns|_ns)$", re.IGNORECASE)
_NAME = re.compile(r"^(kernel[ _]?name|name|operation|function|op name|kernelname|api name)$", re.IGNORECASE)
_TOTAL = re.compile(
    r"^total([ _]?(gpu|kernel))?[ _]?(time|duration)|^totalduration|^total \(|^gpu time|^duration", re.IGNORECASE
)
_CALLS = re.compile(
    r"^(instances|num calls|calls|count|call count|total calls|num[ _]?calls|# ?calls|operations)$", re.IGNORECASE
)
_LEAST, _MOST = re.compile(r"^min", re.IGNORECASE), re.compile(r"^max", re.IGNORECASE)
_USES_TC = re.compile(r"^(using|uses)[ _]?tc$|^uses tensor cores?$", re.IGNORECASE)
_BEGIN = re.compile(r"^(start[ _]?timestamp|beginns|start \(ns\)|start_ns)$", re.IGNORECASE)
_END = re.compile(r"^(end[ _]?timestamp|endns|end \(ns\)|end_ns)$", re.IGNORECASE)
_DEVICE = re.compile(r"^(gpu[ _-]?id|agent[ _]?id|device[ _]?id|device)$", re.IGNORECASE)
_STREAM = re.compile(r"^(stream[ _]?id|queue[ _-]?id|strm|stream)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Which column is what; -1 for none."""

    name: int
    total: int
    total_unit_s: float
    calls: int
    least: int
    most: int
    uses_tc: int
    begin: int
    end: int
    device: int
    stream: int
    of_memory: bool
    of_calls: bool

    @property
    def each(self) -> bool:
        """One row a dispatch, with instants."""
        return self.begin >= 0 and self.end >= 0


def looks_like_table(head: bytes) -> bool:
    """Whether one of the first lines is a heading that is understood."""
    text = head.decode("utf-8", "replace")
    return any(_layout(row) is not None for row in csv.reader(text.splitlines()[:40]))


def read(path: Path, limits: Limits, file: int) -> Reading:
    """One CSV file."""
    source = Source(path, limits)
    csv.field_size_limit(LONGEST_FIELD_CHARS)
    layout: _Layout | None = None
    names, gpu, totals, calls = Names(), GpuRows(), [], []
    count = bad = 0
    form: Format | None = None
    devices: dict[str, int] = {}
    rows = csv.reader(_lines(source))
    while True:
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error as error:
            source.lost(f"line {rows.line_num:,} is no CSV: {error}")
            continue
        found = _layout(row)
        if found is not None:
            layout = found
            form = form or _format(row, found)
            continue
        if layout is None or not row or len(row) <= layout.name:
            continue
        try:
            if layout.each:
                _dispatch(row, layout, names, gpu, devices)
            else:
                total = _totals(row, layout)
                (calls if layout.of_calls else totals).append(total)
            count += 1
        except (ValueError, IndexError):
            bad += 1
    if bad:
        source.lost("rows without a number where one belongs were left out", events_lost=bad)
    if form is None or not count:
        raise UsageError(f"{path} has the headings of a table of kernels but no rows under them")
    if not form.startswith("rocprof") or totals or calls:
        summary = Summary(format=form, file=file, gpu=totals, calls=calls)
        if not totals:
            summary.notes.append(
                "The file holds calls on the CPU only; the kernels are in nsys stats' cuda_gpu_kern_sum."
            )
        return Reading(form, [], [summary], source.bytes_read, count, source.problems)
    trace = Trace(
        format=form, file=file, names=names.texts, gpu=gpu.done(), calls=no_host(), ops=no_host(), ranges=no_host(),
        modules=no_host(),
    )  # fmt: skip
    trace.notes.append("The table lists dispatches only: counters were collected with kernels one at a time, so gaps "
                       "between them say nothing of the service.")  # fmt: skip
    return Reading(form, [trace], [], source.bytes_read, count, source.problems)


def _lines(source: Source) -> Iterator[str]:
    rest = b""
    for piece in source.pieces():
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line.decode("utf-8", "replace").lstrip("\ufeff").rstrip("\r") + "\n"
    if rest:
        yield rest.decode("utf-8", "replace")


def _first(row: list[str], pattern: re.Pattern[str]) -> int:
    return next((at for at, text in enumerate(row) if pattern.search(text.strip())), -1)


def _layout(row: list[str]) -> _Layout | None:
    """None for a row that is no heading."""
    name = _first(row, _NAME)
    begin, end = _first(row, _BEGIN), _first(row, _END)
    total = _first(row, _TOTAL)
    if name < 0 or (total < 0 and (begin < 0 or end < 0)):
        return None
    heading = row[total] if total >= 0 else ""
    unit = _UNIT.search(heading)
    unit_s = UNIT_S[(unit[1] or "ns").lower()] if unit else 1e-9
    calls = _first(row, _CALLS)
    return _Layout(
        name=name, total=total, total_unit_s=unit_s, calls=calls, least=_first(row, _LEAST), most=_first(row, _MOST),
        uses_tc=_first(row, _USES_TC), begin=begin, end=end, device=_first(row, _DEVICE), stream=_first(row, _STREAM),
        of_memory=row[name].strip().lower() == "operation",
        of_calls=calls >= 0 and row[calls].strip().lower() == "num calls",
    )  # fmt: skip


def _format(row: list[str], layout: _Layout) -> Format:
    headings = {text.strip().lower() for text in row}
    if layout.each or "totaldurationns" in headings:
        return "rocprof_csv"
    if layout.uses_tc >= 0 or "kernel name" in headings:
        return "dlprof_csv"
    return "nsys_csv"


def _number(text: str) -> float:
    return float(text.replace(",", "").strip())


def _totals(row: list[str], layout: _Layout) -> Totals:
    name = row[layout.name].strip()
    kind = KERNEL
    if layout.of_memory or "memcpy" in name.lower()[:20]:
        kind = MEMSET if "memset" in name.lower() else MEMCPY
    uses = row[layout.uses_tc].strip().lower() if layout.uses_tc >= 0 else ""
    return Totals(
        name=name,
        kind=kind,
        calls=int(_number(row[layout.calls])) if layout.calls >= 0 else 1,
        total_s=_number(row[layout.total]) * layout.total_unit_s,
        min_s=_number(row[layout.least]) * layout.total_unit_s if layout.least >= 0 else None,
        max_s=_number(row[layout.most]) * layout.total_unit_s if layout.most >= 0 else None,
        matrix_unit={"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}.get(uses),
    )


def _dispatch(row: list[str], layout: _Layout, names: Names, gpu: GpuRows, devices: dict[str, int]) -> None:
    text = row[layout.name].strip()
    kind = MEMCPY if text.lower().startswith(("memcpy", "copy")) else KERNEL
    device = row[layout.device].strip() if layout.device >= 0 else ""
    stream = row[layout.stream].strip() if layout.stream >= 0 else ""
    gpu.add(
        start=int(_number(row[layout.begin])), end=int(_number(row[layout.end])), name=names.number(text), kind=kind,
        copy=copy_kind(text) if kind == MEMCPY else 0, device=devices.setdefault(device, len(devices)),
        stream=int(stream) if stream.isdigit() else 0,
    )  # fmt: skip
