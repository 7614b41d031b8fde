# SPDX-License-Identifier: GPL-3.0-or-later
"""What the store remembers for greylisting, under which keys, and what a value says.

A triplet's value is `first TIME` while it waits and `known TIME` once it has passed, in seconds since the epoch; a
client that is known as a whole has a value of its own. Knows no policy: greylist.py decides, import-postgrey fills in.
"""

from functools import lru_cache
from typing import NamedTuple, Self

from gatekeeper.checks.greylisting.verp import postgrey_sender
from gatekeeper.stores.store import CounterHit, Keys, Store

_FIRST_SEEN, _KNOWN = b"first ", b"known "


class ClientIdentity(NamedTuple):
    """What a client may be known as, its network or the domain that SPF lets it speak for, and the keys of that."""

    triplet: str
    imported: str
    """The triplet as postgrey would have kept it, where that differs; else empty."""
    allowed: str
    """Holds a value if the client is known as a whole."""
    name: str
    lifetime: float
    keys: Keys

    @classmethod
    def of(cls, keys: Keys, name: str, sender: str, recipient: str, lifetime: float) -> Self:
        """For a network or a domain; `sender` as normal_sender() has it, `lifetime` in seconds."""
        recipient, postgrey = recipient.lower(), postgrey_sender(sender)
        return cls(
            keys("greylist", name, sender, recipient),
            keys("greylist", name, postgrey, recipient) if postgrey != sender else "",
            _allowed(keys, name),
            name,
            lifetime,
            keys,
        )

    @property
    def passed(self) -> CounterHit:
        """Counts the triplet for the client, once it has passed."""
        return CounterHit(self.keys("greylist-passed", self.name), self.lifetime, once=self.triplet)

    @property
    def reads(self) -> tuple[str, ...]:
        """All that may be read."""
        return (self.triplet, self.allowed, self.imported) if self.imported else (self.triplet, self.allowed)


@lru_cache(maxsize=4096)  # who sends once sends again
def _allowed(keys: Keys, name: str) -> str:
    return keys("greylist-allowed", name)


class TripletState(NamedTuple):
    """What the store says of a triplet. Times in seconds since the epoch."""

    identity: ClientIdentity
    known: float | None
    """When it was last written down that the triplet is known."""
    first: float | None
    """Since when it waits."""
    allowed: bool

    def waited(self, now: float) -> float:
        """Seconds; 0 for one that comes for the first time, and if the clock was put back."""
        return 0.0 if self.first is None else max(0.0, now - self.first)


def known_value(now: float) -> bytes:
    """What is kept for a triplet or client that has passed; `now` in seconds since the epoch."""
    return _KNOWN + str(int(now)).encode()


def first_value(now: float) -> bytes:
    """What is kept for a triplet that waits since `now`."""
    return _FIRST_SEEN + str(int(now)).encode()


async def see(identity: ClientIdentity, store: Store) -> TripletState:
    """What the store says of a triplet, in one question. Raises StoreError."""
    _, [triplet, allowed, *imported] = await store.hit_and_get((), identity.reads)
    known = first = None
    for value in (triplet, *imported):
        if value is None:
            continue
        if value.startswith(_KNOWN):
            known = max(_time(value), known or 0.0)
        else:
            first = _time(value) if first is None else min(_time(value), first)
    return TripletState(identity, known, first, allowed is not None)


def _time(value: bytes) -> float:
    """The time in a triplet's value; a damaged one counts as the beginning of time."""
    digits = value[len(_KNOWN) :]
    return float(digits) if digits.isdigit() else 0.0
