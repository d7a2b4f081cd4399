"""A timer of an event loop that is on time: event loops round their own up to a millisecond, Linux's timerfd does not.

Tokens that always come half a millisecond late would be visible in every gap between tokens.
"""

import asyncio
import ctypes
import os
import sys
from collections.abc import Callable

from pinchpoint.clock import NS_PER_S, monotonic_ns

# linux/timerfd.h, linux/time.h
CLOCK_MONOTONIC = 1
TFD_NONBLOCK = os.O_NONBLOCK
TFD_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
TFD_TIMER_ABSTIME = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("s", ctypes.c_long), ("ns", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Timer:
    """Calls `callback` from the loop, once for each `arm`, at an instant of the monotonic clock."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self.armed_ns: int | None = None
        """When it will call; None: it is not armed."""
        self._handle: asyncio.TimerHandle | None = None
        self._fd = -1
        if sys.platform == "linux":
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._fd = self._libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
            self._spec = _Itimerspec()
            self._spec_at = ctypes.byref(self._spec)
        if self._fd >= 0:
            loop.add_reader(self._fd, self._fire)

    def arm(self, at_ns: int) -> None:
        """Replaces the instant of an earlier call. One in the past is now."""
        if at_ns == self.armed_ns:
            return
        self.armed_ns = at_ns
        if self._fd < 0:
            if self._handle is not None:
                self._handle.cancel()
            delay_s = max(0, at_ns - monotonic_ns()) / NS_PER_S
            self._handle = self._loop.call_later(delay_s, self._fire)
            return
        value = self._spec.value
        value.s, value.ns = divmod(max(1, at_ns), NS_PER_S)  # all zero would disarm it
        self._libc.timerfd_settime(self._fd, TFD_TIMER_ABSTIME, self._spec_at, None)

    def disarm(self) -> None:
        """What was armed is forgotten, though a call that is on its way may still come."""
        self.armed_ns = None

    def close(self) -> None:
        self.armed_ns = None
        if self._handle is not None:
            self._handle.cancel()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _fire(self) -> None:
        if self._fd >= 0:
            try:
                os.read(self._fd, 8)
            except BlockingIOError:  # armed again since the loop saw it
                return
        if self.armed_ns is not None:
            self.armed_ns = None
            self._callback()
