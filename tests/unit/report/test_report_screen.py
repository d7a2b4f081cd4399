"""The terminal screen: what it says, how large it is, and what it does without UTF-8."""

import io
from typing import Any

import msgspec
import pytest
from inline_snapshot import snapshot
from rich.console import Console

from pinchpoint.model import Capacity, StageResult, ValidityReason, Verdict
from pinchpoint.report.text import LINES_MAX, print_screen, screen_text
from pinchpoint.series import RunView


def changed(verdict: Verdict, **fields: Any) -> Verdict:
    return msgspec.structs.replace(verdict, **fields)


def changed_stage(stage: StageResult, **fields: Any) -> StageResult:
    return msgspec.structs.replace(stage, **fields)


def test_screen_of_the_example_run(report_view: RunView, report_verdict: Verdict) -> None:
    assert screen_text(report_verdict, report_view, 100, paths={"report": "runs/a/report.html"}) == snapshot("""\
Pinchpoint  http://127.0.0.1:8000 · vllm 0.11.0 · 4 m 52 s · meta-llama/Llama-3.1-8B-Instruct
Carries 5.5 to 6 req/s within its SLOs; the sequence-slot cap (8) gives way first

CAPACITY       5.5 – 6 req/s   both ends decided at 95 % confidence
               within ttft p90 < 800ms, tpot p95 < 60ms, errors < 5%
               the first to break is ttft p90 < 800ms

BREAKS FIRST   Sequence-slot cap: at most 8 sequences run at once
               94 % sure · SEQ001 · model inference · explains 97 % of the SLO misses
               + running sequences stay flat at 8 while requests wait
               + TTFT p50 grew 75-fold from the base load to overload
               + TPOT p50 hardly moved, so the decode step has room (1.06×, reference 1.5×)
               + the KV cache is never more than a quarter full (26 %, reference 90 %)
               − GPU activity was not measured, so the cost of a larger batch is estimated

DO THIS        Let more sequences run at once   --max-num-seqs 16
               → about 9.6 req/s at the same SLOs; TPOT p95 rises from 27 ms to about 29 ms
               or: Add a second replica
               to confirm: Run the 8 req/s step again with --max-num-seqs 16: the waiting queue
               should stay empty.

HOW SURE       VALID  nothing speaks against the measurement
               not kv-cache-exhausted: no preemption in 1044 requests
               not prefill-compute-bound: prefill is busy 34 % of the time
               not api-process-bound: null request stays at 2.3 ms under overload
               could not be looked at: gpu-throttled - no GPU exporter was found; start
               dcgm-exporter and give --metrics-url

STEPS  rates in req/s
step     offered achieved TTFT p50     p95 TPOT p50     p95 goodput errors   n decision
search       1.5      1.6  60.2 ms 68.2 ms  24.7 ms   26 ms     1.6    0 % 117 ✓ pass
search         3      3.2    56 ms 67.3 ms  25.2 ms 26.5 ms     3.2    0 % 120 ✓ pass
search         4      4.0  62.8 ms  613 ms  25.6 ms   27 ms     3.9    0 % 136 ✓ pass
search         5      5.1    65 ms  577 ms    26 ms 26.9 ms     5.0    0 % 172 ✓ pass
search       5.5      5.2    67 ms  595 ms  25.9 ms   27 ms     5.2    0 % 115 ✓ pass
search         6      6.1   427 ms  1.36 s  26.1 ms 27.1 ms     4.6    0 % 147 ✗ fail
overload       8      9.5   4.49 s  7.86 s  26.2 ms 27.1 ms    0.62    0 % 152 –

report         runs/a/report.html
""")


@pytest.mark.parametrize("width", [80, 100, 140])
def test_screen_fits_the_terminal(report_view: RunView, report_verdict: Verdict, width: int) -> None:
    lines = screen_text(report_verdict, report_view, width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= LINES_MAX


@pytest.mark.parametrize("width", [80, 100])
def test_no_figure_of_the_steps_table_is_cut(report_view: RunView, report_verdict: Verdict, width: int) -> None:
    undecided = [changed_stage(stage, decision="undecided", goodput_rps=1234.5) for stage in report_verdict.stages]
    for stages in (report_verdict.stages, tuple(undecided)):
        table = screen_text(changed(report_verdict, stages=stages), report_view, width).split("STEPS")[1]
        assert "…" not in table
        assert "p95" in table.splitlines()[1]
        assert {"pass", "fail", "–"} >= {line.split()[-1] for line in table.splitlines()[2:] if line.startswith("se")}


def test_without_utf8_the_screen_is_ascii_and_keeps_its_figures(report_view: RunView, report_verdict: Verdict) -> None:
    text = screen_text(report_verdict, report_view, 100, ascii_only=True)
    assert text.isascii()
    assert "5.5 - 6 req/s" in text
    assert "+ pass" in text


def test_a_latin1_terminal_gets_the_ascii_screen(report_view: RunView, report_verdict: Verdict) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="latin-1")
    print_screen(Console(file=stream, width=100), report_verdict, report_view)
    stream.flush()
    assert raw.getvalue().isascii()
    assert b"CAPACITY       5.5 - 6 req/s" in raw.getvalue()


def test_a_missing_quantile_is_a_dash_not_a_zero(report_view: RunView, report_verdict: Verdict) -> None:
    few = msgspec.structs.replace(
        report_verdict.stages[1], requests=5, ttft_s=dict.fromkeys(("p50", "p90", "p95", "p99"))
    )
    row = next(
        line
        for line in screen_text(changed(report_verdict, stages=(few,)), None, 100).splitlines()
        if line.startswith("search")
    )
    assert row.split()[3:5] == ["–", "–"]


def test_invalid_measurement_says_why(report_verdict: Verdict) -> None:
    reason = ValidityReason("send-lag", "invalid", "requests left late", observed=0.4, limit=0.025, unit="s")
    text = screen_text(changed(report_verdict, validity="INVALID", validity_reasons=(reason,)), None, 100)
    assert "INVALID  the figures cannot support a verdict" in text
    assert "invalid: requests left late (400 ms, limit 25 ms)" in text


@pytest.mark.parametrize(
    ("ends", "said"),
    [((None, 1.0), "below 1 req/s"), ((40.0, None), "at least 40 req/s"), ((None, None), "CAPACITY       –")],
)
def test_open_interval_is_said_in_words(
    report_verdict: Verdict, ends: tuple[float | None, float | None], said: str
) -> None:
    capacity = Capacity(*ends, confidence=0.95, proven=False, limiting_slo=None)
    assert said in screen_text(changed(report_verdict, capacity=capacity), None, 100)


def test_a_verdict_about_nothing_still_gives_a_screen(report_verdict: Verdict) -> None:
    empty = changed(
        report_verdict,
        capacity=None,
        stages=(),
        findings=(),
        rejected=(),
        not_evaluable=(),
        validity_reasons=(),
        slos=(),
    )
    text = screen_text(changed(empty, headline="nothing was measured", status="aborted"), None, 80)
    assert "nothing was measured" in text
    assert "the run was cut" in text


def test_hostile_names_neither_colour_nor_break_the_screen(report_view: RunView, report_verdict: Verdict) -> None:
    target = msgspec.structs.replace(report_verdict.target, model="[red]\x1b[2J\x1b]0;owned\x07evil\r\nname")
    text = screen_text(changed(report_verdict, target=target), report_view, 140)
    assert "[red]evil name" in text.splitlines()[0]
    assert "\x1b" not in text and "owned" not in text


@pytest.mark.parametrize(
    ("kind", "label"), [("healthy", "NOTHING BROKE"), ("physical-limit", "LIMITED BY"), ("unknown", "NOT KNOWN")]
)
def test_heading_says_what_kind_of_answer_it_is(report_verdict: Verdict, kind: str, label: str) -> None:
    finding = msgspec.structs.replace(report_verdict.findings[0], kind=kind)
    text = screen_text(changed(report_verdict, findings=(finding,)), None)
    assert label in text and "BREAKS FIRST" not in text
    assert ("94 % sure" in text) == (kind != "unknown")


def test_a_crowded_verdict_still_fits_one_screen(report_view: RunView, report_verdict: Verdict) -> None:
    finding = report_verdict.findings[0]
    wordy = [msgspec.structs.replace(item, statement=item.statement + " and so on" * 12) for item in finding.evidence]
    crowded = changed(
        report_verdict,
        findings=(msgspec.structs.replace(finding, evidence=tuple(wordy)),),
        stages=report_verdict.stages * 4,
    )
    lines = screen_text(crowded, report_view, 100).splitlines()
    assert len(lines) <= LINES_MAX
    assert sum(line.startswith("overload") for line in lines) >= 1
