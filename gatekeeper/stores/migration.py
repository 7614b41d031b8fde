# SPDX-License-Identifier: GPL-3.0-or-later
"""Copy greylisting's state from one store to another: SQLite to Redis, an old machine to a new one.

Keys are hashes under the store's secret, so the secret is copied too, and the date from which the store has learnt. A
target that already has state under another secret is refused: the two could not be looked up together. Counters
(limits, and how far a client is from being known as a whole) stay behind: limits are short, and triplets that are used
count again within days.
"""

from gatekeeper.stores.shared_values import CREATED_AT, FOREVER, SECRET
from gatekeeper.stores.store import Store, StoreError

KINDS = ("greylist", "observe:greylist")
"""The key prefixes of greylisting's values (checks/greylisting/triplet.py), including those of observe mode."""


class StoreOccupied(Exception):
    """The target store has state of its own under another secret."""


async def migrate(source: Store, target: Store) -> int:
    """Copy greylisting's values and return how many; what the target already has is overwritten.

    Raises StoreError and StoreOccupied.
    """
    secret = await source.get(SECRET)
    if secret is None:
        raise StoreError("it is empty: there is nothing to copy")
    if secret != await target.get(SECRET):
        if [key for kind in KINDS for key in (await target.page(kind))[0]]:
            raise StoreOccupied
        await target.set(SECRET, secret, FOREVER)
    await target.set(CREATED_AT, repr(await source.created_at()).encode(), FOREVER)
    count = 0
    for kind in KINDS:
        after = ""
        while True:
            values, after = await source.page(kind, after)
            for value in values:
                await target.set(value.key, value.value, value.ttl)
            count += len(values)
            if not after:
                break
    return count
