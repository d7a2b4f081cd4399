"""The lab's faults for a terminal: what each changes and what should be seen, and whether it moved what it should."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pinchpoint.units import significant

DIGITS = 3


class FaultLike(Protocol):
    """What is told of a fault; see lab.faults.Fault. Reports know no lab."""

    @property
    def name(self) -> str: ...
    @property
    def cause(self) -> str: ...
    @property
    def layer(self) -> str: ...
    @property
    def physics(self) -> str: ...
    @property
    def signature(self) -> str: ...
    @property
    def indicator(self) -> str: ...
    @property
    def expected_rule(self) -> str | None: ...
    @property
    def look_alikes(self) -> tuple[str, ...]: ...
    @property
    def workload(self) -> str: ...
    @property
    def base(self) -> Mapping[str, Any]: ...
    def changes(self, severity: Any) -> Mapping[str, Any]: ...


class ImpactLike(Protocol):
    """See impact.Impact."""

    @property
    def fault(self) -> str: ...
    @property
    def severity(self) -> str: ...
    @property
    def indicator(self) -> str: ...
    @property
    def healthy(self) -> float: ...
    @property
    def faulty(self) -> float: ...
    @property
    def change_text(self) -> str: ...
    @property
    def sigmas(self) -> float: ...
    @property
    def has_impact(self) -> bool: ...


def fault_list(faults: Iterable[FaultLike]) -> RenderableType:
    """Physics, knobs of the moderate fault and expected signature of each, by layer."""
    parts: list[RenderableType] = []
    layer = None
    for fault in faults:
        if fault.layer != layer:
            layer = fault.layer
            parts.append(Text(f"\n{'healthy' if layer == 'none' else layer}".upper(), style="bold"))
        rule = f", rule {fault.expected_rule}" if fault.expected_rule else ""
        cause = f"  ({fault.cause}{rule})" if fault.cause else ""
        rows = [("", Text(fault.physics))]
        if knobs := fault.changes("moderate"):
            rows.append(("knobs", Text(_knobs(knobs))))
        rows.append(("seen as", Text(fault.signature, style="dim")))
        parts += [Text.assemble((fault.name, "bold cyan"), (cause, "dim")), _grid(rows)]
    about = (
        "\n`pinchpoint lab faults NAME` shows all severities; `--fault NAME` of lab serve, lab synth and lab demo "
        "injects it, NAME+NAME two together, random one that a rule is meant to name, any one of all."
    )
    return Group(*parts, Text(about, style="dim"))


def fault_page(fault: FaultLike, severities: Sequence[str]) -> RenderableType:
    """Everything about one fault."""
    rows = [("layer", Text(f"{fault.layer} {fault.cause}".strip())), ("physics", Text(fault.physics))]
    if fault.base:
        rows.append(("healthy", Text(_knobs(fault.base))))
    rows += [(name, Text(_knobs(fault.changes(name)))) for name in severities if fault.changes(name)]
    rows.append(("seen as", Text(fault.signature)))
    if fault.indicator:
        rows.append(("indicator", Text(fault.indicator)))
        rows.append(("traffic", Text(fault.workload)))
        rows.append(("rule", Text(fault.expected_rule or "none is meant to name it yet")))
    if fault.look_alikes:
        rows.append(("looks like", Text(", ".join(fault.look_alikes))))
    return Group(Text(fault.name, style="bold cyan"), _grid(rows))


def impact_table(impacts: Iterable[ImpactLike]) -> RenderableType:
    """One line for each paired measurement."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for name in ("fault", "severity", "indicator"):
        table.add_column(name, no_wrap=True)
    for name in ("healthy", "faulty", "change", "sigma"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column()
    for impact in impacts:
        table.add_row(
            impact.fault,
            impact.severity,
            impact.indicator,
            significant(impact.healthy, DIGITS),
            significant(impact.faulty, DIGITS),
            impact.change_text,
            significant(impact.sigmas, DIGITS),
            "" if impact.has_impact else "no impact",
        )
    return table


def _grid(rows: Sequence[tuple[str, Text]]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=2)
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column()
    for name, text in rows:
        grid.add_row("", name, text)
    return grid


def _knobs(change: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} × {value[1:]}" if isinstance(value, str) and value[1:2].isdigit() else f"{key} = {value}"
        for key, value in change.items()
    )
