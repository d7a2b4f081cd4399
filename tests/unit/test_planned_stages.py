"""Stages of a plan in virtual time: each kind is carried out as it is written, and can be judged and shown."""

from pathlib import Path

import numpy as np
import pytest

from pinchpoint.errors import UsageError
from pinchpoint.judge import judge
from pinchpoint.model import Stage
from pinchpoint.plan import build_plan
from pinchpoint.report.html import write_html
from pinchpoint.rundir import Run, read_run
from pinchpoint.series import RunView
from pinchpoint.stepper import POLL_S
from pinchpoint.synth import run_virtual

SLOS = ("ttft p95 < 500ms", "errors < 5%")


def carried_out(tmp_path: Path, *stages: dict[str, object], **keys: object) -> tuple[Run, list[Stage]]:
    values = {"url": "http://lab.invalid", "seed": 1, "slos": SLOS, "stages": list(stages), **keys}
    run_virtual(build_plan(values), "none", tmp_path / "run")
    run = read_run(tmp_path / "run")
    return run, [stage for stage in run.manifest.stages if stage.kind == "load"]


def rows_of(run: Run, stage: Stage) -> list[dict[str, int]]:
    """Schedule and record of each recorded request of a stage, in order of the scheduled instant."""
    schedule = {row["request_id"]: row for row in run.schedule.to_pylist()}
    records = [row for row in run.records.to_pylist() if row["stage"] == stage.index]
    return sorted(({**schedule[r["request_id"]], **r} for r in records), key=lambda row: row["scheduled_ns"])


def test_every_request_of_an_open_stage_is_sent_at_its_instant(tmp_path: Path) -> None:
    run, stages = carried_out(
        tmp_path,
        {"kind": "open", "rate_rps": 4.0, "requests": 40, "arrivals": "gamma:2"},
        {"kind": "ramp", "from_rps": 1.0, "to_rps": 8.0, "duration_s": 20.0, "name": "up"},
        {"kind": "steps", "rates_rps": [2.0, 6.0], "each_s": 10.0, "arrivals": "constant"},
        {"kind": "spike", "base_rps": 1.0, "peak_rps": 20.0, "at_s": 5.0, "for_s": 2.0, "duration_s": 15.0},
        {"kind": "sine", "mean_rps": 4.0, "amplitude_ratio": 0.8, "period_s": 8.0, "duration_s": 16.0},
        {"kind": "on-off", "rate_rps": 10.0, "on_s": 1.0, "off_s": 3.0, "duration_s": 16.0, "arrivals": "bursts:5"},
    )
    assert len(stages) == 6
    for stage in stages:
        rows = rows_of(run, stage)
        assert len(rows) == sum(row["stage"] == stage.index for row in run.schedule.to_pylist())
        assert all(row["scheduled_ns"] == stage.t0_ns + row["offset_ns"] for row in rows)
        assert all(stage.t0_ns <= row["scheduled_ns"] < stage.t1_ns for row in rows)
    assert len(rows_of(run, stages[0])) == 40
    assert len(rows_of(run, stages[2])) == 80
    assert [stage.rate_rps for stage in stages] == [4.0] + [None] * 5
    assert [stage.arrivals for stage in stages] == ["gamma:2", "poisson", "constant", "poisson", "poisson", "bursts:5"]
    assert stages[1].profile == "ramp from 1 req/s to 8 req/s over 20 s" and stages[1].name == "up"
    for stage, length_s in zip(stages[1:], (20, 20, 15, 16, 16), strict=True):
        assert (stage.t1_ns - stage.t0_ns) / 1e9 == pytest.approx(length_s, abs=1e-6)


def test_a_rate_that_changes_gives_no_capacity_and_the_run_can_be_shown(tmp_path: Path) -> None:
    run, _ = carried_out(
        tmp_path,
        {"kind": "ramp", "from_rps": 1.0, "to_rps": 6.0, "duration_s": 30.0},
        {"kind": "sessions", "rate_rps": 0.5, "sessions": 5, "turns": 2, "think": "1s"},
        {"kind": "closed", "concurrency": 2, "to_concurrency": 6, "duration_s": 20.0},
    )
    verdict = judge(RunView(run))
    assert verdict.capacity is None or verdict.capacity.lower_rps is None
    write_html(RunView(run), verdict, tmp_path / "report.html")
    assert "ramp" in (tmp_path / "run" / "run.json").read_text()


def test_a_turn_is_due_a_think_time_after_the_one_before_has_ended(tmp_path: Path) -> None:
    run, (stage,) = carried_out(
        tmp_path,
        {"kind": "sessions", "rate_rps": 2.0, "sessions": 12, "turns": "uniform:1:5", "think": "exponential:1s"},
    )
    rows = rows_of(run, stage)
    assert len(rows) == sum(row["stage"] == stage.index for row in run.schedule.to_pylist())
    assert all(row["status"] == "ok" for row in rows)
    ends = {(row["session_id"], row["turn"]): row["end_ns"] for row in rows}
    assert max(row["turn"] for row in rows) >= 3
    for row in rows:
        if row["turn"] == 0:
            assert row["scheduled_ns"] == stage.t0_ns + row["offset_ns"]
        else:
            assert row["scheduled_ns"] == ends[row["session_id"], row["turn"] - 1] + row["think_ns"]
    assert stage.decision == "none" and stage.arrivals == "poisson"


def test_sessions_with_a_duration_end_in_the_middle_of_it(tmp_path: Path) -> None:
    run, (stage,) = carried_out(
        tmp_path, {"kind": "sessions", "rate_rps": 2.0, "duration_s": 10.0, "turns": 20, "think": "2s"}
    )
    rows = rows_of(run, stage)
    assert stage.t1_ns == stage.t0_ns + 10 * 10**9
    assert max(row["scheduled_ns"] for row in rows) < stage.t1_ns + POLL_S * 1e9
    assert len(rows) < sum(row["stage"] == stage.index for row in run.schedule.to_pylist())


def test_a_closed_loop_answers_exactly_the_requests_asked_for(tmp_path: Path) -> None:
    run, (stage,) = carried_out(tmp_path, {"kind": "closed", "concurrency": 3, "requests": 50, "think": "100ms"})
    rows = rows_of(run, stage)
    assert len(rows) == 50 and all(row["status"] == "ok" for row in rows)
    events = sorted([(row["scheduled_ns"], 1) for row in rows] + [(row["end_ns"], -1) for row in rows])
    assert np.cumsum([step for _, step in events]).max() == 3
    assert stage.concurrency == 3


def test_a_closed_loop_never_runs_out_of_requests(tmp_path: Path) -> None:
    """The pool that it begins with lasts six seconds at the speed of the warm-up."""
    run, (stage,) = carried_out(tmp_path, {"kind": "closed", "concurrency": 5, "duration_s": 120.0})
    rows = rows_of(run, stage)
    seconds = np.array([(row["scheduled_ns"] - stage.t0_ns) / 1e9 for row in rows])
    assert 110 < seconds.max() < 120
    busy_s = sum(min(row["end_ns"], stage.t1_ns) - row["scheduled_ns"] for row in rows) / 1e9
    assert busy_s / 120 == pytest.approx(5, rel=0.01)


def test_a_ramp_of_users_is_a_ramp(tmp_path: Path) -> None:
    run, (stage,) = carried_out(tmp_path, {"kind": "closed", "concurrency": 1, "to_concurrency": 9, "duration_s": 40.0})
    rows = rows_of(run, stage)
    for share in (0.1, 0.5, 0.9):
        at_ns = stage.t0_ns + share * 40e9
        in_flight = sum(row["scheduled_ns"] <= at_ns < row["end_ns"] for row in rows)
        assert in_flight == pytest.approx(1 + 8 * share, abs=0.5)
    assert stage.concurrency == 9 and stage.profile == "ramp from 1 to 9 users"


def test_a_user_whose_patience_is_at_its_end_hangs_up(tmp_path: Path) -> None:
    run, (stage,) = carried_out(
        tmp_path, {"kind": "sessions", "rate_rps": 2.0, "sessions": 30, "turns": 3}, patience="exponential:2s"
    )
    rows = rows_of(run, stage)
    gone = [row for row in rows if row["status"] == "abandoned"]
    assert gone and all(row["end_ns"] == row["scheduled_ns"] + row["patience_ns"] for row in gone)
    assert all(row["end_ns"] <= row["scheduled_ns"] + row["patience_ns"] for row in rows)
    turns = {(row["session_id"], row["turn"]) for row in rows}
    assert not any((row["session_id"], row["turn"] + 1) in turns for row in gone)


def test_a_plan_that_cannot_be_carried_out_leaves_no_run_behind(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"stages\[0\].think"):
        carried_out(tmp_path, {"kind": "closed", "concurrency": 1, "duration_s": 5.0, "think": "x"})
    assert not (tmp_path / "run").exists()
