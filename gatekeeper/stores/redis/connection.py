# SPDX-License-Identifier: GPL-3.0-or-later
"""One connection to a Redis: every command goes out at once, its answer comes in its turn (RESP2).

All requests of a process share it, so what several ask in one round of the event loop leaves in one packet and comes
back in one. redis-py lends a connection to each command instead, which costs five times the CPU (measured: 190 µs
against 30). Parsing and packing is hiredis'. A connection on which an answer is late is given up with all that
wait on it: behind an answer that does not come none will.
"""

import asyncio
from collections import deque
from typing import Any, cast

import hiredis

from gatekeeper.stores.store import StoreError

Word = str | bytes | int
GRACE = 0.002
"""Seconds that a late answer is still looked for: when this process was held up, it waits in the socket unread."""


class ReplyError(StoreError):
    """Redis refused a command. `kind` is the first word of its answer: NOSCRIPT, MOVED, OOM, READONLY, ..."""

    @property
    def kind(self) -> str:
        return str(self).partition(" ")[0]


class RedisConnection(asyncio.Protocol):
    """A connection; `timeout` is in seconds, from a command to its answer."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._transport: asyncio.Transport | None = None
        self._packed: list[bytes] = []
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._watch: asyncio.TimerHandle | None = None
        self._lost = "the connection was closed"

    @property
    def up(self) -> bool:
        """True while commands may be sent."""
        return self._transport is not None

    def send(self, *words: Word) -> asyncio.Future[Any]:
        """Send one command; its answer. Raises StoreError, here or there: ReplyError where Redis refuses."""
        if self._transport is None:
            raise StoreError(self._lost)
        answer = self._loop.create_future()
        now = self._loop.time()
        self._waiting.append((answer, now + self._timeout))
        if not self._packed:
            self._loop.call_soon(self._flush)
        self._packed.append(hiredis.pack_command(words))  # type: ignore[arg-type]  # its stub means one word
        if self._watch is None:
            self._watch = self._loop.call_at(now + self._timeout, self._look)
        return answer

    def close(self, why: str = "the connection was closed") -> None:
        """Close at once; whoever still waits hears why."""
        self._lost = why
        if self._transport is not None:
            self._transport.abort()
        self._end()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while self._waiting and (reply := self._reader.gets()) is not False:
                answer, _ = self._waiting.popleft()
                if answer.done():  # whoever asked has gone
                    continue
                if isinstance(reply, hiredis.ReplyError):
                    answer.set_exception(ReplyError(str(reply)))
                else:
                    answer.set_result(reply)
        except hiredis.ProtocolError:
            self.close("what answers is no Redis")

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self._lost = str(exc) or type(exc).__name__
        self._end()

    def _flush(self) -> None:
        packed, self._packed = self._packed, []
        if self._transport is not None:
            self._transport.write(b"".join(packed))

    def _look(self, late: object = None) -> None:
        """Is an answer late? One timer for all commands, set anew only while some wait."""
        self._watch = None
        if not self._waiting:
            return
        first = self._waiting[0]
        if first is late:
            self.close("no answer in time")
        elif self._loop.time() < first[1]:
            self._watch = self._loop.call_at(first[1], self._look)
        else:
            self._watch = self._loop.call_later(GRACE, self._look, first)

    def _end(self) -> None:
        self._transport = None
        if self._watch is not None:
            self._watch.cancel()
        waiting, self._waiting = self._waiting, deque()
        for answer, _ in waiting:
            if not answer.done():
                answer.set_exception(StoreError(self._lost))
                answer.exception()  # nobody may be left to hear it, which is no accident
