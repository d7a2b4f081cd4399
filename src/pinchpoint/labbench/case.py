"""Makes one run of a data set, and the label that says what it really is and whether that can be seen at all."""

import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pinchpoint.clock import NS_PER_S
from pinchpoint.errors import PinchpointError
from pinchpoint.impact import CHANGE_MIN, INDICATORS, SIGMAS_MIN, Indicator, compared, load_rps
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.rough import lone_token_s
from pinchpoint.lab.scenario import Scenario, resized
from pinchpoint.labbench.matrix import Case, healthy_twin
from pinchpoint.model import Stage
from pinchpoint.plan import OpenStage, Plan, build_plan
from pinchpoint.rundir import read_run
from pinchpoint.series import RunView
from pinchpoint.synth import run_virtual
from pinchpoint.workload.classes import resolve

STAGE_RATIOS = (0.6, 1.0, 1.4)
"""Loads of the three stages over the case's own."""
STAGE_REQUESTS_MIN = 25
STAGE_MAX_S = 60.0
STAGE_REQUESTS_MAX = 250
STAGE_MIN_S = 10.0
"""Fast services get shorter stages, for what they show takes requests and not time; never shorter than this."""
SHORT_S = 60.0
"""Faults that need longer to show are given their time."""
BLOCKS_PER_STAGE = 5
BLOCKS_MIN = 3
BUDGET_S = 90.0
"""Of it the warm-up takes 15 % at most."""
TIMEOUT_S = 60.0
SCRAPE_PERIOD_S = 1.0
"""What monitoring in the field can afford at best; Prometheus' default is a minute."""
URL = "http://service.invalid"
DIGITS = 3


class Made(msgspec.Struct, frozen=True):
    """label: plain data, for the label file alone."""

    id: str
    label: dict[str, Any]


def plan_of(case: Case, scenario: Scenario) -> Plan:
    values: dict[str, Any] = {
        "url": URL,
        "seed": case.seed,
        "workload": {"preset": case.workload},
        "timeout_s": TIMEOUT_S,
        "budget_s": BUDGET_S,
    }
    rate_rps = load_rps(scenario.before, build_plan(values), case.load_ratio)
    stage_s = case.duration_s / len(STAGE_RATIOS)
    if case.duration_s <= SHORT_S and not case.onset_s:
        stage_s = min(stage_s, max(STAGE_MIN_S, STAGE_REQUESTS_MAX / rate_rps))
    stage_s = round(max(stage_s, min(STAGE_REQUESTS_MIN / rate_rps, STAGE_MAX_S)), 1)
    stages = [
        {"kind": "open", "rate_rps": float(f"{ratio * rate_rps:.{DIGITS}g}"), "duration_s": stage_s}
        for ratio in STAGE_RATIOS
    ]
    return build_plan({**values, "stages": stages})


def sized_scenario(case: Case, plan: Plan) -> Scenario:
    """The case's scenario, its faults as strong for the load of this plan as their tables mean them for the default
    service under the load of the impact check."""
    scenario = case.scenario()
    stages = [stage for stage in plan.stages if isinstance(stage, OpenStage)]
    requests = sum(stage.rate_rps * (stage.duration_s or 0.0) for stage in stages)
    middle_rps = sorted(stage.rate_rps for stage in stages)[len(stages) // 2]
    measured = _load(scenario.before, plan, middle_rps, requests)
    ratios: list[dict[str, float]] = []
    for fault in scenario.faults:
        usual, usual_plan = (
            LabParams().changed(fault.base),
            build_plan({"url": URL, "seed": case.seed, "workload": {"preset": fault.workload}}),
        )
        rate_rps = load_rps(usual, usual_plan, fault.load_ratio)
        meant = _load(usual, usual_plan, rate_rps, rate_rps * fault.duration_s)
        ratios.append({name: measured[name] / meant[name] for name in meant})
    return resized(scenario, ratios)


def _load(params: LabParams, plan: Plan, rate_rps: float, requests: float) -> dict[str, float]:
    """By lab.faults.LoadMeasure."""
    traffic = resolve(plan, params.max_model_len_tokens())
    mix = traffic.mix(None)
    input_tokens, output_tokens = traffic.mean_input_tokens(mix), traffic.mean_output_tokens(mix)
    token_s = lone_token_s(params, input_tokens, output_tokens)
    return {
        "rate": rate_rps,
        "tokens": rate_rps * output_tokens,
        "requests": requests,
        "in_flight": rate_rps * output_tokens * token_s,
    }


def make_case(case: Case, runs: Path) -> Made:
    """Writes runs/ID and returns its label. A run that ends early, because the service is gone, is one as well."""
    plan = plan_of(case, case.scenario())
    scenario = sized_scenario(case, plan)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=runs) as scratch:
        made = Path(scratch) / case.id
        _run(plan, scenario, made, case.degrade)
        impacts: list[dict[str, Any] | None] = []
        if scenario.faults:
            twin = Path(scratch) / "twin"
            _run(plan, healthy_twin(scenario), twin, ("client-only",))
            healthy, faulty = RunView(read_run(twin)), RunView(read_run(made))
            impacts = [impact_of(healthy, faulty, fault.indicator, case.onset_s) for fault in scenario.faults]
        target = runs / case.id
        if target.exists():  # left by a making that was cut off before its label was kept
            shutil.rmtree(target)
        made.rename(target)
    return Made(case.id, label_of(case, scenario, impacts))


def label_of(case: Case, scenario: Scenario, impacts: list[dict[str, Any] | None]) -> dict[str, Any]:
    truth = scenario.truth()
    faults = [{**told, "impact": impact} for told, impact in zip(truth["faults"], impacts, strict=True)]
    return {
        "id": case.id,
        "label": case.label,
        "causes": [fault.cause for fault in scenario.faults],
        "layers": [fault.layer for fault in scenario.faults],
        "severity": truth["severity"],
        "onset_s": case.onset_s,
        "faults": faults,
        "look_alike_pair": case.pair,
        "load_ratio": case.load_ratio,
        "seed": case.seed,
    }


def impact_of(healthy: RunView, faulty: RunView, indicator: str, onset_s: float) -> dict[str, Any] | None:
    """What the fault did to its indicator at the load at which it did most, pair by pair of stretches after the onset.

    Loads are not thrown together: a fault that does nothing below a load and much above it would drown in the
    difference between the two. Where the faulty run ended too early for that, the first requests of both are compared;
    a service that answers so little that it has no value of the indicator at all is an impact without numbers. None
    where the healthy service has none either.
    """
    found: list[dict[str, Any]] = []
    for stage in healthy.stages:
        if stage.rate_rps is not None:
            values = _pairs(healthy, faulty, stage, INDICATORS[indicator], onset_s)
            if len(values) >= BLOCKS_MIN:
                found.append({"indicator": indicator, "stage": stage.index, **_told(indicator, values)})
    if not found and len(values := _first_pairs(healthy, faulty, INDICATORS[indicator], onset_s)) >= BLOCKS_MIN:
        found.append({"indicator": indicator, "stage": None, **_told(indicator, values)})
    if not found and (gone := _gone(healthy, indicator, onset_s)):
        found.append(gone)
    return max(found, key=lambda one: (one["has_impact"], abs(one["sigmas"] or 0.0)), default=None)


def _pairs(
    healthy: RunView, faulty: RunView, stage: Stage, indicator: Indicator, onset_s: float
) -> list[tuple[float, float]]:
    """(healthy, faulty) for each stretch of a stage in which both have a value."""
    other = next((one for one in faulty.stages if one.index == stage.index), None)
    if other is None:
        return []
    found: list[tuple[float, float]] = []
    length_s = (stage.t1_ns - stage.t0_ns) / NS_PER_S / BLOCKS_PER_STAGE
    for block in range(BLOCKS_PER_STAGE):
        if other.t0_ns / NS_PER_S + block * length_s < onset_s:
            continue
        pair: list[float] = []
        for view, place in ((healthy, stage), (faulty, other)):
            since_s = view.requests.scheduled_s - (place.t0_ns - view.t0_ns) / NS_PER_S
            inside = (since_s >= block * length_s) & (since_s < (block + 1) * length_s)
            mask = (view.requests.stage == stage.index) & inside
            pair.append(indicator(view.requests, mask, length_s) if mask.any() else math.nan)
        if all(map(math.isfinite, pair)):
            found.append((pair[0], pair[1]))
    return found


def _gone(healthy: RunView, indicator: str, onset_s: float) -> dict[str, Any] | None:
    """The impact of a fault beside which nothing is left to compare, though the healthy service had enough."""
    for stage in healthy.stages:
        if stage.rate_rps is None:
            continue
        values = _pairs(healthy, healthy, stage, INDICATORS[indicator], onset_s)
        if len(values) >= BLOCKS_MIN:
            told = {"faulty": None, "change_ratio": None, "sigmas": None, "stretches": 0, "has_impact": True}
            mean = float(np.mean([value for value, _ in values]))
            return {"indicator": indicator, "stage": stage.index, "healthy": mean, **told}
    return None


def _first_pairs(healthy: RunView, faulty: RunView, indicator: Indicator, onset_s: float) -> list[tuple[float, float]]:
    """(healthy, faulty) for each third of as many requests after the onset as both runs have, in their order."""
    orders = []
    for view in (healthy, faulty):
        since_s = view.requests.scheduled_s + view.t0_ns / NS_PER_S
        order = np.argsort(since_s, kind="stable")
        orders.append(order[since_s[order] >= onset_s])
    common = min(map(len, orders))
    found: list[tuple[float, float]] = []
    for block in range(BLOCKS_MIN):
        first, end = block * common // BLOCKS_MIN, (block + 1) * common // BLOCKS_MIN
        pair: list[float] = []
        for view, order in zip((healthy, faulty), orders, strict=True):
            mask = np.zeros(view.requests.count, bool)
            mask[order[first:end]] = True
            spanned_s = float(np.ptp(view.requests.scheduled_s[mask])) if mask.any() else 0.0
            pair.append(indicator(view.requests, mask, spanned_s) if spanned_s > 0 else math.nan)
        if all(map(math.isfinite, pair)):
            found.append((pair[0], pair[1]))
    return found


def _told(indicator: str, values: list[tuple[float, float]]) -> dict[str, Any]:
    before, after = np.array(values).T
    change, sigmas = compared(indicator, before, after)
    return {
        "healthy": float(before.mean()),
        "faulty": float(after.mean()),
        "change_ratio": change if math.isfinite(change) else None,
        "sigmas": sigmas if math.isfinite(sigmas) else None,
        "stretches": len(values),
        "has_impact": abs(change) > CHANGE_MIN and abs(sigmas) > SIGMAS_MIN,
    }


def _run(plan: Plan, scenario: Scenario, out: Path, degrade: tuple[str, ...]) -> None:
    try:
        run_virtual(plan, scenario, out, degrade=degrade, scrape_period_s=SCRAPE_PERIOD_S)
    except PinchpointError:
        if not (out / "run.json").exists():
            raise
