# SPDX-License-Identifier: GPL-3.0-or-later
"""The way to Redis: a connection that is made when it is needed, and made anew when it is lost.

Who asks while a connection is being made waits for it, but not long: it goes on without those that gave up. Nothing is
sent twice but what a server has refused to do: a `hit` whose answer was lost may have counted.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from gatekeeper.stores.redis.connection import RedisConnection, ReplyError, Word
from gatekeeper.stores.store import StoreError

CONNECT_LIMIT = 2.0
"""Seconds for making a connection, with TLS and over some distance."""
_HARMLESS = ("NOSCRIPT", "MOVED", "ASK", "TRYAGAIN", "WRONGTYPE", "ERR")
"""Refusals that say nothing against the server; after others the next try may find another one in charge."""


class Link(Protocol):
    """How commands get to where their key is."""

    async def call(self, key: str, *words: Word) -> Any:
        """The answer to a command on `key`. Raises StoreError; ReplyError where Redis refuses."""
        ...

    async def scan(self, pattern: str, after: str) -> tuple[list[str], str]:
        """Some of the keys that match, and where to go on; nothing at the end. A key may come twice."""
        ...

    def close(self) -> None:
        """Let go of what is open."""
        ...


class OneLink:
    """To one server: `find` opens a connection to whichever that is now. `timeout` is in seconds."""

    def __init__(self, find: Callable[[float], Awaitable[RedisConnection]], timeout: float) -> None:
        self._find = find
        self._timeout = timeout
        self._wire: RedisConnection | None = None
        self._connecting: asyncio.Task[RedisConnection | StoreError] | None = None

    async def call(self, key: str, *words: Word) -> Any:
        """See Link.call; the key does not matter here."""
        wire = self._wire
        if wire is None or not wire.up:
            wire = await self.connected()
        try:
            return await wire.send(*words)
        except ReplyError as error:
            if error.kind not in _HARMLESS:
                wire.close()
            raise

    async def connected(self) -> RedisConnection:
        """The connection. Raises StoreError."""
        if self._wire is not None and self._wire.up:
            return self._wire
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
        connecting = self._connecting
        await asyncio.wait([connecting], timeout=self._timeout)
        if not connecting.done() or connecting.cancelled():
            raise StoreError("not connected in time")
        found = connecting.result()
        if isinstance(found, StoreError):
            raise StoreError(*found.args)  # a fresh one for each who waited
        return found

    async def scan(self, pattern: str, after: str) -> tuple[list[str], str]:
        """See Link.scan."""
        cursor, keys = await self.call("", "SCAN", after or "0", "MATCH", pattern, "COUNT", 500)
        return [key.decode() for key in keys], "" if cursor == b"0" else cursor.decode()

    def close(self) -> None:
        """See Link.close."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._wire is not None:
            self._wire.close()

    async def _connect(self) -> RedisConnection | StoreError:
        try:
            async with asyncio.timeout(CONNECT_LIMIT):
                self._wire = await self._find(self._timeout)
            return self._wire
        except TimeoutError:
            return StoreError("cannot connect: no answer in time")
        except StoreError as error:
            return error
        finally:
            self._connecting = None
