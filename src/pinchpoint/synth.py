"""A complete run in virtual time: the lab's service on a simulated clock under the same search as a live run.

Nothing is copied from the fault into the run: requests meet the simulated mechanisms, metrics come from the service's
own page and pass through the same parser and catalogue as a real scrape. The name of the fault is not in the directory.
"""

import heapq
import itertools
import time
from collections import deque
from pathlib import Path

from pinchpoint.catalog import load_catalog
from pinchpoint.clock import NS_PER_S
from pinchpoint.lab.faults import choose_fault
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.service import ClientEvent, VirtualService
from pinchpoint.load.messages import Outcome, Pending, Update
from pinchpoint.model import RECORD_COLUMNS, Limits, Progress, TargetFacts
from pinchpoint.plan import Plan
from pinchpoint.recorder import Recorder, new_manifest
from pinchpoint.rundir import RunWriter
from pinchpoint.schedule import AFTER, NEVER, Schedule, ScheduledRequest, Slots
from pinchpoint.search import Search
from pinchpoint.telemetry.engine_page import EnginePage
from pinchpoint.workload.classes import resolve, slos_of, workload_title
from pinchpoint.workload.schedule import Scheduler, check_stages

SCRAPE_PERIOD_NS = NS_PER_S // 2
NULL_REQUEST_ID = -1
NO_SLOT = -1
"""End of the slot of a request that belongs to none."""
HOST_CPUS = 8
"""Size of the imagined host, for its CPU share."""


class _Flight:
    """One request between being sent and having ended."""

    __slots__ = (
        "chunk_ns",
        "chunk_tokens",
        "first_byte_ns",
        "request",
        "retry_after_s",
        "scheduled_ns",
        "slot_until_ns",
        "status",
    )

    def __init__(self, request: ScheduledRequest, scheduled_ns: int, slot_until_ns: int) -> None:
        self.request = request
        self.slot_until_ns = slot_until_ns
        self.scheduled_ns = scheduled_ns
        self.status: int | None = None
        self.first_byte_ns: int | None = None
        self.retry_after_s: float | None = None
        self.chunk_ns: list[int] = []
        self.chunk_tokens: list[int] = []


class VirtualDriver:
    """search.Driver on a simulated clock; writes records and telemetry as live collectors do."""

    def __init__(self, service: VirtualService, writer: RunWriter) -> None:
        self._service = service
        self._records = writer.part("records", "0")
        self._samples = writer.part("telemetry", "lab")
        self._page = EnginePage("", load_catalog())
        self._now_ns = 0
        self._next_scrape_ns = 0
        self._cpu_s, self._cpu_ns = 0.0, 0
        self._stage = 0
        self._due: list[tuple[int, int, ScheduledRequest | None, int]] = []
        """Heap of (instant, order, request, end of its slot); without a request a slot takes its first session."""
        self._order = 0
        self._later: dict[int, deque[ScheduledRequest]] = {}
        """session_id -> turns that wait for the one before."""
        self._pool: deque[ScheduledRequest] = deque()
        """Sessions that the slots have not taken yet."""
        self._patience: list[tuple[int, int]] = []
        """Heap of (instant, request_id) at which a user hangs up, if the answer has not ended."""
        self._starved: list[int] = []
        """Ends of the slots that found the pool empty."""
        self._flights: dict[int, _Flight] = {}
        self._outcomes: list[Outcome] = []
        self._tokens = 0

    def now_ns(self) -> int:
        return self._now_ns

    def start_step(self, stage: int, t0_ns: int, schedule: Schedule, slots: Slots | None) -> None:
        if stage != self._stage:
            self._stage = stage
            self._starved.clear()
        for request in schedule:
            if request.offset_ns != AFTER:
                self._push(t0_ns + request.offset_ns, request, NO_SLOT)
            elif request.turn > 0:
                self._later.setdefault(request.session_id, deque()).append(request)
            else:
                self._pool.append(request)
        if slots is not None:
            for start_ns, until_ns in zip(slots.start_ns.tolist(), slots.until_ns.tolist(), strict=True):
                self._push(t0_ns + start_ns, None, until_ns if until_ns == Slots.NO_END else t0_ns + until_ns)
        starved, self._starved = self._starved, []
        for until_ns in starved:
            self._push(self._now_ns, None, until_ns)

    def _push(self, at_ns: int, request: ScheduledRequest | None, slot_until_ns: int) -> None:
        self._order += 1
        heapq.heappush(self._due, (at_ns, self._order, request, slot_until_ns))

    def _seat(self, now_ns: int, slot_until_ns: int, *, think: bool) -> None:
        """A slot is free: it takes the next session, unless its end comes first."""
        if not self._pool:
            self._starved.append(slot_until_ns)
            return
        at_ns = now_ns + (self._pool[0].think_ns if think else 0)
        if at_ns < slot_until_ns:
            self._push(at_ns, self._pool.popleft(), slot_until_ns)

    def stop_issue(self) -> None:
        for waiting in (self._due, self._later, self._pool, self._starved):
            waiting.clear()

    def cancel(self, reason: str) -> None:
        for request_id, flight in list(self._flights.items()):
            self._service.cancel(self._now_ns, request_id)
            self._finish(flight, self._now_ns, "cancelled", reason, None)

    def poll(self, timeout_s: float) -> list[Update]:
        self._advance(self._now_ns + round(timeout_s * NS_PER_S))
        outcomes, self._outcomes = self._outcomes, []
        pending = [
            Pending(
                request_id=flight.request.request_id,
                stage=flight.request.stage,
                scheduled_ns=flight.scheduled_ns,
                first_token_ns=flight.chunk_ns[0] if flight.chunk_ns else None,
                has_first_byte=flight.first_byte_ns is not None,
                max_output_tokens=flight.request.max_output_tokens,
            )
            for flight in self._flights.values()
        ]
        return [
            Update(
                worker=0,
                t_ns=self._now_ns,
                outcomes=outcomes,
                pending=pending,
                unissued=self._unissued(),
                tokens=self._tokens,
                busy_ratio=0.0,
            )
        ]

    def _unissued(self) -> int:
        """Requests that can still be sent: those of a pool only while a slot is there to take them."""
        due = sum(request is not None for _, _, request, _ in self._due)
        slots = len(self._due) - due + sum(flight.slot_until_ns != NO_SLOT for flight in self._flights.values())
        return due + sum(map(len, self._later.values())) + (len(self._pool) if slots else 0)

    def close(self) -> None:
        self._records.close()
        self._samples.close()

    def _advance(self, to_ns: int) -> None:
        while True:
            due_ns = self._due[0][0] if self._due else to_ns
            next_ns = self._service.next_ns()
            hang_up_ns = self._patience[0][0] if self._patience else to_ns
            step_ns = min(due_ns, to_ns, self._next_scrape_ns, hang_up_ns, next_ns if next_ns is not None else to_ns)
            step_ns = max(step_ns, self._now_ns)
            for event in self._service.advance(step_ns):
                self._take(event)
            self._now_ns = step_ns
            if step_ns >= self._next_scrape_ns:
                self._scrape()
            while self._patience and self._patience[0][0] <= step_ns:
                self._hang_up(heapq.heappop(self._patience)[1])
            while self._due and self._due[0][0] <= step_ns:
                at_ns, _, request, slot_until_ns = heapq.heappop(self._due)
                if request is None:
                    self._seat(at_ns, slot_until_ns, think=False)
                    continue
                self._flights[request.request_id] = _Flight(request, at_ns, slot_until_ns)
                self._service.submit(at_ns, request.request_id, request.input_tokens, request.max_output_tokens)
                if request.patience_ns != NEVER:
                    heapq.heappush(self._patience, (at_ns + request.patience_ns, request.request_id))
            if step_ns >= to_ns:
                return

    def _hang_up(self, request_id: int) -> None:
        flight = self._flights.get(request_id)
        if flight is not None:
            self._service.cancel(self._now_ns, request_id)
            self._finish(flight, self._now_ns, "abandoned", "the user's patience was at its end", None)

    def _take(self, event: ClientEvent) -> None:
        if event.kind == "null":
            row = ("probe.null_request_s", "probe.null_request_s", "", event.latency_s or 0.0)
            self._samples.append([(event.t_ns, 0, "null-request", *row)])
            return
        flight = self._flights.get(event.request_id)
        if flight is None:
            return
        if event.kind == "headers":
            flight.status = event.status
            flight.retry_after_s = event.retry_after_s
        elif event.kind == "chunk":
            flight.first_byte_ns = flight.first_byte_ns or event.t_ns
            flight.chunk_ns.append(event.t_ns)
            flight.chunk_tokens.append(event.tokens)
            self._tokens += event.tokens
        else:
            status = "ok" if flight.status == 200 else "rejected" if flight.status in (429, 503) else "http_error"
            self._finish(flight, event.t_ns, status, None if status == "ok" else f"HTTP {flight.status}", event)

    def _finish(self, flight: _Flight, end_ns: int, status: str, error: str | None, event: ClientEvent | None) -> None:
        request = flight.request
        del self._flights[request.request_id]
        output_tokens = sum(flight.chunk_tokens)
        first_ns = flight.chunk_ns[0] if flight.chunk_ns else None
        last_ns = flight.chunk_ns[-1] if flight.chunk_ns else None
        record = {
            "request_id": request.request_id,
            "stage": request.stage,
            "worker": 0,
            "scheduled_ns": flight.scheduled_ns,
            "sent_ns": flight.scheduled_ns,
            "first_byte_ns": flight.first_byte_ns,
            "first_token_ns": first_ns,
            "first_content_ns": first_ns,
            "last_token_ns": last_ns,
            "end_ns": end_ns,
            "chunk_ns": flight.chunk_ns,
            "chunk_tokens": flight.chunk_tokens,
            "coalesced_count": 0,
            "timestamp_source": "virtual",
            "timestamp_error_ns": 0,
            "chunk_error_ns": 0,
            "input_tokens": event.prompt_tokens if event else None,
            "output_tokens": output_tokens,
            "token_source": "usage" if event and event.completion_tokens is not None else "events",
            "requested_input_tokens": request.input_tokens,
            "requested_output_tokens": request.max_output_tokens,
            "class_id": request.class_id,
            "bytes_in": 0,
            "http_status": flight.status,
            "status": status,
            "error": error,
            "finish_reason": event.finish_reason if event else None,
            "retry_after_s": flight.retry_after_s,
        }
        self._records.append([tuple(record.get(column) for column in RECORD_COLUMNS)])
        gaps = output_tokens - 1
        self._outcomes.append(
            Outcome(
                request_id=request.request_id,
                stage=request.stage,
                status=status,
                error=error,
                scheduled_ns=flight.scheduled_ns,
                send_lag_s=0.0,
                ttft_s=(first_ns - flight.scheduled_ns) / NS_PER_S if first_ns else None,
                tpot_s=(last_ns - first_ns) / NS_PER_S / gaps if first_ns and last_ns and gaps >= 1 else None,
                e2e_s=(end_ns - flight.scheduled_ns) / NS_PER_S,
                itl_max_s=max((b - a for a, b in itertools.pairwise(flight.chunk_ns)), default=0) / NS_PER_S
                if len(flight.chunk_ns) > 1
                else None,
                planned_input_tokens=request.input_tokens,
                input_tokens=event.prompt_tokens if event else None,
                output_tokens=output_tokens,
                has_first_byte=flight.first_byte_ns is not None,
                since_first_token_s=(end_ns - first_ns) / NS_PER_S if first_ns else None,
                max_output_tokens=request.max_output_tokens,
                http_status=flight.status,
            )
        )
        following = self._later.get(request.session_id)
        if following and status == "abandoned":
            del self._later[request.session_id]
        elif following:
            upcoming = following.popleft()
            self._push(end_ns + upcoming.think_ns, upcoming, flight.slot_until_ns)
            return
        if flight.slot_until_ns != NO_SLOT and request.stage == self._stage:
            self._seat(end_ns, flight.slot_until_ns, think=True)

    def _scrape(self) -> None:
        now_ns = self._next_scrape_ns
        self._next_scrape_ns += SCRAPE_PERIOD_NS
        readings = self._page.read_page(self._service.metrics_page(now_ns).encode())
        self._samples.append((now_ns, 0, "engine", r.raw, r.series, r.labels, r.value) for r in readings)
        process = self._service.process_readings(now_ns)
        elapsed_s = (now_ns - self._cpu_ns) / NS_PER_S
        cores = (process["cpu_s"] - self._cpu_s) / elapsed_s if elapsed_s > 0 else 0.0
        self._cpu_s, self._cpu_ns = process["cpu_s"], now_ns
        self._own(now_ns, "server", {
            "server.cpu_cores": cores,
            "server.listener_cpu_cores": cores,
            "server.thread_cpu_max_cores": cores,
            "server.rss_bytes": process["rss_bytes"],
            "server.open_files": process["open_fds"],
            "server.threads": process["threads"],
        })  # fmt: skip
        self._own(now_ns, "host", {"host.cpu_used_ratio": min(1.0, cores / HOST_CPUS)})
        self._own(now_ns, "client", {"client.loop_busy_ratio": 0.0, "client.in_flight": float(len(self._flights))})
        self._service.null_request(now_ns)

    def _own(self, t_ns: int, source: str, readings: dict[str, float]) -> None:
        self._samples.append((t_ns, 0, source, name, name, "", value) for name, value in readings.items())


def run_virtual(plan: Plan, fault: str, out: Path, *, params: LabParams | None = None) -> Path:
    """Searches the lab's service with `fault` in virtual time and seals the run in `out`.

    Raises UsageError for an unknown fault or an output directory that cannot be used.
    """
    check_stages(plan)
    chosen = choose_fault(fault, plan.seed).apply(params or LabParams())
    service = VirtualService(chosen, plan.seed)
    traffic = resolve(plan, chosen.max_model_len_tokens())
    slos = slos_of(plan, traffic)
    manifest = new_manifest(
        plan,
        _facts(plan, chosen),
        out.name,
        t0_ns=0,
        started_wall=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        virtual=True,
    )
    writer = RunWriter(out, manifest)
    driver = VirtualDriver(service, writer)
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
        recorder.close()
        writer.seal(status, reason)
    return out


def _ignore(progress: Progress) -> None:
    """Virtual runs end before a screen could be read."""


def _facts(plan: Plan, params: LabParams) -> TargetFacts:
    """What the probe would find out about this service over HTTP, and no more."""
    kv_tokens = params.num_kv_blocks() * params.block_size_tokens
    return TargetFacts(
        url=plan.url,
        engine="vllm",
        engine_version="pinchpoint-lab, virtual time",
        engine_evidence=("vllm: metric names",),
        api="/v1/chat/completions",
        models=(params.model,),
        model=params.model,
        streaming=True,
        usage_in_stream=True,
        limits=Limits(kv_tokens=kv_tokens, context_tokens=params.max_model_len_tokens()),
        limit_sources={"kv_tokens": "cache_config_info", "context_tokens": "/v1/models max_model_len"},
        health_path="/health",
        unknown=("max sequences: vLLM does not expose --max-num-seqs",),
    )
