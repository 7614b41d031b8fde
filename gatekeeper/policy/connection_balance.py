# SPDX-License-Identifier: GPL-3.0-or-later
"""Balance long-lived connections evenly among the policy workers, by counts in memory that all of them share.

A new connection wakes all workers that wait on the listening socket, and the fastest accepts it, which is the one with
the least to do at that moment: eight connections were distributed 7 to 1. So a worker that holds more connections than
another lets that one go first. Counts are hints: a wrong one costs a millisecond, never a connection. No locks: each
worker only writes its own slot.
"""

import mmap
from dataclasses import dataclass

_EMPTY = 0xFFFFFFFF


class ConnectionBalance:
    """Shared slots for `workers` processes, created before they are forked."""

    def __init__(self, workers: int) -> None:
        self._counts = memoryview(mmap.mmap(-1, 4 * max(workers, 1))).cast("I")
        for index in range(len(self._counts)):
            self.clear(index)

    def clear(self, index: int) -> None:
        """Mark a slot as unused: its worker has ended."""
        self._counts[index] = _EMPTY

    def slot(self, index: int) -> "BalanceSlot":
        """Return the slot of one worker."""
        return BalanceSlot(self._counts, index)


@dataclass(frozen=True, slots=True)
class BalanceSlot:
    """One worker's slot among those of the others."""

    counts: "memoryview[int]"
    index: int

    def set_count(self, connections: int) -> None:
        """Publish how many connections this worker holds."""
        self.counts[self.index] = connections

    def has_most(self) -> bool:
        """Return True if another worker holds fewer connections."""
        return self.counts[self.index] > min(self.counts)
