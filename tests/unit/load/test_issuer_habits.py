"""How the loop treats time limits, patience, further attempts, connections, proxies, sockets and backends."""

import contextlib
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.fetch import tls_context
from pinchpoint.load.messages import Timeouts
from pinchpoint.load.wire import resolve
from pinchpoint.load.worker import source
from pinchpoint.traceids import request_of, salt_of, trace_id
from tests.support.proxy import Proxy
from tests.support.scripted_server import END, STREAM_HEAD, Piece, ScriptedServer, chunk, event, stream
from tests.support.tls import Authority, TlsScriptedServer
from tests.unit.load.drive import driven, ns, pool, request

A = chunk(event("a"))


def page(status: str, extra: str = "", body: bytes = b"{}") -> bytes:
    return f"HTTP/1.1 {status}\r\n{extra}Content-Length: {len(body)}\r\n\r\n".encode() + body


def well(number: int, body: bytes) -> Iterator[Piece]:
    yield from stream(2)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


class Watched(ScriptedServer):
    """Tells when a client closes a connection in the middle of an answer."""

    def __init__(self, script: Callable[[int, bytes], Iterator[Piece]]) -> None:
        super().__init__(script)
        self.hung_up = threading.Event()

    def _serve(self, connection: socket.socket) -> None:
        def watch() -> None:
            with contextlib.suppress(OSError):
                while connection.fileno() >= 0:
                    if connection.recv(1, socket.MSG_PEEK) == b"":
                        self.hung_up.set()
                        return
                    time.sleep(0.01)

        threading.Thread(target=watch, daemon=True).start()
        super()._serve(connection)


# -- time limits ---------------------------------------------------------------------------------------------------


def test_a_connection_that_never_opens_times_out_in_that_phase() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        place = listener.getsockname()
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:  # the queue is full, further handshakes get no answer
            filler.setblocking(False)
            filler.connect_ex(place)
        try:
            with driven(f"http://127.0.0.1:{place[1]}", timeouts=Timeouts(connect_s=0.3)) as driver:
                exchange = driver.one()
        finally:
            for filler in fillers:
                filler.close()
    assert (exchange.status, exchange.phase, exchange.error) == ("timeout", "connect", "no connection within 0.3 s")
    assert exchange.sent_ns is not None and exchange.connected_ns is None


def test_no_first_token_in_time_is_a_timeout_of_that_phase_whatever_headers_came() -> None:
    def script(number: int, body: bytes) -> Iterator[Piece]:
        yield STREAM_HEAD
        yield chunk(b": still thinking\n\n")
        yield 5.0

    with Watched(script) as server, driven(server.url, timeouts=Timeouts(first_token_s=0.3)) as driver:
        exchange = driver.one()
        assert server.hung_up.wait(5.0)
    assert (exchange.status, exchange.phase) == ("timeout", "first-token")
    assert exchange.http_status == 200 and exchange.headers_ns is not None and not exchange.chunk_ns
    assert exchange.end_ns is not None and exchange.end_ns - exchange.scheduled_ns >= ns(0.3)


def test_tokens_that_stop_are_a_timeout_between_tokens_and_slow_ones_are_none() -> None:
    def script(number: int, body: bytes) -> Iterator[Piece]:
        yield STREAM_HEAD
        for _ in range(4):
            yield A
            yield 0.15
        if number == 0:
            yield 5.0
        yield chunk(event(finish="stop")) + END

    with ScriptedServer(script) as server, driven(server.url, timeouts=Timeouts(between_tokens_s=0.4)) as driver:
        stopped, slow = driver.one(0), driver.one(1)
    assert (stopped.status, stopped.phase, len(stopped.chunk_ns)) == ("timeout", "between-tokens", 4)
    assert stopped.end_ns is not None and stopped.end_ns - stopped.chunk_ns[-1] >= ns(0.4)
    assert (slow.status, len(slow.chunk_ns)) == ("ok", 4)


def test_an_answer_that_goes_on_and_on_times_out_as_a_whole() -> None:
    def script(number: int, body: bytes) -> Iterator[Piece]:
        yield STREAM_HEAD
        for _ in range(100):
            yield A
            yield 0.05

    limits = Timeouts(first_token_s=1.0, between_tokens_s=1.0, total_s=0.4)
    with ScriptedServer(script) as server, driven(server.url, timeouts=limits) as driver:
        exchange = driver.one()
    assert (exchange.status, exchange.phase, exchange.error) == ("timeout", "total", "no whole answer within 0.4 s")
    assert len(exchange.chunk_ns) >= 2


def test_limits_count_from_the_schedule_so_a_late_request_has_less_time() -> None:
    with (
        ScriptedServer(lambda _, __: stream(1, first_s=0.3)) as server,
        driven(server.url, timeouts=Timeouts(total_s=0.4)) as driver,
    ):
        driver.start(request(0), lead_s=-0.2)
        late = driver.until(1)[0]
        assert driver.one(1).status == "ok"
    assert (late.status, late.phase) == ("timeout", "total")


def test_a_user_without_patience_hangs_up_and_the_service_can_tell() -> None:
    with Watched(lambda _, __: iter(stream(100, gap_s=0.05))) as server, driven(server.url) as driver:
        exchange = driver.one(patience_s=0.3)
        assert server.hung_up.wait(5.0)
        assert driver.issuer.connections == 0
    assert (exchange.status, exchange.phase) == ("abandoned", None)
    assert exchange.error == "the user gave up after 0.3 s"
    assert len(exchange.chunk_ns) >= 2
    assert exchange.end_ns is not None and exchange.end_ns - exchange.scheduled_ns >= ns(0.3)


def test_patience_that_suffices_changes_nothing() -> None:
    with ScriptedServer(well) as server, driven(server.url) as driver:
        assert driver.one(patience_s=5.0).status == "ok"


def test_a_user_who_hung_up_does_not_come_back_and_a_slot_is_free_again() -> None:
    rows = [request(0, session=1, patience_s=0.1), request(1, None, session=1, turn=1)]
    with ScriptedServer(lambda _, __: stream(1, first_s=1.0)) as server, driven(server.url) as driver:
        driver.start(*rows)
        driver.until(1)
        assert driver.issuer.unissued == 0
        users = [request(number, None, patience_s=0.1, stage=1) for number in (2, 3, 4)]
        driver.start(*users, slots=1)
        driver.until(4)
    assert [(e.row.request_id, e.status) for e in driver.done] == [(n, "abandoned") for n in (0, 2, 3, 4)]


# -- further attempts ----------------------------------------------------------------------------------------------


def refuse_first(count: int, answer: Piece) -> Callable[[int, bytes], Iterator[Piece]]:
    def script(number: int, body: bytes) -> Iterator[Piece]:
        if number < count:
            yield answer
        else:
            yield from stream(1)

    return script


def test_a_refusal_is_final_unless_the_plan_allows_more() -> None:
    refusal = page("429 Too Many Requests", "Retry-After: 0\r\n")
    with ScriptedServer(refuse_first(1, refusal)) as server, driven(server.url) as driver:
        exchange = driver.one()
        driver.run_for(0.1)
        assert len(server.requests) == 1
    assert (exchange.status, exchange.attempts, exchange.retry_after_s) == ("rejected", 1, 0.0)


def test_a_refused_request_waits_as_long_as_the_service_says_and_counts_from_its_schedule() -> None:
    refusal = page("429 Too Many Requests", "Retry-After: 0.3\r\n")
    with ScriptedServer(refuse_first(1, refusal)) as server, driven(server.url, retries=2) as driver:
        exchange = driver.one()
        assert len(server.requests) == 2 and server.requests[0] == server.requests[1]
    assert (exchange.status, exchange.attempts) == ("ok", 2)
    assert exchange.scheduled_ns == driver.t0_ns
    assert exchange.sent_ns is not None and exchange.first_token_ns is not None
    assert exchange.sent_ns - exchange.scheduled_ns < ns(0.3) <= exchange.first_token_ns - exchange.scheduled_ns
    assert len(driver.done) == 1


@pytest.mark.parametrize("answer", [page("503 Busy"), "reset"])
def test_attempts_are_spent_one_by_one_and_the_last_failure_is_told(answer: Piece) -> None:
    with ScriptedServer(refuse_first(99, answer)) as server, driven(server.url, retries=2) as driver:
        exchange = driver.one()
        assert len(server.requests) == 3
    assert exchange.attempts == 3
    assert exchange.status == ("transport_error" if answer == "reset" else "rejected")


def test_a_refused_connection_is_tried_again_until_the_service_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with driven(f"http://127.0.0.1:{port}", retries=8) as driver:
        driver.start(request(0))
        driver.run_for(0.1)
        assert not driver.done and len(driver.issuer.in_flight) == 1
        server = ScriptedServer(well)
        server._listener.close()
        server._listener = socket.create_server(("127.0.0.1", port))
        with server:
            exchange = driver.until(1)[0]
    assert exchange.status == "ok" and exchange.attempts >= 2


@pytest.mark.parametrize("status", ["500 Oops", "400 Bad", "404 No"])
def test_what_is_no_refusal_is_not_tried_again(status: str) -> None:
    with ScriptedServer(refuse_first(1, page(status))) as server, driven(server.url, retries=3) as driver:
        exchange = driver.one()
        assert len(server.requests) == 1
    assert (exchange.status, exchange.attempts) == ("http_error", 1)


def test_a_request_that_waits_for_its_next_attempt_ends_with_its_time_limit() -> None:
    refusal = page("429 Too Many Requests", "Retry-After: 20\r\n")
    with (
        ScriptedServer(refuse_first(9, refusal)) as server,
        driven(server.url, retries=3, timeouts=Timeouts(total_s=0.3)) as driver,
    ):
        exchange = driver.one()
        driver.run_for(0.1)
        assert len(server.requests) == 1 and len(driver.done) == 1
    assert (exchange.status, exchange.phase) == ("timeout", "total")


def test_a_request_that_waits_for_its_next_attempt_ends_with_the_step() -> None:
    refusal = page("429 Too Many Requests", "Retry-After: 20\r\n")
    with ScriptedServer(refuse_first(9, refusal)) as server, driven(server.url, retries=3) as driver:
        driver.start(request(0))
        while not server.requests or driver.issuer.connections == 0:
            driver.run_for(0.02)
        driver.run_for(0.1)
        driver.issuer.stop_issue()
        driver.issuer.cancel_all("over")
    assert [(e.status, e.attempts) for e in driver.done] == [("cancelled", 1)]
    assert not driver.issuer.in_flight


# -- connections ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["close", "reset"])
def test_a_stale_connection_costs_a_second_attempt_that_is_counted(ending: Piece) -> None:
    def script(number: int, body: bytes) -> Iterator[Piece]:
        if number == 1:
            yield ending
        yield from stream(1)

    with ScriptedServer(script) as server, driven(server.url) as driver:
        first, second = driver.one(0), driver.one(1)
        assert server.connections == 2
    assert (first.attempts, second.attempts) == (1, 2)
    assert second.status == "ok" and second.connected_ns is not None
    assert second.sent_ns is not None and second.sent_ns <= (second.connect_ns or 0)


def test_a_request_is_sent_again_on_a_new_connection_only_once() -> None:
    def script(number: int, body: bytes) -> Iterator[Piece]:
        if number == 0:
            yield from stream(1)
        else:
            yield "close"

    with ScriptedServer(script) as server, driven(server.url) as driver:
        driver.one(0)
        second = driver.one(1)
        assert len(server.requests) == 3
    assert (second.status, second.phase, second.attempts) == ("transport_error", "headers", 2)


def test_connections_of_their_own_are_opened_for_each_request_and_closed_after_it() -> None:
    with ScriptedServer(well) as server, driven(server.url, new_connections=True) as driver:
        done = [driver.one(number) for number in range(5)]
        assert server.connections == 5
        assert all(b"\r\nConnection: close\r\n" in text for text in server.requests)
        assert driver.issuer.connections == 0
    assert len({e.connection_id for e in done}) == 5
    assert all(e.connect_ns is not None and e.connected_ns is not None for e in done)


def test_connections_are_opened_ahead_and_the_first_requests_do_not_pay_for_them() -> None:
    with ScriptedServer(lambda _, __: stream(1, first_s=0.1)) as server, driven(
        server.url, warm_connections=4
    ) as driver:  # fmt: skip
        driver.start(*(request(number, 0.01) for number in range(4)), lead_s=0.2)
        done = driver.until(4)
        assert server.connections == 4
    assert all(e.connect_ns is None and e.connected_ns is None for e in done)
    assert len({e.connection_id for e in done}) == 4


def test_each_user_of_a_closed_loop_finds_a_connection_open() -> None:
    with ScriptedServer(lambda _, __: stream(1, first_s=0.02)) as server, driven(server.url) as driver:
        driver.start(*pool(9), slots=3, lead_s=0.2)
        done = driver.until(9)
        assert server.connections == 3
    assert all(e.connect_ns is None for e in done)


def test_connections_cannot_be_opened_ahead_of_a_service_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with driven(f"http://127.0.0.1:{port}", warm_connections=3) as driver:
        exchange = driver.one()
        assert driver.issuer.connections == 0
    assert (exchange.status, exchange.phase, exchange.error) == ("transport_error", "connect", "connection refused")


def test_connect_and_handshake_have_their_instants(authority: Authority) -> None:
    with (
        TlsScriptedServer(lambda number, body: stream(1), authority) as server,
        driven(server.url, tls=tls_context(str(authority.ca_file))) as driver,
    ):
        first, second = driver.one(0), driver.one(1)
    assert first.connect_ns is not None and first.tls_ns is not None and first.connected_ns is not None
    assert first.scheduled_ns <= first.connect_ns <= first.tls_ns < first.connected_ns <= (first.headers_ns or 0)
    assert (second.connect_ns, second.tls_ns, second.connected_ns) == (None, None, None)
    with ScriptedServer(well) as server, driven(server.url) as driver:
        plain = driver.one()
    assert plain.connect_ns is not None and plain.tls_ns is None and plain.connected_ns is not None


# -- other ways to the service -------------------------------------------------------------------------------------


def test_plain_http_goes_through_a_proxy_as_a_whole_url() -> None:
    with ScriptedServer(well) as server, Proxy() as proxy:
        place = resolve(f"{server.url}/base", proxy=proxy.url.replace("http://", "http://user:p%40ss@"))
        with driven(place) as driver:
            assert [driver.one(number).status for number in range(2)] == ["ok", "ok"]
        head = proxy.heads[0]
        assert head.startswith(f"POST {server.url}/base/v1/chat/completions HTTP/1.1\r\n".encode())
        assert f"\r\nHost: 127.0.0.1:{server.port}\r\n".encode() in head
        assert b"\r\nProxy-Authorization: Basic dXNlcjpwQHNz\r\n" in head + b"\r\n"
        assert proxy.connections == server.connections == 1


def test_tls_goes_through_a_tunnel_that_sees_no_request(authority: Authority) -> None:
    with TlsScriptedServer(lambda number, body: stream(3, gap_s=0.002), authority) as server, Proxy() as proxy:
        place = resolve(server.url, proxy=proxy.url.replace("http://", "http://user:pass@"))
        with driven(place, tls=tls_context(str(authority.ca_file)), headers=(("X-A", "b"),)) as driver:
            done = [driver.one(number) for number in range(2)]
        assert proxy.heads[0].startswith(f"CONNECT 127.0.0.1:{server.port} HTTP/1.1\r\n".encode())
        assert len(proxy.heads) == 1 and b"X-A" not in proxy.heads[0]
        assert b"\r\nX-A: b\r\n" in server.requests[0] and b"Proxy-Authorization" not in server.requests[0]
    assert [(e.status, len(e.chunk_ns)) for e in done] == [("ok", 3)] * 2
    assert done[0].tls_ns is not None and done[1].tls_ns is None


def test_a_refused_tunnel_is_told_as_what_it_is(authority: Authority) -> None:
    with Proxy(refuse="407 Proxy Authentication Required") as proxy:
        place = resolve("https://127.0.0.1:9", proxy=proxy.url)
        with driven(place, tls=tls_context(str(authority.ca_file))) as driver:
            exchange = driver.one()
    assert (exchange.status, exchange.phase) == ("transport_error", "connect")
    assert exchange.error is not None and "proxy refused the tunnel" in exchange.error and "407" in exchange.error


class UnixServer(ScriptedServer):
    def __init__(self, path: Path, script: Callable[[int, bytes], Iterator[Piece]]) -> None:
        super().__init__(script)
        self._listener.close()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()


def test_a_unix_socket_carries_requests_and_its_stamps_are_known_to_be_ours(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with UnixServer(path, lambda _, __: iter(stream(30, gap_s=0.002))) as server:
        with driven(resolve("http://service/base", unix_socket=str(path))) as driver:
            before_ns = monotonic_ns()
            done = [driver.one(number) for number in range(2)]
            after_ns = monotonic_ns()
        assert server.connections == 1
        assert server.requests[0].startswith(b"POST /base/v1/chat/completions HTTP/1.1\r\nHost: service\r\n")
    for e in done:
        assert (e.status, len(e.chunk_ns), source(e)) == ("ok", 30, "user")
        assert before_ns < e.chunk_ns[0] < e.chunk_ns[-1] < after_ns


def test_a_unix_socket_that_is_not_there_is_told(tmp_path: Path) -> None:
    with driven(resolve("http://service", unix_socket=str(tmp_path / "none"))) as driver:
        exchange = driver.one()
    assert (exchange.status, exchange.phase) == ("transport_error", "connect")
    assert exchange.error == "there is no such Unix socket"


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_ipv6_is_a_way_like_any_other() -> None:
    server = ScriptedServer(well)
    server._listener.close()
    try:
        server._listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this host has no ::1")
    port = server._listener.getsockname()[1]
    with server, driven(f"http://[::1]:{port}/v1") as driver:
        exchange = driver.one()
        assert f"\r\nHost: [::1]:{port}\r\n".encode() in server.requests[0]
    assert (exchange.status, exchange.stamps_user) == ("ok", 0)


# -- backends ------------------------------------------------------------------------------------------------------


def test_backends_share_requests_in_proportion_to_their_weights() -> None:
    with ScriptedServer(well) as one, ScriptedServer(well) as two, ScriptedServer(well) as three:
        places = [resolve(server.url, weight=weight) for server, weight in ((one, 1.0), (two, 2.0), (three, 0.5))]
        with driven(*places) as driver:
            driver.start(*(request(number, number * 0.002) for number in range(70)))
            done = driver.until(70)
        assert [len(server.requests) for server in (one, two, three)] == [20, 40, 10]
        assert Counter(e.backend for e in done) == {0: 20, 1: 40, 2: 10}
        assert f"\r\nHost: 127.0.0.1:{two.port}\r\n".encode() in two.requests[0]


def test_a_session_stays_with_its_backend() -> None:
    rows = [
        request(session * 3 + turn, 0.002 * session if turn == 0 else None, session=session, turn=turn)
        for session in range(6)
        for turn in range(3)
    ]
    with ScriptedServer(well) as one, ScriptedServer(well) as two, driven(one.url, two.url) as driver:
        driver.start(*rows)
        done = driver.until(18)
    backends = {session: {e.backend for e in done if e.row.session_id == session} for session in range(6)}
    assert all(len(found) == 1 for found in backends.values())
    assert Counter(found.pop() for found in backends.values()) == {0: 3, 1: 3}


def test_a_backend_that_is_not_there_takes_its_share_of_failures_and_no_more() -> None:
    with ScriptedServer(well) as one:
        with ScriptedServer(well) as two:
            gone = two.url
        with driven(one.url, gone) as driver:
            driver.start(*(request(number, number * 0.002) for number in range(20)))
            done = driver.until(20)
    assert Counter((e.backend, e.status) for e in done) == {(0, "ok"): 10, (1, "transport_error"): 10}


def test_tls_is_spoken_with_those_backends_that_want_it(authority: Authority) -> None:
    with (
        TlsScriptedServer(lambda number, body: stream(1), authority) as secure,
        ScriptedServer(well) as plain,
        driven(secure.url, plain.url, tls=tls_context(str(authority.ca_file))) as driver,
    ):
        done = [driver.one(number) for number in range(4)]
    assert [(e.backend, e.status) for e in done] == [(0, "ok"), (1, "ok")] * 2


# -- this host's own limits ----------------------------------------------------------------------------------------


def test_a_request_beyond_the_connections_of_this_host_is_dropped_and_was_never_sent() -> None:
    with ScriptedServer(lambda _, __: stream(1, first_s=0.2)) as server, driven(server.url) as driver:
        driver.issuer._pool.limit = 1
        driver.start(request(0), request(1, 0.01))
        driver.until(2)
        assert len(server.requests) == 1
    dropped = next(e for e in driver.done if e.row.request_id == 1)
    assert (dropped.status, dropped.sent_ns, dropped.connect_ns) == ("dropped", None, None)
    assert dropped.error is not None and "ulimit -n" in dropped.error


def test_a_service_that_refuses_at_once_does_not_keep_the_loop_to_itself() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with driven(f"http://127.0.0.1:{port}") as driver:
        driver.start(*pool(10_000), slots=2, duration_s=0.35, lead_s=0.02)
        started_s = time.monotonic()
        while driver.issuer.unissued or driver.issuer.in_flight:
            driver.issuer.run_once(monotonic_ns() + NS_PER_S // 50)
            assert time.monotonic() - started_s < 5.0
    assert 2 <= len(driver.done) <= 20
    assert {e.status for e in driver.done} == {"transport_error"}


def test_an_untrusted_certificate_is_a_failure_of_the_tls_phase(authority: Authority) -> None:
    with (
        TlsScriptedServer(lambda number, body: stream(1), authority) as server,
        driven(server.url, tls=ssl.create_default_context()) as driver,
    ):
        exchange = driver.one()
    assert (exchange.status, exchange.phase) == ("transport_error", "tls")
    assert exchange.connect_ns is not None and exchange.connected_ns is None


# -- traces --------------------------------------------------------------------------------------------------------

SALT = salt_of("a run")


def traces_in(requests: list[bytes]) -> list[tuple[str, str]]:
    """Trace id and span id of each request in whose head they stand."""
    heads = [text.partition(b"\r\n\r\n")[0].decode().split("\r\n") for text in requests]
    values = [line.partition(": ")[2] for head in heads for line in head if line.startswith("traceparent: ")]
    return [(value.split("-")[1], value.split("-")[2]) for value in values]


def test_every_request_carries_a_trace_of_its_own_that_leads_back_to_it() -> None:
    with ScriptedServer(well) as server, driven(server.url, trace_salt=SALT, session_header="X-S") as driver:
        driver.start(*(request(n, 0.01 * n) for n in range(5)))
        driver.until(5)
        traces = traces_in(server.requests)
    assert sorted(request_of(SALT, trace) or 0 for trace, _ in traces) == [0, 1, 2, 3, 4]
    assert {e.status for e in driver.done} == {"ok"}


def test_each_attempt_is_a_span_of_its_own_in_one_trace() -> None:
    refusal = page("503 Service Unavailable")
    with ScriptedServer(refuse_first(1, refusal)) as server, driven(server.url, trace_salt=SALT, retries=2) as driver:
        exchange = driver.one()
        traces = traces_in(server.requests)
    assert (exchange.status, len(traces)) == ("ok", 2)
    assert {trace for trace, _ in traces} == {trace_id(SALT, exchange.row.request_id)}
    assert len({span for _, span in traces}) == 2


def test_a_load_that_asks_for_no_traces_sends_none() -> None:
    with ScriptedServer(well) as server, driven(server.url) as driver:
        driver.one()
        assert traces_in(server.requests) == []
