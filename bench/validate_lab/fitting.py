"""Finds the constants of a deployment: a few measured points in, a handful of LabParams fields out."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec
import numpy as np
from scipy.optimize import least_squares

from pinchpoint.lab.params import LabParams

# Field: start, lowest, highest. Starts are what profiles of kernels and many deployments show; the bounds are what the
# best kernels reach, or far away.
START = {
    "compute_efficiency_ratio": (0.7, 0.2, 0.9),
    "weight_bandwidth_efficiency_ratio": (0.85, 0.2, 0.95),
    "kv_bandwidth_efficiency_ratio": (0.85, 0.2, 0.95),
    "step_overhead_s": (1e-3, 1e-4, 60e-3),
    "layer_overhead_s": (40e-6, 1e-6, 1e-3),
    "sequence_overhead_s": (30e-6, 1e-6, 1e-3),
    "all_reduce_latency_s": (5e-6, 0.3e-6, 100e-6),
    "link_efficiency_ratio": (0.6, 0.1, 1.0),
    "path.rtt_s": (10e-3, 1e-3, 0.3),
    "kernel_launch_s": (30e-6, 3e-6, 300e-6),
}
STEP_FIELDS = tuple(START)[:8]
"""What a step takes with graphs."""
OUTSIDE_FIELD = "path.rtt_s"
"""Whatever lies between client and engine, as one round trip: it adds to times to first token and to nothing else."""
LAUNCH_FIELDS = ("kernel_launch_s", *(name for name in STEP_FIELDS if name != "layer_overhead_s"))
"""The same without graphs, where the CPU launches kernel by kernel."""
PULL_RATIO = 0.04
"""Weight of a constant's start against the data: moving one by a factor of e from it costs as much as 4 % error on one
point. Decides between constants that a few points cannot tell apart, such as overhead per step and per layer."""
OUTLIER_LOG = 0.3
"""Errors beyond about 30 % lose weight, so that one odd point does not bend the rest."""


Point = TypeVar("Point")


class Observation(msgspec.Struct):
    """predict: what the lab says under these parameters; params: of this point's deployment before fitting."""

    params: LabParams
    predict: Callable[[LabParams], float]
    measured: float


def fit(
    observations: Sequence[Observation],
    fields: Iterable[str] = STEP_FIELDS,
    starts: Mapping[str, tuple[float, float, float]] | None = None,
) -> dict[str, float]:
    """The values of `fields` under which predictions are nearest to measurements, by relative error.

    starts: other starts and bounds, whose fields are then the ones to fit.
    """
    names = list(starts or fields)
    start, low, high = (np.log([(starts or START)[name][i] for name in names]) for i in range(3))

    def residuals(logs: np.ndarray) -> np.ndarray:
        values = dict(zip(names, map(float, np.exp(logs)), strict=True))
        errors = [np.log(o.predict(o.params.changed(values)) / o.measured) for o in observations]
        return np.concatenate([OUTLIER_LOG * np.arctan(np.array(errors) / OUTLIER_LOG), PULL_RATIO * (logs - start)])

    solved = least_squares(residuals, np.clip(start, low + 1e-6, high - 1e-6), bounds=(low, high))
    return {name: _rounded(value) for name, value in zip(names, np.exp(solved.x), strict=True)}


def tuning_points(points: Sequence[Point], by: Callable[[Point], object], count: int, seed: int = 1) -> list[Point]:
    """About `count` points drawn at random, the same number from each class of `by` (such as the TP degree)."""
    classes: dict[object, list[Point]] = {}
    for point in points:
        classes.setdefault(by(point), []).append(point)
    if not classes:
        return []
    each = -(-count // len(classes))
    drawn = random.Random(seed)
    return [point for members in classes.values() for point in drawn.sample(members, min(each, len(members)))]


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
