"""How late the lab's server is: time between the instant an event has in the simulation and its bytes being written.

A service that is itself late spoils what is measured of it, so the lab measures that and tells it.
"""

from bisect import bisect_left

import msgspec

from pinchpoint.clock import NS_PER_S

_BOUND_MIN_NS = 10_000
_BOUND_RATIO = 1.25
"""So a quantile is told at most a quarter too large."""
_BOUNDS = 63
BOUNDS_NS = tuple(round(_BOUND_MIN_NS * _BOUND_RATIO**power) for power in range(_BOUNDS))
"""10 us to 10 s."""


class LatenessSummary(msgspec.Struct, frozen=True):
    """p50_s and p99_s are upper bounds of their bucket; None when nothing was written."""

    events: int
    mean_s: float | None
    p50_s: float | None
    p99_s: float | None
    max_s: float | None


class Lateness:
    """A histogram over all events that were written."""

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_NS) + 1)
        self._sum_ns = 0
        self._max_ns = 0

    def note(self, late_ns: int) -> None:
        self._counts[bisect_left(BOUNDS_NS, late_ns)] += 1
        self._sum_ns += late_ns
        if late_ns > self._max_ns:
            self._max_ns = late_ns

    def summary(self) -> LatenessSummary:
        events = sum(self._counts)
        if not events:
            return LatenessSummary(0, None, None, None, None)
        return LatenessSummary(
            events,
            self._sum_ns / events / NS_PER_S,
            self._quantile_s(0.50, events),
            self._quantile_s(0.99, events),
            self._max_ns / NS_PER_S,
        )

    def _quantile_s(self, q: float, events: int) -> float:
        seen = 0
        for bound_ns, count in zip(BOUNDS_NS, self._counts, strict=False):
            seen += count
            if seen >= q * events:
                return min(bound_ns, self._max_ns) / NS_PER_S
        return self._max_ns / NS_PER_S

    def page(self) -> str:
        """A Prometheus histogram, lab_lateness_seconds."""
        name, seen = "lab_lateness_seconds", 0
        lines = [
            f"# HELP {name} Time between an event's simulated instant and its bytes being written.",
            f"# TYPE {name} histogram",
        ]
        for bound_ns, count in zip(BOUNDS_NS, self._counts, strict=False):
            seen += count
            lines.append(f'{name}_bucket{{le="{bound_ns / NS_PER_S:.6g}"}} {seen}')
        events = seen + self._counts[-1]
        lines += [f'{name}_bucket{{le="+Inf"}} {events}', f"{name}_sum {self._sum_ns / NS_PER_S}"]
        lines += [f"{name}_count {events}"]
        return "\n".join(lines) + "\n"
