"""The bounded exchange that probe and telemetry share: its limits, its reasons, and whom it trusts."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pinchpoint.errors import EXIT_USAGE, UsageError
from pinchpoint.fetch import DONE_MARK, FetchError, bearer, exchange, get, open_socket, tls_context
from tests.support.scripted_server import Piece, ScriptedServer
from tests.support.tls import Authority, TlsScriptedServer

TIMEOUT_S = 5.0
CAP_BYTES = 1000


def whole(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nX-Mixed: Case\r\n\r\n".encode() + body


def always(*pieces: Piece) -> ScriptedServer:
    return ScriptedServer(lambda number, body: pieces)


def reason(url: str, timeout_s: float = TIMEOUT_S, tls: ssl.SSLContext | None = None) -> str:
    with pytest.raises(FetchError) as error:
        get(url, {}, timeout_s, CAP_BYTES, tls)
    return error.value.reason


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def accepting() -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    """Starts a server that does what the test says with one connection; returns host:port."""
    listeners: list[socket.socket] = []

    def start(respond: Callable[[socket.socket], None], host: str = "127.0.0.1") -> str:
        listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        listeners.append(listener)

        def serve() -> None:
            with suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    respond(connection)

        threading.Thread(target=serve, daemon=True).start()
        return f"{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.close()


# -- answers -------------------------------------------------------------------------------------------------------


def test_an_answer_has_its_status_its_lower_case_headers_and_its_body() -> None:
    with always(whole(b"hello", "404 Not Found")) as server:
        answer = get(server.url + "/a%20b/é?x=1&y=é", {"X-Own": "1"}, TIMEOUT_S, CAP_BYTES)
        head = server.requests[0]
    assert (answer.status, answer.body, answer.headers["x-mixed"]) == (404, b"hello", "Case")
    assert 0 < answer.connect_s < answer.total_s
    assert head.startswith(b"GET /a%20b/%C3%A9?x=1&y=%C3%A9 HTTP/1.1\r\n")
    assert b"\r\nX-Own: 1\r\n" in head and b"\r\nConnection: close\r\n" in head


def test_a_body_is_posted_with_its_length() -> None:
    with always(whole(b"ok")) as server:
        exchange("POST", server.url, headers={}, timeout_s=TIMEOUT_S, max_bytes=CAP_BYTES, body=b"{}")
        assert server.requests[0].endswith(b"\r\n\r\n{}")


@pytest.mark.parametrize(("size", "complete"), [(CAP_BYTES, True), (CAP_BYTES + 1, False)])
def test_a_body_is_cut_behind_the_cap(size: int, complete: bool) -> None:
    with always(whole(b"x" * size)) as server:
        answer = exchange("GET", server.url, headers={}, timeout_s=TIMEOUT_S, max_bytes=CAP_BYTES)
        assert (len(answer.body), answer.complete) == (CAP_BYTES, complete)
        if not complete:
            assert reason(server.url) == "too_large"


def test_a_stream_is_over_at_its_end_mark_even_when_the_connection_stays_open() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    with always(head + b"data: {}\n\nda", 0.05, DONE_MARK[2:] + b"\n\n", 30.0) as server:
        answer = get(server.url, {}, TIMEOUT_S, CAP_BYTES)
    assert answer.complete and DONE_MARK in answer.body


def test_ipv6_without_a_port_is_not_taken_for_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def nobody(host: str, port: int, **_: object) -> list[object]:
        asked.append((host, port))
        raise socket.gaierror(socket.EAI_NONAME, "no")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    assert reason("http://[::1]/metrics") == "dns"
    assert asked == [("::1", 80)]


# -- what can go wrong ---------------------------------------------------------------------------------------------


def test_nothing_listening_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert reason(f"http://127.0.0.1:{port}") == "refused"


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ((b"SSH-2.0-x\r\n", "close"), "not_http"),
        (("close",), "reset"),
        (("reset",), "reset"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "reset"), "reset"),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "close"), "truncated"),
        ((b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", "close"), "truncated"),
    ],
)
def test_a_broken_answer_has_its_reason(pieces: tuple[Piece, ...], expected: str) -> None:
    with always(*pieces) as server:
        assert reason(server.url) == expected


def test_a_body_that_ends_with_the_connection_is_marked_as_perhaps_cut() -> None:
    for head, framed in ((b"HTTP/1.1 200 OK\r\n\r\n", False), (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", True)):
        with always(head + b"abc", "close") as server:
            answer = get(server.url, {}, TIMEOUT_S, CAP_BYTES)
            assert (answer.body, answer.framed) == (b"abc", framed)


@pytest.mark.parametrize("host", ["a..b", "a" * 70 + ".x", "ü" * 70])
def test_a_text_that_is_no_host_name_has_no_address(host: str) -> None:
    assert reason(f"http://{host}/") == "dns"


def trickle(pieces: bytes, then: bytes) -> Iterator[Piece]:
    yield pieces
    for _ in range(400):
        yield then
        yield 0.02


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X: 1\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
)
def test_a_trickle_ends_at_the_timeout(first: bytes, then: bytes) -> None:
    with ScriptedServer(lambda number, body: trickle(first, then)) as server:
        assert reason(server.url, timeout_s=0.2) == "timeout"


def test_a_trickle_inside_the_tls_handshake_ends_at_the_timeout(accepting: Callable[..., str]) -> None:
    def dribble(connection: socket.socket) -> None:
        for byte in b"\x16\x03\x03\x40\x00" + bytes(400):
            connection.sendall(bytes([byte]))
            time.sleep(0.02)

    assert reason(f"https://{accepting(dribble)}", timeout_s=0.2) == "timeout"


def test_silence_ends_at_the_timeout(accepting: Callable[..., str]) -> None:
    release = threading.Event()
    place = accepting(lambda connection: release.wait(TIMEOUT_S) and None)
    try:
        assert reason(f"http://{place}", timeout_s=0.1) == "timeout"
        assert reason(f"https://{place}", timeout_s=0.1) == "timeout"
    finally:
        release.set()


def test_exchanges_start_no_thread_of_their_own() -> None:
    def watching() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "deadlines"}

    with always(whole(b"x")) as server:
        get(server.url, {}, TIMEOUT_S, CAP_BYTES)
        before = watching()
        for _ in range(5):
            get(server.url, {}, TIMEOUT_S, CAP_BYTES)
    assert watching() == before
    assert len(before) == 1


def test_the_second_address_is_tried_when_the_first_refuses(
    accepting: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(accepting(lambda connection: connection.sendall(b"hi")).rpartition(":")[2])
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
    with open_socket("localhost", port, time.monotonic() + TIMEOUT_S) as opened:
        assert opened.recv(2) == b"hi"


@pytest.mark.parametrize("url", ["", "ftp://x/", "http://", "http://h:99999/", "http://[::1/"])
def test_a_url_that_is_none_is_wrong_usage(url: str) -> None:
    with pytest.raises(UsageError):
        get(url, {}, TIMEOUT_S, CAP_BYTES)


@pytest.mark.parametrize("key", ["", "sk-secret\n", "schlüssel"])
def test_a_key_that_cannot_stand_in_a_header_is_refused_without_showing_it(key: str) -> None:
    with pytest.raises(UsageError) as error:
        bearer(key)
    assert not key or key.strip() not in str(error.value)


# -- whom it trusts ------------------------------------------------------------------------------------------------


def test_a_private_authority_is_trusted_when_its_file_is_given(authority: Authority) -> None:
    with TlsScriptedServer(lambda number, body: [whole(b"hello")], authority) as server:
        assert get(server.url, {}, TIMEOUT_S, CAP_BYTES, tls_context(str(authority.ca_file))).body == b"hello"
        assert reason(server.url) == "certificate"
        assert len(server.requests) == 1


def test_another_authority_is_not(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path)
    with TlsScriptedServer(lambda number, body: [whole(b"hello")], authority) as server:
        assert reason(server.url, tls=tls_context(str(other.ca_file))) == "certificate"


def test_a_certificate_for_another_host_is_told_apart(tmp_path: Path) -> None:
    elsewhere = Authority(tmp_path, "DNS:elsewhere.example")
    with TlsScriptedServer(lambda number, body: [whole(b"hello")], elsewhere) as server:
        assert reason(server.url, tls=tls_context(str(elsewhere.ca_file))) == "wrong_name"


def test_https_to_a_plain_port_is_a_tls_failure() -> None:
    with always(whole(b"hello")) as server:
        # The plain server waits for the end of a head that never comes; closing it would be "reset".
        assert reason(server.url.replace("http:", "https:"), timeout_s=0.3) in ("tls", "timeout", "reset")


def test_the_own_authority_is_added_to_the_systems_and_does_not_replace_them(authority: Authority) -> None:
    alone, both = tls_context(), tls_context(str(authority.ca_file))
    assert both.cert_store_stats()["x509_ca"] == alone.cert_store_stats()["x509_ca"] + 1
    assert both.verify_mode == ssl.CERT_REQUIRED and both.check_hostname


@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"\x30\x82\x00"])
def test_a_ca_file_that_cannot_be_used_is_wrong_usage_and_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "own.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"own\.pem") as error:
        tls_context(str(path))
    assert error.value.exit_code == EXIT_USAGE


def test_a_directory_is_no_ca_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="CA file"):
        tls_context(str(tmp_path))
