# SPDX-License-Identifier: GPL-3.0-or-later
"""Timer for less than a millisecond, the resolution of uvloop's own timers, which fire at once for anything shorter.

It is a timerfd(2) that the event loop reads. Python has these from 3.13 on; until then the C library is called. Where
there is no timerfd, the loop's own timer has to do.
"""

import asyncio
import ctypes
import os
from collections.abc import Callable

_LOOP_RESOLUTION = 0.001
"""The shortest delay, in seconds, that every event loop supports."""


class ShortTimer:
    """Calls `callback` on this event loop, some seconds after each `set`."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._callback = callback
        self._c = ctypes.CDLL(None)
        self._itimerspec = (ctypes.c_long * 4)()  # struct itimerspec: interval in s and ns, first expiry in s and ns
        self._descriptor = -1
        if hasattr(self._c, "timerfd_create"):
            self._descriptor = self._c.timerfd_create(1, os.O_NONBLOCK | os.O_CLOEXEC)  # 1: CLOCK_MONOTONIC
        if self._descriptor >= 0:
            self._loop.add_reader(self._descriptor, self._expired)

    def set(self, seconds: float) -> None:
        """Fire once, `seconds` (less than one) from now."""
        if self._descriptor < 0:
            self._loop.call_later(max(seconds, _LOOP_RESOLUTION), self._callback)
        else:
            self._itimerspec[3] = int(seconds * 1e9)
            self._c.timerfd_settime(self._descriptor, 0, ctypes.byref(self._itimerspec), None)

    def close(self) -> None:
        """Close the descriptor; a timer that was set no longer fires."""
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _expired(self) -> None:
        try:
            os.read(self._descriptor, 8)
        except BlockingIOError:  # it was set again in between
            return
        self._callback()
