"""The run directory: what is written is read back, whatever happened to the writer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pinchpoint.errors import RunFormatError, UsageError
from pinchpoint.model import SAMPLE_COLUMNS, Manifest, TargetFacts
from pinchpoint.rundir import PartWriter, RunWriter, read_run, seal_unsealed


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
