"""Calls over gRPC against a real grpcio server: events, endings, and what the load loop makes of them."""

import gc
import select
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.errors import UsageError
from pinchpoint.fetch import tls_context
from pinchpoint.load.messages import Timeouts
from pinchpoint.load.rpc import CallEnd, Rpc, RpcEvent, RpcExchange, address_of, status_of, trusted
from pinchpoint.load.wire import Endpoint, resolve
from pinchpoint.load.worker import source
from pinchpoint.prompt import Prompt
from pinchpoint.targets.target import EMPTY, Chunk, Target, Transport
from pinchpoint.traceids import traceparent
from tests.support.grpc_server import GrpcServer, Script
from tests.support.tls import Authority
from tests.unit.load.drive import Driven, driven, ns, pool, request

PATIENCE_S = 10.0
STREAM, UNARY = "/test.Service/stream", "/test.Service/unary"


class LetterTarget(Target):
    """Each message is text; "!" begins an error and "?" is none that can be read."""

    name = "letters"
    transport: Transport = "grpc"
    needs_finish = False

    def __init__(self, *, stream: bool = True) -> None:
        self.stream = stream
        self.path = STREAM if stream else UNARY

    def build(self, prompt: Prompt) -> bytes:
        return prompt.text.encode()

    def parse_event(self, event: bytes, data: bytes) -> Chunk:
        if data.startswith(b"?"):
            raise ValueError("no letter")
        if data.startswith(b"!"):
            return Chunk(error=data[1:].decode())
        return Chunk(content=True, text=data.decode()) if data else EMPTY

    def parse_answer(self, body: bytes) -> Chunk:
        return self.parse_event(b"", body)


def letters(*texts: bytes, gap_s: float = 0.0) -> Script:
    def script(_: bytes, context: Any) -> Iterable[bytes]:
        for text in texts:
            yield text
            time.sleep(gap_s)

    return script


def refusing(code: grpc.StatusCode, details: str, *before: bytes) -> Script:
    def script(_: bytes, context: Any) -> Iterable[bytes]:
        yield from before
        context.abort(code, details)

    return script


def hanging(stop: threading.Event, *before: bytes) -> Script:
    """Says a little, and nothing more until the test is over or the client has gone."""

    def script(_: bytes, context: Any) -> Iterable[bytes]:
        yield from before
        while context.is_active() and not stop.wait(0.01):
            pass

    return script


@contextmanager
def rpc_to(*urls: str | Endpoint, **settings: Any) -> Iterator[Rpc]:
    rpc = Rpc([url if isinstance(url, Endpoint) else resolve(url) for url in urls], **settings)
    try:
        yield rpc
    finally:
        rpc.close()


def taken(rpc: Rpc, ends: int) -> list[RpcEvent]:
    """Events until so many calls have ended."""
    events: list[RpcEvent] = []
    deadline_s = time.monotonic() + PATIENCE_S
    while sum(event.kind == "end" for event in events) < ends:
        assert time.monotonic() < deadline_s, f"of {ends} calls ended {events}"
        select.select([rpc.fd], [], [], 0.1)
        events += rpc.take()
    return events


@contextmanager
def driven_by(server_url: str, *, stream: bool = True, channels: int = 1, **habits: Any) -> Iterator[Driven]:
    endpoint = resolve(server_url)
    rpc = Rpc([endpoint], channels=channels, new_connections=habits.get("new_connections", False))
    with driven(endpoint, targets=[LetterTarget(stream=stream)], rpc=rpc, **habits) as load:
        yield load


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


# -- events --------------------------------------------------------------------------------------------------------


def test_a_stream_is_told_message_by_message_in_order() -> None:
    with GrpcServer(letters(b"a", b"", b"b")) as server, rpc_to(server.url) as rpc:
        begun_ns = monotonic_ns()
        key = rpc.send(STREAM, b"ask", streaming=True)
        events = taken(rpc, 1)
    assert [(event.key, event.kind) for event in events] == [
        (key, kind) for kind in ("sent", "message", "message", "message", "end")
    ]
    assert [event.payload for event in events if event.kind == "message"] == [b"a", b"", b"b"]
    assert events[-1].payload == CallEnd("OK")
    stamps = [event.stamp_ns for event in events]
    assert stamps == sorted(stamps)
    assert begun_ns <= stamps[0] <= stamps[-1] <= monotonic_ns()


def test_one_answer_is_one_message() -> None:
    with GrpcServer(lambda body, _: [body * 2]) as server, rpc_to(server.url) as rpc:
        rpc.send(UNARY, b"ask")
        events = taken(rpc, 1)
    assert [event.kind for event in events] == ["sent", "message", "end"]
    assert events[1].payload == b"askask"


def test_metadata_and_the_time_that_is_left_reach_the_service() -> None:
    with GrpcServer(letters(b"a")) as server, rpc_to(server.url) as rpc:
        rpc.send(STREAM, b"", streaming=True, timeout_s=30.0, metadata=[("authorization", "Bearer k")])
        taken(rpc, 1)
        ((method, metadata, left_s),) = server.seen
    assert method == STREAM
    assert metadata["authorization"] == "Bearer k"
    assert metadata["user-agent"].startswith("pinchpoint")
    assert left_s is not None
    assert 0 < left_s < 31  # sent in coarse units when it is long


def test_a_call_that_is_withdrawn_ends_and_the_service_notices(stop: threading.Event) -> None:
    gone = threading.Event()

    def script(_: bytes, context: Any) -> Iterable[bytes]:
        context.add_callback(gone.set)
        yield b"a"
        stop.wait(PATIENCE_S)

    with GrpcServer(script) as server, rpc_to(server.url) as rpc:
        key = rpc.send(STREAM, b"", streaming=True)
        while not any(event.kind == "message" for event in rpc.take()):
            select.select([rpc.fd], [], [], 0.1)
        rpc.cancel(key)
        events = taken(rpc, 1)
        assert events[-1].payload.code == "CANCELLED"
        assert gone.wait(PATIENCE_S)
        stop.set()


def test_a_call_that_is_withdrawn_before_it_began_ends_too() -> None:
    with GrpcServer(letters(b"a")) as server, rpc_to(server.url) as rpc:
        for _ in range(20):
            rpc.cancel(rpc.send(STREAM, b"", streaming=True))
        ends = [event for event in taken(rpc, 20) if event.kind == "end"]
    assert sorted(event.key for event in ends) == list(range(1, 21))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ok", "empty", "refuse", "break", "late", "unary", "nowhere"]),
            st.booleans(),
        ),
        min_size=1,
        max_size=25,
    ),
    st.booleans(),
)
def test_every_call_ends_exactly_once_and_says_nothing_afterwards(
    many_server: GrpcServer, calls: list[tuple[str, bool]], new_connections: bool
) -> None:
    with rpc_to(many_server.url, new_connections=new_connections) as rpc:
        keys = []
        for name, withdrawn in calls:
            timeout_s = 0.02 if name == "late" else PATIENCE_S
            keys.append(rpc.send(f"/test.Service/{name}", b"x", streaming=name != "unary", timeout_s=timeout_s))
            if withdrawn:
                rpc.cancel(keys[-1])
        events = taken(rpc, len(calls))
        time.sleep(0.01)
        events += rpc.take()
    assert len(set(keys)) == len(keys)
    assert Counter(event.key for event in events if event.kind == "end") == Counter(keys)
    for key in keys:
        own = [event for event in events if event.key == key]
        assert own[-1].kind == "end"
        assert [event.stamp_ns for event in own] == sorted(event.stamp_ns for event in own)
    codes = {"ok": "OK", "empty": "OK", "refuse": "RESOURCE_EXHAUSTED", "break": "INTERNAL", "unary": "OK"}
    codes |= {"late": "DEADLINE_EXCEEDED", "nowhere": "UNIMPLEMENTED"}
    ends = {event.key: event.payload.code for event in events if event.kind == "end"}
    for key, (name, withdrawn) in zip(keys, calls, strict=True):
        assert ends[key] == codes[name] or (withdrawn and ends[key] == "CANCELLED")


@pytest.fixture(scope="module")
def many_server() -> Iterator[GrpcServer]:
    scripts = {
        "ok": letters(b"a", b"b"),
        "empty": letters(),
        "refuse": refusing(grpc.StatusCode.RESOURCE_EXHAUSTED, "full"),
        "break": refusing(grpc.StatusCode.INTERNAL, "broken", b"a"),
        "late": letters(b"a", b"b", b"c", gap_s=0.05),
        "unary": letters(b"a"),
    }
    with GrpcServer(scripts) as server:
        yield server


def test_nothing_is_lost_when_events_come_while_they_are_taken() -> None:
    """The signal is cleared and the queue emptied while the thread goes on writing."""
    total = 400
    with GrpcServer(lambda _, __: [b"x"] * total) as server, rpc_to(server.url) as rpc:
        for _ in range(4):
            rpc.send(STREAM, b"", streaming=True)
        messages = [event for event in taken(rpc, 4) if event.kind == "message"]
    assert len(messages) == 4 * total


def test_each_channel_is_a_connection_and_calls_take_them_in_turn() -> None:
    peers: list[str] = []

    def script(_: bytes, context: Any) -> Iterable[bytes]:
        peers.append(context.peer())
        return [b"a"]

    with GrpcServer(script) as server, rpc_to(server.url, channels=3) as rpc:
        for _ in range(6):
            rpc.send(UNARY, b"")
        taken(rpc, 6)
        assert rpc.connections == 3
    assert Counter(Counter(peers).values()) == {2: 3}


def test_a_new_connection_for_each_call_is_told_when_it_is_there() -> None:
    peers: list[str] = []

    def script(_: bytes, context: Any) -> Iterable[bytes]:
        peers.append(context.peer())
        return [b"a"]

    with GrpcServer(script) as server, rpc_to(server.url, new_connections=True) as rpc:
        for _ in range(3):
            rpc.send(UNARY, b"")
        events = taken(rpc, 3)
    assert len(set(peers)) == 3
    assert sum(event.kind == "connected" for event in events) == 3


def test_no_garbage_is_left_when_collection_is_off() -> None:
    with GrpcServer(letters(b"a", b"b")) as server, rpc_to(server.url) as rpc:
        gc.collect()
        gc.disable()
        try:
            counts = []
            for _ in range(3):
                for _ in range(256):
                    rpc.send(STREAM, b"", streaming=True)
                taken(rpc, 256)
                counts.append(sum("Call" in type(one).__name__ for one in gc.get_objects()))
        finally:
            gc.enable()
    assert counts[2] - counts[1] < 512, counts


# -- addresses -----------------------------------------------------------------------------------------------------


def test_addresses_are_written_as_grpc_wants_them() -> None:
    assert address_of(resolve("grpc://127.0.0.1:8001")) == "ipv4:127.0.0.1:8001"
    assert address_of(resolve("grpcs://127.0.0.1")) == "ipv4:127.0.0.1:443"
    assert address_of(resolve("http://[::1]:8001")) == "ipv6:[::1]:8001"
    assert address_of(resolve("grpc://unused", unix_socket="/run/grpc.sock")) == "unix:/run/grpc.sock"


def test_a_proxy_is_refused() -> None:
    with pytest.raises(UsageError, match="not loaded through an HTTP proxy"):
        address_of(resolve("http://127.0.0.1:8001", proxy="http://127.0.0.1:3128"))


# -- codes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "messages", "status", "phase"),
    [
        (CallEnd("UNAVAILABLE", "busy"), 0, "rejected", None),
        (CallEnd("UNAVAILABLE", "failed to connect to all addresses", local=True), 0, "transport_error", "connect"),
        (CallEnd("UNAVAILABLE", "Socket closed", local=True), 0, "transport_error", "headers"),
        (CallEnd("UNAVAILABLE", "Socket closed", local=True), 3, "truncated", None),
        (CallEnd("UNAVAILABLE", "Too many open files", local=True), 0, "dropped", None),
        (CallEnd("RESOURCE_EXHAUSTED", "queue full"), 0, "rejected", None),
        (CallEnd("RESOURCE_EXHAUSTED", "queue full"), 1, "stream_error", None),
        (CallEnd("DEADLINE_EXCEEDED", "late"), 0, "timeout", "total"),
        (CallEnd("DEADLINE_EXCEEDED", "late"), 2, "timeout", "total"),
        (CallEnd("INTERNAL", "broken"), 1, "stream_error", None),
        *(
            (CallEnd(code.name, "no"), 0, "http_error", None)
            for code in grpc.StatusCode
            if code.name not in ("OK", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
        ),
    ],
)
def test_each_code_has_its_status(end: CallEnd, messages: int, status: str, phase: str | None) -> None:
    assert status_of(end, messages) == (status, f"gRPC {end.code}: {end.details}", phase)


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
@pytest.mark.parametrize("before", [(), (b"a",)])
def test_what_a_service_says_is_not_taken_for_a_broken_connection(
    code: grpc.StatusCode, before: tuple[bytes, ...]
) -> None:
    with GrpcServer(refusing(code, "no", *before)) as server, rpc_to(server.url) as rpc:
        rpc.send(STREAM, b"", streaming=True)
        end = taken(rpc, 1)[-1].payload
    assert end == CallEnd(code.name, "no")


# -- in the loop ---------------------------------------------------------------------------------------------------


def test_the_loop_sends_on_time_and_the_record_is_marked_as_user_space() -> None:
    with GrpcServer(letters(b"a", b"b", b"c")) as server, driven_by(server.url) as load:
        load.start(request(0, 0.01), request(1, 0.02), lead_s=0.05)
        done = load.until(2)
    for exchange in done:
        assert exchange.status == "ok"
        assert isinstance(exchange, RpcExchange)
        assert source(exchange) == "user"
        assert len(exchange.chunk_ns) == 3
        assert exchange.bytes_in == 3
        instants = [exchange.scheduled_ns, exchange.sent_ns, exchange.first_token_ns, exchange.end_ns]
        assert instants == sorted(instants)
        assert exchange.stamp_error_ns > 0
    assert not load.issuer.in_flight


def test_one_answer_in_one_piece_is_ok() -> None:
    with GrpcServer(letters(b"answer")) as server, driven_by(server.url, stream=False) as load:
        load.start(request(0))
        (exchange,) = load.until(1)
    assert (exchange.status, exchange.bytes_in) == ("ok", 6)


@pytest.mark.parametrize(
    ("script", "status", "words"),
    [
        (letters(), "truncated", "without any text"),
        (letters(b"a", b"!no memory"), "stream_error", "no memory"),
        (letters(b"a", b"?"), "malformed", "no letter"),
        (refusing(grpc.StatusCode.RESOURCE_EXHAUSTED, "full"), "rejected", "gRPC RESOURCE_EXHAUSTED: full"),
        (refusing(grpc.StatusCode.UNAVAILABLE, "overloaded"), "rejected", "gRPC UNAVAILABLE: overloaded"),
        (refusing(grpc.StatusCode.INVALID_ARGUMENT, "bad\x1b[31m"), "http_error", "gRPC INVALID_ARGUMENT: bad [31m"),
        (refusing(grpc.StatusCode.INTERNAL, "broken", b"a"), "stream_error", "gRPC INTERNAL: broken"),
    ],
)
def test_a_bad_end_is_named_rightly(script: Script, status: str, words: str) -> None:
    with GrpcServer(script) as server, driven_by(server.url) as load:
        load.start(request(0))
        (exchange,) = load.until(1)
    assert exchange.status == status
    assert words in (exchange.error or "")


def test_a_service_that_is_not_there_is_a_transport_error() -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        for new_connections in (False, True):
            url = f"grpc://127.0.0.1:{reserved.getsockname()[1]}"
            with driven_by(url, new_connections=new_connections) as load:
                load.start(request(0))
                (exchange,) = load.until(1)
            assert (exchange.status, exchange.phase) == ("transport_error", "connect")
            assert "refused" in (exchange.error or "").lower()


def test_a_service_that_dies_in_the_middle_of_an_answer_truncates_it(stop: threading.Event) -> None:
    server = GrpcServer(hanging(stop, b"a"))
    with server, driven_by(server.url) as load:
        load.start(request(0))
        while not any(exchange.tokens_seen for exchange in load.issuer.in_flight.values()):
            load.issuer.run_once(monotonic_ns() + ns(0.01))
        server.stop()
        (exchange,) = load.until(1)
    assert exchange.status in ("truncated", "stream_error")  # grpcio's server says CANCELLED where it still can
    assert len(exchange.chunk_ns) == 1


def test_a_service_that_comes_back_is_found_again() -> None:
    with GrpcServer(letters(b"a")) as server, driven_by(server.url, retries=8) as load:
        load.start(request(0))
        load.until(1)
        server.stop()
        load.start(request(1, stage=1), request(2, stage=1))
        load.issuer.run_once(monotonic_ns() + ns(0.05))
        with GrpcServer(letters(b"b"), port=server.port):
            done = load.until(3)
    assert [exchange.status for exchange in done] == ["ok", "ok", "ok"]


def test_a_refused_call_is_sent_again_when_the_service_says() -> None:
    calls = []

    def script(_: bytes, context: Any) -> Iterable[bytes]:
        calls.append(monotonic_ns())
        if len(calls) == 1:
            context.set_trailing_metadata([("grpc-retry-pushback-ms", "50")])
            context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
        yield b"a"

    with GrpcServer(script) as server, driven_by(server.url, retries=1) as load:
        load.start(request(0))
        (exchange,) = load.until(1)
    assert (exchange.status, exchange.attempts) == ("ok", 2)
    assert calls[1] - calls[0] >= ns(0.05)


def test_a_call_that_takes_too_long_is_withdrawn(stop: threading.Event) -> None:
    with GrpcServer(hanging(stop, b"a")) as server:
        timeouts = Timeouts(between_tokens_s=0.05)
        with driven_by(server.url, timeouts=timeouts) as load:
            load.start(request(0))
            (exchange,) = load.until(1)
            assert (exchange.status, exchange.phase) == ("timeout", "between-tokens")
            assert not load.issuer.in_flight
        with driven_by(server.url, timeouts=Timeouts(total_s=0.1)) as load:
            load.start(request(0))
            (exchange,) = load.until(1)
            assert (exchange.status, exchange.phase) == ("timeout", "total")


def test_a_user_who_gives_up_abandons_the_call(stop: threading.Event) -> None:
    with GrpcServer(hanging(stop)) as server, driven_by(server.url) as load:
        load.start(request(0, patience_s=0.05))
        (exchange,) = load.until(1)
    assert exchange.status == "abandoned"


def test_a_load_that_is_cancelled_withdraws_its_calls(stop: threading.Event) -> None:
    with GrpcServer(hanging(stop)) as server, driven_by(server.url) as load:
        load.start(*(request(number) for number in range(5)))
        load.issuer.run_once(monotonic_ns() + ns(0.05))
        load.issuer.cancel_all("enough")
        done = load.until(5)
        load.issuer.run_once(monotonic_ns() + ns(0.05))
    assert {exchange.status for exchange in done} == {"cancelled"}
    assert len(done) == 5


def test_how_late_the_thread_began_is_of_the_last_attempt_alone() -> None:
    calls = []

    def script(_: bytes, context: Any) -> Iterable[bytes]:
        calls.append(1)
        if len(calls) == 1:
            context.set_trailing_metadata([("grpc-retry-pushback-ms", "300")])
            context.abort(grpc.StatusCode.UNAVAILABLE, "busy")
        yield b"a"

    with GrpcServer(script) as server, driven_by(server.url, retries=1) as load:
        load.start(request(0))
        (exchange,) = load.until(1)
    assert exchange.attempts == 2
    assert 0 < exchange.stamp_error_ns < ns(0.3)


def test_users_of_a_closed_loop_follow_their_answers() -> None:
    with GrpcServer(letters(b"a", b"b")) as server, driven_by(server.url, channels=2) as load:
        load.start(*pool(40), slots=4)
        done = load.until(40)
    assert {exchange.status for exchange in done} == {"ok"}
    assert len({exchange.row.request_id for exchange in done}) == 40


def test_a_new_connection_has_its_instants(stop: threading.Event) -> None:
    with GrpcServer(letters(b"a")) as server, driven_by(server.url, new_connections=True) as load:
        load.start(request(0))
        (exchange,) = load.until(1)
    assert exchange.status == "ok"
    assert exchange.connect_ns is not None
    assert exchange.connected_ns is not None
    assert exchange.connect_ns <= exchange.connected_ns <= (exchange.first_token_ns or 0)


def test_headers_of_the_plan_and_the_session_go_along() -> None:
    with GrpcServer(letters(b"a")) as server:
        headers = (("Authorization", "Bearer k"),)
        with driven_by(server.url, headers=headers, session_header="X-Session", trace_salt=5) as load:
            load.start(request(7, session=3))
            load.until(1)
        ((_, metadata, _),) = server.seen
    assert (metadata["authorization"], metadata["x-session"]) == ("Bearer k", "3")
    assert metadata["traceparent"] == traceparent(5, 7)


# -- TLS -----------------------------------------------------------------------------------------------------------


def test_tls_with_a_private_authority(authority: Authority) -> None:
    roots = trusted(tls_context(str(authority.ca_file)))
    with GrpcServer(letters(b"a"), authority=authority) as server, rpc_to(server.url, root_certificates=roots) as rpc:
        rpc.send(UNARY, b"")
        assert taken(rpc, 1)[-1].payload == CallEnd("OK")


def test_a_certificate_of_nobody_known_is_not_accepted(authority: Authority) -> None:
    with GrpcServer(letters(b"a"), authority=authority) as server, rpc_to(server.url) as rpc:
        rpc.send(UNARY, b"", timeout_s=PATIENCE_S)
        end = taken(rpc, 1)[-1].payload
    assert (end.code, end.local) == ("UNAVAILABLE", True)
    assert status_of(end, 0)[::2] == ("transport_error", "connect")


def test_a_certificate_of_another_host_is_not_accepted(tmp_path: Path) -> None:
    elsewhere = Authority(tmp_path / "elsewhere", names="DNS:elsewhere.test")
    roots = trusted(tls_context(str(elsewhere.ca_file)))
    with GrpcServer(letters(b"a"), authority=elsewhere) as server, rpc_to(server.url, root_certificates=roots) as rpc:
        rpc.send(UNARY, b"", timeout_s=PATIENCE_S)
        end = taken(rpc, 1)[-1].payload
    assert (end.code, end.local) == ("UNAVAILABLE", True)


def test_grpcio_is_not_imported_where_nobody_speaks_grpc() -> None:
    code = "import sys, pinchpoint.load.worker, pinchpoint.targets.registry; print('grpc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_without_grpcio_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "grpc", None)
    with pytest.raises(UsageError, match=r"pip install 'pinchpoint\[grpc\]'"):
        Rpc([resolve("grpc://127.0.0.1:1")])


def test_stamps_are_of_the_thread_and_close_to_the_write() -> None:
    """Not how close: only that none is before its message was written, and all are in this clock."""

    def script(_: bytes, context: Any) -> Iterable[bytes]:
        for _ in range(5):
            yield b"%d" % monotonic_ns()
            time.sleep(0.005)

    with GrpcServer(script) as server, rpc_to(server.url) as rpc:
        rpc.send(STREAM, b"", streaming=True)
        messages = [event for event in taken(rpc, 1) if event.kind == "message"]
    assert all(0 < event.stamp_ns - int(event.payload) < PATIENCE_S * NS_PER_S for event in messages)
