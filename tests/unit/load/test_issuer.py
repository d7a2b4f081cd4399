"""The load loop against scripted servers: it keeps its schedule, and records what really happened."""

import itertools
import time
from collections.abc import Callable

import pytest

from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.load.exchange import Exchange
from pinchpoint.load.issuer import Issuer
from pinchpoint.load.messages import Intent, Timeouts
from pinchpoint.load.wire import resolve
from pinchpoint.targets.openai import OpenAITarget
from tests.support.scripted_server import END, STREAM_HEAD, ScriptedServer, chunk, event, stream

LIMIT_S = 20.0


def intents(offsets_s: list[float]) -> list[Intent]:
    return [Intent(i, i, round(offset * NS_PER_S), 0, 10, 5, b'{"n":%d}' % i) for i, offset in enumerate(offsets_s)]


def users(count: int, turns: int, think_s: float) -> list[Intent]:
    return [
        Intent(user * turns + turn, user, None, round(think_s * NS_PER_S), 10, 5, b"{}")
        for turn in range(turns)
        for user in range(count)
    ]


class Load:
    """Runs an issuer until `until` holds or the time is up."""

    def __init__(self, url: str, **options: object) -> None:
        self.done: list[Exchange] = []
        target = OpenAITarget("/v1/chat/completions", "m", "vllm")
        self.issuer = Issuer(resolve(url), target, lambda exchange, _: self.done.append(exchange), **options)  # pyright: ignore

    def run(self, wanted: list[Intent], until: Callable[[], bool] | None = None) -> list[Exchange]:
        self.t0_ns = monotonic_ns() + 20_000_000
        self.issuer.start(0, self.t0_ns, wanted)
        deadline_s = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline_s and not (until() if until else len(self.done) >= len(wanted)):
            self.issuer.run_once(monotonic_ns() + 50_000_000)
        self.issuer.close()
        return sorted(self.done, key=lambda exchange: exchange.row.request_id)


def test_good_streams_are_recorded_with_kernel_stamps_in_order() -> None:
    with ScriptedServer(lambda _, __: stream(4, gap_s=0.005, first_s=0.01)) as server:
        done = Load(server.url).run(intents([0.0, 0.01, 0.02]))
    assert [e.status for e in done] == ["ok"] * 3
    for e in done:
        assert e.stamps_kernel > 0 and e.stamps_user == 0
        assert e.sent_ns is not None and e.headers_ns is not None and e.end_ns is not None
        assert e.scheduled_ns <= e.sent_ns <= e.headers_ns <= e.chunk_ns[0] <= e.chunk_ns[-1] <= e.end_ns
        assert len(e.chunk_ns) == 4 and e.usage is not None and e.usage.output_tokens == 4


def test_latency_counts_from_the_schedule_and_the_send_is_kept_beside_it() -> None:
    """A loop that stalls shows the stall in every request it made late, and still sends them all."""
    with ScriptedServer(lambda _, __: stream(1)) as server:
        load = Load(server.url)
        wanted = intents([0.0, 0.05, 0.10])
        load.t0_ns = monotonic_ns()
        load.issuer.start(0, load.t0_ns, wanted)
        time.sleep(0.3)  # the process is held up; nothing may be re-anchored or dropped
        while len(load.done) < 3:
            load.issuer.run_once(monotonic_ns() + 50_000_000)
        load.issuer.close()
    for e, offset_s in zip(sorted(load.done, key=lambda e: e.row.request_id), [0.0, 0.05, 0.10], strict=True):
        assert e.scheduled_ns == load.t0_ns + round(offset_s * NS_PER_S)
        assert e.sent_ns is not None and (e.sent_ns - e.scheduled_ns) / NS_PER_S >= 0.3 - offset_s - 0.001


def test_an_open_loop_does_not_wait_for_slow_answers() -> None:
    with ScriptedServer(lambda _, __: stream(1, first_s=0.4)) as server:
        done = Load(server.url).run(intents([i * 0.01 for i in range(20)]))
    starts = [e.sent_ns or 0 for e in done]
    assert (starts[-1] - starts[0]) / NS_PER_S < 0.4
    assert all(e.status == "ok" for e in done)


def test_connections_are_kept_and_used_again() -> None:
    with ScriptedServer(lambda _, __: stream(1)) as server:
        done = Load(server.url).run(intents([i * 0.05 for i in range(6)]))
        assert server.connections <= 2
    assert sum(e.connected_ns is not None for e in done) == server.connections


def test_closed_loop_users_wait_for_their_answer_and_think() -> None:
    with ScriptedServer(lambda _, __: stream(1, first_s=0.02)) as server:
        done = Load(server.url).run(users(2, 3, think_s=0.05))
    assert len(done) == 6
    for user in (0, 1):
        turns = [e for e in done if e.row.session_id == user]
        for before, after in itertools.pairwise(turns):
            assert before.end_ns is not None and after.scheduled_ns == before.end_ns + 50_000_000


def test_a_kept_connection_that_the_peer_closed_is_replaced_without_an_error() -> None:
    def script(number: int, _: bytes):
        yield from stream(1)
        yield "close"

    with ScriptedServer(script) as server:
        done = Load(server.url).run(intents([0.0, 0.1, 0.2]))
    assert [e.status for e in done] == ["ok"] * 3


def test_a_refused_connection_is_a_transport_error_with_its_cause() -> None:
    with ScriptedServer(lambda _, __: stream(1)) as server:
        url = server.url
    done = Load(url).run(intents([0.0]))
    assert (done[0].status, done[0].error) == ("transport_error", "connection refused")


def test_a_stream_cut_off_is_truncated() -> None:
    def script(number: int, _: bytes):
        yield STREAM_HEAD + chunk(event("a"))
        yield "reset" if number else "close"

    with ScriptedServer(script) as server:
        done = Load(server.url).run(intents([0.0, 0.1]))
    assert [e.status for e in done] == ["truncated"] * 2
    assert all(e.first_token_ns for e in done)


def test_a_silent_service_times_out_and_others_go_on() -> None:
    def script(number: int, body: bytes):
        if b'"n":0' in body:
            yield 3.0
        yield from stream(1)

    with ScriptedServer(script) as server:
        done = Load(server.url, timeouts=Timeouts(total_s=0.3)).run(intents([0.0, 0.05]))
    assert [e.status for e in done] == ["timeout", "ok"]


def test_withdrawn_requests_are_cancelled_and_say_how_far_they_came() -> None:
    with ScriptedServer(lambda _, __: stream(50, gap_s=0.05)) as server:
        load = Load(server.url)
        load.run(intents([0.0]), until=lambda: any(e.chunk_ns for e in load.issuer.in_flight.values()))
        load = Load(server.url)
        load.t0_ns = monotonic_ns()
        load.issuer.start(0, load.t0_ns, intents([0.0, 60.0]))
        while not any(e.first_token_ns for e in load.issuer.in_flight.values()):
            load.issuer.run_once(monotonic_ns() + 20_000_000)
        load.issuer.stop_issue()
        load.issuer.cancel_all("enough")
        load.issuer.close()
    assert [(e.status, e.error) for e in load.done] == [("cancelled", "enough")]
    assert load.done[0].first_token_ns is not None and load.done[0].end_ns is not None


def test_large_bodies_and_split_writes_arrive_whole() -> None:
    def script(number: int, body: bytes):
        assert len(body) == 3_000_000
        raw = STREAM_HEAD + chunk(event("a")) + chunk(event(finish="stop")) + END
        for i in range(0, len(raw), 7):
            yield raw[i : i + 7]

    with ScriptedServer(script) as server:
        done = Load(server.url).run([Intent(0, 0, 0, 0, 10, 5, b"x" * 3_000_000)])
    assert done[0].status == "ok"


def test_a_key_goes_into_the_header_and_nowhere_else() -> None:
    with ScriptedServer(lambda _, __: stream(1)) as server:
        Load(server.url, headers=(("Authorization", "Bearer sk-test"),)).run(intents([0.0]))
        assert b"Authorization: Bearer sk-test" in server.requests[0]


def test_url_prefixes_are_kept_and_v1_is_not_doubled() -> None:
    with ScriptedServer(lambda _, __: stream(1)) as server:
        Load(server.url + "/proxy/v1/").run(intents([0.0]))
        assert server.requests[0].startswith(b"POST /proxy/v1/chat/completions HTTP/1.1")


@pytest.mark.parametrize("count", [300])
def test_no_request_is_lost_or_answered_twice(count: int) -> None:
    with ScriptedServer(lambda _, __: stream(3)) as server:
        done = Load(server.url).run(intents([i * 0.002 for i in range(count)]))
    assert [e.row.request_id for e in done] == list(range(count))
    assert all(e.status == "ok" for e in done)
