# SPDX-License-Identifier: GPL-3.0-or-later
"""Sliding-window counters, as all back ends keep them: time is divided into slots of 1/60 of the window.

Each slot has a sum. An event is added to its slot, which counts until it lies wholly outside the window. So an event
counts for at least the window and at most 1/60 longer: a limit is never exceeded within any period as long as the
window, and memory for a key is bounded (61 sums), however often it is hit. Nothing is estimated.

A `once` token is stored with the slot in which it was counted, and is not counted again while that slot counts.

A slot in the future comes from a clock that was ahead and has been corrected (core/stored_time.py). The next hit moves
what it has into the present slot, also if that hit does not fit, so that it counts for one window from then on and not
until the clock has caught up. One that is more than a window ahead says nothing of the present: it does not count, and
is dropped. Relays whose clocks differ by less than a slot and a second leave each other's slots alone.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

from gatekeeper.core.stored_time import TOLERANCE
from gatekeeper.stores.store import CounterHit

SLOTS = 60


class SlotPosition(NamedTuple):
    """Where a hit is counted.

    `name` combines its key and window, `token` is empty without a `once`; after `ttl` seconds nothing of it matters;
    its sum may reach `limit`. Slots from `first` to `last` count, `slot` is the current one.
    """

    name: str
    token: str
    slot: int
    amount: int
    ttl: float
    limit: float

    @property
    def first(self) -> int:
        return self.slot - SLOTS

    @property
    def last(self) -> int:
        return self.slot + SLOTS

    @property
    def newest(self) -> int:
        """The last slot that is not in the future."""
        return self.slot + 1 + int(TOLERANCE * (SLOTS + 1) / self.ttl)


def window_name(hit: CounterHit) -> str:
    """Return the name under which the sums of a hit are stored: two windows of one key have separate sums."""
    return f"{hit.key}/{float(hit.window)}"


def slot_position(hit: CounterHit, now: float) -> SlotPosition:
    """Return the position of `hit` at `now` (seconds since the epoch)."""
    _, window, amount, once, limit = hit
    width, name = window / SLOTS, window_name(hit)
    token = f"{name}/{_token_digest(once)}" if once else ""
    return SlotPosition(name, token, int(now // width), amount, window + width, _NO_LIMIT if limit is None else limit)


_NO_LIMIT = float("inf")


@lru_cache(maxsize=64)  # several limits count one message
def _token_digest(once: str) -> str:
    """Hash a token: its content is not ours to store, and its length is not to be trusted."""
    return blake2b(once.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()


def future_slots(slots: Iterable[int], position: SlotPosition) -> list[int]:
    """Return those of `slots` that are in the future: what they have is moved into the present one, if it counts."""
    newest = position.newest
    return [slot for slot in slots if slot > newest]


def expirations(hit: CounterHit, now: float, sums: Mapping[int, int]) -> list[tuple[float, int]]:
    """Return what store.Store.expirations does, from the sums by slot that a back end has under the hit's name."""
    position, width = slot_position(hit, now), hit.window / SLOTS
    return sorted(
        (((slot if slot <= position.newest else position.slot) + SLOTS + 1) * width - now, amount)
        for slot, amount in sums.items()
        if position.first <= slot <= position.last and amount
    )
