# SPDX-License-Identifier: GPL-3.0-or-later
"""What greylisting keeps in the store: its keys and values.

A triplet's value is `first TIME` while it waits and `known TIME` once it has passed, in seconds since the epoch; a
client that is known as a whole has a value of its own. Makes no decisions: greylist.py does, and import-postgrey fills
the store.
"""

from functools import lru_cache
from typing import NamedTuple, Self

from gatekeeper.checks.greylisting.verp import postgrey_sender
from gatekeeper.core.stored_time import age
from gatekeeper.stores.store import CounterHit, Keys, Store

_FIRST_SEEN, _KNOWN = b"first ", b"known "


class ClientIdentity(NamedTuple):
    """One identity of a client, its network or a domain that SPF authorizes it for, and the store keys for it."""

    triplet: str
    imported: str
    """The triplet as postgrey would have kept it, where that differs; else empty."""
    allowed: str
    """The key that has a value if the client is known as a whole."""
    name: str
    lifetime: float
    keys: Keys

    @classmethod
    def of(cls, keys: Keys, name: str, sender: str, recipient: str, lifetime: float) -> Self:
        """Return the identity for a network or a domain; `sender` is from normal_sender(), `lifetime` in seconds."""
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
        """The counter hit that counts the triplet for its client once it has passed."""
        return CounterHit(self.keys("greylist-passed", self.name), self.lifetime, once=self.triplet)

    @property
    def reads(self) -> tuple[str, ...]:
        """All keys that may be read."""
        return (self.triplet, self.allowed, self.imported) if self.imported else (self.triplet, self.allowed)


@lru_cache(maxsize=4096)  # most clients send more than once
def _allowed(keys: Keys, name: str) -> str:
    return keys("greylist-allowed", name)


class TripletState(NamedTuple):
    """What the store knows about a triplet; times are in seconds since the epoch."""

    identity: ClientIdentity
    known: float | None
    """When it was last recorded that the triplet is known."""
    first: float | None
    """When the triplet was first seen, if it still waits."""
    allowed: bool
    """Whether the client is known as a whole."""

    def waited(self, now: float) -> float:
        """Return for how many seconds the triplet has waited; 0 if it is new, or was first seen in the future."""
        return 0.0 if self.first is None else age(now, self.first)


def known_value(now: float) -> bytes:
    """Return the value of a triplet or client that has passed; `now` is in seconds since the epoch."""
    return _KNOWN + str(int(now)).encode()


def first_value(now: float) -> bytes:
    """Return the value of a triplet first seen `now`, in seconds since the epoch."""
    return _FIRST_SEEN + str(int(now)).encode()


async def read_state(identity: ClientIdentity, store: Store) -> TripletState:
    """Return what the store knows about a triplet, read in one round trip. Raises StoreError."""
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
    """Return the time in a triplet's value; a damaged value counts as 0, the beginning of time."""
    digits = value[len(_KNOWN) :]
    return float(digits) if digits.isdigit() else 0.0
