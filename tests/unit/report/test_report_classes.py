"""Classes of requests in the answer of a search: on the screen and on the page."""

import msgspec

from pinchpoint.model import ClassResult, StageResult, Verdict
from pinchpoint.report.classes import telling_stage
from pinchpoint.report.html import html
from pinchpoint.report.text import screen_text
from pinchpoint.series import RunView

QUANTILES = {"p50": 0.1, "p95": 0.4, "p99": None}
CLASSES = (
    ClassResult("chat", 90, 89, QUANTILES, QUANTILES, QUANTILES, {"chat: ttft p95 < 500ms": (80, 89)}),
    ClassResult("<b>rag", 30, 30, QUANTILES, QUANTILES, QUANTILES, {}),
)


def with_classes(verdict: Verdict) -> Verdict:
    stages = tuple(
        msgspec.structs.replace(stage, classes=CLASSES) if stage.kind == "search" else stage for stage in verdict.stages
    )
    return msgspec.structs.replace(verdict, stages=stages)


def test_the_screen_shows_the_classes_at_the_rate_that_is_carried(report_verdict: Verdict) -> None:
    verdict = with_classes(report_verdict)
    stage = telling_stage(verdict)
    assert isinstance(stage, StageResult) and verdict.capacity is not None
    assert stage.rate_rps == verdict.capacity.lower_rps
    lines = screen_text(verdict, width=110).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("CLASSES"))
    assert lines[start + 2].split()[:4] == ["chat", "90", "89", "100"]
    assert "ttft p95 < 500ms 89.9 %" in lines[start + 2]


def test_a_run_of_one_class_has_no_table_of_classes(report_verdict: Verdict, report_view: RunView) -> None:
    assert telling_stage(report_verdict) is None
    assert "CLASSES" not in screen_text(report_verdict)
    assert 'id="classes"' not in html(report_view, report_verdict)


def test_the_page_has_every_step_by_class_and_names_stay_text(report_verdict: Verdict, report_view: RunView) -> None:
    page = html(report_view, with_classes(report_verdict))
    assert 'id="classes"' in page and "chat: ttft p95 &lt; 500ms: 89.9 % of 89" in page
    assert "&lt;b&gt;rag" in page and "<b>rag" not in page
