"""Engines that step together: data parallel ranks whose experts are spread over all of them.

Every layer of a step exchanges tokens between all ranks, so a step begins when all have ended the one before and lasts
as long as the slowest rank needs. A rank without work takes part with an empty batch.
"""

import math
from collections.abc import Sequence as Items

from pinchpoint.clock import NS_PER_S
from pinchpoint.lab.engine import Engine
from pinchpoint.lab.timeline import Emit


class LockstepTimeline:
    """As timeline.Timeline, for several engines."""

    def __init__(self, engines: Items[Engine], emit: Emit) -> None:
        self.next_ns: int | None = None
        self._engines = list(engines)
        self._stepping: list[Engine] = []
        self._emit = emit

    def advance(self, to_ns: int) -> None:
        while self.next_ns is not None and self.next_ns <= to_ns:
            t_ns = self.next_ns
            tokens = [s for engine in self._stepping for s in engine.end_step(t_ns / NS_PER_S)]
            self._start(t_ns)
            if tokens:
                self._emit(t_ns, tokens)

    def poke(self, t_ns: int) -> None:
        """Something has changed: engines without a step under way look whether they can compute now. Those that find
        the others in a step wait for its end."""
        if not self._stepping:
            self._start(t_ns)

    def drop_step(self) -> None:
        """All engines have failed and forgotten their step."""
        self._stepping = []
        self.next_ns = None

    def _start(self, t_ns: int) -> None:
        self.next_ns = None
        self._stepping = []
        duration_s = 0.0
        wakes_s: list[float] = []
        for engine in self._engines:
            if not engine.has_work:
                continue
            step = engine.start_step(t_ns / NS_PER_S)
            if step is not None:
                self._stepping.append(engine)
                duration_s = max(duration_s, step.duration_s)
            elif engine.wake_s is not None:
                wakes_s.append(engine.wake_s)
        if self._stepping:
            self.next_ns = t_ns + max(1, round(duration_s * NS_PER_S))
        elif wakes_s:
            self.next_ns = max(t_ns + 1, math.ceil(min(wakes_s) * NS_PER_S))
