# SPDX-License-Identifier: GPL-3.0-or-later
"""Policy sockets on asyncio: bytes in, protocol.py's requests to the app, answers out, strictly in order.

Rules: one connection carries many requests; an answer is on its way before its side effects run, and these begin before
the next request is looked at, so that what both ask of the store leaves together; a broken frame closes its own
connection and nothing else; whatever goes wrong in a decision is answered DUNNO and logged, because Postfix takes
silence for a broken service. An idle connection costs its buffers, no task and no timer. Knows no checks.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol, cast

from gatekeeper.core.gather import finish as finish_coroutine
from gatekeeper.core.gather import gather_in_task, start
from gatekeeper.core.log import write_decision
from gatekeeper.core.request import Request
from gatekeeper.core.verdict import Decision
from gatekeeper.pipeline.context import Context
from gatekeeper.policy.connection_balance import BalanceSlot
from gatekeeper.policy.protocol import (
    DUNNO,
    MAX_REQUEST,
    NotUnderstood,
    ProtocolError,
    RequestParser,
    encode_answer,
    to_request,
)
from gatekeeper.policy.shared_deadline import SharedDeadline

logger = logging.getLogger(__name__)

BUDGET = 20.0
"""Seconds for one decision; well below the 100 s after which Postfix gives up (`smtpd_policy_service_timeout`)."""

_LET_GO_FIRST = 0.001
"""Seconds that a worker leaves a new connection to those who hold fewer."""
_SETTLE = 0.002
"""Seconds that side effects wait for another request to go along with. Nobody waits for them."""
_PAUSE = 0.2
"""Seconds without accepting after an accident such as too many open files: the listener would wake us at once."""


class Decider(Protocol):
    """What is asked: gatekeeper.app.app.App."""

    async def decide(self, request: Request) -> tuple[Decision, Context]:
        """The decision, and the context whose side effects are to be settled after the answer."""
        ...


Give = Callable[[int, bytes], bool]
"""Hands a connection to another worker: its descriptor, which stays the caller's, and the bytes that were read from it
and not answered. False if it has to stay."""


class PolicyServer:
    """Serves policy connections with the decisions of `app`; `budget` is in seconds. With a `seat` it shares the
    connections evenly with the other workers on its listeners.
    """

    def __init__(self, app: Decider, *, budget: float = BUDGET, seat: BalanceSlot | None = None) -> None:
        self._app = app
        self._seat = seat
        self._held = 0
        self._give: Give | None = None
        self._budget = SharedDeadline(budget)
        self._listeners: list[socket.socket] = []
        self._connections: set[_PolicyConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._unsettled: list[tuple[Decision, Context]] = []
        self._settling = False
        self._closing = False
        self._changed = asyncio.Event()

    async def serve(self, listeners: Sequence[socket.socket]) -> None:
        """Accept on `listeners` (listening, non-blocking, the caller's to close) from now on; returns at once."""
        self._count(0)
        self._listeners.extend(listeners)
        for listener in listeners:
            asyncio.get_running_loop().add_reader(listener, self._offered, listener)

    def take(self, sock: socket.socket, unread: bytes = b"") -> None:
        """Serve a connection that another worker has begun, with the bytes that it has read and not answered."""
        sock.setblocking(False)
        self._count(1)
        self._start(self._connect(sock, unread))

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 (how long peers have)
        """Stop accepting, and return when the last connection has gone, at the latest after `timeout` seconds.

        A connection is closed when its current request is answered, an idle one at once: that costs its smtpd 1 s
        (smtpd_policy_service_retry_delay), which is less than a service that is away for long.
        """
        self._stop_accepting()
        self._closing = True
        for connection in tuple(self._connections):
            connection.finish()
        await self._wait(timeout)

    async def retire(self, timeout: float, give: Give) -> None:  # noqa: ASYNC109 (how long peers have)
        """Stop accepting, because successors do: `give` them each connection as soon as no request of it is being
        answered. One that cannot be given now is tried again, and served until its peer closes it or `timeout` seconds
        are over. Returns when the last has gone.
        """
        self._stop_accepting()
        self._give = give
        self._pass_on()
        await self._wait(timeout)

    def _pass_on(self) -> None:
        """Give away what can be given now. The way there holds some hundreds at a time: the rest goes later."""
        for connection in tuple(self._connections):
            connection.pass_on()
        if self._connections:
            asyncio.get_running_loop().call_later(_PAUSE, self._pass_on)

    def _stop_accepting(self) -> None:
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
        self._listeners.clear()

    async def _wait(self, timeout: float) -> None:  # noqa: ASYNC109 (how long peers have)
        try:
            async with asyncio.timeout(timeout):
                while self._connections or self._tasks or self._unsettled:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            logger.warning("%d policy connections are cut off after %g s of draining", len(self._connections), timeout)
            for connection in tuple(self._connections):
                connection.finish(abort=True)

    def _count(self, more: int) -> None:
        self._held += more
        if self._seat is not None:
            self._seat.hold(self._held)

    def _offered(self, listener: socket.socket) -> None:
        """A connection waits. Who holds the most lets the others go first."""
        if self._seat is None or not self._seat.has_most():
            self._accept(listener)
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        loop.call_later(_LET_GO_FIRST, self._late, listener)

    def _late(self, listener: socket.socket) -> None:
        self._resume(listener)
        if listener in self._listeners:
            self._accept(listener)

    def _accept(self, listener: socket.socket) -> None:
        """Accept one connection only: more workers wait on the same socket, and what one takes it keeps for long."""
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker was faster, or the peer has thought better of it
        except OSError as error:
            logger.error("cannot accept a policy connection: %s", error)  # noqa: TRY400 (a full table, not a bug)
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            loop.call_later(_PAUSE, self._resume, listener)
            return
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.take(sock)

    def _resume(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            asyncio.get_running_loop().add_reader(listener, self._offered, listener)

    async def _connect(self, sock: socket.socket, unread: bytes) -> None:
        connection = _PolicyConnection(self, unread)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, sock)
        except OSError:
            sock.close()
            self._count(-1)
        if self._closing:
            connection.finish()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._changed.set()

    async def _answer(self, attributes: dict[str, str], connection: "_PolicyConnection") -> None:
        """Answer one request. Never raises."""
        try:
            request = to_request(attributes)
        except NotUnderstood as odd:
            logger.warning("a policy request that is not understood is answered DUNNO: %s", odd)
            connection.send(DUNNO)
            return
        answer, task = DUNNO, connection.task
        self._budget.begin(task)
        try:
            decision, context = await self._app.decide(request)
            answer = encode_answer(decision.verdict, request)
        except asyncio.CancelledError:
            if not self._budget.is_late(task):
                raise
            logger.error("no decision within %g s, answered DUNNO: instance %r", self._budget.seconds, request.instance)  # noqa: TRY400 (nothing broke)
            return
        except Exception:
            logger.exception("no decision, answered DUNNO: instance %r", request.instance)
            return
        finally:
            self._budget.end(task)
            connection.send(answer)
        try:
            if context.has_side_effects(decision):
                self._settle_soon(decision, context)
            write_decision(logger, decision, "policy")
        except Exception:
            logger.exception("after the answer: instance %r", request.instance)

    def _settle_soon(self, decision: Decision, context: Context) -> None:
        self._unsettled.append((decision, context))
        if not self._settling:
            self._settling = True
            asyncio.get_running_loop().call_later(_SETTLE, self._settle_late)

    def _settle_late(self) -> None:
        self._settling = False
        self._settle()

    def _settle(self) -> None:
        """Begin all side effects that wait."""
        if not self._unsettled:
            return
        unsettled, self._unsettled = self._unsettled, []
        begun = start(_settle(unsettled))
        if begun.ended:
            self._changed.set()
        else:
            self._start(finish_coroutine(begun))


async def _settle(unsettled: Sequence[tuple[Decision, Context]]) -> None:
    for error in await gather_in_task([context.settle(decision) for decision, context in unsettled]):
        if isinstance(error, Exception):
            logger.error("after the answer", exc_info=error)


class _PolicyConnection(asyncio.Protocol):
    """One connection of Postfix."""

    __slots__ = ("_busy", "_finishing", "_parser", "_paused", "_server", "_transport", "_unread", "task")

    task: asyncio.Task[None]
    """Who answers just now."""

    def __init__(self, server: PolicyServer, unread: bytes = b"") -> None:
        self._server = server
        self._parser = RequestParser()
        self._unread = unread
        self._transport: asyncio.Transport | None = None
        self._busy = False
        self._paused = False
        self._finishing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._server._connections.add(self)
        if self._unread:
            self.data_received(self._unread)
            self._unread = b""
        asyncio.get_running_loop().call_soon(self.pass_on)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._server._connections.discard(self)
        self._server._count(-1)
        self._server._changed.set()

    def data_received(self, data: bytes) -> None:
        self._parser.feed(data)
        if not self._busy:
            if (attributes := self._next()) is not None:
                self._busy = True
                self.task = self._server._start(self._work(attributes))
        elif self._parser.pending > MAX_REQUEST and self._transport and not self._paused:
            # Who sends on without waiting for answers waits until those have been given.
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """What was asked is answered even to a peer that has said its last word."""
        self._finishing = True
        return self._busy

    def pause_writing(self) -> None:
        logger.warning("a policy client that does not read its answers is cut off")
        self.finish(abort=True)

    def finish(self, *, abort: bool = False) -> None:
        """Close the connection as soon as the requests that have come are answered; with `abort` at once."""
        self._finishing = True
        if self._transport is not None and abort:
            self._transport.abort()
        elif self._transport is not None and not self._busy:
            self._transport.close()

    def pass_on(self) -> bool:
        """Give the connection to another worker if this one retires and nothing is under way. True if it is gone."""
        give, transport = self._server._give, self._transport
        if give is None or transport is None or self._busy or self._finishing or transport.get_write_buffer_size():
            return False
        transport.pause_reading()  # from here on, what comes waits in the socket for whoever has it
        if not give(transport.get_extra_info("socket").fileno(), self._parser.rest()):
            transport.resume_reading()
            return False
        self._finishing = True
        transport.abort()  # closes our descriptor, and says nothing to the peer
        return True

    def _next(self) -> dict[str, str] | None:
        """The next request if it is complete. After a broken frame there is none."""
        try:
            return self._parser.next()
        except ProtocolError as error:
            logger.warning("a policy connection is closed without an answer: %s", error)
            self.finish()
            return None

    async def _work(self, attributes: dict[str, str] | None) -> None:
        while attributes is not None:
            self._server._settle()
            await self._server._answer(attributes, self)
            if self._server._give is not None and await self._passed_on():
                return
            attributes = self._next()
        self._busy = False
        if self._finishing:
            self.finish()
        elif self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    async def _passed_on(self) -> bool:
        """Try to give the connection away between two requests."""
        await asyncio.sleep(0)  # the answer leaves at the end of the loop's round
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        self._busy = False
        if self.pass_on():
            return True
        self._busy = True
        return False

    def send(self, answer: bytes) -> None:
        """Send an answer, unless nobody is there to hear it."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(answer)
