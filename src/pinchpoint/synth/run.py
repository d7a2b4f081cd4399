"""A complete run in virtual time: the lab's service on a simulated clock under the same search as a live run.

Nothing is copied from the fault into the run: requests meet the simulated mechanisms, and telemetry is read off pages
by the parsers of real ones. The name of the fault is not in the directory.
"""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from pinchpoint.lab.params import LabParams
from pinchpoint.lab.scenario import Scenario, choose_scenario
from pinchpoint.lab.service import VirtualService
from pinchpoint.launch import PAIRING
from pinchpoint.model import Progress
from pinchpoint.plan import Plan
from pinchpoint.recorder import Recorder, new_manifest
from pinchpoint.rundir import RunWriter
from pinchpoint.search import Search
from pinchpoint.synth.asks import Asks
from pinchpoint.synth.degrade import Degrader
from pinchpoint.synth.driver import SCRAPE_PERIOD_S, VirtualDriver
from pinchpoint.synth.facts import EPOCH_WALL, facts_of
from pinchpoint.synth.telemetry import Telemetry
from pinchpoint.workload.classes import Traffic, resolve, slos_of, workload_title
from pinchpoint.workload.schedule import Scheduler, check_stages
from pinchpoint.workload.trace import forest

LONG_RUN_S, LONG_RUN_PERIOD_S = 600.0, 1.0
"""Pages are two fifths of a run's computing, and a run this long has readings enough."""


def run_virtual(
    plan: Plan,
    what: str | Scenario,
    out: Path,
    *,
    params: LabParams | None = None,
    degrade: Iterable[str] = (),
    scrape_period_s: float | None = None,
) -> Path:
    """Carries out the plan, a search or its stages, on the lab's service in virtual time and seals the run in `out`.

    what: a scenario, or the name of a fault that is there from the beginning; params: the service without it. degrade:
    names of degrade.DEGRADATIONS. scrape_period_s: as driver.VirtualDriver has it; None: the live collector's, or
    LONG_RUN_PERIOD_S in runs of LONG_RUN_S and more. Raises UsageError for an unknown fault or an output directory that
    cannot be used.
    """
    check_stages(plan)
    scenario = what if isinstance(what, Scenario) else choose_scenario(what, base=params, seed=plan.seed)
    degrader = Degrader(degrade, plan.seed)
    begins = scenario.at_start()
    service = VirtualService(begins, plan.seed)
    traffic = _paired(plan, resolve(plan, begins.max_model_len_tokens()))
    slos = slos_of(plan, traffic)
    manifest = new_manifest(
        plan, facts_of(plan, begins, degrader), out.name, t0_ns=0, started_wall=EPOCH_WALL, virtual=True
    )
    tree, _ = forest(plan.stages)
    writer = RunWriter(out, manifest)
    samples = writer.part("telemetry", "lab")
    driver = VirtualDriver(
        service,
        writer,
        plan,
        Asks(traffic, tree, begins.block_size_tokens),
        Telemetry(samples, begins, degrader),
        onset=(scenario.onset_s, scenario.after) if scenario.onset_s > 0 else None,
        scrape_period_s=scrape_period_s or _period_s(plan),
    )
    recorder = Recorder(writer, driver.now_ns, _ignore)
    recorder.on_workload(workload_title(plan), tuple(one.name for one in traffic.classes))
    status, reason = "complete", None
    try:
        Search(driver, recorder, Scheduler.of(plan, traffic), plan, slos).run()
    except BaseException as error:
        status, reason = "aborted", str(error) or type(error).__name__
        raise
    finally:
        driver.close()
        samples.close()
        recorder.close()
        manifest.host = {}  # it says who writes, which is over; the service's host was never this one
        writer.seal(status, reason)
    return out


def _paired(plan: Plan, traffic: Traffic) -> Traffic:
    """Classes whose API reads the message once with each document know it, as in a live run."""
    classes = (msgspec.structs.replace(one, paired=(one.api or plan.api) in PAIRING) for one in traffic.classes)
    return msgspec.structs.replace(traffic, classes=tuple(classes))


def _period_s(plan: Plan) -> float:
    planned_s = sum(getattr(stage, "duration_s", None) or 0.0 for stage in plan.stages) or plan.budget_s
    return LONG_RUN_PERIOD_S if planned_s >= LONG_RUN_S else SCRAPE_PERIOD_S


def _ignore(progress: Progress) -> None:
    """Virtual runs end before a screen could be read."""
