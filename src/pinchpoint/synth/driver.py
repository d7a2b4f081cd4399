"""search.Driver on a simulated clock: sends what is due, takes what the lab's service answers, writes records.

Where no request depends on another's end, the service is advanced from one due instant to the next in one go; in a
closed loop, in conversations and behind a full pool of connections it stops at the end of each request.
"""

import heapq
from collections import deque
from operator import sub

from pinchpoint.clock import NS_PER_S
from pinchpoint.lab.events import ClientEvent
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.service import VirtualService
from pinchpoint.load.messages import Outcome, Pending, Update
from pinchpoint.model import NO_PORT_ERROR, RECORD_COLUMNS
from pinchpoint.plan import Plan
from pinchpoint.rundir import RunWriter
from pinchpoint.schedule import AFTER, NEVER, Schedule, ScheduledRequest, Slots
from pinchpoint.synth.asks import Asks
from pinchpoint.synth.client import ClientModel, Flight
from pinchpoint.synth.telemetry import Telemetry
from pinchpoint.telemetry.config import Reading, event, own

SCRAPE_PERIOD_S = 0.5
"""As the live collector."""
CLIENT_PERIOD_NS = NS_PER_S
"""As the load processes."""
NO_SLOT = -1
"""End of the slot of a request that belongs to none."""
HTTP_OK = 200
REFUSALS = (429, 503)
WORKER = "worker=0"
ERRORS = {
    "connect_refused": ("transport_error", "connection refused", "connect"),
    "connect_timeout": ("timeout", "no connection in time", "connect"),
    "reset": ("transport_error", "connection reset by the service", "headers"),
    "timeout": ("timeout", "the connection timed out", "headers"),
}
"""ClientEvent.error -> status, words and phase of the record; a reset inside an answer is of its tokens."""


class VirtualDriver:
    """onset: when (s) the service becomes another one, and what it is then; None: it stays as it is. scrape_period_s:
    of the metrics page, the service's machine and the null request."""

    def __init__(
        self,
        service: VirtualService,
        writer: RunWriter,
        plan: Plan,
        asks: Asks,
        telemetry: Telemetry,
        *,
        onset: tuple[float, LabParams] | None = None,
        scrape_period_s: float = SCRAPE_PERIOD_S,
    ) -> None:
        self._service = service
        self._plan = plan
        self._asks = asks
        self._telemetry = telemetry
        self._records = writer.part("records", "0")
        self._client = ClientModel(service.params.client, service.params.path.keep_alive)
        self._asks.repeat(service.params.client.repeated_prompts)
        self._onset = None if onset is None else (round(onset[0] * NS_PER_S), onset[1])
        self._scrape_period_ns = round(scrape_period_s * NS_PER_S)
        self._now_ns = 0
        self._next_scrape_ns = self._next_client_ns = 0
        self._stage = 0
        self._due: list[tuple[int, int, ScheduledRequest | None, int]] = []
        """Heap of (instant, order, request, end of its slot); without a request a slot takes its first session."""
        self._order = 0
        self._due_requests = 0
        self._later: dict[int, deque[ScheduledRequest]] = {}
        """session_id -> turns that wait for the one before."""
        self._later_requests = 0
        self._pool: deque[ScheduledRequest] = deque()
        """Sessions that the slots have not taken yet."""
        self._deadlines: list[tuple[int, int, str]] = []
        """Heap of (instant, request_id, why) at which an answer is given up, if it has not ended."""
        self._starved: list[int] = []
        """Ends of the slots that found the pool empty."""
        self._flights: dict[int, Flight] = {}
        self._slotted = 0
        """Flights that have a slot."""
        self._outcomes: list[Outcome] = []
        self._tokens = 0

    def now_ns(self) -> int:
        return self._now_ns

    # -- stages ------------------------------------------------------------------------------------------------------

    def start_step(self, stage: int, t0_ns: int, schedule: Schedule, slots: Slots | None) -> None:
        if stage != self._stage:
            self._stage = stage
            self._starved.clear()
        for request in schedule:
            if request.offset_ns != AFTER:
                self._push(t0_ns + request.offset_ns, request, NO_SLOT)
            elif request.turn > 0:
                self._later.setdefault(request.session_id, deque()).append(request)
                self._later_requests += 1
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
        self._due_requests += request is not None
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
        self._due_requests = self._later_requests = 0

    def cancel(self, reason: str) -> None:
        for request_id in list(self._flights):
            self._withdraw(request_id, "cancelled", reason)

    def close(self) -> None:
        self._records.close()

    # -- time --------------------------------------------------------------------------------------------------------

    def poll(self, timeout_s: float) -> list[Update]:
        self._advance(self._now_ns + round(timeout_s * NS_PER_S))
        outcomes, self._outcomes = self._outcomes, []
        pending = [
            Pending(
                request_id=flight.request.request_id,
                stage=flight.request.stage,
                scheduled_ns=flight.scheduled_ns,
                first_token_ns=flight.chunk_ns[0] if flight.chunk_ns else None,
                has_first_byte=bool(flight.chunk_ns),
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
                busy_ratio=self._client.busy_ratio,
            )
        ]

    def _unissued(self) -> int:
        """Requests that can still be sent: those of a pool only while a slot is there to take them."""
        slots = len(self._due) - self._due_requests + self._slotted
        return self._due_requests + self._later_requests + (len(self._pool) if slots else 0)

    @property
    def _reacts(self) -> bool:
        """Whether the end of a request may send another."""
        return bool(self._slotted or self._later or self._starved) or self._client.reacts

    def _advance(self, to_ns: int) -> None:
        service, due, deadlines = self._service, self._due, self._deadlines
        while True:
            while deadlines and deadlines[0][1] not in self._flights:
                heapq.heappop(deadlines)
            step_ns = min(to_ns, self._next_scrape_ns, self._next_client_ns)
            if due:
                step_ns = min(step_ns, due[0][0])
            if deadlines:
                step_ns = min(step_ns, deadlines[0][0])
            if self._onset is not None:
                step_ns = min(step_ns, self._onset[0])
            step_ns = max(step_ns, self._now_ns)
            if self._reacts:
                step_ns, events = service.advance_to_end(step_ns)
            else:
                events = service.advance(step_ns)
            self._now_ns = step_ns
            if events:
                self._take(events)
            if self._onset is not None and step_ns >= self._onset[0]:
                self._change(*self._onset)
                self._onset = None
            if step_ns >= self._next_scrape_ns:
                self._scrape()
            if step_ns >= self._next_client_ns:
                self._read_client()
            while deadlines and deadlines[0][0] <= step_ns:
                self._give_up(*heapq.heappop(deadlines)[1:])
            while due and due[0][0] <= step_ns:
                at_ns, _, request, slot_until_ns = heapq.heappop(due)
                if request is None:
                    self._seat(at_ns, slot_until_ns, think=False)
                else:
                    self._due_requests -= 1
                    self._issue(Flight(request, at_ns, slot_until_ns))
            if step_ns >= to_ns:
                return

    def _change(self, t_ns: int, params: LabParams) -> None:
        self._service.change(t_ns, params)
        self._telemetry.change(params)
        self._client.change(params.client, params.path.keep_alive)
        self._asks.repeat(params.client.repeated_prompts)
        self._release()

    # -- sending -----------------------------------------------------------------------------------------------------

    def _issue(self, flight: Flight) -> None:
        """The request is due; with the client's connections all in use it waits for one."""
        request = flight.request
        self._flights[request.request_id] = flight
        self._slotted += flight.slot_until_ns != NO_SLOT
        if request.patience_ns != NEVER:
            heapq.heappush(self._deadlines, (flight.scheduled_ns + request.patience_ns, request.request_id, "patience"))
        self._due_by(flight, self._plan.timeout_s, "total")
        if self._plan.first_token_timeout_s is not None:
            self._due_by(flight, self._plan.first_token_timeout_s, "first-token")
        if self._client.full:
            self._client.waiting.append(flight)
        else:
            self._send(flight)

    def _due_by(self, flight: Flight, limit_s: float, why: str) -> None:
        at_ns = flight.scheduled_ns + round(limit_s * NS_PER_S)
        heapq.heappush(self._deadlines, (at_ns, flight.request.request_id, why))

    def _send(self, flight: Flight) -> None:
        request, client, now_ns = flight.request, self._client, max(self._now_ns, flight.scheduled_ns)
        if client.params.users is not None:  # what it measures begins here: that is its fault
            flight.scheduled_ns = now_ns
        if not client.has_port(now_ns):
            self._finish(flight, now_ns, "dropped", NO_PORT_ERROR)
            return
        flight.sent_ns = client.send(now_ns)
        asked = self._asks.ask(request)
        flight.input_tokens, flight.shared_tokens = asked.input_tokens, asked.shared_tokens
        self._service.submit(
            flight.sent_ns,
            request.request_id,
            asked.prompt_tokens,
            request.max_output_tokens,
            self._plan.stream,
            asked.details,
        )

    def _release(self) -> None:
        client = self._client
        while client.waiting and not client.full:
            flight = client.waiting.popleft()
            if self._flights.get(flight.request.request_id) is flight:
                self._send(flight)

    # -- answers -----------------------------------------------------------------------------------------------------

    def _take(self, events: list[ClientEvent]) -> None:
        flights, client = self._flights, self._client
        loops = client.loops
        tokens = 0
        for one in events:
            kind = one.kind
            if kind == "chunk":
                flight = flights.get(one.request_id)
                if flight is None:
                    continue
                stamp_ns = client.read(flight, one.t_ns) if loops else one.t_ns
                tokens += one.tokens
                if one.tokens == 1 and flight.chunk_tokens is None:
                    flight.chunk_ns.append(stamp_ns)
                else:
                    flight.add_chunk(stamp_ns, one.tokens)
            elif kind == "null":
                self._take_null(one)
            elif (flight := flights.get(one.request_id)) is None:
                continue
            elif kind == "headers":
                flight.status = one.status
                flight.headers_ns = one.t_ns
                flight.connected_ns = one.connected_ns
                flight.retry_after_s = one.retry_after_s
            elif kind == "error":
                status, error, phase = ERRORS[one.error or "reset"]
                phase = "between-tokens" if flight.chunk_ns else phase
                self._finish(flight, one.t_ns, status, error, phase=phase)
            else:
                status = "ok" if flight.status == HTTP_OK else "rejected" if flight.status in REFUSALS else "http_error"
                error = None if status == "ok" else f"HTTP {flight.status}"
                self._finish(flight, client.seen_ns(flight, one.t_ns), status, error, end=one)
        self._tokens += tokens

    def _take_null(self, one: ClientEvent) -> None:
        if one.latency_s is None:
            self._telemetry.note(one.t_ns, "null-request", [event("null_request_failed", "reason=refused")])
            return
        sent_ns = one.t_ns - round(one.latency_s * NS_PER_S)
        self._telemetry.note(sent_ns, "null-request", [own("probe.null_request_s", one.latency_s)])

    def _give_up(self, request_id: int, why: str) -> None:
        flight = self._flights.get(request_id)
        if flight is None or (why == "first-token" and flight.chunk_ns):
            return
        plan = self._plan
        if why == "patience":
            patience_s = flight.request.patience_ns / NS_PER_S
            self._withdraw(request_id, "abandoned", f"the user gave up after {patience_s:.3g} s")
        elif why == "first-token":
            self._withdraw(request_id, "timeout", f"no token within {plan.first_token_timeout_s:g} s", why)
        else:
            self._withdraw(request_id, "timeout", f"no whole answer within {plan.timeout_s:g} s", why)

    def _withdraw(self, request_id: int, status: str, error: str, phase: str | None = None) -> None:
        self._service.cancel(self._now_ns, request_id)
        self._finish(self._flights[request_id], self._now_ns, status, error, phase=phase)

    def _finish(
        self,
        flight: Flight,
        end_ns: int,
        status: str,
        error: str | None,
        *,
        phase: str | None = None,
        end: ClientEvent | None = None,
    ) -> None:
        request = flight.request
        del self._flights[request.request_id]
        self._slotted -= flight.slot_until_ns != NO_SLOT
        output_tokens = flight.output_tokens
        self._write(flight, end_ns, status, error, phase, end, output_tokens)
        self._outcomes.append(_outcome(flight, end_ns, status, error, end, output_tokens))
        if status == "ok":
            self._asks.answered(request, output_tokens)
        if flight.sent_ns is not None:
            self._client.ended(end_ns)
            self._release()
        following = self._later.get(request.session_id)
        if following and status == "abandoned":
            self._later_requests -= len(following)
            del self._later[request.session_id]
        elif following:
            upcoming = following.popleft()
            self._later_requests -= 1
            if not following:
                del self._later[request.session_id]
            self._push(end_ns + upcoming.think_ns, upcoming, flight.slot_until_ns)
            return
        self._asks.forget(request.session_id)
        if flight.slot_until_ns != NO_SLOT and request.stage == self._stage:
            self._seat(end_ns, flight.slot_until_ns, think=True)

    def _write(
        self,
        flight: Flight,
        end_ns: int,
        status: str,
        error: str | None,
        phase: str | None,
        end: ClientEvent | None,
        output_tokens: int,
    ) -> None:
        request, chunk_ns = flight.request, flight.chunk_ns
        first_ns = chunk_ns[0] if chunk_ns else None
        record = {
            "request_id": request.request_id,
            "stage": request.stage,
            "worker": 0,
            "scheduled_ns": flight.scheduled_ns,
            "sent_ns": flight.sent_ns,
            "connect_ns": flight.sent_ns if flight.connected_ns is not None or phase == "connect" else None,
            "connected_ns": flight.connected_ns,
            "headers_ns": flight.headers_ns,
            "first_byte_ns": first_ns,
            "first_token_ns": first_ns,
            "first_content_ns": first_ns,
            "last_token_ns": chunk_ns[-1] if chunk_ns else None,
            "end_ns": end_ns,
            "chunk_ns": chunk_ns,
            "chunk_tokens": flight.chunk_tokens,
            "coalesced_count": flight.coalesced,
            "timestamp_source": "virtual" if self._client.params.kernel_stamps else "user",
            "timestamp_error_ns": 0 if self._client.params.kernel_stamps else None,
            "chunk_error_ns": 0 if self._client.params.kernel_stamps else None,
            "input_tokens": end.prompt_tokens if end else None,
            "output_tokens": output_tokens,
            "token_source": "usage" if end and end.completion_tokens is not None else "events",
            "requested_input_tokens": flight.input_tokens,
            "requested_output_tokens": request.max_output_tokens,
            "bytes_in": 0,
            "http_status": flight.status,
            "status": status,
            "error": error,
            "finish_reason": end.finish_reason if end else None,
            "retry_after_s": flight.retry_after_s,
            "phase": phase,
            "attempts": 1 if flight.sent_ns is not None else None,
            "class_id": request.class_id,
            "shared_input_tokens": flight.shared_tokens,
        }
        self._records.append([tuple(map(record.get, RECORD_COLUMNS))])

    # -- readings ----------------------------------------------------------------------------------------------------

    def _scrape(self) -> None:
        now_ns = self._next_scrape_ns
        self._next_scrape_ns += self._scrape_period_ns
        if not self._telemetry.blind:
            self._telemetry.take(now_ns, self._service.state(now_ns))
        self._service.null_request(now_ns)

    def _read_client(self) -> None:
        now_ns = self._next_client_ns
        self._next_client_ns += CLIENT_PERIOD_NS
        values = self._client.readings(now_ns, CLIENT_PERIOD_NS / NS_PER_S)
        self._telemetry.note(now_ns, "client", [Reading(name, name, WORKER, value) for name, value in values.items()])


def _outcome(
    flight: Flight, end_ns: int, status: str, error: str | None, end: ClientEvent | None, output_tokens: int
) -> Outcome:
    request, chunk_ns, scheduled_ns = flight.request, flight.chunk_ns, flight.scheduled_ns
    first_ns = chunk_ns[0] if chunk_ns else None
    gaps = output_tokens - 1
    return Outcome(
        request_id=request.request_id,
        stage=request.stage,
        status=status,
        error=error,
        scheduled_ns=scheduled_ns,
        send_lag_s=(flight.sent_ns - scheduled_ns) / NS_PER_S if flight.sent_ns is not None else None,
        ttft_s=(first_ns - scheduled_ns) / NS_PER_S if first_ns is not None else None,
        tpot_s=(chunk_ns[-1] - first_ns) / NS_PER_S / gaps if first_ns is not None and gaps >= 1 else None,
        e2e_s=(end_ns - scheduled_ns) / NS_PER_S,
        itl_max_s=max(map(sub, chunk_ns[1:], chunk_ns)) / NS_PER_S if len(chunk_ns) > 1 else None,
        planned_input_tokens=flight.input_tokens,
        input_tokens=end.prompt_tokens if end else None,
        output_tokens=output_tokens,
        has_first_byte=first_ns is not None,
        since_first_token_s=(end_ns - first_ns) / NS_PER_S if first_ns is not None else None,
        max_output_tokens=request.max_output_tokens,
        http_status=flight.status,
    )
