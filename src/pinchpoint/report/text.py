"""The answer on one terminal screen: capacity, what gives way first and why, what to do, how sure.

Not for detail: the HTML report and the JSON hold everything; this screen holds what a tired person needs. Every string
goes through `literal`, because model names, reasons and error strings may come from a hostile service.
"""

import io
import math
from collections.abc import Iterable, Mapping

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pinchpoint.clock import NS_PER_S
from pinchpoint.model import Finding, StageResult, ValidityReason, Verdict
from pinchpoint.report import words
from pinchpoint.report.literal import literal, visible
from pinchpoint.series import RunView
from pinchpoint.units import MISSING, format_duration, format_ratio

WIDTH_DEFAULT = 100
WIDTH_MIN = 60
WIDTH_MAX = 120
"""Longer lines are hard to read, however wide the terminal is."""
WIDE = 96
"""Columns from which the steps table has room for every column."""
GUTTER = 14
EVIDENCE_SHOWN = 4
AGAINST_SHOWN = 1
REJECTED_SHOWN = 3
NOT_EVALUABLE_SHOWN = 4
STEPS_SHOWN = 9
ASCII = {
    "–": "-", "—": "-", "·": "|", "…": "...", "✓": "+", "✗": "x", "→": "->", "µ": "u", "×": "x", "≥": ">=", "≤": "<=",
    "\N{REPLACEMENT CHARACTER}": "?", "▌": "|", "−": "-", "○": "o", "↑": "^",
}  # fmt: skip
VALIDITY_STYLE = {"VALID": "bold green", "SUSPECT": "bold yellow", "INVALID": "bold red"}
VALIDITY_MEANING = {
    "VALID": "nothing speaks against the measurement",
    "SUSPECT": "usable with care",
    "INVALID": "the figures cannot support a verdict",
}
DECISION = {
    "pass": ("✓ pass", "green"),
    "fail": ("✗ fail", "red"),
    "leans-pass": ("○ leans pass", "yellow"),
    "leans-fail": ("○ leans fail", "yellow"),
    "undecided": ("○ undecided", "yellow"),
    "none": (MISSING, "dim"),
}


def render_screen(
    verdict: Verdict,
    view: RunView | None = None,
    width: int = WIDTH_DEFAULT,
    *,
    paths: Mapping[str, object] | None = None,
) -> RenderableType:
    """The screen as something rich can print.

    view adds the length of the run; None when only the verdict is at hand. paths: label -> file to name at
    the end, such as {"report": "runs/x/report.html"}.
    """
    width = min(max(width, WIDTH_MIN), WIDTH_MAX)
    body = Table.grid(padding=(0, 1, 0, 0), expand=False)
    body.add_column(width=GUTTER, no_wrap=True)
    body.add_column(width=width - GUTTER - 2)
    blocks: list[tuple[str, RenderableType]] = [
        ("CAPACITY", _capacity(verdict)),
        ("BREAKS FIRST", _pinch_point(verdict)),
        ("DO THIS", _remedies(verdict)),
        ("HOW SURE", _certainty(verdict)),
    ]
    for label, content in blocks:
        body.add_row(Text(label, style="bold"), Padding(content, (0, 0, 1, 0)))
    parts: list[RenderableType] = [_title(verdict, view), Text(""), body, _steps(verdict, width)]
    footer = _footer(verdict, paths or {})
    if footer:
        parts += [Text(""), *footer]
    return Group(*parts)


def screen_text(
    verdict: Verdict,
    view: RunView | None = None,
    width: int = WIDTH_DEFAULT,
    *,
    paths: Mapping[str, object] | None = None,
    ascii_only: bool = False,
    color: bool = False,
) -> str:
    """The screen as text, without trailing blanks. ascii_only is for terminals without UTF-8."""
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        width=max(width, WIDTH_MIN),
        color_system="standard" if color else None,
        force_terminal=color,
        highlight=False,
    )
    console.print(render_screen(verdict, view, width, paths=paths))
    text = "\n".join(line.rstrip() for line in buffer.getvalue().rstrip("\n").split("\n")) + "\n"
    return to_ascii(text) if ascii_only else text


def to_ascii(text: str) -> str:
    """Text in which nothing is outside ASCII: our own signs have a spelling, anything else becomes '?'."""
    for sign, spelling in ASCII.items():
        text = text.replace(sign, spelling)
    return text.encode("ascii", "replace").decode("ascii")


def print_screen(
    console: Console, verdict: Verdict, view: RunView | None = None, *, paths: Mapping[str, object] | None = None
) -> None:
    """Prints to a console, falling back to ASCII where its encoding cannot show our signs."""
    if (console.encoding or "ascii").lower().startswith("utf"):
        console.print(render_screen(verdict, view, console.width, paths=paths), highlight=False)
    else:
        text = screen_text(verdict, view, console.width, paths=paths, ascii_only=True)
        console.print(Text(text), end="", highlight=False, soft_wrap=True)


def _title(verdict: Verdict, view: RunView | None) -> Text:
    target = verdict.target
    engine = target.engine if target.engine_version is None else f"{target.engine} {target.engine_version}"
    about = [target.url, engine]
    if view is not None and view.manifest.stages:
        about.append(format_duration((max(stage.drained_ns for stage in view.stages) - view.t0_ns) / NS_PER_S))
    about += [target.model] if target.model else []
    line = Text.assemble(("Pinchpoint", "bold cyan"), "  ", (" · ".join(map(visible, about)), "dim"))
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _capacity(verdict: Verdict) -> RenderableType:
    capacity = verdict.capacity
    first = Text.assemble((words.capacity_figure(capacity), "bold cyan"))
    if capacity is not None and words.capacity_figure(capacity) != MISSING:
        first.append(" req/s", style="bold cyan")
    first.append(f"   {words.capacity_confidence(capacity)}", style="dim")
    slos = ", ".join(visible(slo.text) for slo in verdict.slos) or "no SLO"
    lines = [first, Text(f"within {slos}" + (" (derived from the idle service)" if verdict.slos_derived else ""))]
    if capacity is not None and capacity.limiting_slo:
        lines.append(Text.assemble("the first to break is ", (visible(capacity.limiting_slo), "bold")))
    return Group(*lines)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _pinch_point(verdict: Verdict) -> RenderableType:
    finding = words.top_finding(verdict)
    if finding is None:
        return literal(verdict.headline)
    about = f"{words.probability(finding.probability)} sure · {finding.rule} · {finding.layer}"
    if finding.explains_ratio is not None:
        about += f" · explains {format_ratio(finding.explains_ratio)} of the SLO misses"
    lines: list[RenderableType] = [literal(_sentence(finding.title), "bold"), literal(about, "dim")]
    lines.append(_evidence_lines(finding))
    return Group(*lines)


def _evidence_lines(finding: Finding) -> Table:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=1)
    grid.add_column(ratio=1)
    shown = words.strongest(finding.evidence, EVIDENCE_SHOWN) + words.strongest(finding.against, AGAINST_SHOWN)
    for item in shown:
        line = literal(item.statement)
        if numbers := words.comparison(item):
            line.append(f" ({numbers})", style="dim")
        sign = words.sign(item.strength)
        grid.add_row(Text(sign, style={"+": "green", "−": "yellow"}.get(sign, "dim")), line)
    return grid


def _remedies(verdict: Verdict) -> RenderableType:
    finding = words.top_finding(verdict)
    if finding is None or not finding.remedies:
        return Text(
            "nothing to change" if finding is not None and finding.kind == "healthy" else "no remedy is known",
            style="dim",
        )
    first, *others = finding.remedies
    action, why = words.clauses(first.action)
    head = literal(_sentence(action), "bold")
    if first.flag:
        head.append("   ")
        head.append(literal(first.flag, "bold cyan"))
    lines: list[RenderableType] = [head, *([literal(why)] if why else [])]
    if first.predicted_effect:
        lines.append(Text.assemble(("→ ", "dim"), literal(first.predicted_effect)))
    lines += [
        Text.assemble(
            ("or: ", "dim"), literal(other.action), ("  " + visible(other.flag) if other.flag else "", "cyan")
        )
        for other in others[:1]
    ]
    if finding.confirm:
        lines.append(Text.assemble(("to confirm: ", "dim"), literal(finding.confirm)))
    return Group(*lines)


def _certainty(verdict: Verdict) -> RenderableType:
    status = "" if verdict.status == "complete" else "; the run was cut short"
    lines: list[RenderableType] = [
        Text.assemble(
            (verdict.validity, VALIDITY_STYLE[verdict.validity]),
            f"  {VALIDITY_MEANING[verdict.validity]}{status}",
        )
    ]
    for reason in words.reasons_that_matter(verdict):
        style = "red" if reason.level == "invalid" else "yellow"
        lines.append(Text.assemble((f"{reason.level}: ", style), literal(_with_limit(reason))))
    if len(verdict.findings) > 1:
        rivals = ", ".join(f"{f.name} ({words.probability(f.probability)})" for f in verdict.findings[1:3])
        lines.append(Text.assemble(("could also be: ", "dim"), literal(rivals)))
    told = words.told_rivals(verdict)[:REJECTED_SHOWN]
    for finding in told:
        line = Text.assemble(("not ", "dim"), literal(finding.name), (": ", "dim"))
        line.append(literal(words.strongest(finding.against, 1)[0].statement, "dim"))
        line.no_wrap, line.overflow = True, "ellipsis"
        lines.append(line)
    others = [visible(f.name) for f in verdict.rejected if f not in told and f.kind != "healthy"]
    if others:
        lines.append(Text.assemble(("nor " if told else "not ", "dim"), literal(", ".join(others), "dim")))
    if verdict.not_evaluable:
        names = ", ".join(visible(item.name) for item in verdict.not_evaluable[:NOT_EVALUABLE_SHOWN])
        first = verdict.not_evaluable[0].why
        lines.append(
            Text.assemble(("could not be looked at: ", "yellow"), literal(names), (" - ", "dim"), literal(first, "dim"))
        )
    return Group(*lines)


def _with_limit(reason: ValidityReason) -> str:
    text = reason.statement
    if reason.observed is not None and reason.limit is not None:
        text += f" ({words.quantity(reason.observed, reason.unit)}, limit {words.quantity(reason.limit, reason.unit)})"
    return text


def _steps(verdict: Verdict, width: int) -> RenderableType:
    stages = [stage for stage in verdict.stages if stage.kind in words.LOADED_KINDS and stage.requests]
    if not stages:
        return Text("no step was run", style="dim")
    shown = _most_telling(stages, verdict)
    wide = width >= WIDE
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim", expand=False)
    columns = ["offered", "achieved", "TTFT p50", "p95", "TPOT p50", "p95", "goodput", "errors", "n"]
    if not wide:
        columns = ["offered", "done", "TTFT p50", "p95", "TPOT p50", "p95", "good", "err", "n"]
    table.add_column("step", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("decision", no_wrap=True)
    for stage in sorted(shown, key=lambda s: (s.rate_rps is None, s.rate_rps or 0.0, s.index)):
        decision, style = DECISION[words.decision_of(stage, verdict.slos)]
        failed = words.failed_requests(stage)
        table.add_row(
            literal(stage.kind, "dim"),
            words.offered(stage.rate_rps),
            words.rate(stage.completed_rps if not wide else stage.achieved_rps),
            format_duration(stage.ttft_s.get("p50")),
            format_duration(stage.ttft_s.get("p95")),
            format_duration(stage.tpot_s.get("p50")),
            format_duration(stage.tpot_s.get("p95")),
            words.rate(stage.goodput_rps),
            Text(format_ratio(failed / stage.requests) if stage.requests else MISSING, style="red" if failed else ""),
            f"{stage.requests}",
            Text(decision, style=style),
        )
    lines: list[RenderableType] = [Text.assemble(("STEPS", "bold"), ("  rates in req/s", "dim")), table]
    if len(shown) < len(stages):
        lines.append(Text(f"{len(stages) - len(shown)} more steps are in the report", style="dim"))
    return Group(*lines)


def _most_telling(stages: list[StageResult], verdict: Verdict) -> list[StageResult]:
    """At most STEPS_SHOWN steps: the overload steps, then those nearest to the capacity, larger samples first."""
    capacity = verdict.capacity
    ends = [end for end in (capacity.lower_rps, capacity.upper_rps) if end] if capacity else []

    def distance(stage: StageResult) -> tuple[bool, float, int]:
        near = min((abs(math.log((stage.rate_rps or end) / end)) for end in ends), default=0.0)
        return stage.kind != "overload", near, -stage.requests

    return sorted(stages, key=distance)[:STEPS_SHOWN]


def _footer(verdict: Verdict, paths: Mapping[str, object]) -> Iterable[RenderableType]:
    lines: list[RenderableType] = [literal(note, "dim") for note in words.notes(verdict)[:2]]
    if paths:
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(width=GUTTER, no_wrap=True)
        grid.add_column(overflow="fold")
        for label, path in paths.items():
            grid.add_row(literal(label, "dim"), literal(path))
        lines.append(grid)
    return lines
