"""What can be seen of a service, for a terminal: values by layer, coverage by page, and what is missing and why.

Names, labels and addresses come from pages of strangers and are printed as text only (`literal`).
"""

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pinchpoint.coverage import Coverage
from pinchpoint.report.literal import literal, visible
from pinchpoint.report.words import quantity, sentence
from pinchpoint.seen import EVENTS, LAYERS, Absent, Row, SeenPage, Survey, Trouble
from pinchpoint.units import MISSING, counted, format_ratio, significant

KIB = 1024.0
BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
SI_PREFIXES = ("", "k", "M", "G", "T", "P")
EXACT = 1e7
"""Whole numbers below are told to the digit."""
LARGE = 1e5
"""From here on a number is printed with a prefix."""
INSTANT = "_unix_s"
FAR_S = 1e11
"""Past the year 5000: no instant, but an error."""
LIMIT = "_limit"
NO_LIMIT = 2.0**62
"""The kernel's word for none is its largest integer, or close to it."""
HINT_CHARS = 4000
SHARE_COLUMNS = 7
LIVE_HEAD_LINES = 2
LIVE_FOOT_LINES = 3
UNITS_WITH_PREFIX = ("Hz", "J", "W", "FLOP")
"""Written as one word with a prefix: 1.41 GHz, but 262 k flows."""
ADD = re.compile(r"add (\S+) (to .*)", re.IGNORECASE)
UNEXPLAINED_SHOWN = 12
"""Series that a page lacks for no known reason; the JSON has all of them."""
STRANGERS_SHOWN = 6
REASONS = {
    "refused": "nothing listens there",
    "timeout": "no answer in time",
    "truncated": "the page was cut off",
    "too_large": "the page is too large",
    "no_samples": "the page is empty",
    "html": "it is a page for people",
    "json": "it is JSON",
    "binary": "it is binary",
    "redirected": "it leads to another server",
    "encoding": "it is compressed in a way nobody asked for",
    "dns": "its host name has no address",
}
"""Of the event `scrape_failed`; others are printed as they are."""


def survey_screen(survey: Survey) -> RenderableType:
    """Everything, top to bottom."""
    parts: list[RenderableType] = [*values_by_layer(survey.rows)]
    if survey.pages:
        parts += [_head("coverage"), *coverage_by_page(survey.pages)]
    missing = list(_missing(survey.pages, survey.absent))
    if missing:
        parts += [_head("missing, and how to get it"), _grid(missing)]
    if survey.troubles or survey.notes:
        parts.append(_head("notes"))
        parts += [literal(trouble_text(each)) for each in survey.troubles]
        parts += [literal(sentence(note)) for note in survey.notes]
    return Group(*parts)


def live_screen(survey: Survey, height: int) -> RenderableType:
    """As much as fits into `height` lines: of each layer the first series that move, and how many there are."""
    moving = [row for row in survey.rows if row.value and row.role != "config" and row.layer != "source"]
    layers = [layer for layer in LAYERS if any(row.layer == layer for row in moving)]
    room = height - LIVE_FOOT_LINES
    shown: list[Row] = []
    for place, layer in enumerate(layers):
        share = max(1, room // (len(layers) - place) - LIVE_HEAD_LINES)
        mine = [row for row in moving if row.layer == layer][:share]
        room -= len(mine) + LIVE_HEAD_LINES
        shown += mine
    count = len({row.series for row in survey.rows})
    foot = f"\n{count} series after {survey.span_s:.0f} s; all of them, and what is missing, at the end"
    return Group(*values_by_layer(shown), Text(foot, style="dim"))


def values_by_layer(rows: Sequence[Row]) -> Iterable[RenderableType]:
    """A table for each layer that has something to show. Sources are named where there are several."""
    several = len({row.source for row in rows}) > 1
    for layer in LAYERS:
        mine = [row for row in rows if row.layer == layer]
        if not mine:
            continue
        yield _head(layer, f"{len({row.series for row in mine})} series")
        table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(no_wrap=True, style="dim", min_width=max(len(_sets(row)) for row in mine))
        if several:
            table.add_column(no_wrap=True, style="dim", min_width=max(len(visible(row.source)) for row in mine))
        for row in mine:
            cells = [literal(row.series), Text(value_text(row)), Text(_sets(row)), literal(row.source)]
            table.add_row(*cells[: 4 if several else 3])
        yield table


def coverage_by_page(pages: Sequence[SeenPage]) -> Iterable[RenderableType]:
    """Where each page is, and a line for each exporter whose names are on it."""
    yield _grid(
        (literal(page.source), literal(page.place if page.coverage is not None else f"{page.place}, {page.title}"))
        for page in pages
    )
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("\nexporter", no_wrap=True, overflow="ellipsis")
    several = len(pages) > 1
    if several:
        table.add_column("\npage", no_wrap=True, min_width=max(len(visible(page.source)) for page in pages))
    for name in ("series\nfound", "of\nall", "of those it\nshows by itself", "names\nused"):
        table.add_column(name, justify="right", no_wrap=True, min_width=max(SHARE_COLUMNS, *map(len, name.split("\n"))))
    for page in pages:
        source = (literal(page.source),) if several else ()
        for each in page.coverage.exporters if page.coverage is not None else ():
            all_, useful = len(each.found) + len(each.missing), each.names - len(each.unknown) - len(each.left_out)
            shares = (format_ratio(each.share), format_ratio(each.share_expected))
            counts = (f"{len(each.found)}/{all_}", *shares, f"{useful}/{each.names}")
            table.add_row(literal(each.title), *source, *counts)
        strangers = page.coverage.strangers if page.coverage is not None else ()
        if strangers:
            table.add_row(Text("nobody known"), *source, "", "", "", f"0/{len(strangers)}")
    if table.row_count:
        yield table


def trouble_text(trouble: Trouble) -> str:
    """Such as "engine could not be read (nothing listens there), 3 times"."""
    told = dict(trouble.labels)
    reason = told.pop("reason", None)
    details = [REASONS.get(reason, reason.replace("http_", "HTTP "))] if reason is not None else []
    details += [f"{key} {value}" for key, value in told.items()]
    times = f", {counted(trouble.count, 'time')}" if trouble.count > 1 else ""
    about = f" ({visible('; '.join(details))})" if details else ""
    return f"{trouble.source} {EVENTS.get(trouble.what, trouble.what)}{about}{times}"


def value_text(row: Row) -> str:
    """A row's value with its unit, and what it is when it is not simply the value of now."""
    if row.value is None:
        shown = MISSING
    elif row.series.endswith(INSTANT):
        return (
            datetime.fromtimestamp(row.value, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if row.value < FAR_S else MISSING
        )
    elif row.series.endswith(LIMIT) and row.value >= NO_LIMIT:
        return "no limit"
    elif row.how == "per second":
        shown = _rate(row.value, row.unit)
    else:
        shown = _amount(row.value, row.unit)
    if row.how == "total":
        return f"{shown} so far"
    if row.how in ("mean", "mean since start"):
        rate = "" if row.observations_per_s is None else f", {significant(row.observations_per_s)}/s"
        return f"{row.how} {shown}{rate}"
    return shown


def _amount(value: float, unit: str) -> str:
    if unit in ("bytes", "bytes/s"):
        return _scaled(value, KIB, BYTE_UNITS, "") + unit.removeprefix("bytes")
    if abs(value) < EXACT and value.is_integer() and unit not in ("s", "ratio", "degC", "W", "J"):
        return f"{value:,.0f} {'' if unit == '1' else visible(unit)}".rstrip()  # limits are compared to the digit
    if value < LARGE or unit in ("s", "ratio"):
        return quantity(value, unit)
    return _scaled(value, 1e3, SI_PREFIXES, "" if unit == "1" else visible(unit))


def _rate(value: float, unit: str) -> str:
    if unit == "s":  # seconds in a second: how many at once
        return f"{significant(value)} s/s"
    return f"{_amount(value, unit)}/s"


def _scaled(value: float, step: float, names: Sequence[str], unit: str) -> str:
    power = 0
    while abs(value) >= step and power < len(names) - 1:
        value, power = value / step, power + 1
    joint = "" if unit in UNITS_WITH_PREFIX or not names[power] else " "
    return f"{significant(value)} {names[power]}{joint}{unit}".rstrip()


def _sets(row: Row) -> str:
    return f"of {row.label_sets}" if row.label_sets > 1 else ""


def _missing(pages: Sequence[SeenPage], gone: Sequence[Absent]) -> Iterable[tuple[Text, Text]]:
    for each in gone:
        yield Text(each.layer), literal(sentence(each.how))
    told: set[str] = set()
    for page in pages:
        for each in page.coverage.exporters if page.coverage is not None else ():
            if each.exporter not in told and each.missing:
                told.add(each.exporter)
                yield from _of_exporter(each)
        strangers = page.coverage.strangers if page.coverage is not None else ()
        if strangers:
            shown = ", ".join(strangers[:STRANGERS_SHOWN]) + (", …" if len(strangers) > STRANGERS_SHOWN else "")
            yield Text("unknown names"), literal(f"kept as they are, of {page.source}: {shown}")


def _of_exporter(coverage: Coverage) -> Iterable[tuple[Text, Text]]:
    by_hint: dict[str, list[str]] = {}
    added: dict[str, list[str]] = {}
    for missing in coverage.missing:
        hint = missing.hint or ""
        parts = ADD.fullmatch(hint)
        if parts is not None:  # many of them differ in one word
            hint = parts[2]
            added.setdefault(hint, []).append(parts[1])
        by_hint.setdefault(hint, []).append(missing.series)
    title = literal(coverage.title)
    for hint, series in sorted(by_hint.items(), key=lambda each: (not each[0], each[0])):
        if hint:
            words = f"add {', '.join(added[hint])} {hint}" if hint in added else hint
            yield title, Text.assemble(visible(sentence(words), HINT_CHARS), ": ", _dim(", ".join(series)))
        else:
            more = f" and {len(series) - UNEXPLAINED_SHOWN} more" if len(series) > UNEXPLAINED_SHOWN else ""
            shown = ", ".join(series[:UNEXPLAINED_SHOWN]) + more
            yield title, Text.assemble("Not on this page; another version, or not used so far: ", _dim(shown))
        title = Text()


def _dim(series: str) -> Text:
    return Text(visible(series, HINT_CHARS), style="dim")


def _head(title: str, about: str = "") -> Text:
    return Text.assemble((f"\n{title}".upper(), "bold"), (f"  {about}" if about else "", "dim"))


def _grid(rows: Iterable[tuple[Text, Text]]) -> RenderableType:
    grid = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, show_header=False)
    grid.add_column(no_wrap=True, style="cyan")
    grid.add_column(overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid
