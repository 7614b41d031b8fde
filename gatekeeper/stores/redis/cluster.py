# SPDX-License-Identifier: GPL-3.0-or-later
"""State in a Redis Cluster: each key is on the node that has its slot, so a call becomes one script for each slot, all
sent together.

Each limit is exact on its own, as all that belongs to it shares a slot. Over several slots nothing is all or none: what
was counted beside a limit that is exceeded is given back a moment later, and when a node fails in the middle, what the
others counted stays. While a slot moves to another node, a call may fail.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

from redis.crc import key_slot

from gatekeeper.stores.redis.connection import ReplyError, Word
from gatekeeper.stores.redis.link import OneLink
from gatekeeper.stores.redis.servers import RedisServers
from gatekeeper.stores.redis.store import RedisStore, hit_key, kept_key, lease_key
from gatekeeper.stores.store import Clock, CounterHit, Lease, StoreError

T = TypeVar("T")

_Node = tuple[str, int]


def slot_of(key: str) -> int:
    """The slot of a key, or of the part of it in braces (the cluster specification's hash tags)."""
    return key_slot(key.encode())


class ClusterLink:
    """To the node that has a key's slot; learns when slots move or a node is replaced. See link.Link."""

    def __init__(self, servers: RedisServers, timeout: float) -> None:
        self._seeds = servers.servers
        self._timeout = timeout
        self._links: dict[_Node, OneLink] = {}
        self._owners: dict[int, _Node] = {}
        self._learning: asyncio.Task[None] | None = None

    async def call(self, key: str, *words: Word) -> Any:
        """See link.Link.call."""
        slot = slot_of(key)
        owner = self._owners.get(slot) or await self._owner(slot)
        try:
            return await self._link(owner).call(key, *words)
        except ReplyError as error:
            if error.kind == "MOVED":
                self._learn()
                owner = self._owners[slot] = _told(error, owner)
                return await self._link(owner).call(key, *words)
            if error.kind == "ASK":  # the slot is about to move, and this key has moved already
                wire = await self._link(_told(error, owner)).connected()
                asking, answer = wire.send("ASKING"), wire.send(*words)
                await asking
                return await answer
            raise
        except StoreError:
            self._learn()  # another node may have taken its place
            raise

    async def scan(self, pattern: str, after: str) -> tuple[list[str], str]:
        """See link.Link.scan; one node after the other."""
        await self._owner(0)
        nodes = sorted(set(self._owners.values()))
        number, _, cursor = after.partition(" ")
        at = int(number or 0)
        keys, rest = await self._link(nodes[at]).scan(pattern, cursor)
        if rest:
            return keys, f"{at} {rest}"
        return keys, f"{at + 1} " if at + 1 < len(nodes) else ""

    def close(self) -> None:
        """See link.Link.close."""
        if self._learning is not None:
            self._learning.cancel()
        for link in self._links.values():
            link.close()

    async def _owner(self, slot: int) -> _Node:
        await asyncio.wait([self._learn()], timeout=self._timeout)
        if slot not in self._owners:
            raise StoreError("no node of the cluster that answers knows who has the slot")
        return self._owners[slot]

    def _link(self, node: _Node) -> OneLink:
        link = self._links.get(node)
        if link is None:
            server = replace(self._seeds[0], host=node[0], port=node[1])
            link = self._links[node] = OneLink(server.open, self._timeout)
        return link

    def _learn(self) -> asyncio.Task[None]:
        if self._learning is None or self._learning.done():
            self._learning = asyncio.create_task(self._ask_around())
        return self._learning

    async def _ask_around(self) -> None:
        """Ask one node after the other, those that the url names first, who has which slots."""
        for node in dict.fromkeys([*((seed.host, seed.port) for seed in self._seeds), *self._links]):
            try:
                ranges = await self._link(node).call("", "CLUSTER", "SLOTS")
            except StoreError:
                continue
            # A node that does not know its own name says none: it is the one that was asked.
            self._owners = {
                slot: (owner[0].decode() or node[0], int(owner[1]))
                for first, last, owner, *_ in ranges
                for slot in range(first, last + 1)
            }
            return


class ClusterStore(RedisStore):
    """See store.Store; as RedisStore, on a cluster."""

    def __init__(self, servers: RedisServers, clock: Clock = time.time, timeout: float = 0.1) -> None:
        super().__init__(ClusterLink(servers, timeout), clock)

    async def ask(self, hits: Sequence[CounterHit], gets: Sequence[str]) -> tuple[list[int], list[bytes | None]]:
        parts = _by_slot([*map(hit_key, hits), *map(kept_key, gets)])
        answers = await _together(
            self.ask_one(
                [hits[n] for n in part if n < len(hits)], [gets[n - len(hits)] for n in part if n >= len(hits)]
            )
            for part in parts
        )
        found: dict[int, Any] = {}
        for part, (sums, values, _) in zip(parts, answers, strict=True):
            found.update(zip(part, [*sums, *values], strict=True))
        sums = [found[n] for n in range(len(hits))]
        if any(hit.most is not None and sum_ > hit.most for hit, sum_ in zip(hits, sums, strict=True)):
            counted = (hits[part[n]] for part, (*_, its) in zip(parts, answers, strict=True) for n in its)
            await self.unhit(list(counted))
        return sums, [found[n] for n in range(len(hits), len(hits) + len(gets))]

    async def unhit(self, hits: Sequence[CounterHit]) -> None:
        give_back = super().unhit
        await _together(give_back([hits[n] for n in part]) for part in _by_slot(map(hit_key, hits)))

    async def lease(self, leases: Sequence[Lease], ttl: float) -> list[int]:
        parts, take = _by_slot(lease_key(lease) for lease in leases), super().lease
        answers = await _together(take([leases[n] for n in part], ttl) for part in parts)
        taken = {
            n: count for part, counts in zip(parts, answers, strict=True) for n, count in zip(part, counts, strict=True)
        }
        if any(lease.most is not None and taken[n] > lease.most for n, lease in enumerate(leases)):
            await self.release(leases)  # each holder is refused, so what some slots gave is given back
        return [taken[n] for n in range(len(leases))]

    async def release(self, leases: Sequence[Lease]) -> None:
        give_back = super().release
        await _together(give_back([leases[n] for n in part]) for part in _by_slot(map(lease_key, leases)))


def _by_slot(keys: Iterable[str]) -> list[list[int]]:
    """The numbers of the keys, those that share a slot together."""
    slots: defaultdict[int, list[int]] = defaultdict(list)
    for number, key in enumerate(keys):
        slots[slot_of(key)].append(number)
    return list(slots.values())


async def _together(calls: Iterable[Awaitable[T]]) -> list[T]:
    """What all calls answer; all have ended when one has failed, and then its error is raised."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return cast("list[T]", answers)


def _told(error: ReplyError, asked: _Node) -> _Node:
    """The node in `MOVED 3999 127.0.0.1:6381`; without a host it is the one that was asked."""
    host, _, port = str(error).rpartition(" ")[2].rpartition(":")
    return host or asked[0], int(port)
