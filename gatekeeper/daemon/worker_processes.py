# SPDX-License-Identifier: GPL-3.0-or-later
"""The worker processes as the parent sees them: who they are, which of them hang, and which have been retired too long.

Retired generations are capped. Each reload leaves one behind that lives as long as its sessions do; of these the
newest RETIRED_GENERATIONS stay, and an older one is told to leave, has the seconds of a stop for what it holds, and is
then killed. A further reload waits while more are on their way out, so that no number of reloads is a number of
processes.
"""

import socket
from collections.abc import Iterable
from dataclasses import dataclass, field

from gatekeeper.daemon.endpoints import Endpoint
from gatekeeper.daemon.vital_signs import Look, look_at, why_hanging
from gatekeeper.daemon.worker import WorkerKind

RETIRED_GENERATIONS = 2
"""How many generations of retired workers may live on with the sessions that they hold."""
SILENCE = 4.5
"""Seconds without a sign of life after which the parent looks what a worker does: two signs are missing."""
_WATCHED = 2.0
"""Seconds that a worker has to hang under the parent's eyes before it is killed."""
_NEXT_LOOK = 1.5
"""Seconds between two looks at most: else the parent itself was away, and what it saw before says nothing."""


@dataclass(frozen=True, slots=True)
class Post:
    """What a worker does; who replaces it has the same post. `slot` tells those apart that do the same."""

    kind: WorkerKind
    endpoints: tuple[Endpoint, ...]
    slot: int = 0

    def shares_with(self, other: "Post") -> bool:
        """Whether both serve an address together."""
        return not set(self.endpoints).isdisjoint(other.endpoints)


@dataclass(slots=True, eq=False)
class WorkerProcess:
    """One worker process. Times are of the monotonic clock."""

    post: Post
    generation: int
    pid: int
    control: socket.socket
    started: float
    last_heard: float
    ready: bool = False
    retired: bool = False
    stopped: bool = False  # it has been told to stop
    leave_by: float | None = None  # when it is killed, since it has been told to leave
    _looks: list[tuple[float, Look]] = field(default_factory=list)

    def heard(self, now: float) -> None:
        """Note a sign of life."""
        self.last_heard = now
        self._looks.clear()

    def why_hanging(self, now: float) -> str:
        """Look at a worker that is silent, and say in what way it hangs; empty as long as that is not certain."""
        if not self.is_silent(now) or (look := look_at(self.pid)) is None:
            return ""
        if self._looks and now - self._looks[-1][0] > _NEXT_LOOK:
            self._looks.clear()
        self._looks = [*self._looks[:1], (now, look)]
        since, first = self._looks[0]
        return why_hanging(first, look) if now - since >= _WATCHED else ""

    def is_silent(self, now: float) -> bool:
        """Whether signs of life are missing from a worker that has given some."""
        return self.ready and now - self.last_heard > SILENCE


def surplus(workers: Iterable[WorkerProcess]) -> list[WorkerProcess]:
    """Return the workers of all retired generations but the newest ones."""
    retired = [worker for worker in workers if worker.retired]
    kept = sorted({worker.generation for worker in retired}, reverse=True)[:RETIRED_GENERATIONS]
    return [worker for worker in retired if worker.generation not in kept]


def is_crowded(workers: Iterable[WorkerProcess]) -> bool:
    """Return whether a further generation has to wait until one has left."""
    return len({worker.generation for worker in surplus(workers)}) > 1
