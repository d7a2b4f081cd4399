"""Grammars of structured output: compiled once per schema, beside the engine's steps.

A request whose grammar is being compiled waits; others pass it. Different schemas are compiled side by side, as fast as
the host's CPUs allow. Not here: what masks cost in each step (cost.py).
"""

from collections.abc import Callable

Cpu = Callable[[float, float], float]
"""(now_s, CPU seconds) -> seconds that so much work of the engine's process takes on its host."""


class Grammars:
    """Schemas seen so far and when each is, or was, ready."""

    def __init__(self) -> None:
        self._ready_s: dict[int, float] = {}

    def __contains__(self, schema: int) -> bool:
        return schema in self._ready_s

    def compile(self, now_s: float, schema: int, compile_s: float, cpu: Cpu | None) -> float:
        """Starts, and returns how long it takes."""
        duration_s = compile_s if cpu is None else cpu(now_s, compile_s)
        self._ready_s[schema] = now_s + duration_s
        return duration_s

    def ready_s(self, schema: int) -> float:
        return self._ready_s[schema]
