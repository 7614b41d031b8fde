# SPDX-License-Identifier: GPL-3.0-or-later
"""What a reload was refused for, told again each hour until one is made.

What is in force grows old meanwhile, and one line in the log is soon out of sight.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gatekeeper.core.units import duration_text

AGAIN = 3600.0
"""Seconds after which a refusal is told again."""
_MAX_TOLD = 20


@dataclass(slots=True)
class RefusedReload:
    """The mistakes for which the last reload was refused; none if it was made. Times are monotonic, in seconds."""

    mistakes: Sequence[str] = ()
    _since: float = 0.0
    _due: float = 0.0

    def refuse(self, mistakes: Sequence[str], now: float) -> None:
        """Remember why a reload was refused, which has just been told."""
        if not self.mistakes:
            self._since = now
        self.mistakes, self._due = mistakes, now + AGAIN

    def made(self) -> None:
        """Forget what was refused: what was read now is in force."""
        self.mistakes = ()

    def reminders(self, now: float) -> Iterator[str]:
        """Yield the lines to be told again, once it is time."""
        if not self.mistakes or now < self._due:
            return
        self._due = now + AGAIN
        hours = duration_text(AGAIN * max(1, (now - self._since) // AGAIN))
        for mistake in self.mistakes[:_MAX_TOLD]:
            yield f"a reload is still refused, after {hours}: {mistake}"
        if len(self.mistakes) > _MAX_TOLD:
            yield f"and {len(self.mistakes) - _MAX_TOLD} more"
