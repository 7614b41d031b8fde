# SPDX-License-Identifier: GPL-3.0-or-later
"""When a worker that died is started again: each by its own record, and soon where nobody else does its work.

A worker that keeps dying is started after a pause that doubles, so that it does not keep the machine busy; but while
no other of its kind serves its addresses, a pause costs mail, and is a second at most.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

LONGEST_PAUSE = 30.0
"""Seconds to wait at most before a worker that keeps dying is started again."""
LONGEST_PAUSE_ALONE = 1.0
"""The same while no other serves its addresses."""

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class _Restart(Generic[P]):
    post: P
    since: float
    failures: int

    def due(self, *, alone: bool) -> float:
        pause = min(LONGEST_PAUSE, 2.0**self.failures) if self.failures else 0.0
        if alone:  # the first at once
            pause = min(pause, LONGEST_PAUSE_ALONE, 2.0**self.failures / 8 - 0.25)
        return self.since + max(0.0, pause)


@dataclass(slots=True)
class Restarts(Generic[P]):
    """The posts to be filled again; times are of the monotonic clock."""

    _waiting: list[_Restart[P]] = field(default_factory=list)
    _failures: dict[P, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, post: P, now: float, *, quick: bool) -> None:
        """Have `post` filled again: now, or after a pause if who had it ended too `quick`ly."""
        failures = min(self._failures.get(post, 0) + 1, 10) if quick else 0
        self._failures[post] = failures
        self._waiting.append(_Restart(post, now, failures))

    def soonest(self, is_alone: Callable[[P], bool]) -> float | None:
        """When the next is due; `is_alone` says whether nobody else does the work of a post."""
        return min((one.due(alone=is_alone(one.post)) for one in self._waiting), default=None)

    def take_due(self, now: float, is_alone: Callable[[P], bool]) -> list[P]:
        """Return the posts that are to be filled now, and forget them."""
        due = [one for one in self._waiting if one.due(alone=is_alone(one.post)) <= now]
        self._waiting = [one for one in self._waiting if one not in due]
        return [one.post for one in due]

    def put_off(self) -> None:
        """Forget what waits: there is to be no restart."""
        self._waiting.clear()

    def forgive(self) -> None:
        """Forget what waits and every failure: new workers with a new plan have no record."""
        self._waiting.clear()
        self._failures.clear()
