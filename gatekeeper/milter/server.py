# SPDX-License-Identifier: GPL-3.0-or-later
"""libmilter's life in this process: its listening socket, its threads, its end. What it calls is in callbacks.py.

libmilter runs its own threads, opens its own listener and owns HUP, TERM and INT. So one process serves one address:
libmilter opens a throw-away socket of the same family, and the listener that the parent opened is put over its
descriptor; `milter.main()` runs in a thread, while the process's main thread runs the event loop.

Draining never uses signals (after SIGTERM libmilter cuts held sessions within 5 seconds): a dead listener takes the
place of the live one, and the process leaves when its last accepted connection has gone.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import shutil
import signal
import socket
import syslog
import tempfile
import threading

import milter

from gatekeeper.app.app import App
from gatekeeper.milter.callbacks import Callbacks, register
from gatekeeper.milter.open_sockets import count_connections, listening_descriptors

logger = logging.getLogger(__name__)

_LONGEST_PACKET = 1024 * 1024 - 1  # bytes, as libmilter's MILTER_MDS_1M


class MilterServer:
    """Serves one listening socket with libmilter. One in a process, because libmilter keeps its state in statics."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._listener: socket.socket | None = None
        self._descriptor = -1  # where libmilter keeps its listening socket
        self._main: threading.Thread | None = None
        self._ended: asyncio.Future[None] | None = None

    async def start(self, listener: socket.socket) -> None:
        """Serve the connections that come to `listener` (listening, non-blocking). Raises OSError, milter.error."""
        loop = asyncio.get_running_loop()
        self._listener = listener
        register(Callbacks(self._app, loop))
        _allow_long_fields()
        _silence_libmilter()
        self._descriptor = _adopt(listener)
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
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGTERM, signal.SIGINT})
        self._main = threading.Thread(target=run, name="libmilter", daemon=True)
        self._main.start()

    async def wait_ended(self) -> None:
        """Return when libmilter gave up by itself, which it only does on an error."""
        assert self._ended is not None
        await self._ended

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109 (the end of patience, not of the call)
        """Take no more connections; return when the last one that was accepted has gone, or after `timeout` seconds."""
        assert self._listener is not None
        address = self._listener.getsockname()
        with socket.socket(self._listener.family, socket.SOCK_STREAM) as dead:
            # It has to listen, on an address that nobody knows: libmilter gives up over a socket that cannot.
            dead.bind("" if isinstance(address, str) else _loopback(self._listener.family))
            dead.listen(1)
            dead.setblocking(False)
            os.dup2(dead.fileno(), self._descriptor)
        deadline = asyncio.get_running_loop().time() + timeout
        # An accept() that was already under way is over long before this.
        await asyncio.sleep(0.1)
        while count_connections(address) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 (libmilter tells nobody)
            await asyncio.sleep(0.1)


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
    """Let libmilter open a socket of the same family, put `listener` over it, and return its descriptor."""
    before = listening_descriptors()
    folder = tempfile.mkdtemp(prefix="gatekeeper-")
    try:
        if listener.family == socket.AF_UNIX:
            milter.setconn(f"unix:{folder}/milter.sock")
            milter.opensocket(False)
        else:
            _open_inet(listener.family)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    (descriptor,) = listening_descriptors() - before
    os.dup2(listener.fileno(), descriptor)
    return descriptor


def _open_inet(family: int) -> None:
    """Open libmilter's throw-away TCP socket on some free port of loopback; libmilter takes no port 0."""
    kind = "inet6" if family == socket.AF_INET6 else "inet"
    for attempt in range(10):
        with socket.socket(family) as probe:
            probe.bind(_loopback(family))
            host, port = probe.getsockname()[:2]
        milter.setconn(f"{kind}:{port}@{host}")
        try:
            milter.opensocket(False)
            return
        except milter.error:  # somebody else took the port in between
            if attempt == 9:
                raise


def _loopback(family: int) -> tuple[str, int]:
    return ("::1" if family == socket.AF_INET6 else "127.0.0.1", 0)
