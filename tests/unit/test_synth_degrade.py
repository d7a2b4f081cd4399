"""Degraded telemetry: what is missing, lost, renamed, reset or stamped by another clock."""

from pathlib import Path

import numpy as np
import pytest

from pinchpoint.catalog import load_catalog
from pinchpoint.errors import UsageError
from pinchpoint.plan import build_plan
from pinchpoint.rundir import Run, read_run
from pinchpoint.series import RunView
from pinchpoint.synth import run_virtual
from pinchpoint.synth.degrade import DEGRADATIONS, LOSS_RATIO, SKEW_NS, Degrader
from pinchpoint.telemetry.config import Reading


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory):
    made: dict[str, Run] = {}
    root = tmp_path_factory.mktemp("degraded")

    def run(*names: str) -> Run:
        key = "+".join(names) or "whole"
        if key not in made:
            stages = [{"kind": "open", "rate_rps": 2.0, "duration_s": 60.0}]
            plan = build_plan({"url": "u", "seed": 3, "stages": stages, "slos": ["e2e p95 < 60s"]})
            made[key] = read_run(run_virtual(plan, "none", root / key, degrade=names))
        return made[key]

    return run


def sources(run: Run) -> set[str]:
    return set(run.telemetry.column("source").to_pylist())


def test_whole_telemetry_has_engine_gpu_host_processes_client_and_null_requests(runs) -> None:
    view = RunView(runs())
    assert sources(runs()) == {"engine", "gpu", "host", "node", "server", "client", "null-request"}
    for name in (
        "engine.requests_running",
        "engine.kv_used_ratio",
        "engine.generation_tokens_total",
        "gpu.util_ratio",
        "gpu.power_watts",
        "host.cpu_used_ratio",
        "host.psi_cpu_some_s_total",
        "server.listener_cpu_cores",
        "server.rss_bytes",
        "client.loop_busy_ratio",
        "probe.null_request_s",
    ):
        assert len(view.series(name)) > 10, name


def test_requests_are_the_same_whatever_the_telemetry_is(runs) -> None:
    reference = runs().records
    for name in DEGRADATIONS:
        assert runs(name).records.equals(reference), name


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("no-gpu", {"gpu"}),
        ("no-engine", {"engine"}),
        ("no-host", {"host", "node", "server"}),
        ("client-only", {"engine", "gpu", "host", "node", "server"}),
    ],
)
def test_what_cannot_be_seen_leaves_no_reading_and_all_else_stays(runs, name: str, missing: set[str]) -> None:
    assert sources(runs(name)) == sources(runs()) - missing


def test_some_thirty_per_cent_of_scrapes_are_lost_and_told(runs) -> None:
    view = RunView(runs("scrape-loss"))
    whole = len(RunView(runs()).series("engine.requests_running"))
    kept = len(view.series("engine.requests_running"))
    assert kept / whole == pytest.approx(1 - LOSS_RATIO, abs=0.12)
    assert view.raw_count("scrape_failed", (0, 1e9)) > 0


def test_old_names_are_other_names_for_the_same_numbers(runs) -> None:
    def raw_names(run: Run) -> set[str]:
        table = run.telemetry
        return {
            raw
            for raw, source in zip(table["raw"].to_pylist(), table["source"].to_pylist(), strict=True)
            if source == "engine"
        }

    assert raw_names(runs("old-names")) - raw_names(runs())
    name = "engine.generation_tokens_total"
    assert np.array_equal(RunView(runs("old-names")).series(name).value, RunView(runs()).series(name).value)


def test_a_counter_that_begins_anew_never_exceeds_the_true_one(runs) -> None:
    name = "engine.generation_tokens_total"
    true, seen = RunView(runs()).series(name), RunView(runs("counter-resets")).series(name)
    assert (np.diff(true.value) >= 0).all() and (np.diff(seen.value) < 0).any()
    assert (seen.value <= true.value).all()


def test_gauges_do_not_begin_anew() -> None:
    catalog, degrader = load_catalog(), Degrader(["counter-resets"], 1)
    readings = [
        Reading("vllm:num_requests_running", "engine.requests_running", "", 5.0),
        Reading("unknown_seconds_total", None, "", 7.0),
    ]
    after = degrader.counters("engine-0", 10**13, readings, catalog)
    assert [reading.value for reading in after] == [5.0, 0.0]


def test_another_clock_shifts_the_service_and_not_the_client(runs) -> None:
    def stamps(run: Run, source: str) -> np.ndarray:
        table = run.telemetry
        return np.unique(np.array(table["t_ns"].to_pylist())[np.array(table["source"].to_pylist()) == source])

    shift = stamps(runs("clock-skew"), "engine")[-1] - stamps(runs(), "engine")[-1]
    assert abs(shift) == SKEW_NS
    assert np.array_equal(stamps(runs("clock-skew"), "client"), stamps(runs(), "client"))


def test_an_unknown_degradation_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    plan = build_plan({"url": "u", "seed": 3})
    with pytest.raises(UsageError, match="no-gpu"):
        run_virtual(plan, "none", tmp_path / "run", degrade=["no-gpus"])
    assert not (tmp_path / "run").exists()
