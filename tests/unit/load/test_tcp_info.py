"""What the kernel tells of a connection: read as far as its structure goes, from real sockets, and added up."""

import socket
import ssl
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.catalog import load_catalog
from pinchpoint.load import wire
from pinchpoint.load.tcp_info import SAMPLED_MAX, TcpInfo, TcpSampler, parse
from pinchpoint.load.wire import Connection, Endpoint

pytestmark = pytest.mark.skipif(wire.TCP_INFO is None, reason="this system has no TCP_INFO")
LENGTHS = {104: "Linux 2.6", 136: "4.1", 160: "4.6", 192: "4.9", 240: "5.4"}


def info_bytes(length: int = 240) -> bytes:
    """A structure whose fields tell themselves apart."""
    words = list(range(24))
    words[15], words[16], words[18], words[23] = 50_000, 4_000, 10, 7
    data = struct.pack("=8B24I", *([1] * 8), *words)
    data += struct.pack("=4Q", 11, 12, 13_000, 14_000)
    data += struct.pack("=6I", 1, 2, 99, 48_000, 3, 4)
    data += struct.pack("=Q", 1_250_000)
    data += bytes(32) + bytes(24) + struct.pack("=I", 5) + bytes(100)
    return data[:length]


def test_every_field_is_found_in_a_whole_structure() -> None:
    assert parse(info_bytes()) == TcpInfo(
        rtt_s=0.05,
        rtt_var_s=0.004,
        unacked=4,
        lost=6,
        cwnd=10,
        reordering=20,
        retransmits=7,
        bytes_acked=13_000,
        bytes_received=14_000,
        unsent_bytes=99,
        rtt_min_s=0.048,
        delivery_bytes_per_s=1_250_000,
        out_of_order=5,
    )


@pytest.mark.parametrize("length", LENGTHS, ids=LENGTHS.values())
def test_an_older_kernel_tells_less_and_nothing_is_made_up(length: int) -> None:
    info = parse(info_bytes(length))
    assert info is not None and info.rtt_s == 0.05 and info.retransmits == 7
    assert (info.bytes_acked is None) == (length < 136)
    assert (info.rtt_min_s is None) == (length < 160)
    assert (info.delivery_bytes_per_s is None) == (length < 168)
    assert (info.out_of_order is None) == (length < 228)


@given(st.binary(max_size=300))
def test_any_bytes_give_an_answer_or_none(data: bytes) -> None:
    assert (parse(data) is None) == (len(data) < 104)


class Fake:
    state = "open"

    def __init__(self, number: int, data: bytes | None = None) -> None:
        self.number = number
        self.data = info_bytes() if data is None else data
        self.asked = 0

    def tcp_info(self) -> bytes | None:
        self.asked += 1
        return self.data


def retransmitting(count: int) -> bytes:
    data = bytearray(info_bytes())
    data[100:104] = struct.pack("=I", count)
    return bytes(data)


def test_no_more_than_so_many_are_read_at_a_time_and_all_have_their_turn() -> None:
    fakes = {fd: Fake(fd) for fd in range(3 * SAMPLED_MAX + 5)}
    sampler = TcpSampler()
    for _ in range(5):
        before = sum(fake.asked for fake in fakes.values())
        assert sampler.read(fakes)["network.sampled_connections"] == SAMPLED_MAX
        assert sum(fake.asked for fake in fakes.values()) - before == SAMPLED_MAX
    assert min(fake.asked for fake in fakes.values()) >= 1


def test_counts_grow_by_what_each_connection_added_whoever_comes_and_goes() -> None:
    sampler = TcpSampler()
    one, two = Fake(1, retransmitting(3)), Fake(2, retransmitting(4))
    assert sampler.read({10: one})["network.retransmits_total"] == 3
    assert sampler.read({10: one, 11: two})["network.retransmits_total"] == 7
    one.data = retransmitting(5)
    assert sampler.read({10: one})["network.retransmits_total"] == 9
    # A descriptor is given again to another connection, which has counted from zero.
    assert sampler.read({10: Fake(3, retransmitting(1))})["network.retransmits_total"] == 10


def test_nothing_to_read_is_no_reading_and_not_zero() -> None:
    closed = Fake(1)
    closed.state = "connecting"
    assert TcpSampler().read({}) == {}
    assert TcpSampler().read({10: closed}) == {}
    assert TcpSampler().read({10: Fake(1, b"")}) == {}


def test_every_series_is_in_the_catalogue() -> None:
    for name in TcpSampler().read({10: Fake(1)}):
        entry = load_catalog().entry(name)
        assert entry is not None and entry.layer == "network", name


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def connected(listener: socket.socket, tls: ssl.SSLContext | None = None) -> tuple[Connection, socket.socket]:
    endpoint = Endpoint(socket.AF_INET, listener.getsockname(), "x", "x", tls is not None, "")
    connection = Connection(endpoint, 1, tls)
    served, _ = listener.accept()
    connection.on_writable()
    return connection, served


def test_a_real_connection_tells_its_round_trip_and_what_it_carried(listener: socket.socket) -> None:
    connection, served = connected(listener)
    with served:
        connection.send(b"x" * 1000)
        assert len(served.recv(1000, socket.MSG_WAITALL)) == 1000
        served.sendall(b"y" * 50)  # carries the acknowledgement
        while connection.read(wire.WallOffset()) is None:
            pass
        readings = TcpSampler().read({connection.fd: connection})
    connection.close()
    assert 0 < readings["network.rtt_s"] <= readings["network.rtt_max_s"] < 5
    assert readings["network.sent_bytes_total"] >= 1000
    assert readings["network.received_bytes_total"] >= 50
    assert readings["network.retransmits_total"] == 0


def test_tls_hides_nothing_and_a_closed_or_unix_socket_has_nothing(listener: socket.socket, tmp_path) -> None:
    connection, served = connected(listener, ssl.create_default_context())
    with served:
        assert parse(connection.tcp_info() or b"") is not None
        connection.close()
        assert connection.tcp_info() is None
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        unix = Connection(Endpoint(socket.AF_UNIX, path, "x", "x", False, ""), 1, None)
        assert unix.tcp_info() is None
        unix.close()
