"""The arrivals that a stage of the plan asks for, read from the run: cumulated rate and law of the gaps.

Made from the plan and not by what makes the schedule, so that the one can be held against the other. With the cumulated
rate as time axis, every stage has arrivals at unit rate, whose gaps follow the law of its process whatever the profile
(time change; Daley & Vere-Jones, Theorem 7.4.I).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pinchpoint.goodness import gamma_cdf
from pinchpoint.model import Stage

Curve = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Asked:
    """What a stage of an open loop asks for.

    arrivals: as in the plan, such as poisson or gamma:2. cumulated: expected arrivals until so many seconds after the
    beginning. gap_cdf: law of the gaps at unit rate; None where gaps are fixed (constant, bursts) or recorded (replay).
    """

    arrivals: str
    cumulated: Curve
    gap_cdf: Curve | None


def asked_of(stages: Sequence[Stage], plan: Mapping[str, Any]) -> dict[int, Asked]:
    """Stage index -> what was asked, for the stages of which the run tells it; closed loops and traces are missing.

    stages: the load stages of the run in order. Those of a plan are carried out one after another, so the first few of
    them belong together when a run was cut short.
    """
    specs = [spec for spec in plan.get("stages") or () if isinstance(spec, dict)]
    found: dict[int, Asked] = {}
    for i, stage in enumerate(stages):
        spec = specs[i] if stage.kind == "load" and i < len(specs) else None
        try:
            curve = _flat(stage.rate_rps) if spec is None else _curve(spec)
        except (KeyError, TypeError, ValueError):  # a plan of another version: what was asked is then not known
            continue
        if curve is not None and stage.concurrency is None:
            arrivals = stage.arrivals or "poisson"
            found[stage.index] = Asked(arrivals, curve, _gap_cdf(arrivals))
    return found


def _flat(rate_rps: float | None) -> Curve | None:
    return None if rate_rps is None else lambda t_s: rate_rps * t_s


def _curve(spec: Mapping[str, Any]) -> Curve | None:
    """The cumulated rate of one stage of the plan. Raises KeyError, TypeError or ValueError for a missing value."""
    kind = spec.get("kind")
    if kind in ("open", "sessions"):
        return _flat(float(spec["rate_rps"]))
    if kind == "ramp":
        from_rps, to_rps, length_s = float(spec["from_rps"]), float(spec["to_rps"]), float(spec["duration_s"])
        return lambda t_s: _ramp(t_s, from_rps, to_rps, length_s)
    if kind == "steps":
        rates_rps = [float(rate_rps) for rate_rps in spec["rates_rps"]]
        lengths_s = [float(s) for s in spec.get("durations_s") or [spec["each_s"]] * len(rates_rps)]
        return lambda t_s: _pieces(t_s, lengths_s, rates_rps)
    if kind == "spike":
        base_rps, peak_rps = float(spec["base_rps"]), float(spec["peak_rps"])
        before_s, peak_s = float(spec["at_s"]), float(spec["for_s"])
        return lambda t_s: _pieces(t_s, (before_s, peak_s, math.inf), (base_rps, peak_rps, base_rps))
    if kind == "sine":
        mean_rps, amplitude = float(spec["mean_rps"]), float(spec["amplitude_ratio"])
        turn = 2 * math.pi / float(spec["period_s"])
        return lambda t_s: mean_rps * (t_s + amplitude * (1 - np.cos(turn * t_s)) / turn)
    if kind == "on-off":
        rate_rps, on_s = float(spec["rate_rps"]), float(spec["on_s"])
        period_s = on_s + float(spec["off_s"])
        return lambda t_s: rate_rps * (np.floor(t_s / period_s) * on_s + np.minimum(t_s % period_s, on_s))
    return None


def _ramp(t_s: np.ndarray, from_rps: float, to_rps: float, length_s: float) -> np.ndarray:
    inside_s = np.minimum(t_s, length_s)
    climbed = from_rps * inside_s + (to_rps - from_rps) * inside_s**2 / (2 * length_s)
    return climbed + to_rps * np.maximum(t_s - length_s, 0)


def _pieces(t_s: np.ndarray, lengths_s: Sequence[float], rates_rps: Sequence[float]) -> np.ndarray:
    """Constant rates one after another; the last one goes on."""
    total = np.zeros(np.shape(t_s))
    start_s = 0.0
    for i, (length_s, rate_rps) in enumerate(zip(lengths_s, rates_rps, strict=True)):
        longest_s = length_s if i < len(rates_rps) - 1 else math.inf
        total = total + rate_rps * np.clip(t_s - start_s, 0, longest_s)
        start_s += length_s
    return total


def _gap_cdf(arrivals: str) -> Curve | None:
    kind, _, parameter = arrivals.partition(":")
    if kind == "poisson":
        return lambda gaps: -np.expm1(-gaps)
    if kind == "gamma" and parameter:
        shape = float(parameter) ** -2
        return lambda gaps: gamma_cdf(gaps * shape, shape)
    return None
