"""The answer on one terminal screen: capacity, what gives way first and why, what to do, how sure.

Not for detail: the HTML report and the JSON hold everything; this screen holds what a tired person needs. Every string
goes through `literal`, because model names, reasons and error strings may come from a hostile service.
"""

import io
from collections.abc import Iterable, Mapping

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pinchpoint.clock import NS_PER_S
from pinchpoint.cost import Cost
from pinchpoint.model import Finding, ValidityReason, Verdict
from pinchpoint.report import words
from pinchpoint.report.classes import classes_table
from pinchpoint.report.cost_words import cost_block
from pinchpoint.report.literal import literal, visible
from pinchpoint.report.profile_section import DIRECTORY, PAGE_FILE, profile_of
from pinchpoint.report.profile_text import profile_block
from pinchpoint.report.steps import steps_table
from pinchpoint.series import RunView
from pinchpoint.units import MISSING, format_duration, format_ratio

WIDTH_DEFAULT = 100
WIDTH_MIN = 60
WIDTH_MAX = 120
"""Longer lines are hard to read, however wide the terminal is."""
GUTTER = 14
LINES_MAX = 40
DETAIL = ((4, 9), (4, 7), (3, 6), (3, 4), (2, 3))
"""Evidence lines and steps shown, from ample to scarce: the first that fits into LINES_MAX is taken."""
LABELS = {
    "fault": "BREAKS FIRST",
    "physical-limit": "LIMITED BY",
    "healthy": "NOTHING BROKE",
    "load-generator": "GENERATOR",
    "unknown": "NOT KNOWN",
}
AGAINST_SHOWN = 1
REJECTED_SHOWN = 3
NOT_EVALUABLE_SHOWN = 4
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


def render_screen(
    verdict: Verdict,
    view: RunView | None = None,
    width: int = WIDTH_DEFAULT,
    *,
    paths: Mapping[str, object] | None = None,
    cost: Cost | None = None,
) -> RenderableType:
    """The screen as something rich can print.

    view adds the length of the run; None when only the verdict is at hand. paths: label -> file to name at
    the end, such as {"report": "runs/x/report.html"}. cost: told when an amount of anything is known.
    """
    width = min(max(width, WIDTH_MIN), WIDTH_MAX)
    console = Console(file=io.StringIO(), width=width)
    screen = Group()
    for evidence_shown, steps_shown in DETAIL:
        screen = _compose(verdict, view, width, paths or {}, cost, evidence_shown, steps_shown)
        if len(console.render_lines(screen)) <= LINES_MAX:
            break
    return screen


def _compose(
    verdict: Verdict,
    view: RunView | None,
    width: int,
    paths: Mapping[str, object],
    cost: Cost | None,
    evidence_shown: int,
    steps_shown: int,
) -> Group:
    finding = words.top_finding(verdict)
    body = Table.grid(padding=(0, 1, 0, 0), expand=False)
    body.add_column(width=GUTTER, no_wrap=True)
    body.add_column(width=width - GUTTER - 2)
    blocks: list[tuple[str, RenderableType]] = [
        ("CAPACITY", _capacity(verdict)),
        (LABELS[finding.kind] if finding else "NOT KNOWN", _pinch_point(verdict, evidence_shown)),
        ("DO THIS", _remedies(verdict)),
        ("HOW SURE", _certainty(verdict)),
    ]
    if cost is not None and (costs := cost_block(cost)) is not None:
        blocks.insert(1, ("COSTS", costs))
    for label, content in blocks:
        body.add_row(Text(label, style="bold"), Padding(content, (0, 0, 1, 0)))
    parts: list[RenderableType] = [
        _title(verdict, view),
        literal(words.sentence(verdict.headline), "bold"),
        Text(""),
        body,
        steps_table(verdict, view, width, steps_shown),
    ]
    classes = classes_table(verdict, width)
    if classes is not None:
        parts += [Text(""), classes]
    profile = profile_of(view.run.path) if view is not None else None
    if profile is not None and view is not None:
        parts += [Text(""), Text("WHERE THE STEP TIME GOES", style="bold"), profile_block(profile)]
        parts.append(literal(f"page: {view.run.path / DIRECTORY / PAGE_FILE}", "dim"))
    footer = _footer(verdict, paths)
    if footer:
        parts += [Text(""), *footer]
    return Group(*parts)


def screen_text(
    verdict: Verdict,
    view: RunView | None = None,
    width: int = WIDTH_DEFAULT,
    *,
    paths: Mapping[str, object] | None = None,
    cost: Cost | None = None,
    ascii_only: bool = False,
    color: bool = False,
) -> str:
    """The screen as text, without trailing blanks. ascii_only is for terminals without UTF-8."""
    screen = render_screen(verdict, view, width, paths=paths, cost=cost)
    return to_text(screen, width, ascii_only=ascii_only, color=color)


def to_text(screen: RenderableType, width: int, *, ascii_only: bool = False, color: bool = False) -> str:
    """Anything that rich can print as text, without trailing blanks."""
    buffer = io.StringIO()
    console = Console(
        file=buffer,
        width=max(width, WIDTH_MIN),
        color_system="standard" if color else None,
        force_terminal=color,
        highlight=False,
    )
    console.print(screen)
    text = "\n".join(line.rstrip() for line in buffer.getvalue().rstrip("\n").split("\n")) + "\n"
    return to_ascii(text) if ascii_only else text


def to_ascii(text: str) -> str:
    """Text in which nothing is outside ASCII: our own signs have a spelling, anything else becomes '?'."""
    for sign, spelling in ASCII.items():
        text = text.replace(sign, spelling)
    return text.encode("ascii", "replace").decode("ascii")


def print_screen(
    console: Console,
    verdict: Verdict,
    view: RunView | None = None,
    *,
    paths: Mapping[str, object] | None = None,
    cost: Cost | None = None,
) -> None:
    """Prints to a console, falling back to ASCII where its encoding cannot show our signs."""
    if (console.encoding or "ascii").lower().startswith("utf"):
        console.print(render_screen(verdict, view, console.width, paths=paths, cost=cost), highlight=False)
    else:
        text = screen_text(verdict, view, console.width, paths=paths, cost=cost, ascii_only=True)
        console.print(Text(text), end="", highlight=False, soft_wrap=True)


def _title(verdict: Verdict, view: RunView | None) -> Text:
    target = verdict.target
    engine = target.engine if target.engine_version is None else f"{target.engine} {target.engine_version}"
    about = [target.url, engine]
    if view is not None and view.manifest.stages:
        about.append(format_duration((max(stage.drained_ns for stage in view.stages) - view.t0_ns) / NS_PER_S))
    about += [target.model] if target.model else []
    about += [view.manifest.workload] if view is not None and view.manifest.workload else []
    stopped = (("aborted", "bold red"), "  ") if verdict.status == "aborted" else ()
    line = Text.assemble(("Pinchpoint", "bold cyan"), "  ", *stopped, (" · ".join(map(visible, about)), "dim"))
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


def _pinch_point(verdict: Verdict, evidence_shown: int) -> RenderableType:
    finding = words.top_finding(verdict)
    if finding is None:
        return literal(verdict.headline)
    about = [] if finding.kind == "unknown" else [f"{words.probability(finding.probability)} sure", finding.rule]
    about += [finding.layer] if finding.layer != "none" else []
    if finding.explains_ratio is not None:
        about.append(f"explains {format_ratio(finding.explains_ratio)} of the SLO misses")
    lines: list[RenderableType] = [literal(words.sentence(finding.title), "bold")]
    lines += [literal(" · ".join(about), "dim")] if about else []
    lines.append(_evidence_lines(finding, evidence_shown))
    return Group(*lines)


def _evidence_lines(finding: Finding, evidence_shown: int) -> Table:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=1)
    grid.add_column(ratio=1)
    shown = words.strongest(finding.evidence, evidence_shown) + words.strongest(finding.against, AGAINST_SHOWN)
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
    head = literal(words.sentence(action), "bold")
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
