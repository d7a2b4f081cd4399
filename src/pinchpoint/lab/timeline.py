"""The engine laid along a time axis: steps follow each other without a gap while there is work.

Shared by the virtual and the real service. Deadlines are absolute: a step starts when the one before it ended, however
late anybody looked, as an engine process of its own would. In real time the caller looks late; the engine does not.
"""

from collections.abc import Callable

from pinchpoint.clock import NS_PER_S
from pinchpoint.lab.engine import Engine, Sequence

Emit = Callable[[int, list[Sequence]], None]
"""Called with the instant a step ended and the requests that got a token in it."""


class Timeline:
    """Instants in ns, never going back."""

    def __init__(self, engine: Engine, emit: Emit) -> None:
        self.engine = engine
        self.step_end_ns: int | None = None
        """When the step under way ends; None when the engine is idle."""
        self._emit = emit

    def advance(self, to_ns: int) -> None:
        """Ends every step that is due at or before to_ns, and starts the ones after."""
        while self.step_end_ns is not None and self.step_end_ns <= to_ns:
            end_ns = self.step_end_ns
            tokens = self.engine.end_step(end_ns / NS_PER_S)
            self._start(end_ns)
            if tokens:
                self._emit(end_ns, tokens)

    def submit(
        self,
        t_ns: int,
        request_id: int,
        prompt_tokens: int,
        max_output_tokens: int,
        arrival_ns: int,
        finish_reason: str = "length",
    ) -> None:
        """A request reaches the engine's waiting line; an idle engine starts at once."""
        self.advance(t_ns)
        self.engine.submit(
            t_ns / NS_PER_S,
            request_id,
            prompt_tokens,
            max_output_tokens,
            arrival_s=arrival_ns / NS_PER_S,
            finish_reason=finish_reason,
        )
        if self.step_end_ns is None:
            self._start(t_ns)

    def abort(self, t_ns: int, request_id: int) -> bool:
        self.advance(t_ns)
        return self.engine.abort(request_id)

    def _start(self, t_ns: int) -> None:
        step = self.engine.start_step(t_ns / NS_PER_S) if self.engine.has_work else None
        self.step_end_ns = None if step is None else t_ns + max(1, round(step.duration_s * NS_PER_S))
