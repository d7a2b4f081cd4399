"""Whether an injected fault is one: paired virtual runs with and without it, and what its indicator did.

A fault that moves nothing is a label without a meaning: most injections of published fault data sets changed no
indicator that a user could see. Both runs of a pair have the same requests, arrivals and noise seeds; the difference is
taken pair by pair.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from pinchpoint.errors import UnsupportedMeasurementError
from pinchpoint.lab.faults import Fault
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.rough import rough_capacity_rps
from pinchpoint.lab.scenario import Scenario
from pinchpoint.plan import Plan, build_plan
from pinchpoint.rundir import read_run
from pinchpoint.series import Requests, RunView
from pinchpoint.slo import WITHDRAWN_STATUSES
from pinchpoint.synth import run_virtual
from pinchpoint.workload.classes import resolve

CHANGE_MIN = 0.10
SIGMAS_MIN = 3.0
PAIRS = 5
TIMEOUT_S = 60.0
URL = "http://lab.invalid"

Indicator = Callable[[Requests, np.ndarray, float], float]
"""(requests of the run, mask of those of the load, seconds of the load) -> value; NaN where there is none."""


def _quantile(name: str, level: float) -> Indicator:
    def value(requests: Requests, mask: np.ndarray, _seconds: float) -> float:
        """An answer that never came counts as the time it was waited for, else an outage would look fast."""
        values = getattr(requests, name)[mask]
        if name in ("ttft_s", "e2e_s"):
            waited_s = (requests.end_s - requests.scheduled_s)[mask]
            unanswered = ~np.isfinite(values) & (requests.status[mask] != "rejected")
            values = np.where(unanswered, waited_s, values)
        values = values[np.isfinite(values)]
        return float(np.quantile(values, level)) if len(values) else math.nan

    return value


def _gaps(requests: Requests, mask: np.ndarray, _seconds: float) -> float:
    """99th percentile of the longest gap of each stream."""
    values = requests.itl_max_s[mask]
    values = values[np.isfinite(values)]
    return float(np.quantile(values, 0.99)) if len(values) else math.nan


def _share(statuses: Sequence[str], *, of_all_others: bool = False) -> Indicator:
    def value(requests: Requests, mask: np.ndarray, _seconds: float) -> float:
        found = np.isin(requests.status[mask].astype(str), statuses)
        return float(np.mean(~found if of_all_others else found)) if mask.any() else math.nan

    return value


INDICATORS: dict[str, Indicator] = {
    "ttft_p50_s": _quantile("ttft_s", 0.50),
    "ttft_p95_s": _quantile("ttft_s", 0.95),
    "tpot_p50_s": _quantile("tpot_s", 0.50),
    "tpot_p95_s": _quantile("tpot_s", 0.95),
    "itl_p99_s": _gaps,
    "e2e_p50_s": _quantile("e2e_s", 0.50),
    "e2e_p95_s": _quantile("e2e_s", 0.95),
    "error_ratio": _share(("ok", "rejected", *WITHDRAWN_STATUSES), of_all_others=True),
    "rejected_ratio": _share(("rejected",)),
    "completed_rps": lambda requests, mask, seconds: float(np.sum(requests.status[mask] == "ok")) / seconds,
    "output_tokens_mean": lambda requests, mask, _: float(np.nanmean(requests.output_tokens[mask])),
}
"""What a client sees, over the requests of the load. Names end in their unit."""

SHARES = ("error_ratio", "rejected_ratio")
"""These change by their difference; the others by their difference over the healthy value."""


class Impact(msgspec.Struct, frozen=True):
    """What a fault did to its indicator. healthy, faulty: means over the pairs.

    change_ratio, sigmas: see `compared`; signed, inf where nothing scatters.
    """

    fault: str
    severity: str
    indicator: str
    healthy: float
    faulty: float
    change_ratio: float
    sigmas: float
    pairs: int
    rate_rps: float

    @property
    def has_impact(self) -> bool:
        return abs(self.change_ratio) > CHANGE_MIN and abs(self.sigmas) > SIGMAS_MIN

    @property
    def change_text(self) -> str:
        share = self.indicator in SHARES
        return f"{100 * self.change_ratio:+.0f} points" if share else f"{self.change_ratio:+.0%}"


def load_rps(healthy: LabParams, plan: Plan, load_ratio: float) -> float:
    """load_ratio of what a healthy service carries roughly of the plan's workload."""
    traffic = resolve(plan, healthy.max_model_len_tokens())
    mix = traffic.mix(None)
    return load_ratio * rough_capacity_rps(healthy, traffic.mean_input_tokens(mix), traffic.mean_output_tokens(mix))


def measure_impact(scenario: Scenario, *, pairs: int = PAIRS, workload: str | None = None) -> Impact:
    """Runs `pairs` pairs in virtual time and compares the first fault's indicator.

    Raises ValueError for a healthy scenario.
    """
    if not scenario.faults:
        raise ValueError("a healthy scenario has no fault whose impact could be measured")
    fault = scenario.faults[0]
    healthy, faulty = [], []
    rate_rps = 0.0
    for pair in range(pairs):
        plan = _plan(workload or fault.workload, 0.0, fault.duration_s, scenario.seed + pair)
        rate_rps = load_rps(scenario.before, plan, fault.load_ratio)
        plan = _plan(workload or fault.workload, rate_rps, fault.duration_s, scenario.seed + pair)
        quiet = msgspec.structs.replace(scenario, faults=(), after=scenario.before)
        healthy.append(_observe(plan, quiet, fault))
        faulty.append(_observe(plan, scenario, fault))
    before, after = np.array(healthy), np.array(faulty)
    change, sigmas = compared(fault.indicator, before, after)
    return Impact(
        fault=scenario.name,
        severity=scenario.severity,
        indicator=fault.indicator,
        healthy=float(np.mean(before)),
        faulty=float(np.mean(after)),
        change_ratio=change,
        sigmas=sigmas,
        pairs=pairs,
        rate_rps=rate_rps,
    )


def compared(indicator: str, before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """(change_ratio, sigmas) of paired values, shape (pairs,) each; see Impact.

    Times and rates are compared by their logarithms, so that a queue that grows is one effect and not scatter; shares
    by their difference. sigmas is the larger of two answers: how sure the effect is by its scatter from pair to pair,
    and how far it lies beyond the scatter of the healthy service alone, two of which differ by sqrt(2) of its standard
    error. The first punishes what comes in bursts, the second what is small beside the noise.
    """
    by_ratio = indicator not in SHARES and bool((before > 0).all() and (after > 0).all())
    first, second = (np.log(before), np.log(after)) if by_ratio else (before, after)
    differences = second - first
    mean, reference = float(differences.mean()), float(before.mean())
    if by_ratio:
        change = math.expm1(mean)
    elif indicator in SHARES:
        change = mean
    else:
        change = mean / reference if reference else math.copysign(math.inf, mean)
    if not mean:
        return change if reference or indicator in SHARES else 0.0, 0.0
    if len(before) < 2:
        return change, math.copysign(math.inf, mean)
    error = min(float(differences.std(ddof=1)), math.sqrt(2) * float(first.std(ddof=1))) / math.sqrt(len(before))
    return change, mean / error if error > 0 else math.copysign(math.inf, mean)


def _plan(workload: str, rate_rps: float, duration_s: float, seed: int) -> Plan:
    values = {
        "url": URL,
        "seed": seed,
        "workload": {"preset": workload},
        "slos": ["e2e p95 < 60s"],  # asked for by a plan; nothing here is judged by it
        "timeout_s": TIMEOUT_S,
        "budget_s": 10 * duration_s,
    }
    if rate_rps:
        values["stages"] = [{"kind": "open", "rate_rps": float(f"{rate_rps:.3g}"), "duration_s": duration_s}]
    return build_plan(values)


def _observe(plan: Plan, scenario: Scenario, fault: Fault) -> float:
    with tempfile.TemporaryDirectory(prefix="pinchpoint-impact-") as directory:
        path = Path(directory) / "run"
        try:
            run_virtual(plan, scenario, path)
        except UnsupportedMeasurementError:
            if not (path / "run.json").exists():
                raise
        view = RunView(read_run(path))  # of a service that went away: what it did until then
        stage = next((stage for stage in view.manifest.stages if stage.rate_rps), None)
        # A service that went away before the load began is judged by what came before.
        mask = view.requests.stage == stage.index if stage else np.ones(view.requests.count, bool)
        return INDICATORS[fault.indicator](view.requests, mask, fault.duration_s)
