"""Charts over the offered load: latency quantiles, goodput and attainment of every judged step."""

from typing import Any

from pinchpoint.model import StageResult, Verdict
from pinchpoint.report import words
from pinchpoint.report.chart import COLOURS, LABEL_LENGTH_MAX, limits, tidy
from pinchpoint.report.literal import visible
from pinchpoint.series import RunView

WEIGHTY_COUNT = 40
"""Requests from which a step's p95 is known at all (stats.MIN_COUNT_FOR_QUANTILE); smaller steps get smaller marks."""


def curve_charts(view: RunView, verdict: Verdict) -> list[dict[str, Any]]:
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
        "x": [tidy(x_of[stage.index]) for stage in stages],
        "x_label": x_label,
        "marks": [words.decision_of(stage, verdict.slos) for stage in stages],
        "on_line": [stage.index in largest for stage in stages],
        "weights": [stage.requests >= WEIGHTY_COUNT for stage in stages],
        "names": [visible(f"{stage.kind}, {stage.requests} requests", LABEL_LENGTH_MAX) for stage in stages],
        "capacity": [verdict.capacity.lower_rps, verdict.capacity.upper_rps] if verdict.capacity and rated else None,
        "limits": [],
        "log": False,
    }

    def points(label: str, values: list[float | None], colour: str, **extra: Any) -> dict[str, Any]:
        return {"label": label, "values": [tidy(value) for value in values], "colour": colour, **extra}

    def latency(key: str, title: str, reading: str, quantiles: str) -> dict[str, Any]:
        picked = [getattr(stage, quantiles) for stage in stages]
        promised = next((f"p{100 * slo.attainment_ratio:g}" for slo in verdict.slos if slo.metric == key), "p95")
        series = []
        for name, colour in (("p50", "fifth"), ("p90", "third"), ("p95", "first"), ("p99", "fourth")):
            if name in ("p50", "p95", promised):
                series.append(points(name, [q.get(name) for q in picked], colour, thin=name == "p50"))
                if (key, name) == ("ttft", "p95"):
                    series[-1]["interval"] = [_interval(stage) for stage in stages]
        extra = {"key": f"curve-{key}", "title": title, "reading": reading, "axis": key.upper(), "unit": "s"}
        return {**base, **extra, "series": series, "limits": limits(verdict, key), "log": key == "ttft"}

    throughput = [
        points("goodput", [stage.goodput_rps for stage in stages], "first"),
        points("completed", [stage.completed_rps for stage in stages], "fifth", thin=True),
    ]
    if rated:
        throughput.append(points("offered", [stage.rate_rps for stage in stages], "muted", dashed=True, bare=True))
    attainment = [
        points(
            visible(slo.text, LABEL_LENGTH_MAX),
            [_share(stage.attainment.get(slo.text)) for stage in stages],
            COLOURS[i % len(COLOURS)],
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
    return [tidy(interval[0]), tidy(interval[1])] if interval else None


def _share(counts: tuple[int, int] | None) -> float | None:
    return counts[0] / counts[1] if counts and counts[1] else None
