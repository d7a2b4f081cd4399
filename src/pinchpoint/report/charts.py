"""Everything the page draws, gathered: stage bands, load curve, timeline, layers. assets/report.js draws it."""

from typing import Any

from pinchpoint.clock import NS_PER_S
from pinchpoint.model import Stage, Verdict
from pinchpoint.report import words
from pinchpoint.report.chart import tidy
from pinchpoint.report.curve import curve_charts
from pinchpoint.report.layers import layer_sections
from pinchpoint.report.literal import visible
from pinchpoint.report.timeline import request_charts
from pinchpoint.series import RunView


def chart_data(view: RunView, verdict: Verdict) -> dict[str, Any]:
    """Everything the page draws: {"stages", "duration_s", "curve", "timeline", "layers"}.

    A chart is {key, title, reading, axis, unit, x, series, limits, log, ...}; a value that was not measured is None.
    The layers hold charts of the telemetry; see layers.layer_sections.
    """
    duration_s = _duration_s(view)
    judged = {stage.index: words.decision_of(stage, verdict.slos) for stage in verdict.stages}
    return {
        "duration_s": duration_s,
        "stages": [_stage_band(view, stage, judged.get(stage.index)) for stage in view.stages],
        "curve": curve_charts(view, verdict),
        "timeline": request_charts(view, verdict, duration_s),
        "layers": layer_sections(view),
    }


def _duration_s(view: RunView) -> float:
    ends = [stage.drained_ns for stage in view.stages]
    return tidy((max(ends) - view.t0_ns) / NS_PER_S) or 1.0 if ends else 1.0


def _stage_band(view: RunView, stage: Stage, decision: str | None) -> dict[str, Any]:
    return {
        "t0": tidy((stage.t0_ns - view.t0_ns) / NS_PER_S),
        "t1": tidy((stage.t1_ns - view.t0_ns) / NS_PER_S),
        "label": words.stage_label(stage.name, stage.rate_rps),
        "short": f"{words.offered(stage.rate_rps)}/s" if stage.rate_rps is not None else visible(stage.name, 12),
        "kind": stage.kind,
        "decision": decision or "none",
    }
