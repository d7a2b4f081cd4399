"""The engine laid along a time axis: steps follow each other without a gap while there is work.

Shared by the virtual and the real service. Deadlines are absolute: a step starts when the one before it ended, however
late anybody looked, as an engine process of its own would. In real time the caller looks late; the engine does not.
An engine that has work but can compute nothing yet (a grammar is being compiled, KV is under way) is woken in time.
"""

import math
from collections.abc import Callable

from pinchpoint.clock import NS_PER_S
from pinchpoint.lab.engine import Engine, EngineRequest, Sequence
from pinchpoint.lab.params import LabParams

Emit = Callable[[int, list[Sequence]], None]
"""Called with the instant a step ended and the requests that got tokens in it, or have failed."""


class Timeline:
    """One engine. Instants in ns, never going back."""

    def __init__(self, engine: Engine, emit: Emit) -> None:
        self.engine = engine
        self.next_ns: int | None = None
        """When the step under way ends or the engine must be woken; None when nothing will happen by itself."""
        self._stepping = False
        self._emit = emit

    @property
    def step_end_ns(self) -> int | None:
        """The same as next_ns."""
        return self.next_ns

    def advance(self, to_ns: int) -> None:
        """Ends every step that is due at or before to_ns, and starts the ones after."""
        while self.next_ns is not None and self.next_ns <= to_ns:
            t_ns = self.next_ns
            tokens = self.engine.end_step(t_ns / NS_PER_S) if self._stepping else None
            self._start(t_ns)
            if tokens:
                self._emit(t_ns, tokens)

    def submit(
        self,
        t_ns: int,
        request_id: int,
        prompt_tokens: int,
        max_output_tokens: int,
        arrival_ns: int,
        finish_reason: str = "length",
    ) -> None:
        """A plain request reaches the engine's waiting line."""
        arrival_s = arrival_ns / NS_PER_S
        request = EngineRequest(request_id, prompt_tokens, max_output_tokens, arrival_s, finish_reason)
        self.submit_request(t_ns, request)

    def submit_request(self, t_ns: int, request: EngineRequest) -> None:
        """A request reaches the engine's waiting line; an idle engine starts at once."""
        self.advance(t_ns)
        self.engine.submit(t_ns / NS_PER_S, request)
        self.poke(t_ns)

    def abort(self, t_ns: int, request_id: int) -> bool:
        self.advance(t_ns)
        found = self.engine.abort(request_id)
        self.poke(t_ns)
        return found

    def change(self, t_ns: int, params: LabParams) -> None:
        """New limits and costs from the next step on. Requests too long for them are emitted as failed."""
        self.advance(t_ns)
        failed = self.engine.change(t_ns / NS_PER_S, params)
        self.poke(t_ns)
        if failed:
            self._emit(t_ns, failed)

    def fail(self, t_ns: int) -> list[Sequence]:
        """The engine restarts empty; returns, and does not emit, the requests that were in it."""
        self.advance(t_ns)
        self.drop_step()
        return self.engine.fail(t_ns / NS_PER_S)

    def drop_step(self) -> None:
        """The engine has failed and forgotten its step."""
        self._stepping = False
        self.next_ns = None

    def poke(self, t_ns: int) -> None:
        """Something has changed: an engine without a step under way looks whether it can compute now."""
        if not self._stepping:
            self._start(t_ns)

    def _start(self, t_ns: int) -> None:
        engine = self.engine
        self._stepping = False
        self.next_ns = None
        if not engine.has_work:
            return
        step = engine.start_step(t_ns / NS_PER_S)
        if step is not None:
            self._stepping = True
            self.next_ns = t_ns + max(1, round(step.duration_s * NS_PER_S))
        elif engine.wake_s is not None:
            self.next_ns = max(t_ns + 1, math.ceil(engine.wake_s * NS_PER_S))
