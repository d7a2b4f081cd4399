"""How far a remote source's wall clock is from ours, as bounds that the true offset lies between.

Every exchange with the source brackets a moment: whatever its clock said then, it was read between our asking and our
having the answer (Cristian 1989). So offset = its clock - ours lies in [stamp - answered, stamp - asked], and the
intersection of many such intervals tightens. An HTTP Date has whole seconds only, and still tightens: answers that come
just before and just after a second's end bound it from both sides.

The surprising thing: bounds must widen by themselves. Two clocks drift apart, so evidence of a minute ago is worth less
than it was. And where new evidence contradicts the old, the old is dropped: somebody set a clock.
"""

from email.utils import parsedate_to_datetime

from pinchpoint.clock import NS_PER_S

MAX_DRIFT_PPM = 500
"""How fast two clocks may part unnoticed: as much as a Linux kernel slews at most (MAXFREQ in its timex.h)."""
DATE_RESOLUTION_NS = NS_PER_S
HELD_DATE_NS = {"uvicorn": NS_PER_S}
"""Servers that write Date once a second and hand it out until the next time, by the beginning of their Server header.
uvicorn: Server.on_tick in its server.py. vLLM and SGLang are such servers."""
PARTS_PER_MILLION = 1_000_000


class ClockOffset:
    """Bounds from one source's exchanges. All instants in ns; `asked_ns` and `answered_ns` of one clock of ours."""

    def __init__(self) -> None:
        self._low_ns = 0
        self._high_ns = 0
        self._at_ns: int | None = None
        self.contradictions = 0
        """How often a clock was set, or drifted faster than any clock should."""

    def observe(self, earliest_ns: int, latest_ns: int, asked_ns: int, answered_ns: int) -> None:
        """At some moment between `asked_ns` and `answered_ns` the source's clock was in [earliest_ns, latest_ns]."""
        low_ns, high_ns = earliest_ns - answered_ns, latest_ns - asked_ns
        if low_ns > high_ns:  # our own clock went backwards in between
            return
        # What the exchange told may have been true when it began, and the bounds are of the end of it.
        slack_ns = _drift_ns(answered_ns - asked_ns)
        low_ns, high_ns = low_ns - slack_ns, high_ns + slack_ns
        known = self.bounds_ns(answered_ns)
        if known is not None:
            meet = max(known[0], low_ns), min(known[1], high_ns)
            if meet[0] <= meet[1]:
                low_ns, high_ns = meet
            else:
                self.contradictions += 1
        self._low_ns, self._high_ns, self._at_ns = low_ns, high_ns, answered_ns

    def bounds_ns(self, now_ns: int) -> tuple[int, int] | None:
        """Where its clock minus ours lies at `now_ns`; None before anything was observed."""
        if self._at_ns is None:
            return None
        slack_ns = _drift_ns(now_ns - self._at_ns)
        return self._low_ns - slack_ns, self._high_ns + slack_ns

    def estimate_s(self, now_ns: int) -> tuple[float, float] | None:
        """(offset, error) in seconds: the middle of the bounds, and how far from it the truth may be."""
        bounds = self.bounds_ns(now_ns)
        if bounds is None:
            return None
        return (bounds[0] + bounds[1]) / 2 / NS_PER_S, (bounds[1] - bounds[0]) / 2 / NS_PER_S


def date_bounds_ns(date: str, server: str = "") -> tuple[int, int] | None:
    """What a server's clock was between when it wrote this HTTP Date and when it sent it; None for no date."""
    try:
        stamp_ns = int(parsedate_to_datetime(date).timestamp()) * NS_PER_S
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    held_ns = max((ns for name, ns in HELD_DATE_NS.items() if server.lower().startswith(name)), default=0)
    return stamp_ns, stamp_ns + DATE_RESOLUTION_NS + held_ns


def _drift_ns(span_ns: int) -> int:
    return abs(span_ns) * MAX_DRIFT_PPM // PARTS_PER_MILLION + 1
