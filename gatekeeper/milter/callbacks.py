# SPDX-License-Identifier: GPL-3.0-or-later
"""What libmilter calls, in its own words: a method for each callback, which tells the connection's MilterSession.

libmilter calls from threads of its own, one connection never from two at a time. A callback is short. Of a message
whose judgement takes DNS answers that are not remembered, MAIL (SPF and iprev start), the end of the header (DKIM keys
are fetched) and the end of the message hop into the event loop, and only the last one waits. All others end in
libmilter's thread: a hop costs 0.1 ms of CPU.

Postfix is told only at the end of the message what to do, and at connect where connections are limited; every other
callback is negotiated as needing no answer, which spares a round trip for each header.

libmilter must never see an exception: it is logged, and what becomes of the message says milter/heard.py.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import count
from typing import Any, TypeVar, TypeVarTuple

import milter

from gatekeeper.app.app import App
from gatekeeper.core.verdict import Verdict, printable
from gatekeeper.milter.edits import Edits
from gatekeeper.milter.heard import Heard, Unjudged
from gatekeeper.milter.message import EarlyStart
from gatekeeper.milter.session import MilterSession

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

T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")


class MilterConnection:
    """One connection of Postfix: its session, what was heard for certain, and the code of a callback without a word."""

    __slots__ = ("default_answer", "heard", "session")

    def __init__(self, session: MilterSession, *, no_reply: bool) -> None:
        self.session = session
        self.heard = Heard()
        self.default_answer: int = milter.NOREPLY if no_reply else milter.CONTINUE


Callback = Callable[["Callbacks", Any, MilterConnection, *Arguments], None]


def _guarded(
    callback: Callback[*Arguments], *, of_client: bool = False
) -> Callable[["Callbacks", Any, *Arguments], int]:
    """Give `callback` the connection, log its accidents, and return the default answer: libmilter sees no exception.

    Until it has come back the message counts as unheard (milter/heard.py), or all of them if it is one `of_client`.
    """
    name = callback.__name__

    def call(self: "Callbacks", ctx: Any, /, *arguments: *Arguments) -> int:
        connection: MilterConnection | None = ctx.getpriv()
        if connection is None:
            return int(milter.CONTINUE)
        stretch = connection.heard.client if of_client else connection.heard.message
        try:
            alone = not stretch.unfinished
            if alone:
                stretch.unfinished = name
            callback(self, ctx, connection, *arguments)
            if alone:
                stretch.unfinished = ""
        except BaseException:  # noqa: BLE001 (libmilter would go on as if nothing had happened)
            stretch.unfinished = name
            _log_accident(name)
        return connection.default_answer

    return call


def _guarded_before_mail(callback: Callback[*Arguments]) -> Callable[["Callbacks", Any, *Arguments], int]:
    return _guarded(callback, of_client=True)


def _log_accident(name: str) -> None:
    with suppress(Exception):  # the log may be what fails
        logger.exception("the milter's %s callback failed", name)


class Callbacks:
    """The callbacks, in the order of an SMTP session. `loop` is the event loop that waits for DNS and store.

    One for all connections. What one connection has for itself is its MilterConnection, which libmilter keeps with
    `ctx`, its handle of the connection.
    """

    def __init__(self, app: App, loop: asyncio.AbstractEventLoop) -> None:
        self._app = app
        self._loop = loop
        self._wanted_macros = app.plan.signing.macros.names
        self._limited = app.connections.limited
        self._not_answered = _NO_REPLY & ~milter.P_NR_CONN if self._limited else _NO_REPLY
        # Only DontSignMailTo asks for recipients.
        self._steps = _STEPS if app.plan.signing.never_to else _STEPS | milter.P_NORCPT
        self._settling: set[asyncio.Task[None]] = set()
        self._unjudged = Unjudged(app.plan.config, app.site.authserv_id)
        self._unjudged_count = count(1)

    def negotiate(self, ctx: Any, options: list[int]) -> int:
        """Agree with Postfix on actions and steps, in place in `options`, and begin the connection.

        If that fails libmilter hangs up: options that were agreed on by half would leave steps out, and Postfix knows
        what to do without a milter.
        """
        try:
            self._negotiate(ctx, options)
        except BaseException:  # noqa: BLE001 (libmilter would go on as if nothing had happened)
            _log_accident("negotiate")
            return int(milter.REJECT)
        return int(milter.CONTINUE)

    def _negotiate(self, ctx: Any, options: list[int]) -> None:
        if self._wanted_macros and options[0] & milter.SETSYMLIST:
            # What is asked for takes the place of milter_end_of_header_macros, which has the queue id.
            ctx.setsymlist(milter.M_EOH, " ".join(["i", *self._wanted_macros]))
        options[0] &= _ACTIONS
        options[1] &= self._steps
        options[2] = options[3] = 0
        no_reply = options[1] & self._not_answered == self._not_answered
        options[1] &= ~_NO_REPLY | (self._not_answered if no_reply else 0)
        session = MilterSession(self._app, leading_space=bool(options[1] & milter.P_HDR_LEADSPC))
        ctx.setpriv(MilterConnection(session, no_reply=no_reply))

    def connect(self, ctx: Any, name: str, family: int, address: Any) -> int:
        """Take the client's name and address; where connections are limited, answer whether it may stay."""
        answer = self._take_client(ctx, name, family, address)
        return self._admit(ctx) if self._limited else answer

    @_guarded_before_mail
    def _take_client(self, ctx: Any, connection: MilterConnection, name: str, _family: int, address: Any) -> None:
        host, port = (address[0], address[1]) if isinstance(address, tuple) else ("", None)
        connection.session.connect(name, host, port, daemon_name=_macro(ctx, "{daemon_name}"))
        connection.heard.client.unfinished = ""

    def _admit(self, ctx: Any) -> int:
        connection: MilterConnection | None = ctx.getpriv()
        if connection is None:
            return int(milter.CONTINUE)
        try:
            verdict = self._wait_for(connection.session.opened(), CONNECT_TIMEOUT)
            return _refuse(ctx, verdict) if verdict.refuses else int(milter.CONTINUE)
        except TimeoutError:
            logger.error("a connection was not counted within %d s and goes on", CONNECT_TIMEOUT)  # noqa: TRY400 (no traceback: nothing broke)
        except Exception:
            logger.exception("a connection could not be counted and goes on")
        return int(milter.CONTINUE)

    @_guarded_before_mail
    def helo(self, _ctx: Any, connection: MilterConnection, name: str) -> None:
        """Take the name of HELO or EHLO."""
        connection.session.helo(name)

    @_guarded
    def mail(self, ctx: Any, connection: MilterConnection, sender: bytes, *_parameters: bytes) -> None:
        """Begin a message."""
        session = connection.session
        connection.heard.begin()
        self._forget_message(session)
        user, method = _macro(ctx, "{auth_authen}"), _macro(ctx, "{auth_type}")
        self._start(session.mail(_text(sender), sasl_user=user, sasl_method=method, macros=self._macros(ctx)))
        connection.heard.message.unfinished = ""

    @_guarded
    def rcpt(self, _ctx: Any, connection: MilterConnection, recipient: bytes, *_parameters: bytes) -> None:
        """Take a recipient that Postfix has accepted."""
        connection.session.rcpt(_text(recipient))

    @staticmethod
    def header(ctx: Any, name: str, value: bytes) -> int:
        """Take a field of the header."""
        # Called a dozen times a message, so a plain function with _guarded written out: it takes a fifth less.
        connection: MilterConnection | None = ctx.getpriv()
        if connection is None:
            return int(milter.CONTINUE)
        heard = connection.heard
        try:
            before, heard.fields = heard.fields, False
            # The lines of a folded value end in a bare LF, as sendmail and Postfix have it, or in CRLF with other MTAs.
            value = value.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
            heard.field(name, value)
            connection.session.header(name.encode("utf-8", "surrogateescape"), value)
            heard.fields = before
        except BaseException:  # noqa: BLE001 (libmilter would go on as if nothing had happened)
            heard.fields = False
            _log_accident("header")
        return connection.default_answer

    @_guarded
    def end_of_header(self, ctx: Any, connection: MilterConnection) -> None:
        """Let the message be signed or judged, now that its header is complete."""
        queue_id = connection.heard.queue_id = _macro(ctx, "i")
        self._start(connection.session.end_of_header(queue_id=queue_id, macros=self._macros(ctx)))
        connection.heard.ended = True

    @_guarded
    def body(self, _ctx: Any, connection: MilterConnection, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        connection.session.body(chunk)

    def end_of_message(self, ctx: Any) -> int:
        """Tell Postfix what to do with the message."""
        try:
            connection: MilterConnection | None = ctx.getpriv()
            answer = self._end_message(ctx, connection)
            if connection is not None:
                connection.heard.begin()
            return answer
        except BaseException:  # noqa: BLE001 (libmilter would let the message go on)
            _log_accident("end_of_message")
            return int(milter.TEMPFAIL)

    def _end_message(self, ctx: Any, connection: MilterConnection | None) -> int:
        if connection is None:
            return self._end_unjudged(ctx, None, "there is no session")
        heard, editing = connection.heard, _Editing(ctx)
        try:
            if not heard.missing:
                answer = editing.apply(self._judge(connection.session))
                self._settle_soon(connection.session)
                return answer
            why = f"its callback {heard.missing} has not come to its end"
        except TimeoutError:
            why = f"not judged within {END_OF_MESSAGE_TIMEOUT:g} s"
        except milter.error as error:  # the MTA has hung up, or did not agree to what it is asked for
            why = f"the MTA does not take its edits: {error}"
        except BaseException:  # noqa: BLE001 (libmilter would let the message go on)
            _log_accident("end_of_message")
            why = "its end has failed"
        return self._end_unjudged(ctx, heard, why, editing)

    def _judge(self, session: MilterSession) -> Edits:
        """Return what is to be done with a message that was heard. Raises what goes wrong, TimeoutError too."""
        edits = session.end_without_waiting()
        return self._wait_for(session.end_on_event_loop(), END_OF_MESSAGE_TIMEOUT) if edits is None else edits

    def _settle_soon(self, session: MilterSession) -> None:
        if session.unsettled:
            try:
                self._loop.call_soon_threadsafe(self._settle, session)
            except Exception:
                logger.exception("what is to be remembered of a message is lost")

    def _end_unjudged(self, ctx: Any, heard: Heard | None, why: str, editing: "_Editing | None" = None) -> int:
        """Do with a message that was not judged what milter/heard.py says. Raises if that is not possible."""
        if editing is not None and editing.begun:
            edits = self._unjudged.edits_half_made(removed=editing.removed)
        else:
            edits = self._unjudged.edits(heard)
        answer = _Editing(ctx).apply(edits)
        with suppress(Exception):  # the log may be what fails
            logger.error(
                "milter.unjudged: a message %s (queue id %s): %s; %d fields in our name removed; number %d",
                "waits" if edits.reply is not None else "goes on",
                printable(heard.queue_id if heard is not None else "") or "unknown",
                why,
                len(edits.removals),
                next(self._unjudged_count),
            )
        return answer

    @_guarded
    def abort(self, _ctx: Any, connection: MilterConnection) -> None:
        """Forget the message: the client has given it up."""
        connection.heard.begin()
        self._forget_message(connection.session)

    def close(self, ctx: Any) -> int:
        """Forget the connection: it has ended."""
        try:
            connection: MilterConnection | None = ctx.getpriv()
            if connection is not None:
                ctx.setpriv(None)
                if self._limited:
                    self._loop.call_soon_threadsafe(connection.session.closed)
                self._forget_message(connection.session)
        except BaseException:  # noqa: BLE001 (nobody is left to be told)
            _log_accident("close")
        return int(milter.CONTINUE)

    def _macros(self, ctx: Any) -> dict[str, str]:
        """Return the macros of MacroList that Postfix has sent by now, with the connection or with the message."""
        return {name: _macro(ctx, name) for name in self._wanted_macros}

    def _start(self, work: EarlyStart | None) -> None:
        """Let the event loop begin `work`, if there is any, and do not wait for it."""
        if work is not None:
            self._loop.call_soon_threadsafe(work)

    def _wait_for(self, coroutine: Coroutine[Any, Any, T], timeout: float) -> T:
        """Return what `coroutine` comes to on the event loop. Raises TimeoutError after `timeout` seconds."""
        running = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return running.result(timeout)
        finally:
            running.cancel()  # of no effect if it is done
            del running  # an error holds this frame, which must not hold the error

    def _settle(self, session: MilterSession) -> None:
        """Begin, on the event loop, to write down what the session has judged."""
        task = self._loop.create_task(session.settle())
        self._settling.add(task)  # the loop itself holds no task
        task.add_done_callback(self._settling.discard)

    def _forget_message(self, session: MilterSession) -> None:
        if (facts := session.abort()) is not None:
            self._loop.call_soon_threadsafe(facts.close)


def register(callbacks: Callbacks) -> None:
    """Hand the callbacks to libmilter."""
    for hand_over, callback in (
        (milter.set_connect_callback, callbacks.connect),
        (milter.set_helo_callback, callbacks.helo),
        (milter.set_envfrom_callback, callbacks.mail),
        (milter.set_envrcpt_callback, callbacks.rcpt),
        (milter.set_header_callback, callbacks.header),
        (milter.set_eoh_callback, callbacks.end_of_header),
        (milter.set_body_callback, callbacks.body),
        (milter.set_eom_callback, callbacks.end_of_message),
        (milter.set_abort_callback, callbacks.abort),
        (milter.set_close_callback, callbacks.close),
    ):
        hand_over(callback)
    milter.set_flags(_ACTIONS)
    # pymilter fails before our callback runs if a HELO name is not UTF-8; the mail goes on without that fact.
    milter.set_exception_policy(milter.CONTINUE)
    milter.setbacklog(256)
    milter.register("gatekeeper", negotiate=callbacks.negotiate)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def _macro(ctx: Any, name: str) -> str:
    """Return a macro's value, empty if Postfix sent none or one that is not UTF-8."""
    try:
        return ctx.getsymval(name) or ""
    except UnicodeDecodeError:
        return ""


class _Editing:
    """The edits of one message on their way to Postfix: how far they have come is known if they fail.

    What was removed already shifts the rest, so nobody can begin again.
    """

    __slots__ = ("_ctx", "begun", "removed")

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        self.begun = self.removed = False

    def apply(self, edits: Edits) -> int:
        """Say the edits to Postfix, and return libmilter's code for the answer."""
        if edits.reply is not None:
            return _refuse(self._ctx, edits.reply)
        if edits.discard:
            return int(milter.DISCARD)
        self.begun = True
        for removal in edits.removals:
            self._ctx.chgheader(removal.name, removal.index, "")
        self.removed = True
        for insertion in edits.insertions:
            self._ctx.addheader(insertion.name, insertion.value, 0)
        if edits.quarantine:
            self._ctx.quarantine(printable(edits.quarantine))
        return int(milter.CONTINUE)


def _refuse(ctx: Any, verdict: Verdict) -> int:
    answer = int(milter.REJECT if verdict.code.startswith("5") else milter.TEMPFAIL)
    try:
        # smfi_setreply(3) takes a percent sign doubled
        ctx.setreply(verdict.code, verdict.enhanced, printable(verdict.text).replace("%", "%%"))
    except Exception:  # noqa: BLE001 (whatever it is: then Postfix says it in words of its own)
        _log_accident("setreply")
    return answer
