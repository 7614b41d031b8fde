# SPDX-License-Identifier: GPL-3.0-or-later
"""One timeout for many tasks, as `asyncio.timeout` for each would be.

All tasks have the same time limit, so a single timer is enough, which saves 10 µs per request.

A process that got no CPU finds all timers due at once, while the answers that its tasks wait for lie unread in their
sockets. So a task whose time is over has one second more of a loop that turns.
"""

import asyncio

GRACE = 1.0
"""Seconds between the end of a task's time and its being cancelled."""


class SharedDeadline:
    """Cancels a task that takes more than `seconds` and GRACE from `begin` to `end`; `has_timed_out` tells it why."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._grace = min(GRACE, seconds)
        self._ends: dict[asyncio.Task[None], float] = {}  # the earliest first
        self._overdue: dict[asyncio.Task[None], asyncio.TimerHandle] = {}
        self._timed_out: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, task: asyncio.Task[None]) -> None:
        """Start the task's time. Must be called on the task's event loop."""
        loop = task.get_loop()
        end = self._ends[task] = loop.time() + self.seconds
        if self._timer is None:
            self._timer = loop.call_at(end, self._find_late_tasks, loop)

    def end(self, task: asyncio.Task[None]) -> None:
        """Stop the task's time."""
        if self._ends.pop(task, None) is None:
            self._timed_out.discard(task)
            if (timer := self._overdue.pop(task, None)) is not None:
                timer.cancel()

    def has_timed_out(self, task: asyncio.Task[None]) -> bool:
        """Return True if the task was cancelled because its time was over, and may continue.

        To be called once, by the task itself, when it receives CancelledError.
        """
        if task not in self._timed_out:
            return False
        self._timed_out.discard(task)
        return task.uncancel() == 0

    def _find_late_tasks(self, loop: asyncio.AbstractEventLoop) -> None:
        """Give the tasks whose time is over their last second, and set the timer for the next one."""
        self._timer = None
        for task, end in tuple(self._ends.items()):
            if end > loop.time():
                self._timer = loop.call_at(end, self._find_late_tasks, loop)
                return
            del self._ends[task]
            self._overdue[task] = loop.call_later(self._grace, self._cancel, task)

    def _cancel(self, task: asyncio.Task[None]) -> None:
        del self._overdue[task]
        self._timed_out.add(task)
        task.cancel()
