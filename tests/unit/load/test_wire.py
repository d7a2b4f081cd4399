"""One connection: bytes, instants and TLS records, with a peer that the test moves by hand."""

import errno
import select
import socket
import ssl
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.errors import TargetError, UsageError
from pinchpoint.fetch import tls_context
from pinchpoint.load import wire
from pinchpoint.load.wire import Connection, Endpoint, WallOffset, explain, resolve, stamping_socket
from tests.support.tls import Authority

PATIENCE_S = 5.0
STAMP_SLACK_NS = 5_000_000
"""Between the kernel's stamp and our clock reads around it, on a busy machine."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module", autouse=True)
def stamping() -> Iterator[None]:
    """The kernel begins to stamp a little after the first socket asks for it, and ends with the last."""
    with stamping_socket():
        yield


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        yield opened


def address_of(listener: socket.socket) -> Endpoint:
    return resolve(f"http://127.0.0.1:{listener.getsockname()[1]}")


def wait_for(connection: Connection, mask: int) -> None:
    poller = select.poll()
    poller.register(connection.fd, mask)
    assert poller.poll(PATIENCE_S * 1000), "the kernel reported nothing"


def read(connection: Connection, wall: WallOffset) -> tuple[bytes, int, bool] | None:
    wait_for(connection, select.POLLIN)
    return connection.read(wall)


class TlsPeer:
    """A server whose ciphertext the test cuts as it likes."""

    def __init__(self, listener: socket.socket, authority: Authority) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = authority.server_context().wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._listener = listener

    def shake_hands(self, connection: Connection, wall: WallOffset) -> None:
        wait_for(connection, select.POLLOUT)
        connection.on_writable()
        self.socket, _ = self._listener.accept()
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for done in (False, True):
            self._incoming.write(self.socket.recv(65536))
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                assert not done
            self.socket.sendall(self._outgoing.read())
            while connection.state == "tls":
                assert read(connection, wall) is None
            if done:
                return

    def encrypt(self, *records: bytes) -> bytes:
        for record in records:
            self._tls.write(record)
        return self._outgoing.read()

    def close_notify(self) -> bytes:
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            return self._outgoing.read()
        raise AssertionError("the client closed first")


@pytest.fixture
def plain(listener: socket.socket) -> Iterator[tuple[Connection, socket.socket]]:
    connection = Connection(address_of(listener), 1, None)
    wait_for(connection, select.POLLOUT)
    connection.on_writable()
    peer, _ = listener.accept()
    with peer:
        yield connection, peer
    connection.close()


# -- instants ------------------------------------------------------------------------------------------------------


def test_the_stamp_is_of_the_arrival_and_not_of_the_read(plain: tuple[Connection, socket.socket]) -> None:
    connection, peer = plain
    wall = WallOffset()
    before_ns = monotonic_ns()
    peer.sendall(b"x")
    after_ns = monotonic_ns()
    time.sleep(0.05)
    wall.refresh()
    found = read(connection, wall)
    assert found is not None
    data, stamp_ns, kernel = found
    assert (data, kernel) == (b"x", True)
    assert before_ns - STAMP_SLACK_NS <= stamp_ns <= after_ns + STAMP_SLACK_NS


def test_a_stepped_wall_clock_moves_no_instant(
    plain: tuple[Connection, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, peer = plain
    wall = WallOffset()
    wall.offset_ns -= 3600 * NS_PER_S  # as if the wall clock had been put forward by an hour since
    before_ns = monotonic_ns()
    peer.sendall(b"x")
    wait_for(connection, select.POLLIN)
    wall.notice_step()
    found = connection.read(wall)
    assert found is not None
    assert before_ns - STAMP_SLACK_NS <= found[1] <= monotonic_ns() + STAMP_SLACK_NS
    refreshed: list[int] = []
    monkeypatch.setattr(wall, "refresh", lambda: refreshed.append(1))
    monkeypatch.setattr(time, "time_ns", lambda: time.monotonic_ns() + wall.offset_ns)
    wall.notice_step()
    assert refreshed == []  # no step since: nothing to measure again


def test_nothing_to_read_is_none_and_a_closed_peer_is_empty(plain: tuple[Connection, socket.socket]) -> None:
    connection, peer = plain
    wall = WallOffset()
    assert connection.read(wall) is None
    peer.close()
    found = read(connection, wall)
    assert found is not None and found[0] == b""


def test_what_the_buffers_do_not_take_is_sent_later_and_whole(plain: tuple[Connection, socket.socket]) -> None:
    connection, peer = plain
    body = bytes(range(256)) * (64 << 10)
    connection.send(body)
    assert connection.wants_write
    received = bytearray()
    peer.settimeout(PATIENCE_S)
    while len(received) < len(body):
        received += peer.recv(1 << 20)
        if connection.wants_write:
            connection.on_writable()
    assert bytes(received) == body
    assert not connection.wants_write


# -- TLS records ---------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_cut_of_the_ciphertext_gives_the_same_bytes_in_order(
    authority: Authority, listener: socket.socket, data: st.DataObject
) -> None:
    records = data.draw(st.lists(st.binary(min_size=1, max_size=400), min_size=1, max_size=6))
    wall = WallOffset()
    connection = Connection(address_of(listener), 1, tls_context(str(authority.ca_file)))
    peer = TlsPeer(listener, authority)
    try:
        peer.shake_hands(connection, wall)
        ciphertext = peer.encrypt(*records)
        cuts = sorted(data.draw(st.lists(st.integers(1, len(ciphertext) - 1), max_size=8, unique=True)))
        received: list[tuple[bytes, int, bool]] = []
        for start, end in zip([0, *cuts], [*cuts, len(ciphertext)], strict=True):
            peer.socket.sendall(ciphertext[start:end])
            found = read(connection, wall)
            if found is not None:
                assert found[0], "an unfinished record must not look like a closed connection"
                received.append(found)
        assert b"".join(part for part, _, _ in received) == b"".join(records)
        assert all(kernel for _, _, kernel in received)
        assert [stamp for _, stamp, _ in received] == sorted(stamp for _, stamp, _ in received)
    finally:
        connection.close()
        peer.socket.close()


def test_a_close_notify_behind_the_last_bytes_is_not_overlooked(authority: Authority, listener: socket.socket) -> None:
    """Servers on asyncio say close_notify and then keep the TCP connection open until the client says it too."""
    wall = WallOffset()
    connection = Connection(address_of(listener), 1, tls_context(str(authority.ca_file)))
    peer = TlsPeer(listener, authority)
    peer.shake_hands(connection, wall)
    peer.socket.sendall(peer.encrypt(b"the end") + peer.close_notify())
    found = read(connection, wall)
    assert found is not None and found[0] == b"the end"
    assert connection.peer_closed
    connection.close()
    peer.socket.close()


def test_a_bare_close_notify_is_a_closed_peer(authority: Authority, listener: socket.socket) -> None:
    wall = WallOffset()
    connection = Connection(address_of(listener), 1, tls_context(str(authority.ca_file)))
    peer = TlsPeer(listener, authority)
    peer.shake_hands(connection, wall)
    peer.socket.sendall(peer.close_notify())
    found = read(connection, wall)
    assert found is not None and found[0] == b""
    connection.close()
    peer.socket.close()


def test_a_large_request_goes_through_tls_whole(authority: Authority, listener: socket.socket) -> None:
    wall = WallOffset()
    connection = Connection(address_of(listener), 1, tls_context(str(authority.ca_file)))
    peer = TlsPeer(listener, authority)
    peer.shake_hands(connection, wall)
    body = bytes(range(256)) * 4096
    connection.send(body)
    received = bytearray()
    peer.socket.settimeout(PATIENCE_S)
    while len(received) < len(body):
        peer._incoming.write(peer.socket.recv(1 << 20))
        while True:
            try:
                received += peer._tls.read(1 << 20)
            except ssl.SSLWantReadError:
                break
        if connection.wants_write:
            connection.on_writable()
    assert bytes(received) == body
    connection.close()
    peer.socket.close()


def test_the_service_is_told_why_its_certificate_was_not_taken(authority: Authority, listener: socket.socket) -> None:
    connection = Connection(address_of(listener), 1, tls_context())
    peer = TlsPeer(listener, authority)
    with pytest.raises(ssl.SSLCertVerificationError) as refused:
        peer.shake_hands(connection, WallOffset())
    assert "--ca-file" in explain(refused.value)
    peer._incoming.write(peer.socket.recv(65536))
    with pytest.raises(ssl.SSLError, match=r"(?i)unknown.ca"):
        peer._tls.do_handshake()
    connection.close()
    peer.socket.close()


# -- addresses -----------------------------------------------------------------------------------------------------


def test_of_several_addresses_the_one_that_listens_is_taken(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """localhost is often ::1 first, and a service bound to 0.0.0.0 is not there."""
    port = listener.getsockname()[1]
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
    address = resolve(f"http://localhost:{port}")
    assert (address.family, address.sockaddr) == (socket.AF_INET, ("127.0.0.1", port))
    assert address.host_header == f"localhost:{port}"


def test_when_no_address_listens_the_first_is_kept_and_the_requests_will_say_so(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = listener.getsockname()[1]
    listener.close()
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"127.0.0.{i}", port)) for i in (1, 2)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
    assert resolve(f"http://localhost:{port}").sockaddr == ("127.0.0.1", port)


@pytest.mark.parametrize(
    ("url", "host_header", "server_name", "prefix"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000", "127.0.0.1", ""),
        ("https://[::1]/v1", "[::1]", "::1", ""),
        ("http://[::1]:80/a/v1/", "[::1]:80", "::1", "/a"),
        ("http://user:pass@127.0.0.1/v1", "127.0.0.1", "127.0.0.1", ""),
        ("http://127.0.0.1/a b/é", "127.0.0.1", "127.0.0.1", "/a%20b/%C3%A9"),
    ],
)
def test_a_url_gives_the_host_header_the_tls_name_and_the_prefix(
    url: str, host_header: str, server_name: str, prefix: str
) -> None:
    address = resolve(url)
    assert (address.host_header, address.server_name, address.path_prefix) == (host_header, server_name, prefix)


@pytest.mark.parametrize(
    "url", ["", "ftp://h", "http://", "http://h:99999", "http://[::1", "http://a..b/", f"http://{'a' * 70}.x/"]
)
def test_a_url_that_cannot_be_used_is_wrong_usage(url: str) -> None:
    with pytest.raises(UsageError):
        resolve(url)


def test_a_name_without_address_is_a_matter_of_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_address(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    with pytest.raises(TargetError, match="cannot resolve xn--bcher-kva"):
        resolve("http://bücher.example")


@pytest.mark.parametrize("code", wire.OURS)
def test_what_this_host_lacks_is_not_said_of_the_service(code: int) -> None:
    assert "service" not in explain(OSError(code, "x"))


def test_a_broken_connection_is_explained_in_words() -> None:
    assert explain(OSError(errno.ECONNRESET, "x")) == "connection reset by the service"
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = tls_context().wrap_bio(incoming, outgoing, server_hostname="h")
    incoming.write(b"HTTP/1.1 400 Bad Request\r\n")
    with pytest.raises(ssl.SSLError) as plain_http:
        client.do_handshake()
    assert explain(plain_http.value).startswith("TLS failed: ")
