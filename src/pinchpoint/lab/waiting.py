"""The waiting line: who is next, who waits for something else than room, and until when.

Order is by place (first come first served; evicted requests take places before all) or by priority, then arrival. A
request that waits for a grammar, for KV from another engine or for an adapter slot is set aside, so that others pass
it, and comes back to its old place.
"""

import heapq
from collections.abc import Iterable, Iterator

from pinchpoint.lab.sequence import Sequence

_Key = tuple[int, float, int]


class WaitingLine:
    """Sequences; len() counts all that wait, those set aside included. Aborted ones leave by `drop`."""

    def __init__(self, by_priority: bool) -> None:
        self._by_priority = by_priority
        self._line: list[tuple[_Key, Sequence]] = []
        self._timed: list[tuple[float, int, Sequence]] = []
        self._parked: list[Sequence] = []
        self._live = 0

    def __len__(self) -> int:
        return self._live

    def __iter__(self) -> Iterator[Sequence]:
        """In the order in which they would be served if nobody was set aside."""
        return iter(sorted((s for s in self._everyone() if not s.aborted), key=self._key))

    @property
    def next_ready_s(self) -> float | None:
        """When the next of those that wait for a known instant may go on."""
        while self._timed and self._timed[0][2].aborted:
            heapq.heappop(self._timed)
        return self._timed[0][0] if self._timed else None

    @property
    def parked(self) -> list[Sequence]:
        """Set aside until `unpark`."""
        return [s for s in self._parked if not s.aborted]

    @property
    def timed(self) -> list[Sequence]:
        """Set aside until an instant."""
        return [s for _, _, s in self._timed if not s.aborted]

    def add(self, sequence: Sequence, ready_s: float | None = None) -> None:
        """At its place; set aside until ready_s."""
        self._live += 1
        self._put(sequence, ready_s)

    def head(self, now_s: float) -> Sequence | None:
        """The first that may go on; it stays in the line."""
        while self._timed and self._timed[0][0] <= now_s:
            sequence = heapq.heappop(self._timed)[2]
            if not sequence.aborted:
                self._put(sequence, None)
        line = self._line
        while line and line[0][1].aborted:
            heapq.heappop(line)
        return line[0][1] if line else None

    def pop(self) -> Sequence:
        """Removes the head."""
        self._live -= 1
        return heapq.heappop(self._line)[1]

    def defer_head(self, ready_s: float) -> None:
        self._put(heapq.heappop(self._line)[1], ready_s)

    def park_head(self) -> None:
        self._parked.append(heapq.heappop(self._line)[1])

    def unpark(self) -> None:
        parked, self._parked = self._parked, []
        for sequence in parked:
            if not sequence.aborted:
                self._put(sequence, None)

    def drop(self, sequence: Sequence) -> None:
        """It waits here and `aborted` is set."""
        assert sequence.aborted
        self._live -= 1

    def reorder(self, by_priority: bool) -> None:
        """From now on the line is in this order."""
        self._by_priority = by_priority
        self._line = [(self._key(s), s) for _, s in self._line if not s.aborted]
        heapq.heapify(self._line)

    def _put(self, sequence: Sequence, ready_s: float | None) -> None:
        if ready_s is None:
            heapq.heappush(self._line, (self._key(sequence), sequence))
        else:
            heapq.heappush(self._timed, (ready_s, sequence.place, sequence))

    def _key(self, sequence: Sequence) -> _Key:
        if self._by_priority:
            return (sequence.request.priority, sequence.arrival_s, sequence.place)
        return (0, 0.0, sequence.place)

    def _everyone(self) -> Iterable[Sequence]:
        yield from (s for _, s in self._line)
        yield from (s for _, _, s in self._timed)
        yield from self._parked
