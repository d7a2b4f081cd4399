"""A small data set as it lies on disk: the same for a seed, to be gone on with, and silent about what is in it."""

import hashlib
import json
from pathlib import Path

import pytest

from pinchpoint.cli import main
from pinchpoint.conclude import judge_directory
from pinchpoint.errors import UsageError
from pinchpoint.lab.faults import FAULTS
from pinchpoint.labbench import SIZES, Size, make_bench

FAULT = "admission-limit"
TINY = Size("tiny", 1, 1, 1, healthy=0, underloaded=1, limit=0, two_faults=0, pairs=0, faults=(FAULT, "kv-admission"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "one"
    assert make_bench(out, TINY, 1, workers=2).complete
    return out


def files_of(out: Path) -> dict[str, str]:
    paths = [path for path in out.rglob("*") if path.is_file()]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_a_seed_gives_the_same_files_also_when_it_was_interrupted(made: Path, tmp_path: Path) -> None:
    calls: list[int] = []

    def interrupt(done: int, total: int) -> None:
        calls.append(done)
        if done == 2 and len(calls) == 3:
            raise KeyboardInterrupt

    out = tmp_path / "two"
    first = make_bench(out, TINY, 1, workers=1, on_made=interrupt)
    assert not first.complete and not (out / "labels.jsonl").exists()
    again: list[int] = []
    second = make_bench(out, TINY, 1, workers=2, on_made=lambda done, total: again.append(done))
    assert second.complete and again[0] >= 2
    assert files_of(out) == files_of(made)


def test_no_run_tells_what_it_is(made: Path) -> None:
    words = [FAULT, "kv-admission", *(fault.physics for fault in FAULTS.values() if fault.name == FAULT)]
    for path in [*(made / "runs").rglob("*"), made / "manifest.json"]:
        if path.is_file() and path.suffix in (".json", ".jsonl"):
            text = path.read_text()
            told = text.partition('"scenarios"')[2] if path.name == "manifest.json" else text
            assert not any(word in told for word in words), path


def test_labels_are_what_the_manifest_says_and_speak_of_every_run(made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    raw = (made / "labels.jsonl").read_bytes()
    assert hashlib.sha256(raw).hexdigest() == manifest["labels"]["sha256"]
    labels = [json.loads(line) for line in raw.splitlines()]
    names = {path.name for path in (made / "runs").iterdir()}
    assert {label["id"] for label in labels} == names == {one["id"] for one in manifest["scenarios"]}
    assert {label["label"] for label in labels} == {"fault", "underloaded"}
    assert {one["part"] for one in manifest["scenarios"]} == {"tuning", "test"}
    impacts = [fault["impact"] for label in labels for fault in label["faults"]]
    assert any(impact and impact["has_impact"] for impact in impacts)


def test_every_run_can_be_judged(made: Path) -> None:
    for path in (made / "runs").iterdir():
        _, verdict = judge_directory(path)
        assert verdict.run_id == path.name


def test_another_data_set_is_never_mixed_in(made: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="seed 1"):
        make_bench(made, TINY, 2)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="no data set"):
        make_bench(tmp_path, TINY, 1)


def test_a_finished_data_set_is_summed_up_again_without_making_anything(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SIZES, "small", TINY)
    before = files_of(made)
    with pytest.raises(SystemExit) as ended:
        main(["lab", "bench", "--out", str(made), "--seed", "1"])
    out = capsys.readouterr().out
    assert ended.value.code == 0 and "Runs by cause" in out and "labels.jsonl" in out
    assert files_of(made) == before
