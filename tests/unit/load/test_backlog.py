"""Which request is due when: laws over drawn schedules, carried out in virtual time."""

import heapq
import itertools
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinchpoint.load.backlog import READY_MAX, Backlog, Body, Slot
from pinchpoint.schedule import AFTER, ScheduledRequest, Slots
from tests.unit.load.drive import pool, request, schedule_of

T0_NS = 1_000_000
MS = 1_000_000
FAR_NS = 1 << 60


def write(row: ScheduledRequest) -> Body:
    return Body(b"%d" % row.request_id, row.input_tokens)


@dataclass
class Sent:
    due_ns: int
    end_ns: int
    row: ScheduledRequest
    slot: Slot | None


@dataclass
class Play:
    """Carries a backlog out in virtual time: a request is sent when it is due and answered `serve_ns` later.

    unissued: (instant, what the backlog said) before each send and after each end.
    """

    backlog: Backlog
    serve_ns: list[int]
    now_ns: int = 0
    sent: list[Sent] = field(default_factory=list)
    unissued: list[tuple[int, int]] = field(default_factory=list)
    _flying: list[tuple[int, int]] = field(default_factory=list)

    def run(self, until_ns: int = FAR_NS) -> list[Sent]:
        while True:
            ends_ns = self._flying[0][0] if self._flying else FAR_NS
            due_ns = self.backlog.next_ns if self.backlog.next_ns is not None else FAR_NS
            now_ns = min(ends_ns, due_ns)
            if now_ns >= until_ns:
                return self.sent
            self.now_ns = max(self.now_ns, now_ns)
            self.unissued.append((len(self.sent), self.backlog.unissued))
            if ends_ns <= due_ns:
                one = self.sent[heapq.heappop(self._flying)[1]]
                self.backlog.ended(one.row, one.slot, one.end_ns)
            else:
                self._send()

    def _send(self) -> None:
        while (due := self.backlog.pop(self.now_ns)) is not None:
            assert due.row is not None and due.body == write(due.row)
            assert due.at_ns <= self.now_ns
            serve_ns = self.serve_ns[due.row.request_id % len(self.serve_ns)]
            heapq.heappush(self._flying, (self.now_ns + serve_ns, len(self.sent)))
            self.sent.append(Sent(due.at_ns, self.now_ns + serve_ns, due.row, due.slot))

    def check_unissued(self) -> None:
        """Zero only when nothing follows; and zero in the end."""
        for sent_before, unissued in self.unissued:
            assert unissued >= len(self.sent) - sent_before
        assert self.backlog.unissued == 0
        assert self.backlog.next_ns is None

    def most_in_flight(self) -> int:
        changes = [(one.due_ns, 1) for one in self.sent] + [(one.end_ns, -1) for one in self.sent]
        return max(itertools.accumulate(change for _, change in sorted(changes)), default=0)


def begun(
    rows: list[ScheduledRequest], slots: Slots | None = None, *, serve_ns: list[int], duration_ns: int | None = None
) -> Play:
    backlog = Backlog(write)
    backlog.add(T0_NS, schedule_of(rows), slots, 0, duration_ns)
    return Play(backlog, serve_ns)


def slots_of(pairs: list[tuple[int, int | None]]) -> Slots:
    return Slots(
        np.array([start for start, _ in pairs], np.int64),
        np.array([Slots.NO_END if until is None else until for _, until in pairs], np.int64),
    )


INSTANTS = st.integers(0, 40).map(lambda count: count * MS)
SERVICE = st.lists(st.integers(0, 12).map(lambda count: count * MS), min_size=1, max_size=7)
THINKS = st.sampled_from([0.0, 0.0, 0.001, 0.005])
DURATIONS = st.one_of(st.none(), st.integers(1, 60).map(lambda count: count * MS))
SLOTS = st.lists(st.tuples(INSTANTS, st.one_of(st.none(), INSTANTS)), min_size=1, max_size=5).map(slots_of)


@st.composite
def sessions(draw: st.DrawFn, *, open_loop: bool) -> list[ScheduledRequest]:
    """Sessions of several turns with drawn pauses; of an open loop with drawn instants."""
    count = draw(st.integers(1, 8))
    offsets_s = sorted(draw(st.integers(0, 30)) / 1000 for _ in range(count))
    rows: list[ScheduledRequest] = []
    for session in range(count):
        for turn in range(draw(st.integers(1, 3))):
            first = open_loop and turn == 0
            at_s = offsets_s[session] if first else None
            rows.append(request(len(rows), at_s, session=session, turn=turn, think_s=draw(THINKS)))
    return rows


@st.composite
def pools(draw: st.DrawFn) -> list[ScheduledRequest]:
    return [request(number, None, think_s=draw(THINKS)) for number in range(draw(st.integers(1, 30)))]


# -- open loop -----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40), st.lists(st.integers(0, 60), max_size=20))
def test_an_open_loop_is_due_at_its_instants_in_order_however_late_it_is_asked(
    offsets_ms: list[int], asked_ms: list[int]
) -> None:
    backlog = Backlog(write)
    rows = [request(number, offset / 1000) for number, offset in enumerate(sorted(offsets_ms))]
    backlog.add(T0_NS, schedule_of(rows), None, 0)
    popped: list[tuple[int, int]] = []
    for now_ms in [*sorted(asked_ms), 60]:
        now_ns = T0_NS + now_ms * MS
        while (due := backlog.pop(now_ns)) is not None:
            assert due.row is not None
            assert due.at_ns == T0_NS + due.row.offset_ns <= now_ns
            popped.append((due.at_ns, due.row.request_id))
        assert backlog.next_ns is None or backlog.next_ns > now_ns
        assert backlog.unissued == len(rows) - len(popped)
    assert [number for _, number in popped] == list(range(len(rows)))


@given(sessions(open_loop=True), SERVICE)
def test_a_later_turn_is_due_a_think_time_after_the_end_of_the_one_before(
    rows: list[ScheduledRequest], serve_ns: list[int]
) -> None:
    play = begun(rows, serve_ns=serve_ns)
    sent = play.run()
    assert Counter(one.row.request_id for one in sent) == Counter(range(len(rows)))
    for session in {row.session_id for row in rows}:
        turns = sorted((one for one in sent if one.row.session_id == session), key=lambda one: one.row.turn)
        assert [one.row.turn for one in turns] == list(range(len(turns)))
        assert turns[0].due_ns == T0_NS + turns[0].row.offset_ns
        for before, after in itertools.pairwise(turns):
            assert after.due_ns == before.end_ns + after.row.think_ns
    play.check_unissued()


@given(sessions(open_loop=True), SERVICE, st.integers(1, 40))
def test_no_later_turn_is_due_when_the_duration_is_over(
    rows: list[ScheduledRequest], serve_ns: list[int], duration_ms: int
) -> None:
    play = begun(rows, serve_ns=serve_ns, duration_ns=duration_ms * MS)
    sent = play.run()
    assert all(one.due_ns < T0_NS + duration_ms * MS for one in sent if one.row.turn > 0)
    whole = begun(rows, serve_ns=serve_ns).run()
    cut = {one.row.request_id for one in sent}
    assert cut == {one.row.request_id for one in whole if one.row.turn == 0 or one.due_ns < T0_NS + duration_ms * MS}
    play.check_unissued()


def test_turns_with_instants_of_their_own_do_not_wait_for_an_answer() -> None:
    rows = [request(0, 0.0, session=7), request(1, 0.001, session=7, turn=1), request(2, 0.002, session=7, turn=2)]
    play = begun(rows, serve_ns=[50 * MS])
    assert [one.due_ns - T0_NS for one in play.run()] == [0, MS, 2 * MS]
    play.check_unissued()


def test_a_request_that_is_the_last_and_not_yet_due_can_still_become_due() -> None:
    backlog = Backlog(write)
    backlog.add(T0_NS, schedule_of([request(0, 10.0)]), None, 0)
    assert backlog.unissued == 1
    assert backlog.pop(T0_NS) is None
    assert backlog.unissued == 1
    assert backlog.pop(FAR_NS) is not None
    assert backlog.unissued == 0


def test_a_user_who_gave_up_has_no_later_turns() -> None:
    rows = [request(0, 0.0, session=1), *(request(turn, None, session=1, turn=turn) for turn in (1, 2, 3))]
    backlog = Backlog(write)
    backlog.add(T0_NS, schedule_of(rows), None, 0)
    first = backlog.pop(T0_NS)
    assert first is not None and first.row is not None
    backlog.give_up(first.row)
    assert not backlog.ended(first.row, None, T0_NS + MS)
    assert (backlog.unissued, backlog.next_ns) == (0, None)


def test_no_more_bodies_are_written_ahead_than_are_allowed() -> None:
    written: list[int] = []

    def count(row: ScheduledRequest) -> bytes:
        written.append(row.request_id)
        return b""

    backlog = Backlog(count)
    backlog.add(T0_NS, schedule_of([request(number, 1.0) for number in range(1000)]), None, 0)
    for _ in range(1000):
        backlog.write_ahead()
    assert len(written) <= READY_MAX + 1


# -- closed loop ---------------------------------------------------------------------------------------------------


@given(pools(), SLOTS, SERVICE, DURATIONS)
def test_slots_begin_and_end_at_their_instants_and_carry_one_request_at_a_time(
    rows: list[ScheduledRequest], slots: Slots, serve_ns: list[int], duration_ns: int | None
) -> None:
    play = begun(rows, slots, serve_ns=serve_ns, duration_ns=duration_ns)
    sent = play.run()
    for one in sent:
        active = (slots.start_ns + T0_NS <= one.due_ns) & (slots.until_ns > one.due_ns - T0_NS)
        flying = sum(other.due_ns <= one.due_ns < other.end_ns for other in sent)
        started = int((slots.start_ns + T0_NS <= one.due_ns).sum())
        assert active.any() and flying <= started
        assert duration_ns is None or one.due_ns < T0_NS + duration_ns
    assert max(Counter(one.row.request_id for one in sent).values(), default=1) == 1
    assert play.most_in_flight() <= len(slots.start_ns)
    assert play.backlog.unissued == 0 and play.backlog.next_ns is None


@given(pools(), st.integers(1, 6), SERVICE)
def test_a_closed_loop_keeps_every_slot_busy_to_the_last_request(
    rows: list[ScheduledRequest], users: int, serve_ns: list[int]
) -> None:
    play = begun(rows, Slots.constant(users), serve_ns=serve_ns)
    sent = play.run()
    assert [one.row.request_id for one in sent] and len(sent) == len(rows)
    # Each request but the first of every slot follows an end by exactly its think time.
    ends = Counter(one.end_ns for one in sent)
    follows = Counter(one.due_ns - one.row.think_ns for one in sent)
    follows.subtract({T0_NS: sum(one.due_ns == T0_NS for one in sent[:users])})
    late = [one for one in sent[users:] if ends[one.due_ns - one.row.think_ns] == 0]
    assert late == []
    play.check_unissued()


@given(sessions(open_loop=False), st.integers(1, 4), SERVICE, DURATIONS)
def test_a_slot_carries_out_the_turns_of_its_session_before_it_takes_another(
    rows: list[ScheduledRequest], users: int, serve_ns: list[int], duration_ns: int | None
) -> None:
    play = begun(rows, Slots.constant(users), serve_ns=serve_ns, duration_ns=duration_ns)
    sent = play.run()
    assert play.most_in_flight() <= users
    for session in {one.row.session_id for one in sent}:
        turns = [one for one in sent if one.row.session_id == session]
        assert [one.row.turn for one in turns] == list(range(len(turns)))
        for before, after in itertools.pairwise(turns):
            assert after.due_ns == before.end_ns + after.row.think_ns
    if duration_ns is None:
        assert len(sent) == len(rows)
    assert play.backlog.unissued == 0 and play.backlog.next_ns is None


@given(st.integers(1, 8), st.integers(1, 6), st.integers(1, 8), SERVICE)
def test_more_sessions_wake_the_slots_that_found_none(count: int, users: int, more: int, serve_ns: list[int]) -> None:
    play = begun(pool(count), Slots.constant(users), serve_ns=serve_ns)
    play.run()
    assert len(play.sent) == count and play.backlog.unissued == 0
    now_ns = play.now_ns = play.now_ns + 5 * MS
    play.backlog.add(T0_NS, schedule_of(pool(more, first=count)), None, now_ns)
    assert play.backlog.unissued >= more
    play.run()
    late = play.sent[count:]
    assert len(late) == more
    assert [one.due_ns for one in late[: min(users, more)]] == [now_ns] * min(users, more)
    assert play.backlog.unissued == 0


@given(st.integers(1, 5), st.integers(1, 20))
def test_sessions_that_come_in_time_leave_no_slot_idle(users: int, more: int) -> None:
    play = begun(pool(users), Slots.constant(users), serve_ns=[10 * MS])
    play.run(until_ns=T0_NS + 5 * MS)
    play.backlog.add(T0_NS, schedule_of(pool(more, first=users)), None, play.now_ns)
    sent = play.run()
    assert [one.due_ns for one in sent] == [T0_NS + (number // users) * 10 * MS for number in range(users + more)]


def test_a_ramp_adds_users_one_by_one() -> None:
    play = begun(pool(100), slots_of([(number * 20 * MS, 100 * MS) for number in range(4)]), serve_ns=[5 * MS])
    sent = play.run()
    for number in range(4):
        inside = T0_NS + number * 20 * MS + 2 * MS
        assert sum(one.due_ns <= inside < one.end_ns for one in sent) == number + 1
    assert max(one.due_ns for one in sent) < T0_NS + 100 * MS


# -- the end -------------------------------------------------------------------------------------------------------


@given(st.data(), st.integers(0, 60), SERVICE)
def test_nothing_is_due_after_clear(data: st.DataObject, at_ms: int, serve_ns: list[int]) -> None:
    open_loop = data.draw(st.booleans())
    rows = data.draw(sessions(open_loop=open_loop))
    play = begun(rows, None if open_loop else Slots.constant(2), serve_ns=serve_ns)
    play.run(until_ns=T0_NS + at_ms * MS)
    count = len(play.sent)
    play.backlog.clear()
    assert (play.backlog.next_ns, play.backlog.unissued) == (None, 0)
    play.run()
    assert len(play.sent) == count and play.backlog.unissued == 0


def test_a_step_can_begin_after_clear() -> None:
    play = begun(pool(3), Slots.constant(1), serve_ns=[MS])
    play.backlog.clear()
    play.backlog.add(T0_NS, schedule_of([request(9, 0.0, stage=1)]), None, 0)
    assert [one.row.request_id for one in play.run()] == [9]


@pytest.mark.parametrize("open_loop", [True, False])
def test_a_step_without_requests_is_over_at_once(open_loop: bool) -> None:
    backlog = Backlog(write)
    backlog.add(T0_NS, schedule_of([]), None if open_loop else Slots.constant(2), 0)
    assert backlog.pop(FAR_NS) is None
    assert (backlog.next_ns, backlog.unissued) == (None, 0)


@given(sessions(open_loop=True), pools(), SERVICE)
def test_two_steps_side_by_side_are_due_in_order_and_each_as_if_it_were_alone(
    rows: list[ScheduledRequest], users: list[ScheduledRequest], serve_ns: list[int]
) -> None:
    first = len(rows)
    moved = [
        request(first + row.request_id, None, think_s=row.think_ns / 1e9, session=1000 + row.session_id, stage=1)
        for row in users
    ]
    backlog = Backlog(write)
    backlog.add(T0_NS, schedule_of(rows), None, 0)
    backlog.add(T0_NS + 3 * MS, schedule_of(moved), Slots.constant(2), 0)
    play = Play(backlog, serve_ns)
    sent = play.run()
    assert [one.due_ns for one in sent] == sorted(one.due_ns for one in sent)
    alone = begun(rows, serve_ns=serve_ns).run()
    assert {(one.due_ns, one.row) for one in sent if one.row.stage == 0} == {(one.due_ns, one.row) for one in alone}
    assert sum(one.row.stage for one in sent) == len(users)
    assert all(one.row.offset_ns == AFTER for one in sent if one.slot is not None)
    play.check_unissued()


# -- turns that have an instant of their own and hold the answer before them ------------------------------------------


def timed(turns: list[tuple[int, int, int]]) -> list[ScheduledRequest]:
    """(number, session, instant in ms) of each, in the order of their instants."""
    seen: Counter[int] = Counter()
    rows = []
    for number, session, at_ms in turns:
        rows.append(request(number, at_ms / 1000, session=session, turn=seen[session]))
        seen[session] += 1
    return rows


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=30).map(
        lambda pairs: sorted(pairs, key=lambda pair: pair[1])
    ),
    SERVICE,
)
def test_a_turn_that_holds_an_answer_is_due_at_its_instant_or_when_the_answer_has_come(
    pairs: list[tuple[int, int]], serve_ns: list[int]
) -> None:
    rows = timed([(number, session, at_ms) for number, (session, at_ms) in enumerate(pairs)])
    backlog = Backlog(write, lambda row: True)
    backlog.add(T0_NS, schedule_of(rows), None, 0, None)
    play = Play(backlog, serve_ns)
    sent = play.run()
    assert sorted(one.row.request_id for one in sent) == [row.request_id for row in rows]
    for session in {row.session_id for row in rows}:
        own = [one for one in sent if one.row.session_id == session]
        assert [one.row.turn for one in own] == list(range(len(own)))
        for before, after in itertools.pairwise(own):
            assert after.due_ns == max(T0_NS + after.row.offset_ns, before.end_ns)
    play.check_unissued()


def test_turns_at_their_own_instants_do_not_wait_where_no_answer_is_needed() -> None:
    rows = timed([(0, 7, 0), (1, 7, 1), (2, 7, 2)])
    play = begun(rows, serve_ns=[50 * MS])
    assert [one.due_ns for one in play.run()] == [T0_NS, T0_NS + MS, T0_NS + 2 * MS]


def test_a_session_with_turns_at_instants_is_over_with_its_last_turn() -> None:
    rows = timed([(0, 7, 0), (1, 7, 1)])
    backlog = Backlog(write, lambda row: True)
    backlog.add(T0_NS, schedule_of(rows), None, 0, None)
    first = backlog.pop(T0_NS + 5 * MS)
    assert first is not None and first.row is not None and backlog.pop(T0_NS + 5 * MS) is None
    assert backlog.unissued == 1
    assert backlog.ended(first.row, None, T0_NS + 6 * MS)
    second = backlog.pop(T0_NS + 6 * MS)
    assert second is not None and second.row is not None and second.at_ns == T0_NS + 6 * MS
    assert not backlog.ended(second.row, None, T0_NS + 9 * MS)
    assert backlog.unissued == 0


def test_a_later_turn_is_written_when_the_answer_before_it_has_come_and_not_earlier() -> None:
    written: list[int] = []

    def note(row: ScheduledRequest) -> Body:
        written.append(row.request_id)
        return write(row)

    backlog = Backlog(note)
    rows = [request(0, 0.0, session=1), request(1, None, session=1, turn=1, think_s=0.01)]
    backlog.add(T0_NS, schedule_of(rows), None, 0, None)
    first = backlog.pop(T0_NS)
    assert first is not None and first.row is not None
    backlog.write_ahead()
    assert written == [0]
    backlog.ended(first.row, None, T0_NS + MS)
    backlog.write_ahead()
    assert written == [0, 1]
    assert backlog.next_ns == T0_NS + 11 * MS
