# SPDX-License-Identifier: GPL-3.0-or-later
"""One SMTP connection as the milter hears it. It carries several messages; each is a MilterMessage, made at MAIL.

No I/O and no libmilter here: callbacks.py calls this from libmilter's threads, replay and explain call it from theirs.
`mail` and `end_of_header` may offer work that can start early: what they return may be called on the event loop. At the
end of a message `end_without_waiting` is asked first; if it cannot tell, `end_on_event_loop` has to be awaited, and
`settle` after its answer.
"""

from collections.abc import Mapping

from gatekeeper.app.app import App
from gatekeeper.core.message import Header
from gatekeeper.core.request import UNKNOWN, Client, Request, Stage, parse_address
from gatekeeper.core.verdict import Decision, Verdict
from gatekeeper.milter.edits import Edits
from gatekeeper.milter.message import EarlyStart, MilterMessage, log_decision
from gatekeeper.pipeline.context import Context
from gatekeeper.pipeline.facts import Facts
from gatekeeper.signing.policy import DAEMON_NAME

_NO_MACROS: Mapping[str, str] = {}


class MilterSession:
    """One connection. `leading_space` tells whether header values come with the space behind the colon."""

    def __init__(self, app: App, *, leading_space: bool = True) -> None:
        self._app = app
        self._leading_space = leading_space
        self._client = Client()
        self._helo = ""
        self._macros: Mapping[str, str] = {}
        self._counted_as = ""
        self._message: MilterMessage | None = None
        self._unsettled: list[tuple[Context, Decision]] = []

    def connect(self, name: str, address: str, port: int | None, *, daemon_name: str = "") -> None:
        """Take the client: `name` is its confirmed name or, as Postfix writes it then, `[address]`."""
        unnamed = not name or name.startswith("[") or name == UNKNOWN
        self._client = Client(address=parse_address(address), name=UNKNOWN if unnamed else name, port=port)
        self._macros = {DAEMON_NAME: daemon_name}

    async def opened(self) -> Verdict:
        """Count this connection, where connections are limited, and say whether it may stay; `closed` ends it."""
        self._counted_as = self._app.connections.new()
        request = Request(stage=Stage.CONNECT, client=self._client, instance=self._counted_as)
        decision, context = await self._app.decide_connection(request)
        if decision.reasons:
            log_decision(decision)
        await context.settle(decision)
        return decision.verdict

    def closed(self) -> None:
        """Stop counting this connection: it has ended. To be called on the event loop."""
        self._app.connections.closed(self._counted_as)

    def helo(self, name: str) -> None:
        """Take the name of HELO or EHLO."""
        self._helo = name

    def mail(
        self, sender: str, *, sasl_user: str = "", sasl_method: str = "", macros: Mapping[str, str] = _NO_MACROS
    ) -> EarlyStart | None:
        """Begin a message, unless its client's mail is left alone. Offers to start SPF and iprev.

        `sender` may stand in its angle brackets, `macros` are those of MacroList that are set.
        """
        request = Request(
            stage=Stage.END_OF_MESSAGE,
            client=self._client,
            helo=self._helo,
            sender=_bare(sender),
            sasl_user=sasl_user,
            sasl_method=sasl_method,
        )
        known = {**self._macros, **macros}
        origin = self._app.plan.signing.origin(request, known)
        if origin.is_left_alone:
            self._message = None
            return None
        self._message = MilterMessage(self._app, request, origin, known)
        return self._message.start_envelope()

    def rcpt(self, recipient: str) -> None:
        """Take a recipient that Postfix has accepted."""
        message = self._message
        if message is not None:
            message.recipient_count += 1
            if self._app.plan.signing.never_to:
                message.recipients.append(_bare(recipient))

    def header(self, name: bytes, value: bytes) -> None:
        """Take one header field, folds as CRLF."""
        if self._message is not None:
            self._message.headers.append(Header(name, value if self._leading_space else b" " + value))

    def end_of_header(self, *, queue_id: str = "", macros: Mapping[str, str] = _NO_MACROS) -> EarlyStart | None:
        """Decide, now that the header is complete, whether to sign or to judge. Offers to fetch keys of signatures."""
        return self._message.end_of_header(queue_id, macros) if self._message is not None else None

    def body(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        if self._message is not None:
            self._message.body(chunk)

    async def end_of_message(self) -> Edits:
        """Sign or judge, and say what is to be done: nothing in observe mode, where another milter may do the same.

        Does not raise for a fault of the message or of the DNS.
        """
        edits = self.end_without_waiting()
        return edits if edits is not None else await self.end_on_event_loop()

    def end_without_waiting(self) -> Edits | None:
        """Do the same for a message about which nothing has to be waited for, in any thread.

        Returns None, and has done nothing, if `end_on_event_loop` has to be awaited.
        """
        message = self._message
        if message is None:
            return Edits()
        edits = message.end_without_waiting()
        if edits is not None:
            self._message = None
            self._remember_to_settle(message)
        return edits

    async def end_on_event_loop(self) -> Edits:
        """Do the same for the others."""
        message, self._message = self._message, None
        assert message is not None
        edits = await message.end_on_event_loop()
        self._remember_to_settle(message)
        return edits

    def _remember_to_settle(self, message: MilterMessage) -> None:
        if message.to_settle is not None:
            self._unsettled.append(message.to_settle)

    @property
    def unsettled(self) -> bool:
        """Whether there is something to `settle`."""
        return bool(self._unsettled)

    async def settle(self) -> None:
        """Write down what is to be remembered of the messages that were judged: once Postfix has its answer."""
        unsettled, self._unsettled = self._unsettled, []
        for context, decision in unsettled:
            await context.settle(decision)

    def abort(self) -> Facts | None:
        """Forget the message, if there is one; its facts are the caller's to close, on the event loop."""
        message, self._message = self._message, None
        return message.facts if message is not None else None


def _bare(path: str) -> str:
    """Return the address of a MAIL or RCPT path without its angle brackets."""
    return path.removeprefix("<").removesuffix(">")
