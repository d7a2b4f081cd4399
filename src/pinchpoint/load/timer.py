"""A timer finer than epoll's millisecond: Linux timerfd, armed with absolute monotonic instants.

Where timerfd does not exist, the caller's poll timeout is all there is, and send lag shows what that costs.
"""

import ctypes
import os
import struct
import sys
import time

from pinchpoint.clock import NS_PER_S

_TFD_TIMER_ABSTIME = 1
_TFD_NONBLOCK = 0o4000
_TFD_CLOEXEC = 0o2000000
_ITIMERSPEC = struct.Struct("qqqq")


class AbsoluteTimer:
    """File descriptor that becomes readable at an instant. `fd` is None where the kernel has no timerfd."""

    def __init__(self) -> None:
        self.fd: int | None = None
        self._armed_ns = 0
        if not sys.platform.startswith("linux"):
            return
        self._libc = ctypes.CDLL(None, use_errno=True)
        fd = self._libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if fd >= 0:
            self.fd = fd

    def arm(self, at_ns: int) -> None:
        """Fires at `at_ns` (monotonic); an instant in the past fires at once."""
        if self.fd is None or at_ns == self._armed_ns:
            return
        self._armed_ns = at_ns
        at_ns = max(at_ns, 1)  # zero would disarm
        seconds, nanoseconds = divmod(at_ns, NS_PER_S)
        self._libc.timerfd_settime(self.fd, _TFD_TIMER_ABSTIME, _ITIMERSPEC.pack(0, 0, seconds, nanoseconds), None)

    def clear(self) -> None:
        """Takes note that it fired."""
        self._armed_ns = 0
        if self.fd is not None:
            try:
                os.read(self.fd, 8)
            except BlockingIOError:
                return

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
