"""A fit on the screen: what was learnt, and how near it comes to requests that were held back."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pinchpoint.fitted import FitQuality, Match
from pinchpoint.report.literal import literal
from pinchpoint.units import format_count, format_duration, significant

MISSING = "–"


def fit_text(found: FitQuality) -> RenderableType:
    span = f" over {format_duration(found.span_s)}" if found.span_s else ""
    parts: list[RenderableType] = [
        Text.assemble(("Fit of ", "bold"), literal(found.trace)),
        Text(f"{found.format}, {format_count(found.requests)} requests{span}", style="dim"),
        Text(""),
        Text("LEARNT", style="bold"),
        *(Text(f"  {line}") for line in found.summary),
        Text(""),
        Text.assemble(("QUALITY", "bold"), f"  against {format_count(found.held)} requests that the fit has not seen"),
        _table(found.matches),
        Text(_verdict(found.matches)),
    ]
    if found.notes:
        parts += [Text(""), Text("NOT LEARNT, OR WITH CARE", style="bold")]
        parts += [Text(f"  {note}") for note in found.notes]
    return Group(*parts)


def _table(matches: tuple[Match, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim", show_edge=False)
    table.add_column("", no_wrap=True)
    for label in ("held back", "fit", "baseline", "halves"):
        table.add_column(label, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for one in matches:
        name = f"{one.name} *" if one.distance else one.name
        better = one.better
        mark = "" if better is None else "nearer" if better and not _tie(one) else "as near" if better else "not nearer"
        table.add_row(name, *(_number(x) for x in (one.held, one.fit, one.baseline, one.floor)), mark)
    return table


def _tie(one: Match) -> bool:
    """Whether both are as near as chance allows, or equally near."""
    held = 0.0 if one.distance else one.held or 0.0
    off, base_off = abs((one.fit or 0.0) - held), abs((one.baseline or 0.0) - held)
    return off >= base_off or base_off <= max(one.chance, one.floor or 0.0)


def _number(value: float | None) -> str:
    return MISSING if value is None else significant(value, 3)


def _verdict(matches: tuple[Match, ...]) -> str:
    judged = [one for one in matches if one.better is not None]
    tied = sum(bool(one.better) and _tie(one) for one in judged)
    nearer = sum(bool(one.better) for one in judged) - tied
    return (
        "* distance from the held-back half: 0 for the same law, 1 for laws with nothing in common; halves: between "
        "the two halves of the trace.\n"
        f"Of {len(judged)} quantities the fit is nearer in {nearer} than the baseline, Poisson arrivals with "
        f"independent log-normal lengths; in {tied} they are as near, within what chance gives two samples of one law"
        + (f"; in {len(judged) - nearer - tied} it is not nearer." if nearer + tied < len(judged) else ".")
    )
