"""The simulated service behind real connections: the same VirtualService that runs in virtual time, in real time.

A request is handed to the service when it is read. The service says at which instants what happens; the face sets its
timer to the next of them, and writes the bytes when it comes. One process, one event loop, like the API process of the
service it imitates: while API process 0 of replica 0 is busy in the simulation, this process computes, and neither
reads nor answers. So its CPU, the latency of /health and the wait of what lies in sockets are those of such a process.
What is simulated elsewhere (engines, other API processes and replicas, the network) costs no time here.

How late bytes are written is measured (lateness.py): it is the error of this face, and of nothing that it imitates.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.lab import identity
from pinchpoint.lab.answers import Answer, answer_to, ranking_body, stopped
from pinchpoint.lab.api import Api, ApiError, Dialect, Generation, Ranking, RankingKind
from pinchpoint.lab.engine import Engine
from pinchpoint.lab.events import ClientEvent, Details
from pinchpoint.lab.http import Connection, Request
from pinchpoint.lab.lateness import Lateness
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.profiling import PROFILING_DIALECTS, Profiler
from pinchpoint.lab.service import VirtualService
from pinchpoint.lab.timer import Timer
from pinchpoint.lab.tokens import block_keys

HTTP_OK = 200
BAD_REQUEST = 400
NOT_FOUND = 404
TOO_MANY_REQUESTS = 429
JSON = "application/json"
PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"

GENERATION_ROUTES: dict[str, Dialect] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
}
RANKING_ROUTES: dict[str, RankingKind] = {
    "/v1/embeddings": "embeddings",
    "/v1/rerank": "rerank",
    "/rerank": "rerank",
    "/v1/score": "score",
    "/score": "score",
}

MODEL_ROUTES: dict[str, Dialect | RankingKind] = {**GENERATION_ROUTES, **RANKING_ROUTES}
"""Paths whose answers the engine computes."""

LAB_PAGE = "/lab/metrics"
"""The lab about itself: lateness. Apart from the service's page, which must look like the imitated engine's."""
UNCOUNTED_PATHS = ("/health", "/metrics", "/version", LAB_PAGE)
"""Left out of http_requests_total, as vLLM's instrumentator is told to; the last one is no page of the service."""
NOT_COUNTED = "/health"
"""Path under which the simulation is told of a request that the face counts itself, for it knows the status."""
PROFILE_ROUTES = ("/start_profile", "/stop_profile")

FASTAPI_DIALECTS = ("vllm", "sglang")
"""Engines whose server is FastAPI's."""

REFUSALS = {400: "BadRequestError", 429: "RateLimitError", 503: "ServiceUnavailableError"}
"""Types of OpenAI's errors."""

Reply = tuple[int, bytes, str]
"""Status, body, content type."""


class _Work:
    """One request under way, and the connection that waits for it."""

    __slots__ = ("answer", "asked", "connection", "fast", "last_index", "path", "request_id", "sent", "streams")

    def __init__(self, connection: Connection, request_id: int, asked: Generation | Ranking, path: str) -> None:
        self.connection = connection
        self.request_id = request_id
        self.asked = asked
        self.path = path
        self.answer: Answer | None = None
        """Of a generation."""
        self.streams = isinstance(asked, Generation) and asked.stream
        self.sent = 0
        """Tokens that the client has been given, or that its answer in one piece will have."""
        self.last_index = asked.max_output_tokens - 1 if isinstance(asked, Generation) else 0
        self.fast = False
        """Its events are framed in the usual way."""


class _Null:
    """An answer that does not touch the model; made when the API process gets to it."""

    __slots__ = ("connection", "make", "request")

    def __init__(self, connection: Connection, request: Request, make: Callable[[], Reply]) -> None:
        self.connection = connection
        self.request = request
        self.make = make


class LabFace:
    """The application behind the connections. Lives in one event loop."""

    def __init__(self, params: LabParams, seed: int, loop: asyncio.AbstractEventLoop) -> None:
        self.params = params
        self.lateness = Lateness()
        self.service = VirtualService(params, seed)
        self._origin_ns = monotonic_ns()
        self._api = Api(params, seed)
        self._loop = loop
        self._profiler: Profiler | None = None
        self.started_unix_s = int(time.time())
        self._pages = identity.pages(params, self.started_unix_s)
        self._works: dict[int, _Work] = {}
        self._nulls: deque[_Null] = deque()
        """First in, first out, as their events come."""
        self._next_id = 0
        self._timer = Timer(loop, self._turn)
        self._turn_is_due = False
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def now_ns(self) -> int:
        """On the service's clock, which began with this object."""
        return monotonic_ns() - self._origin_ns

    def allow_profiles(self, directory: Path) -> None:
        """Engines that can be profiled over HTTP get routes for it; traces go to `directory`."""
        if self.params.dialect in PROFILING_DIALECTS:
            self._profiler = Profiler(directory, self.params.dialect, self._engines, self.now_ns())

    def _metrics(self) -> str:
        return self.service.metrics_page(self.now_ns(), epoch_unix_s=float(self.started_unix_s))

    def _engines(self) -> list[Engine]:
        group = self.service.replicas[0].group
        return group.engines if group is not None else []

    def change(self, params: LabParams) -> None:
        """The service becomes another one while it runs."""
        self.params = params
        self.service.change(self.now_ns(), params)
        self._pages = identity.pages(params, self.started_unix_s)
        self._wake()

    # http.Application

    def on_opened(self, connection: Connection) -> None:
        self._connections.add(connection)

    def on_closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        work: _Work | None = connection.state
        if work is not None:
            connection.state = None
            del self._works[work.request_id]
            self.service.cancel(self.now_ns(), work.request_id)
            self._wake()

    def on_request(self, connection: Connection, request: Request) -> None:
        t_ns = self.now_ns()  # what is really computed from here on is part of the simulated cost
        if request.method == "POST" and request.path in MODEL_ROUTES:
            self._compute(connection, request, t_ns)
        elif request.path in PROFILE_ROUTES and self._profiler is not None:
            self._profile(connection, request, self._profiler)
        else:
            self._side(connection, request, t_ns)
        # Not only after all other sockets that are readable: with thousands of them, what is due would wait.
        self._turn()

    # Routes

    def _side(self, connection: Connection, request: Request, t_ns: int) -> None:
        def make() -> Reply:
            try:
                return self._reply_to(request)
            except ApiError as error:
                return error.status, error.body(), JSON

        self._later(connection, request, t_ns, make)

    def _reply_to(self, request: Request) -> Reply:
        path = request.path
        if path == "/tokenize" and request.method == "POST":
            return HTTP_OK, self._api.tokenize(request.body), JSON
        known = path in self._pages or path in ("/metrics", LAB_PAGE, "/tokenize") or path in MODEL_ROUTES
        if not known:
            return NOT_FOUND, b'{"detail":"Not Found"}', JSON
        # FastAPI has no HEAD for a GET route; the metrics page is an application of its own there.
        no_head = self.params.dialect in FASTAPI_DIALECTS and path != "/metrics"
        methods = ("GET",) if no_head else ("GET", "HEAD")
        if path in MODEL_ROUTES or path == "/tokenize" or request.method not in methods:
            return 405, b'{"detail":"Method Not Allowed"}', JSON
        if path == "/metrics":
            return HTTP_OK, self._metrics().encode(), PROMETHEUS_TEXT
        if path == LAB_PAGE:
            return HTTP_OK, self.lateness.page().encode(), PROMETHEUS_TEXT
        return HTTP_OK, identity.encode(self._pages[path]), JSON

    def _later(self, connection: Connection, request: Request, t_ns: int, make: Callable[[], Reply]) -> None:
        """The API process answers without the model, when its turn has come."""
        self._nulls.append(_Null(connection, request, make))
        self.service.null_request(t_ns, NOT_COUNTED)

    def _profile(self, connection: Connection, request: Request, profiler: Profiler) -> None:
        """Not through the API process's line: an engine's core does it, and writing a file must not stop the loop."""
        if request.method != "POST":
            connection.reply(405, b'{"detail":"Method Not Allowed"}')
            return

        async def run() -> None:
            if request.path == "/start_profile":
                status, body = profiler.start(self.now_ns())
            else:
                now_ns = self.now_ns()
                self._hand_out(self.service.advance(now_ns))  # the steps until now are recorded
                status, body = await profiler.stop(now_ns)
            connection.reply(status, body.encode(), "text/plain; charset=utf-8" if body else JSON)

        task = self._loop.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _compute(self, connection: Connection, request: Request, t_ns: int) -> None:
        kind = MODEL_ROUTES[request.path]
        try:
            if request.path in RANKING_ROUTES:
                asked = self._api.ranking(request.body, RANKING_ROUTES[request.path])
            else:
                asked = self._api.generation(request.body, GENERATION_ROUTES[request.path], request.session)
        except ApiError as error:
            reply = error.status, error.body(kind), JSON
            self._later(connection, request, t_ns, lambda: reply)
            return
        self._next_id += 1
        if isinstance(asked, Generation):
            asked = stopped(asked, self._next_id)
        work = _Work(connection, self._next_id, asked, request.path)
        connection.state = work
        self._works[work.request_id] = work
        if isinstance(asked, Ranking):
            first, *others = asked.prompt_tokens
            details = Details(
                finish_reason="stop", path=request.path, extra_prompts=tuple(others), body_bytes=len(request.body)
            )
            self.service.submit(t_ns, work.request_id, first, 0, False, details)
            return
        work.answer = answer_to(asked, self._api.model, work.request_id, self.started_unix_s + t_ns // NS_PER_S)
        details = self._details(asked, work.answer, request)
        text_tokens = asked.prompt_tokens - asked.image_tokens
        self.service.submit(t_ns, work.request_id, text_tokens, asked.max_output_tokens, asked.stream, details)

    def _details(self, asked: Generation, answer: Answer, request: Request) -> Details:
        keys: list[int] = []
        if asked.prompt:
            keys = block_keys(asked.prompt + answer.words(asked.max_output_tokens), self.params.block_size_tokens)
        return Details(
            block_keys=keys,
            session=asked.session,
            priority=asked.priority,
            adapter=asked.adapter,
            schema=asked.schema,
            image_tokens=asked.image_tokens,
            finish_reason=asked.finish_reason,
            path=request.path,
            body_bytes=len(request.body),
        )

    # Time

    def _wake(self) -> None:
        """Looks at the service soon, but after all sockets that are readable now."""
        if not self._turn_is_due:
            self._turn_is_due = True
            self._timer.disarm()
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Hands out what is due, and computes for as long as API process 0 is busy with what it knows of now.

        What lies in sockets meanwhile, and what joins the process's line after this turn began, comes after: one line,
        first in first out. A turn for each chunk would let new requests overtake, and a loop that is overloaded would
        accept everything and finish nothing.
        """
        self._turn_is_due = False
        service, origin_ns = self.service, self._origin_ns
        now_ns = monotonic_ns() - origin_ns
        until_ns = service.api_busy_until_ns(now_ns)
        while True:
            events = service.advance(now_ns)
            if events:
                self._hand_out(events)
            now_ns = monotonic_ns() - origin_ns
            next_ns = service.next_ns()
            if now_ns >= until_ns:
                break
            # The spending. Wall time, not CPU time: else a busy host would make the service slower than it is.
            wake_ns = until_ns if next_ns is None or next_ns > until_ns else next_ns
            while now_ns < wake_ns:
                now_ns = monotonic_ns() - origin_ns
        if self._turn_is_due:
            return
        if (next_ns is not None and next_ns <= now_ns) or service.api_busy_until_ns(now_ns) > now_ns:
            self._wake()
        elif next_ns is not None:
            self._timer.arm(next_ns + origin_ns)

    # Events to bytes

    def _hand_out(self, events: list[ClientEvent]) -> None:
        """Bytes of one request that are due together leave together: that is what a proxy that buffers does."""
        works, note, origin_ns = self._works, self.lateness.note, self._origin_ns
        held: list[bytes] = []
        last = len(events) - 1
        for at, event in enumerate(events):
            request_id = event.request_id
            work = works.get(request_id)
            kind = event.kind
            if work is None:
                if kind == "null":
                    self._answer_null(event)
                continue  # else the client has gone
            if kind == "chunk":
                index, n = work.sent, event.tokens
                work.sent = index + n
                if not work.streams:
                    continue
                if work.fast and n == 1 and 0 < index < work.last_index:
                    assert work.answer is not None
                    data = work.answer.framed(index)
                else:
                    data = self._encode(work, index, n)
            elif kind == "headers":
                data = self._head(work, event)
            elif kind == "end":
                data = self._end(work, event)
            else:
                self._break(work)
                held.clear()
                continue
            if held:
                held.append(data)
                data = b"".join(held)
                held.clear()
            if data:
                if at < last and events[at + 1].request_id == request_id:
                    held.append(data)
                else:
                    work.connection.send(data)
                    note(monotonic_ns() - origin_ns - event.t_ns)
            if kind == "end":
                self._finish(work)
                if not work.streams:
                    note(monotonic_ns() - origin_ns - event.t_ns)

    def _answer_null(self, event: ClientEvent) -> None:
        null = self._nulls.popleft()
        if event.status is None:  # there was no answer
            null.connection.reset()
            return
        status, body, content_type = null.make()
        request, engines = null.request, self._engines()
        if engines and request.path not in UNCOUNTED_PATHS:
            handler = "none" if status == NOT_FOUND and request.path not in MODEL_ROUTES else request.path
            metrics = engines[0].metrics
            metrics.count_http(handler, request.method, status, event.latency_s or 0.0, len(request.body), len(body))
            metrics.invalid_requests += status == BAD_REQUEST
        null.connection.reply(status, body, content_type)
        self.lateness.note(self.now_ns() - event.t_ns)

    def _head(self, work: _Work, event: ClientEvent) -> bytes:
        if event.status != HTTP_OK:
            status = event.status or 500
            message = event.error or "the request cannot be served"
            error = ApiError(status, message, REFUSALS.get(status, "InternalServerError"), event.retry_after_s)
            kind = MODEL_ROUTES[work.path]
            work.streams = False
            self._forget(work)
            body = error.body(kind)
            if status != TOO_MANY_REQUESTS:  # that one comes from a gateway, which the server's page knows nothing of
                self._count_answer(work.path, body)
            work.connection.reply(status, body, retry_after_s=event.retry_after_s)
            return b""
        if not work.streams:
            return b""
        head = work.connection.stream_head()
        # A text that ends before its tokens do has events of its own.
        ends_early = isinstance(work.asked, Generation) and work.asked.text_bytes is not None
        work.fast = work.connection.chunked and not ends_early
        return head

    def _encode(self, work: _Work, index: int, n: int) -> bytes:
        connection, answer = work.connection, work.answer
        assert answer is not None
        last = index + n > work.last_index
        if index == 0:
            return connection.frames(answer.first(last, n))
        return connection.frame(answer.last(index, n) if last else answer.token(index, n))

    def _end(self, work: _Work, event: ClientEvent) -> bytes:
        """The last bytes of a stream; nothing for an answer in one piece, which `_finish` sends."""
        if not work.streams:
            return b""
        assert work.answer is not None
        return work.connection.frames(work.answer.trailer(work.sent)) + work.connection.stream_tail()

    def _finish(self, work: _Work) -> None:
        self._forget(work)
        connection = work.connection
        if isinstance(work.asked, Ranking):
            body = ranking_body(work.asked, self._api.model, work.request_id, self.started_unix_s)
            self._count_answer(work.path, body)
            connection.reply(HTTP_OK, body)
        elif work.streams:
            connection.finish()
        else:
            assert work.answer is not None
            body = work.answer.whole(work.sent)
            self._count_answer(work.path, body)
            connection.reply(HTTP_OK, body)

    def _count_answer(self, path: str, body: bytes) -> None:
        if engines := self._engines():
            engines[0].metrics.count_response_bytes(path, len(body))

    def _break(self, work: _Work) -> None:
        """The connection is lost, whatever the simulated reason: real clients see a reset."""
        self._forget(work)
        work.connection.reset()

    def _forget(self, work: _Work) -> None:
        work.connection.state = None
        self._works.pop(work.request_id, None)

    def close(self) -> None:
        """Disconnects every client."""
        self._timer.close()
        for connection in list(self._connections):
            connection.close()
