# SPDX-License-Identifier: GPL-3.0-or-later
"""A timer for less than a millisecond, which is the least that uvloop's can count; what is shorter, those call at once.

A timerfd(2) that the event loop reads. Python has these from 3.13 on; until then the C library is called. Where there
is none, the loop's own timer has to do.
"""

import asyncio
import ctypes
import os
from collections.abc import Callable

_LEAST = 0.001
"""Seconds that any event loop can count."""


class ShortTimer:
    """Calls `ring` on this event loop, some seconds after each `set`."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ring = ring
        self._c = ctypes.CDLL(None)
        self._when = (ctypes.c_long * 4)()  # struct itimerspec: again after s and ns, once after s and ns
        self._descriptor = -1
        if hasattr(self._c, "timerfd_create"):
            self._descriptor = self._c.timerfd_create(1, os.O_NONBLOCK | os.O_CLOEXEC)  # 1: CLOCK_MONOTONIC
        if self._descriptor >= 0:
            self._loop.add_reader(self._descriptor, self._rings)

    def set(self, seconds: float) -> None:
        """Ring once, `seconds` (less than one) from now."""
        if self._descriptor < 0:
            self._loop.call_later(max(seconds, _LEAST), self._ring)
        else:
            self._when[3] = int(seconds * 1e9)
            self._c.timerfd_settime(self._descriptor, 0, ctypes.byref(self._when), None)

    def close(self) -> None:
        """Let go of the descriptor; what was set does not ring any more."""
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _rings(self) -> None:
        try:
            os.read(self._descriptor, 8)
        except BlockingIOError:  # it was set anew in between
            return
        self._ring()
