"""What becomes of a request when something breaks: the right status, nothing lost, nothing left open."""

import contextlib
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pinchpoint.clock import NS_PER_S
from pinchpoint.fetch import tls_context
from pinchpoint.load.messages import Timeouts
from tests.support.scripted_server import END, STREAM_HEAD, Piece, ScriptedServer, chunk, event, stream
from tests.support.tls import Authority, TlsScriptedServer
from tests.unit.load.drive import driven, request

BIG_BODY = b"x" * (8 << 20)
"""More than the socket buffers of both ends take, so that the request is still being sent when the answer comes."""


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def whole(status: str, body: bytes = b"{}", extra: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\n{extra}Content-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.fixture
def raw_server() -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    """Starts a server that does what the test says with each connection, before any request is read."""
    listeners: list[socket.socket] = []

    def start(respond: Callable[[socket.socket], None]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):
                        respond(connection)

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.close()


def read_head(connection: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        data = connection.recv(4096)
        if not data:
            return b""
        head += data
    return head


# -- connections ---------------------------------------------------------------------------------------------------


def test_one_connection_serves_requests_that_follow_each_other() -> None:
    with ScriptedServer(lambda number, body: stream(2)) as server, driven(server.url) as driver:
        ended = [driver.one(number) for number in range(5)]
        assert server.connections == 1
    assert [exchange.status for exchange in ended] == ["ok"] * 5
    assert [exchange.connected_ns is None for exchange in ended] == [False, True, True, True, True]
    assert len({exchange.connection_id for exchange in ended}) == 1


def test_the_last_chunk_of_an_answer_is_noticed_in_any_split() -> None:
    """Else the connection is free, and the user's next request sent, only when something else happens."""

    def script(number: int, body: bytes) -> Iterator[Piece]:
        yield STREAM_HEAD + chunk(event("a")) + chunk(event(finish="stop"))
        yield 0.02
        yield END[: number + 1]
        yield 0.02
        yield END[number + 1 :]

    with ScriptedServer(script) as server, driven(server.url, timeouts=Timeouts(total_s=2.0)) as driver:
        assert [driver.one(number).status for number in range(4)] == ["ok"] * 4


ENDINGS = [
    END,
    b"0;last=yes\r\n\r\n",
    b"000\r\n\r\n",
    b"0\r\nServer-Timing: total;dur=5\r\n\r\n",
]


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_end_of_a_long_stream_is_noticed_however_it_is_written_and_cut(ending: bytes) -> None:
    """Tokens that look alike are read in passing; the end must not pass for one of them."""
    last = chunk(event(finish="stop")) + ending
    cuts = [len(last), *range(len(last) - min(len(ending), 8) - 1, len(last)), len(last) - len(ending) + 2]

    def script(number: int, body: bytes) -> Iterator[Piece]:
        yield STREAM_HEAD
        for _ in range(8):
            yield chunk(event("a"))
            yield 0.002
        yield last[: cuts[number]]
        yield 0.005
        yield last[cuts[number] :]

    with ScriptedServer(script) as server, driven(server.url, timeouts=Timeouts(total_s=3.0)) as driver:
        ended = [driver.one(number) for number in range(len(cuts))]
        assert server.connections == 1
    assert {(exchange.status, len(exchange.chunk_ns)) for exchange in ended} == {("ok", 8)}


def test_nothing_is_left_open_whatever_happened() -> None:
    def script(number: int, body: bytes) -> Iterator[Piece]:
        kind = number % 6
        if kind == 0:
            yield from stream(2)
        elif kind == 1:
            yield "reset"
        elif kind == 2:
            yield "close"
        elif kind == 3:
            yield STREAM_HEAD + chunk(event("a"))
            yield "reset"
        elif kind == 4:
            yield b"SSH-2.0-x\r\n"
        else:
            yield 60.0

    before = open_files()
    with ScriptedServer(script) as server:
        own = open_files()
        with driven(server.url, timeouts=Timeouts(total_s=2.0)) as driver:
            driver.start(*(request(number) for number in range(30)))
            driver.until(30)
            assert not driver.issuer.in_flight
            kinds = {exchange.status for exchange in driver.done}
        assert kinds == {"ok", "transport_error", "truncated", "malformed", "timeout"}
        assert len(driver.done) == 30
    assert own > before  # the server's own end was counted, so leaks of the issuer would be too
    assert all(connection.state == "closed" for connection in driver.issuer._pool.by_fd.values())


def test_the_issuer_gives_every_descriptor_back(raw_server: Callable[..., str]) -> None:
    url = raw_server(lambda connection: None)  # closes at once
    before = open_files()
    for _ in range(3):
        with driven(url) as driver:
            driver.start(*(request(number) for number in range(20)))
            driver.until(20)
            assert driver.issuer.connections == 0
    assert open_files() <= before + 1  # the server may be closing one


def test_out_of_descriptors_is_dropped_and_never_blames_the_service() -> None:
    with ScriptedServer(lambda number, body: stream(1, first_s=0.3)) as server, driven(server.url) as driver:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            exchange = driver.one()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert (exchange.status, exchange.error) == ("dropped", "too many open files on this host")
        assert exchange.sent_ns is None
        assert driver.one(1).status == "ok"


def test_more_connections_than_the_host_allows_are_dropped_and_the_others_go_on() -> None:
    with ScriptedServer(lambda number, body: stream(1, first_s=0.2)) as server, driven(server.url) as driver:
        driver.issuer._pool.limit = 2
        driver.start(*(request(number) for number in range(3)))
        ended = driver.until(3)
    assert sorted(exchange.status or "" for exchange in ended) == ["dropped", "ok", "ok"]


@pytest.mark.parametrize("name", ["::1", "127.0.0.1"])
def test_both_loopbacks_work_and_the_host_header_names_them(name: str) -> None:
    heads: list[bytes] = []
    family = socket.AF_INET6 if ":" in name else socket.AF_INET
    with socket.create_server((name, 0), family=family) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                heads.append(read_head(connection))
                connection.sendall(b"".join(p for p in stream(1) if isinstance(p, bytes)))

        threading.Thread(target=serve, daemon=True).start()
        place = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
        with driven(f"http://{place}") as driver:
            assert driver.one().status == "ok"
    assert f"\r\nHost: {place}\r\n".encode() in heads[0]


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("", "/v1/chat/completions"),
        ("/", "/v1/chat/completions"),
        ("/v1", "/v1/chat/completions"),
        ("/llm/a/v1/", "/llm/a/v1/chat/completions"),
        ("/m%20x/é", "/m%20x/%C3%A9/v1/chat/completions"),
    ],
)
def test_a_path_prefix_of_the_url_goes_before_the_api(path: str, target: str) -> None:
    with ScriptedServer(lambda number, body: stream(1)) as server, driven(server.url + path) as driver:
        assert driver.one().status == "ok"
        assert server.requests[0].startswith(f"POST {target} HTTP/1.1\r\n".encode())


# -- whose lateness it is ------------------------------------------------------------------------------------------


HANDSHAKE_PAUSE_S = 0.4
"""Longer than the quarter of a second between two looks at the time limits."""


class SlowToShakeHands(TlsScriptedServer):
    def _serve(self, connection: socket.socket) -> None:
        time.sleep(HANDSHAKE_PAUSE_S)
        super()._serve(connection)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def test_a_slow_handshake_is_the_services_lateness_and_not_ours(authority: Authority) -> None:
    with (
        SlowToShakeHands(lambda number, body: stream(1), authority) as server,
        driven(server.url, tls=tls_context(str(authority.ca_file))) as driver,
    ):
        exchange = driver.one()
    assert exchange.status == "ok"
    assert exchange.sent_ns is not None and exchange.connected_ns is not None
    assert exchange.connected_ns - exchange.sent_ns >= HANDSHAKE_PAUSE_S * NS_PER_S


def test_a_refused_connection_was_tried_at_its_instant() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with driven(f"http://127.0.0.1:{port}") as driver:
        exchange = driver.one()
    assert (exchange.status, exchange.error) == ("transport_error", "connection refused")
    assert exchange.sent_ns is not None and exchange.connected_ns is None


# -- keep-alive races ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["close", "reset"])
def test_a_kept_connection_that_the_service_gave_up_is_no_error(ending: Piece) -> None:
    """The service ends the idle connection just as the next request goes out: sent once more, on a new one."""
    answers = iter(["first", ending, "again"])

    def script(number: int, body: bytes) -> Iterator[Piece]:
        kind = next(answers)
        if kind in ("close", "reset"):
            yield kind
        else:
            yield from stream(1)

    with ScriptedServer(script) as server, driven(server.url) as driver:
        driver.one(0)
        second = driver.one(1)
        assert server.connections == 2
    assert second.status == "ok"
    assert second.sent_ns is not None and second.sent_ns >= second.scheduled_ns
    assert len(driver.done) == 2


def test_a_service_that_dies_under_a_request_is_not_asked_again() -> None:
    """Closed long after sending: that is an answer (none), and asking again would double the load."""

    def script(number: int, body: bytes) -> Iterator[Piece]:
        if number == 1:
            yield 1.5
            yield "close"
        yield from stream(1)

    with ScriptedServer(script) as server, driven(server.url) as driver:
        driver.one(0)
        second = driver.one(1)
        assert len(server.requests) == 2
    assert second.status == "transport_error"


def test_an_idle_connection_that_closes_is_forgotten() -> None:
    def script(number: int, body: bytes) -> Iterator[Piece]:
        yield from stream(1)
        yield 0.05
        yield "close"

    with ScriptedServer(script) as server, driven(server.url) as driver:
        driver.one(0)
        driver.run_for(0.2)
        assert not driver.issuer.connections
        assert driver.one(1).status == "ok"
        assert server.connections == 2


# -- answers that come before the request was sent -----------------------------------------------------------------


@pytest.mark.parametrize(("line", "status"), [("429 Too Many Requests", "rejected"), ("413 Too Large", "http_error")])
def test_a_refusal_that_comes_while_the_prompt_is_still_being_sent_is_read(
    raw_server: Callable[..., str], line: str, status: str
) -> None:
    """The service answers, closes, and its kernel resets the connection because of the unread rest."""

    def refuse(connection: socket.socket) -> None:
        read_head(connection)
        connection.sendall(whole(line, b'{"error":{"message":"no"}}', "Connection: close\r\n"))

    url = raw_server(refuse)
    with driven(url) as driver:
        for number in range(5):
            exchange = driver.one(number, BIG_BODY)
            assert (exchange.status, exchange.http_status) == (status, int(line[:3])), exchange.error


def test_a_connection_with_half_a_request_in_it_is_not_used_again(raw_server: Callable[..., str]) -> None:
    connections: list[socket.socket] = []

    def answer_early(connection: socket.socket) -> None:
        connections.append(connection)
        read_head(connection)
        connection.sendall(whole("429 Too Many Requests"))
        if len(connections) == 1:
            threading.Event().wait(0.3)

    with driven(raw_server(answer_early)) as driver:
        first = driver.one(0, BIG_BODY)
        assert first.status == "rejected"
        assert driver.issuer.connections == 0


@pytest.mark.parametrize(("code", "status"), [(503, "rejected"), (500, "http_error"), (200, "truncated")])
def test_an_answer_cut_by_a_reset_keeps_the_meaning_of_its_status(code: int, status: str) -> None:
    def script(number: int, body: bytes) -> Iterator[Piece]:
        yield f"HTTP/1.1 {code} X\r\nContent-Length: 1000\r\n\r\noverl".encode()
        yield 0.05
        yield "reset"

    with ScriptedServer(script) as server, driven(server.url) as driver:
        exchange = driver.one()
    assert (exchange.status, exchange.http_status) == (status, code)


def test_bytes_behind_an_answer_do_not_change_it() -> None:
    """Some proxies send a 408 of their own right behind; it belongs to no request."""
    late = whole("408 Request Timeout", extra="Connection: close\r\n")
    whole_stream = b"".join(p for p in stream(2) if isinstance(p, bytes))
    with (
        ScriptedServer(lambda number, body: [whole_stream + late if number == 0 else whole_stream]) as server,
        driven(server.url) as driver,
    ):
        first, second = driver.one(0), driver.one(1)
        assert server.connections == 2
    assert (first.status, first.http_status, len(first.chunk_ns)) == ("ok", 200, 2)
    assert second.status == "ok"


# -- time limits ---------------------------------------------------------------------------------------------------


def test_the_connect_limit_counts_from_connecting_and_not_from_the_schedule(authority: Authority) -> None:
    """A request that is late, or is sent a second time, still has the whole limit to connect."""
    with (
        SlowToShakeHands(lambda number, body: stream(1), authority) as server,
        driven(server.url, tls=tls_context(str(authority.ca_file)), timeouts=Timeouts(connect_s=5.0)) as driver,
    ):
        driver.start(request(0), lead_s=-60.0)
        assert driver.until(1)[0].status == "ok"


def test_a_timeout_keeps_the_tokens_that_had_come() -> None:
    def script(number: int, body: bytes) -> Iterator[Piece]:
        yield STREAM_HEAD
        yield 0.2
        yield chunk(event("a"))
        yield 60.0

    with ScriptedServer(script) as server, driven(server.url, timeouts=Timeouts(total_s=0.5)) as driver:
        exchange = driver.one()
    assert exchange.status == "timeout"
    assert exchange.first_token_ns is not None and len(exchange.chunk_ns) == 1
