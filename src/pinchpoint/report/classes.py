"""The table of classes on the terminal screen: each with its latencies and how its own SLOs were kept."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pinchpoint.model import ClassResult, StageResult, Verdict
from pinchpoint.report import words
from pinchpoint.report.literal import literal
from pinchpoint.units import MISSING, format_duration, format_ratio

WIDE = 96
"""Columns of the terminal from which there is room for more percentiles."""
CLASSES_SHOWN = 8


def telling_stage(verdict: Verdict) -> StageResult | None:
    """The step whose classes say most: the one with most requests at the highest rate that is surely carried, else at
    the lowest rate that was tested, else the one with most requests. None where there is one class."""
    stages = [stage for stage in verdict.stages if stage.kind in words.LOADED_KINDS and stage.classes]
    if not stages:
        return None
    carried_rps = verdict.capacity.lower_rps if verdict.capacity is not None else None
    rates_rps = [stage.rate_rps for stage in stages if stage.rate_rps is not None]
    carried = [rate_rps for rate_rps in rates_rps if carried_rps is not None and rate_rps <= carried_rps]
    wanted_rps = max(carried, default=min(rates_rps, default=None))
    return max(stages, key=lambda stage: (stage.rate_rps == wanted_rps, stage.requests))


def classes_table(verdict: Verdict, width: int) -> RenderableType | None:
    """None where there is one class."""
    stage = telling_stage(verdict)
    if stage is None:
        return None
    wide = width >= WIDE
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim", expand=False)
    table.add_column("class", no_wrap=True, overflow="ellipsis", max_width=18 if wide else 14)
    labels = ["n", "ok", "TTFT p50", "p95", "p99", "TPOT p95", "E2E p95"]
    for label in labels if wide else ["n", "ok", "TTFT p50", "p95", "TPOT p95"]:
        table.add_column(label, justify="right", no_wrap=True)
    table.add_column("its own SLOs")
    for one in stage.classes[:CLASSES_SHOWN]:
        figures = [one.ttft_s.get("p50"), one.ttft_s.get("p95")]
        figures += [one.ttft_s.get("p99")] if wide else []
        figures += [one.tpot_s.get("p95")]
        figures += [one.e2e_s.get("p95")] if wide else []
        table.add_row(literal(one.name), f"{one.requests}", f"{one.ok}", *map(format_duration, figures), _kept(one))
    label = words.stage_label(stage.name, stage.rate_rps)
    lines: list[RenderableType] = [Text.assemble(("CLASSES", "bold"), (f"  {label}", "dim")), table]
    if len(stage.classes) > CLASSES_SHOWN:
        lines.append(Text(f"{len(stage.classes) - CLASSES_SHOWN} more classes are in the report", style="dim"))
    return Group(*lines)


def _kept(one: ClassResult) -> Text:
    """Shares that met each SLO, such as "ttft p95 < 500ms 99.2 %"."""
    told = [
        f"{text.removeprefix(f'{one.name}: ')} {format_ratio(met / counted) if counted else MISSING}"
        for text, (met, counted) in one.attainment.items()
    ]
    return literal(", ".join(told) or MISSING, "dim" if not told else "")
