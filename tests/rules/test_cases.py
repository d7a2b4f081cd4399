"""Every case beside a rule holds: the rule fires, is silent, loses to the look-alike, or says what it could not see."""

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from case_run import build_case, parse_readings

from pinchpoint.diagnose.rule import load_rules, module_name
from pinchpoint.judge import judge
from pinchpoint.model import Verdict
from pinchpoint.series import RunView

RULES = load_rules()
KINDS = ("fires", "silent", "near_miss", "not_evaluable")
KEYS = {
    "story", "rates", "seconds", "overload", "engine", "limits", "streaming", "server_pids", "slos", "slos_derived",
    "service", "series", "client", "status", "expect",
}  # fmt: skip


def cases_of(module: str) -> dict[str, list[dict[str, Any]]]:
    text = files("pinchpoint.diagnose.rules").joinpath(f"{module}.cases.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


ALL = [
    pytest.param(entry.rule.code, kind, case, id=f"{entry.rule.code}-{kind}-{case['story']}")
    for entry in RULES
    for kind, group in cases_of(entry.module).items()
    for case in group
]


@pytest.mark.parametrize(("code", "kind", "case"), ALL)
def test_case_holds(code: str, kind: str, case: dict[str, Any], tmp_path: Path) -> None:
    assert kind in KINDS and set(case) <= KEYS, f"unknown group or key: {kind}, {set(case) - KEYS}"
    verdict = judge(RunView(build_case(tmp_path / "run", case)))
    expect = case.get("expect", {})
    told = _told(verdict)
    fired = [f.rule for f in verdict.findings]
    if kind == "fires":
        assert fired[0] == code, told
        assert verdict.findings[0].probability >= expect.get("probability", 0.5), told
    elif kind == "silent":
        assert code not in fired, told
        assert code in [f.rule for f in verdict.rejected], told
    elif kind == "near_miss":
        assert fired[0] == expect["first"], told
        assert fired[0] != code, told
    else:
        found = [n for n in verdict.not_evaluable if n.rule == code]
        assert found, told
        assert set(expect.get("missing", [])) <= set(found[0].missing), told
        assert code not in fired, told
        assert found[0].why, told
    if "says" in expect:
        assert expect["says"] in told, told
    if "flag" in expect:
        assert expect["flag"] in [r.flag for r in verdict.findings[0].remedies], told
    if "validity" in expect:
        assert verdict.validity == expect["validity"], told


@pytest.mark.parametrize("entry", RULES, ids=lambda entry: entry.rule.code)
def test_every_rule_has_a_case_of_each_kind(entry: Any) -> None:
    cases = cases_of(entry.module)
    assert set(cases) == set(KINDS)
    assert all(cases[kind] for kind in KINDS)


def test_rule_codes_are_unique_and_files_are_named_after_them() -> None:
    codes = [entry.rule.code for entry in RULES]
    assert len(set(codes)) == len(codes)
    assert [entry.module for entry in RULES] == [module_name(entry.rule) for entry in RULES]


def test_readings_notation_counts_holds_rises_and_leaves_out() -> None:
    assert parse_readings("0.5x2 1+0.5x3 _x2 +2x2 7") == [0.5, 0.5, 1, 1.5, 2, None, None, 4, 6, 7]


def _told(verdict: Verdict) -> str:
    lines = [f"{verdict.validity}: {verdict.headline}"]
    for finding in (*verdict.findings, *verdict.rejected):
        lines.append(f"{finding.rule} {finding.probability} {finding.title}")
        lines += [f"   {e.strength:+.2f} {e.statement}" for e in (*finding.evidence, *finding.against)]
        lines += [f"   -> {r.action} {r.flag}" for r in finding.remedies]
    lines += [f"{n.rule} not evaluable: {n.why} {n.missing}" for n in verdict.not_evaluable]
    lines += [f"   {r.level} {r.check}: {r.statement}" for r in verdict.validity_reasons]
    return "\n".join(lines)
