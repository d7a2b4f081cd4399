"""The search in virtual time, against the lab, whose capacity can be measured by long fixed stages."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from pinchpoint.errors import GuardError
from pinchpoint.lab.params import LabParams
from pinchpoint.model import Manifest
from pinchpoint.plan import ClosedStage, OpenStage, build_plan
from pinchpoint.rundir import read_run
from pinchpoint.series import RunView
from pinchpoint.slo import parse_slos
from pinchpoint.synth import run_virtual

SLOS = ("ttft p95 < 500ms", "tpot p95 < 50ms", "errors < 5%")


def search(tmp_path: Path, fault: str = "slot-cap", *, seed: int = 1, name: str = "run", **plan: object) -> Manifest:
    values = {"url": "http://lab.invalid", "seed": seed, "budget_s": 180.0, "slos": SLOS, **plan}
    run_virtual(build_plan(values), fault, tmp_path / name)
    return read_run(tmp_path / name).manifest


def rates(manifest: Manifest, decision: str) -> list[float]:
    return [s.rate_rps for s in manifest.stages if s.kind == "search" and s.decision == decision and s.rate_rps]


def test_a_run_has_warm_up_search_overload_and_recovery(tmp_path: Path) -> None:
    manifest = search(tmp_path)
    kinds = [stage.kind for stage in manifest.stages]
    assert kinds[0] == "warmup"
    assert kinds.count("overload") == 1 and kinds[-1] == "recovery"
    assert manifest.status == "complete"
    overload = next(stage for stage in manifest.stages if stage.kind == "overload")
    assert overload.rate_rps is not None and overload.rate_rps > max(rates(manifest, "pass"), default=0)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    first, again = search(tmp_path, name="a"), search(tmp_path, name="b")
    assert first.stages == again.stages
    for table in ("schedule.parquet", "records.parquet"):
        assert first.files[table]["sha256"] == again.files[table]["sha256"]
    assert search(tmp_path, name="c", seed=2).stages != first.stages


def test_the_budget_is_kept(tmp_path: Path) -> None:
    for budget_s in (60.0, 180.0):
        manifest = search(tmp_path, name=f"b{budget_s:g}", budget_s=budget_s)
        total_s = manifest.stages[-1].drained_ns / 1e9
        assert total_s <= budget_s * 1.1 + 12


@pytest.mark.parametrize("fault", ["slot-cap", "rate-limit", "kv-admission"])
def test_the_interval_agrees_with_long_fixed_stages(tmp_path: Path, fault: str) -> None:
    """What the page on capacity invites its reader to check: the SLOs hold at the lower end, not at the upper one."""
    from pinchpoint.judge import judge

    manifest = search(tmp_path, fault, budget_s=240.0)
    capacity = judge(RunView(read_run(tmp_path / "run"))).capacity
    assert capacity is not None and capacity.best_rps is not None
    assert capacity.lower_rps is not None and capacity.upper_rps is not None
    assert capacity.upper_rps / capacity.lower_rps < 1.6
    for name, rate_rps, holds in (("low", 0.98 * capacity.lower_rps, True), ("high", 1.02 * capacity.upper_rps, False)):
        search(tmp_path, fault, name=name, stages=[{"kind": "open", "rate_rps": rate_rps, "duration_s": 400.0}])
        view = RunView(read_run(tmp_path / name))
        stage = next(s for s in view.stages if s.kind == "load")
        result = view.stage_result(stage, parse_slos(SLOS))
        met = [
            n_met / n >= slo.attainment_ratio for slo in parse_slos(SLOS) for n_met, n in [result.attainment[slo.text]]
        ]
        assert all(met) == holds, (name, result.attainment)
    assert manifest.slos_derived is False


def test_a_short_budget_still_gives_an_answer(tmp_path: Path) -> None:
    from pinchpoint.judge import judge

    search(tmp_path, budget_s=60.0)
    verdict = judge(RunView(read_run(tmp_path / "run")))
    assert verdict.capacity is not None and verdict.capacity.upper_rps is not None
    assert verdict.findings[0].rule == "SEQ001"


def test_steps_near_the_capacity_inherit_the_queue_of_the_one_before(tmp_path: Path) -> None:
    stages = search(tmp_path, budget_s=240.0).stages
    refined = [(a, b) for a, b in itertools.pairwise(stages) if a.kind == b.kind == "search" and b.rate_rps]
    gaps_s = [(b.t0_ns - a.t1_ns) / 1e9 for a, b in refined]
    assert sum(gap_s < 1.0 for gap_s in gaps_s) > len(gaps_s) / 2
    settled_s = [stage.settle_ns / 1e9 for _, stage in refined]
    assert all(settled_s)


def test_no_step_repeats_the_requests_of_another(tmp_path: Path) -> None:
    search(tmp_path)
    run = read_run(tmp_path / "run")
    indices = {stage.index for stage in run.manifest.stages if stage.kind == "search"}
    lengths: dict[int, list[tuple[int, int]]] = {}
    for row in run.schedule.select(["stage", "input_tokens", "max_output_tokens"]).to_pylist():
        if row["stage"] in indices:
            lengths.setdefault(row["stage"], []).append((row["input_tokens"], row["max_output_tokens"]))
    firsts = [tuple(rows[:5]) for rows in lengths.values() if len(rows) >= 5]
    assert len(set(firsts)) == len(firsts) > 3


def test_a_ceiling_ends_the_search_without_a_failure(tmp_path: Path) -> None:
    manifest = search(tmp_path, "none", max_rate_rps=5.0)
    offered = [stage.rate_rps for stage in manifest.stages if stage.rate_rps]
    assert max(offered) == 5.0
    assert not rates(manifest, "fail")
    assert not any(stage.kind == "overload" for stage in manifest.stages)


def test_without_slos_defaults_come_from_the_unloaded_service(tmp_path: Path) -> None:
    manifest = search(tmp_path, slos=())
    assert manifest.slos_derived
    assert [slo.metric for slo in manifest.slos] == ["ttft", "tpot", "errors"]


def test_a_service_that_fails_at_every_rate_ends_with_an_upper_bound(tmp_path: Path) -> None:
    manifest = search(tmp_path, slos=("ttft p99 < 1ms",))
    assert not rates(manifest, "pass")
    assert rates(manifest, "fail")


def test_plan_stages_run_as_written_instead_of_a_search(tmp_path: Path) -> None:
    stages = [
        {"kind": "open", "rate_rps": 2.0, "duration_s": 20.0, "name": "steady"},
        {"kind": "closed", "concurrency": 4, "duration_s": 15.0, "think": "500ms"},
    ]
    manifest = search(tmp_path, stages=stages)
    first, second = (stage for stage in manifest.stages if stage.kind == "load")
    assert (first.name, first.rate_rps) == ("steady", 2.0)
    assert (first.t1_ns - first.t0_ns) / 1e9 == pytest.approx(20, abs=0.2)
    assert (second.concurrency, second.think_s) == (4, 0.5)
    assert isinstance(build_plan({"url": "u", "seed": 1, "stages": stages}).stages[0], OpenStage)
    assert isinstance(build_plan({"url": "u", "seed": 1, "stages": stages}).stages[1], ClosedStage)
    view = RunView(read_run(tmp_path / "run"))
    window = ((second.t0_ns + second.settle_ns) / 1e9, second.t1_ns / 1e9)
    in_flight = view.in_flight(np.linspace(*window, 100), second)
    assert in_flight.max() <= 4


def test_a_guard_ends_a_run_that_would_bury_the_service(tmp_path: Path) -> None:
    with pytest.raises(GuardError, match="--max-in-flight"):
        search(tmp_path, "slot-cap", max_in_flight=20, slos=("ttft p95 < 60s",))
    manifest = read_run(tmp_path / "run").manifest
    assert manifest.status == "aborted"
    assert manifest.stages[-1].name == "interrupted"


def test_an_itl_slo_is_searched_for_like_any_other(tmp_path: Path) -> None:
    manifest = search(tmp_path, "none", slos=("itl p95 < 1ms",), budget_s=60.0)
    assert rates(manifest, "fail") and not rates(manifest, "pass")


def test_every_issued_request_has_one_record_and_every_record_was_scheduled(tmp_path: Path) -> None:
    search(tmp_path)
    run = read_run(tmp_path / "run")
    scheduled = set(run.schedule.column("request_id").to_pylist())
    recorded = run.records.column("request_id").to_pylist()
    assert len(recorded) == len(set(recorded))
    assert set(recorded) <= scheduled


def test_tokens_asked_are_tokens_answered_in_virtual_time(tmp_path: Path) -> None:
    search(tmp_path)
    batches = read_run(tmp_path / "run").record_batches()
    finished = [r for batch in batches for r in batch.to_pylist() if r["status"] == "ok"]
    assert finished
    assert all(r["output_tokens"] == r["requested_output_tokens"] == len(r["chunk_ns"]) for r in finished)
    assert all(r["chunk_tokens"] is None for r in finished)  # one token in each chunk


def test_little_law_holds_in_a_steady_stage(tmp_path: Path) -> None:
    search(tmp_path, "none", stages=[{"kind": "open", "rate_rps": 8.0, "duration_s": 300.0}])
    view = RunView(read_run(tmp_path / "run"))
    stage = next(s for s in view.stages if s.kind == "load")
    start_s, end_s = view.window_s(stage)
    r = view.requests
    mask = view.select(stage)
    in_flight = view.in_flight(np.linspace(start_s, end_s, 5000), stage).mean()
    arrivals = mask.sum() / (end_s - start_s)
    assert in_flight == pytest.approx(arrivals * np.nanmean(r.e2e_s[mask]), rel=0.03)


def test_a_lab_of_other_size_can_be_searched(tmp_path: Path) -> None:
    plan = build_plan({"url": "u", "seed": 1, "budget_s": 60.0, "slos": SLOS, "max_rate_rps": 4.0})
    run_virtual(plan, "none", tmp_path / "run", params=LabParams(gpu="H100"))
    assert read_run(tmp_path / "run").manifest.status == "complete"
