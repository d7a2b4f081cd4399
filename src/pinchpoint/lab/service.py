"""The whole service in virtual time: path, gateway, router, replicas, proxy, path again.

A discrete-event simulation; no sockets, no waiting. Client events are made when their instant is known, which is often
earlier, and handed out when their time comes. Each request ends with one "end" or "error", unless its client cancels.
"""

import heapq
from collections.abc import Callable
from functools import partial

from pinchpoint.clock import NS_PER_S
from pinchpoint.lab.engine import Engine
from pinchpoint.lab.events import NULL_REQUEST_ID, PLAIN, ClientEvent, Details, ReplicaState, ServiceState
from pinchpoint.lab.front import Servers
from pinchpoint.lab.gateway import GATEWAY_TIMEOUT, RateLimit
from pinchpoint.lab.outbox import Outbox
from pinchpoint.lab.pages import EPOCH_UNIX_S, engine_page
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.path import (
    BYTES_PER_PROMPT_TOKEN,
    CONNECT_TIMEOUT_NS,
    HEAD_BYTES,
    IMAGE_BYTES_PER_TOKEN,
    REQUEST_HEAD_BYTES,
    SYN_RETRY_NS,
    LossyStream,
    packets_of,
)
from pinchpoint.lab.proxy import Proxy
from pinchpoint.lab.replica import Replica, refusal_events
from pinchpoint.lab.requests import Attempt, Request
from pinchpoint.lab.router import Router, next_look_ns, replica_params, wanted_replicas

__all__ = [
    "NULL_REQUEST_ID",
    "PLAIN",
    "ClientEvent",
    "Details",
    "ReplicaState",
    "ServiceState",
    "VirtualService",
]

Call = Callable[[int], None]


class VirtualService:
    """A service with `params`. All instants in ns of one virtual clock; same seed and calls give the same events.

    A request_id is used once. Instants given to submit, null_request and cancel may lie ahead. One that is already
    simulated (before the latest advance, change, or look at the service) counts as that latest instant.
    """

    def __init__(self, params: LabParams, seed: int) -> None:
        params.validate()
        self.params = params
        self._seed = seed
        self._now_ns = 0
        self._events: list[tuple[int, int, Call]] = []
        self._background: list[tuple[int, int, Call]] = []
        """What goes on without requests: faults of GPUs, looks of the autoscaler."""
        self._event_count = 0
        self._requests: dict[int, Request] = {}
        self._announced = 0
        """Requests and null requests that were submitted and have not been sent yet."""
        self.outbox = Outbox()
        self.dependency = Servers(params.front.dependency_slots)
        self._rate_limit = RateLimit(params)
        self._router = Router(params, seed)
        self._proxy = Proxy(params)
        self._faults = 0
        self._looking = False
        self._apply(params)
        self._replicas: list[Replica] = []
        for _ in range(params.front.replicas):
            self._add_replica(0).start(0)
        self._expect_faults(0)

    def _apply(self, params: LabParams) -> None:
        self.params = params
        front = params.front
        self._timeout_ns = None if front.gateway_timeout_s is None else round(front.gateway_timeout_s * NS_PER_S)
        self.holds_headers = self._timeout_ns is not None
        self.holds_back = params.proxy_buffering
        self._one_way_ns = round(params.path.rtt_s / 2 * NS_PER_S)
        self._dns_ns = round(params.path.dns_s * NS_PER_S)

    @property
    def engine(self) -> Engine:
        """The first replica's first, for looking at, in tests; not for changing."""
        group = self._replicas[0].group
        assert group is not None
        return group.engines[0]

    @property
    def replicas(self) -> list[Replica]:
        """For looking at, not for changing."""
        return self._replicas

    # What clients do

    def submit(
        self,
        t_ns: int,
        request_id: int,
        prompt_tokens: int,
        max_output_tokens: int,
        stream: bool = True,
        details: Details = PLAIN,
    ) -> None:
        """A client sends at t_ns. A request that is too long for the model is answered with status 400.

        max_output_tokens 0: only the prompt is computed, as for embeddings, and the answer comes in one piece.
        """
        request = Request(request_id, prompt_tokens, max_output_tokens, stream, details)
        self._announced += 1
        self.schedule(t_ns, partial(self._send, request))

    def cancel(self, t_ns: int, request_id: int) -> None:
        """The client disconnects: it sees nothing more, and the engine aborts when word of that arrives."""
        self.schedule(t_ns, partial(self._cancel, request_id))

    def null_request(self, t_ns: int, path: str = "/health") -> None:
        """A GET that touches no model is sent at t_ns; its answer is an event of kind "null"."""
        self._announced += 1
        self.schedule(t_ns, partial(self._null, path))

    # What the caller's clock does

    def advance(self, to_ns: int) -> list[ClientEvent]:
        """All client-visible events up to and including to_ns that were not handed out before, in time order."""
        self._simulate(to_ns)
        return self.outbox.take(to_ns)

    def advance_to_end(self, to_ns: int) -> tuple[int, list[ClientEvent]]:
        """Like advance, but stops at the first instant at which a request ends; returns that instant, or to_ns.

        For drivers whose next request waits for an answer: few calls, and nothing is simulated beyond it.
        """
        end_ns = self._simulate(to_ns, stop_at_end=True)
        return end_ns, self.outbox.take(end_ns)

    def next_ns(self) -> int | None:
        """No later than the next instant at which anything happens; None when nothing will."""
        instants = [self.outbox.next_ns, self._next_work_ns()]
        if self._events:
            instants.append(self._events[0][0])
        if self._background and (self._requests or self._announced):
            instants.append(self._background[0][0])
        return min((t for t in instants if t is not None), default=None)

    def change(self, t_ns: int, params: LabParams) -> None:
        """From t_ns on the service is one with `params`; what is under way goes on, from where it is.

        Work that an API process has begun keeps its length. Raises UsageError for values no service could have, and
        for another number of engines.
        """
        params.validate()
        self._simulate(t_ns)
        t_ns = self._now_ns
        old = self.params
        self._apply(params)
        for replica in self._replicas:
            replica.change(t_ns, replica_params(params, replica.index))
        self.dependency.resize(params.front.dependency_slots)
        self._rate_limit.change(params)
        self._router.change(params)
        self._proxy.change(params)
        for index, replica in enumerate(self._replicas):
            replica.draining = index >= params.front.replicas and params.autoscaler is None
        while len(self._replicas) < params.front.replicas:
            self._add_replica(t_ns).start(t_ns)
        if params.accelerator.fault_every_s != old.accelerator.fault_every_s:
            self._expect_faults(t_ns)
        self._look_later(t_ns)

    # What exporters see

    def state(self, t_ns: int) -> ServiceState:
        """The service at t_ns; reading it costs no time."""
        self._simulate(t_ns)
        return ServiceState([replica.state(t_ns) for replica in self._replicas])

    def metrics_page(self, t_ns: int, replica: int = 0, epoch_unix_s: float = EPOCH_UNIX_S) -> str:
        """What GET /metrics of a replica would show at t_ns; taking it costs no time. Empty while it is down.

        epoch_unix_s: the wall clock at instant 0."""
        self._simulate(t_ns)
        chosen = self._replicas[replica]
        if chosen.group is None:
            return ""
        now_s = t_ns / NS_PER_S
        process = chosen.process_reading(t_ns)
        return engine_page(
            self.params.dialect, chosen.group.states(now_s), process, now_s=now_s, epoch_unix_s=epoch_unix_s
        )

    def process_readings(self, t_ns: int) -> dict[str, float]:
        """Of the first replica's first API process. cpu_s is cumulative; open_fds grows by one per open connection."""
        self._simulate(t_ns)
        reading = self._replicas[0].process_reading(t_ns)
        return {
            "cpu_s": reading.cpu_s_total,
            "rss_bytes": reading.rss_bytes,
            "open_fds": float(reading.open_fds),
            "threads": float(reading.threads),
        }

    def api_busy_until_ns(self, t_ns: int) -> int:
        """Until when the first replica's first API process computes what it has begun by t_ns; t_ns or less: idle."""
        self._simulate(t_ns)
        loops = self._replicas[0].loops
        return loops[0].busy_until_ns if loops else 0

    # Time

    def schedule(self, t_ns: int, call: Call) -> None:
        """`call` is called at t_ns, which it is told. Calls of one instant keep their order."""
        self._event_count += 1
        heapq.heappush(self._events, (max(t_ns, self._now_ns), self._event_count, call))

    def _schedule_background(self, t_ns: int, call: Call) -> None:
        self._event_count += 1
        heapq.heappush(self._background, (max(t_ns, self._now_ns), self._event_count, call))

    def _next_work_ns(self) -> int | None:
        first_ns = None
        for replica in self._replicas:
            if replica.group is not None:
                t_ns = replica.group.next_ns
                if t_ns is not None and (first_ns is None or t_ns < first_ns):
                    first_ns = t_ns
        return first_ns

    def _simulate(self, to_ns: int, *, stop_at_end: bool = False) -> int:
        events, background, outbox = self._events, self._background, self.outbox
        while True:
            work_ns, worker = to_ns + 1, None
            for replica in self._replicas:
                group = replica.group
                if group is not None:
                    t_ns = group.next_ns
                    if t_ns is not None and t_ns < work_ns:
                        work_ns, worker = t_ns, replica
            event_ns = events[0][0] if events else to_ns + 1
            if background and background[0][0] < event_ns:
                source, event_ns = background, background[0][0]
            else:
                source = events
            next_ns = min(event_ns, work_ns)
            if stop_at_end:
                end_ns = outbox.first_end_ns
                if end_ns is not None and end_ns <= to_ns and end_ns < next_ns:
                    to_ns = max(end_ns, self._now_ns)
                    break
            if next_ns > to_ns:
                break
            self._now_ns = next_ns
            if event_ns <= work_ns:
                heapq.heappop(source)[2](next_ns)
            else:
                assert worker is not None and worker.group is not None
                worker.group.advance(next_ns)  # one step only: its last tokens make room elsewhere
                if worker.group.out_of_memory:
                    self._die(worker, next_ns)
        self._now_ns = max(self._now_ns, to_ns)
        return to_ns

    # There

    def _send(self, request: Request, t_ns: int) -> None:
        self._announced -= 1
        if request.request_id in self._requests:
            raise ValueError(f"request {request.request_id} is already being served")
        if request.request_id in self.outbox.cancelled_ns:
            return
        self._requests[request.request_id] = request
        request.attempts_left = 1 + (self.params.front.gateway_retries if self._timeout_ns is not None else 0)
        self._look_later(t_ns)
        index = self._router.choose(self._replicas, request.details.session)
        if index is None:
            self._fail(t_ns + 2 * self._one_way_ns, t_ns, request, "connect_refused")
            return
        replica = request.replica = self._replicas[index]
        connection = replica.network.reuse(t_ns)
        if connection is not None:
            request.connection = connection
            self._travel(t_ns, request)
        elif self._dns_ns or self._one_way_ns:
            syn_ns = t_ns + self._dns_ns
            self.schedule(syn_ns + self._one_way_ns, partial(self._syn, request, syn_ns, 0))
        else:
            self._syn(request, t_ns, 0, t_ns)

    def _syn(self, request: Request, first_ns: int, retry: int, t_ns: int) -> None:
        """A SYN reaches the host at t_ns; the first one was sent at first_ns."""
        replica = request.replica
        if request.over or replica is None:
            return
        if not replica.up:
            self._fail(t_ns + self._one_way_ns, t_ns, request, "connect_refused")
            return
        connection = None if replica.network.lost() else replica.network.syn(t_ns)
        if connection is None:
            if retry < len(SYN_RETRY_NS):
                again_ns = first_ns + SYN_RETRY_NS[retry] + self._one_way_ns
                self.schedule(again_ns, partial(self._syn, request, first_ns, retry + 1))
            else:
                self.schedule(first_ns + CONNECT_TIMEOUT_NS, partial(self._give_up_connecting, request))
            return
        request.connection = connection
        replica.connect(t_ns, request, connection)
        connected_ns = t_ns + self._one_way_ns
        if self._proxy.speaks_tls:  # TLS 1.3: one round trip
            connected_ns = self._proxy.shake_hands(connected_ns + self._one_way_ns) + self._one_way_ns
        request.connected_ns = connected_ns
        if request.over:  # reset when it was accepted
            return
        if connected_ns > t_ns:
            self.schedule(connected_ns, partial(self._travel_later, request))
        else:
            self._travel(t_ns, request)

    def _give_up_connecting(self, request: Request, t_ns: int) -> None:
        if not request.over:
            self._fail(t_ns, t_ns, request, "connect_timeout")

    def _travel_later(self, request: Request, t_ns: int) -> None:
        if not request.over:
            self._travel(t_ns, request)

    def _travel(self, t_ns: int, request: Request) -> None:
        """The client writes its request to the connection."""
        replica = request.replica
        assert replica is not None
        image_tokens = request.details.image_tokens + self.params.application.image_tokens
        text_tokens = request.prompt_tokens + sum(request.details.extra_prompts)
        size_bytes = REQUEST_HEAD_BYTES + text_tokens * BYTES_PER_PROMPT_TOKEN + image_tokens * IMAGE_BYTES_PER_TOKEN
        packets = packets_of(size_bytes)
        arrival_ns = t_ns + self._one_way_ns + replica.network.burst_delay_ns(packets, outward=False)
        arrival_ns = replica.network.passes(arrival_ns, size_bytes, packets, outward=False)
        if arrival_ns > t_ns:
            self.schedule(arrival_ns, partial(self._arrive, request))
        else:
            self._arrive(request, t_ns)

    def _arrive(self, request: Request, t_ns: int) -> None:
        if request.over:
            return
        replica, connection = request.replica, request.connection
        assert replica is not None
        if connection is None or not replica.network.stands(connection):  # its process has died meanwhile
            self._fail(t_ns + self._one_way_ns, t_ns, request, "reset")
            return
        refusal = self._rate_limit.admit(t_ns)
        if refusal is not None:
            self.send(request, t_ns, refusal_events(request, t_ns, refusal), HEAD_BYTES)
            self._forget(t_ns, request)
            return
        self._attempt(t_ns, request, replica)

    def _attempt(self, t_ns: int, request: Request, replica: Replica) -> None:
        request.attempts_left -= 1
        attempt = replica.begin(t_ns, request)
        request.attempt = attempt
        if attempt is not None and self._timeout_ns is not None:
            self.schedule(t_ns + self._timeout_ns, partial(self._time_out, attempt))

    def _time_out(self, attempt: Attempt, t_ns: int) -> None:
        """The gateway has waited long enough for the first byte."""
        if attempt.gone or attempt.answered:
            return
        attempt.replica.abandon(t_ns, attempt)
        self._try_again(t_ns, attempt.request, GATEWAY_TIMEOUT)

    def _try_again(self, t_ns: int, request: Request, status: int) -> None:
        index = self._router.choose(self._replicas, request.details.session) if request.attempts_left > 0 else None
        if index is not None:
            self._attempt(t_ns, request, self._replicas[index])
            return
        headers = ClientEvent(t_ns, request.request_id, "headers", status, connected_ns=request.connected_ns)
        self.send(request, t_ns, [headers, ClientEvent(t_ns, request.request_id, "end")], HEAD_BYTES)
        self._forget(t_ns, request)

    def _null(self, path: str, t_ns: int) -> None:
        self._announced -= 1
        index = self._router.choose(self._replicas, None)
        if index is None:
            self.outbox.put(ClientEvent(t_ns + 2 * self._one_way_ns, NULL_REQUEST_ID, "null", error="connect_refused"))
            return
        arrives = partial(self._null_arrives, self._replicas[index], path, t_ns)
        if self._one_way_ns:
            self.schedule(t_ns + self._one_way_ns, arrives)
        else:
            arrives(t_ns)

    def _null_arrives(self, replica: Replica, path: str, sent_ns: int, t_ns: int) -> None:
        if replica.up:
            replica.null(t_ns, path, sent_ns)
        else:
            self.outbox.put(ClientEvent(t_ns + self._one_way_ns, NULL_REQUEST_ID, "null", error="reset"))

    def _cancel(self, request_id: int, t_ns: int) -> None:
        self.outbox.cancel(request_id, t_ns)
        request = self._requests.pop(request_id, None)
        if request is None:
            return
        request.over = True
        if self._one_way_ns:
            self.schedule(t_ns + self._one_way_ns, partial(self._hung_up, request))
        else:
            self._hung_up(request, t_ns)

    def _hung_up(self, request: Request, t_ns: int) -> None:
        if request.attempt is not None:
            request.attempt.replica.abandon(t_ns, request.attempt)
        self._disconnect(t_ns, request, keep=False)

    # And back

    def send(self, request: Request, t_ns: int, events: list[ClientEvent], size_bytes: float) -> None:
        """The server writes at t_ns; the events get the instants at which the client sees them."""
        replica = request.replica
        if request.over or replica is None:
            return
        network = replica.network
        packets = packets_of(size_bytes)
        floor_ns = request.seen_ns
        if request.attempt is not None:
            floor_ns = max(floor_ns, request.attempt.replica.floor_ns(request.attempt))
        left_ns = network.passes(t_ns, size_bytes, packets, outward=True)
        if self.params.path.loss_ratio or request.way_back is not None:
            if request.way_back is None:
                request.way_back = LossyStream(floor_ns)
            stream = request.way_back
            before_ns = stream.release_ns
            seen = stream.send(left_ns, packets, events, network)
            if seen is None:
                if stream.release_ns is not None and stream.release_ns != before_ns:
                    self.schedule(stream.release_ns, partial(self._release, stream))
                return
        else:
            seen = events
            request.seen_ns = max(floor_ns, left_ns + network.one_way_ns)
            for event in seen:
                event.t_ns = request.seen_ns
        self._show(seen)

    def _release(self, stream: LossyStream, t_ns: int) -> None:
        self._show(stream.release(t_ns))

    def _show(self, events: list[ClientEvent]) -> None:
        for event in events:
            self.outbox.put(event)
            if event.kind == "end":
                self.outbox.note_end(event.t_ns)

    def left(self, t_ns: int, attempt: Attempt) -> None:
        self._forget(t_ns, attempt.request)

    def broken(self, t_ns: int, attempt: Attempt) -> None:
        request = attempt.request
        if request.over:
            return
        if attempt.answered or request.headers_sent or request.attempts_left <= 0:
            self._fail(t_ns + self._one_way_ns, t_ns, request, "reset")
        else:
            self._try_again(t_ns, request, GATEWAY_TIMEOUT)

    def refused_connection(self, t_ns: int, request: Request) -> None:
        self._fail(t_ns + self._one_way_ns, t_ns, request, "reset")

    def _fail(self, seen_ns: int, t_ns: int, request: Request, error: str) -> None:
        """The request ends without an answer, which its client sees at seen_ns."""
        self.outbox.cut(request.request_id, seen_ns)
        self.outbox.put(
            ClientEvent(seen_ns, request.request_id, "error", error=error, connected_ns=request.connected_ns)
        )
        self.outbox.note_end(seen_ns)
        request.over = True
        self._requests.pop(request.request_id, None)
        self._disconnect(t_ns, request, keep=False)

    def _forget(self, t_ns: int, request: Request) -> None:
        """The answer has been written to its end."""
        if self._requests.get(request.request_id) is request:
            del self._requests[request.request_id]
        request.over = True
        self._disconnect(t_ns, request, keep=True)

    def _disconnect(self, t_ns: int, request: Request, *, keep: bool) -> None:
        if request.connection is not None and request.replica is not None:
            request.replica.network.done(t_ns, request.connection, keep=keep)
        request.connection = None

    # Replicas

    def _add_replica(self, t_ns: int) -> Replica:
        index = len(self._replicas)
        replica = Replica(replica_params(self.params, index), self._seed, index, self, t_ns)
        self._replicas.append(replica)
        return replica

    def _die(self, replica: Replica, t_ns: int, *, gpu_fault: bool = False) -> None:
        replica.kill(t_ns, gpu_fault=gpu_fault)
        restart_ns = round(self.params.accelerator.restart_s * NS_PER_S)
        self._schedule_background(t_ns + restart_ns, partial(self._restart, replica, replica.restarts))

    def _restart(self, replica: Replica, restarts: int, t_ns: int) -> None:
        if not replica.up and replica.restarts == restarts:
            replica.start(t_ns)

    def out_of_memory(self, t_ns: int, replica: Replica) -> None:
        """The kernel kills the replica's processes."""
        if replica.up:
            replica.host.oom_kills += 1
            self._die(replica, t_ns)

    def _expect_faults(self, t_ns: int) -> None:
        self._faults += 1
        if self.params.accelerator.fault_every_s is not None:
            for replica in self._replicas:
                self._expect_fault(t_ns, replica)

    def _expect_fault(self, t_ns: int, replica: Replica) -> None:
        mean_s = self.params.accelerator.fault_every_s
        if mean_s is not None:
            at_ns = t_ns + round(replica.draw.expovariate(1 / mean_s) * NS_PER_S)
            self._schedule_background(at_ns, partial(self._gpu_fault, replica, self._faults))

    def _gpu_fault(self, replica: Replica, series: int, t_ns: int) -> None:
        if series != self._faults:
            return
        if replica.up:
            self._die(replica, t_ns, gpu_fault=True)
        self._expect_fault(t_ns, replica)

    def _look_later(self, t_ns: int) -> None:
        if self.params.autoscaler is not None and not self._looking:
            self._looking = True
            self._schedule_background(next_look_ns(self.params.autoscaler, t_ns), self._look)

    def _look(self, t_ns: int) -> None:
        """The autoscaler looks at the requests in flight. It rests while there are none."""
        self._looking = False
        autoscaler = self.params.autoscaler
        if autoscaler is None or not self._requests:
            return
        for _ in range(wanted_replicas(autoscaler, len(self._requests), len(self._replicas)) - len(self._replicas)):
            replica = self._add_replica(t_ns)
            ready_ns = t_ns + round(autoscaler.start_s * NS_PER_S)
            self._schedule_background(ready_ns, partial(self._restart, replica, replica.restarts))
        self._look_later(t_ns)
