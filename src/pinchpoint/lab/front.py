"""What stands between the network and the engines inside a replica: event loops, thread pools, pools of servers.

Lines only; what a piece of work costs and does is told by whoever puts it in. An event loop takes one job at a time,
first in first out, and learns a job's length when it begins.
"""

import heapq
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from pinchpoint.lab.host import Process

Item = TypeVar("Item")

Job = Callable[[int], int]
"""Called with the instant it begins; does its work and returns when it is done."""


class EventLoop:
    """One API process. `join` says whether somebody has to call `resume` at `busy_until_ns`."""

    def __init__(self, process: Process, index: int, wake: Callable[[int], int]) -> None:
        self.process = process
        self.index = index
        self._wake = wake
        """When a process that slept until this instant gets a core."""
        self.busy_until_ns = 0
        self.waiting: deque[Job] = deque()
        self.dead = False
        """Its process has been killed; what waited is lost."""

    def idle(self, t_ns: int) -> bool:
        return self.busy_until_ns <= t_ns and not self.waiting

    def join(self, t_ns: int, job: Job) -> bool:
        """The job begins at once or waits. True: it is the first that waits, so `resume` is wanted."""
        if self.busy_until_ns <= t_ns and not self.waiting:
            self.busy_until_ns = job(self._wake(t_ns))
            return False
        self.waiting.append(job)
        return len(self.waiting) == 1

    def resume(self, t_ns: int) -> bool:
        """The job under way has ended; True: more wait, and `resume` is wanted again."""
        self.busy_until_ns = self.waiting.popleft()(t_ns)
        return bool(self.waiting)


class Limiter(Generic[Item]):
    """So many may be inside; others wait in line. size None: no limit."""

    def __init__(self, size: int | None) -> None:
        self.size = size
        self.inside = 0
        self.waiting: deque[Item] = deque()

    def enter(self, item: Item) -> bool:
        """False: it waits."""
        if self.size is None or self.inside < self.size:
            self.inside += 1
            return True
        self.waiting.append(item)
        return False

    def leave(self) -> None:
        self.inside -= 1

    def admit(self) -> Item | None:
        """The next one in line, if there is room."""
        if not self.waiting or (self.size is not None and self.inside >= self.size):
            return None
        self.inside += 1
        return self.waiting.popleft()


class Servers:
    """Equal servers with one line, whose customers come in order of time: when each would be served."""

    def __init__(self, count: int) -> None:
        self._free_ns = [0] * count

    def resize(self, count: int) -> None:
        while len(self._free_ns) < count:
            heapq.heappush(self._free_ns, 0)
        while len(self._free_ns) > count:
            heapq.heappop(self._free_ns)

    def serve(self, t_ns: int, length: Callable[[int], int]) -> int:
        """length: from the instant it begins to the instant it ends. Returns the latter."""
        end_ns = length(max(t_ns, self._free_ns[0]))
        heapq.heapreplace(self._free_ns, end_ns)
        return end_ns
