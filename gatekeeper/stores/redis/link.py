# SPDX-License-Identifier: GPL-3.0-or-later
"""Connection to Redis that is opened when it is needed, and reopened when it is lost.

A call while a connection is being opened waits for it, but not for long; connecting continues when the callers have
given up. Nothing is sent twice except what a server has refused: a `hit` whose reply was lost may have been counted.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from gatekeeper.stores.redis.connection import RedisConnection, ReplyError, Word
from gatekeeper.stores.store import StoreError

CONNECT_LIMIT = 2.0
"""Seconds for opening a connection, with TLS and over some distance."""
_HARMLESS = ("NOSCRIPT", "MOVED", "ASK", "TRYAGAIN", "WRONGTYPE", "ERR")
"""Refusals that do not mean a fault of the server; after others, reconnecting may find another master."""


class Link(Protocol):
    """How commands reach the server that has their key."""

    async def call(self, key: str, *words: Word) -> Any:
        """Return the reply to a command on `key`. Raises StoreError; ReplyError where Redis refuses."""
        ...

    async def scan(self, pattern: str, after: str) -> tuple[list[str], str]:
        """Return some of the keys that match, and the next `after`, empty at the end. A key may come twice."""
        ...

    def close(self) -> None:
        """Close all connections."""
        ...


class ServerLink:
    """A Link to one server: `open` connects to whichever that is now. `timeout` is in seconds."""

    def __init__(self, open: Callable[[float], Awaitable[RedisConnection]], timeout: float) -> None:
        self._open = open
        self._timeout = timeout
        self._connection: RedisConnection | None = None
        self._connecting: asyncio.Task[RedisConnection | StoreError] | None = None

    async def call(self, key: str, *words: Word) -> Any:  # noqa: ARG002 (one server has every key)
        connection = self._connection
        if connection is None or not connection.is_open:
            connection = await self.connected()
        try:
            return await connection.send(*words)
        except ReplyError as error:
            if error.kind not in _HARMLESS:
                connection.close()
            raise

    async def connected(self) -> RedisConnection:
        """Return the open connection. Raises StoreError."""
        if self._connection is not None and self._connection.is_open:
            return self._connection
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
        connecting = self._connecting
        await asyncio.wait([connecting], timeout=self._timeout)
        if not connecting.done() or connecting.cancelled():
            raise StoreError("not connected in time")
        outcome = connecting.result()
        if isinstance(outcome, StoreError):
            raise StoreError(*outcome.args)  # a new one for each caller
        return outcome

    async def scan(self, pattern: str, after: str) -> tuple[list[str], str]:
        cursor, keys = await self.call("", "SCAN", after or "0", "MATCH", pattern, "COUNT", 500)
        return [key.decode() for key in keys], "" if cursor == b"0" else cursor.decode()

    def close(self) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.close()

    async def _connect(self) -> RedisConnection | StoreError:
        try:
            async with asyncio.timeout(CONNECT_LIMIT):
                self._connection = await self._open(self._timeout)
            return self._connection
        except TimeoutError:
            return StoreError("cannot connect: no answer in time")
        except StoreError as error:
            return error
        finally:
            self._connecting = None
