"""The telemetry of a run by layer: curated panels, then everything else that was read and varied, drawn small.

Nothing that was collected is invisible: a catalogued series is in a panel, in a small chart, or in the list of those
that stayed the same. What was not read is said, with how to get it.
"""

import math
from typing import Any

import numpy as np

from pinchpoint.catalog import HISTOGRAM_MEMBERS, Entry
from pinchpoint.report.chart import COLOURS, chart, line, tidy
from pinchpoint.report.lines import (
    Drawn,
    child_rates,
    drawn_lines,
    each_line,
    histogram_mean,
)
from pinchpoint.report.literal import visible
from pinchpoint.report.panels import LAYERS, PANELS, Layer, Panel, Unit
from pinchpoint.report.thinning import align, thin
from pinchpoint.series import RunView, Series
from pinchpoint.units import format_duration, format_ratio, significant

PANEL_POINTS_MAX = 800
"""Points per line of a panel: one for each two device pixels of a wide chart, and every spike kept."""
SMALL_POINTS_MAX = 200
SMALL_CHARTS_MAX = 300
"""Small charts of a whole report: at 200 points each they stay below 2 MB."""
SMALL_LINES_MAX = 900
STEADY_MAX = 400
"""Series that stayed the same, in the lists of a whole report."""
PREFIXED = {"bytes": "B", "bytes/s": "B/s", "Hz": "Hz", "W": "W", "J": "J"}
PREFIXES = ("", "k", "M", "G", "T", "P")
ROUNDING = 1e-9
"""A rate that is worked out differs so much from itself, relatively, when nothing has changed."""
ZERO_LABELS_MAX = 4
DASHES = ((), (5, 4), (2, 3), (8, 3, 2, 3))
"""A second turn of the colours is told from the first by its dashes."""
LABEL_LENGTH_MAX = 120
DESCRIPTION_LENGTH_MAX = 240
UNITS: dict[str, Unit] = {
    "s": "s",
    "ratio": "ratio",
    "bytes": "bytes",
    "bytes/s": "bytes/s",
    "W": "W",
    "degC": "degC",
    "Hz": "Hz",
    "J": "J",
}
"""Unit of the catalogue -> how values are written; every other is a plain number, named at the axis."""
RATES: dict[str, Unit] = {"s": "ratio", "bytes": "bytes/s", "J": "W"}
"""Unit of a counter -> how its rate is written: seconds per second are a share of time."""


def layer_sections(view: RunView) -> list[dict[str, Any]]:
    """One per layer: {"key", "title", "intro", "charts", "more", "zero", "steady", "missing", "how_to"}.

    charts and more are charts as in chart.py. zero: titles of panels in which every value was zero, which are not
    drawn. steady: rows (series, value, description). missing: titles of panels that had nothing to show. how_to: None
    where anything at all was read.
    """
    present = set(view.series_names)
    budget = _Budget()
    sections: list[dict[str, Any]] = []
    for layer in LAYERS:
        panels = [panel for panel in PANELS if panel.layer == layer.key]
        drawn = {panel.key: panel_chart(view, panel) for panel in panels}
        shown = {name for found in drawn.values() if found is not None for name in found["series_names"]}
        more, steady = _rest(view, layer, present - _members(shown), budget)
        any_read = bool(shown or more or steady)
        if not any_read and not layer.how_to:
            continue
        sections.append(
            {
                "key": layer.key,
                "title": layer.title,
                "intro": layer.intro,
                "charts": [found for found in drawn.values() if found is not None and not _zero(found)],
                "zero": [_zero_words(found) for found in drawn.values() if found is not None and _zero(found)],
                "more": more,
                "steady": steady,
                "missing": [panel.title for panel in panels if drawn[panel.key] is None and not panel.several],
                "how_to": None if any_read else layer.how_to,
            }
        )
    return sections


def panel_chart(view: RunView, panel: Panel) -> dict[str, Any] | None:
    """The chart of a panel; None when none of its series was read, or one line is too few for it."""
    lines = panel.lines
    if panel.first_only:
        lines = next(((each,) for each in panel.lines if drawn_lines(view, each, 1)), ())
    read = [(each, drawn_lines(view, each, len(lines))) for each in lines]
    found = [drawn for _, several in read for drawn in several]
    if not found or (panel.several and len(found) < 2):
        return None
    made = _chart(panel.key, panel.title, panel.reading, panel.axis, panel.unit, found, PANEL_POINTS_MAX)
    named = [each.series for each, several in read if several]
    for name, label in panel.limits:
        value = _last(view, name)
        if value is not None:
            made["limits"].append({"value": tidy(value), "label": label})
            named.append(name)
    slots = view.facts.limits.max_sequences
    if panel.key == "engine" and slots is not None:
        made["limits"].append({"value": slots, "label": f"limit {slots}"})
    return {**made, "series_names": named + [each.over for each, several in read if several and each.over]}


def _zero(drawn: dict[str, Any]) -> bool:
    return not any(value for each in drawn["series"] for value in each["values"])


def _zero_words(drawn: dict[str, Any]) -> str:
    labels = [each["label"] for each in drawn["series"]]
    if len(labels) > ZERO_LABELS_MAX or (len(labels) == 1 and labels[0].casefold() in drawn["title"].casefold()):
        return drawn["title"]
    return f"{drawn['title']} ({', '.join(labels)})"


class _Budget:
    """What is left of the bounds of a report."""

    def __init__(self) -> None:
        self.charts = SMALL_CHARTS_MAX
        self.lines = SMALL_LINES_MAX
        self.steady = STEADY_MAX


def _members(shown: set[str]) -> set[str]:
    """The series and, of histograms, their members."""
    return shown | {name + end for name in shown for end in HISTOGRAM_MEMBERS}


def _rest(
    view: RunView, layer: Layer, names: set[str], budget: _Budget
) -> tuple[list[dict[str, Any]], list[tuple[str, str, str]]]:
    """(small charts of what varied, rows of what stayed the same) of a layer."""
    more: list[dict[str, Any]] = []
    steady: list[tuple[str, str, str]] = []
    for name in sorted({_whole(view, name) for name in names}):
        entry = view.catalog.entry(name)
        if entry is None or entry.layer not in layer.catalogued:
            continue
        found = [] if entry.kind == "info" else _small_lines(view, entry)
        if any(_varies(each.series) for each in found) and budget.charts > 0 and budget.lines > 0:
            budget.charts -= 1
            budget.lines -= len(found)
            more.append(_small_chart(entry, found))
        elif budget.steady > 0:
            budget.steady -= 1
            steady.append((name, _steady_value(view, entry, found), visible(entry.description, DESCRIPTION_LENGTH_MAX)))
    return more, steady


def _whole(view: RunView, name: str) -> str:
    """The histogram that a member belongs to; any other series itself."""
    for end in HISTOGRAM_MEMBERS:
        stem = name.removesuffix(end)
        entry = view.catalog.entry(stem) if stem != name else None
        if entry is not None and entry.kind == "histogram":
            return stem
    return name


def _small_lines(view: RunView, entry: Entry) -> list[Drawn]:
    if entry.kind == "histogram":
        series = histogram_mean(view, entry.name)
        return [Drawn("mean", series)] if len(series) else []
    children = view.children(entry.name)
    if entry.kind == "counter":
        children = [child_rates(child) for child in children]
    children = [child for child in children if len(child.series)]
    if not children:
        return []
    return each_line(children, "" if len(children) > 1 else "per second" if entry.kind == "counter" else "value")


def _varies(series: Series) -> bool:
    if len(series) < 2:
        return False
    low, high = float(series.value.min()), float(series.value.max())
    return high - low > ROUNDING * max(abs(low), abs(high))


def _small_chart(entry: Entry, found: list[Drawn]) -> dict[str, Any]:
    if entry.kind == "counter":
        unit: Unit = RATES.get(entry.unit, "rate")
        axis = {"ratio": "share of time", "bytes/s": "rate", "W": "power"}.get(unit, f"{entry.unit}/s")
    else:
        unit = UNITS.get(entry.unit, "count")
        axis = "" if entry.unit == "1" else entry.unit if unit == "count" else {"s": "time"}.get(unit, "")
    reading = visible(entry.description, DESCRIPTION_LENGTH_MAX)
    if entry.kind == "histogram":
        reading = f"Mean over some seconds. {reading}"
    return _chart("more-" + entry.name.replace(".", "-"), entry.name, reading, axis, unit, found, SMALL_POINTS_MAX)


def _steady_value(view: RunView, entry: Entry, found: list[Drawn]) -> str:
    if entry.kind == "info":
        labels = [
            ", ".join(f"{key}={value}" for key, value in child.labels.items()) for child in view.children(entry.name)
        ]
        return visible("; ".join(dict.fromkeys(labels)), DESCRIPTION_LENGTH_MAX)
    if entry.kind in ("counter", "histogram"):
        return "did not grow" if not found or all(not each.series.value.any() for each in found) else "grew steadily"
    values = sorted({float(each.series.value[-1]) for each in found})
    if not values:
        return ""
    return " to ".join(_amount(value, entry.unit) for value in dict.fromkeys((values[0], values[-1])))


def _amount(value: float, unit: str) -> str:
    """8.55e9 bytes -> "8.55 GB"; 28232 ports stay what they are."""
    if unit == "ratio":
        return format_ratio(value)
    if unit == "s":
        return format_duration(value)
    if unit not in PREFIXED:
        return f"{value:.6g}" if unit == "1" else f"{value:.6g} {unit}"
    power = min(int(math.log10(abs(value)) // 3), len(PREFIXES) - 1) if abs(value) >= 1 else 0
    return f"{significant(value / 1000**power)} {PREFIXES[power]}{PREFIXED[unit]}"


def _chart(
    key: str, title: str, reading: str, axis: str, unit: Unit, found: list[Drawn], points_max: int
) -> dict[str, Any]:
    t_s, columns = align([drawn.series for drawn in found])
    kept = np.unique(np.concatenate([thin(column, points_max) for column in columns]))
    if len(kept) > 2 * points_max:  # many lines that each keep other instants
        kept = kept[
            thin(
                np.nanmax(np.where(np.isfinite(np.vstack(columns)), np.vstack(columns), -np.inf), axis=0)[kept],
                points_max,
            )
        ]
    lines: list[dict[str, Any]] = []
    for i, (drawn, column) in enumerate(zip(found, columns, strict=True)):
        made = line(visible(drawn.label, LABEL_LENGTH_MAX), column[kept], COLOURS[i % len(COLOURS)])
        dash = DASHES[i // len(COLOURS) % len(DASHES)]
        lines.append({**made, **({"dash": list(dash)} if dash else {}), **({"thin": True} if len(found) > 4 else {})})
    return chart(key, title, reading, axis, unit, t_s[kept], lines)


def _last(view: RunView, name: str) -> float | None:
    """Last value of a gauge, the largest of its label sets."""
    values = [child.series.value[-1] for child in view.children(name) if len(child.series)]
    return float(max(values)) if values else None
