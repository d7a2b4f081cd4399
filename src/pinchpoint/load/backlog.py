"""What is still to be issued: which request is due next, in one heap over all steps. No sockets, no clocks.

Open-loop sessions are due at their instants, later turns and the next session of a slot when an answer has ended. See
pinchpoint.schedule for the rules.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pinchpoint.schedule import AFTER, Schedule, ScheduledRequest, Slots

ROWS_PER_BLOCK = 256
"""Rows are turned into Python objects block by block: a long schedule stays compact."""
READY_MAX = 64
"""Bodies written ahead of their instants, per step. A body of a long prompt is hundreds of kilobytes."""
SOON = 7
"""Later turns that are written ahead: the first three levels of the heap. Long histories of users who think are not
kept twice for longer than needed."""
READY_AT_ONCE = 4
"""Bodies written in one turn of the loop: some tens of microseconds."""


class Slot(NamedTuple):
    """One user of a closed loop; takes no session from `until_ns` on."""

    step: "Step"
    until_ns: int


class Body(NamedTuple):
    """The bytes of a request, how many tokens of input they were meant to be, and how many of these others share.

    problem: why there are no bytes; the target could not write this request.
    """

    data: bytes
    input_tokens: int
    shared_tokens: int = 0
    problem: str | None = None


Write = Callable[[ScheduledRequest], Body]
WriteAhead = Callable[[ScheduledRequest], Body | None]


@dataclass(slots=True)
class Due:
    """What is due: a request, or (row None) a slot that begins. body: None until it is written."""

    at_ns: int
    row: ScheduledRequest | None
    body: Body | None
    slot: Slot | None
    step: "Step"
    released: bool = False
    """It has waited for an answer, which has come."""


class Step:
    """The sessions of one stage that have not begun, first requests first."""

    def __init__(self, stage: int, t0_ns: int, end_ns: int | None) -> None:
        self.stage = stage
        self.t0_ns = t0_ns
        self.end_ns = end_ns
        """Nothing is due from then on."""
        self.idle_slots: list[Slot] = []
        """Slots that found no session and wait for more."""
        self.slots = 0
        """Slots that may take another session."""
        self.closed_loop = False
        self.ended = False
        """No session begins any more, whatever slots are freed."""
        self.ready: deque[tuple[ScheduledRequest, Body | None]] = deque()
        self._blocks: deque[Iterator[ScheduledRequest]] = deque()
        self.left = 0
        """Sessions that nobody has taken yet, counted by their first requests."""
        self.taken = 0
        """First requests that have their instant and wait for it."""
        self.turns_left = 0
        """Later turns of the sessions that have not begun."""
        self.turns_due = 0
        """Later turns of the sessions that have, as far as they were not issued."""
        self._later: list[Schedule] = []

    def add(self, schedule: Schedule) -> None:
        first = (schedule.turn == 0) | (schedule.offset_ns != AFTER)
        starts = schedule.select(first)
        self.left += len(starts)
        self._blocks.append(_rows(starts))
        if len(starts) < len(schedule):
            later = schedule.select(~first)
            order = np.lexsort((later.turn, later.session_id))
            self._later.append(later.select(order))
            self.turns_left += len(later)

    def write_ahead(self, write: WriteAhead, at_most: int = READY_AT_ONCE) -> None:
        for _ in range(min(at_most, READY_MAX - len(self.ready))):
            row = self._next_row()
            if row is None:
                return
            self.ready.append((row, write(row)))

    def peek(self, write: WriteAhead) -> ScheduledRequest | None:
        """First request of the next session; None when there is none (yet)."""
        if not self.ready:
            self.write_ahead(write, 1)
        return self.ready[0][0] if self.ready else None

    def take(self) -> tuple[ScheduledRequest, Body | None]:
        """What `peek` saw, with its body."""
        self.left -= 1
        self.taken += 1
        return self.ready.popleft()

    def turns_after(self, session_id: int) -> "deque[ScheduledRequest] | None":
        """The later turns of a session, taken once when it begins; None when there are none."""
        for later in self._later:
            low = int(np.searchsorted(later.session_id, session_id, "left"))
            high = int(np.searchsorted(later.session_id, session_id, "right"))
            if high > low:
                return deque(later.select(np.arange(low, high)))
        return None

    def _next_row(self) -> ScheduledRequest | None:
        while self._blocks:
            row = next(self._blocks[0], None)
            if row is not None:
                return row
            self._blocks.popleft()
        return None


def _rows(schedule: Schedule) -> Iterator[ScheduledRequest]:
    for start in range(0, len(schedule), ROWS_PER_BLOCK):
        yield from schedule.select(np.arange(start, min(start + ROWS_PER_BLOCK, len(schedule))))


class Backlog:
    """Instants are those of the caller's clock.

    write: makes the body of a request. waits: whether a turn that has an instant of its own waits for the answer to the
    turn before it, because its body holds that answer; it is then due when that answer has come.
    """

    def __init__(self, write: Write, waits: Callable[[ScheduledRequest], bool] = lambda row: False) -> None:
        self._write = write
        self._waits = waits
        self._steps: dict[int, Step] = {}
        self._heap: list[tuple[int, int, Due]] = []
        self._order = 0
        self._turns: dict[int, tuple[Step, deque[ScheduledRequest]]] = {}
        """session_id -> its later turns, while it lasts."""
        self._timed_left: dict[int, int] = {}
        """session_id -> rows that are not yet over, of sessions whose turns have instants and wait for answers."""
        self._held: dict[int, deque[Due]] = {}
        """session_id -> turns that are due and wait; there is an entry while a request of the session is in flight."""

    @property
    def next_ns(self) -> int | None:
        return self._heap[0][0] if self._heap else None

    @property
    def unissued(self) -> int:
        """Requests that can still become due."""
        return sum(
            step.taken + step.turns_due + (step.left + step.turns_left if not step.closed_loop or step.slots else 0)
            for step in self._steps.values()
        )

    @property
    def pool_left(self) -> int:
        """Sessions that closed loops may still take."""
        return sum(step.left for step in self._steps.values() if step.closed_loop)

    def add(
        self, t0_ns: int, schedule: Schedule, slots: Slots | None, now_ns: int, duration_ns: int | None = None
    ) -> None:
        """A step, or more sessions for one that runs: slots that wait for some take them at once."""
        step = self._steps.get(schedule.stage)
        fresh = step is None
        if step is None:
            step = self._steps[schedule.stage] = Step(
                schedule.stage, t0_ns, None if duration_ns is None else t0_ns + duration_ns
            )
        step.add(schedule)
        self._note_timed(schedule)
        if slots is not None:
            step.closed_loop = True
            for start_ns, until_ns in zip(slots.start_ns.tolist(), slots.until_ns.tolist(), strict=True):
                slot = Slot(step, until_ns if until_ns == Slots.NO_END else t0_ns + until_ns)
                step.slots += 1
                self._push(Due(t0_ns + start_ns, None, None, slot, step))
        elif step.closed_loop:
            waiting, step.idle_slots = step.idle_slots, []
            for slot in waiting:
                step.slots += 1
                self._push(Due(now_ns, None, None, slot, step))
        elif fresh:
            self._push_next_arrival(step)

    def pop(self, now_ns: int) -> Due | None:
        """The next request that is due; None when none is. Earliest first, and it tells when that was."""
        while self._heap and self._heap[0][0] <= now_ns:
            due = heapq.heappop(self._heap)[2]
            step = due.step
            if due.row is None:
                assert due.slot is not None
                seated = self._seat(due.slot, now_ns, think=False)
                if seated is None:
                    continue
                due = seated
                assert due.row is not None
            if due.row.offset_ns == AFTER and due.row.turn > 0:
                step.turns_due -= 1
                return self._whole(due)
            if due.slot is None and not due.released:
                self._push_next_arrival(step)
            if due.row.session_id in self._timed_left and not due.released:
                held = self._held.get(due.row.session_id)
                if held is not None:
                    held.append(due)
                    continue
                self._held[due.row.session_id] = deque()
            step.taken -= 1
            turns = step.turns_after(due.row.session_id) if due.row.turn == 0 else None
            if turns is not None:
                step.turns_left -= len(turns)
                step.turns_due += len(turns)
                self._turns[due.row.session_id] = (step, turns)
            return self._whole(due)
        return None

    def _whole(self, due: Due) -> Due:
        if due.body is None:
            assert due.row is not None
            due.body = self._write(due.row)
        return due

    def _ahead(self, row: ScheduledRequest) -> Body | None:
        """None: the body holds an answer that is still to come."""
        return None if row.turn > 0 and row.offset_ns != AFTER and self._waits(row) else self._write(row)

    def _note_timed(self, schedule: Schedule) -> None:
        """Which sessions have turns at instants of their own that need the answers before them."""
        timed = schedule.select((schedule.turn > 0) & (schedule.offset_ns != AFTER))
        if not len(timed) or not self._waits(next(iter(timed.select(np.arange(1))))):
            return
        sessions, counts = np.unique(schedule.session_id, return_counts=True)
        several = counts > 1
        self._timed_left.update(zip(sessions[several].tolist(), counts[several].tolist(), strict=True))

    def ended(self, row: ScheduledRequest, slot: Slot | None, end_ns: int) -> bool:
        """A request has ended: what waits for it becomes due. True when its session goes on.

        end_ns: when the loop saw that it had ended. A closed loop's user can only think from then on; that the loop
        may see it late shows as fewer users in flight, not as latency.
        """
        if row.session_id in self._timed_left:
            return self._release(row.session_id, end_ns)
        entry = self._turns.get(row.session_id)
        if entry is not None:
            step, turns = entry
            due_ns = end_ns + turns[0].think_ns
            if step.ended or (step.end_ns is not None and due_ns >= step.end_ns):
                self.give_up(row)
                step.slots -= slot is not None  # its user thinks until the end
                return False
            upcoming = turns.popleft()
            if not turns:
                del self._turns[row.session_id]
            self._push(Due(due_ns, upcoming, None, slot, step))
            return True
        if slot is not None:
            seated = self._seat(slot, end_ns, think=True)
            if seated is not None:
                self._push(seated)
        return False

    def _release(self, session_id: int, end_ns: int) -> bool:
        """An answer has come that a later turn waits for, or will. True when the session goes on."""
        self._timed_left[session_id] -= 1
        held = self._held.get(session_id)
        if held:
            due = held.popleft()
            due.at_ns, due.released = max(end_ns, due.at_ns), True
            self._push(due)
        else:
            self._held.pop(session_id, None)
        if self._timed_left[session_id] <= 0:
            del self._timed_left[session_id]
            return False
        return True

    def give_up(self, row: ScheduledRequest) -> None:
        """The session ends with this request: its later turns are never due."""
        entry = self._turns.pop(row.session_id, None)
        if entry is not None:
            entry[0].turns_due -= len(entry[1])

    def clear(self) -> None:
        """Forgets everything that is not yet due."""
        for step in self._steps.values():
            step.ended = True
        self._heap.clear()
        self._steps.clear()
        self._turns.clear()
        self._timed_left.clear()
        self._held.clear()

    def write_ahead(self) -> None:
        for _, _, due in self._heap[:SOON]:  # the first places of a heap hold what is due soon
            if due.body is None and due.row is not None and (due.released or due.row.offset_ns == AFTER):
                self._whole(due)
        for step in self._steps.values():
            step.write_ahead(self._ahead)

    def _seat(self, slot: Slot, now_ns: int, *, think: bool) -> Due | None:
        """What the slot does next; None when it takes no further session."""
        step = slot.step
        row = None if step.ended else step.peek(self._ahead)
        due_ns = now_ns + (row.think_ns if row is not None and think else 0)
        if step.ended or due_ns >= slot.until_ns or (step.end_ns is not None and due_ns >= step.end_ns):
            step.slots -= 1
            return None
        if row is None:
            step.slots -= 1
            step.idle_slots.append(slot)
            return None
        row, body = step.take()
        return Due(due_ns, row, body, slot, step)

    def _push_next_arrival(self, step: Step) -> None:
        if step.peek(self._ahead) is not None:
            row, body = step.take()
            assert row.offset_ns != AFTER, "an open-loop session has an instant"
            self._push(Due(step.t0_ns + row.offset_ns, row, body, None, step))

    def _push(self, due: Due) -> None:
        self._order += 1
        heapq.heappush(self._heap, (due.at_ns, self._order, due))
