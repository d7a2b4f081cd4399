"""Clocks: monotonic for every stored instant, wall for people, and the offset kernel stamps need.

The kernel stamps received packets with CLOCK_REALTIME. That clock may be stepped (NTP), so the offset to
CLOCK_MONOTONIC is measured again and again during a run and each stamp is converted with the newest offset.
"""

import time

NS_PER_S = 1_000_000_000


def monotonic_ns() -> int:
    return time.monotonic_ns()


def realtime_offset_ns(samples: int = 5) -> tuple[int, int]:
    """CLOCK_REALTIME minus CLOCK_MONOTONIC and the uncertainty of that difference, both in ns.

    Each sample brackets one wall reading between two monotonic readings; the tightest bracket wins, and half of
    its width bounds the error (Cristian 1989).
    """
    best_offset_ns, best_width_ns = 0, 1 << 62
    for _ in range(samples):
        before_ns = time.monotonic_ns()
        wall_ns = time.time_ns()
        after_ns = time.monotonic_ns()
        width_ns = after_ns - before_ns
        if width_ns < best_width_ns:
            best_width_ns = width_ns
            best_offset_ns = wall_ns - (before_ns + width_ns // 2)
    return best_offset_ns, best_width_ns // 2 + 1
