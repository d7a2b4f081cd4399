"""How long the load loop lets tokens gather before it looks at its sockets.

Waking up costs several times what reading a token does, tokens of a batch come in bursts, and the kernel's stamps do
not mind when they are read. So with many streams the loop naps for a moment when the first of them has come. No request
is sent later for it: there is no nap shortly before one is due, while a connection opens, or shortly after an answer
has ended, when a closed loop may want its next answer soon.
"""

from pinchpoint.clock import NS_PER_S

NAP_MAX_NS = 2_000_000
"""Measured at 50 streams of 100 tokens/s: 9 to 11 us CPU per token with naps of 2 ms, 13 to 15 with 0.3 ms."""
NAP_MIN_NS = 500_000
"""A shorter one costs more than it saves."""
GAP_RATIO = 0.2
"""Of the mean time between two tokens of one stream: so long a nap does not put two of them into one read."""
EVENTS_PER_S = 1000
"""With fewer, being awake for each costs a few hundredths of a core."""
CALM_NS = 5_000_000
"""Without an end for so long, answers are streams that last: those of a fast service end all the time."""
WINDOW_NS = NS_PER_S // 20
EVENTS_MAX = 32
"""With more at once there is nothing to gain, and the loop has work enough."""


class Gathering:
    """nap_ns: the length of a nap, 0 for none. events and last_end_ns are kept by the loop."""

    def __init__(self, now_ns: int) -> None:
        self.nap_ns = 0
        self.events = 0
        self.last_end_ns = 0
        """When a request ended last."""
        self._since_ns = now_ns

    def choose(self, now_ns: int, streams: int) -> None:
        """Long enough to be worth it, short against the time between two tokens of one stream."""
        elapsed_ns = now_ns - self._since_ns
        if elapsed_ns < WINDOW_NS:
            return
        events, self.events, self._since_ns = self.events, 0, now_ns
        self.nap_ns = 0
        if events * NS_PER_S > EVENTS_PER_S * elapsed_ns:
            nap_ns = min(int(GAP_RATIO * streams * elapsed_ns / events), NAP_MAX_NS)
            self.nap_ns = nap_ns if nap_ns >= NAP_MIN_NS else 0
