# SPDX-License-Identifier: GPL-3.0-or-later
"""The sliding window that all back ends share: time is cut into slots of 1/60 of the window, each with a sum.

An event counts in its slot, and the slot counts until it lies wholly outside the window. So an event counts for at
least the window and at most 1/60 longer: a limit is never exceeded within any stretch of time as long as the window,
and memory for a key is bounded (61 sums), however often it is hit. Nothing is estimated.

A `once` token remembers the slot it was counted in and counts for nothing while that slot does. Slots more than a
window ahead are those of a clock that was wrong and has been put right: they do not count either.
"""

from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

from gatekeeper.stores.store import CounterHit

SLOTS = 60


class SlotPosition(NamedTuple):
    """Where a hit goes: `name` is its key and window in one, `token` is empty without a `once`; `ttl` is in seconds,
    after which nothing of it matters; its sum may come to `most`. Slots from `first` to `last` count, `slot` is now.
    """

    name: str
    token: str
    slot: int
    amount: int
    ttl: float
    most: float

    @property
    def first(self) -> int:
        return self.slot - SLOTS

    @property
    def last(self) -> int:
        return self.slot + SLOTS


def name_of(hit: CounterHit) -> str:
    """What the sums of a hit are kept under: two windows of a key are two sums."""
    return f"{hit.key}/{float(hit.window)}"


def slot_position(hit: CounterHit, now: float) -> SlotPosition:
    """The place of `hit` at `now` (seconds since the epoch)."""
    _, window, amount, once, most = hit
    width, name = window / SLOTS, name_of(hit)
    token = f"{name}/{_token(once)}" if once else ""
    return SlotPosition(name, token, int(now // width), amount, window + width, _NO_LIMIT if most is None else most)


_NO_LIMIT = float("inf")


@lru_cache(maxsize=64)  # several limits count one message
def _token(once: str) -> str:
    """What a token is made of is not ours to keep, nor its length ours to trust."""
    return blake2b(once.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()


def spread(hit: CounterHit, now: float, sums: Mapping[int, int]) -> list[tuple[float, int]]:
    """See store.Store.spread, for the sums by slot that a back end has under the hit's name."""
    at, width = slot_position(hit, now), hit.window / SLOTS
    return [
        ((slot + SLOTS + 1) * width - now, sums[slot])
        for slot in sorted(sums)
        if at.first <= slot <= at.last and sums[slot]
    ]
