# SPDX-License-Identifier: GPL-3.0-or-later
"""Greylisting's state from one store to another: SQLite to Redis, an old machine to a new one.

Keys are hashes under the store's secret, so the secret moves along, and the date from which the store has learnt. A
store that already knows something under another secret is refused: nobody could find both. What only counts (limits,
and how far a client is from being known as a whole) stays behind: limits are short, and triplets that are used count
again within days.
"""

from gatekeeper.stores.shared_values import BORN, FOREVER, SECRET
from gatekeeper.stores.store import Store, StoreError

KINDS = ("greylist", "observe:greylist")
"""How the keys of greylisting's values begin (checks/greylisting/triplet.py); those of observe mode too."""


class StoreOccupied(Exception):
    """The other store has state of its own under another secret."""


async def migrate(source: Store, target: Store) -> int:
    """Copy greylisting's values; how many. What the target has already is overwritten. Raises StoreError, Occupied."""
    secret = await source.get(SECRET)
    if secret is None:
        raise StoreError("it is empty: there is nothing to copy")
    if secret != await target.get(SECRET):
        if [key for kind in KINDS for key in (await target.page(kind))[0]]:
            raise StoreOccupied
        await target.set(SECRET, secret, FOREVER)
    await target.set(BORN, repr(await source.born()).encode(), FOREVER)
    count = 0
    for kind in KINDS:
        after = ""
        while True:
            kept, after = await source.page(kind, after)
            for one in kept:
                await target.set(one.key, one.value, one.ttl)
            count += len(kept)
            if not after:
                break
    return count
