"""The table of steps on the terminal screen: what was offered, what came of it, how it was decided."""

import math

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pinchpoint.model import StageResult, Verdict
from pinchpoint.report import words
from pinchpoint.report.literal import literal
from pinchpoint.series import RunView
from pinchpoint.units import MISSING, format_duration, format_ratio

WIDE = 96
"""Columns of the terminal from which there is room for the achieved rate too."""
DECISION = {
    "pass": ("✓ pass", "green"),
    "fail": ("✗ fail", "red"),
    "leans-pass": ("○ leans pass", "yellow"),
    "leans-fail": ("○ leans fail", "yellow"),
    "undecided": ("○ undecided", "yellow"),
    "none": (MISSING, "dim"),
}


def steps_table(verdict: Verdict, view: RunView | None, width: int, count_max: int) -> RenderableType:
    """At most `count_max` steps in order of rate. view: None leaves out how many streams a closed-loop step kept."""
    stages = [stage for stage in verdict.stages if stage.kind in words.LOADED_KINDS and stage.requests]
    if not stages:
        return Text("no step was run", style="dim")
    shown = _most_telling(stages, verdict, count_max)
    wide = width >= WIDE
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim", expand=False)
    columns = ["offered", "achieved", "TTFT p50", "p95", "TPOT p50", "p95", "goodput", "errors", "n"]
    if not wide:
        columns = ["offered", "TTFT p50", "p95", "TPOT p50", "p95", "good", "err", "n"]
    table.add_column("step", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("decision", no_wrap=True)
    for stage in sorted(shown, key=lambda s: (s.rate_rps is None, s.rate_rps or 0.0, s.index)):
        decision, style = DECISION[words.decision_of(stage, verdict.slos)]
        failed = words.failed_requests(stage)
        cells = [
            words.offered(stage.rate_rps) if stage.rate_rps is not None else _streams(stage, view),
            *([words.rate(stage.achieved_rps)] if wide else []),
            *(format_duration(stage.ttft_s.get(q)) for q in ("p50", "p95")),
            *(format_duration(stage.tpot_s.get(q)) for q in ("p50", "p95")),
            words.rate(stage.goodput_rps),
            Text(format_ratio(failed / stage.requests), style="red" if failed else ""),
            f"{stage.requests}",
        ]
        table.add_row(literal(stage.kind, "dim"), *cells, Text(decision, style=style))
    lines: list[RenderableType] = [Text.assemble(("STEPS", "bold"), ("  rates in req/s", "dim")), table]
    if len(shown) < len(stages):
        lines.append(Text(f"{len(stages) - len(shown)} more steps are in the report", style="dim"))
    return Group(*lines)


def _most_telling(stages: list[StageResult], verdict: Verdict, count_max: int) -> list[StageResult]:
    """At most `count_max` steps: the overload steps, then those nearest to the capacity, larger samples first."""
    capacity = verdict.capacity
    ends = [end for end in (capacity.lower_rps, capacity.upper_rps) if end] if capacity else []

    def distance(stage: StageResult) -> tuple[bool, float, int]:
        near = min((abs(math.log((stage.rate_rps or end) / end)) for end in ends), default=0.0)
        return stage.kind != "overload", near, -stage.requests

    return sorted(stages, key=distance)[:count_max]


def _streams(stage: StageResult, view: RunView | None) -> str:
    """Concurrency of a closed-loop step."""
    known = {s.index: s.concurrency for s in view.stages} if view is not None else {}
    count = known.get(stage.index)
    return MISSING if count is None else f"{count} str."
