"""Short loads on servers that do nothing, to learn what this host's load process can do. For calibration only.

`run_trial` drives the real issuer in this process against the null server and reports what that cost and how true the
instants were. `burst_costs` does without a second process: it plays both sides in turn and times only the issuer's.
"""

import contextlib
import gc
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.errors import PinchpointError
from pinchpoint.load.exchange import Exchange
from pinchpoint.load.issuer import Issuer
from pinchpoint.load.messages import Habits
from pinchpoint.load.null_server import TAGGED_STAMP
from pinchpoint.load.timer import AbsoluteTimer
from pinchpoint.load.wire import resolve
from pinchpoint.prompt import Prompt
from pinchpoint.schedule import AFTER, NEVER, Schedule, ScheduledRequest, Slots
from pinchpoint.targets.openai import CHAT_PATH, OpenAITarget
from pinchpoint.targets.target import Chunk

LEAD_NS = 50_000_000
"""Connections are opened in this time, before the first request is due."""
BURST_LEAD_NS = 10_000_000
TURN_NS = 20_000_000
SERVER_START_TIMEOUT_S = 10.0
SERVER_STOP_TIMEOUT_S = 2.0
SESSIONS_PER_S_MAX = 20_000
"""A closed loop never gets through more requests than this in one process."""
PROMPT_TOKENS = 200

BURST_EVENT = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}\n\n'
BURST_WORDS = (b" the", b" a", b" service", b" token")
BURST_END = (
    b'data: {"id":"x","choices":[{"index":0,"delta":{},"finish_reason":"length"}]}\n\n',
    b"data: [DONE]\n\n",
)
BURST_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class NumberContent:
    """The prompt is the request's number: the null target puts it into the body as the tag. Remembers nothing."""

    counts_answers = False

    def prepare(self) -> None:
        pass

    def write(self, row: ScheduledRequest) -> Prompt:
        return Prompt.of(str(row.request_id), row.max_output_tokens, row.input_tokens)

    def remembers(self, row: ScheduledRequest) -> bool:
        return False

    def remember(self, row: ScheduledRequest, answer: str, tokens: int | None) -> None:
        pass

    def forget(self, session_id: int) -> None:
        pass

    def count(self, text: str) -> int | None:
        return None

    def calibrate(self, tokens_per_word: float, overhead_tokens: float) -> None:
        pass


class NullTarget(OpenAITarget):
    """Asks the null server for answers at given times; reads them as any other answer."""

    def __init__(self, *, stream: bool, first_ms: float, gap_ms: float) -> None:
        super().__init__(CHAT_PATH, "null", "unknown", stream=stream)
        self._before = f'{{"model":"null","stream":{str(stream).lower()},"max_tokens":'
        self._timing = f',"timing":{{"first_ms":{first_ms:g},"gap_ms":{gap_ms:g},"tag":'

    def build(self, prompt: Prompt) -> bytes:
        return f"{self._before}{prompt.max_output_tokens}{self._timing}{prompt.text}}}}}".encode()


class StampTarget(NullTarget):
    """Also keeps the instant at which each token was sent. Decodes every event, so it costs more than a load does."""

    def __init__(self, *, first_ms: float, gap_ms: float) -> None:
        super().__init__(stream=True, first_ms=first_ms, gap_ms=gap_ms)
        self.sent_ns: dict[int, list[int]] = {}
        """request_id -> instants of its tokens in order."""

    def parse_event(self, event: bytes, data: bytes) -> Chunk:
        if (match := TAGGED_STAMP.search(data)) is not None:
            self.sent_ns.setdefault(int(match[1]), []).append(int(match[2]))
        return OpenAITarget.parse_event(event, data)

    def template(self, event: bytes) -> None:  # the short way would not show the stamps
        return None


@dataclass
class Trial:
    """What a short load cost and how true its instants were. cpu_s is of this process alone, from the first due instant
    to the end. Arrays are empty where nothing was measured; arrival errors need stamps."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    requests: int = 0
    tokens: int = 0
    coalesced: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    send_lag_s: np.ndarray = field(default_factory=lambda: np.empty(0))
    arrival_error_s: np.ndarray = field(default_factory=lambda: np.empty(0))

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.wall_s if self.wall_s else 0.0

    @property
    def coalesced_ratio(self) -> float:
        return self.coalesced / self.tokens if self.tokens else 0.0


class _Collector:
    """Takes finished exchanges; `trial` makes the numbers."""

    def __init__(self, target: NullTarget) -> None:
        self._stamps = target.sent_ns if isinstance(target, StampTarget) else None
        self.result = Trial()
        self._lags_ns: list[int] = []
        self._errors_ns: list[np.ndarray] = []

    def on_done(self, exchange: Exchange) -> None:
        result = self.result
        status = exchange.status or "none"
        if status not in ("ok", "cancelled"):
            result.failures[status] = result.failures.get(status, 0) + 1
            return
        result.requests += 1
        result.tokens += len(exchange.chunk_ns) or (exchange.usage.output_tokens or 0 if exchange.usage else 0)
        result.coalesced += exchange.coalesced_count
        if exchange.sent_ns is not None:
            self._lags_ns.append(exchange.sent_ns - exchange.scheduled_ns)
        if self._stamps is not None:
            sent_ns = self._stamps.pop(exchange.row.request_id, [])
            both = min(len(sent_ns), len(exchange.chunk_ns))
            arrived_ns = np.asarray(exchange.chunk_ns, np.int64)[:both]
            self._errors_ns.append(arrived_ns - np.asarray(sent_ns, np.int64)[:both])

    def trial(self, wall_s: float, cpu_s: float) -> Trial:
        self.result.wall_s, self.result.cpu_s = wall_s, cpu_s
        self.result.send_lag_s = np.asarray(self._lags_ns, float) / NS_PER_S
        if self._errors_ns:
            self.result.arrival_error_s = np.concatenate(self._errors_ns) / NS_PER_S
        return self.result


@contextmanager
def null_service() -> Iterator[str]:
    """URL of a null server in a process of its own, which ends with the block or with this process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pinchpoint.load.null_server", "--until-stdin-closes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for this process
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        ready, _, _ = select.select([process.stdout], [], [], SERVER_START_TIMEOUT_S)
        line = process.stdout.readline() if ready else b""
        if not line.strip().isdigit():
            raise PinchpointError(
                f"the null server did not start within {SERVER_START_TIMEOUT_S:g} s; this host is overloaded, or "
                "does not let a process listen on 127.0.0.1"
            )
        yield f"http://127.0.0.1:{int(line)}"
    finally:
        process.stdin.close()
        process.stdout.close()
        try:
            process.wait(SERVER_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def run_trial(
    url: str,
    target: NullTarget,
    *,
    duration_s: float,
    tokens: int,
    concurrency: int | None = None,
    rate_rps: float | None = None,
) -> Trial:
    """Loads a null server for so long: a closed loop of `concurrency` users, or evenly spaced arrivals at `rate_rps`.

    What is in flight at the end is withdrawn and its tokens count. Runs in the calling thread.
    """
    t0_ns = monotonic_ns() + LEAD_NS
    if rate_rps is not None:
        count, slots = max(round(rate_rps * duration_s), 1), None
        schedule = _schedule(count, tokens, (np.arange(count) / rate_rps * NS_PER_S).astype(np.int64))
        warm = max(1, round(rate_rps / 10))
    else:
        assert concurrency is not None
        slots, warm = Slots.constant(concurrency), concurrency
        schedule = _schedule(round(duration_s * SESSIONS_PER_S_MAX) + concurrency, tokens, None)
    with _issuer(url, target, warm) as (issuer, collector):
        issuer.start(t0_ns, schedule, slots)
        _run_until(issuer, t0_ns)
        cpu_s = time.process_time()
        _run_until(issuer, t0_ns + round(duration_s * NS_PER_S))
        issuer.stop_issue()
        issuer.cancel_all("the trial ended")
        return collector.trial((monotonic_ns() - t0_ns) / NS_PER_S, time.process_time() - cpu_s)


@contextmanager
def _issuer(url: str, target: NullTarget, warm: int) -> Iterator[tuple[Issuer, _Collector]]:
    collector = _Collector(target)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # as a load process does
    issuer = Issuer(
        (resolve(url),), (target,), NumberContent(), collector.on_done, habits=Habits(warm_connections=warm), tls=None
    )
    try:
        yield issuer, collector
    finally:
        issuer.close()
        if collecting:
            gc.enable()


def _run_until(issuer: Issuer, until_ns: int) -> None:
    while (now_ns := monotonic_ns()) < until_ns:
        issuer.run_once(min(now_ns + TURN_NS, until_ns))


def _schedule(count: int, tokens: int, offsets_ns: np.ndarray | None) -> Schedule:
    return Schedule(
        stage=0,
        request_id=np.arange(count, dtype=np.uint64),
        session_id=np.arange(count, dtype=np.uint32),
        turn=np.zeros(count, np.uint16),
        offset_ns=np.full(count, AFTER, np.int64) if offsets_ns is None else offsets_ns,
        think_ns=np.zeros(count, np.int64),
        input_tokens=np.full(count, PROMPT_TOKENS, np.int32),
        max_output_tokens=np.full(count, tokens, np.int32),
        patience_ns=np.full(count, NEVER, np.int64),
    )


def timer_lateness_s(count: int, period_s: float) -> np.ndarray:
    """How late a sleeping process wakes up for an absolute instant, `count` times, shape (count,)."""
    timer = AbsoluteTimer()
    late_ns: list[int] = []
    with contextlib.closing(timer), contextlib.closing(select.epoll()) as epoll:
        if timer.fd is not None:
            epoll.register(timer.fd, select.EPOLLIN)
        due_ns = monotonic_ns()
        for _ in range(count):
            due_ns = max(due_ns, monotonic_ns()) + round(period_s * NS_PER_S)
            timer.arm(due_ns)
            epoll.poll(1.0 if timer.fd is not None else period_s)
            late_ns.append(monotonic_ns() - due_ns)
            timer.clear()
    return np.asarray(late_ns, float) / NS_PER_S


@dataclass(frozen=True)
class BurstCosts:
    """CPU seconds of the issuer, from a short burst."""

    per_token_s: float
    per_request_s: float


def burst_costs(streams: int = 20, rounds: int = 100, answers: int = 4) -> BurstCosts:
    """Plays a service with so many streams in this thread: `rounds` events in each, then `answers` short answers.

    Only the time inside the issuer counts. Takes some 50 ms.
    """
    with socket.create_server(("127.0.0.1", 0), backlog=streams) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with _issuer(url, NullTarget(stream=True, first_ms=0, gap_ms=0), streams) as (issuer, _), _Peer() as peer:
            # Due when the connections that are opened ahead are ready; else each request would open another.
            t0_ns = monotonic_ns() + BURST_LEAD_NS
            issuer.start(t0_ns, _schedule(streams * (answers + 2), 1, None), Slots.constant(streams))
            listener.settimeout(SERVER_START_TIMEOUT_S)
            for _ in range(streams):
                _step(issuer)
                peer.add(listener.accept()[0])
            _run_until(issuer, t0_ns)
            peer.await_requests(issuer)
            word = [_chunked(BURST_EVENT % text) for text in BURST_WORDS]
            peer.send(BURST_HEAD + word[0])
            _step(issuer)
            used_ns = 0
            for n in range(rounds):
                peer.send(word[n % len(word)])
                used_ns += _timed_step(issuer)
            per_token_s = used_ns / NS_PER_S / (rounds * streams)
            used_ns = 0
            end = b"".join(_chunked(event) for event in BURST_END) + b"0\r\n\r\n"
            peer.send(end)
            for _ in range(answers):
                used_ns += peer.await_requests(issuer)
                peer.send(BURST_HEAD + word[0] + end)
            per_request_s = used_ns / NS_PER_S / (answers * streams)
            issuer.stop_issue()
            issuer.cancel_all("the burst ended")
    return BurstCosts(per_token_s, max(per_request_s - per_token_s, 0.0))


class _Peer:
    """The service's side of a burst: its connections, all treated alike."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> "_Peer":
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._sockets:
            sock.close()

    def add(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        self._sockets.append(sock)

    def send(self, data: bytes) -> None:
        for sock in self._sockets:
            sock.sendall(data)

    def await_requests(self, issuer: Issuer) -> int:
        """Until each connection has a request; returns the CPU ns that the issuer took."""
        used_ns = 0
        deadline_ns = monotonic_ns() + round(SERVER_START_TIMEOUT_S * NS_PER_S)
        left = set(self._sockets)
        while left:
            used_ns += _timed_step(issuer)
            for sock in list(left):
                with contextlib.suppress(BlockingIOError):
                    sock.recv(1 << 16)
                    left.remove(sock)
            if monotonic_ns() > deadline_ns:
                raise PinchpointError("the load loop did not send to a server on 127.0.0.1; is loopback filtered?")
        return used_ns


def _step(issuer: Issuer) -> None:
    issuer.run_once(monotonic_ns())


def _timed_step(issuer: Issuer) -> int:
    before_ns = time.process_time_ns()
    issuer.run_once(monotonic_ns())
    return time.process_time_ns() - before_ns


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)
