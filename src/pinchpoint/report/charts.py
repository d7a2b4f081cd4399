"""Chart data for the HTML report: what is drawn, in which unit, with which limit lines. Plain lists, ready for JSON.

Not for drawing (assets/report.js) and not for judging. A long run is thinned so that every spike survives: each bucket
of time keeps its smallest and its largest value. A hole in the telemetry stays a hole in the line.
"""

import math
from typing import Any

import msgspec
import numpy as np

from pinchpoint.clock import NS_PER_S
from pinchpoint.model import Stage, StageResult, Verdict
from pinchpoint.report import words
from pinchpoint.report.literal import visible
from pinchpoint.series import RunView, Series

POINTS_MAX = 1600
"""Points per line: about one per device pixel of a wide chart."""
BIN_MIN_S = 3.0
"""Shortest bin for rates: at a few requests per second shorter bins show counting noise only."""
BINS_MAX = 400
ROLLING_S = 6.0
"""Window of the rolling median over single requests."""
STALE_PERIODS = 3.0
"""A reading older than this many sampling periods is a hole, not a value."""
SIGNIFICANT_DIGITS = 5
LABEL_LENGTH_MAX = 60
WEIGHTY_COUNT = 40
"""Requests from which a step's p95 is known at all (stats.MIN_COUNT_FOR_QUANTILE); smaller steps get smaller marks."""


class Panel(msgspec.Struct, frozen=True):
    """One chart of the timeline that shows catalogued series: (series, label) pairs in one unit."""

    key: str
    title: str
    reading: str
    axis: str
    unit: str
    series: tuple[tuple[str, str], ...]


PANELS = (
    Panel(
        "engine",
        "Requests inside the engine",
        "A running line that stays flat while the waiting line climbs is a full batch: admission is the bottleneck.",
        "requests",
        "count",
        (("engine.requests_running", "running"), ("engine.requests_waiting", "waiting")),
    ),
    Panel(
        "kv",
        "KV cache in use",
        "Near 100 % the engine has to refuse or preempt sequences; far below, memory is not the limit.",
        "share used",
        "ratio",
        (("engine.kv_used_ratio", "KV cache"),),
    ),
    Panel(
        "preemptions",
        "Preemptions",
        "Each one is work thrown away and done again. The line should lie at zero.",
        "per second",
        "rate",
        (("engine.preemptions_total", "preemptions"),),
    ),
    Panel(
        "gpu",
        "GPU activity",
        "Tensor activity near its ceiling means compute-bound; memory activity near its ceiling, bandwidth-bound.",
        "share active",
        "ratio",
        (
            ("gpu.sm_active_ratio", "SM"),
            ("gpu.tensor_active_ratio", "tensor cores"),
            ("gpu.dram_active_ratio", "memory"),
            ("gpu.util_ratio", "utilisation"),
        ),
    ),
    Panel(
        "server",
        "CPU of the service",
        "A thread that sits at one core is a serial bottleneck, whatever the total says.",
        "cores",
        "count",
        (
            ("server.cpu_cores", "all processes"),
            ("server.listener_cpu_cores", "listening process"),
            ("server.thread_cpu_max_cores", "busiest thread"),
        ),
    ),
    Panel(
        "null",
        "Latency of a request that needs no model",
        "When this rises with the load, the front of the service is busy before any model work begins.",
        "latency",
        "s",
        (("probe.null_request_s", "null request"),),
    ),
    Panel(
        "host",
        "CPU of the host under test",
        "As seen from the machine that ran the load.",
        "share busy",
        "ratio",
        (
            ("host.cpu_used_ratio", "all cores"),
            ("host.cpu_core_max_ratio", "busiest core"),
            ("host.cpu_steal_ratio", "stolen"),
        ),
    ),
    Panel(
        "client",
        "Load generator",
        "Must stay far from 100 %: a busy generator measures itself.",
        "share busy",
        "ratio",
        (("client.loop_busy_ratio", "event loop busy"),),
    ),
)


def chart_data(view: RunView, verdict: Verdict) -> dict[str, Any]:
    """Everything the page draws: {"stages", "duration_s", "curve", "timeline", "missing"}.

    A chart is {key, title, reading, axis, unit, x, series, limits, log, ...}; a value that was not measured is None.
    """
    duration_s = _duration_s(view)
    judged = {stage.index: words.decision_of(stage, verdict.slos) for stage in verdict.stages}
    timeline = [*_request_charts(view, verdict, duration_s)]
    missing: list[str] = []
    for panel in PANELS:
        chart = _telemetry_chart(view, panel)
        if chart is None:
            missing.append(panel.title)
        else:
            timeline.append(chart)
    return {
        "duration_s": duration_s,
        "stages": [_stage_band(view, stage, judged.get(stage.index)) for stage in view.stages],
        "curve": _curve_charts(view, verdict),
        "timeline": timeline,
        "missing": missing,
    }


def _duration_s(view: RunView) -> float:
    ends = [stage.drained_ns for stage in view.stages]
    return _tidy((max(ends) - view.t0_ns) / NS_PER_S) or 1.0 if ends else 1.0


def _stage_band(view: RunView, stage: Stage, decision: str | None) -> dict[str, Any]:
    return {
        "t0": _tidy((stage.t0_ns - view.t0_ns) / NS_PER_S),
        "t1": _tidy((stage.t1_ns - view.t0_ns) / NS_PER_S),
        "label": words.stage_label(stage.name, stage.rate_rps),
        "short": f"{words.offered(stage.rate_rps)}/s" if stage.rate_rps is not None else visible(stage.name, 12),
        "kind": stage.kind,
        "decision": decision or "none",
    }


# -- load curve ------------------------------------------------------------------------------------------------------


def _curve_charts(view: RunView, verdict: Verdict) -> list[dict[str, Any]]:
    """Charts over the offered rate, or over the concurrency when no stage had a rate. Empty with no judged stage."""
    concurrency = {stage.index: stage.concurrency for stage in view.stages}
    stages = [stage for stage in verdict.stages if stage.kind in words.LOADED_KINDS and stage.requests]
    rated = [stage for stage in stages if stage.rate_rps is not None]
    if rated:
        stages, x_of, x_label = rated, {s.index: s.rate_rps for s in rated}, "offered rate (req/s)"
    else:
        stages = [stage for stage in stages if concurrency.get(stage.index)]
        x_of, x_label = {s.index: concurrency[s.index] for s in stages}, "concurrent streams"
    if not stages:
        return []
    stages = sorted(stages, key=lambda s: (x_of[s.index] or 0, s.index))
    largest = _largest_per_rate(stages, x_of)
    base = {
        "x": [_tidy(x_of[stage.index]) for stage in stages],
        "x_label": x_label,
        "marks": [words.decision_of(stage, verdict.slos) for stage in stages],
        "on_line": [stage.index in largest for stage in stages],
        "weights": [stage.requests >= WEIGHTY_COUNT for stage in stages],
        "names": [visible(f"{stage.kind}, {stage.requests} requests", LABEL_LENGTH_MAX) for stage in stages],
        "capacity": [verdict.capacity.lower_rps, verdict.capacity.upper_rps] if verdict.capacity and rated else None,
        "limits": [],
        "log": False,
    }

    def line(label: str, values: list[float | None], colour: str, **extra: Any) -> dict[str, Any]:
        return {"label": label, "values": [_tidy(value) for value in values], "colour": colour, **extra}

    def latency(key: str, title: str, reading: str, quantiles: str) -> dict[str, Any]:
        picked = [getattr(stage, quantiles) for stage in stages]
        promised = next((f"p{100 * slo.attainment_ratio:g}" for slo in verdict.slos if slo.metric == key), "p95")
        series = []
        for name, colour in (("p50", "fifth"), ("p90", "third"), ("p95", "first"), ("p99", "fourth")):
            if name in ("p50", "p95", promised):
                series.append(line(name, [q.get(name) for q in picked], colour, thin=name == "p50"))
                if (key, name) == ("ttft", "p95"):
                    series[-1]["interval"] = [_interval(stage) for stage in stages]
        extra = {"key": f"curve-{key}", "title": title, "reading": reading, "axis": key.upper(), "unit": "s"}
        return {**base, **extra, "series": series, "limits": _limits(verdict, key), "log": key == "ttft"}

    throughput = [
        line("goodput", [stage.goodput_rps for stage in stages], "first"),
        line("completed", [stage.completed_rps for stage in stages], "fifth", thin=True),
    ]
    if rated:
        throughput.append(line("offered", [stage.rate_rps for stage in stages], "muted", dashed=True, bare=True))
    colours = ("first", "second", "third", "fourth", "fifth")
    attainment = [
        line(
            visible(slo.text, LABEL_LENGTH_MAX),
            [_share(stage.attainment.get(slo.text)) for stage in stages],
            colours[i % len(colours)],
        )
        for i, slo in enumerate(verdict.slos)
    ]
    targets = sorted({slo.attainment_ratio for slo in verdict.slos})
    charts = [
        latency("ttft", "Time to first token", "Flat while there is room, then a wall: that is the queue.", "ttft_s"),
        latency(
            "tpot", "Time per output token", "How much slower each answer streams as more share the batch.", "tpot_s"
        ),
        {
            **base,
            "key": "curve-goodput",
            "title": "Goodput",
            "reading": "Requests that met every SLO. Where the line leaves the dashed one, load turns into misses.",
            "axis": "req/s",
            "unit": "rate",
            "series": throughput,
        },
    ]
    if attainment:
        charts.append(
            {
                **base,
                "key": "curve-attainment",
                "title": "SLO attainment",
                "reading": "Share of the requests that met each SLO. A step passes above its target line.",
                "axis": "share met",
                "unit": "ratio",
                "series": attainment,
                "limits": [{"value": target, "label": f"target {100 * target:g}%"} for target in targets],
            }
        )
    return [chart for chart in charts if any(v is not None for s in chart["series"] for v in s["values"])]


def _largest_per_rate(stages: list[StageResult], x_of: dict[int, Any]) -> set[int]:
    """Index of the step with most requests at each rate: lines join these, the others are marks of their own."""
    best: dict[Any, StageResult] = {}
    for stage in stages:
        rival = best.get(x_of[stage.index])
        if rival is None or stage.requests > rival.requests:
            best[x_of[stage.index]] = stage
    return {stage.index for stage in best.values()}


def _interval(stage: StageResult) -> list[float | None] | None:
    interval = stage.ttft_p95_interval_s
    return [_tidy(interval[0]), _tidy(interval[1])] if interval else None


def _share(counts: tuple[int, int] | None) -> float | None:
    return counts[0] / counts[1] if counts and counts[1] else None


def _limits(verdict: Verdict, metric: str) -> list[dict[str, Any]]:
    return [
        {"value": slo.limit, "label": visible(slo.text, LABEL_LENGTH_MAX)}
        for slo in verdict.slos
        if slo.metric == metric
    ]


# -- timeline: requests ----------------------------------------------------------------------------------------------


def _request_charts(view: RunView, verdict: Verdict, duration_s: float) -> list[dict[str, Any]]:
    r = view.requests
    width_s = max(BIN_MIN_S, duration_s / BINS_MAX)
    edges_s = np.arange(0.0, duration_s + width_s, width_s)
    middle_s = edges_s[:-1] + width_s / 2

    def per_second(times_s: np.ndarray) -> np.ndarray:
        return np.histogram(times_s[np.isfinite(times_s)], edges_s)[0] / width_s

    failed = ~np.isin(r.status.astype(str), ("ok", "cancelled"))
    ended_s = np.where(np.isfinite(r.end_s), r.end_s, r.scheduled_s)
    planned = np.full(len(middle_s), np.nan)
    for stage in view.stages:
        if stage.rate_rps is not None:
            inside = (middle_s >= (stage.t0_ns - view.t0_ns) / NS_PER_S) & (
                middle_s < (stage.t1_ns - view.t0_ns) / NS_PER_S
            )
            planned[inside] = stage.rate_rps
    charts = [
        _chart(
            "requests",
            "Request rate",
            f"Offered against completed, over {width_s:.2g} s. Flat completions under a rising offer: saturation.",
            "req/s",
            "rate",
            middle_s,
            [
                {**_line("offered", planned, "muted", dashed=True), "stepped": True},
                _line("completed", per_second(r.end_s[r.status == "ok"]), "first"),
                *([_line("failed", per_second(ended_s[failed]), "bad")] if failed.any() else []),
            ],
        )
    ]
    grid_s = np.linspace(0.0, duration_s, min(POINTS_MAX, max(2, int(duration_s / 0.25))))
    charts.append(
        _chart(
            "in-flight",
            "Requests in flight",
            "Sent and not yet answered. A climb within a step is a queue that the service cannot work off.",
            "requests",
            "count",
            grid_s,
            [_line("in flight", view.in_flight(grid_s).astype(float), "first")],
        )
    )
    scatters = (
        ("ttft", "Time to first token", r.ttft_s, "Each dot is one request, placed at the instant it was due."),
        ("tpot", "Time per output token", r.tpot_s, "Mean gap between the tokens of one answer, one dot per request."),
    )
    for key, title, values, reading in scatters:
        if np.isfinite(values).any():
            charts.append(_scatter(verdict, key, title, reading, r.scheduled_s, values))
    if len(view.token_times_s):
        charts.append(
            _chart(
                "tokens",
                "Output tokens",
                "Events with text received per second: the work rate of the service. Its plateau is the ceiling.",
                "tokens/s",
                "rate",
                middle_s,
                [_line("tokens", per_second(view.token_times_s), "third")],
            )
        )
    if failed.any():
        colours = ("bad", "fourth", "fifth", "second", "third", "first")
        statuses = sorted(set(r.status[failed].astype(str)))
        charts.append(
            _chart(
                "errors",
                "Failed requests",
                "By kind; rejected means HTTP 429 or 503.",
                "req/s",
                "rate",
                middle_s,
                [
                    _line(status, per_second(ended_s[r.status == status]), colours[i % len(colours)])
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
    kept = thin(t_s, values, POINTS_MAX)
    if len(kept) < len(t_s):
        reading += f" {len(kept):,} of {len(t_s):,} are drawn, with every extreme among them."
    series = [
        {**_line("request", values[kept], "first"), "dots": True},
        _line("rolling median", median[kept], "ink"),
    ]
    chart = _chart(key, title, reading, key.upper(), "s", t_s[kept], series)
    spread = float(values.max()) / max(float(np.median(values)), 1e-9)
    return {**chart, "limits": _limits(verdict, key), "log": spread > 10.0}


def _rolling_median(t_s: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Median over the ROLLING_S before each instant; NaN with fewer than six values."""
    from pinchpoint.stats import quantile

    starts = np.searchsorted(t_s, t_s - ROLLING_S)
    step = max(1, len(t_s) // POINTS_MAX)
    result = np.full(len(t_s), np.nan)
    for i in range(0, len(t_s), step):
        median = quantile(values[starts[i] : i + 1], 0.5)
        result[i : i + step] = np.nan if median is None else median
    return result


# -- timeline: telemetry ---------------------------------------------------------------------------------------------


def _telemetry_chart(view: RunView, panel: Panel) -> dict[str, Any] | None:
    """One chart of the catalogued series that were read in this run; None when none of them was."""
    colours = ("first", "second", "third", "fourth", "fifth")
    found: list[tuple[str, str, Series]] = []
    for i, (name, label) in enumerate(panel.series):
        series = view.rate_series(name) if panel.unit == "rate" else view.series(name)
        if len(series):
            found.append((label, colours[i % len(colours)], series))
    if not found:
        return None
    t_s, columns = align([series for _, _, series in found])
    lines = [_line(label, column, colour) for (label, colour, _), column in zip(found, columns, strict=True)]
    kept = np.unique(np.concatenate([thin(t_s, column, POINTS_MAX) for column in columns]))
    for line in lines:
        line["values"] = [line["values"][i] for i in kept]
    chart = _chart(panel.key, panel.title, panel.reading, panel.axis, panel.unit, t_s[kept], lines)
    slots = view.facts.limits.max_sequences
    if panel.key == "engine" and slots is not None:
        chart["limits"] = [{"value": slots, "label": f"limit {slots}"}]
    return {**chart, "series_names": [series.name for _, _, series in found]}


def align(series: list[Series]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Several series on the union of their instants. Each value is the newest reading, NaN once that is stale.

    Extra instants are added where a reading turns stale, so that a line ends there instead of reaching across the hole.
    """
    ages_s = [STALE_PERIODS * float(np.median(np.diff(s.t_s))) if len(s) > 1 else math.inf for s in series]
    instants = [s.t_s for s in series]
    for s, age_s in zip(series, ages_s, strict=True):
        holes = np.flatnonzero(np.diff(s.t_s) > age_s)
        instants.append(s.t_s[holes] + age_s * 1.001)
    t_s = np.unique(np.concatenate(instants))
    columns = []
    for s, age_s in zip(series, ages_s, strict=True):
        newest = np.searchsorted(s.t_s, t_s, side="right") - 1
        value = s.value[np.maximum(newest, 0)].astype(float)
        value[(newest < 0) | (t_s - s.t_s[np.maximum(newest, 0)] > age_s)] = np.nan
        columns.append(value)
    return t_s, columns


def thin(t_s: np.ndarray, values: np.ndarray, points_max: int) -> np.ndarray:
    """Indices to keep, ascending, about `points_max` of them: both extremes of each bucket and the edges of holes."""
    count = len(t_s)
    if count <= points_max:
        return np.arange(count)
    bucket = (np.arange(count) * (points_max // 2)) // count
    known = np.isfinite(values)
    order = np.lexsort((np.where(known, values, np.inf), bucket))
    first = np.flatnonzero(np.diff(bucket[order], prepend=-1))
    smallest = order[first]
    order = np.lexsort((np.where(known, -values, np.inf), bucket))
    largest = order[first]
    holes = np.flatnonzero(~known & np.roll(known, 1))
    return np.unique(np.concatenate([[0, count - 1], smallest, largest, holes[: points_max // 8]]))


# -- shape -----------------------------------------------------------------------------------------------------------


def _line(label: str, values: np.ndarray, colour: str, *, dashed: bool = False) -> dict[str, Any]:
    line: dict[str, Any] = {"label": label, "values": [_tidy(value) for value in values.tolist()], "colour": colour}
    return {**line, "dashed": True} if dashed else line


def _chart(
    key: str, title: str, reading: str, axis: str, unit: str, x: np.ndarray, series: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "key": key,
        "title": title,
        "reading": reading,
        "axis": axis,
        "unit": unit,
        "x": [_tidy(value, 7) for value in x.tolist()],
        "series": series,
        "limits": [],
        "log": False,
    }


def _tidy(value: float | None, digits: int = SIGNIFICANT_DIGITS) -> float | None:
    """Rounded to what a screen can show, so that the page stays small; None for NaN and infinity."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")
