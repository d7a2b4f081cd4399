"""The run directory: the only interface between what measures and what judges.

While a run goes on, every writer appends Arrow IPC record batches to its own file under `parts/`, so there are no locks
and a kill loses at most the last second. Sealing concatenates the parts into Parquet and writes their hashes into
`run.json`. A directory that was never sealed is read from its parts (a torn last batch is left out) and can be sealed
later; it is then marked aborted.

    run.json            manifest (model.Manifest)
    plan.toml           the user's plan file, if there was one
    schedule.parquet    what was intended           parts/schedule-*.arrows
    records.parquet     what happened to it         parts/records-*.arrows
    telemetry.parquet   readings                    parts/telemetry-*.arrows
    events.jsonl        rare events for people
    verdict.json        the judgement, a cache that may be deleted
    report.html         the report
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pinchpoint.errors import RunFormatError, UsageError
from pinchpoint.model import (
    FORMAT_VERSION,
    RECORD_COLUMNS,
    SAMPLE_COLUMNS,
    SCHEDULE_COLUMNS,
    Manifest,
)

if TYPE_CHECKING:
    import pyarrow as pa

TABLES = {"schedule": SCHEDULE_COLUMNS, "records": RECORD_COLUMNS, "telemetry": SAMPLE_COLUMNS}
FLUSH_PERIOD_S = 1.0
BATCH_ROWS_MAX = 4096


def arrow_schema(columns: dict[str, str]) -> "pa.Schema":
    """Arrow schema for a column table of model.py. A trailing `?` makes the column nullable."""
    import pyarrow as pa

    types = {
        "uint64": pa.uint64(),
        "uint32": pa.uint32(),
        "uint16": pa.uint16(),
        "int64": pa.int64(),
        "int32": pa.int32(),
        "int16": pa.int16(),
        "float64": pa.float64(),
        "string": pa.string(),
        "list<int64>": pa.list_(pa.int64()),
        "list<int32>": pa.list_(pa.int32()),
    }
    return pa.schema(
        [pa.field(name, types[kind.rstrip("?")], nullable=kind.endswith("?")) for name, kind in columns.items()]
    )


class PartWriter:
    """Appends rows to one Arrow IPC stream file; one writer per file, one thread per writer.

    Rows are kept until `flush`, the batch limit or, on `append`, until the last flush is a second old.
    """

    def __init__(self, path: Path, columns: dict[str, str]) -> None:
        import pyarrow as pa

        path.parent.mkdir(parents=True, exist_ok=True)
        self._columns = tuple(columns)
        self._schema = arrow_schema(columns)
        self._file = path.open("wb")
        self._writer = pa.ipc.new_stream(self._file, self._schema)
        self._rows: list[Sequence[Any]] = []
        self._flushed_s = time.monotonic()
        self._file.flush()

    def append(self, rows: Iterable[Sequence[Any]]) -> None:
        """Each row is a sequence in the order of the columns."""
        self._rows.extend(rows)
        if len(self._rows) >= BATCH_ROWS_MAX or time.monotonic() - self._flushed_s >= FLUSH_PERIOD_S:
            self.flush()

    def flush(self) -> None:
        import pyarrow as pa

        self._flushed_s = time.monotonic()
        if not self._rows:
            return
        columns = list(zip(*self._rows, strict=True))
        arrays = [pa.array(values, type=field.type) for values, field in zip(columns, self._schema, strict=True)]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._file.flush()
        self._rows.clear()

    def close(self) -> None:
        if self._file.closed:
            return
        self.flush()
        self._writer.close()
        self._file.close()


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
        return PartWriter(self.path / "parts" / f"{table}-{maker}.arrows", TABLES[table])

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


def _read_part(path: Path) -> "tuple[list[pa.RecordBatch], bool]":
    """All whole batches of one part, and whether its end was torn off."""
    import pyarrow as pa

    batches: list[pa.RecordBatch] = []
    try:
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
            for batch in reader:
                batches.append(batch)
    except (pa.ArrowInvalid, OSError):
        return batches, True
    return batches, False


def _load_table(path: Path, name: str) -> "tuple[pa.Table, bool]":
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = arrow_schema(TABLES[name])
    sealed = path / f"{name}.parquet"
    if sealed.exists():
        try:
            table = pq.read_table(sealed)
            return table.select(schema.names).cast(schema), False
        except (pa.ArrowInvalid, pa.ArrowKeyError, KeyError, ValueError, OSError) as error:
            raise RunFormatError(
                f"{sealed} is damaged ({type(error).__name__}); the run cannot be judged without it"
            ) from None
    batches: list[pa.RecordBatch] = []
    torn = False
    for part in sorted((path / "parts").glob(f"{name}-*.arrows")):
        part_batches, part_torn = _read_part(part)
        batches += part_batches
        torn |= part_torn
    return pa.Table.from_batches(batches, schema=schema), torn


def _compact(path: Path, manifest: Manifest) -> None:
    import pyarrow.parquet as pq

    files: dict[str, dict[str, Any]] = {}
    for name in TABLES:
        target = path / f"{name}.parquet"
        table, _ = _load_table(path, name)
        if not target.exists():
            temporary = target.with_suffix(".parquet.tmp")
            pq.write_table(table, temporary, compression="zstd")
            temporary.replace(target)
        files[target.name] = {
            "rows": table.num_rows,
            "bytes": target.stat().st_size,
            "sha256": hashlib.sha256(target.read_bytes()).hexdigest(),
        }
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
        self._tables: dict[str, pa.Table] = {}

    def _table(self, name: str) -> "pa.Table":
        if name not in self._tables:
            self._check_seal(f"{name}.parquet")
            table, torn = _load_table(self.path, name)
            if torn:
                self.problems.append(f"the end of {name} was cut off mid-write; whole batches before it were read")
            self._tables[name] = table
        return self._tables[name]

    def _check_seal(self, name: str) -> None:
        """Raises RunFormatError when a file of a sealed run is missing; notes one that is not what was sealed."""
        sealed = self.manifest.files.get(name)
        if sealed is None:
            return
        try:
            digest = hashlib.sha256((self.path / name).read_bytes()).hexdigest()
        except OSError:
            raise RunFormatError(f"{self.path / name} is missing; the run cannot be judged without it") from None
        if digest != sealed.get("sha256"):
            self.problems.append(f"{name} is not the file that was sealed: it was changed afterwards")

    @property
    def schedule(self) -> "pa.Table":
        return self._table("schedule")

    @property
    def records(self) -> "pa.Table":
        return self._table("records")

    @property
    def telemetry(self) -> "pa.Table":
        return self._table("telemetry")

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
    if run.sealed or _writer_alive(run.manifest):
        return run
    run.manifest.status = "aborted"
    run.manifest.abort_reason = "the run was killed before it was sealed"
    if not os.access(path, os.W_OK):
        return run
    _compact(path, run.manifest)
    return read_run(path)


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
