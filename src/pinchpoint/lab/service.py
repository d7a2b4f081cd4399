"""The whole service in virtual time: gateway, API process, engine, API process again, proxy.

A discrete-event simulation; no sockets, no waiting. The API process is one server with one first-in-first-out line
through which everything goes: parsing a request, writing each chunk, answering /health. Because the line is first in
first out and work reaches it in time order, the instant a job ends is known when it joins, so client events are made
early and handed out when their time comes.
"""

import heapq
from collections import deque

from pinchpoint.clock import NS_PER_S
from pinchpoint.lab.engine import Engine, Sequence
from pinchpoint.lab.events import NULL_REQUEST_ID, PLAIN, ClientEvent, Details
from pinchpoint.lab.gateway import Gateway
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.timeline import Timeline

HTTP_OK = 200

BASE_RSS_BYTES = 750e6
"""A vLLM API process without load, as its own metrics page tells."""
RSS_PER_CONNECTION_BYTES = 64e3
"""Buffers and request state; order of magnitude."""
BASE_OPEN_FDS = 24

CHAT_HANDLER = "/v1/chat/completions"


class _Request:
    __slots__ = ("at_once", "details", "in_engine", "max_output_tokens", "prompt_tokens", "stream")

    def __init__(
        self, prompt_tokens: int, max_output_tokens: int, stream: bool, at_once: bool, details: Details
    ) -> None:
        self.details = details
        self.prompt_tokens = prompt_tokens
        self.max_output_tokens = max_output_tokens
        self.stream = stream
        self.at_once = at_once
        """The client sees nothing before the end: not streamed, or held back by the proxy."""
        self.in_engine = False


class VirtualService:
    """A service with `params`. All instants in ns of one virtual clock; same seed and calls give the same events.

    A request_id is used once. Instants given to submit, null_request and cancel may lie ahead. One that is already
    simulated (before the latest advance, metrics_page or process_readings) counts as that latest instant.
    """

    def __init__(self, params: LabParams, seed: int) -> None:
        self.params = params
        self._engine = Engine(params, seed)
        self._timeline = Timeline(self._engine, self._on_tokens)
        self._gateway = Gateway(params)
        self._request_ns = round(params.api_request_s * NS_PER_S)
        self._chunk_ns = round(params.api_chunk_s * NS_PER_S)
        self._null_ns = round(params.api_null_s * NS_PER_S)
        self._inputs: list[tuple[int, int, str, int, _Request | None]] = []
        self._input_count = 0
        self._requests: dict[int, _Request] = {}
        self._api_free_ns = 0
        self._api_busy_ns = 0
        self._api_events: deque[ClientEvent] = deque()
        self._gateway_events: list[ClientEvent] = []
        self._cancelled_ns: dict[int, int] = {}
        self._now_ns = 0

    @property
    def engine(self) -> Engine:
        """For looking at, in tests; not for changing."""
        return self._engine

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
        at_once = not stream or self.params.proxy_buffering or max_output_tokens == 0
        self._put(t_ns, "arrive", request_id, _Request(prompt_tokens, max_output_tokens, stream, at_once, details))

    def cancel(self, t_ns: int, request_id: int) -> None:
        """The client disconnects: it sees nothing more, and the engine aborts."""
        self._put(t_ns, "cancel", request_id, None)

    def null_request(self, t_ns: int) -> None:
        """GET /health arrives at t_ns; its answer is an event of kind "null"."""
        self._put(t_ns, "null", NULL_REQUEST_ID, None)

    def advance(self, to_ns: int) -> list[ClientEvent]:
        """All client-visible events up to and including to_ns that were not handed out before, in time order."""
        self._simulate(to_ns)
        events = self._gateway_events
        self._gateway_events = []
        ready = self._api_events
        while ready and ready[0].t_ns <= to_ns:
            event = ready.popleft()
            if event.t_ns <= self._cancelled_ns.get(event.request_id, event.t_ns):
                events.append(event)
        events.sort(key=_event_time)  # stable: events of one instant keep their order
        return events

    def next_ns(self) -> int | None:
        """No later than the next instant at which anything happens; None when nothing will."""
        instants = [t for t in (self._timeline.step_end_ns,) if t is not None]
        if self._inputs:
            instants.append(self._inputs[0][0])
        if self._api_events:
            instants.append(self._api_events[0].t_ns)
        if self._gateway_events:
            instants.append(self._gateway_events[0].t_ns)
        return min(instants) if instants else None

    def metrics_page(self, t_ns: int) -> str:
        """What GET /metrics would show at t_ns; taking it costs no time."""
        self._simulate(t_ns)
        return self._engine.metrics.page(self._engine.gauges())

    def process_readings(self, t_ns: int) -> dict[str, float]:
        """cpu_s is cumulative, of the API process alone; open_fds grows by one per open connection."""
        self._simulate(t_ns)
        connections = len(self._requests)
        still_to_do_ns = max(0, self._api_free_ns - t_ns)
        return {
            "cpu_s": (self._api_busy_ns - still_to_do_ns) / NS_PER_S,
            "rss_bytes": BASE_RSS_BYTES + RSS_PER_CONNECTION_BYTES * connections,
            "open_fds": float(BASE_OPEN_FDS + connections),
            "threads": 1.0,
        }

    def _put(self, t_ns: int, kind: str, request_id: int, request: _Request | None) -> None:
        self._input_count += 1  # inputs of one instant keep the order they came in
        heapq.heappush(self._inputs, (max(t_ns, self._now_ns), self._input_count, kind, request_id, request))

    def _simulate(self, to_ns: int) -> None:
        while True:
            step_end_ns = self._timeline.step_end_ns
            if self._inputs and (step_end_ns is None or self._inputs[0][0] <= step_end_ns):
                if self._inputs[0][0] > to_ns:
                    break
                t_ns, _, kind, request_id, request = heapq.heappop(self._inputs)
                self._now_ns = t_ns
                self._handle(t_ns, kind, request_id, request)
            elif step_end_ns is not None and step_end_ns <= to_ns:
                self._now_ns = step_end_ns
                self._timeline.advance(step_end_ns)  # one step only: its last tokens make room in the gateway
            else:
                break
        self._now_ns = max(self._now_ns, to_ns)

    def _handle(self, t_ns: int, kind: str, request_id: int, request: _Request | None) -> None:
        if kind == "arrive":
            assert request is not None
            self._arrive(t_ns, request_id, request)
        elif kind == "enqueue":
            self._enqueue(t_ns, request_id)
        elif kind == "leave":
            self._leave(request_id, request)
        elif kind == "cancel":
            self._cancel(t_ns, request_id)
        else:
            end_ns = self._api_job(t_ns, self._null_ns)
            latency_s = (end_ns - t_ns) / NS_PER_S
            self._api_events.append(ClientEvent(end_ns, NULL_REQUEST_ID, "null", HTTP_OK, latency_s=latency_s))

    def _api_job(self, t_ns: int, cost_ns: int) -> int:
        """A job joins the API process's line at t_ns; returns when it is done."""
        self._api_free_ns = max(self._api_free_ns, t_ns) + cost_ns
        self._api_busy_ns += cost_ns
        return self._api_free_ns

    def _arrive(self, t_ns: int, request_id: int, request: _Request) -> None:
        if request_id in self._requests:
            raise ValueError(f"request {request_id} is already being served")
        refusal = self._gateway.admit(t_ns)
        if refusal is not None:
            if refusal.before_api:
                end_ns, events = t_ns, self._gateway_events
            else:
                end_ns, events = self._api_job(t_ns, self._null_ns), self._api_events
                self._engine.metrics.count_http(CHAT_HANDLER, "POST", refusal.status)
                self._engine.metrics.rejected_requests += 1
            retry_after_s = refusal.retry_after_s
            events.append(ClientEvent(end_ns, request_id, "headers", refusal.status, retry_after_s=retry_after_s))
            events.append(ClientEvent(end_ns, request_id, "end"))
            return
        end_ns = self._api_job(t_ns, self._request_ns)
        self._requests[request_id] = request
        longest = self.params.max_model_len_tokens()
        if request.prompt_tokens + max(1, request.max_output_tokens) > longest or request.max_output_tokens < 0:
            self._api_events.append(ClientEvent(end_ns, request_id, "headers", 400))
            self._api_events.append(ClientEvent(end_ns, request_id, "end"))
            self._engine.metrics.count_http(CHAT_HANDLER, "POST", 400)
            self._put(end_ns, "leave", request_id, request)
            return
        if not request.at_once:
            self._api_events.append(ClientEvent(end_ns, request_id, "headers", HTTP_OK))
        self._put(end_ns, "enqueue", request_id, request)

    def _enqueue(self, t_ns: int, request_id: int) -> None:
        request = self._requests.get(request_id)
        if request is None:  # cancelled while the API process had not got to it
            return
        request.in_engine = True
        arrival_ns = t_ns - self._request_ns
        engine_tokens = request.max_output_tokens or 1  # the end of a prompt is where its first token comes
        self._timeline.submit(
            t_ns, request_id, request.prompt_tokens, engine_tokens, arrival_ns, request.details.finish_reason
        )

    def _on_tokens(self, t_ns: int, tokens: list[Sequence]) -> None:
        requests, append, chunk_ns = self._requests, self._api_events.append, self._chunk_ns
        free_ns = max(self._api_free_ns, t_ns)
        began_ns = free_ns
        for sequence in tokens:
            request_id = sequence.request_id
            request = requests[request_id]
            if (request.stream and request.max_output_tokens) or sequence.finished:
                free_ns += chunk_ns
            if not request.at_once:
                append(ClientEvent(free_ns, request_id, "chunk", None, 1))
            if sequence.finished:
                self._api_free_ns = free_ns
                self._end(free_ns, request_id, request, sequence)
        self._api_free_ns = free_ns
        self._api_busy_ns += free_ns - began_ns

    def _end(self, t_ns: int, request_id: int, request: _Request, sequence: Sequence) -> None:
        events, output_tokens = self._api_events, min(sequence.output_tokens, request.max_output_tokens)
        if request.at_once:
            events.append(ClientEvent(t_ns, request_id, "headers", HTTP_OK))
            if request.max_output_tokens == 0:
                pass
            elif request.stream:
                events.extend(ClientEvent(t_ns, request_id, "chunk", None, 1) for _ in range(output_tokens))
            else:
                events.append(ClientEvent(t_ns, request_id, "chunk", None, output_tokens))
        reason, prompt_tokens = sequence.finish_reason, sequence.prompt_tokens
        events.append(ClientEvent(t_ns, request_id, "end", None, 0, reason, prompt_tokens, output_tokens))
        self._engine.metrics.count_http(CHAT_HANDLER, "POST", HTTP_OK)
        request.in_engine = False
        self._put(t_ns, "leave", request_id, request)

    def _leave(self, request_id: int, request: _Request | None) -> None:
        if self._requests.get(request_id) is request:  # else it was cancelled before its end was written
            del self._requests[request_id]
            self._gateway.leave()

    def _cancel(self, t_ns: int, request_id: int) -> None:
        request = self._requests.pop(request_id, None)
        if request is None:
            return
        self._gateway.leave()
        self._cancelled_ns[request_id] = t_ns
        if request.in_engine:
            self._timeline.abort(t_ns, request_id)


def _event_time(event: ClientEvent) -> int:
    return event.t_ns
