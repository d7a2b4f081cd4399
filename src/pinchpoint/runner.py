"""A live run: probe, collector, load processes and search put together, sealed whatever happens.

From the moment the run directory exists, every way out (done, Ctrl-C, the service died, the load process died) closes
the writers and seals what was measured.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from pinchpoint.clock import monotonic_ns
from pinchpoint.collecting import Collecting
from pinchpoint.errors import PinchpointError, TargetError, UsageError
from pinchpoint.fetch import tls_context
from pinchpoint.launch import (
    DEFAULT_MODEL,
    RunOutcome,
    begin_run,
    check_host,
    check_writable,
    content_of,
    fitted,
    open_access,
    read_api_key,
    target_specs,
    tell_hellos,
    tell_host,
    tell_lost,
    with_key_headers,
    worker_configs,
    worker_count,
)
from pinchpoint.load.fleet import Fleet
from pinchpoint.load.messages import Calibration, Command, Update
from pinchpoint.model import Progress
from pinchpoint.plan import Plan
from pinchpoint.probe import probe
from pinchpoint.recorder import ProgressSink, Recorder
from pinchpoint.schedule import Schedule, Slots
from pinchpoint.search import Baseline, Search
from pinchpoint.tokenizing import token_table
from pinchpoint.workload.classes import cuts, resolve, slos_of, workload_title
from pinchpoint.workload.schedule import Scheduler, check_stages
from pinchpoint.workload.tokens import TokenTable

REFIT_RANGE = (0.5, 2.0)
"""A correction outside of this range means that the counts mean something else than prompt tokens."""


class LiveDriver:
    """search.Driver over load processes."""

    def __init__(self, fleet: Fleet, table: TokenTable) -> None:
        self._fleet = fleet
        self._table = table

    def now_ns(self) -> int:
        return monotonic_ns()

    def start_step(self, stage: int, t0_ns: int, schedule: Schedule, slots: Slots | None = None) -> None:
        assert schedule.stage == stage
        self._fleet.start_step(t0_ns, schedule, slots)

    def poll(self, timeout_s: float) -> list[Update]:
        return self._fleet.poll(timeout_s)

    def stop_issue(self) -> None:
        self._fleet.command(Command("stop-issue"))

    def cancel(self, reason: str) -> None:
        self._fleet.command(Command("cancel", reason))

    def refit(self, baseline: Baseline) -> None:
        """Corrects tokens per word by what the service counted in the warm-up, keeping the template's overhead."""
        if baseline.input_tokens is None or self._table.exact:
            return
        overhead_tokens = self._table.overhead_tokens
        planned, measured = baseline.planned_input_tokens - overhead_tokens, baseline.input_tokens - overhead_tokens
        if planned > 0 and REFIT_RANGE[0] < measured / planned < REFIT_RANGE[1]:
            per_word = self._table.per_piece * measured / planned
            self._fleet.calibrate(Calibration(per_word, overhead_tokens))


def run_live(
    plan: Plan,
    *,
    out: Path | None,
    on_progress: ProgressSink,
    command: Sequence[str] = (),
    plan_file: Path | None = None,
    force: bool = False,
) -> RunOutcome:
    """Runs the plan. Raises before anything was measured (wrong usage, target unreachable); later errors are returned.

    force: also stages that this host cannot carry; the run is then marked.

    KeyboardInterrupt after the start ends the run early; the directory is sealed and marked aborted.
    """
    api_key = read_api_key(plan)
    slos = slos_of(plan, resolve(plan, None))
    check_stages(plan)
    check_writable(out)
    if plan.profile is not None:
        from pinchpoint.capture import check_profile

        check_profile(plan.profile)
    access = open_access(plan, api_key)
    on_progress(_probing())
    facts = probe(
        plan.url,
        model=plan.model,
        api=plan.api,
        api_options=plan.api_options,
        api_key=api_key,
        ca_file=plan.ca_file,
    )
    if plan.metrics_url is not None:
        facts = msgspec.structs.replace(facts, metrics_url=plan.metrics_url)
    if facts.model is None and plan.api is not None:  # whoever names the API of a service knows whether it takes a name
        facts = msgspec.structs.replace(facts, model=DEFAULT_MODEL)
    if facts.api is not None and facts.model is None:
        raise UsageError(f"{facts.url} does not list its models; name the one to load with --model")
    if facts.api is None or facts.model is None:
        raise TargetError(
            f"{facts.url} answers in no API that was tried; see `pinchpoint probe` for what it does answer, and name "
            "the API with --api"
        )
    stream = plan.stream and facts.streaming is not False
    traffic = resolve(plan, facts.limits.context_tokens)
    specs = target_specs(plan, facts, traffic, stream=stream, usage=facts.usage_in_stream is not False)
    traffic = fitted(traffic, specs)
    access = with_key_headers(access, specs, api_key)
    table = token_table(plan, facts, traffic, access)
    shared_host = bool(facts.server_pids) or access.local
    workers = worker_count(plan, shared_host=shared_host)
    collecting = Collecting(plan, facts, api_key, local=shared_host)
    limits, problems = check_host(plan, traffic, workers, len(access.endpoints), force=force)
    writer = begin_run(plan, facts, out, command=command, plan_file=plan_file)
    path = writer.path
    recorder = Recorder(writer, monotonic_ns, on_progress)
    recorder.on_workload(workload_title(plan), tuple(one.name for one in traffic.classes))
    content = content_of(plan, traffic, table)
    tell_host(recorder, limits, problems, access)
    recorder.on_event("tokens", source=table.source, note=table.note)
    for sentence in cuts(resolve(plan, None), traffic):
        recorder.on_event("cut", message=sentence)
    configs = worker_configs(
        plan,
        access,
        path,
        specs,
        content,
        workers=workers,
        shared_host=shared_host,
        warm_connections=plan.transport.warm_connections or 0,
        run_id=writer.manifest.run_id,
    )
    capture = None
    if plan.profile is not None:
        from pinchpoint.capture import Capture

        tls = tls_context(plan.ca_file)
        capture = Capture(plan.profile, facts, path, headers=dict(access.headers), tls=tls, local=shared_host)

    def on_overload(longest_s: float) -> None:
        collecting.sample_stacks(path, longest_s)
        if capture is not None:
            capture.start(longest_s)

    error: PinchpointError | None = None
    status, reason = "complete", None
    fleet = search = None
    try:
        fleet = Fleet(workers)
        fleet.configure(configs)
        collecting.start(path, writer.manifest.run_id, fleet.pids, recorder)
        fleet.await_ready()
        collecting.check()
        tell_hellos(fleet, recorder)
        driver = LiveDriver(fleet, table)
        search = Search(driver, recorder, Scheduler.of(plan, traffic), plan, slos)
        search.on_baseline = driver.refit
        search.on_overload = on_overload
        search.run()
    except KeyboardInterrupt:
        status, reason = "aborted", "interrupted by the user"
        if search is not None:
            search.interrupt(reason)
    except PinchpointError as caught:
        status, reason, error = "aborted", str(caught), caught
    finally:
        if fleet is not None:
            fleet.close()
            tell_lost(fleet, recorder)
        if capture is not None:
            capture.finish(recorder)
        collecting.finish(path, recorder)
        recorder.close()
        writer.seal(status, reason)
    return RunOutcome(path, error)


def _probing() -> Progress:
    return Progress(
        phase="probe",
        detail="looking at the service",
        elapsed_s=0.0,
        left_s=None,
        rate_rps=None,
        in_flight=0,
        completed=0,
        errors=0,
        output_tokens_per_s=0.0,
        ttft_p50_s=None,
        ttft_p95_s=None,
        tpot_p50_s=None,
        tpot_p95_s=None,
        lower_rps=None,
        upper_rps=None,
    )
