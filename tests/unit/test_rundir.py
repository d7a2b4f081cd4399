"""The run directory: what is written is read back, whatever happened to the writer."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.errors import RunFormatError, UsageError
from pinchpoint.model import RECORD_COLUMNS, SAMPLE_COLUMNS, Manifest, Stage, TargetFacts
from pinchpoint.rundir import PartWriter, RunWriter, read_run, seal_unsealed
from pinchpoint.slo import parse_slos
from tests.support.runs import named_row

MEMORY_GROWTH_MAX_MIB = 96
"""Half of it is used, most of that the same for ten million tokens. Reading two million whole takes 250 MiB."""


def manifest() -> Manifest:
    return Manifest(1, "r", "0", "running", None, "", 0, False, 1, {}, TargetFacts("u"), (), False, [], {}, {}, {}, ())


def sample(i: int) -> tuple:
    return (i, 0, "engine", "raw", "engine.requests_running", "", float(i))


def test_a_sealed_run_is_parquet_with_hashes_and_no_parts(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", manifest())
    part = writer.part("telemetry", "a")
    part.append(sample(i) for i in range(10))
    part.close()
    writer.event(5, "note", text="hello")
    writer.seal("complete")
    run = read_run(tmp_path / "run")
    assert run.manifest.status == "complete"
    assert run.telemetry.column("value").to_pylist() == [float(i) for i in range(10)]
    assert run.records.num_rows == 0
    assert run.events() == [{"t_ns": 5, "kind": "note", "text": "hello"}]
    assert run.manifest.files["telemetry.parquet"]["rows"] == 10
    assert not (tmp_path / "run" / "parts").exists()


def test_parts_of_several_writers_are_one_table(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", manifest())
    for name in ("a", "b"):
        part = writer.part("telemetry", name)
        part.append([sample(1)])
        part.close()
    assert read_run(tmp_path / "run").telemetry.num_rows == 2


def test_a_part_whose_end_was_torn_off_gives_its_whole_batches(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", manifest())
    part = writer.part("telemetry", "a")
    for i in range(3):
        part.append([sample(i)])
        part.flush()
    path = tmp_path / "run" / "parts" / "telemetry-a.arrows"
    path.write_bytes(path.read_bytes()[:-40])
    run = read_run(tmp_path / "run")
    assert run.telemetry.num_rows == 2
    assert any("cut off" in problem for problem in run.problems)


def test_a_killed_writer_leaves_a_run_that_can_be_sealed(tmp_path: Path) -> None:
    script = f"""
import os, sys
sys.path.insert(0, {str(Path.cwd())!r})
from pathlib import Path
from tests.unit.test_rundir import manifest, sample
from pinchpoint.rundir import RunWriter
import psutil
m = manifest(); m.host = {{"pid": os.getpid(), "pid_started_s": psutil.Process().create_time()}}
w = RunWriter(Path({str(tmp_path / "run")!r}), m)
p = w.part("telemetry", "a"); p.append([sample(1)]); p.flush(); p.append([sample(2)])
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", script], check=False)
    run = seal_unsealed(tmp_path / "run")
    assert run.manifest.status == "aborted"
    assert run.telemetry.num_rows == 1
    assert (tmp_path / "run" / "telemetry.parquet").exists()


def test_a_directory_is_never_overwritten(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", manifest())
    for _ in range(2):
        with pytest.raises(UsageError, match="already exists"):
            RunWriter(tmp_path / "run", manifest())
        if writer.manifest.status == "running":
            writer.seal("complete")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no run.json"),
        ("{", "not JSON"),
        ("[]", "not JSON"),
        ('{"format_version": 99}', "format 99"),
        ('{"format_version": 1}', "damaged"),
    ],
)
def test_a_broken_manifest_is_told_in_one_sentence(tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(RunFormatError, match=says) as caught:
        read_run(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_path_and_a_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(RunFormatError, match="does not exist"):
        read_run(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFormatError, match="is a file"):
        read_run(tmp_path / "file")


def test_a_damaged_table_is_told(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", manifest())
    writer.seal("complete")
    (tmp_path / "run" / "records.parquet").write_bytes(b"PAR1 rubbish")
    with pytest.raises(RunFormatError, match="damaged"):
        _ = read_run(tmp_path / "run").records


def test_a_cut_off_event_line_is_left_out(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", manifest())
    writer.event(1, "a")
    writer.seal("complete")
    with (tmp_path / "run" / "events.jsonl").open("a") as file:
        file.write('{"t_ns": 2, "ki')
    assert [event["kind"] for event in read_run(tmp_path / "run").events()] == ["a"]


def test_rows_reach_the_disk_within_a_second_of_appending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("pinchpoint.parts.time.monotonic", lambda: now_s)
    part = PartWriter(tmp_path / "p.arrows", SAMPLE_COLUMNS)
    part.append([sample(1)])
    size = (tmp_path / "p.arrows").stat().st_size
    now_s = 101.0
    part.append([sample(2)])
    assert (tmp_path / "p.arrows").stat().st_size > size


def test_run_json_is_readable_without_us(tmp_path: Path) -> None:
    RunWriter(tmp_path / "run", manifest()).seal("complete")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["format_version"] == 1


def record(i: int, chunk_ns: object = (), chunk_tokens: object = None) -> tuple:
    return named_row(
        RECORD_COLUMNS,
        request_id=i,
        stage=0,
        worker=0,
        scheduled_ns=i,
        chunk_ns=chunk_ns,
        chunk_tokens=chunk_tokens,
        coalesced_count=0,
        timestamp_source="kernel",
        requested_input_tokens=1,
        requested_output_tokens=1,
        bytes_in=0,
        status="ok",
    )


def whole_records(path: Path, columns: tuple[str, ...] = tuple(RECORD_COLUMNS)) -> list[dict]:
    return [row for batch in read_run(path).record_batches(columns) for row in batch.to_pylist()]


@given(
    lists=st.lists(
        st.tuples(st.lists(st.integers(0, 2**62), max_size=5), st.none() | st.lists(st.integers(0, 9), max_size=5)),
        max_size=30,
    ),
    parts=st.integers(1, 3),
    items_max=st.integers(1, 20),
)
def test_records_stream_the_same_before_and_after_sealing(
    lists: list[tuple], parts: int, items_max: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("run") / "run"
    writer = RunWriter(path, manifest())
    for maker in range(parts):
        part = writer.part("records", str(maker))
        part.append(record(i, *lists[i]) for i in range(maker, len(lists), parts))
        part.close()
    unsealed = whole_records(path)
    assert sorted((r["request_id"], r["chunk_ns"], r["chunk_tokens"]) for r in unsealed) == [
        (i, *both) for i, both in enumerate(lists)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pinchpoint.rundir.ROW_GROUP_ITEMS_MAX", items_max)
        writer.seal("complete")
    assert whole_records(path) == unsealed
    run = read_run(path)
    order = [row["request_id"] for row in unsealed]
    assert run.records.column("request_id").to_pylist() == order
    chosen = [batch.to_pydict() for batch in run.record_batches(("chunk_ns", "request_id"))]
    assert all(list(batch) == ["chunk_ns", "request_id"] for batch in chosen)
    assert [i for batch in chosen for i in batch["request_id"]] == order


def test_a_row_group_ends_when_it_has_enough_arrivals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pinchpoint.rundir.ROW_GROUP_ITEMS_MAX", 100)
    writer = RunWriter(tmp_path / "run", manifest())
    part = writer.part("records", "0")
    for i in range(10):
        part.append([record(i, list(range(50)))])
        part.flush()
    part.close()
    writer.seal("complete")
    file = pq.ParquetFile(tmp_path / "run" / "records.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [2] * 5


def test_views_of_the_requests_do_not_hold_the_arrivals(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", manifest())
    assert not {"chunk_ns", "chunk_tokens"} & set(read_run(tmp_path / "run").records.column_names)
    writer.seal("complete")
    assert not {"chunk_ns", "chunk_tokens"} & set(read_run(tmp_path / "run").records.column_names)


def test_a_run_from_before_a_column_has_it_null(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", manifest())
    part = writer.part("records", "0")
    part.append([record(1, [5])])
    part.close()
    writer.seal("complete")
    file = tmp_path / "run" / "records.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["phase", "attempts"]), file)
    assert whole_records(tmp_path / "run", ("phase", "request_id", "attempts")) == [
        {"phase": None, "request_id": 1, "attempts": None}
    ]
    assert whole_records(tmp_path / "run", ("phase",)) == [{"phase": None}]


def test_a_run_without_a_column_that_must_be_there_is_damaged(tmp_path: Path) -> None:
    RunWriter(tmp_path / "run", manifest()).seal("complete")
    pq.write_table(pa.table({"request_id": [1]}), tmp_path / "run" / "records.parquet")
    with pytest.raises(RunFormatError, match="damaged"):
        _ = read_run(tmp_path / "run").records


def test_a_changed_file_is_noted_once(tmp_path: Path) -> None:
    RunWriter(tmp_path / "run", manifest()).seal("complete")
    file = tmp_path / "run" / "records.parquet"
    pq.write_table(pq.read_table(file), file, compression="none")
    run = read_run(tmp_path / "run")
    for _ in range(2):
        assert not list(run.record_batches(("request_id",))) and not run.records.num_rows
    assert run.problems == ["records.parquet is not the file that was sealed: it was changed afterwards"]


def test_a_torn_end_of_the_records_is_noted_once(tmp_path: Path) -> None:
    part = RunWriter(tmp_path / "run", manifest()).part("records", "0")
    for i in range(3):
        part.append([record(i, [i])])
        part.flush()
    path = tmp_path / "run" / "parts" / "records-0.arrows"
    path.write_bytes(path.read_bytes()[:-40])
    run = read_run(tmp_path / "run")
    for _ in range(2):
        assert [len(batch) for batch in run.record_batches()] == [1, 1]
    assert len(run.problems) == 1 and "cut off" in run.problems[0]


def test_a_run_of_two_million_tokens_is_sealed_and_judged_in_little_memory(tmp_path: Path) -> None:
    """In a process of its own; what a few tokens take anyway is measured first and does not count."""
    loaded = manifest()
    loaded.stages = [Stage(0, "load", "load", 0, 100, 100, 0, 1.0)]
    loaded.slos = parse_slos(["itl p95 < 1s"])
    for name, requests, tokens in (("small", 100, 10), ("large", 100, 20_000)):
        part = RunWriter(tmp_path / name, loaded).part("records", "0")
        part.append(record(i, np.arange(tokens) * 1000 + i) for i in range(requests))
        part.close()
    script = f"""
from pathlib import Path
from pinchpoint.conclude import judge_directory
from pinchpoint.rundir import seal_unsealed
for name in ("small", "large"):
    folder = Path({str(tmp_path)!r}) / name
    seal_unsealed(folder)
    view, verdict = judge_directory(folder)
    print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0], view.requests.digest.tokens)
"""
    ended = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    (small_kib, small), (large_kib, large) = (map(int, line.split()) for line in ended.stdout.splitlines())
    assert (small, large) == (1_000, 2_000_000)
    assert (large_kib - small_kib) / 1024 < MEMORY_GROWTH_MAX_MIB


def span(number: int) -> tuple:
    return ("a" * 32, f"{number:016x}", None, "llm_request", "vllm", "", "server", 1, 2, "unset", 3, None, "{}")


def test_spans_are_sealed_like_the_other_tables(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "run", manifest())
    part = writer.part("spans", "otlp")
    part.append(span(number) for number in range(3))
    part.close()
    assert read_run(tmp_path / "run").spans.num_rows == 3
    writer.seal("complete")
    run = read_run(tmp_path / "run")
    assert run.spans.column("span_id").to_pylist() == [f"{number:016x}" for number in range(3)]
    assert run.manifest.files["spans.parquet"]["rows"] == 3


def test_a_run_that_received_no_spans_has_no_file_of_them(tmp_path: Path) -> None:
    RunWriter(tmp_path / "run", manifest()).seal("complete")
    run = read_run(tmp_path / "run")
    assert "spans.parquet" not in run.manifest.files
    assert not (tmp_path / "run" / "spans.parquet").exists()
    assert run.spans.num_rows == 0
    assert run.problems == []
