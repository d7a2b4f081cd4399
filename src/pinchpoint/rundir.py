"""The run directory: the only interface between what measures and what judges.

While a run goes on, every writer appends Arrow IPC record batches to its own file under `parts/`, so there are no locks
and a kill loses at most the last second. Sealing streams the parts into Parquet and writes their hashes into
`run.json`. A directory that was never sealed is read from its parts (a torn last batch is left out) and can be sealed
later; it is then marked aborted.

    run.json            manifest (model.Manifest)
    plan.toml           the user's plan file, if there was one
    schedule.parquet    what was intended           parts/schedule-*.arrows
    records.parquet     what happened to it         parts/records-*.arrows
    telemetry.parquet   readings                    parts/telemetry-*.arrows
    spans.parquet       what the service told       parts/spans-*.arrows        only of a run that received spans
    events.jsonl        rare events for people
    verdict.json        the judgement, a cache that may be deleted
    report.html         the report
"""

import hashlib
import json
import math
import os
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pinchpoint.errors import RunFormatError, UsageError
from pinchpoint.model import (
    FORMAT_VERSION,
    RECORD_COLUMNS,
    SAMPLE_COLUMNS,
    SCHEDULE_COLUMNS,
    SPAN_COLUMNS,
    Manifest,
)
from pinchpoint.parts import FLUSH_PERIOD_S, PartWriter, arrow_schema, conform, grouped, is_list, part_batches

if TYPE_CHECKING:
    import pyarrow as pa

TABLES = {
    "schedule": SCHEDULE_COLUMNS,
    "records": RECORD_COLUMNS,
    "telemetry": SAMPLE_COLUMNS,
    "spans": SPAN_COLUMNS,
}
OPTIONAL_TABLES = frozenset({"spans"})
"""Without a part there is no file, as in runs of versions that did not know the table; it then reads as empty."""
READ_ROWS_MAX = 1 << 12
ROW_GROUP_ROWS_MAX = 1 << 16
ROW_GROUP_ITEMS_MAX = 1 << 18
"""Token arrivals in a row group of records: 2 MiB, which sealing and reading hold at once, and a few copies of it."""


class RunWriter:
    """Creates a run directory and keeps its manifest and events. Tables are written by their makers' PartWriters."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        try:
            path.mkdir(parents=True, exist_ok=False)
            (path / "parts").mkdir()
        except FileExistsError:
            raise UsageError(f"{path} already exists; give another --out or remove it") from None
        except OSError as error:
            raise UsageError(f"cannot create {path}: {error.strerror}; give a writable directory with --out") from None
        self._events = (path / "events.jsonl").open("a", encoding="utf-8")
        self.write_manifest()

    def part(self, table: str, maker: str) -> PartWriter:
        path = self.path / "parts" / f"{table}-{maker}.arrows"
        # A virtual run is over in seconds, and shall be the same files whatever the machine was doing meanwhile.
        return PartWriter(path, TABLES[table], math.inf if self.manifest.virtual else FLUSH_PERIOD_S)

    def event(self, t_ns: int, kind: str, **fields: Any) -> None:
        self._events.write(json.dumps({"t_ns": t_ns, "kind": kind, **fields}) + "\n")
        self._events.flush()

    def write_manifest(self) -> None:
        write_atomically(self.path / "run.json", msgspec.json.format(msgspec.json.encode(self.manifest), indent=2))

    def seal(self, status: str, abort_reason: str | None = None) -> None:
        """Ends the run: compacts the parts, writes hashes, drops the parts. Makers must have closed their files."""
        self._events.close()
        self.manifest.status = status  # pyright: ignore[reportAttributeAccessIssue]
        self.manifest.abort_reason = abort_reason
        _compact(self.path, self.manifest)


def write_atomically(path: Path, data: bytes) -> None:
    """A reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sealed_batches(path: Path, schema: "pa.Schema") -> "Iterator[pa.RecordBatch]":
    """Batches of a Parquet file, one row group at a time. Raises RunFormatError when it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            present = [name for name in schema.names if name in set(file.schema_arrow.names)]
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(READ_ROWS_MAX, row_groups=[group], columns=present):
                    yield conform(batch, schema)
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise RunFormatError(
            f"{path} is damaged ({type(error).__name__}); the run cannot be judged without it"
        ) from None


def _unsealed_batches(path: Path, name: str, schema: "pa.Schema") -> "Generator[pa.RecordBatch, None, bool]":
    """Batches of all parts of a table. Returns whether the end of one of them was torn off."""
    torn = False
    for part in sorted((path / "parts").glob(f"{name}-*.arrows")):
        try:
            torn |= yield from part_batches(part, schema)
        except KeyError as missing:
            raise RunFormatError(
                f"{part} has no column {missing}; it was written by another version, use that to read it"
            ) from None
    return torn


def _write_parquet(tables: "Iterator[pa.Table]", schema: "pa.Schema", target: Path) -> None:
    """One row group per table, so that no more than one is in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    temporary = target.with_suffix(".parquet.tmp")
    # Successive instants differ by little: as differences they take half the space and a fifth of the time.
    encodings: dict[str, str] = {}
    for field in schema:
        if pa.types.is_integer(field.type):
            encodings[field.name] = "DELTA_BINARY_PACKED"
        elif pa.types.is_list(field.type):
            encodings[f"{field.name}.list.element"] = "DELTA_BINARY_PACKED"
    words = [field.name for field in schema if pa.types.is_string(field.type)]
    options: dict[str, Any] = {"compression": "zstd", "use_dictionary": words, "column_encoding": encodings}
    with pq.ParquetWriter(temporary, schema, **options) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=ROW_GROUP_ROWS_MAX)
    temporary.replace(target)


def _compact(path: Path, manifest: Manifest) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files: dict[str, dict[str, Any]] = {}
    for name, columns in TABLES.items():
        target, schema = path / f"{name}.parquet", arrow_schema(columns)
        if name in OPTIONAL_TABLES and not target.exists() and not any((path / "parts").glob(f"{name}-*.arrows")):
            continue
        if not target.exists():
            batches = _unsealed_batches(path, name, schema)
            _write_parquet(grouped(batches, ROW_GROUP_ROWS_MAX, ROW_GROUP_ITEMS_MAX), schema, target)
        try:
            rows = pq.read_metadata(target).num_rows
        except (pa.ArrowException, OSError) as error:
            raise RunFormatError(
                f"{target} is damaged ({type(error).__name__}); remove it to have it made again from the parts"
            ) from None
        files[target.name] = {"rows": rows, "bytes": target.stat().st_size, "sha256": _sha256(target)}
    manifest.files = files
    write_atomically(path / "run.json", msgspec.json.format(msgspec.json.encode(manifest), indent=2))
    for part in (path / "parts").glob("*.arrows"):
        part.unlink()
    if not any((path / "parts").iterdir()):
        (path / "parts").rmdir()


class Run:
    """A run directory being read. Tables load lazily; `problems` lists what had to be worked around."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.problems: list[str] = []
        self._checked: set[str] = set()
        self._tables: dict[str, pa.Table] = {}

    def record_batches(self, columns: Sequence[str] = tuple(RECORD_COLUMNS)) -> "Iterator[pa.RecordBatch]":
        """The records with these columns, a few megabytes at a time, always in the same order: that of `records`.

        For chunk_ns and chunk_tokens, which grow with the tokens of the run. A nullable column that an older run lacks
        is null. Raises RunFormatError when the file is missing or damaged, KeyError for a column that there is not.
        """
        return self._batches("records", columns)

    def record_columns(self, columns: Sequence[str]) -> "pa.Table":
        """These columns of all records, in the order of `records`; not kept. For columns without lists."""
        return self._read("records", columns)

    def _batches(self, name: str, columns: Sequence[str]) -> "Iterator[pa.RecordBatch]":
        schema = arrow_schema({column: TABLES[name][column] for column in columns})
        self._check_seal(f"{name}.parquet")
        sealed = self.path / f"{name}.parquet"
        if sealed.exists():
            yield from _sealed_batches(sealed, schema)
        elif (yield from _unsealed_batches(self.path, name, schema)):
            self._note(f"the end of {name} was cut off mid-write; whole batches before it were read")

    def _table(self, name: str) -> "pa.Table":
        if name not in self._tables:
            self._tables[name] = self._read(name, [c for c, kind in TABLES[name].items() if not is_list(kind)])
        return self._tables[name]

    def _read(self, name: str, columns: Sequence[str]) -> "pa.Table":
        import pyarrow as pa

        schema = arrow_schema({column: TABLES[name][column] for column in columns})
        return pa.Table.from_batches(list(self._batches(name, columns)), schema=schema)

    def _note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    def _check_seal(self, name: str) -> None:
        """Raises RunFormatError when a file of a sealed run is missing; notes one that is not what was sealed."""
        sealed = self.manifest.files.get(name)
        if sealed is None or name in self._checked:
            return
        try:
            digest = _sha256(self.path / name)
        except OSError:
            raise RunFormatError(f"{self.path / name} is missing; the run cannot be judged without it") from None
        self._checked.add(name)
        if digest != sealed.get("sha256"):
            self._note(f"{name} is not the file that was sealed: it was changed afterwards")

    @property
    def schedule(self) -> "pa.Table":
        return self._table("schedule")

    @property
    def records(self) -> "pa.Table":
        """One row per request, without the columns that grow with its tokens (see record_batches)."""
        return self._table("records")

    @property
    def telemetry(self) -> "pa.Table":
        return self._table("telemetry")

    @property
    def spans(self) -> "pa.Table":
        """What the service told of its requests; empty where nobody asked."""
        return self._table("spans")

    def events(self) -> list[dict[str, Any]]:
        path = self.path / "events.jsonl"
        if not path.exists():
            return []
        events: list[dict[str, Any]] = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                events.append(json.loads(line))
            except ValueError:
                self.problems.append("a line of events.jsonl was cut off and left out")
        return events

    @property
    def sealed(self) -> bool:
        return self.manifest.status != "running"


def read_run(path: Path) -> Run:
    """Opens a run directory, sealed or not. Raises RunFormatError with what is wrong and what to do."""
    if not path.exists():
        raise RunFormatError(f"{path} does not exist; give the directory that `pinchpoint run` printed")
    if not path.is_dir():
        raise RunFormatError(f"{path} is a file; give the run directory it lies in")
    manifest_path = path / "run.json"
    try:
        raw = manifest_path.read_bytes()
    except OSError:
        raise RunFormatError(f"{path} holds no run.json, so it is not a run directory") from None
    try:
        version = msgspec.json.decode(raw, type=dict[str, Any]).get("format_version")
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise RunFormatError(f"{manifest_path} is not JSON; the run directory is damaged") from None
    if not isinstance(version, int) or version != FORMAT_VERSION:
        raise RunFormatError(
            f"{manifest_path} has format {version}, this version reads {FORMAT_VERSION}; use a matching Pinchpoint"
        )
    try:
        manifest = msgspec.json.decode(raw, type=Manifest)
    except msgspec.MsgspecError as error:
        raise RunFormatError(f"{manifest_path} is damaged: {error}") from None
    return Run(path, manifest)


def seal_unsealed(path: Path) -> Run:
    """Seals a directory whose run was killed, marking it aborted. A sealed run is returned as it is."""
    run = read_run(path)
    if run.sealed:
        return run
    _cut_stages(run)
    if _writer_alive(run.manifest):
        return run
    run.manifest.status = "aborted"
    run.manifest.abort_reason = "the run was killed before it was sealed"
    if not os.access(path, os.W_OK):
        return run
    _compact(path, run.manifest)
    return read_run(path)


def _cut_stages(run: Run) -> None:
    """A stage of an unsealed run ends with the last instant that was recorded, not where it was meant to end."""
    last_ns = 0
    for batch in run.record_batches(("scheduled_ns", "end_ns")):
        for column in batch.columns:
            known = column.drop_null()
            last_ns = max(last_ns, int(known.to_numpy().max()) if len(known) else 0)
    run.manifest.stages = [
        stage
        if stage.t1_ns <= last_ns
        else msgspec.structs.replace(
            stage,
            t1_ns=max(stage.t0_ns, last_ns) + 1,
            drained_ns=max(stage.t0_ns, last_ns) + 1,
        )
        for stage in run.manifest.stages
    ]


def _writer_alive(manifest: Manifest) -> bool:
    """Whether the process that writes this run still lives on this host."""
    pid, started = manifest.host.get("pid"), manifest.host.get("pid_started_s")
    if not isinstance(pid, int):
        return False
    import psutil

    try:
        return abs(psutil.Process(pid).create_time() - float(started or 0)) < 1.0
    except psutil.Error:
        return False
