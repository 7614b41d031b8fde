# SPDX-License-Identifier: GPL-3.0-or-later
"""State that outlives a request: the contract that every back end keeps (one contract suite runs on all).

Values are small and all expire. Keys are keyed hashes of what they stand for (`Keys`), never addresses. Times are
seconds since the epoch, from the clock that is passed in, so that replay can jump. Everything may raise StoreError,
and no call takes longer than the store's timeout: who calls decides what to do without.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import NamedTuple, Protocol

Clock = Callable[[], float]
"""Seconds since the epoch; time.time in production."""


class StoreError(Exception):
    """The store did not answer in time, is full, read-only, or gone."""


class CounterHit(NamedTuple):
    """One event to count against a sliding window: `amount` more under `key` within the last `window` seconds.

    An `amount` of 0 asks for the sum and writes nothing. How exact the window is: stores/sliding_window.py.

    With a `once` token, the same token counts a single time while the window lasts: a message asked about at
    several SMTP stages, or by several of our processes, is one message.

    A hit that would bring its sum above `most` does not fit, and then nothing of the same call is counted.
    """

    key: str
    window: float
    amount: int = 1
    once: str = ""
    most: int | None = None


class Lease(NamedTuple):
    """A place under `key` that `holder` has for a while: one of at most `most`; None: of any number."""

    key: str
    holder: str
    most: int | None = None


class ReadAhead(NamedTuple):
    """What a check will read if it is asked, told ahead so that one round trip serves a request (read_ahead.py).

    `hits` have an amount of 0: nothing is counted before its check has its turn. With `born` that is read too.
    Announcing too much costs a little, too little a round trip; neither changes an answer.
    """

    gets: Sequence[str] = ()
    hits: Sequence[CounterHit] = ()
    born: bool = False


class StoredValue(NamedTuple):
    """A value as it lies in a store, and for how many seconds more."""

    key: str
    value: bytes
    ttl: float


class Store(Protocol):
    """What checks may ask of a back end."""

    async def ask(self, hits: Sequence[CounterHit], gets: Sequence[str]) -> tuple[list[int], list[bytes | None]]:
        """`hit` and, after it, `get` of every key, in one round trip: the sums and the values, in order."""
        ...

    async def get(self, key: str) -> bytes | None:
        """The value, or None if there is none or it has expired."""
        ...

    async def set(self, key: str, value: bytes, ttl: float, *, absent: bool = False) -> bool:
        """Keep `value` for `ttl` seconds; with `absent` only if there is none. True if written."""
        ...

    async def delete(self, key: str) -> None:
        """Forget the value, if there is one."""
        ...

    async def hit(self, hits: Sequence[CounterHit]) -> list[int]:
        """Count every hit, all or none, and return for each the sum in its window, this hit included.

        If a sum is above the `most` of its hit, none was counted, and the sums are what they would have come to.
        """
        ...

    async def unhit(self, hits: Sequence[CounterHit]) -> None:
        """Give back what `hit` counted just now, for a request that was refused after all."""
        ...

    async def spread(self, hit: CounterHit) -> list[tuple[float, int]]:
        """What the sum of the hit's window is made of: amounts, each with the seconds until it counts no more; the
        soonest first.
        """
        ...

    async def lease(self, leases: Sequence[Lease], ttl: float) -> list[int]:
        """Take every place for `ttl` seconds, all or none, and return for each how many are taken, this one included.

        If one is above the `most` of its lease, none was taken. Who has a place already and asks again has it for
        longer: that is how a lease is renewed. All leases of a key have the same `ttl`.
        """
        ...

    async def release(self, leases: Sequence[Lease]) -> None:
        """Give places back before their time; one that is not taken is no error."""
        ...

    async def page(self, kind: str, after: str = "") -> tuple[list[StoredValue], str]:
        """Some of the values whose keys begin with `kind`, and what to pass as `after` for those that follow: nothing
        at the end. For moving state; what is written meanwhile may come or not, and a value may come twice.
        """
        ...

    async def tally(self, bucket: str, row: bytes, ttl: float, most: int) -> bool:
        """Count one more of `row` (not empty) in `bucket`; False, and nothing counted, if that has `most` other rows.

        A row is kept for `ttl` seconds after it was last counted, and forgotten at the latest `ttl` seconds after
        anything of its bucket was.
        """
        ...

    async def tallies(self, bucket: str) -> dict[bytes, int]:
        """How often each row of `bucket` was counted."""
        ...

    async def born(self) -> float:
        """When this store was first opened empty: greylisting's learning period starts here.

        Asks the store each time: one that was emptied while we run learns anew.
        """
        ...

    async def secret(self) -> bytes:
        """The key of the keyed hashes: 32 random bytes that all who share this store share.

        Answered from memory most of the time. Ask for every request instead of keeping it: when a store is emptied
        and begun anew by another process, the secret changes (stores/shared_values.py).
        """
        ...

    async def close(self) -> None:
        """Let go of connections and files."""
        ...


class Keys:
    """Makes store keys: `keys("greylist", client, sender, recipient)`. Hashable, and equal where its keys are.

    `prefix` keeps the state of checks in observe mode apart from the real one.
    """

    __slots__ = ("_hash", "_start", "prefix", "secret")

    def __init__(self, secret: bytes, prefix: str = "") -> None:
        self.secret = secret
        self.prefix = prefix
        self._hash = hash((secret, prefix))
        self._start = blake2b(key=secret, digest_size=16)  # copied for each key: half the time of a new one

    def __call__(self, kind: str, *parts: str) -> str:
        """The key for `parts`: a 128-bit keyed BLAKE2b under a readable kind; no part can run into the next."""
        digest = self._start.copy()
        digest.update("".join([f"{len(part)}:{part}" for part in parts]).encode("utf-8", "surrogateescape"))
        return f"{self.prefix}{kind}:{digest.hexdigest()}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keys) and (self.secret, self.prefix) == (other.secret, other.prefix)

    def __hash__(self) -> int:
        return self._hash
