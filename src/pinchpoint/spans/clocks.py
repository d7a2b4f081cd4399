"""Whose clock is off by how much: spans of other hosts brought onto our axis.

What must be so bounds an offset: a span begins no earlier than what called it, the first byte of an answer comes after
its span began, and nothing is received before it ended. What is usual, a span that ends within its caller, narrows it.
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from pinchpoint.clock import NS_PER_S
from pinchpoint.spans.trace import Request, Span, Trace

SOFT_RATIO = 0.05
"""Share of spans that may outlive their callers: work that goes on behind an answer."""
BEHIND_NS = 1_000_000
"""A clock closer than a millisecond is taken for ours: servers note an end a moment after the last byte left."""


class SenderClock(msgspec.Struct, frozen=True):
    """offset_s: added to the sender's instants; 0 where its clock is as good as ours. It lies within error_s, as far as
    bounds tell. None: no offset fits, see the module."""

    service: str
    instance: str
    spans: int
    offset_s: float | None
    error_s: float | None


class Bounds:
    """What the offset of one clock must lie between, one bound for each span that tells."""

    def __init__(self) -> None:
        self.least: list[int] = []
        self.most: list[int] = []
        self.soft: list[int] = []
        """Ends within their callers: usual, not certain."""

    def offset(self) -> tuple[int, int] | None:
        """(offset, error) in ns; None where nothing fits. (0, 0) where nothing is known."""
        if not self.least or not self.most:
            return (0, 0)
        least, most = max(self.least), min(self.most)
        if least > most + BEHIND_NS:
            least, most = (int(np.quantile(each, q)) for each, q in ((self.least, 0.95), (self.most, 0.05)))
            if least > most + BEHIND_NS:
                return None
        if self.soft:
            soft = int(np.quantile(self.soft, SOFT_RATIO))
            if soft >= least:
                most = min(most, soft)
        if least - BEHIND_NS <= 0 <= most + BEHIND_NS:
            return 0, max(abs(least), abs(most)) if least <= 0 <= most else BEHIND_NS
        return (least + most) // 2, max(most - least, 0) // 2 + 1


def set_clocks(traces: Sequence[Trace]) -> tuple[SenderClock, ...]:
    """Moves every span onto our axis. A caller's clock is settled before that of what it calls."""
    clocks: dict[tuple[str, str], list[tuple[Trace, Span]]] = {}
    for trace in traces:
        for span in trace.spans:
            clocks.setdefault(span.clock, []).append((trace, span))
    settled: dict[tuple[str, str], tuple[int, int] | None] = {}
    while len(settled) < len(clocks):
        ready = [clock for clock in clocks if clock not in settled and _reached(clocks[clock], settled)]
        for clock in ready or [next(clock for clock in clocks if clock not in settled)]:
            settled[clock] = _settle(clocks[clock], clock)
    return tuple(
        SenderClock(
            service,
            instance,
            len(clocks[service, instance]),
            found[0] / NS_PER_S if found is not None else None,
            found[1] / NS_PER_S if found is not None else None,
        )
        for (service, instance), found in sorted(settled.items())
    )


def _reached(spans: Sequence[tuple[Trace, Span]], settled: Mapping[tuple[str, str], object]) -> bool:
    """Whether the callers of these spans stand on our axis already."""
    return all(
        span.parent is None or span.parent.clock == span.clock or span.parent.clock in settled for _, span in spans
    )


def _settle(spans: Sequence[tuple[Trace, Span]], clock: tuple[str, str]) -> tuple[int, int] | None:
    bounds = Bounds()
    for trace, span in spans:
        request, caller = trace.request, span.parent
        if span.received is not None:
            bounds.most.append(span.received - span.end)
        if caller is None:
            first = request.first_byte_ns if request.first_byte_ns is not None else request.end_ns
            bounds.least.append(request.sent_ns - span.start)
            bounds.most.append(first - span.start)
            bounds.soft.append(request.end_ns - span.end)
        elif caller.clock != clock:
            bounds.least.append(caller.start - span.start)
            bounds.most.append(caller.end - span.start)
            bounds.soft.append(caller.end - span.end)
    found = bounds.offset()
    for trace, span in spans:
        if found is not None:
            span.start, span.end = span.start + found[0], span.end + found[0]
        else:
            _nest(span, trace.request)
    return found


def _nest(span: Span, request: Request) -> None:
    """Moves one span as little as brings it into its caller, its beginning first."""
    begin, end = (span.parent.start, span.parent.end) if span.parent is not None else (request.sent_ns, request.end_ns)
    move = min(0, end - span.end)
    move += max(0, begin - (span.start + move))
    span.start, span.end = span.start + move, span.end + move
