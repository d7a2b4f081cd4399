"""Calibrates the groups and holds the lab's engine against every point that was not used for it."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median

import msgspec
import numpy as np

from .fitting import OUTSIDE_FIELD, Observation, fit, tuning_points
from .groups import GROUPS, Case, Group

TUNING_POINTS = 16
TUNING_FIRST_TOKENS = 6
"""Of them, beside, times to first token where a group has any."""
CALIBRATED_LIMIT, PREDICTED_LIMIT, TTFT_LIMIT = 0.10, 0.20, 0.20
"""Median relative errors."""


class Calibrated(msgspec.Struct):
    """values: the fitted constants. used: the cases that they were fitted to, as indices into the group's."""

    values: dict[str, float]
    used: list[int]


class Score(msgspec.Struct):
    """Errors relative to the measurement; positive: the lab is slower."""

    group: Group
    kind: str
    by: str
    errors: list[float]
    worst: str
    limit: float

    @property
    def median_ratio(self) -> float:
        return median(map(abs, self.errors))

    @property
    def bias_ratio(self) -> float:
        return median(self.errors)

    @property
    def p90_ratio(self) -> float:
        return float(np.quantile(np.abs(self.errors), 0.9))

    @property
    def met(self) -> bool:
        return self.median_ratio <= self.limit


def calibrate(group: Group, cases: Sequence[Case]) -> Calibrated:
    used = tuning_indices(cases)
    fields = group.fields
    if any(cases[index].kind == "ttft" and cases[index].loop for index in used):
        fields = (*fields, OUTSIDE_FIELD)
    chosen = (cases[index] for index in used)
    return Calibrated(
        fit([Observation(c.params, c.estimate_s, c.measured_s) for c in chosen if c.estimate_s], fields), used
    )


def tuning_indices(cases: Sequence[Case]) -> list[int]:
    """Of the cases that constants are fitted to: drawn at random, the same each time."""
    usable = [index for index, case in enumerate(cases) if case.estimate_s]
    tokens = [index for index in usable if cases[index].kind != "ttft"]
    first_tokens = [index for index in usable if cases[index].kind == "ttft"]

    def stratum(index: int) -> object:
        return cases[index].stratum

    return tuning_points(tokens, stratum, TUNING_POINTS) + tuning_points(first_tokens, stratum, TUNING_FIRST_TOKENS)


def score(group: Group, cases: Sequence[Case], values: Mapping[str, float], by: str, limit: float) -> list[Score]:
    """One for each kind of measurement in `cases`."""
    scores = []
    for kind in dict.fromkeys(case.kind for case in cases):
        errors = [
            (case.lab_s(case.params.changed(values)) / case.measured_s - 1, case) for case in cases if case.kind == kind
        ]
        error, case = max(errors, key=lambda pair: abs(pair[0]))
        worst = f"{error:+.0%}: {describe(case)}"
        scores.append(Score(group, kind, by, [e for e, _ in errors], worst, TTFT_LIMIT if kind == "ttft" else limit))
    return scores


def describe(case: Case) -> str:
    where = f"TP {case.params.tensor_parallel}"
    if case.loop:
        where += f", {case.loop.prompt_tokens}/{case.loop.output_tokens} tokens, {case.loop.concurrency} at once"
    return f"{where}, measured {1e3 * case.measured_s:.4g} ms"


def score_all(calibrations: Mapping[str, Calibrated], tell: Callable[[str], None]) -> tuple[list[Score], list[Score]]:
    """(calibrated groups at the points not used, groups predicted by the constants of others at all points).

    Predictions are of times per token and of batches: what lies outside the engine is a deployment's own.
    """
    own, predicted = [], []
    for group in GROUPS:
        cases = group.cases()
        if group.tuned:
            used = set(calibrations[group.name].used)
            rest = [case for index, case in enumerate(cases) if index not in used]
            own += score(group, rest, calibrations[group.name].values, group.name, CALIBRATED_LIMIT)
            tell(f"{group.name}: {own[-1].median_ratio:.1%}")
        if group.predicted_by:
            rest = [case for case in cases if case.kind != "ttft"]
            values = {k: v for k, v in calibrations[group.predicted_by].values.items() if k != OUTSIDE_FIELD}
            predicted += score(group, rest, values, group.predicted_by, PREDICTED_LIMIT)
            tell(f"{group.name} by {group.predicted_by}: {predicted[-1].median_ratio:.1%}")
    return own, predicted
