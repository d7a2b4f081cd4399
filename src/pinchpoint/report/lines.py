"""From the readings of a series to lines of a chart: which label sets share a line, and what a line is called.

A gauge is drawn as it is, a counter as its increase per second, a histogram as the mean of what it counted. Label sets
of several machines are never added up: each machine has its line.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pinchpoint.growth import growth, rate_between
from pinchpoint.report.literal import visible
from pinchpoint.report.panels import Line
from pinchpoint.report.thinning import align
from pinchpoint.series import Child, RunView, Series

EACH_MAX = 16
"""Lines of one chart that a person can follow; more label sets become smallest, median and largest."""
MACHINE_LINES_MAX = 6
"""Lines of several machines in one chart: beyond, one line says the largest of them."""
LABEL_LENGTH_MAX = 40
BINS_MAX = 120
BIN_MIN_S = 3.0
"""Means of a histogram are taken over bins: between two readings a page has seldom counted enough."""
MACHINE_LABELS = ("host", "replica")
TELLING_LABELS = ("host", "replica", "gpu", "nic", "worker", "engine", "path", "connection", "reason", "cpu", "device")
"""Which label tells children apart is looked for in this order, then by the alphabet."""
WORDS = {"gpu": "GPU {}", "worker": "worker {}", "engine": "engine {}", "cpu": "core {}", "replica": "replica {}"}
"""How the value of a label is written where it says little alone."""
NATURAL_DIGITS = 12


class Drawn(NamedTuple):
    """One line: its name and its readings, shape (n,), holes left out."""

    label: str
    series: Series


def drawn_lines(view: RunView, line: Line, series_count: int) -> list[Drawn]:
    """The lines of one series of a panel; empty when it was not read. series_count: how many the panel has; with more
    than one each line says which it is."""
    machines_max = MACHINE_LINES_MAX // series_count
    if line.over is not None:
        return _named(line.label, [quotient(view, line.series, line.over)])
    entry = view.catalog.entry(line.series)
    kind = entry.kind if entry is not None else "gauge"
    if kind == "histogram":
        return _named(line.label, [histogram_mean(view, line.series)])
    if line.shown == "together":
        return _together(view, line, kind, machines_max)
    children = [_child_line(child, kind) for child in view.children(line.series)]
    children = [child for child in children if len(child.series)]
    if not children:
        return []
    if line.shown == "largest":
        return _per_machine(line.label, children, "largest", machines_max)
    return each_line(children, line.label if series_count > 1 or len(children) == 1 else "", line.by)


def each_line(children: Sequence[Child], label: str, by: str | None = None) -> list[Drawn]:
    """A line per label set, or per value of the label `by`; beyond EACH_MAX smallest, median and largest."""
    named: dict[str, list[Series]] = {}
    if by is not None:
        for child in children:
            named.setdefault(child.labels.get(by, ""), []).append(child.series)
    else:
        for name, child in zip(_names(children), children, strict=True):
            named.setdefault(name, []).append(child.series)
    if len(named) > EACH_MAX:
        spread = f"of {len(named)}" + (f", {label}" if label else "")
        return _spread(spread, [_combined(each, "largest") for each in named.values()])
    return [
        Drawn(visible(_label(label, name), LABEL_LENGTH_MAX), _combined(each))
        for name, each in sorted(named.items(), key=lambda pair: _natural(pair[0]))
    ]


def _label(label: str, name: str) -> str:
    if not label or name.startswith(label):
        return name or "value"
    return f"{label}, {name}" if name else label


def histogram_mean(view: RunView, name: str) -> Series:
    """Mean of the observations in bins of a few seconds; a bin without one is left out."""
    return quotient(view, f"{name}_sum", f"{name}_count")


def quotient(view: RunView, above: str, below: str) -> Series:
    """Growth of one counter over that of another, in bins; bins in which the lower one did not grow are left out."""
    unit = view.series(above, (0.0, -1.0)).unit
    top, bottom = view.rate_series(above), view.rate_series(below)
    if not len(top) or not len(bottom):
        return Series(above, unit, "gauge", np.empty(0), np.empty(0))
    end_s = float(max(top.t_s[-1], bottom.t_s[-1]))
    width_s = max(BIN_MIN_S, end_s / BINS_MAX, 2 * float(np.median(np.diff(top.t_s))) if len(top) > 1 else 0.0)
    edges_s = np.arange(min(0.0, float(top.t_s[0])), end_s + width_s, width_s)
    grown = [_grown(each, edges_s) for each in (top, bottom)]
    known = grown[1] > 0
    middle_s = (edges_s[:-1] + edges_s[1:]) / 2
    return Series(above, unit, "gauge", middle_s[known], grown[0][known] / grown[1][known])


def _grown(rate: Series, edges_s: np.ndarray) -> np.ndarray:
    """Amount in each bin, of rates that hold since the reading before; a reading's step counts where it ended."""
    usual_s = float(np.median(np.diff(rate.t_s))) if len(rate) > 1 else 1.0
    step_s = np.diff(rate.t_s, prepend=rate.t_s[0] - usual_s)
    return np.histogram(rate.t_s, edges_s, weights=rate.value * np.minimum(step_s, 3 * usual_s))[0]


def child_rates(child: Child) -> Child:
    """The same label set with its counter as increase per second."""
    series = child.series
    steps = growth(series.t_s, np.zeros(len(series), int), series.value, [0])
    t_s, value = rate_between(steps)
    return child._replace(series=Series(series.name, series.unit + "/s", "gauge", t_s, value))


def _child_line(child: Child, kind: str) -> Child:
    return child_rates(child) if kind == "counter" else child


def _together(view: RunView, line: Line, kind: str, machines_max: int) -> list[Drawn]:
    children = view.children(line.series)
    if len({_machine(child) for child in children}) > 1:
        return _per_machine(line.label, [_child_line(child, kind) for child in children], "together", machines_max)
    return _named(line.label, [view.rate_series(line.series) if kind == "counter" else view.series(line.series)])


def _per_machine(label: str, children: Sequence[Child], how: str, machines_max: int) -> list[Drawn]:
    machines: dict[str, list[Series]] = {}
    for child in children:
        if len(child.series):
            machines.setdefault(_machine(child), []).append(child.series)
    if not machines:
        return []
    unit = next(iter(machines.values()))[0].unit
    how = "largest" if how == "largest" or unit == "ratio" else "together"
    combined = {machine: _combined(each, how) for machine, each in machines.items()}
    if len(combined) == 1:
        return _named(label, list(combined.values()))
    if len(combined) > machines_max:
        return _named(f"{label}, largest of {len(combined)}", [_combined(list(combined.values()), "largest")])
    return [
        Drawn(visible(f"{label}, {machine or 'here'}", LABEL_LENGTH_MAX), series)
        for machine, series in sorted(combined.items(), key=lambda pair: _natural(pair[0]))
    ]


def _machine(child: Child) -> str:
    return ", ".join(WORDS.get(key, "{}").format(child.labels[key]) for key in MACHINE_LABELS if child.labels.get(key))


def _named(label: str, found: list[Series]) -> list[Drawn]:
    return [Drawn(label, series) for series in found if len(series)]


def _names(children: Sequence[Child]) -> list[str]:
    """What tells each label set from the others, in as few labels as will do; the source where labels do not."""
    keys = {key for child in children for key in child.labels}
    ordered = [key for key in TELLING_LABELS if key in keys] + sorted(keys - set(TELLING_LABELS))
    chosen: list[str] = []
    groups = 1
    for key in ordered:
        if groups == len(children):
            break
        finer = len({tuple(child.labels.get(each, "") for each in (*chosen, key)) for child in children})
        if finer > groups:
            chosen.append(key)
            groups = finer
    by_source = groups < len(children) and len({child.source for child in children}) > 1
    return [", ".join(_words(child, chosen) + ([child.source] if by_source else [])) for child in children]


def _words(child: Child, keys: Sequence[str]) -> list[str]:
    """The values of labels as they are written; a reading of this machine has no label that says so."""
    found = []
    for key in keys:
        if value := child.labels.get(key):
            found.append(WORDS.get(key, "{}").format(value))
        elif key == "host":
            found.append("here")
    return found


def _combined(found: Sequence[Series], how: str = "largest") -> Series:
    if len(found) == 1:
        return found[0]
    t_s, columns = align(list(found))
    stacked = np.vstack(columns)
    known = np.isfinite(stacked).any(axis=0)
    stacked = stacked[:, known]
    value = np.nanmax(stacked, axis=0) if how == "largest" else np.nansum(stacked, axis=0)
    return Series(found[0].name, found[0].unit, found[0].kind, t_s[known], value)


def _spread(label: str, found: Sequence[Series]) -> list[Drawn]:
    t_s, columns = align(list(found))
    stacked = np.vstack(columns)
    known = np.isfinite(stacked).any(axis=0)
    stacked = stacked[:, known]
    first = found[0]
    ways = (("largest", np.nanmax), ("median", np.nanmedian), ("smallest", np.nanmin))
    return [
        Drawn(
            visible(f"{name} {label}", LABEL_LENGTH_MAX),
            Series(first.name, first.unit, first.kind, t_s[known], way(stacked, axis=0)),
        )
        for name, way in ways
    ]


def _natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """GPU 2 before GPU 10."""
    parts: list[tuple[int, int, str]] = []
    digits = ""
    for character in [*text, ""]:
        if character.isascii() and character.isdigit() and len(digits) < NATURAL_DIGITS:
            digits += character
            continue
        if digits:
            parts.append((0, int(digits), ""))
            digits = ""
        if character:
            parts.append((1, 0, character))
    return tuple(parts)
