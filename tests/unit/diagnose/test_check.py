"""The measurement is judged before the server: each check alone, and that an unsound run never passes as sound."""

from pathlib import Path
from typing import Any

import pytest
from case_run import build_case

from pinchpoint.judge import judge
from pinchpoint.model import ValidityReason, Verdict
from pinchpoint.series import RunView

HEALTHY: dict[str, Any] = {"rates": [1, 2, 3], "overload": False, "service": {"a": 0.01}}


def judged(tmp_path: Path, **changes: Any) -> Verdict:
    return judge(RunView(build_case(tmp_path / "run", {**HEALTHY, **changes})))


def reason(verdict: Verdict, check: str) -> ValidityReason:
    return next(r for r in verdict.validity_reasons if r.check == check)


def test_sound_run_is_valid_and_every_check_says_something(tmp_path: Path) -> None:
    verdict = judged(tmp_path)
    assert verdict.validity == "VALID"
    assert len({r.check for r in verdict.validity_reasons}) == len(verdict.validity_reasons) == 24
    assert all(r.statement for r in verdict.validity_reasons)


@pytest.mark.parametrize(("lag_s", "level"), [(0.001, "ok"), (0.045, "ok"), (0.07, "suspect"), (0.2, "invalid")])
def test_send_lag_is_measured_against_the_latency_promised(tmp_path: Path, lag_s: float, level: str) -> None:
    verdict = judged(tmp_path, client={"lag_s": lag_s})  # the SLO is 500 ms
    assert reason(verdict, "send-lag").level == level


def test_lag_that_is_small_beside_a_lenient_slo_is_fine(tmp_path: Path) -> None:
    verdict = judged(tmp_path, client={"lag_s": 0.2}, slos=["ttft p95 < 5s", "errors < 1%"])
    assert reason(verdict, "send-lag").level == "ok"


def test_dropped_requests_make_the_run_invalid(tmp_path: Path) -> None:
    verdict = judged(tmp_path, client={"dropped": 0.1})
    assert verdict.validity == "INVALID"
    assert verdict.capacity is None
    assert verdict.exit_code == 3


def test_loop_without_idle_time_makes_the_run_invalid(tmp_path: Path) -> None:
    verdict = judged(tmp_path, series={"client.loop_busy_ratio": "0.99x120"})
    assert reason(verdict, "loop-busy").level == "invalid"


@pytest.mark.parametrize("name", ["client.cpu_cores", "client.worker_cpu_cores"])
@pytest.mark.parametrize(("cores", "level"), [("0.95", "suspect"), ("0.85", "ok")])
def test_a_load_process_that_needs_its_whole_core_is_suspect(tmp_path: Path, name: str, cores: str, level: str) -> None:
    assert reason(judged(tmp_path, series={name: f"{cores}x120"}), "client-cpu").level == level


def test_answers_a_little_short_are_reported_and_much_shorter_ones_suspect(tmp_path: Path) -> None:
    little = reason(judged(tmp_path / "a", client={"output_ratio": 0.95}), "output-tokens")
    much = reason(judged(tmp_path / "b", client={"output_ratio": 0.7}), "output-tokens")
    assert little.level == "ok" and "shorter answers" in little.statement
    assert much.level == "suspect"


def test_prompts_of_another_length_than_planned_make_the_run_suspect(tmp_path: Path) -> None:
    assert reason(judged(tmp_path / "a", client={"input_ratio": 1.1}), "input-tokens").level == "ok"
    for name, ratio in (("b", 0.5), ("c", 1.5)):
        assert reason(judged(tmp_path / name, client={"input_ratio": ratio}), "input-tokens").level == "suspect"


def test_prompts_from_the_prefix_cache_make_the_run_suspect(tmp_path: Path) -> None:
    assert reason(judged(tmp_path, client={"cached": 0.5}), "prefix-cache").level == "suspect"


def test_server_on_the_same_exhausted_host_is_suspect_not_invalid(tmp_path: Path) -> None:
    verdict = judged(tmp_path, server_pids=[42], series={"host.cpu_used_ratio": "0.99x120"})
    assert reason(verdict, "shared-host").level == "suspect"
    assert verdict.validity == "SUSPECT"


def test_server_on_the_same_idle_host_is_fine(tmp_path: Path) -> None:
    verdict = judged(tmp_path, server_pids=[42], series={"host.cpu_used_ratio": "0.3x120"})
    assert verdict.validity == "VALID"


def test_silence_of_a_source_is_suspect_and_never_recorded_is_unknown(tmp_path: Path) -> None:
    gap = judged(tmp_path / "a", series={"host.cpu_used_ratio": "0.3x20 _x70 0.3x30"})
    assert reason(gap, "telemetry-gaps").level == "suspect"
    assert reason(judged(tmp_path / "b"), "telemetry-gaps").level == "unknown"


def test_aborted_run_is_suspect_and_says_why(tmp_path: Path) -> None:
    verdict = judged(tmp_path, status="aborted")
    assert verdict.status == "aborted"
    assert "stopped by the user" in reason(verdict, "complete").statement
    assert verdict.validity == "SUSPECT"


def test_too_few_requests_for_the_percentile_are_suspect(tmp_path: Path) -> None:
    verdict = judged(tmp_path, rates=[0.2, 0.3])
    assert reason(verdict, "sample-size").level == "suspect"


def test_user_space_stamps_are_named(tmp_path: Path) -> None:
    assert reason(judged(tmp_path, client={"timestamps": "user"}), "timestamps").statement.startswith("0% of")
