"""Charts over the time of the run of what requests went through."""

from typing import Any

import numpy as np

from pinchpoint.clock import NS_PER_S
from pinchpoint.model import Verdict
from pinchpoint.report.chart import chart, limits, line
from pinchpoint.report.thinning import thin
from pinchpoint.series import RunView
from pinchpoint.slo import WITHDRAWN_STATUSES
from pinchpoint.stats import quantile

POINTS_MAX = 1600
"""Points per line: about one per device pixel of a wide chart."""
BIN_MIN_S = 3.0
"""Shortest bin for rates: at a few requests per second shorter bins show counting noise only."""
BINS_MAX = 400
IN_FLIGHT_PERIOD_S = 0.25
LOG_SPREAD = 10.0
"""Latencies whose largest is this many times the median are drawn on a logarithmic axis."""
ROLLING_S = 6.0
"""Window of the rolling median over single requests."""


def request_charts(view: RunView, verdict: Verdict, duration_s: float) -> list[dict[str, Any]]:
    r = view.requests
    width_s = max(BIN_MIN_S, duration_s / BINS_MAX)
    edges_s = np.arange(0.0, duration_s + width_s, width_s)
    middle_s = edges_s[:-1] + width_s / 2

    def per_second(times_s: np.ndarray) -> np.ndarray:
        return np.histogram(times_s[np.isfinite(times_s)], edges_s)[0] / width_s

    failed = ~np.isin(r.status.astype(str), ("ok", *WITHDRAWN_STATUSES))
    ended_s = np.where(np.isfinite(r.end_s), r.end_s, r.scheduled_s)
    planned = np.full(len(middle_s), np.nan)
    for stage in view.stages:
        if stage.rate_rps is not None:
            inside = (middle_s >= (stage.t0_ns - view.t0_ns) / NS_PER_S) & (
                middle_s < (stage.t1_ns - view.t0_ns) / NS_PER_S
            )
            planned[inside] = stage.rate_rps
    charts = [
        chart(
            "requests",
            "Request rate",
            f"Offered against completed, over {width_s:.2g} s. Flat completions under a rising offer: saturation.",
            "req/s",
            "rate",
            middle_s,
            [
                {**line("offered", planned, "muted", dashed=True), "stepped": True},
                line("completed", per_second(r.end_s[r.status == "ok"]), "first"),
                *([line("failed", per_second(ended_s[failed]), "bad")] if failed.any() else []),
            ],
        )
    ]
    grid_s = np.linspace(0.0, duration_s, min(POINTS_MAX, max(2, int(duration_s / IN_FLIGHT_PERIOD_S))))
    charts.append(
        chart(
            "in-flight",
            "Requests in flight",
            "Due and not yet answered. A climb within a step is a queue that the service cannot work off.",
            "requests",
            "count",
            grid_s,
            [line("in flight", view.in_flight(grid_s).astype(float), "first")],
        )
    )
    scatters = (
        ("ttft", "Time to first token", r.ttft_s, "Each dot is one request, placed at the instant it was due."),
        ("tpot", "Time per output token", r.tpot_s, "Mean gap between the tokens of one answer, one dot per request."),
    )
    for key, title, values, reading in scatters:
        if np.isfinite(values).any():
            charts.append(_scatter(verdict, key, title, reading, r.scheduled_s, values))
    if r.digest.tokens:
        charts.append(
            chart(
                "tokens",
                "Output tokens",
                "Output tokens received per second: the work rate of the service. Its plateau is the ceiling.",
                "tokens/s",
                "rate",
                middle_s,
                [line("tokens", np.diff(r.digest.tokens_until(edges_s)) / width_s, "third")],
            )
        )
    if failed.any():
        colours = ("bad", "fourth", "fifth", "second", "third", "first")
        statuses = sorted(set(r.status[failed].astype(str)))
        charts.append(
            chart(
                "errors",
                "Failed requests",
                "By kind; rejected means HTTP 429 or 503.",
                "req/s",
                "rate",
                middle_s,
                [
                    line(status, per_second(ended_s[r.status == status]), colours[i % len(colours)])
                    for i, status in enumerate(statuses)
                ],
            )
        )
    return charts


def _scatter(
    verdict: Verdict, key: str, title: str, reading: str, t_s: np.ndarray, values: np.ndarray
) -> dict[str, Any]:
    """Dots for single requests and their rolling median, thinned together."""
    finite = np.isfinite(values)
    t_s, values = t_s[finite], values[finite]
    median = _rolling_median(t_s, values)
    kept = thin(values, POINTS_MAX)
    if len(kept) < len(t_s):
        reading += f" {len(kept):,} of {len(t_s):,} are drawn, with every extreme among them."
    series = [
        {**line("request", values[kept], "first"), "dots": True},
        line("rolling median", median[kept], "ink"),
    ]
    drawn = chart(key, title, reading, key.upper(), "s", t_s[kept], series)
    spread = float(values.max()) / max(float(np.median(values)), 1e-9)
    return {**drawn, "limits": limits(verdict, key), "log": spread > LOG_SPREAD}


def _rolling_median(t_s: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Median over the ROLLING_S before each instant; NaN with fewer than six values."""
    starts = np.searchsorted(t_s, t_s - ROLLING_S)
    step = max(1, len(t_s) // POINTS_MAX)
    result = np.full(len(t_s), np.nan)
    for i in range(0, len(t_s), step):
        median = quantile(values[starts[i] : i + 1], 0.5)
        result[i : i + step] = np.nan if median is None else median
    return result
