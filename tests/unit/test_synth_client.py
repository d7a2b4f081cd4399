"""The load generator of a virtual run: what its own limits do to sending and to stamps."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.lab.params import Client
from pinchpoint.schedule import ScheduledRequest
from pinchpoint.synth.client import TIME_WAIT_S, ClientModel, Flight

MS = 1_000_000


def flight(number: int = 0) -> Flight:
    return Flight(ScheduledRequest(number, 0, number, 0, 0, 0, 10, 10), 0, -1)


def read(client: ClientModel, one: Flight, t_ns: int) -> None:
    one.add_chunk(client.read(one, t_ns), 1)


def test_an_ideal_client_costs_nothing_and_stamps_every_arrival_as_it_was() -> None:
    client, one = ClientModel(Client(), keep_alive=True), flight()
    assert client.send(7) == 7 and not client.full and client.has_port(0) and not client.loops
    read(client, one, 11)
    assert one.chunk_ns == [11] and one.coalesced == 0


@given(st.lists(st.integers(0, 100 * MS), min_size=1, max_size=40).map(sorted), st.integers(1, 10))
def test_a_busy_loop_sends_one_after_the_other_and_never_early(due_ns: list[int], cost_ms: int) -> None:
    client = ClientModel(Client(request_s=cost_ms / 1e3), keep_alive=True)
    sent_ns = [client.send(t_ns) for t_ns in due_ns]
    assert all(sent - due >= cost_ms * MS for sent, due in zip(sent_ns, due_ns, strict=True))
    assert all(b - a >= cost_ms * MS for a, b in itertools.pairwise(sent_ns))


def test_chunks_that_wait_for_one_read_share_a_stamp() -> None:
    client, busy, one = ClientModel(Client(chunk_s=0.010, kernel_stamps=False), True), flight(1), flight(2)
    read(client, busy, 0)  # the loop is at it until 10 ms
    for t_ms in (2, 5, 8):
        read(client, one, t_ms * MS)
    assert one.chunk_ns == [10 * MS] * 3 and one.coalesced == 2
    assert client.readings(40 * MS, 0.04)["client.loop_stall_max_s"] == 0.008


def test_the_kernel_stamps_a_shared_read_with_its_last_arrival() -> None:
    client, busy, one = ClientModel(Client(chunk_s=0.010), True), flight(1), flight(2)
    read(client, busy, 0)
    for t_ms in (2, 5, 8):
        read(client, one, t_ms * MS)
    assert one.chunk_ns == [8 * MS] * 3 and one.coalesced == 2


@given(st.lists(st.integers(0, 50 * MS), min_size=1, max_size=60).map(sorted), st.booleans())
def test_stamps_of_a_stream_never_go_back_and_never_precede_the_arrival(arrivals_ns: list[int], kernel: bool) -> None:
    client, one = ClientModel(Client(chunk_s=0.003, kernel_stamps=kernel), True), flight()
    for t_ns in arrivals_ns:
        read(client, one, t_ns)
    assert one.chunk_ns == sorted(one.chunk_ns)
    assert all(stamp >= arrival for stamp, arrival in zip(one.chunk_ns, arrivals_ns, strict=True))


def test_a_pool_is_full_with_as_many_requests_as_it_has_connections() -> None:
    client = ClientModel(Client(pool_connections=2), keep_alive=True)
    client.send(0)
    assert client.reacts and not client.full
    client.send(0)
    assert client.full
    client.ended(5)
    assert not client.full


def test_a_closed_connection_blocks_its_port_for_a_minute() -> None:
    client = ClientModel(Client(ports=1), keep_alive=False)
    client.send(0)
    assert not client.has_port(1)
    client.ended(10)
    assert not client.has_port(round(TIME_WAIT_S * 1e9)) and client.time_wait(11) == 1
    assert client.has_port(10 + round(TIME_WAIT_S * 1e9))


def test_a_kept_connection_frees_its_port_at_once() -> None:
    client = ClientModel(Client(ports=1), keep_alive=True)
    client.send(0)
    client.ended(10)
    assert client.has_port(11)


def test_a_busy_loop_tells_how_busy_it_was() -> None:
    client = ClientModel(Client(request_s=0.1), keep_alive=True)
    for _ in range(4):
        client.send(0)
    assert abs(client.readings(1_000 * MS, 1.0)["client.loop_busy_ratio"] - 0.4) < 1e-9
    assert client.readings(2_000 * MS, 1.0)["client.loop_busy_ratio"] == 0.0
