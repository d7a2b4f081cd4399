"""The rate ruler: one line from zero to the highest rate tried, with every step on it and the capacity marked.

Plain SVG made here, so that the most important picture of the report also shows without JavaScript.
"""

from typing import Any

from pinchpoint.model import Verdict
from pinchpoint.report import words

MARGIN_RATIO = 1.08
"""Room beyond the highest rate, so that its mark is not cut."""
WIDTH = 1000.0
ROWS_BASE, ROWS_HEIGHT, ROW_SPACING = 44.0, 36.0, 17.0
"""Pixels from the top to the lowest row of marks, from there to the highest, and between two rows with room."""
TICKS = 8


def rate_ruler(verdict: Verdict) -> dict[str, Any] | None:
    """Positions 0 to 1000 for the template: {"steps", "ticks", "lower", "upper"}; None without a step at a fixed rate.

    Steps at one rate are stacked (`y`, pixels from the top). `lower` and `upper` bound the capacity; None = open.
    """
    stages = [stage for stage in verdict.stages if stage.rate_rps and stage.kind in words.LOADED_KINDS]
    if not stages:
        return None
    end_rps = max(stage.rate_rps or 0.0 for stage in stages) * MARGIN_RATIO

    def at(rate_rps: float | None) -> float | None:
        return None if rate_rps is None else round(rate_rps / end_rps * WIDTH, 1)

    rows: dict[float, int] = {}
    steps = []
    for stage in stages:
        rate_rps = stage.rate_rps or 0.0
        rows[rate_rps] = rows.get(rate_rps, -1) + 1
        decision = words.decision_of(stage, verdict.slos)
        steps.append({"x": at(rate_rps), "row": rows[rate_rps], "decision": decision, "label": words.offered(rate_rps)})
    spacing = min(ROW_SPACING, ROWS_HEIGHT / max(*rows.values(), 1))
    for step in steps:
        step["y"] = round(ROWS_BASE - spacing * step["row"], 1)
    capacity = verdict.capacity
    return {
        "steps": steps,
        "ticks": [(at(value), _tick_text(value)) for value in _ticks(end_rps)],
        "lower": at(capacity.lower_rps) if capacity else None,
        "upper": at(capacity.upper_rps) if capacity else None,
        "figure": words.capacity_figure(capacity),
    }


def _ticks(end: float) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from 0 to `end`, at most TICKS steps."""
    step = 10.0 ** (len(str(int(end))) - 3) if end >= 1 else 1e-3
    while True:
        for factor in (1, 2, 5):
            if end / (step * factor) <= TICKS:
                return [i * step * factor for i in range(int(end / (step * factor)) + 1)]
        step *= 10


def _tick_text(value: float) -> str:
    return f"{value:.6g}"
