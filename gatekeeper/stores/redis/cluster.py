# SPDX-License-Identifier: GPL-3.0-or-later
"""Store in a Redis Cluster: a call becomes one script for each slot that its keys are in, all sent at once.

Each limit is exact by itself, as all that belongs to it is in one slot. Across slots, a call is not all or nothing:
what was counted beside an exceeded limit is undone a moment later, and if a node fails in the middle, what the others
counted stays. While a slot is migrating to another node, a call may fail.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

from redis.crc import key_slot

from gatekeeper.stores.redis.connection import ReplyError, Word
from gatekeeper.stores.redis.link import ServerLink
from gatekeeper.stores.redis.servers import RedisServers
from gatekeeper.stores.redis.store import RedisStore, hit_key, lease_key, value_key
from gatekeeper.stores.store import Clock, CounterHit, Lease, StoreError

T = TypeVar("T")

_Node = tuple[str, int]


def slot_of(key: str) -> int:
    """Return the slot of a key, or of its part in braces (the cluster specification's hash tags)."""
    return key_slot(key.encode())


class ClusterLink:
    """A link.Link to the node that has a key's slot; notices when slots move or a node is replaced."""

    def __init__(self, servers: RedisServers, timeout: float) -> None:
        self._seeds = servers.servers
        self._timeout = timeout
        self._links: dict[_Node, ServerLink] = {}
        self._owners: dict[int, _Node] = {}
        self._refreshing: asyncio.Task[None] | None = None

    async def call(self, key: str, *words: Word) -> Any:
        slot = slot_of(key)
        owner = self._owners.get(slot) or await self._find_owner(slot)
        try:
            return await self._link(owner).call(key, *words)
        except ReplyError as error:
            if error.kind == "MOVED":
                self._refresh_slots()
                owner = self._owners[slot] = _redirected_to(error, owner)
                return await self._link(owner).call(key, *words)
            if error.kind == "ASK":  # the slot is migrating, and this key has moved already
                connection = await self._link(_redirected_to(error, owner)).connected()
                asking, answer = connection.send("ASKING"), connection.send(*words)
                await asking
                return await answer
            raise
        except StoreError:
            self._refresh_slots()  # another node may have replaced it
            raise

    async def scan(self, pattern: str, after: str) -> tuple[list[str], str]:
        """Scan as link.Link.scan does, one node after the other."""
        await self._find_owner(0)
        nodes = sorted(set(self._owners.values()))
        number, _, cursor = after.partition(" ")
        index = int(number or 0)
        keys, rest = await self._link(nodes[index]).scan(pattern, cursor)
        if rest:
            return keys, f"{index} {rest}"
        return keys, f"{index + 1} " if index + 1 < len(nodes) else ""

    def close(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
        for link in self._links.values():
            link.close()

    async def _find_owner(self, slot: int) -> _Node:
        await asyncio.wait([self._refresh_slots()], timeout=self._timeout)
        if slot not in self._owners:
            raise StoreError("no node of the cluster that answers knows which node has the slot")
        return self._owners[slot]

    def _link(self, node: _Node) -> ServerLink:
        link = self._links.get(node)
        if link is None:
            server = replace(self._seeds[0], host=node[0], port=node[1])
            link = self._links[node] = ServerLink(server.open, self._timeout)
        return link

    def _refresh_slots(self) -> asyncio.Task[None]:
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self._load_slots())
        return self._refreshing

    async def _load_slots(self) -> None:
        """Ask one node after the other which node has which slots, starting with those in the URL."""
        for node in dict.fromkeys([*((seed.host, seed.port) for seed in self._seeds), *self._links]):
            try:
                ranges = await self._link(node).call("", "CLUSTER", "SLOTS")
            except StoreError:
                continue
            # A node that does not know its own address gives none: it is the one that was asked.
            self._owners = {
                slot: (owner[0].decode() or node[0], int(owner[1]))
                for first, last, owner, *_ in ranges
                for slot in range(first, last + 1)
            }
            return


class ClusterStore(RedisStore):
    """A RedisStore on a cluster."""

    def __init__(self, servers: RedisServers, clock: Clock = time.time, timeout: float = 0.1) -> None:
        super().__init__(ClusterLink(servers, timeout), clock)

    async def hit_and_get(
        self, hits: Sequence[CounterHit], gets: Sequence[str]
    ) -> tuple[list[int], list[bytes | None]]:
        parts = _by_slot([*map(hit_key, hits), *map(value_key, gets)])
        answers = await _gather(
            self.hit_and_get_on_slot(
                [hits[n] for n in part if n < len(hits)], [gets[n - len(hits)] for n in part if n >= len(hits)]
            )
            for part in parts
        )
        found: dict[int, Any] = {}
        for part, (sums, values, _) in zip(parts, answers, strict=True):
            found.update(zip(part, [*sums, *values], strict=True))
        sums = [found[n] for n in range(len(hits))]
        if any(hit.limit is not None and sum_ > hit.limit for hit, sum_ in zip(hits, sums, strict=True)):
            counted = (hits[part[n]] for part, (*_, its) in zip(parts, answers, strict=True) for n in its)
            await self.unhit(list(counted))
        return sums, [found[n] for n in range(len(hits), len(hits) + len(gets))]

    async def unhit(self, hits: Sequence[CounterHit]) -> None:
        give_back = super().unhit
        await _gather(give_back([hits[n] for n in part]) for part in _by_slot(map(hit_key, hits)))

    async def lease(self, leases: Sequence[Lease], ttl: float) -> list[int]:
        parts, take = _by_slot(lease_key(lease) for lease in leases), super().lease
        answers = await _gather(take([leases[n] for n in part], ttl) for part in parts)
        taken = {
            n: count for part, counts in zip(parts, answers, strict=True) for n, count in zip(part, counts, strict=True)
        }
        if any(lease.limit is not None and taken[n] > lease.limit for n, lease in enumerate(leases)):
            await self.release(leases)  # each holder is refused, so the places that some slots gave are released
        return [taken[n] for n in range(len(leases))]

    async def release(self, leases: Sequence[Lease]) -> None:
        give_back = super().release
        await _gather(give_back([leases[n] for n in part]) for part in _by_slot(map(lease_key, leases)))


def _by_slot(keys: Iterable[str]) -> list[list[int]]:
    """Return the indexes of the keys, grouped by slot."""
    slots: defaultdict[int, list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        slots[slot_of(key)].append(number)
    return list(slots.values())


async def _gather(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Return the results of all calls. If one fails, its error is raised once all have ended."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            try:
                raise answer
            finally:
                del answer, answers  # an error holds this frame, which must not hold the error
    return cast("list[T]", answers)


def _redirected_to(error: ReplyError, asked: _Node) -> _Node:
    """Return the node in `MOVED 3999 127.0.0.1:6381`; without a host it is the one that was asked."""
    host, _, port = str(error).rpartition(" ")[2].rpartition(":")
    return host or asked[0], int(port)
