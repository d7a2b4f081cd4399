"""Parts: what goes in comes out, in bounded batches, whatever the form it was handed over in."""

from array import array
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.model import RECORD_COLUMNS, SCHEDULE_COLUMNS
from pinchpoint.parts import (
    BATCH_ITEMS_MAX,
    BATCH_ROWS_MAX,
    COLUMN_BATCH_ROWS_MAX,
    PartWriter,
    arrow_schema,
    conform,
    grouped,
    part_batches,
)

COLUMNS = {"id": "int64", "text": "string?", "chunk_ns": "list<int64>", "chunk_tokens": "list<int32>?"}
LISTS = pa.list_(pa.int64())
rows = st.lists(
    st.tuples(
        st.integers(-(2**63), 2**63 - 1),
        st.none() | st.text(st.characters(exclude_categories=("Cs",)), max_size=5),
        st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
        st.none() | st.lists(st.integers(0, 2**31 - 1), max_size=4),
    ),
    max_size=20,
)


def read(path: Path, columns: dict[str, str]) -> list[pa.RecordBatch]:
    return list(part_batches(path, arrow_schema(columns)))


def schedule_columns(count: int) -> dict[str, object]:
    return {name: np.arange(count) % 1000 for name in SCHEDULE_COLUMNS}


@given(rows=rows, flushes=st.sets(st.integers(0, 20)))
def test_rows_come_back_as_they_were_appended(
    rows: list[tuple], flushes: set[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("parts") / "p.arrows"
    part = PartWriter(path, COLUMNS)
    for i, row in enumerate(rows):
        part.append([row])
        if i in flushes:
            part.flush()
    part.close()
    found = [row for batch in read(path, COLUMNS) for row in batch.to_pylist()]
    assert found == [dict(zip(COLUMNS, row, strict=True)) for row in rows]


@pytest.mark.parametrize("form", [list, tuple, lambda v: array("q", v), lambda v: np.array(v, np.int64)])
def test_lists_may_have_any_form_and_be_changed_afterwards(form, tmp_path: Path) -> None:
    part = PartWriter(tmp_path / "p.arrows", COLUMNS)
    values = form([1, 2, 3])
    part.append([(0, None, values, None)])
    if not isinstance(values, tuple):
        values[0] = 99
    part.close()
    assert read(tmp_path / "p.arrows", COLUMNS)[0].column("chunk_ns").to_pylist() == [[1, 2, 3]]


def test_batches_are_bounded_in_rows_and_in_list_items(tmp_path: Path) -> None:
    part = PartWriter(tmp_path / "p.arrows", COLUMNS)
    long = np.zeros(BATCH_ITEMS_MAX // 4, np.int64)
    part.append((i, None, [], None) for i in range(2 * BATCH_ROWS_MAX + 1))
    part.append((i, None, long, None) for i in range(10))
    part.close()
    batches = read(tmp_path / "p.arrows", COLUMNS)
    assert sum(batch.num_rows for batch in batches) == 2 * BATCH_ROWS_MAX + 11
    assert max(batch.num_rows for batch in batches) == BATCH_ROWS_MAX
    assert max(len(batch.column("chunk_ns").flatten()) for batch in batches) == BATCH_ITEMS_MAX


def test_a_row_of_the_wrong_width_is_refused(tmp_path: Path) -> None:
    part = PartWriter(tmp_path / "p.arrows", RECORD_COLUMNS)
    with pytest.raises(ValueError, match="3 values"):
        part.append([(1, 2, 3)])


def test_columns_are_rows_turned_round(tmp_path: Path) -> None:
    offsets_ns = np.array([5, -1, 7])
    columns = {name: [1, 2, 3] for name in SCHEDULE_COLUMNS} | {"offset_ns": np.ma.masked_equal(offsets_ns, -1)}
    del columns["patience_ns"]
    part = PartWriter(tmp_path / "p.arrows", SCHEDULE_COLUMNS)
    part.append([tuple([9] * len(SCHEDULE_COLUMNS))])
    part.append_columns(columns)
    part.close()
    table = pa.Table.from_batches(read(tmp_path / "p.arrows", SCHEDULE_COLUMNS))
    assert table.column("offset_ns").to_pylist() == [9, 5, None, 7]
    assert table.column("patience_ns").to_pylist() == [9, None, None, None]
    assert table.column("request_id").to_pylist() == [9, 1, 2, 3]


def test_many_columns_rows_are_several_batches(tmp_path: Path) -> None:
    part = PartWriter(tmp_path / "p.arrows", SCHEDULE_COLUMNS)
    part.append_columns(schedule_columns(COLUMN_BATCH_ROWS_MAX + 1))  # pyright: ignore[reportArgumentType]
    part.close()
    assert [b.num_rows for b in read(tmp_path / "p.arrows", SCHEDULE_COLUMNS)] == [COLUMN_BATCH_ROWS_MAX, 1]


@pytest.mark.parametrize(
    ("change", "says"),
    [({"more": [1]}, "more"), ({"request_id": None}, "missing .'request_id'"), ({"turn": [1, 2]}, "lengths .1, 2")],
)
def test_columns_that_do_not_fit_are_refused(change: dict, says: str, tmp_path: Path) -> None:
    columns = {name: values for name, values in ({n: [1] for n in SCHEDULE_COLUMNS} | change).items() if values}
    part = PartWriter(tmp_path / "p.arrows", SCHEDULE_COLUMNS)
    with pytest.raises(ValueError, match=says):
        part.append_columns(columns)


def test_a_torn_part_gives_its_whole_batches_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "p.arrows"
    part = PartWriter(path, COLUMNS)
    for i in range(3):
        part.append([(i, "x", [i], None)])
        part.flush()
    whole = path.read_bytes()
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        batches = part_batches(path, arrow_schema(COLUMNS))
        found: list[int] = []
        while True:
            try:
                found += next(batches).column("id").to_pylist()
            except StopIteration as end:
                assert isinstance(end.value, bool)
                break
        assert found == list(range(len(found))) and len(found) <= 3


def test_a_missing_column_is_null_if_it_may_be() -> None:
    old = pa.record_batch({"id": pa.array([1, 2], pa.int32())})
    new = conform(old, arrow_schema({"id": "int64", "text": "string?"}))
    assert new.to_pydict() == {"id": [1, 2], "text": [None, None]}
    with pytest.raises(KeyError, match="worker"):
        conform(old, arrow_schema({"worker": "uint16"}))


@given(
    sizes=st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=6), max_size=8),
    rows_max=st.integers(1, 6),
    items_max=st.integers(1, 12),
)
def test_groups_keep_every_row_in_order_and_their_bounds(sizes: list[list[int]], rows_max: int, items_max: int) -> None:
    ends = list(accumulate(map(len, sizes), initial=0))
    batches = [
        pa.record_batch({"id": list(range(end, end + len(s))), "lists": pa.array([[0] * n for n in s], LISTS)})
        for end, s in zip(ends, sizes, strict=False)
    ]
    tables = list(grouped(batches, rows_max, items_max))
    assert [i for table in tables for i in table.column("id").to_pylist()] == list(range(ends[-1]))
    assert all(1 <= table.num_rows <= rows_max for table in tables)
    longest = max((sum(s) for s in sizes), default=0)
    for table in tables:
        assert sum(len(v) for v in table.column("lists").to_pylist()) < items_max + longest
