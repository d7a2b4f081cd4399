"""The lab over real HTTP, in real time: `serve` inside an event loop, `run_server` as a blocking entry.

One process, one event loop, like the API process of the service it imitates. What a request or chunk costs that
process (LabParams.api_*) is really spent here, computing, so the process's CPU, the lateness of the loop and the
latency of /health show it. The engine is different: its steps are laid on absolute deadlines (timeline.py), so a late
loop delays what clients see but never slows the engine, as it would not slow a GPU process of its own.
"""

import asyncio
import gc
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from pinchpoint import __version__
from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.errors import UsageError
from pinchpoint.lab.answers import Answer, answer_to, ranking_body
from pinchpoint.lab.api import Api, ApiError, Dialect, Generation, Ranking, RankingKind
from pinchpoint.lab.engine import Engine, Sequence
from pinchpoint.lab.gateway import Gateway
from pinchpoint.lab.http import Connection, Request
from pinchpoint.lab.params import LabParams
from pinchpoint.lab.scenario import choose_scenario, write_truth
from pinchpoint.lab.timeline import Timeline

LISTEN_BACKLOG_CONNECTIONS = 2048
"""uvicorn's default; the kernel may cap it."""

GC_THRESHOLD_OBJECTS = 50_000
"""Collections of the youngest generation would otherwise come every few steps and show as latency."""

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

UNCOUNTED_ROUTES = frozenset({"/health", "/version", "/metrics"})
"""Left out of http_requests_total, as vLLM does."""

Ready = Callable[[int], None]
"""Called with the port once connections are accepted."""


class _Work:
    """One request under way, and the connection that waits for it.

    It is one sequence in the engine, or one for each text of a request that has its texts ranked or embedded.
    """

    __slots__ = ("answer", "asked", "connection", "handler", "held", "request_id", "sequences")

    def __init__(self, connection: Connection, request_id: int, asked: Generation | Ranking, handler: str) -> None:
        self.connection = connection
        self.request_id = request_id
        self.asked = asked
        self.handler = handler
        self.sequences: set[int] = set()
        """Those that have not finished."""
        self.answer: Answer | None = None
        """Of a generation."""
        self.held: list[bytes] | None = None
        """What the buffering proxy holds back; None when nothing buffers."""

    @property
    def streams(self) -> bool:
        return isinstance(self.asked, Generation) and self.asked.stream


PORT_MAX = 65_535


class LabServer:
    """The application behind the connections. Lives in one event loop."""

    def __init__(self, params: LabParams, seed: int, loop: asyncio.AbstractEventLoop) -> None:
        self.params = params
        self.engine = Engine(params, seed)
        self._api = Api(params, seed)
        self._gateway = Gateway(params)
        self._timeline = Timeline(self.engine, self._on_step)
        self._loop = loop
        self._request_ns = round(params.api_request_s * NS_PER_S)
        self._chunk_ns = round(params.api_chunk_s * NS_PER_S)
        self._null_ns = round(params.api_null_s * NS_PER_S)
        self._works: dict[int, _Work] = {}
        """By sequence."""
        self._next_id = 0
        self._next_sequence = 0
        self._started_s = int(time.time())
        self._outbox: list[list[tuple[Sequence, int]]] = []
        """Steps whose tokens the API process has yet to write: (sequence, index of the token)."""
        self._draining = False
        self._timer: asyncio.TimerHandle | None = None
        self._connections: set[Connection] = set()

    # http.Application

    def on_opened(self, connection: Connection) -> None:
        self._connections.add(connection)

    def on_closed(self, connection: Connection) -> None:
        self._connections.discard(connection)
        work: _Work | None = connection.state
        if work is not None:
            connection.state = None
            self._gateway.leave()
            for sequence in work.sequences:
                del self._works[sequence]
                self._timeline.abort(monotonic_ns(), sequence)

    def on_request(self, connection: Connection, request: Request) -> None:
        began_ns = monotonic_ns()
        if request.method == "POST" and request.path in MODEL_ROUTES:
            self._compute(connection, request, began_ns)
            return
        status, body, content_type = self._simple(request)
        self._spend(began_ns, self._null_ns)
        if request.path not in UNCOUNTED_ROUTES:
            self.engine.metrics.count_http(request.path if status == 200 else "none", request.method, status)
        connection.reply(status, body, content_type)

    # Routes

    def _simple(self, request: Request) -> tuple[int, bytes, str]:
        json = "application/json"
        if request.path == "/tokenize" and request.method == "POST":
            try:
                return 200, self._api.tokenize(request.body), json
            except ApiError as error:
                return error.status, error.body(), json
        get = {
            "/health": lambda: (200, b"", json),
            "/version": lambda: (200, f'{{"version":"pinchpoint-lab {__version__}"}}'.encode(), json),
            "/v1/models": lambda: (200, self._api.models(self._started_s), json),
            "/metrics": lambda: (200, self._metrics_page(), PROMETHEUS_TEXT),
        }
        answer = get.get(request.path)
        if answer is None and request.path not in MODEL_ROUTES and request.path != "/tokenize":
            return 404, b'{"detail":"Not Found"}', json
        if answer is None or request.method not in ("GET", "HEAD"):
            return 405, b'{"detail":"Method Not Allowed"}', json
        return answer()

    def _metrics_page(self) -> bytes:
        self._timeline.advance(monotonic_ns())
        return self.engine.metrics.page(self.engine.gauges()).encode()

    def _compute(self, connection: Connection, request: Request, began_ns: int) -> None:
        kind = MODEL_ROUTES[request.path]
        refusal = self._gateway.admit(began_ns)
        if refusal is not None:
            if not refusal.before_api:
                self._spend(began_ns, self._null_ns)
                self.engine.metrics.rejected_requests += 1
                self.engine.metrics.count_http(request.path, "POST", refusal.status)
            name = "RateLimitError" if refusal.before_api else "ServiceUnavailableError"
            error = ApiError(refusal.status, refusal.message, name, refusal.retry_after_s)
            connection.reply(error.status, error.body(kind), retry_after_s=error.retry_after_s)
            return
        try:
            asked = self._asked(request)
        except ApiError as error:
            self._gateway.leave()
            self._spend(began_ns, self._request_ns)
            self.engine.metrics.count_http(request.path, "POST", error.status)
            connection.reply(error.status, error.body(kind))
            return
        self._next_id += 1
        work = _Work(connection, self._next_id, asked, request.path)
        connection.state = work
        self._spend(began_ns, self._request_ns)
        if isinstance(asked, Ranking):
            for prompt_tokens in asked.prompt_tokens:
                self._submit(work, prompt_tokens, 1, began_ns, "stop")
        else:
            work.answer = answer_to(asked, self._api.model, work.request_id, int(time.time()))
            if asked.stream:
                self._begin_stream(work)
            self._submit(work, asked.prompt_tokens, asked.max_output_tokens, began_ns, asked.finish_reason)
        self._arm()

    def _asked(self, request: Request) -> Generation | Ranking:
        if request.path in RANKING_ROUTES:
            return self._api.ranking(request.body, RANKING_ROUTES[request.path])
        return self._api.generation(request.body, GENERATION_ROUTES[request.path])

    def _begin_stream(self, work: _Work) -> None:
        head = work.connection.stream_head()
        if self.params.proxy_buffering:
            work.held = [head]
        else:
            work.connection.send(head)

    def _submit(self, work: _Work, prompt_tokens: int, output_tokens: int, began_ns: int, finish_reason: str) -> None:
        """A sequence for the engine. One whose prompt alone is wanted has one token, which comes with the prompt's end
        and is never sent."""
        self._next_sequence += 1
        sequence = self._next_sequence
        self._works[sequence] = work
        work.sequences.add(sequence)
        self._timeline.submit(monotonic_ns(), sequence, prompt_tokens, output_tokens, began_ns, finish_reason)

    # Engine to clients

    def _arm(self) -> None:
        """Sets the timer to the end of the step under way."""
        end_ns = self._timeline.step_end_ns
        if self._timer is None and end_ns is not None:
            self._timer = self._loop.call_at(end_ns / NS_PER_S, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timeline.advance(monotonic_ns())
        self._arm()

    def _on_step(self, _end_ns: int, tokens: list[Sequence]) -> None:
        # The index is kept because by the time a late loop writes this token, the engine may be further on.
        self._outbox.append([(sequence, sequence.output_tokens - 1) for sequence in tokens])
        if not self._draining:
            self._draining = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        """Writes the tokens of every step that had ended by now, oldest first, then lets the loop take its turn.

        What waits in sockets meanwhile comes after, as in one first-in-first-out line. Writing a single step per turn
        would let new requests overtake, and an overloaded loop would accept everything and finish nothing.
        """
        steps, self._outbox = self._outbox, []
        began_ns = monotonic_ns()
        for tokens in steps:
            began_ns = self._write_step(tokens, began_ns)
        if self._outbox:
            self._loop.call_soon(self._drain)
        else:
            self._draining = False

    def _write_step(self, tokens: list[tuple[Sequence, int]], began_ns: int) -> int:
        """Returns the instant it was done."""
        works, chunk_ns = self._works, self._chunk_ns
        for sequence, index in tokens:
            work = works.get(sequence.request_id)
            if work is None:  # the client has gone
                continue
            last = index + 1 == sequence.max_output_tokens
            if work.streams:
                data = self._encode(work, index, last)
                began_ns = self._spend(began_ns, chunk_ns)
                if work.held is None:
                    work.connection.send(data)
                else:
                    work.held.append(data)
            if last:
                del works[sequence.request_id]
                work.sequences.discard(sequence.request_id)
                if not work.sequences:
                    if not work.streams:
                        began_ns = self._spend(began_ns, chunk_ns)
                    self._finish(work, sequence.output_tokens)
        return began_ns

    def _encode(self, work: _Work, index: int, last: bool) -> bytes:
        connection, answer = work.connection, work.answer
        assert answer is not None
        if index and not last:
            return connection.frame(answer.token(index))
        events = answer.first(last) if index == 0 else [answer.last(index)]
        if not last:
            return connection.frames(events)
        return connection.frames([*events, *answer.trailer(index + 1)]) + connection.stream_tail()

    def _finish(self, work: _Work, output_tokens: int) -> None:
        connection = work.connection
        connection.state = None
        self._gateway.leave()
        self.engine.metrics.count_http(work.handler, "POST", 200)
        if isinstance(work.asked, Ranking):
            connection.reply(200, ranking_body(work.asked, self._api.model, work.request_id, int(time.time())))
        elif not work.asked.stream:
            assert work.answer is not None
            connection.reply(200, work.answer.whole(output_tokens))
        else:
            if work.held is not None:
                connection.send(b"".join(work.held))
            connection.finish()

    def _spend(self, began_ns: int, cost_ns: int) -> int:
        """Computes until a job has taken its cost, and returns the instant, which is where the next job may begin.

        Work that was real anyway counts. Wall time, not CPU time: otherwise a busy host would make the simulated
        service slower than its parameters say.
        """
        until_ns = began_ns + cost_ns
        now_ns = monotonic_ns()
        while now_ns < until_ns:
            now_ns = monotonic_ns()
        return now_ns

    def close(self) -> None:
        """Disconnects every client."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection in list(self._connections):
            connection.close()


async def serve(params: LabParams, seed: int, host: str, port: int, ready: Ready | None = None) -> None:
    """Serves until SIGTERM or SIGINT, or until cancelled. Port 0 takes a free one, told to `ready`.

    Raises UsageError when the port cannot be opened or the parameters describe no possible service.
    """
    if not 0 <= port <= PORT_MAX:
        raise UsageError(f"port {port} does not exist; use 0 for a free one, or 1 to {PORT_MAX}")
    loop = asyncio.get_running_loop()
    application = LabServer(params, seed, loop)
    try:
        server = await loop.create_server(
            lambda: Connection(application), host, port, backlog=LISTEN_BACKLOG_CONNECTIONS, family=socket.AF_UNSPEC
        )
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"cannot listen on {host}:{port}: {reason}; choose another host or port") from error
    stop = asyncio.Event()
    caught = _catch_signals(loop, stop)
    try:
        if ready is not None:
            ready(server.sockets[0].getsockname()[1])
        await stop.wait()
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
        server.close()
        application.close()
        await asyncio.sleep(0)  # lets the transports close
        await server.wait_closed()


def _catch_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> list[signal.Signals]:
    caught = []
    for number in (signal.SIGTERM, signal.SIGINT):
        try:
            loop.add_signal_handler(number, stop.set)
        except (NotImplementedError, ValueError, RuntimeError):
            break  # not in the main thread, as in tests: whoever started us cancels instead
        caught.append(number)
    return caught


def run_server(
    fault: str = "none",
    *,
    params: LabParams | None = None,
    seed: int = 0,
    host: str = "127.0.0.1",
    port: int = 8000,
    truth_file: Path | None = None,
    ready: Ready | None = None,
) -> None:
    """Blocks until SIGTERM or SIGINT. fault "random" takes one by the seed; truth_file gets what it is.

    params is the healthy service that the fault changes. Prints nothing.
    """
    scenario = choose_scenario(fault, base=params, seed=seed)
    faulty = scenario.after
    if truth_file is not None:
        write_truth(truth_file, scenario)
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD_OBJECTS)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(serve(faulty, seed, host, port, ready))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed; it is not required."""
    try:
        import uvloop  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    return uvloop.new_event_loop
