# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts by keys of which a log may hold any number: exact up to a bound, then without the rarest."""

from collections import Counter
from typing import Generic, TypeVar

K = TypeVar("K")
LIMIT = 20_000


class Tops(Generic[K]):
    """Counts of keys. Beyond LIMIT keys the rarer half goes into `others`, so what is frequent stays nearly exact."""

    def __init__(self) -> None:
        self.counts: Counter[K] = Counter()
        self.others = 0

    def add(self, key: K, count: int = 1) -> None:
        """Count `key`."""
        self.counts[key] += count
        if len(self.counts) > LIMIT:
            kept = self.counts.most_common(LIMIT // 2)
            self.others += self.counts.total() - sum(count for _, count in kept)
            self.counts = Counter(dict(kept))

    def most_common(self, number: int | None = None) -> list[tuple[K, int]]:
        """Return the most frequent keys with their counts."""
        return self.counts.most_common(number)

    @property
    def total(self) -> int:
        """How often anything was counted."""
        return self.counts.total() + self.others
