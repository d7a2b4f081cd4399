"""Spans in files: OTLP in JSON as the file exporter of OpenTelemetry's collector writes it, or Jaeger's JSON.

A file holds one document, or one a line; both plain or gzip. Of a directory every such file is read. Of what was
exported, only what touches the run is taken into it: spans of its requests, and those of others in its time.
"""

import gzip
import zlib
from collections import Counter
from collections.abc import Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pinchpoint.clock import NS_PER_S
from pinchpoint.errors import UsageError
from pinchpoint.model import SPAN_COLUMNS
from pinchpoint.parts import PartWriter, arrow_schema
from pinchpoint.telemetry.otlp_json import NotSpansError, spans_in_json
from pinchpoint.telemetry.span import Span
from pinchpoint.traceids import request_of

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".ndjson.gz")
MAX_DOCUMENT_BYTES = 64 << 20
"""Of one line, or of a file that is one document; our bound. A collector's line is one export, up to some MiB."""
MARGIN_NS = 60 * NS_PER_S
"""A span of nobody known is kept when it lies so near the run: the sender's clock may be off."""
PART = "spans-files.arrows"
START_NS, END_NS, REQUEST_ID = map(list(SPAN_COLUMNS).index, ("start_ns", "end_ns", "request_id"))


class Imported(NamedTuple):
    """spans: taken into the run; of_requests: those among them of its requests. notes: sentences for people."""

    spans: int
    of_requests: int
    notes: tuple[str, ...]


def read_span_files(path: Path, unread: Counter[str] | None = None) -> Iterator[list[Span]]:
    """The spans of a file or of a directory of files, a document at a time. unread: counts, by reason, what could not
    be read. Raises UsageError when there is no such file, or none that holds spans."""
    counts: Counter[str] = Counter() if unread is None else unread
    files = _files(path)
    found = False
    for file in files:
        for spans, refused in _documents(file, counts):
            found = True
            counts.update(refused)
            yield spans
    if not found:
        why = next(iter(counts), "it is empty")
        raise UsageError(f"{path} holds no spans ({why}); give files of OTLP or Jaeger in JSON")


def import_spans(
    path: Path, run_path: Path, *, salt: int, realtime_offset_ns: int, start_ns: int, end_ns: int
) -> Imported:
    """Takes spans of files into an unsealed run, as parts. salt: traceids.salt_of its id. realtime_offset_ns: the wall
    clock minus our axis (manifest.clock). start_ns, end_ns: the run on our axis. Raises UsageError, and OSError when
    the part cannot be written."""
    writer = PartWriter(run_path / "parts" / PART, SPAN_COLUMNS)
    unread: Counter[str] = Counter()
    kept = ours = elsewhere = 0
    try:
        for spans in read_span_files(path, unread):
            rows = [_row(span, salt, realtime_offset_ns) for span in spans]
            near = [
                row
                for row in rows
                if row[REQUEST_ID] is not None
                or (row[START_NS] < end_ns + MARGIN_NS and row[END_NS] > start_ns - MARGIN_NS)
            ]
            writer.append(near)
            kept, elsewhere = kept + len(near), elsewhere + len(rows) - len(near)
            ours += sum(row[REQUEST_ID] is not None for row in near)
    finally:
        writer.close()
    notes = [f"{kept} spans were read from {path}, {ours} of them of requests of this run"]
    if elsewhere:
        notes.append(f"{elsewhere} spans of other times were left out")
    notes += [f"{count} times: {reason}" for reason, count in unread.most_common(3)]
    return Imported(kept, ours, tuple(notes))


def spans_table(path: Path, *, salt: int, realtime_offset_ns: int) -> "pa.Table":
    """The spans of files that are of requests of one run, with the columns of model.SPAN_COLUMNS; others are nulls in
    request_id. Raises UsageError."""
    import pyarrow as pa

    schema = arrow_schema(SPAN_COLUMNS)
    batches = []
    for spans in read_span_files(path):
        columns = zip(*(_row(span, salt, realtime_offset_ns) for span in spans), strict=True)
        arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=False)]
        if arrays:
            batches.append(pa.record_batch(arrays, schema=schema))
    return pa.Table.from_batches(batches, schema=schema)


def _row(span: Span, salt: int, realtime_offset_ns: int) -> tuple[Any, ...]:
    """In the order of model.SPAN_COLUMNS. Nobody knows when a file had it."""
    return (
        *span[:START_NS],
        span.start_unix_ns - realtime_offset_ns,
        span.end_unix_ns - realtime_offset_ns,
        span.status,
        None,
        request_of(salt, span.trace_id),
        span.attributes_json,
    )


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(each for each in path.iterdir() if each.is_file() and each.name.endswith(SUFFIXES))
        if not files:
            raise UsageError(f"{path} holds no file named {', '.join('*' + suffix for suffix in SUFFIXES[:3])} or .gz")
        return files
    if not path.is_file():
        raise UsageError(f"{path} does not exist; give a file of spans, or a directory of them")
    return [path]


def _documents(file: Path, unread: Counter[str]) -> Iterator[tuple[list[Span], list[str]]]:
    """A document a line; or the file as one, where its first line is none."""
    try:
        with _open(file) as lines:
            first = True
            while line := lines.readline(MAX_DOCUMENT_BYTES):
                if not line.strip():
                    continue
                try:
                    yield spans_in_json(line)
                except NotSpansError as error:
                    if first and (whole := line + lines.read(MAX_DOCUMENT_BYTES - len(line))).count(b"\n") > 1:
                        yield from _whole(whole, error, unread)
                        return
                    unread[_short(error)] += 1
                first = False
    except (OSError, EOFError, zlib.error) as error:
        unread[f"{file.name} could not be read to its end ({error})"] += 1


def _whole(text: bytes, of_line: NotSpansError, unread: Counter[str]) -> Iterator[tuple[list[Span], list[str]]]:
    """One document over many lines; else what can be read of the lines behind the first."""
    try:
        yield spans_in_json(text)
        return
    except NotSpansError:
        unread[_short(of_line)] += 1
    for line in text.splitlines()[1:]:
        if line.strip():
            try:
                yield spans_in_json(line)
            except NotSpansError as error:
                unread[_short(error)] += 1


def _open(file: Path) -> BufferedIOBase:
    return gzip.open(file, "rb") if file.name.endswith(".gz") else file.open("rb")


def _short(error: NotSpansError) -> str:
    return f"a line is {str(error).partition(' (')[0]}"
