"""Events on their way to clients, in order of time.

Most come from event loops whose answers are never delayed against each other: each has a lane, a line of lists that is
in order by itself. The rest goes into a heap.
"""

import heapq
from collections import deque

from pinchpoint.lab.events import ClientEvent

Lane = deque[list[ClientEvent]]


class Outbox:
    """What clients will see. Instants in ns."""

    def __init__(self) -> None:
        self._lanes: list[Lane] = []
        self._heap: list[tuple[int, int, ClientEvent]] = []
        self._count = 0
        self._ends_ns: list[int] = []
        self._broken_ns: dict[int, int] = {}
        self.cancelled_ns: dict[int, int] = {}

    def lane(self) -> Lane:
        """A new one. Its lists must not be empty, and each begins no earlier than the one before ended."""
        lane: Lane = deque()
        self._lanes.append(lane)
        return lane

    def put(self, event: ClientEvent) -> None:
        self._count += 1  # events of one instant keep their order
        heapq.heappush(self._heap, (event.t_ns, self._count, event))

    def note_end(self, t_ns: int) -> None:
        """A request ends at t_ns in what is on its way."""
        heapq.heappush(self._ends_ns, t_ns)

    @property
    def first_end_ns(self) -> int | None:
        return self._ends_ns[0] if self._ends_ns else None

    def cut(self, request_id: int, t_ns: int) -> None:
        """The server side is gone: from t_ns on the client sees nothing of this request but an error."""
        self._broken_ns[request_id] = t_ns

    def cancel(self, request_id: int, t_ns: int) -> None:
        """The client has gone: after t_ns it sees nothing."""
        self.cancelled_ns[request_id] = t_ns

    @property
    def next_ns(self) -> int | None:
        first_ns = self._heap[0][0] if self._heap else None
        for lane in self._lanes:
            if lane and (first_ns is None or lane[0][0].t_ns < first_ns):
                first_ns = lane[0][0].t_ns
        return first_ns

    def take(self, to_ns: int) -> list[ClientEvent]:
        """Everything up to and including to_ns, in time order."""
        taken: list[ClientEvent] = []
        sources = 0
        for lane in self._lanes:
            if lane and lane[0][0].t_ns <= to_ns:
                sources += 1
                _take_lane(lane, to_ns, taken)
        heap = self._heap
        if heap and heap[0][0] <= to_ns:
            sources += 1
            while heap and heap[0][0] <= to_ns:
                taken.append(heapq.heappop(heap)[2])
        if sources > 1:
            taken.sort(key=_time)
        ends_ns = self._ends_ns
        while ends_ns and ends_ns[0] <= to_ns:
            heapq.heappop(ends_ns)
        if self._broken_ns:
            ends = self._broken_ns
            taken = [e for e in taken if e.kind == "error" or e.t_ns < ends.get(e.request_id, e.t_ns + 1)]
        if self.cancelled_ns:
            ends = self.cancelled_ns
            taken = [e for e in taken if e.t_ns <= ends.get(e.request_id, e.t_ns)]
        return taken


def _take_lane(lane: Lane, to_ns: int, taken: list[ClientEvent]) -> None:
    while lane:
        batch = lane[0]
        if batch[-1].t_ns <= to_ns:
            taken += batch
            lane.popleft()
            continue
        index = 0
        while batch[index].t_ns <= to_ns:
            index += 1
        if index:
            taken += batch[:index]
            del batch[:index]
        return


def _time(event: ClientEvent) -> int:
    return event.t_ns
