"""The shape of one chart as plain lists, ready for JSON: {key, title, reading, axis, unit, x, series, limits, log}.

A value that was not measured is None, never NaN: JSON has none. Numbers are rounded to what a screen can show.
"""

import math
from typing import Any

import numpy as np

from pinchpoint.model import Verdict
from pinchpoint.report.literal import visible

SIGNIFICANT_DIGITS = 5
INSTANT_DIGITS = 7
"""Milliseconds within a run of some hours."""
LABEL_LENGTH_MAX = 60
COLOURS = ("first", "second", "third", "fourth", "fifth")
"""Names of the style sheet's series colours, told apart by people with any kind of colour vision (Okabe & Ito 2008)."""


def line(label: str, values: np.ndarray, colour: str, *, dashed: bool = False) -> dict[str, Any]:
    """One line. values: shape (n,), NaN where unknown; colour: a name from COLOURS, or muted, ink or bad."""
    drawn: dict[str, Any] = {"label": label, "values": [tidy(value) for value in values.tolist()], "colour": colour}
    return {**drawn, "dashed": True} if dashed else drawn


def chart(
    key: str, title: str, reading: str, axis: str, unit: str, x: np.ndarray, series: list[dict[str, Any]]
) -> dict[str, Any]:
    """One chart without limit lines and on a linear axis. axis: label with no unit; unit: s, ratio, rate or count."""
    return {
        "key": key,
        "title": title,
        "reading": reading,
        "axis": axis,
        "unit": unit,
        "x": [tidy(value, INSTANT_DIGITS) for value in x.tolist()],
        "series": series,
        "limits": [],
        "log": False,
    }


def tidy(value: float | None, digits: int = SIGNIFICANT_DIGITS) -> float | None:
    """Rounded to what a screen can show, so that the page stays small; None for NaN and infinity."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def limits(verdict: Verdict, metric: str) -> list[dict[str, Any]]:
    """Limit lines of the SLOs on one metric."""
    return [
        {"value": slo.limit, "label": visible(slo.text, LABEL_LENGTH_MAX)}
        for slo in verdict.slos
        if slo.metric == metric
    ]
