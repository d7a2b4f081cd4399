"""The load loop: issues requests at their instants and captures what comes back. One thread, one epoll.

Open loop: each request is due at its scheduled instant, whatever happened before; a stall makes requests late (and the
lag is recorded), never fewer. Closed loop: each user's next request is due `think` after the last one ended. Both are
one heap of due instants.

The loop knows nothing of files, processes or statistics: finished exchanges go to a callback.
"""

import contextlib
import errno
import heapq
import resource
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.load.exchange import Exchange, Reader
from pinchpoint.load.messages import Intent, Timeouts
from pinchpoint.load.timer import AbsoluteTimer
from pinchpoint.load.wire import OURS, SO_TIMESTAMPNS, Address, Connection, WallOffset, explain

WALL_REFRESH_NS = NS_PER_S // 10
PARSE_PERIOD_NS = NS_PER_S // 10
"""Streams in flight are parsed this often, so that first tokens are known while they last."""
RESERVED_FILES = 64
"""Descriptors left for everything that is not a load connection."""
HTTP_OK = 200
HTTP_REDIRECT = 300
STALE_WINDOW_NS = NS_PER_S
"""A close that was already under way when the request went out arrives within one round trip; a second is ample."""


class Target(Reader, Protocol):
    path: str


class Issuer:
    """Runs steps. `on_done(exchange, stage)` is called once for every request, whatever became of it."""

    def __init__(
        self,
        address: Address,
        target: Target,
        on_done: Callable[[Exchange, int], None],
        *,
        headers: tuple[tuple[str, str], ...] = (),
        tls: ssl.SSLContext | None = None,
        timeouts: Timeouts = Timeouts(),  # noqa: B008 - frozen
    ) -> None:
        self._address = address
        self._target = target
        self._on_done = on_done
        self._tls = tls
        self._timeouts = timeouts
        lines = [
            f"POST {address.path_prefix}{target.path} HTTP/1.1",
            f"Host: {address.host_header}",
            "Content-Type: application/json",
            "Accept: text/event-stream, application/json",
            "User-Agent: pinchpoint",
            *(f"{name}: {value}" for name, value in headers),
        ]
        self._head = "\r\n".join(lines).encode("latin-1") + b"\r\nContent-Length: "
        self._epoll = select.epoll()
        self._timer = AbsoluteTimer()
        if self._timer.fd is not None:
            self._epoll.register(self._timer.fd, select.EPOLLIN)
        self._wall = WallOffset()
        self._connections: dict[int, Connection] = {}
        self._idle: deque[Connection] = deque()
        self._waiting: dict[int, Exchange] = {}
        """fd -> exchange whose bytes go out once its connection is open."""
        self._numbers = 0
        self._due: list[tuple[int, int, int, Intent]] = []
        """Heap of (instant, request_id, stage, intent)."""
        self._later: dict[int, deque[tuple[int, Intent]]] = {}
        """session_id of a closed-loop user -> (stage, intent) of the requests that wait for an answer."""
        self._stage_of: dict[int, int] = {}
        self._next_parse_ns = self._next_wall_ns = self._next_timeout_ns = 0
        self._limit_connections = _raise_file_limit() - RESERVED_FILES
        self.poll_ns = 0
        """Time spent waiting in epoll: wall time minus this is how busy the loop is."""
        self.in_flight: dict[int, Exchange] = {}
        """request_id -> exchange."""
        # The kernel switches stamping on with the first socket that asks for it, and a few packets late.
        self._stamp_guard = _stamping_socket()

    @property
    def wall(self) -> WallOffset:
        return self._wall

    @property
    def next_due_ns(self) -> int | None:
        return self._due[0][0] if self._due else None

    @property
    def unissued(self) -> int:
        return len(self._due) + sum(len(later) for later in self._later.values())

    def stage_of(self, request_id: int) -> int:
        return self._stage_of[request_id]

    def start(self, stage: int, t0_ns: int, intents: list[Intent]) -> None:
        """Adds a step. Open-loop requests are due at t0 + offset; of closed-loop users the first request at t0."""
        for intent in intents:
            if intent.offset_ns is not None:
                self._due.append((t0_ns + intent.offset_ns, intent.request_id, stage, intent))
            elif intent.session_id in self._later:
                self._later[intent.session_id].append((stage, intent))
            else:
                self._later[intent.session_id] = deque()
                self._due.append((t0_ns, intent.request_id, stage, intent))
        heapq.heapify(self._due)

    def stop_issue(self) -> None:
        """Forgets what is not yet due; what is overdue has been issued before (the loop never leaves it waiting)."""
        self._due.clear()
        self._later.clear()

    def cancel_all(self, reason: str) -> None:
        """Withdraws every request in flight by closing its connection, as a user does who gives up."""
        for connection in list(self._connections.values()):
            exchange = connection.exchange
            if exchange is not None:
                exchange.advance()
                if exchange.complete:
                    self._finish(connection, exchange)
                    continue
                exchange.fail("cancelled", reason)
                exchange.end_ns = monotonic_ns()
                self._finish(connection, exchange)

    def run_once(self, until_ns: int) -> None:
        """Issues what is due, waits for the next event or `until_ns`, handles what came."""
        now_ns = monotonic_ns()
        while self._due and self._due[0][0] <= now_ns:
            due_ns, _, stage, intent = heapq.heappop(self._due)
            self._issue(intent, due_ns, stage)
            now_ns = monotonic_ns()
        wake_ns = min(until_ns, self._due[0][0]) if self._due else until_ns
        timeout_s = max(wake_ns - now_ns, 0) / NS_PER_S
        if self._timer.fd is not None and timeout_s > 0:
            self._timer.arm(wake_ns)
            timeout_s += 0.002  # the timer wakes first; this is only a net below it
        before_ns = monotonic_ns()
        events = self._epoll.poll(timeout_s)
        after_ns = monotonic_ns()
        self.poll_ns += after_ns - before_ns
        self._wall.notice_step()
        for fd, mask in events:
            if fd == self._timer.fd:
                self._timer.clear()
            elif (connection := self._connections.get(fd)) is not None:
                self._handle(connection, mask)
        if after_ns >= self._next_wall_ns:
            self._wall.refresh()
            self._next_wall_ns = after_ns + WALL_REFRESH_NS
        if after_ns >= self._next_parse_ns:
            self._parse_in_flight()
            self._next_parse_ns = monotonic_ns() + PARSE_PERIOD_NS
        if after_ns >= self._next_timeout_ns:
            self._expire(after_ns)
            self._next_timeout_ns = after_ns + NS_PER_S // 4

    def close(self) -> None:
        for connection in list(self._connections.values()):
            self._drop(connection)
        self._epoll.close()
        self._timer.close()
        self._stamp_guard.close()

    # -- issuing ---------------------------------------------------------------------------------------------------

    def _issue(self, intent: Intent, due_ns: int, stage: int) -> None:
        exchange = Exchange(intent, due_ns, self._target)
        self.in_flight[intent.request_id] = exchange
        self._stage_of[intent.request_id] = stage
        if self._idle:
            connection = self._idle.pop()
            connection.exchange = exchange
            self._send(connection, exchange)
            return
        if len(self._connections) >= self._limit_connections:
            exchange.fail("dropped", f"this host allows {self._limit_connections} connections (ulimit -n)")
            self._done(exchange)
            return
        self._open(exchange)

    def _open(self, exchange: Exchange) -> None:
        self._numbers += 1
        started_ns = monotonic_ns()
        try:
            connection = Connection(self._address, self._numbers, self._tls)
        except OSError as error:
            if error.errno in OURS:
                exchange.fail("dropped", explain(error))
            else:
                exchange.sent_ns = exchange.sent_ns or started_ns
                exchange.fail("transport_error", explain(error))
            exchange.end_ns = monotonic_ns()
            self._done(exchange)
            return
        exchange.sent_ns = exchange.sent_ns or started_ns
        connection.exchange = exchange
        self._connections[connection.fd] = connection
        self._waiting[connection.fd] = exchange
        self._epoll.register(connection.fd, select.EPOLLIN | select.EPOLLOUT)

    def _send(self, connection: Connection, exchange: Exchange) -> None:
        body = exchange.row.body
        exchange.connection_id = connection.number
        connection.requests += 1
        if exchange.sent_ns is None:
            exchange.sent_ns = monotonic_ns()
        try:
            connection.send(self._head + b"%d\r\n\r\n" % len(body) + body)
        except OSError as error:
            self._broken(connection, error)
            return
        if connection.wants_write:
            self._epoll.modify(connection.fd, select.EPOLLIN | select.EPOLLOUT)

    # -- socket events ---------------------------------------------------------------------------------------------

    def _handle(self, connection: Connection, mask: int) -> None:
        try:
            if mask & (select.EPOLLOUT | select.EPOLLERR):
                connection.on_writable()
                if connection.state == "open":
                    self._send_waiting(connection)
                if not connection.wants_write and connection.state != "closed":
                    self._epoll.modify(connection.fd, select.EPOLLIN)
            if mask & (select.EPOLLIN | select.EPOLLHUP) and connection.state != "closed":
                self._readable(connection)
        except OSError as error:
            self._broken(connection, error)

    def _send_waiting(self, connection: Connection) -> None:
        exchange = self._waiting.pop(connection.fd, None)
        if exchange is not None:
            exchange.connected_ns = connection.connected_ns
            self._send(connection, exchange)

    def _readable(self, connection: Connection) -> None:
        read = connection.read(self._wall)
        if connection.state == "open":
            self._send_waiting(connection)  # a TLS handshake ends on a read
        if connection.state == "closed":
            return
        if connection.wants_write:
            self._epoll.modify(connection.fd, select.EPOLLIN | select.EPOLLOUT)
        if read is None:
            return
        exchange = connection.exchange
        if exchange is None:
            self._drop(connection)  # an idle connection was closed, or spoke out of turn
            return
        if not read[0]:
            exchange.closed(monotonic_ns())
            if not exchange.complete and self._retry_stale(connection, exchange):
                return
            self._finish(connection, exchange)
            return
        if self._receive(exchange, read):
            exchange.advance()
        if connection.peer_closed:
            exchange.closed(monotonic_ns())
        if exchange.complete or exchange.status is not None:
            self._finish(connection, exchange)

    def _receive(self, exchange: Exchange, read: tuple[bytes, int, bool]) -> bool:
        data, stamp_ns, kernel = read
        if kernel:
            exchange.stamps_kernel += 1
        else:
            exchange.stamps_user += 1
        exchange.stamp_error_ns = self._wall.error_ns
        return exchange.receive(data, stamp_ns)

    def _retry_stale(self, connection: Connection, exchange: Exchange) -> bool:
        """A kept-alive connection that the peer closed before any byte of the answer: sent once more on a new one.

        The race is part of HTTP/1.1 keep-alive (RFC 9112, 9.3.1) and says nothing about the service; the latency keeps
        counting from the scheduled instant, so nothing is hidden. A service that closes later than such a race can
        last has failed, and asking it again would double the load.
        """
        if connection.requests < 2 or exchange.bytes_in or exchange.sent_ns is None:
            return False
        if monotonic_ns() - exchange.sent_ns > STALE_WINDOW_NS:
            return False
        row, scheduled_ns = exchange.row, exchange.scheduled_ns
        self._drop(connection)
        fresh = Exchange(row, scheduled_ns, self._target)
        fresh.sent_ns = exchange.sent_ns  # it left on time; what follows is not the generator's lateness
        self.in_flight[row.request_id] = fresh
        self._open(fresh)
        return True

    def _broken(self, connection: Connection, error: OSError) -> None:
        exchange = connection.exchange
        if exchange is None:
            self._drop(connection)
            return
        if connection.state == "open" and not isinstance(error, ssl.SSLError):
            self._read_rest(connection, exchange)
        exchange.advance()
        if not exchange.complete:
            if error.errno in (errno.ECONNRESET, errno.EPIPE) and self._retry_stale(connection, exchange):
                return
            if exchange.http_status is None:
                exchange.fail("transport_error", explain(error))
            elif HTTP_OK <= exchange.http_status < HTTP_REDIRECT:
                exchange.fail("truncated", explain(error))
            else:
                exchange.closed(monotonic_ns())  # a refusal is one, even when its text was cut off
        self._finish(connection, exchange)

    def _read_rest(self, connection: Connection, exchange: Exchange) -> None:
        """What the service said before the connection broke under our sending, such as an early 413 or 429."""
        with contextlib.suppress(OSError):
            while (read := connection.read(self._wall)) is not None and read[0]:
                self._receive(exchange, read)

    def _finish(self, connection: Connection, exchange: Exchange) -> None:
        connection.exchange = None
        self._waiting.pop(connection.fd, None)
        whole = exchange.complete and not connection.wants_write  # else the rest of the request is still to go out
        if whole and exchange.keep_alive and connection.state == "open" and not connection.peer_closed:
            self._idle.append(connection)
        else:
            self._drop(connection)
        if exchange.end_ns is None:
            exchange.end_ns = monotonic_ns()
        self._done(exchange)

    def _done(self, exchange: Exchange) -> None:
        intent = exchange.row
        self.in_flight.pop(intent.request_id, None)
        self._on_done(exchange, self._stage_of.pop(intent.request_id))
        following = self._later.get(intent.session_id) if intent.offset_ns is None else None
        if following:
            stage, upcoming = following.popleft()
            due_ns = (exchange.end_ns or monotonic_ns()) + upcoming.think_ns
            heapq.heappush(self._due, (due_ns, upcoming.request_id, stage, upcoming))
        elif following is not None:
            del self._later[intent.session_id]  # the user is done; in a later step the number means a new one

    def _drop(self, connection: Connection) -> None:
        self._connections.pop(connection.fd, None)
        self._waiting.pop(connection.fd, None)
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.state != "closed":
            with contextlib.suppress(OSError, ValueError):  # already gone from the set
                self._epoll.unregister(connection.fd)
            connection.close()

    # -- housekeeping ----------------------------------------------------------------------------------------------

    def _parse_in_flight(self) -> None:
        for connection in list(self._connections.values()):
            exchange = connection.exchange
            if exchange is not None and exchange.bytes_in:
                exchange.advance()
                if exchange.complete or exchange.status is not None:
                    self._finish(connection, exchange)

    def _expire(self, now_ns: int) -> None:
        connect_ns = int(self._timeouts.connect_s * NS_PER_S)
        total_ns = int(self._timeouts.total_s * NS_PER_S)
        for connection in list(self._connections.values()):
            exchange = connection.exchange
            if exchange is None:
                continue
            if connection.state != "open" and now_ns - connection.opened_ns > connect_ns:
                exchange.fail("transport_error", f"no connection within {self._timeouts.connect_s:g} s")
            elif now_ns - exchange.scheduled_ns > total_ns:
                exchange.advance()
                if not exchange.complete:
                    exchange.fail("timeout", f"no whole answer within {self._timeouts.total_s:g} s")
            else:
                continue
            if not exchange.complete:
                exchange.end_ns = now_ns
            self._finish(connection, exchange)


def _raise_file_limit() -> int:
    """Lifts the soft limit of open files to the hard one and returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    ceiling = hard if hard != resource.RLIM_INFINITY else max(soft, 1 << 20)
    if soft < ceiling:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling, hard))
        except (ValueError, OSError):
            return soft
    return ceiling


def _stamping_socket() -> socket.socket:
    guard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        guard.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    except OSError:
        return guard
    time.sleep(0.01)  # the kernel flips its stamping switch in a deferred work item
    return guard
