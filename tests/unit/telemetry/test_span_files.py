"""Files of spans: whatever form they have, what touches the run is taken into it."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from tests.support.otlp_exports import BEGUN_NS, as_json, export, span

from pinchpoint.errors import UsageError
from pinchpoint.model import SPAN_COLUMNS
from pinchpoint.parts import arrow_schema, part_batches
from pinchpoint.telemetry import span_files
from pinchpoint.telemetry.span_files import PART, import_spans, read_span_files
from pinchpoint.traceids import salt_of, trace_id

SALT = salt_of("run")
HOUR_NS = 3_600_000_000_000


def ids(path: Path, unread: Counter[str] | None = None) -> list[int]:
    return [int(each.span_id, 16) for spans in read_span_files(path, unread) for each in spans]


def lines(*numbers: int) -> bytes:
    return b"\n".join(as_json(export(span(number))) for number in numbers) + b"\n"


def test_a_line_an_export_plain_or_packed_and_a_document_over_many_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(1, 2))
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(lines(3)))
    (tmp_path / "c.json").write_text(json.dumps(export(span(4), span(5)), indent=2))
    (tmp_path / "notes.txt").write_text("no spans")
    assert ids(tmp_path) == [1, 2, 3, 4, 5]
    assert ids(tmp_path / "a.jsonl") == [1, 2]


def test_lines_that_are_none_are_counted_and_the_others_read(tmp_path: Path) -> None:
    for place, broken in enumerate(
        (b"{\n" + lines(1, 2), lines(1) + b"half a li\n" + lines(2), lines(1, 2) + b'{"res')
    ):
        file = tmp_path / f"{place}.jsonl"
        file.write_bytes(broken)
        unread: Counter[str] = Counter()
        assert ids(file, unread) == [1, 2]
        assert sum(unread.values()) == 1


def test_a_packed_file_that_was_cut_gives_what_came_before(tmp_path: Path) -> None:
    packed = gzip.compress(lines(*range(1, 400)))
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    unread: Counter[str] = Counter()
    assert len(ids(tmp_path, unread)) > 10
    assert any("could not be read to its end" in reason for reason in unread)


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"hello\nworld\n", b"{}x", b'{"resourceLogs": []}\n', b"\xff\xfe" * 50]
)
def test_a_file_without_spans_is_told_with_what_to_give(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"holds no spans .*; give files of OTLP or Jaeger"):
        ids(tmp_path / "x.json")


def test_a_path_that_is_not_there_and_a_directory_without_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        ids(tmp_path / "none")
    with pytest.raises(UsageError, match="holds no file named"):
        ids(tmp_path)


def test_only_what_touches_the_run_is_taken_into_it(tmp_path: Path) -> None:
    ours = span(1, trace=trace_id(SALT, 7), start_ns=BEGUN_NS - 24 * HOUR_NS)  # a clock that is a day off
    near, long_ago = span(2, start_ns=BEGUN_NS), span(3, start_ns=BEGUN_NS - HOUR_NS)
    (tmp_path / "spans.jsonl").write_bytes(as_json(export(ours, near, long_ago)))
    offset_ns = BEGUN_NS - 1000
    found = import_spans(
        tmp_path / "spans.jsonl", tmp_path, salt=SALT, realtime_offset_ns=offset_ns, start_ns=0, end_ns=HOUR_NS // 4
    )
    rows = [r for b in part_batches(tmp_path / "parts" / PART, arrow_schema(SPAN_COLUMNS)) for r in b.to_pylist()]
    assert [(row["request_id"], row["start_ns"], row["received_ns"]) for row in rows] == [
        (7, 1000 - 24 * HOUR_NS, None),
        (None, 1000, None),
    ]
    assert (found.spans, found.of_requests) == (2, 1)
    assert found.notes[1] == "1 spans of other times were left out"


def test_a_line_without_an_end_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(span_files, "MAX_DOCUMENT_BYTES", 5000)
    (tmp_path / "x.jsonl").write_bytes(b"[" * 100_000 + b"\n" + lines(1))
    assert 1 in ids(tmp_path / "x.jsonl")
