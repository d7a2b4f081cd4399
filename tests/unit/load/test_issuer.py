"""The load loop against scripted servers: it keeps its schedule, and records what really happened."""

import gc
import itertools
import time

import pytest

from pinchpoint.clock import NS_PER_S, monotonic_ns
from pinchpoint.load.exchange import Exchange
from pinchpoint.load.messages import Timeouts
from pinchpoint.load.trial import null_service
from pinchpoint.schedule import ScheduledRequest, Slots
from tests.support.scripted_server import END, STREAM_HEAD, ScriptedServer, chunk, event, stream
from tests.unit.load.drive import driven, ns, pool, request

LEAD_S = 0.02


def arrivals(offsets_s: list[float]) -> list[ScheduledRequest]:
    return [request(number, at_s) for number, at_s in enumerate(offsets_s)]


def test_good_streams_are_recorded_with_kernel_stamps_in_order() -> None:
    with (
        ScriptedServer(lambda _, __: stream(4, gap_s=0.005, first_s=0.01)) as server,
        driven(server.url) as driver,
    ):
        driver.start(*arrivals([0.0, 0.01, 0.02]), lead_s=LEAD_S)
        done = driver.until(3)
    assert [e.status for e in done] == ["ok"] * 3
    for e in done:
        assert e.reads > 0 and e.stamps_user == 0
        assert e.sent_ns is not None and e.headers_ns is not None and e.end_ns is not None
        assert e.scheduled_ns <= e.sent_ns <= e.headers_ns <= e.chunk_ns[0] <= e.chunk_ns[-1] <= e.end_ns
        assert len(e.chunk_ns) == 4 and e.usage is not None and e.usage.output_tokens == 4
        assert (e.attempts, e.phase, e.error) == (1, None, None)


def test_latency_counts_from_the_schedule_and_the_send_is_kept_beside_it() -> None:
    """A loop that stalls shows the stall in every request it made late, and still sends them all."""
    offsets_s = [0.0, 0.05, 0.10]
    with ScriptedServer(lambda _, __: stream(1)) as server, driven(server.url) as driver:
        driver.start(*arrivals(offsets_s))
        time.sleep(0.3)  # the process is held up; nothing may be re-anchored or dropped
        driver.until(3)
    for e, offset_s in zip(driver.in_order(), offsets_s, strict=True):
        assert e.scheduled_ns == driver.t0_ns + ns(offset_s)
        assert e.sent_ns is not None and (e.sent_ns - e.scheduled_ns) / NS_PER_S >= 0.3 - offset_s - 0.001
        assert e.first_token_ns is not None and e.sent_ns <= e.first_token_ns


def test_an_open_loop_does_not_wait_for_slow_answers() -> None:
    with ScriptedServer(lambda _, __: stream(1, first_s=0.4)) as server, driven(server.url) as driver:
        driver.start(*arrivals([i * 0.01 for i in range(20)]), lead_s=LEAD_S)
        driver.until(20)
        done = driver.in_order()
        assert server.connections == 20
    assert (done[-1].sent_ns or 0) < min(e.end_ns or 0 for e in done)
    assert all(e.status == "ok" for e in done)


def test_closed_loop_users_wait_for_their_answer_and_think() -> None:
    with ScriptedServer(lambda _, __: stream(1, first_s=0.02)) as server, driven(server.url) as driver:
        driver.start(*pool(6, think_s=0.05), slots=2, lead_s=LEAD_S)
        done = sorted(driver.until(6), key=lambda e: e.scheduled_ns)
    assert all(e.scheduled_ns >= driver.t0_ns for e in done)
    ends_ns = sorted(e.end_ns or 0 for e in done)
    for end_ns, after in zip(ends_ns, done[2:], strict=False):
        assert after.scheduled_ns >= end_ns + ns(0.05)
    in_flight = [sum(other.scheduled_ns <= e.scheduled_ns < (other.end_ns or 0) for other in done) for e in done]
    assert max(in_flight) <= 2


def test_a_closed_loop_without_think_time_keeps_its_users_busy() -> None:
    """Each user's next request leaves when the last answer has ended, however long the others take."""

    def script(number: int, body: bytes):
        yield from stream(1, first_s=0.3 if b'"n":0,' in body else 0.01)

    with ScriptedServer(script) as server, driven(server.url) as driver:
        driver.start(*pool(12), slots=2, lead_s=LEAD_S)
        done = driver.until(12)
        assert server.connections == 2
    assert done[-1].row.request_id == 0, "eleven requests of one user fit beside one long one of the other"


def test_users_of_a_ramp_begin_one_after_the_other_and_end_together() -> None:
    import numpy as np

    slots = Slots(np.array([0, ns(0.1), ns(0.2)], np.int64), np.array([ns(0.3)] * 3, np.int64))
    with ScriptedServer(lambda _, __: stream(1, first_s=0.02)) as server, driven(server.url) as driver:
        driver.start(*pool(500), slots=slots, lead_s=LEAD_S)
        while driver.issuer.unissued or driver.issuer.in_flight:
            driver.run_for(0.02)
        for e in driver.done:
            users = 1 + min(2, (e.scheduled_ns - driver.t0_ns) // ns(0.1))
            flying = sum(o.scheduled_ns <= e.scheduled_ns < (o.end_ns or 0) for o in driver.done)
            assert flying <= users
            assert e.scheduled_ns < driver.t0_ns + ns(0.3)
    assert 3 < len(driver.done) < 500


def test_a_duration_ends_a_closed_loop_and_what_is_in_flight_is_answered() -> None:
    with ScriptedServer(lambda _, __: stream(1, first_s=0.05)) as server, driven(server.url) as driver:
        driver.start(*pool(500), slots=2, duration_s=0.2, lead_s=LEAD_S)
        while driver.issuer.unissued or driver.issuer.in_flight:
            driver.run_for(0.02)
    assert 2 <= len(driver.done) < 20
    assert {e.status for e in driver.done} == {"ok"}
    assert all(e.scheduled_ns < driver.t0_ns + ns(0.2) for e in driver.done)


def test_sessions_take_turns_after_each_answer_on_the_connection_they_began_with() -> None:
    rows = [
        request(session * 3 + turn, 0.01 * session if turn == 0 else None, session=session, turn=turn, think_s=0.03)
        for session in range(4)
        for turn in range(3)
    ]
    with (
        ScriptedServer(lambda _, __: stream(1, first_s=0.01)) as server,
        driven(server.url, session_header="X-Session") as driver,
    ):
        driver.start(*rows, lead_s=LEAD_S)
        driver.until(12)
        sent = list(server.requests)
    for session in range(4):
        turns = [e for e in driver.in_order() if e.row.session_id == session]
        assert [e.row.turn for e in turns] == [0, 1, 2]
        assert len({e.connection_id for e in turns}) == 1
        for before, after in itertools.pairwise(turns):
            assert before.end_ns is not None and after.scheduled_ns >= before.end_ns + ns(0.03)
        numbers = [b'"n":%d,' % (session * 3 + turn) for turn in range(3)]
        mine = [text for text in sent if any(number in text for number in numbers)]
        assert len(mine) == 3
        assert all(b"\r\nX-Session: %d\r\n" % session in text for text in mine)


def test_a_request_keeps_its_step_when_the_next_has_begun() -> None:
    with ScriptedServer(lambda number, body: stream(1)) as server, driven(server.url) as driver:
        driver.start(request(0, 0.2, stage=3))
        driver.start(request(1, stage=4))
        driver.until(2)
    assert sorted((e.row.request_id, e.stage) for e in driver.done) == [(0, 3), (1, 4)]


def test_users_of_a_second_closed_step_start_anew() -> None:
    with ScriptedServer(lambda number, body: stream(1)) as server, driven(server.url) as driver:
        driver.start(*pool(2), slots=1)
        driver.until(2)
        driver.start(*pool(2, first=2, stage=1), slots=1)
        driver.until(4)
    assert [e.stage for e in driver.done] == [0, 0, 1, 1]


def test_withdrawn_requests_are_cancelled_and_say_how_far_they_came() -> None:
    with ScriptedServer(lambda _, __: stream(50, gap_s=0.05)) as server, driven(server.url) as driver:
        driver.start(request(0), request(1, 60.0))
        while not any(e.chunk_ns for e in driver.issuer.in_flight.values()):
            driver.run_for(0.02)
        driver.issuer.stop_issue()
        driver.issuer.cancel_all("enough")
        assert (driver.issuer.unissued, driver.issuer.in_flight) == (0, {})
    assert [(e.status, e.error) for e in driver.done] == [("cancelled", "enough")]
    assert driver.done[0].first_token_ns is not None and driver.done[0].end_ns is not None


def test_stopping_lets_go_of_what_was_kept_for_sessions() -> None:
    """Else each step of a search would leave connections behind that nobody uses again."""
    rows = [request(0, session=5), request(1, None, session=5, turn=1, think_s=60.0)]
    with ScriptedServer(lambda _, __: stream(1)) as server, driven(server.url) as driver:
        driver.start(*rows)
        driver.until(1)
        driver.issuer.stop_issue()
        assert driver.one(7).status == "ok"
        assert server.connections == 1


def test_large_bodies_and_split_writes_arrive_whole() -> None:
    body_bytes = 3_000_000

    def script(number: int, body: bytes):
        assert len(body) == body_bytes
        raw = STREAM_HEAD + chunk(event("a")) + chunk(event(finish="stop")) + END
        for i in range(0, len(raw), 7):
            yield raw[i : i + 7]

    with ScriptedServer(script) as server, driven(server.url) as driver:
        assert driver.one(0, b"x" * body_bytes).status == "ok"


def test_a_key_goes_into_the_header_and_nowhere_else() -> None:
    headers = (("Authorization", "Bearer sk-test"), ("X-Team", "a b"))
    with ScriptedServer(lambda _, __: stream(1)) as server, driven(server.url, headers=headers) as driver:
        driver.one()
        head, _, body = server.requests[0].partition(b"\r\n\r\n")
    assert b"\r\nAuthorization: Bearer sk-test\r\n" in head and b"\r\nX-Team: a b\r\n" in head
    assert b"sk-test" not in body


def test_a_header_that_is_given_replaces_our_own() -> None:
    headers = (("user-agent", "bench/1"), ("Accept", "*/*"))
    with ScriptedServer(lambda _, __: stream(1)) as server, driven(server.url, headers=headers) as driver:
        driver.one()
        lines = server.requests[0].partition(b"\r\n\r\n")[0].lower().split(b"\r\n")
    assert [line for line in lines if line.startswith(b"user-agent:")] == [b"user-agent: bench/1"]
    assert [line for line in lines if line.startswith(b"accept:")] == [b"accept: */*"]


@pytest.mark.parametrize("count", [300])
def test_no_request_is_lost_or_answered_twice(count: int) -> None:
    with ScriptedServer(lambda _, __: stream(3)) as server, driven(server.url) as driver:
        driver.start(*arrivals([i * 0.002 for i in range(count)]), lead_s=LEAD_S)
        driver.until(count)
        driver.run_for(0.05)
    assert [e.row.request_id for e in driver.in_order()] == list(range(count))
    assert all(e.status == "ok" for e in driver.done)


def test_a_silent_service_times_out_and_others_go_on() -> None:
    def script(number: int, body: bytes):
        if b'"n":0,' in body:
            yield 3.0
        yield from stream(1)

    with ScriptedServer(script) as server, driven(server.url, timeouts=Timeouts(total_s=0.3)) as driver:
        driver.start(*arrivals([0.0, 0.05]))
        driver.until(2)
    assert [e.status for e in driver.in_order()] == ["timeout", "ok"]


def test_the_loop_tells_how_long_it_did_not_look() -> None:
    with ScriptedServer(lambda _, __: stream(1)) as server, driven(server.url) as driver:
        driver.one()
        driver.issuer.forget_stall()
        driver.run_for(0.05)
        quiet_ns = driver.issuer.stall_ns
        before_ns = monotonic_ns()
        time.sleep(0.2)
        slept_ns = monotonic_ns() - before_ns
        driver.run_for(0.05)
    assert driver.issuer.stall_ns >= slept_ns > quiet_ns


# -- memory --------------------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_requests_that_have_ended() -> None:
    """Nothing is left to the collector of cycles: under load it does not run."""
    requests, users = 2000, 8

    def alive() -> int:
        return sum(type(one) is Exchange for one in gc.get_objects())

    gc.collect()
    before = alive()
    gc.disable()
    try:
        with null_service() as url, driven(url) as driver:
            count = 0

            def on_done(exchange: Exchange) -> None:
                nonlocal count
                count += exchange.status == "ok"

            driver.issuer._on_done = on_done
            at_once = b'{"stream":true,"max_tokens":3,"timing":{"first_ms":0,"gap_ms":0}}'
            driver.target.bodies.update(dict.fromkeys(range(requests), at_once))
            driver.start(*pool(requests), slots=users, lead_s=LEAD_S)
            while driver.issuer.unissued or driver.issuer.in_flight:
                driver.run_for(0.05)
            after = alive()
            issuer = driver.issuer
            kept = [len(getattr(issuer, name)) for name in ("_waiting", "_bodies", "_again")]
            kept += [len(getattr(issuer._pool, name)) for name in ("_kept", "_backend_of")]
            assert (count, kept) == (requests, [0] * 5)
            assert driver.issuer.connections <= users
    finally:
        gc.enable()
    assert after - before <= users


def test_what_was_due_when_the_issue_is_stopped_is_sent_first() -> None:
    with ScriptedServer(lambda *_: stream(1)) as server, driven(server.url) as driver:
        driver.start(*(request(number) for number in range(40)), lead_s=-0.1)
        driver.issuer.stop_issue()
        driver.until(40)
    assert {exchange.status for exchange in driver.done} == {"ok"}
