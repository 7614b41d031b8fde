# SPDX-License-Identifier: GPL-3.0-or-later
"""Policy server on asyncio: reads requests (protocol.py), has the app decide, and writes answers, strictly in order.

Rules: one connection carries many requests; an answer is on its way before its side effects run, and these start before
the next request is handled, so that what both send to the store leaves together; a malformed request closes its own
connection and nothing else; whatever goes wrong in a decision is logged, and answered with what was decided by then, a
kept deferral above all, else DUNNO, because Postfix treats silence as a broken service. An idle connection costs its
buffers, no task and no timer. Knows no checks.

The time limit here is the last net. A slow name server or store has limits of its own, below it
(dnsclient/time_limit.py, stores/circuit_breaker.py), with which the checks decide to the end.
"""

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from itertools import chain
from typing import Any, Protocol, cast

from gatekeeper.core.gather import finish as finish_coroutine
from gatekeeper.core.gather import gather_in_task, start
from gatekeeper.core.log import took_ms, write_decision
from gatekeeper.core.peers import EVERYBODY, Door, Peers
from gatekeeper.core.request import Request
from gatekeeper.core.verdict import Decision
from gatekeeper.pipeline.context import Context
from gatekeeper.pipeline.pipeline import CutOff
from gatekeeper.policy.connection_balance import BalanceSlot
from gatekeeper.policy.protocol import (
    DUNNO,
    MAX_REQUEST,
    NotUnderstood,
    ProtocolError,
    RequestParser,
    action,
    encode_answer,
    to_request,
)
from gatekeeper.policy.shared_deadline import SharedDeadline

logger = logging.getLogger(__name__)

DECISION_TIMEOUT = 9.0
"""Seconds for one decision; well below the 30 s after which Postfix gives up (postfix-snippets/)."""

_YIELD_DELAY = 0.001
"""Seconds for which a worker leaves a new connection to workers that hold fewer."""
_SETTLE_DELAY = 0.002
"""Seconds that side effects wait for another request to be sent together with. Nobody waits for them."""
_RETRY_DELAY = 0.2
"""Seconds before accepting again after an error such as too many open files (the listener would wake us at once), and
before another attempt to hand connections over."""


class Decider(Protocol):
    """Makes the decisions: gatekeeper.app.app.App."""

    async def decide(self, request: Request) -> tuple[Decision, Context]:
        """Return the decision, and the context whose side effects are to be settled after the answer."""
        ...


HandOver = Callable[[int, bytes], bool]
"""Hands a connection over to another worker: its descriptor, which remains the caller's, and the bytes that were read
and not answered. Returns False if that is not possible now."""


class PolicyServer:
    """Serves policy connections with the decisions of `app`.

    `timeout` is in seconds, for one decision. With a `slot`, connections are balanced among the workers that share its
    listeners. Whom `peers` does not name is let in by nobody; connections that another worker has let in are in.
    """

    def __init__(
        self,
        app: Decider,
        *,
        timeout: float = DECISION_TIMEOUT,
        slot: BalanceSlot | None = None,
        peers: Peers = EVERYBODY,
    ) -> None:
        self._app = app
        self._slot = slot
        self._door = Door(peers, "policy")
        self._connection_count = 0
        self._hand_over: HandOver | None = None
        self._deadline = SharedDeadline(timeout)
        self._listeners: list[socket.socket] = []
        self._connections: set[_PolicyConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._unsettled: list[tuple[Decision, Context]] = []
        self._settling = False
        self._closing = False
        self._changed = asyncio.Event()

    async def serve(self, listeners: Sequence[socket.socket]) -> None:
        """Accept on `listeners` (listening, non-blocking, the caller's to close) from now on; returns at once."""
        self._change_count(0)
        self._listeners.extend(listeners)
        for listener in listeners:
            asyncio.get_running_loop().add_reader(listener, self._connection_waiting, listener)

    def adopt(self, sock: socket.socket, unread: bytes = b"") -> None:
        """Serve a connection that another worker has accepted, with the bytes that it has read and not answered."""
        sock.setblocking(False)
        self._change_count(1)
        self._start_task(self._attach(sock, unread))

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 (how long peers have)
        """Stop accepting, and return when the last connection is closed, at the latest after `timeout` seconds.

        A connection is closed when its current request is answered, an idle one at once: that costs its smtpd 1 s
        (smtpd_policy_service_retry_delay), which is less than a service that is away for long.
        """
        self.stop_accepting()
        self._closing = True
        for connection in tuple(self._connections):
            connection.finish()
        await self._wait(timeout)

    async def retire(self, timeout: float, hand_over: HandOver) -> None:  # noqa: ASYNC109 (how long peers have)
        """Stop accepting, and hand all connections over to the workers that replace this one.

        Each is handed over as soon as none of its requests is being answered. One that cannot be handed over now is
        tried again, and served until its peer closes it or `timeout` seconds are over. Returns when the last is gone.
        """
        self.stop_accepting()
        self._hand_over = hand_over
        self._hand_over_all()
        await self._wait(timeout)

    def _hand_over_all(self) -> None:
        """Hand over idle connections. The control socket takes some hundreds at once: the rest goes later."""
        for connection in tuple(self._connections):
            connection.try_hand_over()
        if self._connections:
            asyncio.get_running_loop().call_later(_RETRY_DELAY, self._hand_over_all)

    def stop_accepting(self) -> None:
        """Take no more connections; the listeners may then be closed."""
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

    def _change_count(self, more: int) -> None:
        self._connection_count += more
        if self._slot is not None:
            self._slot.set_count(self._connection_count)

    def _connection_waiting(self, listener: socket.socket) -> None:
        """Accept a waiting connection; if this worker holds the most connections, let the others go first."""
        if self._slot is None or not self._slot.has_most():
            self._accept(listener)
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        loop.call_later(_YIELD_DELAY, self._accept_after_delay, listener)

    def _accept_after_delay(self, listener: socket.socket) -> None:
        self._resume(listener)
        if listener in self._listeners:
            self._accept(listener)

    def _accept(self, listener: socket.socket) -> None:
        """Accept only one connection: other workers wait on the same socket, and a connection stays with its worker."""
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker was faster, or the peer has given up
        except OSError as error:
            if error.errno == errno.EINVAL:  # it was shut down: the address is no longer ours (accept(2))
                asyncio.get_running_loop().remove_reader(listener)
                self._listeners.remove(listener)
                return
            logger.error("cannot accept a policy connection: %s", error)  # noqa: TRY400 (too many open files, not a bug)
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            loop.call_later(_RETRY_DELAY, self._resume, listener)
            return
        if not self._door.lets_in(sock):
            sock.close()
            return
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.adopt(sock)

    def _resume(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            asyncio.get_running_loop().add_reader(listener, self._connection_waiting, listener)

    async def _attach(self, sock: socket.socket, unread: bytes) -> None:
        connection = _PolicyConnection(self, unread)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, sock)
        except OSError:
            sock.close()
            self._change_count(-1)
        if self._closing:
            connection.finish()

    def _start_task(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[None]) -> None:
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
        answer, task, began = DUNNO, connection.task, time.perf_counter()
        self._deadline.begin(task)
        try:
            decision, context = await self._decide(request, task)
            answer = encode_answer(decision.verdict, request)
        except CutOff as cut:  # we are to end
            answer = encode_answer(cut.decision.verdict, request)
            raise
        except asyncio.CancelledError:
            if not self._deadline.has_timed_out(task):
                raise
            self._log_late(request, "DUNNO")
            return
        except Exception:
            logger.exception("no decision, answered DUNNO: instance %r", request.instance)
            return
        finally:
            self._deadline.end(task)
            connection.send(answer)
        try:
            took = time.perf_counter() - began
            if context.has_side_effects(decision):
                self._settle_soon(decision, context)
            write_decision(logger, decision, "policy", action, known=chain(context.facts.told(), (took_ms(took),)))
        except Exception:
            logger.exception("after the answer: instance %r", request.instance)

    async def _decide(self, request: Request, task: asyncio.Task[None]) -> tuple[Decision, Context]:
        """Return the decision, or what there was of it when the time was up."""
        try:
            return await self._app.decide(request)
        except CutOff as cut:
            if not self._deadline.has_timed_out(task):
                raise
            self._log_late(request, action(cut.decision.verdict, request))
            return cut.decision, cut.context

    def _log_late(self, request: Request, answered: str) -> None:
        seconds, instance = self._deadline.seconds, request.instance
        logger.error("no decision within %g s, answered %s: instance %r", seconds, answered, instance)

    def _settle_soon(self, decision: Decision, context: Context) -> None:
        self._unsettled.append((decision, context))
        if not self._settling:
            self._settling = True
            asyncio.get_running_loop().call_later(_SETTLE_DELAY, self._settle_after_delay)

    def _settle_after_delay(self) -> None:
        self._settling = False
        self._settle()

    def _settle(self) -> None:
        """Start all side effects that are waiting."""
        if not self._unsettled:
            return
        unsettled, self._unsettled = self._unsettled, []
        started = start(_settle(unsettled))
        if started.ended:
            self._changed.set()
        else:
            self._start_task(finish_coroutine(started))


async def _settle(unsettled: Sequence[tuple[Decision, Context]]) -> None:
    for error in await gather_in_task([context.settle(decision) for decision, context in unsettled]):
        if isinstance(error, Exception):
            logger.error("after the answer", exc_info=error)


class _PolicyConnection(asyncio.Protocol):
    """One connection of Postfix."""

    __slots__ = ("_busy", "_finishing", "_parser", "_paused", "_server", "_transport", "_unread", "task")

    task: asyncio.Task[None]
    """The task that is answering a request."""

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
        asyncio.get_running_loop().call_soon(self.try_hand_over)

    def connection_lost(self, _exc: Exception | None) -> None:
        self._transport = None
        self._server._connections.discard(self)
        self._server._change_count(-1)
        self._server._changed.set()

    def data_received(self, data: bytes) -> None:
        self._parser.feed(data)
        if not self._busy:
            if (attributes := self._next()) is not None:
                self._busy = True
                self.task = self._server._start_task(self._answer_all(attributes))
        elif self._parser.pending > MAX_REQUEST and self._transport and not self._paused:
            # A client that sends without waiting for answers has to wait until they are written.
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """Answer what was asked even if the peer has closed its side."""
        self._finishing = True
        return self._busy

    def pause_writing(self) -> None:
        logger.warning("a policy client that does not read its answers is disconnected")
        self.finish(abort=True)

    def finish(self, *, abort: bool = False) -> None:
        """Close the connection when the requests received are answered; with `abort` at once."""
        self._finishing = True
        if self._transport is not None and abort:
            self._transport.abort()
        elif self._transport is not None and not self._busy:
            self._transport.close()

    def try_hand_over(self) -> bool:
        """Hand the connection over if this worker retires and nothing is under way. Return True if it is gone."""
        hand_over, transport = self._server._hand_over, self._transport
        if hand_over is None or transport is None or self._busy or self._finishing or transport.get_write_buffer_size():
            return False
        transport.pause_reading()  # from now on, input waits in the socket for its new owner
        if not hand_over(transport.get_extra_info("socket").fileno(), self._parser.unread()):
            transport.resume_reading()
            return False
        self._finishing = True
        transport.abort()  # closes our descriptor; the peer does not notice
        return True

    def _next(self) -> dict[str, str] | None:
        """Return the next request if it is complete. After a malformed one there is none."""
        try:
            return self._parser.next()
        except ProtocolError as error:
            logger.warning("a policy connection is closed without an answer: %s", error)
            self.finish()
            return None

    async def _answer_all(self, attributes: dict[str, str] | None) -> None:
        while attributes is not None:
            self._server._settle()
            await self._server._answer(attributes, self)
            if self._server._hand_over is not None and await self._hand_over_between_requests():
                return
            attributes = self._next()
        self._busy = False
        if self._finishing:
            self.finish()
        elif self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    async def _hand_over_between_requests(self) -> bool:
        """Try to hand the connection over between two requests."""
        await asyncio.sleep(0)  # the answer leaves at the end of this iteration of the loop
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        self._busy = False
        if self.try_hand_over():
            return True
        self._busy = True
        return False

    def send(self, answer: bytes) -> None:
        """Send an answer, unless the connection is closed."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(answer)
