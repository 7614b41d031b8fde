# SPDX-License-Identifier: GPL-3.0-or-later
"""The store contract, for state that outlives a request. Every back end keeps it, and one test suite runs on all.

Values are small and all expire. Keys are keyed hashes of what they stand for (`Keys`), never addresses. Times are
seconds since the epoch, from the clock that is passed in, so that replay can jump. Every call may raise StoreError,
and none takes longer than the store's timeout: the caller decides how to go on without the store.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import NamedTuple, Protocol

Clock = Callable[[], float]
"""Seconds since the epoch; time.time in production."""


class StoreError(Exception):
    """The store did not answer in time, is full, read-only, or gone.

    StoreBusy
    StoreDamaged
    """


class StoreBusy(StoreError):
    """Others kept this one call waiting for too long. The store is well: the next call may go at once."""


class StoreDamaged(StoreError):
    """What is stored cannot be read. Trying again is of no use while `is_unchanged()`, which is quick and never fails.

    Such a store is left as it is, for a person to look at: `gatekeeper state check`.
    """

    def __init__(self, text: str, is_unchanged: Callable[[], bool]) -> None:
        super().__init__(text, is_unchanged)
        self.is_unchanged = is_unchanged

    def __str__(self) -> str:
        return str(self.args[0])


class CounterHit(NamedTuple):
    """One event to count against a sliding window: `amount` more under `key` within the last `window` seconds.

    An `amount` of 0 reads the sum and writes nothing. How exact the window is: stores/sliding_window.py.

    With a `once` token, the same token counts only once within the window: a message that is seen at several SMTP
    stages, or by several of our processes, is one message.

    A hit that would bring its sum above `limit` does not fit, and then nothing in the same call is counted.
    """

    key: str
    window: float
    amount: int = 1
    once: str = ""
    limit: int | None = None


class Lease(NamedTuple):
    """A place under `key` that `holder` has for a while: one of at most `limit`; None for no limit."""

    key: str
    holder: str
    limit: int | None = None


class ReadAhead(NamedTuple):
    """What a check will read when it runs, announced so that one round trip serves a request (read_ahead.py).

    `hits` have an amount of 0: nothing is counted before its check runs. With `created_at`, that is read too.
    Announcing too much costs a little, too little costs a round trip; neither changes a result.
    """

    gets: Sequence[str] = ()
    hits: Sequence[CounterHit] = ()
    created_at: bool = False


class StoredValue(NamedTuple):
    """A value in a store, with the seconds that it has left."""

    key: str
    value: bytes
    ttl: float


class Store(Protocol):
    """The operations of a back end."""

    async def hit_and_get(
        self, hits: Sequence[CounterHit], gets: Sequence[str]
    ) -> tuple[list[int], list[bytes | None]]:
        """Do `hit` and then `get` every key, in one round trip; return the sums and the values, in order."""
        ...

    async def get(self, key: str) -> bytes | None:
        """Return the value, or None if there is none or it has expired."""
        ...

    async def set(self, key: str, value: bytes, ttl: float, *, absent: bool = False) -> bool:
        """Store `value` for `ttl` seconds; with `absent` only if there is none yet. Return True if written."""
        ...

    async def delete(self, key: str) -> None:
        """Delete the value, if there is one."""
        ...

    async def hit(self, hits: Sequence[CounterHit]) -> list[int]:
        """Count every hit, all or none, and return for each the sum in its window, this hit included.

        If a sum is above the `limit` of its hit, none was counted, and the sums are what they would have been.
        """
        ...

    async def unhit(self, hits: Sequence[CounterHit]) -> None:
        """Undo a `hit` made just now, for a request that was refused after all."""
        ...

    async def expirations(self, hit: CounterHit) -> list[tuple[float, int]]:
        """Return how the sum of the hit's window will fall: (seconds until it expires, amount), the soonest first."""
        ...

    async def lease(self, leases: Sequence[Lease], ttl: float) -> list[int]:
        """Take every place for `ttl` seconds, all or none, and return for each how many are taken, this one included.

        If one is above the `limit` of its lease, none was taken. A holder that already has a place keeps it for longer:
        that is how a lease is renewed. All leases of a key have the same `ttl`.
        """
        ...

    async def release(self, leases: Sequence[Lease]) -> None:
        """Give places back before they expire; one that is not taken is not an error."""
        ...

    async def page(self, kind: str, after: str = "") -> tuple[list[StoredValue], str]:
        """Return some of the values whose keys begin with `kind`, and what to pass as `after` for the next ones.

        That is empty at the end. For migrating state: what is written meanwhile may be missed, and a value may come
        twice.
        """
        ...

    async def tally(self, bucket: str, row: bytes, ttl: float, limit: int) -> bool:
        """Count one more of `row` (not empty) in `bucket`.

        Returns False, and counts nothing, if the bucket has `limit` other rows. A row is kept for `ttl` seconds after
        it was last counted, and deleted at the latest `ttl` seconds after anything in its bucket was.
        """
        ...

    async def tallies(self, bucket: str) -> dict[bytes, int]:
        """Return how often each row of `bucket` was counted."""
        ...

    async def created_at(self) -> float:
        """Return when this store was first opened empty: greylisting's learning period starts here.

        Reads the store each time: one that is emptied while we run starts learning again.
        """
        ...

    async def secret(self) -> bytes:
        """Return the key of the keyed hashes: 32 random bytes, the same for all processes that share this store.

        Answered from memory most of the time. Call this for every request instead of keeping the result: when a store
        is emptied and started again by another process, the secret changes (stores/shared_values.py).
        """
        ...

    async def close(self) -> None:
        """Close connections and files."""
        ...


class Keys:
    """Makes store keys: `keys("greylist", client, sender, recipient)`. Hashable, and equal if it makes the same keys.

    `prefix` keeps the state of checks in observe mode apart from the real one.
    """

    __slots__ = ("_hash", "_start", "prefix", "secret")

    def __init__(self, secret: bytes, prefix: str = "") -> None:
        self.secret = secret
        self.prefix = prefix
        self._hash = hash((secret, prefix))
        self._start = blake2b(key=secret, digest_size=16)  # copied for each key: half the time of a new one

    def __call__(self, kind: str, *parts: str) -> str:
        """Return the key for `parts`: a 128-bit keyed BLAKE2b after a readable kind; no part can run into the next."""
        digest = self._start.copy()
        digest.update("".join([f"{len(part)}:{part}" for part in parts]).encode("utf-8", "surrogateescape"))
        return f"{self.prefix}{kind}:{digest.hexdigest()}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keys) and (self.secret, self.prefix) == (other.secret, other.prefix)

    def __hash__(self) -> int:
        return self._hash
