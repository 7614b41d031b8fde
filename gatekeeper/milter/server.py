# SPDX-License-Identifier: GPL-3.0-or-later
"""libmilter's life in this process: its listening socket, its threads, its end. What it calls is in callbacks.py.

libmilter runs its own threads, opens its own listener and owns HUP, TERM and INT. So one process serves one address.
`milter.main()` runs in a thread, while the process's main thread runs the event loop.

A unix socket on which only Postfix can connect, by the mode of its file, is libmilter's own: libmilter opens a
throw-away socket, and the listener that the parent opened is put over its descriptor. On every other socket (TCP, a
mode that lets everybody in, `milter.peers`) the gate of milter/gate.py accepts, and hands on what libmilter can bear to
a private socket of libmilter's that nobody else can reach.

Draining never uses signals (after SIGTERM libmilter cuts held sessions within 5 seconds): a dead listener takes the
place of the live one, or the gate shuts, and the process leaves when its last accepted connection has gone. The address
is free at once.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import socket
import syslog
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import milter

from gatekeeper.app.app import App
from gatekeeper.core.peers import Door
from gatekeeper.milter import gate
from gatekeeper.milter.callbacks import Callbacks, register
from gatekeeper.milter.gate import Gate
from gatekeeper.milter.open_sockets import count_connections, listening_descriptors

logger = logging.getLogger(__name__)

_LONGEST_PACKET = gate.LONGEST - 1  # bytes of its data
_OTHERS_MAY_WRITE = 0o002
_WAKE = signal.SIGUSR2
"""Means nothing but that a system call is over."""


class MilterServer:
    """Serves one listening socket with libmilter. One in a process, because libmilter keeps its state in statics."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._listener: socket.socket | None = None  # what the gate accepts on
        self._address: Any = None
        self._descriptor = -1  # where libmilter keeps its listening socket, if that is ours
        self._gate: Gate | None = None
        self._main: threading.Thread | None = None
        self._ended: asyncio.Future[None] | None = None

    async def start(self, listener: socket.socket) -> None:
        """Serve the connections that come to `listener` (listening, non-blocking), which is taken over.

        Raises OSError, milter.error.
        """
        loop = asyncio.get_running_loop()
        self._address = listener.getsockname()
        register(Callbacks(self._app, loop))
        _allow_long_fields()
        _silence_libmilter()
        if self._is_postfix_only(listener):
            self._descriptor = _adopt(listener)
            listener.close()  # libmilter's is the only one here from now on
        else:
            self._listener = listener
            self._gate = Gate(Door(self._app.plan.config.milter.peers, "milter"), _open_private())
        ended = self._ended = loop.create_future()

        def run() -> None:
            try:
                milter.main()
            except milter.error:
                logger.exception("libmilter ended")
            finally:
                loop.call_soon_threadsafe(ended.set_result, None)

        # Blocked here and so in every thread that libmilter starts: the parent alone ends a worker, by its control
        # socket. libmilter's own signal thread waits for these with sigwait, which must not see them either.
        signal.signal(_WAKE, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGTERM, signal.SIGINT})
        self._main = threading.Thread(target=run, name="libmilter", daemon=True)
        self._main.start()
        if self._gate is not None:
            self._gate.open(listener)

    def _is_postfix_only(self, listener: socket.socket) -> bool:
        """Return whether nobody can connect whom its administrator has not put into the group of Postfix."""
        config = self._app.plan.config.milter
        return listener.family == socket.AF_UNIX and not config.socket_mode & _OTHERS_MAY_WRITE and not config.peers

    async def wait_ended(self) -> None:
        """Return when libmilter gave up by itself, which it only does on an error."""
        assert self._ended is not None
        await self._ended

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 (the end of patience, not of the call)
        """Take no more connections; return when the last one that was accepted has gone, or after `timeout` seconds."""
        deadline = asyncio.get_running_loop().time() + timeout
        if self._gate is not None and self._listener is not None:
            self._gate.shut()
            self._listener.close()
            while self._gate.sessions and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 (once in a life)
                await asyncio.sleep(0.1)
            return
        self._let_go()
        # An accept() that was already under way is over long before this.
        await asyncio.sleep(0.1)
        while count_connections(self._address) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 (libmilter tells nobody)
            await asyncio.sleep(0.1)

    def _let_go(self) -> None:
        """Put a dead listener in the place of the live one, and have libmilter look at it."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
            # It has to listen, on an address that nobody knows: libmilter gives up over a socket that cannot, and over
            # one that is shut down.
            dead.bind("")
            dead.listen(1)
            dead.setblocking(False)
            os.dup2(dead.fileno(), self._descriptor)
        # Its poll(2) would hold the live one for up to five seconds more, in which the address is not free.
        if self._main is not None and self._main.ident is not None:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                signal.pthread_kill(self._main.ident, _WAKE)


def _allow_long_fields() -> None:
    """Let libmilter take packets of up to 1 MiB.

    By itself it hangs up on more than 64 KiB; but Postfix passes on fields of up to header_size_limit (100 kB), and a
    stranger who can make the milter go away passes unjudged where milter_default_action says accept. pymilter has no
    word for it; a libmilter without it keeps its limit.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(milter.__file__).smfi_setmaxdatasize(ctypes.c_size_t(_LONGEST_PACKET))


def _silence_libmilter() -> None:
    """Let libmilter write nothing to syslog by itself: syslog(3) waits for whoever reads /dev/log, with a lock held.

    A log that nobody reads would stop one thread after the other, and a peer can make it write lines. What matters is
    in our own log; what is lost are its words about connections that broke off. syslog(3) knows no way not to wait: the
    socket is its own, and where that does not take a line, it opens another and waits there.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).setlogmask(1 << syslog.LOG_EMERG)


def _adopt(listener: socket.socket) -> int:
    """Let libmilter open a unix socket, put `listener` over it, and return its descriptor."""
    before = listening_descriptors()
    with tempfile.TemporaryDirectory(prefix="gatekeeper-") as folder:
        _open_unix(folder)
    (descriptor,) = listening_descriptors() - before
    os.dup2(listener.fileno(), descriptor)
    return descriptor


def _open_private() -> Callable[[], socket.socket]:
    """Let libmilter open a unix socket that only this process can reach, and return what connects to it.

    Its file is gone; whoever holds it open, as we do, still gets there by /proc/self/fd.
    """
    with tempfile.TemporaryDirectory(prefix="gatekeeper-") as folder:
        held = os.open(_open_unix(folder), os.O_PATH | os.O_CLOEXEC)

    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.connect(f"/proc/self/fd/{held}")
        except OSError:
            sock.close()
            raise
        return sock

    return connect


def _open_unix(folder: str) -> str:
    """Let libmilter open its listening socket in `folder`, which is ours alone; return its path."""
    path = f"{folder}/milter.sock"
    milter.setconn(f"unix:{path}")
    milter.opensocket(False)
    return path
