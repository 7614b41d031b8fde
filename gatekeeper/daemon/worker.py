# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of a worker process, from the fork to its end: drop privileges, serve, drain, leave.

The main thread runs the event loop and listens to the parent on the control socket (daemon/control_channel.py):
`retire` (a reload: others take the new connections and, between two requests, yours), `take` (a connection that a
retired worker had), `leave` (retired for so long that it is to end) and `stop` (soon over). Its end of file means that
the parent has gone: nobody holds the addresses any more, so that a new start finds them free, and what is held is
drained. To the parent go `ready` and then `alive` every few seconds, by which it
knows that the loop still turns.
"""

import asyncio
import contextlib
import logging
import os
import pwd
import resource
import socket
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NoReturn

import uvloop

from gatekeeper.app.app import App, open_app
from gatekeeper.app.plan import Plan
from gatekeeper.core.log import tell_dropped
from gatekeeper.daemon import control_channel as channel
from gatekeeper.daemon.background import leave_terminal
from gatekeeper.dnsclient.live import preload
from gatekeeper.policy.connection_balance import BalanceSlot
from gatekeeper.policy.server import PolicyServer
from gatekeeper.stores import store_url
from gatekeeper.stores.store import StoreError

logger = logging.getLogger(__name__)

HEARTBEAT = 2.0
"""Seconds between two signs of life."""
STOP_TIMEOUT = 10.0
"""Seconds that held sessions have when the service stops."""
RETIRE_TIMEOUT = 1200.0
"""Seconds that a worker lives on after a reload: Postfix keeps a policy connection for at most 1000 s
(`smtpd_policy_service_max_ttl`)."""

EX_TEMPFAIL = 75


class WorkerKind(StrEnum):
    """What a worker serves."""

    POLICY = "policy"
    MILTER = "milter"


@dataclass(frozen=True, slots=True)
class ProcessUser:
    """Whom a worker becomes when the parent is root."""

    user: str
    uid: int
    gid: int

    def assume(self) -> None:
        """Become this user, for good. Raises OSError."""
        os.initgroups(self.user, self.gid)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        os.environ["HOME"] = pwd.getpwuid(self.uid).pw_dir


def raise_file_limit() -> None:
    """Raise the limit of open files to the hard limit.

    The usual 1024 (systemd's soft limit, made for programs that call select(2)) are fewer than the idle connections of
    a busy Postfix.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # a container may forbid it, and most relays never need so many
        logger.warning("at most %d files may be open: %s", soft, error)


def preload_code(plan: Plan, kinds: Collection[WorkerKind]) -> None:
    """Import what workers of these kinds import late, all but libmilter.

    The parent does, so that its workers need not, each for itself, and serve at once. A worker makes sure of it before
    it drops its privileges, since it may not be able to read the code afterwards.
    """
    preload()
    store_url.preload(plan.config.store.url)
    if WorkerKind.MILTER in kinds:
        import gatekeeper.milter.open_sockets
        import gatekeeper.milter.session  # noqa: F401 (a service without milter does without its memory)


def run_worker(
    kind: WorkerKind,
    plan: Plan,
    listeners: Sequence[socket.socket],
    control: socket.socket,
    process_user: ProcessUser | None,
    slot: BalanceSlot,
    *,
    detached: bool = False,
) -> NoReturn:
    """Be a worker in this freshly forked process, and end it: with status 0 after draining, 75 after an accident.

    `slot` is where a policy worker counts its connections. With `detached` it lets go of standard input and output once
    it serves.
    """
    status = EX_TEMPFAIL
    try:
        os.setpgid(0, 0)  # Ctrl-C reaches only the parent
        preload_code(plan, (kind,))
        if kind is WorkerKind.MILTER:
            import gatekeeper.milter.server  # noqa: F401 (libmilter belongs into workers, never into the parent)
        if process_user is not None:
            process_user.assume()
        uvloop.run(_serve(kind, plan, listeners, control, slot, detached))
        status = 0
    except (OSError, StoreError) as error:
        logger.error("%s worker cannot work: %s", kind, error)  # noqa: TRY400 (the sentence says it; a traceback would hide it)
    except BaseException:
        logger.exception("%s worker failed", kind)
    finally:
        # libmilter's threads and its exit handlers must not run; there is nothing left to flush.
        try:
            logging.shutdown()
        finally:
            os._exit(status)


async def _serve(
    kind: WorkerKind,
    plan: Plan,
    listeners: Sequence[socket.socket],
    control: socket.socket,
    slot: BalanceSlot,
    detached: bool,
) -> None:
    app = await open_app(plan)
    try:
        orders = _Orders(control, listeners, detached)
        if kind is WorkerKind.POLICY:
            await _serve_policy(app, listeners, orders, slot)
        else:
            await _serve_milter(app, listeners[0], orders)
    finally:
        await app.close()


async def _serve_policy(app: App, listeners: Sequence[socket.socket], orders: "_Orders", slot: BalanceSlot) -> None:
    app.watch_lists()
    server = PolicyServer(app, slot=slot, peers=app.plan.config.policy.peers)
    await server.serve(listeners)
    orders.take = server.adopt
    orders.ready()
    timeout = await orders.timeout
    server.stop_accepting()
    for listener in listeners:  # an address that was taken out of the configuration is free, whatever we still hold
        listener.close()
    # After a reload nobody closes a connection that Postfix keeps for its next request: that would cost it a second.
    if timeout == RETIRE_TIMEOUT:
        await server.retire(timeout, orders.give)
    else:
        await server.drain(timeout)


async def _serve_milter(app: App, listener: socket.socket, orders: "_Orders") -> None:
    from gatekeeper.milter.server import MilterServer

    server = MilterServer(app)
    await server.start(listener)
    orders.shut_down = lambda: None  # libmilter would end; `drain` lets go of the listener at once
    orders.ready()
    ended = asyncio.ensure_future(server.wait_ended())
    waited: set[asyncio.Future[Any]] = {ended, orders.timeout}
    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    if ended.done():
        raise OSError("libmilter ended by itself")
    drained = asyncio.ensure_future(server.drain(orders.timeout.result()))
    await asyncio.wait({ended, drained}, return_when=asyncio.FIRST_COMPLETED)


class _Orders:
    """The control socket as the worker sees it. `timeout` is set, to the seconds left, once the worker is to go."""

    def __init__(self, control: socket.socket, listeners: Sequence[socket.socket], detached: bool) -> None:
        self._control = control
        self._detached = detached
        self.shut_down: Callable[[], None] = lambda: shut_down(listeners)
        """Ends the listening sockets for all who hold them."""
        self._loop = asyncio.get_running_loop()
        self.timeout: asyncio.Future[float] = self._loop.create_future()
        self.take: Callable[[socket.socket, bytes], None] = lambda sock, _unread: sock.close()
        """What becomes of a connection that we are handed."""
        self._loop.add_reader(control, self._heard)

    def ready(self) -> None:
        """Tell the parent that we serve, and from now on that we live."""
        if self._detached:
            leave_terminal()
        channel.send_packet(self._control, channel.READY)
        self._beat()

    def give(self, descriptor: int, unread: bytes) -> bool:
        """Hand a policy connection to the parent, for another worker; False if it has to stay."""
        return len(unread) <= channel.MOST_BYTES and channel.send_packet(
            self._control, channel.TAKE, unread, descriptor
        )

    def _beat(self) -> None:
        # One that is lost, because the parent is too busy to listen, is followed by the next.
        channel.send_packet(self._control, channel.ALIVE)
        tell_dropped()
        self._loop.call_later(HEARTBEAT, self._beat)

    def _heard(self) -> None:
        packet = channel.receive_packet(self._control)
        if packet is None:
            return
        if packet.word == channel.TAKE and packet.descriptor >= 0:
            self.take(socket.socket(fileno=packet.descriptor), packet.data)
            return
        packet.close()
        if not packet.word:
            self._loop.remove_reader(self._control)
            self.shut_down()
        if packet.word == channel.RETIRE and not self.timeout.done():
            self.timeout.set_result(RETIRE_TIMEOUT)
            return
        if not self.timeout.done():
            self.timeout.set_result(STOP_TIMEOUT)
        elif packet.word != channel.STOP:  # retired long ago, or an orphan: it has the time of any other
            self._loop.call_later(STOP_TIMEOUT, os._exit, 0)
        else:
            # Retired before, and now the service stops: what is under way is nearly done, the rest is idle.
            self._loop.call_later(1.0, os._exit, 0)


def shut_down(listeners: Sequence[socket.socket]) -> None:
    """Have nobody listen there any more, whoever holds a copy of these sockets, and wake who waits on them.

    Closing would only take our copy, and leave clients to wait for an accept that does not come.
    """
    for listener in listeners:
        with contextlib.suppress(OSError):  # it has been shut down already
            listener.shutdown(socket.SHUT_RDWR)


def find_process_user(user: str, group: str) -> ProcessUser | None:
    """Return the user that workers become, or None if we are not root. Raises LookupError with a sentence."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise LookupError(
            f"user = {user!r}: there is no such user; create it (useradd --system {user}) or name another"
        ) from None
    if not group:
        return ProcessUser(user, entry.pw_uid, entry.pw_gid)
    import grp

    try:
        return ProcessUser(user, entry.pw_uid, grp.getgrnam(group).gr_gid)
    except KeyError:
        raise LookupError(f"group = {group!r}: there is no such group") from None
