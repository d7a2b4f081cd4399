"""Faults in virtual runs: those of the client, and one that sets in under load."""

from pathlib import Path

import numpy as np
import pytest

from pinchpoint.lab.params import LabParams
from pinchpoint.lab.scenario import Scenario, choose_scenario
from pinchpoint.plan import build_plan
from pinchpoint.rundir import read_run
from pinchpoint.series import RunView
from pinchpoint.synth import run_virtual


def run(tmp_path: Path, what: str | Scenario, rate_rps: float = 4.0, duration_s: float = 40.0, **keys) -> RunView:
    stages = [{"kind": "open", "rate_rps": rate_rps, "duration_s": duration_s}]
    plan = build_plan({"url": "u", "seed": 5, "stages": stages, "slos": ["e2e p95 < 60s"], **keys})
    return RunView(read_run(run_virtual(plan, what, tmp_path / "run")))


def loaded(view: RunView, name: str) -> np.ndarray:
    stage = next(stage for stage in view.manifest.stages if stage.kind == "load")
    return getattr(view.requests, name)[view.requests.stage == stage.index]


def with_client(**fields: object) -> Scenario:
    params = LabParams().changed({f"client.{name}": value for name, value in fields.items()})
    return choose_scenario("none", base=params)


def test_requests_wait_in_a_small_pool_and_the_wait_counts(tmp_path: Path) -> None:
    view = run(tmp_path, with_client(pool_connections=2))
    sent, ended = loaded(view, "sent_s"), loaded(view, "end_s")
    in_flight = [np.sum((sent <= t) & (t < ended)) for t in sent]
    assert max(in_flight) == 2
    assert np.nanmax(loaded(view, "send_lag_s")) > 1.0
    assert np.nanmax(loaded(view, "ttft_s")) > 1.0


def test_a_closed_loop_in_disguise_leaves_the_wait_out(tmp_path: Path) -> None:
    view = run(tmp_path, with_client(users=2))
    assert np.nanmax(loaded(view, "ttft_s")) < 0.5
    schedule = {row["request_id"]: row["offset_ns"] for row in view.run.schedule.to_pylist()}
    stage = next(stage for stage in view.manifest.stages if stage.kind == "load")
    records = [row for row in view.run.records.to_pylist() if row["stage"] == stage.index]
    late_s = [(row["scheduled_ns"] - stage.t0_ns - schedule[row["request_id"]]) / 1e9 for row in records]
    assert max(late_s) > 1.0


def test_without_a_port_a_request_is_dropped_and_says_so(tmp_path: Path) -> None:
    params = LabParams().changed({"path.keep_alive": False, "client.ports": 60})
    view = run(tmp_path, choose_scenario("none", base=params))
    statuses = loaded(view, "status").astype(str)
    assert "dropped" in statuses and "ok" in statuses
    assert "no free local port" in set(view.run.records["error"].to_pylist())


def test_repeated_prompts_are_found_in_the_prefix_cache(tmp_path: Path) -> None:
    name = "engine.prefix_hit_tokens_total"
    fresh = run(tmp_path / "a", "none").series(name).value[-1]
    again = run(tmp_path / "b", with_client(repeated_prompts=3)).series(name).value[-1]
    assert fresh == 0 and again > 1000


def test_a_busy_client_stamps_late_while_the_service_is_well(tmp_path: Path) -> None:
    busy = run(tmp_path / "a", with_client(chunk_s=1.5e-3, kernel_stamps=False))
    well = run(tmp_path / "b", "none")
    assert np.nanmedian(loaded(busy, "ttft_s")) > 1.2 * np.nanmedian(loaded(well, "ttft_s"))
    server_s = [view.histogram_mean("engine.ttft_s", (0, 1e9)) for view in (busy, well)]
    assert server_s[0] == pytest.approx(server_s[1], rel=1e-6)
    assert busy.series("client.loop_busy_ratio").value.max() > 0.5


def test_a_fault_sets_in_at_its_instant_and_not_before(tmp_path: Path) -> None:
    onset_s = 30.0
    late = run(tmp_path / "a", choose_scenario("slot-cap", "severe", onset_s))
    never = run(tmp_path / "b", "none")
    at_s = loaded(late, "scheduled_s") + late.t0_ns / 1e9
    before = at_s < onset_s - 5
    assert before.sum() > 20
    assert np.array_equal(loaded(late, "ttft_s")[before], loaded(never, "ttft_s")[before])
    assert np.nanmax(loaded(late, "ttft_s")[~before]) > 3 * np.nanmax(loaded(never, "ttft_s"))


def test_an_answer_that_takes_too_long_is_a_timeout(tmp_path: Path) -> None:
    view = run(tmp_path, choose_scenario("slot-cap", "severe"), 8.0, timeout_s=4.0)
    timed_out = loaded(view, "status") == "timeout"
    assert timed_out.any()
    took_s = (loaded(view, "end_s") - loaded(view, "scheduled_s"))[timed_out]
    assert took_s == pytest.approx(np.full(len(took_s), 4.0))


def test_the_same_run_twice_is_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(tmp_path / name, choose_scenario("kv-exhausted", "severe", 20.0))
    files = [sorted((tmp_path / name / "run").iterdir()) for name in ("a", "b")]
    assert [path.name for path in files[0]] == [path.name for path in files[1]]
    assert all(x.read_bytes() == y.read_bytes() for x, y in zip(*files, strict=True))
