"""Where the time went, on a screen and on the page: every stage named, a stranger's text harmless."""

from importlib.resources import files
from pathlib import Path

import msgspec
import pytest
from tests.support.otlp_exports import BEGUN_NS, as_json, export, span
from tests.support.runs import example_verdict
from tests.support.span_runs import SALT, T0_NS, SpanRun, Times, ns

from pinchpoint import cli_spans
from pinchpoint.errors import UsageError
from pinchpoint.model import Stage
from pinchpoint.report.html import _template, html
from pinchpoint.report.spans_text import clock_words, render_spans, spans_section, step_rows
from pinchpoint.report.text import to_text
from pinchpoint.series import RunView
from pinchpoint.spans import breakdown
from pinchpoint.spans.clocks import SenderClock
from pinchpoint.spans.stages import STAGES
from pinchpoint.traceids import trace_id

EVIL = "\x1b[31m[bold]<script>alert(1)</script>"


def stage(index: int, begin_s: float, end_s: float, rate_rps: float) -> Stage:
    return Stage(
        index, "search", f"step {index}", T0_NS + ns(begin_s), T0_NS + ns(end_s), T0_NS + ns(end_s), 0, rate_rps
    )


def view_of(path: Path) -> RunView:
    """Two steps; in the second the queue is long."""
    run = SpanRun()
    for number in range(10):
        run.through_all(number, number * 5.0, Times(queue_s=0.1 if number < 5 else 2.0))
    for record in run.records[5:]:
        record["stage"] = 1
    return run.view(path, [stage(0, 0.0, 25.0, 1.0), stage(1, 25.0, 50.0, 2.0)])


def screen(view: RunView) -> str:
    found = breakdown(view)
    assert found is not None
    return to_text(render_spans(found, step_rows(view)), 120)


def page(view: RunView) -> str:
    partial = (files("pinchpoint.report") / "templates" / "spans.html.j2").read_text()
    return _template().environment.from_string(partial).render(spans=spans_section(view))


def test_every_stage_is_named_with_its_share_and_steps_show_what_grew(tmp_path: Path) -> None:
    text = screen(view_of(tmp_path / "run"))
    assert "10 of 10 answered requests left spans" in text
    for name in STAGES:
        assert f"\n{name} " in text
    steps = text.partition("medians by step")[2].splitlines()
    assert "100 ms" in steps[1] and "2 s" in steps[2]
    assert "gateway (30 spans): its clock agrees with ours." in text


def test_the_page_says_the_same(tmp_path: Path) -> None:
    told = page(view_of(tmp_path / "run"))
    for name in STAGES:
        assert f'<th scope="row">{name}</th>' in told
    assert "Medians by step" in told and "retrieve" in told


def test_names_from_the_service_are_text_and_nothing_else(tmp_path: Path) -> None:
    run = SpanRun()
    run.request(1, 0.0, None, 1.0)
    run.span(1, 1, None, EVIL, EVIL, 0.0, 1.0)
    run.span(1, 2, 1, f"retrieve {EVIL}", EVIL, 0.2, 0.6, "client")
    view = run.view(tmp_path / "run")
    text, told = screen(view), page(view)
    assert "\x1b" not in text and "[bold]<script>" in text
    assert "<script>" not in told and "&lt;script&gt;" in told


def test_a_run_without_spans_has_no_section(tmp_path: Path) -> None:
    run = SpanRun()
    run.request(1, 0.0, None, 1.0)
    assert spans_section(run.view(tmp_path / "run")) is None


@pytest.mark.parametrize(
    ("offset_s", "says"),
    [
        (0.0, "its clock agrees with ours"),
        (2.5, "its clock is 2.5 s behind ours, within 1 ms, and was put right"),
        (-2.5, "its clock is 2.5 s ahead of ours, within 1 ms, and was put right"),
        (None, "no offset of its clock fits"),
    ],
)
def test_a_clock_is_told_in_one_sentence(offset_s: float | None, says: str) -> None:
    assert clock_words(SenderClock("vllm", "h", 1, offset_s, 0.001)) == f"vllm on h (1 span): {says}"


def test_the_verb_prints_the_run_and_takes_spans_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    view = view_of(tmp_path / "run")
    assert cli_spans.spans(view.run.path) == 0
    assert "10 of 10" in capsys.readouterr().out
    file = tmp_path / "spans.jsonl"
    file.write_bytes(as_json(export(span(1, trace=trace_id(SALT, 3)))))
    with pytest.raises(UsageError, match="virtual time"):
        cli_spans.spans(view.run.path, from_=file)
    view.manifest.clock["realtime_minus_monotonic_ns"] = BEGUN_NS
    (view.run.path / "run.json").write_bytes(msgspec.json.encode(view.manifest))
    assert cli_spans.spans(view.run.path, from_=file, as_json=True) == 0
    assert '"traced": 1' in capsys.readouterr().out


def test_the_verb_says_how_to_get_spans_where_there_are_none(tmp_path: Path) -> None:
    run = SpanRun()
    run.request(1, 0.0, None, 1.0)
    with pytest.raises(UsageError, match="--otlp"):
        cli_spans.spans(run.view(tmp_path / "run").run.path)


def test_the_report_has_the_section_where_a_run_has_spans(tmp_path: Path) -> None:
    view = view_of(tmp_path / "run")
    report = html(view, example_verdict(view))
    assert '<section id="spans">' in report
    assert "Medians by step" in report
