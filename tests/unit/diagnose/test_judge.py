"""The verdict: headline, capacity, exit code; total over every run that can be read."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from case_run import build_case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pinchpoint.judge import judge
from pinchpoint.model import Verdict
from pinchpoint.series import RunView
from pinchpoint.slo import parse_slos

SLOTS: dict[str, Any] = {
    "rates": [0.7, 1.5, 2.5, 4.5],
    "limits": {"max_sequences": 4},
    "service": {"slots": 4, "a": 0.02, "b": 0.0005},
    "series": {
        "engine.requests_running": "1~0.9x40 2~1x40 3~1x40 4x40",
        "engine.requests_waiting": "0x80 0.2x40 1+0.8x40",
        "engine.kv_used_ratio": "0.1x160",
    },
}


def view(tmp_path: Path, **changes: Any) -> RunView:
    return RunView(build_case(tmp_path / "run", {**SLOTS, **changes}))


def test_headline_names_the_interval_and_what_gives_way(tmp_path: Path) -> None:
    verdict = judge(view(tmp_path))
    figures = re.fullmatch(
        r"carries (\S+) to (\S+) req/s within its SLOs, most likely (\S+); "
        r"then the sequence-slot cap \(4\) gives way first",
        verdict.headline,
    )
    assert figures is not None, verdict.headline
    low_rps, high_rps, best_rps = map(float, figures.groups())
    assert low_rps < best_rps < high_rps < 2.5, "2.5 req/s is the lowest rate that failed"
    assert verdict.exit_code == 0
    assert verdict.unexplained_ratio == 0


def test_old_run_is_judged_against_new_slos(tmp_path: Path) -> None:
    run = view(tmp_path)
    lenient, strict = judge(run, parse_slos(("ttft p95 < 60s",))), judge(run, parse_slos(("ttft p95 < 1ms",)))
    assert lenient.capacity is not None and lenient.capacity.lower_rps == 4.5
    assert strict.capacity is not None and strict.capacity.lower_rps is None
    assert strict.exit_code == 1
    assert not strict.slos_derived


@pytest.mark.parametrize(("derived", "exit_code"), [(True, 0), (False, 1)])
def test_only_slos_given_by_the_user_can_fail_the_run(tmp_path: Path, derived: bool, exit_code: int) -> None:
    verdict = judge(view(tmp_path, slos=["ttft p95 < 1ms"], slos_derived=derived))
    assert verdict.exit_code == exit_code
    assert verdict.headline.startswith("meets its SLOs at no rate tested (lowest 0.7 req/s)")


def test_empty_run_gets_a_verdict_that_says_nothing_was_measured(tmp_path: Path) -> None:
    verdict = judge(view(tmp_path, rates=[0.0, 0.0]))
    assert verdict.exit_code == 3
    assert verdict.headline.startswith("nothing was measured")
    assert verdict.capacity is None


def test_backlog_fails_a_stage_whose_slos_held(tmp_path: Path) -> None:
    run = view(tmp_path, slos=["ttft p95 < 60s"])
    stages = [
        msgspec.structs.replace(s, decision="fail", reason="backlog grew by 1 per second") if s.index == 3 else s
        for s in run.stages
    ]
    run.stages[:] = stages
    verdict = judge(run)
    assert verdict.capacity is not None
    assert verdict.capacity.failed_rps == 4.5
    assert verdict.capacity.upper_rps is not None and verdict.capacity.upper_rps < 5
    assert verdict.stages[3].decision == "fail"


def test_missing_telemetry_lowers_confidence_and_never_reads_as_fine(tmp_path: Path) -> None:
    seen = judge(view(tmp_path / "a"))
    blind = judge(view(tmp_path / "b", series={}))
    assert blind.findings[0].rule == seen.findings[0].rule == "SEQ001"
    assert blind.findings[0].probability < seen.findings[0].probability
    assert {n.rule for n in blind.not_evaluable} > {n.rule for n in seen.not_evaluable}
    assert all(n.why for n in blind.not_evaluable)


def test_nothing_that_fits_is_called_unknown_and_says_what_to_do(tmp_path: Path) -> None:
    # TTFT grows with load; neither slots, pool, prompts nor steps explain it and the loop was not watched.
    verdict = judge(view(tmp_path, service={"loop_s": 0.4, "a": 0.02}, limits={}, series={}))
    assert verdict.findings[0].kind == "unknown"
    assert verdict.findings[0].confirm
    assert verdict.unexplained_ratio == 1
    assert verdict.headline.endswith("what gives way first could not be determined")


def finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(finite(v) for v in value.values())
    if isinstance(value, list):
        return all(finite(v) for v in value)
    return not isinstance(value, float) or (value == value and abs(value) != float("inf"))


def assert_lawful(verdict: Verdict) -> None:
    listed = [f.probability for f in verdict.findings]
    assert listed == sorted(listed, reverse=True)
    assert sum(listed) <= 1.001
    assert all(f.evidence or f.kind == "unknown" for f in verdict.findings)
    rules = [f.rule for f in (*verdict.findings, *verdict.rejected)] + [n.rule for n in verdict.not_evaluable]
    assert len(set(rules)) == len(rules)
    assert finite(msgspec.to_builtins(verdict))
    assert msgspec.json.decode(msgspec.json.encode(verdict), type=Verdict) == verdict


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    service=st.fixed_dictionaries(
        {},
        optional={
            "slots": st.integers(1, 8),
            "pool_tokens": st.integers(500, 4000),
            "loop_s": st.floats(0, 0.5),
            "b": st.floats(0, 0.01),
            "rate_limit": st.floats(0.5, 5),
            "buffered": st.booleans(),
            "osl": st.integers(2, 64),
        },
    ),
    rates=st.lists(st.floats(0.0, 4.0), min_size=1, max_size=3),
    running=st.one_of(st.none(), st.integers(0, 9)),
    streaming=st.sampled_from([True, False, None]),
)
def test_any_run_gets_a_lawful_verdict(
    tmp_path_factory: pytest.TempPathFactory, service: Any, rates: list[float], running: int | None, streaming: Any
) -> None:
    series = {} if running is None else {"engine.requests_running": f"{running}x90", "probe.null_request_s": "0.01x9"}
    case = {"rates": rates, "seconds": 10, "service": service, "series": series, "streaming": streaming}
    run = build_case(tmp_path_factory.mktemp("any") / "run", case)
    assert_lawful(judge(RunView(run)))
