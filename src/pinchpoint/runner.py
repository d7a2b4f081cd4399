"""A live run: probe, collector, load processes and search put together, sealed whatever happens.

From the moment the run directory exists, every way out (done, Ctrl-C, the service died, the load process died) closes
the writers and seals what was measured.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from pinchpoint.clock import monotonic_ns
from pinchpoint.errors import PinchpointError, TargetError, UsageError
from pinchpoint.load.fleet import Fleet
from pinchpoint.load.messages import Command, Intent, Timeouts, Update, WorkerConfig
from pinchpoint.load.wire import resolve
from pinchpoint.model import Progress
from pinchpoint.plan import Plan
from pinchpoint.probe import probe
from pinchpoint.recorder import ProgressSink, Recorder, new_manifest
from pinchpoint.rundir import RunWriter
from pinchpoint.search import Baseline, Search
from pinchpoint.slo import parse_slos
from pinchpoint.targets.openai import OpenAITarget
from pinchpoint.telemetry.config import CollectorConfig
from pinchpoint.telemetry.handle import start_collector
from pinchpoint.workload.lengths import resolve_lengths
from pinchpoint.workload.prompts import PromptWriter
from pinchpoint.workload.schedule import ScheduledRequest, Scheduler

RUNS_DIRECTORY = "pinchpoint-runs"
DEFAULT_KEY_ENV = "PINCHPOINT_API_KEY"
READY_TIMEOUT_S = 20.0
REFIT_RANGE = (0.5, 2.0)
"""A correction outside of this range means that the counts mean something else than prompt tokens."""
KEY_MIN_CHARS = 8
"""Shorter keys are not searched for in error texts: replacing "abc" everywhere would garble them."""


class LiveDriver:
    """search.Driver over load processes."""

    def __init__(self, fleet: Fleet, target: OpenAITarget, prompts: PromptWriter) -> None:
        self._fleet = fleet
        self._target = target
        self.prompts = prompts

    def now_ns(self) -> int:
        return monotonic_ns()

    def start_step(self, stage: int, t0_ns: int, requests: Sequence[ScheduledRequest]) -> None:
        intents = [
            Intent(
                request_id=r.request_id,
                session_id=r.session_id,
                offset_ns=r.offset_ns,
                think_ns=r.think_ns,
                input_tokens=r.input_tokens,
                max_output_tokens=r.max_output_tokens,
                body=self._target.build(self.prompts.write(r.request_id, r.input_tokens), r.max_output_tokens),
            )
            for r in requests
        ]
        self._fleet.start_step(stage, t0_ns, intents)

    def poll(self, timeout_s: float) -> list[Update]:
        return self._fleet.poll(timeout_s)

    def stop_issue(self) -> None:
        self._fleet.command(Command("stop-issue"))

    def cancel(self, reason: str) -> None:
        self._fleet.command(Command("cancel", reason))


class RunOutcome:
    """Where the run lies, and the error that ended it early, if one did."""

    def __init__(self, path: Path, error: PinchpointError | None) -> None:
        self.path = path
        self.error = error


def read_api_key(plan: Plan) -> str | None:
    """The key from the variable or file that the plan names, else from PINCHPOINT_API_KEY. Raises UsageError."""
    if plan.api_key_file is not None:
        try:
            key = Path(plan.api_key_file).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            cause = getattr(error, "strerror", None) or "not text"
            raise UsageError(f"cannot read the API key from {plan.api_key_file}: {cause}") from None
        if not key or not key.isprintable() or not key.isascii():
            raise UsageError(f"{plan.api_key_file} holds no usable API key; it must be one line of ASCII text")
        return key
    if plan.api_key_env is not None:
        key = os.environ.get(plan.api_key_env, "").strip()
        if not key or not key.isprintable() or not key.isascii():
            raise UsageError(f"the environment variable {plan.api_key_env} holds no usable API key; export it first")
        return key
    return os.environ.get(DEFAULT_KEY_ENV, "").strip() or None


def run_live(
    plan: Plan,
    *,
    out: Path | None,
    on_progress: ProgressSink,
    command: Sequence[str] = (),
    plan_file: Path | None = None,
) -> RunOutcome:
    """Runs the plan. Raises before anything was measured (wrong usage, target unreachable); later errors are returned.

    KeyboardInterrupt after the start ends the run early; the directory is sealed and marked aborted.
    """
    slos = parse_slos(plan.slos)
    api_key = read_api_key(plan)
    resolve_lengths(plan.workload, None)
    _check_writable(out)
    on_progress(_probing())
    facts = probe(plan.url, model=plan.model, api_key=api_key, ca_file=plan.ca_file)
    if plan.metrics_url is not None:
        facts = msgspec.structs.replace(facts, metrics_url=plan.metrics_url)
    if facts.api is not None and facts.model is None:
        raise UsageError(f"{facts.url} does not list its models; name the one to load with --model")
    if facts.api is None or facts.model is None:
        raise TargetError(
            f"{facts.url} answers neither /v1/chat/completions nor /v1/completions; "
            "see `pinchpoint probe` for what it does answer"
        )
    lengths = resolve_lengths(plan.workload, facts.limits.context_tokens)
    started_s = time.time()
    run_id = _run_id(plan, started_s)
    path = out or Path(RUNS_DIRECTORY) / run_id
    manifest = new_manifest(
        plan,
        facts,
        run_id,
        t0_ns=monotonic_ns(),
        started_wall=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started_s)),
        virtual=False,
        command=command,
    )
    writer = RunWriter(path, manifest)
    if plan_file is not None:
        (path / "plan.toml").write_bytes(plan_file.read_bytes())
    recorder = Recorder(writer, monotonic_ns, on_progress)
    address = resolve(facts.url)
    stream = plan.stream and facts.streaming is not False
    target = OpenAITarget(facts.api, facts.model, facts.engine, stream=stream, usage=facts.usage_in_stream is not False)
    headers = (("Authorization", f"Bearer {api_key}"),) if api_key else ()
    config = WorkerConfig(
        index=0,
        address=address,
        run_path=str(path),
        api_path=facts.api,
        model=facts.model,
        engine=facts.engine,
        stream=stream,
        usage=facts.usage_in_stream is not False,
        headers=headers,
        secrets=(api_key,) if api_key and len(api_key) >= KEY_MIN_CHARS else (),
        ca_file=plan.ca_file,
        timeouts=Timeouts(total_s=plan.timeout_s),
    )
    error: PinchpointError | None = None
    status, reason = "complete", None
    fleet = collector = search = None
    try:
        fleet = Fleet([config])
        collector = start_collector(
            CollectorConfig(
                out_dir=str(path.resolve()),
                metrics_url=facts.metrics_url,
                server_pids=facts.server_pids,
                client_pids=tuple(fleet.pids),
                null_request_url=_join(facts.url, facts.health_path),
                ca_file=plan.ca_file,
            ),
            api_key,
        )
        _await_ready(fleet)
        driver = LiveDriver(fleet, target, PromptWriter(plan.seed, facts.tokens_per_word, facts.prompt_overhead_tokens))
        search = Search(driver, recorder, Scheduler(plan.seed, lengths), plan, slos)
        search.on_baseline = lambda baseline: _refit(driver.prompts, baseline)
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
            for sentence in fleet.lost:
                recorder.on_event("worker-lost", message=sentence)
        if collector is not None:
            code = collector.stop()
            if complaint := collector.complaint():
                recorder.on_event("collector", exit_code=code, message=complaint)
        recorder.close()
        writer.seal(status, reason)
    return RunOutcome(path, error)


def _refit(prompts: PromptWriter, baseline: Baseline) -> None:
    """Corrects tokens per word by what the service counted in the warm-up, keeping the template's overhead."""
    if baseline.input_tokens is None:
        return
    planned = baseline.planned_input_tokens - prompts.overhead_tokens
    measured = baseline.input_tokens - prompts.overhead_tokens
    if planned > 0 and REFIT_RANGE[0] < measured / planned < REFIT_RANGE[1]:
        prompts.tokens_per_word *= measured / planned


def _await_ready(fleet: Fleet) -> None:
    """The first update of a worker says that it has started; before that no step may be due."""
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    heard: set[int] = set()
    while len(heard) < fleet.size:
        if time.monotonic() > deadline_s:
            raise PinchpointError(
                f"the load process did not start within {READY_TIMEOUT_S:g} s; this host is overloaded"
            )
        heard.update(update.worker for update in fleet.poll(0.2))


def _join(url: str, path: str | None) -> str | None:
    return None if path is None else url.rstrip("/") + path


def _run_id(plan: Plan, started_s: float) -> str:
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(started_s))
    digest = hashlib.sha256(f"{plan.url}{plan.seed}{started_s}".encode()).hexdigest()[:6]
    return f"{stamp}-{plan.name}-{digest}"


def _check_writable(out: Path | None) -> None:
    """Before any load: the directory that will hold the run can be written."""
    if out is not None and out.exists():
        raise UsageError(f"{out} already exists; give another --out or remove it")
    parent = (out.parent if out else Path(RUNS_DIRECTORY)).absolute()
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write into {parent}; give a writable directory with --out")


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
