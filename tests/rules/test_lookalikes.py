"""Pairs of causes with one symptom: for each, a case where one is at work and the other must not come first."""

import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from pinchpoint.diagnose.rule import load_rules
from pinchpoint.judge import judge
from pinchpoint.lab.faults import FAULTS
from pinchpoint.plan import Plan
from pinchpoint.rundir import read_run
from pinchpoint.series import RunView
from pinchpoint.synth import run_virtual

PAIRS = [
    ("KV002", "SEQ001", "TTFT explodes, TPOT flat"),
    ("SEQ001", "KV002", "TTFT explodes, TPOT flat"),
    ("SEQ001", "DEC001", "all slots taken, requests wait"),
    ("DEC001", "SEQ001", "all slots taken, requests wait"),
    ("KV002", "KV001", "the pool is full"),
    ("PRE001", "KV002", "a queue grows while slots are free"),
    ("SEQ001", "PRE001", "a queue grows with KV low"),
    ("API001", "GEN001", "TTFT grows outside the engine"),
    ("API001", "DEC001", "tokens arrive late at the client"),
    ("DEC001", "API001", "every core is busy"),
    ("SEQ001", "NET001", "TTFT is most of the answer's time"),
]


@pytest.mark.parametrize(("true", "tempting", "symptom"), PAIRS)
def test_each_pair_has_a_near_miss_that_names_the_true_cause(true: str, tempting: str, symptom: str) -> None:
    entry = next(entry for entry in load_rules() if entry.rule.code == tempting)
    text = files("pinchpoint.diagnose.rules").joinpath(f"{entry.module}.cases.toml").read_text(encoding="utf-8")
    assert true in [case["expect"]["first"] for case in tomllib.loads(text)["near_miss"]], symptom


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.expected_rule])
def test_fault_injected_by_mechanism_is_named_first(name: str, tmp_path: Path) -> None:
    run = run_virtual(Plan(url="http://lab", seed=11, budget_s=90), name, tmp_path / "run")
    verdict = judge(RunView(read_run(run)))
    assert verdict.findings[0].rule == FAULTS[name].expected_rule, verdict.headline
    assert verdict.findings[0].probability > 0.5


@pytest.mark.parametrize("name", ["slot-cap", "prefill-bound", "decode-bound", "sse-buffering"])
def test_fault_is_named_without_any_telemetry_but_less_surely(name: str, tmp_path: Path) -> None:
    run = read_run(run_virtual(Plan(url="http://lab", seed=11, budget_s=90), name, tmp_path / "run"))
    seen = judge(RunView(run)).findings[0]
    blind_run = read_run(run.path)
    blind_run._tables["telemetry"] = run.telemetry.slice(0, 0)
    blind = judge(RunView(blind_run)).findings[0]
    assert blind.rule == seen.rule == FAULTS[name].expected_rule
    assert blind.probability <= seen.probability


def test_healthy_service_below_its_limit_has_no_bottleneck(tmp_path: Path) -> None:
    run = run_virtual(Plan(url="http://lab", seed=11, budget_s=90, max_rate_rps=6), "none", tmp_path / "run")
    verdict = judge(RunView(read_run(run)))
    assert [f.rule for f in verdict.findings] == ["OK001"]
    assert verdict.headline.startswith("no bottleneck below the limit")
    assert verdict.exit_code == 0


def test_healthy_service_at_its_limit_is_not_called_faulty(tmp_path: Path) -> None:
    run = run_virtual(Plan(url="http://lab", seed=11, budget_s=90), "none", tmp_path / "run")
    verdict = judge(RunView(read_run(run)))
    assert verdict.findings[0].kind in ("physical-limit", "unknown")
