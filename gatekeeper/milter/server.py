# SPDX-License-Identifier: GPL-3.0-or-later
"""libmilter, lived with: the only importer of pymilter.

libmilter runs its own threads, opens its own listener and owns HUP, TERM and INT. So one process serves one address:
libmilter opens a throw-away socket of the same family, and the listener that the parent opened is put over its
descriptor; `milter.main()` runs in a thread, while the process's main thread runs the event loop. A callback is
short: it feeds the connection's Session. Of a message whose judgement takes DNS answers that are not remembered, MAIL
(SPF and iprev start), the end of the header (DKIM keys are fetched) and the end of the message hop into the loop, and
only the last one waits. All others end in libmilter's thread: a hop costs 0.1 ms of CPU.

Draining never uses signals (after SIGTERM libmilter cuts held sessions within 5 seconds): a dead listener takes the
place of the live one, and the process leaves when its last accepted connection has gone.

Postfix is told only at the end of the message what to do, and at connect where connections are limited; every other
callback is negotiated as needing no answer, which spares a round trip for each header.
"""

import asyncio
import contextlib
import ctypes
import logging
import os
import shutil
import signal
import socket
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import milter

from gatekeeper.app.app import App
from gatekeeper.core.verdict import Verdict, printable
from gatekeeper.milter.edits import Edits
from gatekeeper.milter.session import Ahead, MilterSession

logger = logging.getLogger(__name__)

END_OF_MESSAGE_TIMEOUT = 50.0
"""Seconds after which a message goes on unjudged: below the content_timeout of postfix-snippets (60 s)."""
CONNECT_TIMEOUT = 2.0
"""Seconds after which a connection goes on uncounted."""

_NO_REPLY = (
    milter.P_NR_CONN
    | milter.P_NR_HELO
    | milter.P_NR_MAIL
    | milter.P_NR_RCPT
    | milter.P_NR_DATA
    | milter.P_NR_HDR
    | milter.P_NR_EOH
    | milter.P_NR_BODY
)
_STEPS = _NO_REPLY | milter.P_HDR_LEADSPC | milter.P_NOUNKNOWN | milter.P_NODATA
_ACTIONS = milter.ADDHDRS | milter.CHGHDRS | milter.QUARANTINE | milter.SETSYMLIST

P = ParamSpec("P")

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
        _register(self._app, loop)
        _allow_long_fields()
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
        while _connections(address) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 (libmilter tells nobody)
            await asyncio.sleep(0.1)


def _allow_long_fields() -> None:
    """Let libmilter take packets of up to 1 MiB.

    By itself it hangs up on more than 64 KiB; but Postfix passes on fields of up to header_size_limit (100 kB), and a
    stranger who can make the milter go away passes unjudged where milter_default_action says accept. pymilter has no
    word for it; a libmilter without it keeps its limit.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(milter.__file__).smfi_setmaxdatasize(ctypes.c_size_t(_LONGEST_PACKET))


def _adopt(listener: socket.socket) -> int:
    """Let libmilter open a socket of the same family and put `listener` over it; its descriptor is returned."""
    before = set(_listening())
    folder = tempfile.mkdtemp(prefix="gatekeeper-")
    try:
        if listener.family == socket.AF_UNIX:
            milter.setconn(f"unix:{folder}/milter.sock")
            milter.opensocket(False)
        else:
            _open_inet(listener.family)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    (descriptor,) = set(_listening()) - before
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


def _sockets() -> Iterator[tuple[int, socket.socket]]:
    """Every socket of this process, by descriptor, each as a duplicate that is closed at the next.

    Nothing else is duplicated: closing the duplicate of a file would end all locks that this process has on it
    (fcntl(2)), and SQLite lives by its own (stores/sqlite/files.py).
    """
    for entry in list(Path("/proc/self/fd").iterdir()):
        try:
            if not stat.S_ISSOCK(os.fstat(int(entry.name)).st_mode):
                continue
            duplicate = os.dup(int(entry.name))
        except OSError:  # closed meanwhile
            continue
        try:
            sock = socket.socket(fileno=duplicate)
        except OSError:  # no socket
            os.close(duplicate)
            continue
        with sock:
            yield int(entry.name), sock


def _listening() -> list[int]:
    return [number for number, sock in _sockets() if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)]


def _connections(address: Any) -> int:
    """How many accepted connections of the listener at `address` are open: exact, unlike any counter of callbacks."""
    count = 0
    for _, sock in _sockets():
        local = sock.getsockname()
        # A listener on a wildcard address accepts connections whose own address is a real one: the port decides.
        inet = isinstance(local, tuple) and isinstance(address, tuple)
        same = local[1] == address[1] if inet else local == address
        count += same and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    return count


class _MilterConnection:
    """One connection of Postfix: its Session, and whether this Postfix wants no replies."""

    __slots__ = ("no_reply", "session")

    def __init__(self, session: MilterSession, no_reply: bool) -> None:
        self.session = session
        self.no_reply: int = milter.NOREPLY if no_reply else milter.CONTINUE


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _macro(ctx: Any, name: str) -> str:
    """A macro's value, empty if Postfix sent none or one that is no UTF-8."""
    try:
        return ctx.getsymval(name) or ""
    except UnicodeDecodeError:
        return ""


def _guarded(callback: Callable[Concatenate[Any, _MilterConnection, P], None]) -> Callable[Concatenate[Any, P], int]:
    """`callback` with the connection's state, its accidents logged: libmilter must never see an exception."""

    def call(ctx: Any, /, *args: P.args, **kwargs: P.kwargs) -> int:
        connection: _MilterConnection | None = ctx.getpriv()
        if connection is None:
            return int(milter.CONTINUE)
        try:
            callback(ctx, connection, *args, **kwargs)
        except Exception:
            logger.exception("the milter's %s callback failed", callback.__name__)
        return connection.no_reply

    return call


@_guarded
def _helo(ctx: Any, connection: _MilterConnection, name: str) -> None:
    connection.session.helo(name)


@_guarded
def _rcpt(ctx: Any, connection: _MilterConnection, recipient: bytes, *parameters: bytes) -> None:
    connection.session.rcpt(_text(recipient))


def _header(ctx: Any, name: str, value: bytes) -> int:
    # Called a dozen times a message, so _guarded written out: without its second call, 1 µs instead of 2.
    connection: _MilterConnection | None = ctx.getpriv()
    if connection is None:
        return int(milter.CONTINUE)
    try:
        # libmilter ends the lines of a folded value with a bare LF
        connection.session.header(name.encode("utf-8", "surrogateescape"), value.replace(b"\n", b"\r\n"))
    except Exception:
        logger.exception("the milter's header callback failed")
    return connection.no_reply


@_guarded
def _body(ctx: Any, connection: _MilterConnection, chunk: bytes) -> None:
    connection.session.body(chunk)


def _register(app: App, loop: asyncio.AbstractEventLoop) -> None:
    """Tell libmilter our callbacks."""

    def ahead(work: Ahead | None) -> None:
        if work is not None:
            loop.call_soon_threadsafe(work)

    wanted = app.plan.signing.macros.names

    def macros(ctx: Any) -> dict[str, str]:
        """The macros of MacroList that Postfix has sent by now, with the connection or with the message."""
        return {name: _macro(ctx, name) for name in wanted}

    limited = app.connections.limited
    not_answered = _NO_REPLY & ~milter.P_NR_CONN if limited else _NO_REPLY
    steps = _STEPS if app.plan.signing.never_to else _STEPS | milter.P_NORCPT  # nothing else asks for recipients

    def negotiate(ctx: Any, options: list[int]) -> int:
        if wanted and options[0] & milter.SETSYMLIST:
            # What is asked for takes the place of milter_end_of_header_macros, which has the queue id.
            ctx.setsymlist(milter.M_EOH, " ".join(["i", *wanted]))
        options[0] &= _ACTIONS
        options[1] &= steps
        options[2] = options[3] = 0
        no_reply = options[1] & not_answered == not_answered
        options[1] &= ~_NO_REPLY | (not_answered if no_reply else 0)
        ctx.setpriv(
            _MilterConnection(MilterSession(app, leading_space=bool(options[1] & milter.P_HDR_LEADSPC)), no_reply)
        )
        return int(milter.CONTINUE)

    @_guarded
    def connect(ctx: Any, connection: _MilterConnection, name: str, family: int, address: Any) -> None:
        host, port = (address[0], address[1]) if isinstance(address, tuple) else ("", None)
        connection.session.connect(name, host, port, daemon_name=_macro(ctx, "{daemon_name}"))

    def admit(ctx: Any, name: str, family: int, address: Any) -> int:
        """`connect`, and an answer."""
        connect(ctx, name, family, address)
        connection: _MilterConnection | None = ctx.getpriv()
        if connection is None:
            return int(milter.CONTINUE)
        opened = asyncio.run_coroutine_threadsafe(connection.session.opened(), loop)
        try:
            verdict = opened.result(CONNECT_TIMEOUT)
            return _refuse(ctx, verdict) if verdict.refuses else int(milter.CONTINUE)
        except TimeoutError:
            logger.error("a connection was not counted within %d s and goes on", CONNECT_TIMEOUT)  # noqa: TRY400 (no traceback: nothing broke)
        except Exception:
            logger.exception("a connection could not be counted and goes on")
        finally:
            opened.cancel()  # of no effect if it is done
        return int(milter.CONTINUE)

    def forget(session: MilterSession) -> None:
        if (facts := session.abort()) is not None:
            loop.call_soon_threadsafe(facts.close)

    @_guarded
    def abort(ctx: Any, connection: _MilterConnection) -> None:
        forget(connection.session)

    @_guarded
    def mail(ctx: Any, connection: _MilterConnection, sender: bytes, *parameters: bytes) -> None:
        forget(connection.session)
        user, method = _macro(ctx, "{auth_authen}"), _macro(ctx, "{auth_type}")
        session = connection.session
        ahead(session.mail(_text(sender), sasl_user=user, sasl_method=method, macros=macros(ctx)))

    @_guarded
    def end_of_header(ctx: Any, connection: _MilterConnection) -> None:
        ahead(connection.session.end_of_header(queue_id=_macro(ctx, "i"), macros=macros(ctx)))

    def judge(session: MilterSession) -> Edits:
        judged = asyncio.run_coroutine_threadsafe(session.end_of_judged(), loop)
        try:
            return judged.result(END_OF_MESSAGE_TIMEOUT)
        finally:
            judged.cancel()  # of no effect if it is done

    settling: set[asyncio.Task[None]] = set()

    def settle(session: MilterSession) -> None:
        task = loop.create_task(session.settle())
        settling.add(task)
        task.add_done_callback(settling.discard)

    def end_of_message(ctx: Any) -> int:
        connection: _MilterConnection | None = ctx.getpriv()
        if connection is None:
            return int(milter.CONTINUE)
        try:
            edits = connection.session.end_at_once()
            if edits is not None:
                return _apply(ctx, edits)
            answer = _apply(ctx, judge(connection.session))
            if connection.session.unsettled:
                loop.call_soon_threadsafe(settle, connection.session)
            return answer
        except TimeoutError:
            logger.error("a message was not judged within %d s and goes on as it is", END_OF_MESSAGE_TIMEOUT)  # noqa: TRY400 (no traceback: nothing broke)
        except Exception:
            logger.exception("the end of a message failed, and it goes on as it is")
        return int(milter.CONTINUE)

    def close(ctx: Any) -> int:
        connection: _MilterConnection | None = ctx.getpriv()
        if connection is not None:
            forget(connection.session)
            if limited:
                loop.call_soon_threadsafe(connection.session.closed)
            ctx.setpriv(None)
        return int(milter.CONTINUE)

    milter.set_flags(_ACTIONS)
    milter.set_connect_callback(admit if limited else connect)
    milter.set_helo_callback(_helo)
    milter.set_envfrom_callback(mail)
    milter.set_envrcpt_callback(_rcpt)
    milter.set_header_callback(_header)
    milter.set_eoh_callback(end_of_header)
    milter.set_body_callback(_body)
    milter.set_eom_callback(end_of_message)
    milter.set_abort_callback(abort)
    milter.set_close_callback(close)
    # pymilter fails before our callback runs if a HELO name is no UTF-8; the mail goes on without that fact.
    milter.set_exception_policy(milter.CONTINUE)
    milter.setbacklog(256)
    milter.register("gatekeeper", negotiate=negotiate)


def _apply(ctx: Any, edits: Edits) -> int:
    """Say the edits to Postfix. The answer is libmilter's code for it."""
    if edits.reply is not None:
        return _refuse(ctx, edits.reply)
    if edits.discard:
        return int(milter.DISCARD)
    for removal in edits.removals:
        ctx.chgheader(removal.name, removal.index, "")
    for insertion in edits.insertions:
        ctx.addheader(insertion.name, insertion.value, 0)
    if edits.quarantine:
        ctx.quarantine(printable(edits.quarantine))
    return int(milter.CONTINUE)


def _refuse(ctx: Any, verdict: Verdict) -> int:
    # smfi_setreply(3) takes a percent sign doubled
    ctx.setreply(verdict.code, verdict.enhanced, printable(verdict.text).replace("%", "%%"))
    return int(milter.REJECT if verdict.code.startswith("5") else milter.TEMPFAIL)
