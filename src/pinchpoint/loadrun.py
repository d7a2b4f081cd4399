"""A plain load: the stages of a plan, one after the other, without search and without diagnosis.

Needs nothing of the service but the API under load. The stages follow each other without a pause: the next one begins
at the instant at which the one before stops sending, while its last answers may still be under way. From the moment the
run directory exists, every way out (done, Ctrl-C, a guard, dead load processes) closes the writers and seals.
"""

import ssl
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np

from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.errors import GuardError, PinchpointError, UsageError
from pinchpoint.fetch import FetchError, exchange, tls_context
from pinchpoint.launch import (
    DEFAULT_API,
    DEFAULT_MODEL,
    Access,
    RunOutcome,
    begin_run,
    check_host,
    check_writable,
    content_of,
    fitted,
    open_access,
    peak_rps,
    read_api_key,
    target_specs,
    tell_hellos,
    tell_host,
    tell_lost,
    users_of,
    with_key_headers,
    worker_configs,
    worker_count,
)
from pinchpoint.load.counters import Totals, quantile_of
from pinchpoint.load.fleet import Fleet
from pinchpoint.load.messages import Command
from pinchpoint.load.rpc_models import described
from pinchpoint.model import Limits, Progress, Stage, TargetFacts
from pinchpoint.plan import WARM_CONNECTIONS_MAX, Plan, StageSpec, TelemetrySpec
from pinchpoint.recorder import ProgressSink, Recorder
from pinchpoint.targets.registry import kind_of, split_url
from pinchpoint.tokenizing import token_table
from pinchpoint.workload.classes import cuts, resolve, slos_of, workload_title
from pinchpoint.workload.schedule import Scheduler, StageLoad, check_stages

LEAD_S = 0.1
"""From handing out a stage to its first instant: time to read the order and to write the first bodies."""
CONNECT_S = 0.0002
TLS_CONNECT_S = 0.002
"""CPU time of opening a connection: so much more lead for each that is opened ahead."""
AHEAD_S = 1.0
"""The next stage is handed out so long before it begins."""
POLL_S = 0.1
PROGRESS_PERIOD_S = 0.25
PROGRESS_WINDOW_S = 5.0
POOL_REQUESTS_MIN = 2048
POOL_REQUESTS_PER_USER = 16
POOL_LOW_S = 2.0
"""A closed loop gets more requests when those it has left last shorter than this at its present pace."""
POOL_GROWTH_S = 6.0
CANCEL_PATIENCE_S = 5.0
MEANT_END_NS = 2**62
"""End of a stage that ends with its requests, as long as nobody knows when: beyond any clock."""
DRAIN_SPARE_S = 5.0
"""Requests end by their own timeouts; a load process that does not end one is given up so much later."""
MODELS_TIMEOUT_S = 2.0
HTTP_OK = 200
MODELS_BYTES_MAX = 1 << 20
OWNERS = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}
"""`owned_by` of /v1/models -> engine, so that answers of the asked length can be asked for."""


def run_load(
    plan: Plan,
    *,
    out: Path | None,
    on_progress: ProgressSink,
    command: Sequence[str] = (),
    plan_file: Path | None = None,
    usage: bool = True,
    force: bool = False,
) -> RunOutcome:
    """Runs the stages of the plan. Raises before anything was sent; later errors are returned.

    usage: ask for usage in streams. force: send even
    what this host cannot, and mark the run. Raises UnsupportedMeasurementError for a plan beyond the host's limits.
    """
    if not plan.stages:
        raise UsageError("a load needs --rate, --concurrency or a plan with [[stages]]; `pinchpoint run` searches")
    if plan.profile is not None:
        from pinchpoint.capture import check_profile

        check_profile(plan.profile)
    api_key = read_api_key(plan)
    check_stages(plan)
    check_writable(out)
    plan = _split_api(plan)
    traffic = resolve(plan, None)
    slos = slos_of(plan, traffic)
    access = open_access(plan, api_key)
    workers = worker_count(plan, shared_host=access.local)
    fleet = Fleet(workers)
    try:
        facts = _facts(plan, access)
        traffic = resolve(plan, facts.limits.context_tokens)
        specs = target_specs(plan, facts, traffic, stream=plan.stream, usage=usage)
        specs = described(specs, access.endpoints, access.headers, _tls(plan, access))
        traffic = fitted(traffic, specs)
        access = with_key_headers(access, specs, api_key)
        table = token_table(plan, facts, traffic, access, ask=bool(facts.models))
        limits, problems = check_host(plan, traffic, workers, len(access.endpoints), force=force)
        asked = plan.metrics_url is not None or plan.telemetry != TelemetrySpec()
        collecting = None
        if asked:
            from pinchpoint.collecting import Collecting  # what a plain load without telemetry need not wait for

            collecting = Collecting(plan, facts, api_key, local=access.local)
        writer = begin_run(plan, facts, out, command=command, plan_file=plan_file)
    except BaseException:  # also an interrupt: nobody else would end the load processes
        fleet.close()
        raise
    path = writer.path
    recorder = Recorder(writer, monotonic_ns, on_progress)
    recorder.on_workload(workload_title(plan), tuple(one.name for one in traffic.classes))
    recorder.on_slos(slos, False)
    load = _Load(fleet, recorder, Scheduler.of(plan, traffic), plan)
    error: PinchpointError | None = None
    status, reason = "complete", None
    capture = None
    if plan.profile is not None:
        from pinchpoint.capture import Capture

        capture = Capture(
            plan.profile, facts, path, headers=dict(access.headers), tls=_tls(plan, access), local=access.local
        )
    try:
        tell_host(recorder, limits, problems, access)
        recorder.on_event("tokens", source=table.source, note=table.note)
        for sentence in cuts(resolve(plan, None), traffic):
            recorder.on_event("cut", message=sentence)
        warm = _warm_connections(plan)
        fleet.configure(
            worker_configs(
                plan,
                access,
                path,
                specs,
                content_of(plan, traffic, table),
                workers=workers,
                shared_host=access.local,
                warm_connections=warm,
                run_id=writer.manifest.run_id,
            )
        )
        load.prepare()
        if collecting is not None:
            collecting.start(path, writer.manifest.run_id, fleet.pids, recorder)
        fleet.await_ready()
        if collecting is not None:
            collecting.check()
        tell_hellos(fleet, recorder)
        connections = max(warm, users_of(plan.stages[0]))
        planned_s = sum(getattr(spec, "duration_s", None) or 0.0 for spec in plan.stages) or None
        if collecting is not None:
            collecting.sample_stacks(path, planned_s)
        if capture is not None:
            capture.start(planned_s)
        load.run(lead_s=LEAD_S + connections * (TLS_CONNECT_S if access.endpoints[0].tls else CONNECT_S))
    except KeyboardInterrupt:
        status, reason = "aborted", "interrupted by the user"
        load.interrupt(reason)
    except PinchpointError as caught:
        status, reason, error = "aborted", str(caught), caught
        load.interrupt(reason)
    finally:
        fleet.close()
        tell_lost(fleet, recorder)
        if capture is not None:
            capture.finish(recorder)
        if collecting is not None:
            collecting.finish(path, recorder)
        recorder.close()
        writer.seal(status, reason)
    return RunOutcome(path, error)


class _Running(NamedTuple):
    """A stage that was handed out. end_ns: nothing is sent from then on; None: until its requests are over."""

    index: int
    asked: StageLoad
    t0_ns: int
    end_ns: int | None


class _Load:
    """Hands out the stages in time, keeps closed loops supplied, watches, shows progress."""

    def __init__(self, fleet: Fleet, recorder: Recorder, scheduler: Scheduler, plan: Plan) -> None:
        self._fleet = fleet
        self._recorder = recorder
        self._scheduler = scheduler
        self._plan = plan
        self._max_in_flight = max(plan.max_in_flight, *(users_of(spec) for spec in plan.stages))
        self._next: StageLoad | None = None
        self._open: list[_Running] = []
        """Stages that were handed out and are not yet in the manifest."""
        self._orders = 0
        self._begun_ns = monotonic_ns()
        self._shown_ns = 0
        self._history: deque[tuple[int, Totals]] = deque()

    def prepare(self) -> None:
        """Makes the first schedule; the load processes start meanwhile."""
        self._next = self._make(0)

    def run(self, lead_s: float) -> None:
        t0_ns = monotonic_ns() + round(lead_s * NS_PER_S)
        for index in range(len(self._plan.stages)):
            running = self._begin(index, t0_ns)
            self._next = self._make(index + 1) if index + 1 < len(self._plan.stages) else None
            t0_ns = self._carry_out(running, last=self._next is None)
        self._settle()

    def interrupt(self, reason: str) -> None:
        """Sends nothing more, withdraws what is in flight, and keeps what was measured."""
        stopped_ns = monotonic_ns()
        if self._open and self._fleet.size:
            self._fleet.command(Command("cancel", reason))
            deadline_s = time.monotonic() + CANCEL_PATIENCE_S
            while self._fleet.size and self._fleet.totals().in_flight and time.monotonic() < deadline_s:
                try:
                    self._fleet.poll(POLL_S)
                except PinchpointError:
                    break
        self._close_stages(monotonic_ns(), reason, stopped_ns)

    def _make(self, index: int) -> StageLoad:
        spec = self._plan.stages[index]
        return self._scheduler.stage(index, spec, pool=max(POOL_REQUESTS_MIN, POOL_REQUESTS_PER_USER * users_of(spec)))

    def _begin(self, index: int, t0_ns: int) -> _Running:
        asked = self._next
        assert asked is not None
        end_ns = None if asked.duration_ns is None else t0_ns + asked.duration_ns
        running = _Running(index, asked, t0_ns, end_ns)
        self._open.append(running)
        self._recorder.on_schedule(asked.schedule)
        meant_ns = MEANT_END_NS if end_ns is None else end_ns
        self._recorder.on_running(self._stage(running, meant_ns, meant_ns))
        self._fleet.start_step(t0_ns, asked.schedule, asked.slots, follow=False, duration_ns=asked.duration_ns)
        self._orders += 1
        return running

    def _carry_out(self, running: _Running, *, last: bool) -> int:
        """Until it is time to hand out the next stage; returns when that one begins."""
        while True:
            totals = self._watch(running)
            now_ns = monotonic_ns()
            if self._is_over(totals):
                end_ns = running.end_ns
                return end_ns if end_ns is not None and end_ns > now_ns else now_ns + round(LEAD_S * NS_PER_S)
            if running.end_ns is not None and not last and now_ns >= running.end_ns - round(AHEAD_S * NS_PER_S):
                return running.end_ns
            if last and running.end_ns is not None and now_ns >= running.end_ns:
                return running.end_ns

    def _settle(self) -> None:
        """Waits for the last answers; each ends by its own timeouts."""
        deadline_s = time.monotonic() + self._plan.timeout_s + DRAIN_SPARE_S
        running = self._open[-1]
        while not self._is_over(self._watch(running)):
            if time.monotonic() > deadline_s:
                self._fleet.command(Command("cancel", "the load ended and the request had outlived its timeout"))
                break
        self._close_stages(monotonic_ns(), "")

    def _is_over(self, totals: Totals) -> bool:
        """Whether every order was read and everything that was to be sent has ended."""
        heard = totals.orders >= self._orders * self._fleet.size
        return heard and totals.unissued == 0 and totals.in_flight == 0

    def _watch(self, running: _Running) -> Totals:
        """One round: hears of dead processes, tops up, guards, shows."""
        lost = len(self._fleet.lost)
        self._fleet.poll(POLL_S)
        for sentence in self._fleet.lost[lost:]:
            self._recorder.on_event("client", message=sentence)
        totals, now_ns = self._fleet.totals(), monotonic_ns()
        self._history.append((now_ns, totals))
        while len(self._history) > 2 and self._history[1][0] < now_ns - round(PROGRESS_WINDOW_S * NS_PER_S):
            self._history.popleft()
        if totals.in_flight > self._max_in_flight:
            raise GuardError(
                f"stopped by the guard: {totals.in_flight} requests were unanswered, {self._max_in_flight} are allowed "
                "(--max-in-flight)"
            )
        if running.asked.endless:
            self._top_up(running, totals, now_ns)
        if now_ns - self._shown_ns >= PROGRESS_PERIOD_S * NS_PER_S:
            self._shown_ns = now_ns
            self._recorder.on_progress(self._progress(running, totals, now_ns))
        return totals

    def _top_up(self, running: _Running, totals: Totals, now_ns: int) -> None:
        if totals.orders < self._orders * self._fleet.size:
            return  # what was sent last is not yet counted
        (then_ns, before), (_, latest) = self._history[0], self._history[-1]
        pace_rps = (latest.issued - before.issued) / max((now_ns - then_ns) / NS_PER_S, POLL_S)
        users = running.asked.concurrency or 1
        if totals.pool_left > POOL_LOW_S * pace_rps + POOL_REQUESTS_PER_USER * users / 2:
            return
        if running.end_ns is not None and now_ns >= running.end_ns:
            return
        wanted = max(POOL_REQUESTS_MIN, POOL_REQUESTS_PER_USER * users, round(POOL_GROWTH_S * pace_rps))
        more = self._scheduler.more(running.index, wanted)
        self._recorder.on_schedule(more)
        self._fleet.start_step(running.t0_ns, more, follow=False, duration_ns=running.asked.duration_ns)
        self._orders += 1

    def _close_stages(self, now_ns: int, reason: str, stopped_ns: int | None = None) -> None:
        """stopped_ns: nothing was sent from then on, though more was meant to be."""
        for running in self._open:
            ends = [at_ns for at_ns in (running.end_ns, stopped_ns) if at_ns is not None]
            self._recorder.on_stage(self._stage(running, min(ends, default=now_ns), now_ns, reason))
        self._open.clear()

    def _stage(self, running: _Running, t1_ns: int, drained_ns: int, reason: str = "") -> Stage:
        spec, asked = self._plan.stages[running.index], running.asked
        return Stage(
            index=running.index,
            kind="load",
            name=spec.name or f"stage {running.index + 1}",
            t0_ns=running.t0_ns,
            t1_ns=max(running.t0_ns + 1, min(t1_ns, drained_ns)),
            drained_ns=max(running.t0_ns + 1, drained_ns),
            settle_ns=0,
            rate_rps=asked.rate_rps,
            concurrency=asked.concurrency,
            think_s=asked.think_s,
            arrivals=asked.arrivals,
            profile=asked.profile,
            reason=reason,
        )

    def _progress(self, running: _Running, totals: Totals, now_ns: int) -> Progress:
        (then_ns, before) = self._history[0]
        elapsed_s = max((now_ns - then_ns) / NS_PER_S, 1e-3)
        ttft = totals.ttft_counts - before.ttft_counts if then_ns < now_ns else totals.ttft_counts
        tpot = totals.tpot_counts - before.tpot_counts if then_ns < now_ns else totals.tpot_counts
        left_s = _left_s(self._plan.stages[running.index :], running, now_ns)
        name = self._plan.stages[running.index].name or f"stage {running.index + 1} of {len(self._plan.stages)}"
        return Progress(
            phase="load",
            detail=name,
            elapsed_s=(now_ns - self._begun_ns) / NS_PER_S,
            left_s=left_s,
            rate_rps=running.asked.rate_rps,
            in_flight=totals.in_flight,
            completed=totals.ok,
            errors=totals.failed,
            output_tokens_per_s=max(0.0, (totals.tokens - before.tokens) / elapsed_s),
            ttft_p50_s=quantile_of(np.maximum(ttft, 0), 0.5),
            ttft_p95_s=quantile_of(np.maximum(ttft, 0), 0.95),
            tpot_p50_s=quantile_of(np.maximum(tpot, 0), 0.5),
            tpot_p95_s=quantile_of(np.maximum(tpot, 0), 0.95),
            lower_rps=None,
            upper_rps=None,
        )


def _left_s(specs: Sequence[StageSpec], running: _Running, now_ns: int) -> float | None:
    """Time to the end of sending; None when a stage ends with its requests and nobody knows when."""
    if running.end_ns is None:
        return None
    left_s = (running.end_ns - now_ns) / NS_PER_S
    for spec in specs[1:]:
        duration_s = getattr(spec, "duration_s", None)
        if duration_s is None:
            return None
        left_s += duration_s
    return max(0.0, left_s)


def _warm_connections(plan: Plan) -> int:
    """Connections that are opened before the first stage, of all workers together. A closed loop adds its users."""
    if plan.transport.new_connections:
        return 0
    if plan.transport.warm_connections is not None:
        return plan.transport.warm_connections
    return min(WARM_CONNECTIONS_MAX, int(np.ceil(peak_rps(plan.stages[0]))))


def _split_api(plan: Plan) -> Plan:
    """A URL that names the API itself: its base, and the API."""
    base, path = split_url(plan.url)
    return plan if path is None else msgspec.structs.replace(plan, url=base, api=plan.api or path)


def _path_of(api: str) -> str:
    """For the report. Raises UsageError for a target that there is not."""
    return api if api.startswith("/") else kind_of(api).path or api


class _Model(msgspec.Struct):
    id: str
    owned_by: str = ""
    max_model_len: int | None = None
    """Context in tokens, where the service tells it: vLLM and SGLang do."""


class _Models(msgspec.Struct):
    data: list[_Model] = []


class _Settings(msgspec.Struct):
    n_ctx: int | None = None


class _Props(msgspec.Struct):
    default_generation_settings: _Settings = msgspec.field(default_factory=_Settings)


def _facts(plan: Plan, access: Access) -> TargetFacts:
    """What is known without a probe: the model from /v1/models, if there is such a page, and else the plan's."""
    grpc = kind_of(plan.api or DEFAULT_API).transport == "grpc"
    if not grpc and plan.url.startswith(("grpc://", "grpcs://")):
        raise UsageError(f"{plan.url} is a gRPC service; say which API it has with --api kserve-grpc or tfserving-grpc")
    direct = not grpc and plan.transport.proxy is None and plan.transport.unix_socket is None
    models = _page(plan, access, "/v1/models", _Models) if direct else None
    listed = tuple(model.id for model in models.data) if models is not None else ()
    engine = next((OWNERS[m.owned_by] for m in models.data if m.owned_by in OWNERS), None) if models else None
    unknown = () if listed or grpc else ("the service lists no models",)
    model = plan.model or (listed[0] if listed else DEFAULT_MODEL)
    contexts = {each.id: each.max_model_len for each in models.data} if models is not None else {}
    return TargetFacts(
        url=plan.url,
        engine=engine or "unknown",
        engine_evidence=("owned_by of /v1/models",) if engine else (),
        api=_path_of(plan.api or DEFAULT_API),
        models=listed,
        model=model,
        streaming=plan.stream,
        limits=Limits(context_tokens=contexts.get(model) or _context_of_slots(plan, access, engine)),
        metrics_url=plan.metrics_url,
        unknown=unknown,
    )


def _context_of_slots(plan: Plan, access: Access, engine: str | None) -> int | None:
    """llama.cpp's context of each slot, which its list of models does not tell; None where there is no such page."""
    if engine != "llama.cpp":
        return None
    told = _page(plan, access, "/props", _Props)
    if told is None:
        return None
    tokens = told.default_generation_settings.n_ctx
    return tokens if tokens is not None and tokens > 0 else None


def _tls(plan: Plan, access: Access) -> ssl.SSLContext | None:
    return tls_context(plan.ca_file) if access.endpoints[0].tls else None


PageT = TypeVar("PageT")


def _page(plan: Plan, access: Access, path: str, kind: type[PageT]) -> PageT | None:
    """A page beside the API; None when there is no such page, or it says nothing that we understand: a load does not
    need it."""
    try:
        answer = exchange(
            "GET",
            plan.url.rstrip("/").removesuffix("/v1") + path,
            headers=dict(access.headers),
            timeout_s=MODELS_TIMEOUT_S,
            max_bytes=MODELS_BYTES_MAX,
            tls=_tls(plan, access),
        )
        return msgspec.json.decode(answer.body, type=kind) if answer.status == HTTP_OK else None
    except (FetchError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
