"""Figures and phrases: what a step became, which rival is told, how a number is spelled."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.model import Capacity, Evidence, StageResult, Verdict
from pinchpoint.report import words
from pinchpoint.report.html import html
from pinchpoint.report.text import screen_text
from pinchpoint.series import RunView


def step(verdict: Verdict, **fields: Any) -> StageResult:
    return msgspec.structs.replace(verdict.stages[1], **fields)


def counts(verdict: Verdict, met_ratio: float) -> dict[str, tuple[int, int]]:
    return {slo.text: (round(100 * met_ratio), 100) for slo in verdict.slos}


@pytest.mark.parametrize(
    ("kind", "decision", "met_ratio", "became"),
    [
        ("search", "pass", 1.0, "pass"),
        ("search", "fail", 0.2, "fail"),
        ("search", "undecided", 1.0, "leans-pass"),
        ("load", "undecided", 0.5, "leans-fail"),
        ("overload", "fail", 0.0, "none"),
        ("recovery", "undecided", 1.0, "none"),
        ("warmup", "none", 1.0, "none"),
    ],
)
def test_what_became_of_a_step(
    report_verdict: Verdict, kind: str, decision: str, met_ratio: float, became: str
) -> None:
    stage = step(report_verdict, kind=kind, decision=decision, attainment=counts(report_verdict, met_ratio))
    assert words.decision_of(stage, report_verdict.slos) == became


def test_recovery_is_no_step_of_the_screen_or_the_load_curve(report_view: RunView, report_verdict: Verdict) -> None:
    recovery = step(report_verdict, kind="recovery", name="recovery", rate_rps=None, index=99)
    verdict = msgspec.structs.replace(report_verdict, stages=(*report_verdict.stages, recovery))
    assert "recovery" not in screen_text(verdict, report_view)
    assert html(report_view, verdict) == html(report_view, report_verdict)


@pytest.mark.parametrize(
    ("name", "rate_rps", "label"),
    [
        ("search", 5.391, "search 5.39 req/s"),
        ("search 6 req/s", 6.0, "search 6 req/s"),
        ("warm-up", None, "warm-up"),
        ("\x1b[31mx", 2.0, "x 2 req/s"),
    ],
)
def test_a_step_is_named_with_its_rate_once(name: str, rate_rps: float | None, label: str) -> None:
    assert words.stage_label(name, rate_rps) == label


def test_numbers_are_not_repeated_when_the_statement_holds_them() -> None:
    told = Evidence("the running line stayed at 8 of 8", 2.0, observed=8, reference=8, unit="sequences")
    bare = msgspec.structs.replace(told, statement="the running line stayed at its top")
    assert words.comparison(told) == ""
    assert words.comparison(bare) == "8 sequences, reference 8 sequences"


def test_look_alikes_of_the_answer_are_told_first_and_health_is_no_rival(report_verdict: Verdict) -> None:
    first, second, third = report_verdict.rejected
    far = msgspec.structs.replace(first, name="far", layer="infrastructure", against=(Evidence("no", -9.0),))
    healthy = msgspec.structs.replace(second, name="healthy", kind="healthy")
    silent = msgspec.structs.replace(third, name="silent", against=())
    verdict = msgspec.structs.replace(report_verdict, rejected=(far, healthy, silent, first))
    assert [finding.name for finding in words.told_rivals(verdict)] == ["kv-cache-exhausted", "far"]


def test_a_note_is_said_once(report_verdict: Verdict) -> None:
    capacity = Capacity(1.0, 2.0, 0.95, False, None, note="too few")
    verdict = msgspec.structs.replace(report_verdict, capacity=capacity, notes=("too few", "cut off"))
    assert words.notes(verdict) == ["too few", "cut off"]


@given(st.floats(0, 1))
def test_probability_never_claims_certainty(value: float) -> None:
    text = words.probability(value)
    assert text.endswith(" %")
    assert text not in ("100 %", "0 %")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0023, "s", "2.3 ms"),
        (0.26, "ratio", "26 %"),
        (75.0, "x", "75×"),
        (8.0, "sequences", "8 sequences"),
        (3.0, "", "3"),
        (None, "s", "–"),
    ],
)
def test_quantities_carry_their_unit(value: float | None, unit: str, text: str) -> None:
    assert words.quantity(value, unit) == text


def test_a_ratio_beyond_one_is_a_multiple_and_so_is_its_reference() -> None:
    share = Evidence("busy", 1.0, observed=0.4, reference=1.0, unit="ratio")
    growth = Evidence("grown", 1.0, observed=0.9, reference=1.5, unit="ratio")
    assert words.quantities(share) == ("40 %", "100 %")
    assert words.quantities(growth) == ("0.9×", "1.5×")
