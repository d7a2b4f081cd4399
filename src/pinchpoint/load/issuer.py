"""The load loop: issues requests at their instants and captures what comes back. One thread, one epoll.

Open loop: each request is due at its scheduled instant, whatever happened before; a stall makes requests late (and the
lag is recorded), never fewer. Closed loop: a slot's next request is due `think` after its last one ended. Which request
is due when is the backlog's business.

The loop knows nothing of files, processes or statistics: finished exchanges go to a callback.
"""

import contextlib
import errno
import random
import select
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.load.backlog import Backlog, Body, Slot
from pinchpoint.load.deadlines import Deadlines
from pinchpoint.load.exchange import Exchange
from pinchpoint.load.gathering import CALM_NS, EVENTS_MAX, Gathering
from pinchpoint.load.messages import Content, Habits
from pinchpoint.load.pool import READS, Pool
from pinchpoint.load.rpc import Rpc, RpcExchange, over_grpc
from pinchpoint.load.timer import AbsoluteTimer
from pinchpoint.load.wire import (
    ANCILLARY_BYTES,
    OURS,
    READ_BYTES,
    STEP_NS,
    Connection,
    Endpoint,
    WallOffset,
    explain,
    stamping_socket,
    unpack_timespec,
)
from pinchpoint.schedule import Schedule, ScheduledRequest, Slots
from pinchpoint.targets.target import Target
from pinchpoint.traceids import HEADER, traceparent

WALL_REFRESH_NS = NS_PER_S // 10
EXPIRE_PERIOD_NS = NS_PER_S // 20
"""Deadlines are looked at this often, and at the instant of the next one that is known."""
WRITE_AHEAD_PERIOD_NS = 1_000_000
TIMER_NET_S = 0.002
"""epoll's own timeout ends so much after the timer's instant: a net below it, should it be missed."""
OWN_HEADERS = (
    ("Content-Type", "application/json"),
    ("Accept", "text/event-stream, application/json"),
    ("Accept-Encoding", "identity"),
    ("User-Agent", "pinchpoint"),
)
HTTP_OK = 200
HTTP_REDIRECT = 300
STALE_WINDOW_NS = NS_PER_S
"""A close that was already under way when the request went out arrives within one round trip; a second is ample."""
FIRST_TOKENS_AT_ONCE = 4
"""A third of a millisecond of work: headers, and the search for a template."""
FOLLOW_NS = 150_000
"""So long at most a closed loop's user waits behind the ends of others for the next request to leave."""
LOOK_EVERY = 8
"""Events between two looks at the clock: about a tenth of a millisecond."""
ISSUE_AT_ONCE = 8
"""About half a millisecond of work."""
FAILURE_PAUSE_NS = NS_PER_S // 10
"""A user whose connection failed waits so long before the next request: a service that refuses at once would else be
asked as often as the loop can turn."""
RETRY_BASE_S = 0.1
"""First pause before another attempt where the service names none; doubled each time, and half of it is random."""
RETRY_AFTER_MAX_S = 30.0


class Issuer:
    """Runs steps. `on_done(exchange)` is called once for every request, whatever became of it.

    targets: by class_id; a single one is that of all classes.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        targets: Sequence[Target],
        content: Content,
        on_done: Callable[[Exchange], None],
        *,
        habits: Habits = Habits(),  # noqa: B008 - frozen
        tls: ssl.SSLContext | None = None,
        rpc: Rpc | None = None,
    ) -> None:
        """rpc: where a target is of gRPC; closed together with the loop."""
        self._targets = tuple(targets)
        self._over_http = not all(over_grpc(target) for target in self._targets)
        self._rpc = rpc
        self._calls: dict[int, RpcExchange] = {}
        """Key of a gRPC call -> what it carries."""
        self._content = content
        self._on_done = on_done
        self._habits = habits
        self._tells_requests_apart = habits.session_header is not None or habits.trace_salt is not None
        self._deadlines = Deadlines(habits.timeouts)
        self._heads = [[self._head(endpoint, target) for endpoint in endpoints] for target in self._targets]
        self._backlog = Backlog(self._write, content.remembers)
        self._epoll = select.epoll()
        self._timer = AbsoluteTimer()
        if self._timer.fd is not None:
            self._epoll.register(self._timer.fd, select.EPOLLIN)
        if rpc is not None:
            self._epoll.register(rpc.fd, select.EPOLLIN)
        self._wall = WallOffset()
        self._pool = Pool(endpoints, tls, self._epoll)
        self._unread: deque[Exchange] = deque()
        """Answers whose first tokens were put by and not looked at."""
        self._waiting: dict[int, tuple[Exchange, bytes]] = {}
        """fd -> request whose bytes go out once its connection is open."""
        self._again: list[tuple[int, Exchange]] = []
        """(instant, request) of further attempts."""
        self._bodies: dict[int, bytes] = {}
        """request_id -> body, where a further attempt is possible."""
        self._random = random.Random(0)
        self._next_wall_ns = self._next_expire_ns = self._next_ahead_ns = 0
        self.poll_ns = 0
        """Time spent waiting in epoll: wall time minus this is how busy the loop is."""
        self.stall_ns = 0
        """Longest time lately that the loop could not look at its sockets, or woke up late."""
        self._left_poll_ns = monotonic_ns()
        self._gathering = Gathering(monotonic_ns())
        self._changed = False
        """Something has ended or failed, so other things may be due than before."""
        self.called = False
        self.issued = 0
        self.in_flight: dict[int, Exchange] = {}
        """request_id -> exchange."""
        self._stamp_guard = stamping_socket()

    @property
    def wall(self) -> WallOffset:
        return self._wall

    @property
    def next_due_ns(self) -> int | None:
        return self._backlog.next_ns

    @property
    def unissued(self) -> int:
        return self._backlog.unissued

    @property
    def pool_left(self) -> int:
        return self._backlog.pool_left

    @property
    def connections(self) -> int:
        return len(self._pool) + (self._rpc.connections if self._rpc is not None else 0)

    @property
    def sockets(self) -> Mapping[int, Connection]:
        """The connections by descriptor; those of gRPC belong to its library and are not among them."""
        return self._pool.by_fd

    def start(self, t0_ns: int, schedule: Schedule, slots: Slots | None = None, duration_ns: int | None = None) -> None:
        """Adds a step, or more sessions to one that was added before (then without slots).

        duration_ns: nothing of the step is sent from then on; None: until its schedule is used up.
        """
        self._backlog.add(t0_ns, schedule, slots, monotonic_ns(), duration_ns)
        if self._over_http and not self._habits.new_connections:  # one for each user at least
            self._pool.warm_up(max(self._habits.warm_connections, len(slots.start_ns) if slots is not None else 0))

    def stop_issue(self) -> None:
        """Forgets what is not yet due; what was due already is sent first."""
        now_ns = monotonic_ns()
        while self._backlog.next_ns is not None and self._backlog.next_ns <= now_ns:
            self._issue_due(now_ns)
        self._backlog.clear()
        self._pool.end_all_sessions()
        for _, exchange in self._again:
            exchange.fail("cancelled", "the step ended before another attempt was due")
            self._done(exchange)
        self._again.clear()

    def cancel_all(self, reason: str) -> None:
        """Withdraws every request in flight by closing its connection, as a user does who gives up."""
        self._again.clear()
        for exchange in list(self.in_flight.values()):
            exchange.fail("cancelled", reason)
            exchange.end_ns = monotonic_ns()
            if exchange.connection is not None:
                self._finish(exchange.connection, exchange)
            else:
                self._done(exchange)

    def run_once(self, until_ns: int) -> None:
        """Issues what is due, waits for the next event or `until_ns`, handles what came."""
        now_ns = monotonic_ns()
        backlog = self._backlog
        if self._unread:
            self._read_first_tokens()
            now_ns = monotonic_ns()
        if backlog.next_ns is not None and backlog.next_ns <= now_ns:
            self._issue_due(now_ns)
            now_ns = monotonic_ns()
        if self._again and self._again[0][0] <= now_ns:
            self._send_again(now_ns)
        if now_ns >= self._next_ahead_ns:
            backlog.write_ahead()
            self._next_ahead_ns = now_ns + WRITE_AHEAD_PERIOD_NS
            now_ns = monotonic_ns()
        wake_ns = self._wake_ns(until_ns)
        if wake_ns > now_ns and self._timer.fd is not None:
            self._timer.arm(wake_ns)
        self._changed = False
        while True:
            after_ns = self._wait(now_ns, wake_ns)
            if self._changed or after_ns >= wake_ns:
                break
            now_ns = monotonic_ns()
        if after_ns >= self._next_wall_ns:
            self._wall.refresh()
            self._next_wall_ns = after_ns + WALL_REFRESH_NS
        if after_ns >= self._next_expire_ns:
            self._expire(after_ns)
            self._gathering.choose(after_ns, len(self.in_flight))

    def _issue_due(self, now_ns: int) -> None:
        """Issues what was due by then, but only so many before the sockets are looked at again: a crowd of requests
        that are due at once must not leave the tokens of others unread. What becomes due meanwhile waits, or a
        service that refuses at once would keep the loop here for ever."""
        for _ in range(ISSUE_AT_ONCE):
            due = self._backlog.pop(now_ns)
            if due is None:
                return
            assert due.row is not None and due.body is not None
            self._issue(due.row, due.body, due.at_ns, due.slot)

    def _read_first_tokens(self) -> None:
        """A few at a time: what was put by is read when tokens of others do not have to wait for it."""
        for _ in range(min(FIRST_TOKENS_AT_ONCE, len(self._unread))):
            exchange = self._unread.popleft()
            connection = exchange.connection
            if connection is not None and exchange.catch_up():
                self._finish(connection, exchange)

    def _wake_ns(self, until_ns: int) -> int:
        """When the loop has something to do of its own accord."""
        if self._unread:
            return 0
        wake_ns = until_ns
        due_ns = self._backlog.next_ns
        if due_ns is not None and due_ns < wake_ns:
            wake_ns = due_ns
        if self._next_expire_ns < wake_ns and self.in_flight:
            wake_ns = self._next_expire_ns
        if self._again and self._again[0][0] < wake_ns:
            wake_ns = self._again[0][0]
        return wake_ns

    def _wait(self, now_ns: int, wake_ns: int) -> int:
        """Waits for events and handles them; returns when they came. The way of a token is written out here: for most
        of them it is all that runs."""
        timeout_s = (wake_ns - now_ns) / NS_PER_S + TIMER_NET_S if wake_ns > now_ns else 0.0
        if now_ns - self._left_poll_ns > self.stall_ns:
            self.stall_ns = now_ns - self._left_poll_ns
        events = self._epoll.poll(timeout_s)
        after_ns = monotonic_ns()
        gathering = self._gathering
        if (
            gathering.nap_ns
            and len(events) < EVENTS_MAX
            and wake_ns - after_ns > 2 * gathering.nap_ns
            and after_ns - gathering.last_end_ns > CALM_NS
            and not self._pool.opening
        ):
            time.sleep(gathering.nap_ns / NS_PER_S)
            events = self._epoll.poll(0)
            after_ns = monotonic_ns()
        gathering.events += len(events)
        self._left_poll_ns = after_ns
        self.poll_ns += after_ns - now_ns
        if after_ns - wake_ns > self.stall_ns and wake_ns > now_ns:
            self.stall_ns = after_ns - wake_ns
        wall = self._wall
        if not -STEP_NS < time.time_ns() - after_ns - wall.offset_ns < STEP_NS:
            wall.notice_step()
        offset_ns = wall.offset_ns
        connections = self._pool.by_fd
        issued_ns = after_ns
        due_ns = self._backlog.next_ns
        until_looked = LOOK_EVERY
        for fd, mask in events:
            until_looked -= 1
            if not until_looked:  # a request that falls due meanwhile does not wait for the rest of a long batch
                until_looked = LOOK_EVERY
                if due_ns is not None and monotonic_ns() >= due_ns:
                    self._issue_due(monotonic_ns())
                    due_ns = self._backlog.next_ns
            connection = connections.get(fd)
            if connection is None:
                self._changed = True
                if fd == self._timer.fd:
                    self._timer.clear()
                elif self._rpc is not None and fd == self._rpc.fd:
                    self._take_calls()
                else:
                    self.called = True
                continue
            exchange = connection.exchange
            if mask != READS or exchange is None or not connection.plain:
                self._handle(connection, mask)
                continue
            try:
                data, ancillary, _, _ = connection.recvmsg(READ_BYTES, ANCILLARY_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                self._broken(connection, error)
                continue
            if not data or not ancillary:
                self._came(connection, exchange, data, monotonic_ns(), kernel=False)
                continue
            seconds, nanoseconds = unpack_timespec(ancillary[0][2])
            if exchange.take(data, seconds * NS_PER_S + nanoseconds - offset_ns):
                self._finish(connection, exchange)
                # Users who do not think are not kept waiting until the ends of all others have been dealt with.
                if gathering.last_end_ns - issued_ns > FOLLOW_NS:
                    issued_ns = gathering.last_end_ns
                    self._issue_due(issued_ns)
        return after_ns

    def listen(self, fd: int) -> None:
        """`called` becomes True, and `run_once` returns, when there is something to read from this descriptor."""
        self._epoll.register(fd, select.EPOLLIN)

    def forget_stall(self) -> None:
        """What kept the loop from its sockets until now was no stop."""
        self.stall_ns = 0
        self._left_poll_ns = monotonic_ns()

    def close(self) -> None:
        for connection in list(self._pool.by_fd.values()):
            self._drop(connection)
        if self._rpc is not None:
            self._rpc.close()
        self._epoll.close()
        self._timer.close()
        self._stamp_guard.close()

    # -- issuing ---------------------------------------------------------------------------------------------------

    def _head(self, endpoint: Endpoint, target: Target) -> bytes:
        given = {name.lower() for name, _ in self._habits.headers}
        own = {name.lower(): (name, value) for name, value in (*OWN_HEADERS, *target.headers)}
        lines = [
            f"POST {endpoint.path_prefix}{target.path} HTTP/1.1",
            f"Host: {endpoint.host_header}",
            *(f"{name}: {value}" for lower, (name, value) in own.items() if lower not in given),
            *(["Connection: close"] if self._habits.new_connections else []),
            *(f"{name}: {value}" for name, value in self._habits.headers),
        ]
        return ("\r\n".join(lines) + "\r\n" + endpoint.extra_head).encode("latin-1") + b"Content-Length: "

    def _of_this_request(self, exchange: Exchange) -> list[tuple[str, str]]:
        """Headers whose value differs from request to request."""
        habits, row = self._habits, exchange.row
        headers = [(habits.session_header, str(row.session_id))] if habits.session_header is not None else []
        if habits.trace_salt is not None:
            headers.append((HEADER, traceparent(habits.trace_salt, row.request_id, exchange.attempts)))
        return headers

    def _target_of(self, row: ScheduledRequest) -> int:
        return row.class_id if len(self._targets) > 1 else 0

    def _write(self, row: ScheduledRequest) -> Body:
        prompt = self._content.write(row)
        try:
            data, problem = self._targets[self._target_of(row)].build(prompt), None
        except ValueError as error:
            data, problem = b"", str(error)
        return Body(data, prompt.input_tokens, prompt.shared_tokens, problem)

    def _exchange(self, row: ScheduledRequest, due_ns: int) -> Exchange:
        keep_text = self._content.counts_answers or self._content.remembers(row)
        target = self._targets[self._target_of(row)]
        kind = RpcExchange if over_grpc(target) else Exchange
        return kind(row, due_ns, target.reader(), keep_text=keep_text)

    def _issue(self, row: ScheduledRequest, body: Body, due_ns: int, slot: Slot | None) -> None:
        exchange = self._exchange(row, due_ns)
        exchange.slot = slot
        exchange.input_tokens, exchange.shared_tokens = body.input_tokens, body.shared_tokens
        exchange.backend = self._pool.backend_of(row.session_id)
        self.issued += 1
        self.in_flight[row.request_id] = exchange
        if body.problem is not None:
            exchange.fail("dropped", body.problem)
            self._done(exchange)
            return
        if self._habits.retries:
            self._bodies[row.request_id] = body.data
        self._attempt(exchange, body.data)

    def _attempt(self, exchange: Exchange, body: bytes) -> None:
        """Sends the request on a kept connection, or opens one for it."""
        exchange.attempts += 1
        if isinstance(exchange, RpcExchange):
            self._call(exchange, body)
            return
        connection = self._pool.take(exchange.row.session_id, exchange.backend)
        if connection is not None:
            self._tie(connection, exchange)
            self._send(connection, exchange, body)
        elif len(self._pool) >= self._pool.limit:
            exchange.fail("dropped", f"this host allows {self._pool.limit} connections (ulimit -n)")
            self._done(exchange)
        else:
            self._open(exchange, body)

    def _call(self, exchange: RpcExchange, body: bytes) -> None:
        """Hands the request to gRPC. The service is told how long it has."""
        assert self._rpc is not None
        target = self._targets[self._target_of(exchange.row)]
        now_ns = monotonic_ns()
        exchange.handed_ns = now_ns
        exchange.sent_ns = exchange.sent_ns or now_ns
        if self._habits.new_connections:
            exchange.connect_ns = now_ns
        left_ns = exchange.scheduled_ns + int(self._habits.timeouts.total_s * NS_PER_S) - now_ns
        exchange.key = self._rpc.send(
            target.path,
            body,
            backend=exchange.backend,
            streaming=target.stream,
            timeout_s=max(left_ns, 1) / NS_PER_S,
            metadata=(
                *((name.lower(), value) for name, value in (*target.headers, *self._habits.headers)),
                *((name.lower(), value) for name, value in self._of_this_request(exchange)),
            ),
        )
        self._calls[exchange.key] = exchange
        self._look_again(exchange, now_ns)

    def _tie(self, connection: Connection, exchange: Exchange) -> None:
        connection.exchange, exchange.connection = exchange, connection
        self._look_again(exchange, monotonic_ns())

    def _open(self, exchange: Exchange, body: bytes) -> None:
        started_ns = monotonic_ns()
        try:
            connection = self._pool.open(exchange.backend)
        except OSError as error:
            exchange.end_ns = monotonic_ns()
            if error.errno in OURS:
                exchange.fail("dropped", explain(error))
            else:
                exchange.sent_ns = exchange.sent_ns or started_ns
                exchange.connect_ns = started_ns
                exchange.fail("transport_error", explain(error), "connect")
                if self._try_again(exchange):
                    return
            self._done(exchange)
            return
        exchange.sent_ns = exchange.sent_ns or started_ns
        exchange.connect_ns = started_ns
        self._tie(connection, exchange)
        self._waiting[connection.fd] = (exchange, body)

    def _send(self, connection: Connection, exchange: Exchange, body: bytes) -> None:
        exchange.connection_id = connection.number
        connection.requests += 1
        head = self._heads[self._target_of(exchange.row)][exchange.backend]
        if self._tells_requests_apart:
            lines = "".join(f"{name}: {value}\r\n" for name, value in self._of_this_request(exchange))
            head = b"%s%d\r\n%s\r\n" % (head, len(body), lines.encode("latin-1"))
        else:
            head = b"%s%d\r\n\r\n" % (head, len(body))
        if exchange.sent_ns is None:
            exchange.sent_ns = monotonic_ns()
        if exchange.connect_ns is None:
            self._waiting[connection.fd] = (exchange, body)  # should the kept connection turn out to be closed
        try:
            connection.send(head + body)
        except OSError as error:
            self._broken(connection, error)
            return
        self._pool.watch(connection)

    # -- further attempts --------------------------------------------------------------------------------------------

    def _try_again(self, exchange: Exchange) -> bool:
        """Puts off another attempt where the plan allows one. The latency goes on from the scheduled instant."""
        if exchange.attempts > self._habits.retries or exchange.status not in ("rejected", "transport_error"):
            return False
        pause_s = RETRY_BASE_S * 2 ** (exchange.attempts - 1) * (0.5 + 0.5 * self._random.random())
        if exchange.retry_after_s is not None:
            pause_s = min(exchange.retry_after_s, RETRY_AFTER_MAX_S)
        fresh = self._fresh(exchange)
        self._changed = True
        self._again.append((monotonic_ns() + int(pause_s * NS_PER_S), fresh))
        self._again.sort(key=lambda item: item[0])
        return True

    def _fresh(self, exchange: Exchange) -> Exchange:
        """The same request as if it had not been tried: it left on time, and what follows is no lateness of ours."""
        fresh = self._exchange(exchange.row, exchange.scheduled_ns)
        fresh.input_tokens, fresh.shared_tokens = exchange.input_tokens, exchange.shared_tokens
        fresh.slot, fresh.backend, fresh.attempts = exchange.slot, exchange.backend, exchange.attempts
        fresh.sent_ns = exchange.sent_ns
        exchange.release()
        self._look_again(fresh, monotonic_ns())
        self.in_flight[fresh.row.request_id] = fresh
        return fresh

    def _send_again(self, now_ns: int) -> None:
        while self._again and self._again[0][0] <= now_ns:
            _, exchange = self._again.pop(0)
            self._attempt(exchange, self._bodies[exchange.row.request_id])

    # -- gRPC events -------------------------------------------------------------------------------------------------

    def _take_calls(self) -> None:
        assert self._rpc is not None
        for number, event in enumerate(self._rpc.take(), 1):
            if not number % LOOK_EVERY and self._backlog.next_ns is not None:
                self._issue_due(monotonic_ns())
            exchange = self._calls.get(event.key)
            if exchange is None or not exchange.happened(event):  # one that was withdrawn still ends
                continue
            del self._calls[event.key]
            exchange.key = None
            if exchange.status == "ok" or not self._try_again(exchange):
                self._done(exchange)

    # -- socket events ---------------------------------------------------------------------------------------------

    def _handle(self, connection: Connection, mask: int) -> None:
        try:
            if mask & (select.EPOLLOUT | select.EPOLLERR):
                connection.on_writable()
                self._opened(connection)
                self._pool.watch(connection)
            if mask & (select.EPOLLIN | select.EPOLLHUP) and connection.state != "closed":
                self._readable(connection)
        except OSError as error:
            self._broken(connection, error)

    def _opened(self, connection: Connection) -> None:
        """Sends what waited for the connection to open; one that was opened ahead is idle from now on."""
        if connection.state != "open" or connection.requests:
            return
        self._pool.opening.discard(connection.fd)
        if connection.exchange is None:
            self._pool.free(connection)
            return
        waiting = self._waiting.pop(connection.fd, None)
        if waiting is not None:
            exchange, body = waiting
            exchange.tls_ns, exchange.connected_ns = connection.tls_ns, connection.connected_ns
            self._send(connection, exchange, body)

    def _readable(self, connection: Connection) -> None:
        read = connection.read(self._wall)
        self._opened(connection)  # a TLS handshake ends on a read
        if connection.state == "closed":
            return
        self._pool.watch(connection)
        if read is None:
            return
        exchange = connection.exchange
        if exchange is None:
            self._drop(connection)  # an idle connection was closed, or spoke out of turn
            return
        self._came(connection, exchange, *read[:2], kernel=read[2])

    def _came(self, connection: Connection, exchange: Exchange, data: bytes, stamp_ns: int, *, kernel: bool) -> None:
        if not data:
            if connection.state == "tls":
                exchange.fail("transport_error", "the connection was closed inside the TLS handshake", "tls")
            exchange.closed(monotonic_ns())
            if not exchange.complete and self._resend_stale(connection, exchange):
                return
            self._finish(connection, exchange)
            return
        exchange.stamps_user += not kernel
        ended = exchange.take(data, stamp_ns)
        if connection.peer_closed and not ended:
            exchange.closed(monotonic_ns())
            ended = True
        if ended:
            self._finish(connection, exchange)

    def _resend_stale(self, connection: Connection, exchange: Exchange) -> bool:
        """A kept-alive connection that the peer closed before any byte of the answer: sent once more on a new one.

        The race is part of HTTP/1.1 keep-alive (RFC 9112, 9.3.1) and says nothing about the service; the latency keeps
        counting from the scheduled instant and the attempt is counted, so nothing is hidden. A service that closes
        later than such a race can last has failed, and asking it again would double the load.
        """
        if exchange.connect_ns is not None or exchange.bytes_in or exchange.sent_ns is None:
            return False
        waiting = self._waiting.get(connection.fd)
        if waiting is None or monotonic_ns() - exchange.sent_ns > STALE_WINDOW_NS:
            return False
        self._drop(connection)
        fresh = self._fresh(exchange)
        fresh.attempts += 1
        self._open(fresh, waiting[1])
        return True

    def _broken(self, connection: Connection, error: OSError) -> None:
        exchange = connection.exchange
        if exchange is None:
            self._drop(connection)
            return
        if connection.state == "open" and not isinstance(error, ssl.SSLError):
            self._read_rest(connection, exchange)
        exchange.catch_up()
        if not exchange.complete:
            if error.errno in (errno.ECONNRESET, errno.EPIPE) and self._resend_stale(connection, exchange):
                return
            if exchange.http_status is None:
                exchange.fail("transport_error", explain(error), self._phase(connection))
            elif HTTP_OK <= exchange.http_status < HTTP_REDIRECT:
                exchange.fail("truncated", explain(error))
            else:
                exchange.closed(monotonic_ns())  # a refusal is one, even when its text was cut off
        self._finish(connection, exchange)

    @staticmethod
    def _phase(connection: Connection) -> str:
        """What a request without an answer waits for."""
        if connection.state in ("connecting", "tunnel"):
            return "connect"
        if connection.state == "tls":
            return "tls"
        return "send" if connection.wants_write else "headers"

    def _read_rest(self, connection: Connection, exchange: Exchange) -> None:
        """What the service said before the connection broke under our sending, such as an early 413 or 429."""
        with contextlib.suppress(OSError):
            while (read := connection.read(self._wall)) is not None and read[0]:
                exchange.stamps_user += not read[2]
                if exchange.take(read[0], read[1]):
                    return

    # -- endings -----------------------------------------------------------------------------------------------------

    def _finish(self, ended: Connection, exchange: Exchange) -> None:
        connection: Connection | None = ended
        connection.exchange = exchange.connection = None
        self._waiting.pop(connection.fd, None)
        whole = exchange.complete and not connection.wants_write  # else the rest of the request is still to go out
        keep = whole and exchange.keep_alive and connection.state == "open" and not connection.peer_closed
        if exchange.end_ns is None:
            exchange.end_ns = monotonic_ns()
        exchange.stamp_error_ns = self._wall.error_ns
        if not keep or self._habits.new_connections:
            self._drop(connection)
            connection = None
        if exchange.status != "ok" and self._try_again(exchange):
            if connection is not None:
                self._pool.free(connection)
            return
        goes_on = self._done(exchange)
        if connection is None:
            return
        if goes_on:
            self._pool.keep(connection, exchange.row.session_id)
        else:
            self._pool.free(connection)

    def _done(self, exchange: Exchange) -> bool:
        """Hands the exchange on. True when its session goes on."""
        self._changed = True
        row = exchange.row
        if self.in_flight.pop(row.request_id, None) is None:
            return False
        self._bodies.pop(row.request_id, None)
        if isinstance(exchange, RpcExchange) and exchange.key is not None:
            assert self._rpc is not None
            self._rpc.cancel(exchange.key)
            del self._calls[exchange.key]
        exchange.release()
        now_ns = monotonic_ns()
        exchange.end_ns = exchange.end_ns or now_ns
        self._on_done(exchange)
        if exchange.status == "ok" and self._content.remembers(row):
            told = exchange.usage.output_tokens if exchange.usage is not None else None
            self._content.remember(row, exchange.text, told)
        if exchange.status == "abandoned":
            self._backlog.give_up(row)
        self._gathering.last_end_ns = now_ns
        pause_ns = FAILURE_PAUSE_NS if exchange.status == "transport_error" else 0
        goes_on = self._backlog.ended(row, exchange.slot, now_ns + pause_ns)
        if not goes_on:
            self._pool.end_session(row.session_id)
            self._content.forget(row.session_id)
        return goes_on

    def _drop(self, connection: Connection) -> None:
        self._waiting.pop(connection.fd, None)
        self._pool.drop(connection)

    # -- deadlines ---------------------------------------------------------------------------------------------------

    def _look_again(self, exchange: Exchange, now_ns: int) -> None:
        """Notes when the exchange's deadlines must be looked at next."""
        exchange.check_ns = self._deadlines.look_at_ns(exchange, now_ns)
        self._changed = True
        if exchange.check_ns < self._next_expire_ns:
            self._next_expire_ns = exchange.check_ns

    def _expire(self, now_ns: int) -> None:
        next_ns = now_ns + EXPIRE_PERIOD_NS
        late: list[Exchange] = []
        nothing_unread = not self._unread
        for exchange in self.in_flight.values():
            if exchange.unread and nothing_unread:
                self._unread.append(exchange)
            if exchange.check_ns <= now_ns:
                late.append(exchange)
            elif exchange.check_ns < next_ns:
                next_ns = exchange.check_ns
        self._next_expire_ns = next_ns
        for exchange in late:
            if self._deadlines.first(exchange)[0] > now_ns:
                self._look_again(exchange, now_ns)
            else:
                self._give_up(exchange, now_ns)

    def _give_up(self, exchange: Exchange, now_ns: int) -> None:
        connection = exchange.connection
        if connection is not None and connection.plain:
            self._handle(connection, READS)  # it may lie in the socket already
            if exchange.connection is not connection:
                return
        if isinstance(exchange, RpcExchange) and exchange.key is not None:
            self._take_calls()
            if exchange.key is None:
                return
        at_ns, status, phase = self._deadlines.first(exchange)
        if at_ns > now_ns:
            self._look_again(exchange, now_ns)
            return
        exchange.end_ns = now_ns
        exchange.fail(status, self._deadlines.words(exchange, phase), phase or None)
        self._again = [item for item in self._again if item[1] is not exchange]
        if connection is not None:
            self._finish(connection, exchange)
        else:
            self._done(exchange)
