"""Where the time of requests went, for a terminal and for the report's page.

Every name of a span, a service or a host is a stranger's text and goes through `literal` or `visible`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pinchpoint.model import Stage
from pinchpoint.report.literal import literal, visible
from pinchpoint.report.words import stage_label
from pinchpoint.series import RunView
from pinchpoint.spans import Breakdown, SenderClock, StageTime, breakdown
from pinchpoint.units import counted, format_duration, format_ratio, significant

if TYPE_CHECKING:
    import pyarrow as pa

STAGE_WORDS = {
    "network": "client span minus server span, and the way between gateway and engine",
    "gateway": "what stands before the engine, without what it calls",
    "dependency": "calls of something that is no model",
    "engine": "reading the request, tokenising, handing out",
    "queue": "waiting to be scheduled",
    "prefill": "from being scheduled to the first token",
    "decode": "from the first token to the last",
}
BAR_COLUMNS = 20
INSTANCE_CHARS = 24
"""Of a host's name, or of the identifier that stands for it."""
STEPS_SHOWN = 12
STEP_KINDS = ("search", "overload", "recovery", "load")


class StepRow(NamedTuple):
    """One step: the stage of the run, and what its requests spent their time on."""

    stage: Stage
    found: Breakdown


def step_rows(view: RunView, spans: "pa.Table | None" = None) -> list[StepRow]:
    """The steps whose requests left spans, in order. spans: in place of those of the run."""
    rows: list[StepRow] = []
    for stage in view.stages_of(*STEP_KINDS):
        found = breakdown(view, stage, spans)
        if found is not None and found.traced:
            rows.append(StepRow(stage, found))
    return rows


def render_spans(found: Breakdown, steps: Sequence[StepRow] = ()) -> RenderableType:
    """The screen as something rich can print."""
    parts: list[RenderableType] = [literal(_summary(found), "bold")]
    if found.stages:
        parts += [Text(), _stage_table(found)]
    if found.dependencies:
        parts += [Text(), _dependency_table(found)]
    if len(steps) > 1:
        parts += [Text(), _step_table(steps[:STEPS_SHOWN])]
    sentences = [clock_words(clock) for clock in found.clocks]
    parts += [Text()] if sentences or found.notes else []
    parts += [literal(f"{sentence}.", "dim") for sentence in (*sentences, *found.notes)]
    return Group(*parts)


def spans_section(view: RunView) -> dict[str, Any] | None:
    """What templates/spans.html.j2 wants as `spans`; None where the run has none, and then there is no section."""
    found = breakdown(view)
    if found is None:
        return None
    steps = step_rows(view)
    names = [stage.name for stage in found.stages]
    return {
        "summary": _summary(found),
        "stages": [(stage, STAGE_WORDS[stage.name]) for stage in found.stages],
        "dependencies": [(visible(one.name), one) for one in found.dependencies],
        "names": names,
        "steps": [(_label(row.stage), row.found.traced, [_median(row.found, name) for name in names]) for row in steps],
        "clocks": [clock_words(clock) for clock in found.clocks],
        "notes": [visible(note) for note in found.notes],
    }


def clock_words(clock: SenderClock) -> str:
    """One sentence, without its full stop, about whose clock a sender's spans bear."""
    name = visible(clock.service) or "a sender without a name"
    if clock.instance and clock.instance != clock.service:
        name += f" on {visible(clock.instance, INSTANCE_CHARS)}"
    spans = counted(clock.spans, "span")
    if clock.offset_s is None or clock.error_s is None:
        return f"{name} ({spans}): no offset of its clock fits"
    if clock.offset_s == 0:
        return f"{name} ({spans}): its clock agrees with ours"
    way = "behind" if clock.offset_s > 0 else "ahead of"
    off, error = format_duration(abs(clock.offset_s)), format_duration(clock.error_s)
    return f"{name} ({spans}): its clock is {off} {way} ours, within {error}, and was put right"


def _summary(found: Breakdown) -> str:
    told = f"{found.traced:,} of {counted(found.requests, 'answered request')} left spans"
    if found.total_median_s is None:
        return told
    first = found.first_token_median_s
    until = f", until the first token {format_duration(first)}" if first is not None else ""
    return f"{told}; the median request took {format_duration(found.total_median_s)}{until}"


def _stage_table(found: Breakdown) -> Table:
    streamed = any(stage.first_token_share_ratio is not None for stage in found.stages)
    table = _table("stage", "median", "p95", "share", "")
    if streamed:
        table.add_column("until first token", justify="right", header_style="dim")
    for stage in found.stages:
        row = [
            literal(stage.name),
            literal(format_duration(stage.median_s)),
            literal(format_duration(stage.p95_s)),
            literal(format_ratio(stage.share_ratio)),
            literal(_bar(stage)),
        ]
        if streamed:
            row.append(literal(format_ratio(stage.first_token_share_ratio)))
        table.add_row(*row)
    return table


def _dependency_table(found: Breakdown) -> Table:
    table = _table("dependency", "calls", "per request", "median", "p95")
    for one in found.dependencies:
        each = significant(one.calls / one.requests) if one.requests else "0"
        cells = (one.name, f"{one.calls:,}", each, format_duration(one.median_s), format_duration(one.p95_s))
        table.add_row(*map(literal, cells))
    return table


def _step_table(steps: Sequence[StepRow]) -> Table:
    """Medians, step by step: what grows with the load."""
    names = [name for name in STAGE_WORDS if any(_median(row.found, name) is not None for row in steps)]
    table = _table("medians by step", "requests", *names)
    for row in steps:
        medians = [format_duration(_median(row.found, name)) for name in names]
        table.add_row(*map(literal, (_label(row.stage), f"{row.found.traced:,}", *medians)))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, header_style="dim")
    for name in others:
        table.add_column(name, justify="right" if name else "left", header_style="dim")
    return table


def _median(found: Breakdown, name: str) -> float | None:
    return next((stage.median_s for stage in found.stages if stage.name == name), None)


def _label(stage: Stage) -> str:
    return visible(stage_label(stage.name, stage.rate_rps))


def _bar(stage: StageTime) -> str:
    return "█" * round(stage.share_ratio * BAR_COLUMNS)
