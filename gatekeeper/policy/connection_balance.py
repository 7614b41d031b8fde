# SPDX-License-Identifier: GPL-3.0-or-later
"""How many connections each policy worker holds, in memory that all of them see: lasting connections are shared evenly.

Workers that wait on one listening socket are all woken by a connection, and the quickest takes it, which is the one
that has least to do just then: eight connections fell 7 to 1. Who holds more than another lets it go first. Counts are
hints: a wrong one costs a millisecond, never a connection. No locks: each worker writes its own seat.
"""

import mmap
from dataclasses import dataclass

_VACANT = 0xFFFFFFFF


class ConnectionBalance:
    """Seats for `workers` processes, made before they are forked."""

    def __init__(self, workers: int) -> None:
        self._counts = memoryview(mmap.mmap(-1, 4 * max(workers, 1))).cast("I")
        for number in range(len(self._counts)):
            self.vacate(number)

    def vacate(self, number: int) -> None:
        """Nobody sits there: its worker has ended."""
        self._counts[number] = _VACANT

    def seat(self, number: int) -> "BalanceSlot":
        """The seat of one worker."""
        return BalanceSlot(self._counts, number)


@dataclass(frozen=True, slots=True)
class BalanceSlot:
    """One worker's place among the others."""

    counts: "memoryview[int]"
    number: int

    def hold(self, connections: int) -> None:
        """Tell the others how many connections this worker holds."""
        self.counts[self.number] = connections

    def has_most(self) -> bool:
        """True if another worker holds fewer connections."""
        return self.counts[self.number] > min(self.counts)
