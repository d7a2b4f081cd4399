"""Every workload of the library, and a fitted one, against the lab over HTTP in real processes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pinchpoint.workload.library import presets

PINCHPOINT = (sys.executable, "-m", "pinchpoint")
TRACES = Path(__file__).parents[1] / "data" / "traces"
LIMIT_S = 240.0


@pytest.fixture(scope="module")
def lab_url() -> Iterator[str]:
    process = subprocess.Popen(
        [*PINCHPOINT, "lab", "serve", "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    document = ""
    for line in process.stdout:
        document += line
        if line.startswith("}"):
            break
    yield json.loads(document)["url"]
    process.terminate()
    process.wait(10)


def pinchpoint(tmp_path: Path, *words: object, codes: tuple[int, ...] = (0,)) -> dict:
    done = subprocess.run(
        [*PINCHPOINT, *map(str, words), "--json"],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        check=False,
    )
    assert done.returncode in codes, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_every_workload_of_the_library_runs_and_has_the_lengths_that_were_asked_for(
    lab_url: str, tmp_path: Path
) -> None:
    """Answers are cut short by the plan, so that the whole library is through in a minute."""
    stages = []
    for name in presets():
        one = "closed", f'workload = "{name}"', "concurrency = 2", "requests = 4", f'name = "{name}"'
        stages.append("[[stages]]\nkind = " + json.dumps(one[0]) + "\n" + "\n".join(one[1:]))
    plan = tmp_path / "library.toml"
    plan.write_text("seed = 3\n" + "\n".join(stages) + "\n")
    # A busy host may send late and make the measurement invalid; what was sent and answered is judged here.
    answer = pinchpoint(tmp_path, "load", lab_url, "--plan", plan, "--out", tmp_path / "run", codes=(0, 3))
    records = pq.read_table(tmp_path / "run" / "records.parquet").to_pylist()
    assert len(records) == 4 * len(presets())
    assert {row["status"] for row in records} == {"ok"}, [row["error"] for row in records if row["error"]]
    assert len(answer["stages"]) == len(presets())
    counted = [row for row in records if row["requested_input_tokens"]]
    assert len(counted) >= len(records) - 4  # pictures are counted by nobody beforehand
    assert all(row["input_tokens"] == row["requested_input_tokens"] for row in counted)
    asked = [row for row in records if row["requested_output_tokens"]]
    assert all(row["output_tokens"] == row["requested_output_tokens"] for row in asked)


def test_a_plan_that_was_learnt_from_a_trace_makes_load(lab_url: str, tmp_path: Path) -> None:
    plan, page = tmp_path / "fitted.toml", tmp_path / "fit.html"
    found = pinchpoint(
        tmp_path,
        *("workload", "fit", TRACES / "azure2023_conv_1200.csv.gz", "-o", plan, "--plot", page),
        *("--duration", "4s", "--scale", "0.8x"),
    )
    assert found["schema"] == "pinchpoint.fit/1" and all(found["better"])
    assert page.read_text(encoding="utf-8").count("<svg") == 4
    answer = pinchpoint(tmp_path, "load", lab_url, "--plan", plan, "--out", tmp_path / "run", codes=(0, 3))
    assert answer["offered"] > 5 and answer["completed"] == answer["offered"]


def test_prompts_that_shared_their_beginnings_share_them_when_they_are_played_again(
    lab_url: str, tmp_path: Path
) -> None:
    trace = TRACES / "mooncake_conversation_800.jsonl.gz"
    plan = tmp_path / "replay.toml"
    plan.write_text(
        f'seed = 1\n[[stages]]\nkind = "replay"\nformat = "auto"\nfile = {json.dumps(str(trace))}\n'
        "scale = 20\nrequests = 12\n"
    )
    pinchpoint(tmp_path, "load", lab_url, "--plan", plan, "--out", tmp_path / "run", codes=(0, 3))
    records = pq.read_table(tmp_path / "run" / "records.parquet").to_pylist()
    schedule = pq.read_table(tmp_path / "run" / "schedule.parquet").to_pylist()
    # A replay is exact: prompts beyond the lab's context are sent, and refused by it.
    assert len(records) == 12 and {row["status"] for row in records} <= {"ok", "http_error"}
    assert sum(row["status"] == "ok" for row in records) >= 4
    assert sum(row["prefix_id"] is not None for row in schedule) >= 6
    assert sum(row["shared_input_tokens"] for row in records) > 12 * 512
