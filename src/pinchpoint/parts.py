"""Append-only tables: Arrow IPC stream files that survive a kill, and the batches read back from them.

A batch is bounded in rows and in list items, so neither the writer nor a reader holds more than a few megabytes,
however many rows there are and however long their lists.
"""

import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

FLUSH_PERIOD_S = 1.0
BATCH_ROWS_MAX = 256
"""A flush of so many records takes 0.7 ms, in which a load process looks at no socket; of 1,024, 2 to 3 ms."""
BATCH_ITEMS_MAX = 1 << 17
"""List items in a batch, such as arrivals of tokens: 1 MiB of int64. A single longer list is a batch of its own."""
COLUMN_BATCH_ROWS_MAX = 1 << 16
"""Rows in a batch that is handed over as columns. They have no lists, so more of them fit."""


def arrow_schema(columns: Mapping[str, str]) -> "pa.Schema":
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


def is_list(kind: str) -> bool:
    """Whether a column kind of model.py holds lists."""
    return kind.startswith("list<")


class _ListColumn:
    """The lists of one column until the next batch, as arrays: eight bytes an item where Python's ints take forty."""

    def __init__(self, field: "pa.Field") -> None:
        self._type = field.type
        self._dtype = np.dtype(field.type.value_type.to_pandas_dtype())
        self.clear()

    def clear(self) -> None:
        self._pieces: list[np.ndarray] = []
        self._ends: list[int] = [0]
        self._nulls: list[int] = []

    @property
    def items(self) -> int:
        return self._ends[-1]

    def add(self, values: Sequence[int] | np.ndarray | None) -> None:
        if values is None:
            self._nulls.append(len(self._ends) - 1)
            self._ends.append(self._ends[-1])
            return
        if not len(values):
            self._ends.append(self._ends[-1])
            return
        if isinstance(values, list):
            # Half the time of np.array, which looks at every item to find a type.
            piece = np.fromiter(values, self._dtype, len(values))
        else:
            piece = np.array(values, self._dtype)  # a copy: the caller may go on filling its own
        self._pieces.append(piece)
        self._ends.append(self._ends[-1] + len(piece))

    def take(self) -> "pa.ListArray":
        """The lists added so far, which are then forgotten."""
        import pyarrow as pa

        items = np.concatenate(self._pieces) if self._pieces else np.empty(0, self._dtype)
        mask = None
        if self._nulls:
            is_null = np.zeros(len(self._ends) - 1, bool)
            is_null[self._nulls] = True
            mask = pa.array(is_null)
        offsets = pa.array(np.asarray(self._ends, np.int32))
        result = pa.ListArray.from_arrays(offsets, pa.array(items), type=self._type, mask=mask)
        self.clear()
        return result


class PartWriter:
    """Appends rows to one Arrow IPC stream file; one writer per file, one thread per writer.

    Rows are kept until `flush`, a batch limit or, on `append`, until the last flush is flush_period_s old. With an
    infinite period the file depends on nothing but its rows.
    """

    def __init__(self, path: Path, columns: Mapping[str, str], flush_period_s: float = FLUSH_PERIOD_S) -> None:
        import pyarrow as pa

        path.parent.mkdir(parents=True, exist_ok=True)
        self._schema = arrow_schema(columns)
        kinds = list(columns.values())
        self._lists = {i: _ListColumn(self._schema.field(i)) for i, kind in enumerate(kinds) if is_list(kind)}
        self._scalars = [i for i, kind in enumerate(kinds) if not is_list(kind)]
        self._pick_scalars = itemgetter(*self._scalars)
        self._file = path.open("wb")
        self._writer = pa.ipc.new_stream(self._file, self._schema)
        self._rows: list[Sequence[Any]] = []  # without their lists
        self._flush_period_s = flush_period_s
        self._flushed_s = time.monotonic()
        self._file.flush()

    def rehearse(self, row: Sequence[Any]) -> None:
        """Converts one row and forgets it: the first conversion loads code for some 40 ms, which can be done early."""
        import pyarrow as pa

        for field, value in zip(self._schema, row, strict=True):
            pa.array([value], type=field.type)
        for i, column in self._lists.items():
            column.add(row[i])
            column.take()

    def append(self, rows: Iterable[Sequence[Any]]) -> None:
        """Each row is a sequence in the order of the columns. Lists are copied: list of int, numpy array or None."""
        kept, pick, width, lists = self._rows, self._pick_scalars, len(self._schema), tuple(self._lists.items())
        for row in rows:
            if len(row) != width:
                raise ValueError(f"a row has {len(row)} values for {width} columns")
            full = False
            for i, column in lists:
                column.add(row[i])
                full = full or column.items >= BATCH_ITEMS_MAX
            kept.append(pick(row) if lists else row)
            if full or len(kept) >= BATCH_ROWS_MAX:
                self.flush()
        if time.monotonic() - self._flushed_s >= self._flush_period_s:
            self.flush()

    def append_columns(self, columns: Mapping[str, "np.ndarray | Sequence[Any] | pa.Array"]) -> None:
        """Writes whole columns of one length, after the rows kept so far. Not for tables with lists.

        Nulls: None in a sequence, masked in a numpy masked array, or the name left out if the column is nullable.
        Raises ValueError for unknown, missing or unequal columns.
        """
        import pyarrow as pa

        if self._lists:
            raise ValueError("columns of lists are written as rows")
        unknown = set(columns) - set(self._schema.names)
        missing = {f.name for f in self._schema if not f.nullable} - set(columns)
        lengths = {len(values) for values in columns.values()}
        if unknown or missing or len(lengths) != 1:
            raise ValueError(f"unknown {sorted(unknown)}, missing {sorted(missing)}, lengths {sorted(lengths)}")
        self.flush()
        count = lengths.pop()
        arrays = [
            pa.array(columns[field.name], type=field.type) if field.name in columns else pa.nulls(count, field.type)
            for field in self._schema
        ]
        whole = pa.record_batch(arrays, schema=self._schema)
        for start in range(0, count, COLUMN_BATCH_ROWS_MAX):
            self._writer.write_batch(whole.slice(start, COLUMN_BATCH_ROWS_MAX))
        self._file.flush()

    def flush(self) -> None:
        import pyarrow as pa

        self._flushed_s = time.monotonic()
        if not self._rows:
            return
        arrays: list[Any] = [None] * len(self._schema)
        for i, values in zip(self._scalars, zip(*self._rows, strict=True), strict=True):
            arrays[i] = pa.array(values, type=self._schema.field(i).type)
        for i, column in self._lists.items():
            arrays[i] = column.take()
        self._rows.clear()
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))
        self._file.flush()

    def close(self) -> None:
        if self._file.closed:
            return
        self.flush()
        self._writer.close()
        self._file.close()


def part_batches(path: Path, schema: "pa.Schema") -> "Generator[pa.RecordBatch, None, bool]":
    """The whole batches of one part with the columns of `schema`, one at a time.

    Returns (as a generator does) whether its end was torn off. Raises KeyError as `conform` does.
    """
    import pyarrow as pa

    try:
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as reader:
            for batch in reader:
                yield conform(batch, schema)
    except (pa.ArrowInvalid, OSError):
        return True
    return False


def conform(batch: "pa.RecordBatch", schema: "pa.Schema") -> "pa.RecordBatch":
    """The batch with the columns of `schema` and no others; nullable ones that it lacks are null.

    Raises KeyError for a missing column that may not be null.
    """
    import pyarrow as pa

    arrays: list[pa.Array] = []
    for field in schema:
        i = batch.schema.get_field_index(field.name)
        if i >= 0:
            arrays.append(batch.column(i).cast(field.type))
        elif field.nullable:
            arrays.append(pa.nulls(batch.num_rows, field.type))
        else:
            raise KeyError(field.name)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def grouped(batches: "Iterable[pa.RecordBatch]", rows_max: int, items_max: int) -> "Iterator[pa.Table]":
    """Small batches put together to tables of at most so many rows, ended as soon as a list column has `items_max`."""
    import pyarrow as pa

    group: list[pa.RecordBatch] = []
    rows = items = 0
    for whole in batches:
        for batch in _slices(whole, rows_max):
            if group and rows + batch.num_rows > rows_max:
                yield pa.Table.from_batches(group)
                group, rows, items = [], 0, 0
            group.append(batch)
            rows += batch.num_rows
            items += _items(batch)
            if items >= items_max:
                yield pa.Table.from_batches(group)
                group, rows, items = [], 0, 0
    if group:
        yield pa.Table.from_batches(group)


def _slices(batch: "pa.RecordBatch", rows_max: int) -> "Iterator[pa.RecordBatch]":
    for start in range(0, batch.num_rows, rows_max):
        yield batch.slice(start, rows_max)


def _items(batch: "pa.RecordBatch") -> int:
    """Items of the longest list column."""
    import pyarrow as pa

    return max((len(column.flatten()) for column in batch.columns if pa.types.is_list(column.type)), default=0)
