# SPDX-License-Identifier: GPL-3.0-or-later
"""One SMTP connection as the milter hears it, and what comes of each message: callback state -> Edits.

No I/O and no libmilter here: server.py calls this from libmilter's threads, replay and explain call it from theirs.
A connection carries several messages; everything about one is in a Message, made at MAIL. `mail` and `end_of_header`
may offer work that can start early: what they return may be called on the event loop. Most messages need no event loop:
`end_at_once` ends what is ours, and what the DNS need not be asked about. For the rest there is `end_of_judged`, to be
awaited, and `settle` after its answer. The body is hashed as its chunks come and never kept.

Whose mail is it? What an authenticated user, an internal host or a submission service hands in is ours: signed if
a key is found for it, never judged. Everything else is judged, never signed.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version

from gatekeeper.app.app import App
from gatekeeper.auth.dkim import DkimVerifier
from gatekeeper.auth.results import Method, authentication_results, is_empty_result
from gatekeeper.core.log import write_decision
from gatekeeper.core.message import Header
from gatekeeper.core.request import UNKNOWN, Client, Request, Stage, parse_address
from gatekeeper.core.verdict import PASS, Decision, Mode, Note, Outcome, Step, Verdict, printable
from gatekeeper.dnsclient.resolver import WouldWait, run_without_waiting
from gatekeeper.milter.edits import Edits, Insert, Remove, every, forged_results, insertion
from gatekeeper.pipeline.context import Context
from gatekeeper.pipeline.facts import Facts
from gatekeeper.pipeline.pipeline import END_OF_DATA
from gatekeeper.signing.policy import DAEMON_NAME, SigningChoice
from gatekeeper.signing.resigning import Resigning
from gatekeeper.signing.signer import Signer

logger = logging.getLogger(__name__)

BUDGET = 30.0
"""Seconds that all facts of one message may take together from its end on; what is not known then is `temperror`."""

_NO_MACROS: Mapping[str, str] = {}

Ahead = Callable[[], None]
"""Begins to find something out; to be called on the event loop, and not waited for."""


class MilterMessage:
    """One message: the envelope as far as it is known, the header, and the hashes of the body so far."""

    def __init__(self, facts: Facts, request: Request) -> None:
        self.facts = facts
        self.request = request
        self.macros: dict[str, str] = {}
        self.recipient_count = 0
        self.recipients: list[str] = []
        self.headers: list[Header] = []
        self.edits: Edits | None = None  # known at the end of the header, whatever else the message is
        self.asking = False
        self.again: Resigning | None = None
        self.choice: SigningChoice | None = None
        self.signer: Signer | None = None
        self.verifier: DkimVerifier | None = None


class MilterSession:
    """One connection. `leading_space` tells whether header values come with the space behind the colon."""

    def __init__(self, app: App, *, leading_space: bool = True) -> None:
        self._app = app
        self._leading_space = leading_space
        self._client = Client()
        self._helo = ""
        self._macros: Mapping[str, str] = {}
        self._peer = False
        self._message: MilterMessage | None = None
        self._name = ""
        self._unsettled: list[tuple[Context, Decision]] = []

    def connect(self, name: str, address: str, port: int | None, *, daemon_name: str = "") -> None:
        """A client has connected. `name` is its confirmed name or, as Postfix writes it then, `[address]`."""
        unnamed = not name or name.startswith("[") or name == UNKNOWN
        self._client = Client(address=parse_address(address), name=UNKNOWN if unnamed else name, port=port)
        self._macros = {DAEMON_NAME: daemon_name}
        self._peer = bool(self._app.plan.signing.peers.find(self._client))

    async def opened(self) -> Verdict:
        """Where connections are limited: count this one, and say whether it may stay. Ends with `closed`."""
        self._name = self._app.connections.new()
        request = Request(stage=Stage.CONNECT, client=self._client, instance=self._name)
        decision, context = await self._app.decide_connection(request)
        if decision.reasons:
            _log(decision)
        await context.settle(decision)
        return decision.verdict

    def closed(self) -> None:
        """The connection has ended. To be called on the event loop."""
        self._app.connections.closed(self._name)

    def helo(self, name: str) -> None:
        """The client has said HELO or EHLO."""
        self._helo = name

    def mail(
        self, sender: str, *, sasl_user: str = "", sasl_method: str = "", macros: Mapping[str, str] = _NO_MACROS
    ) -> Ahead | None:
        """A message begins. `sender` may stand in its angle brackets, `macros` are those of MacroList that are set.
        Offers to start SPF and iprev.
        """
        if self._peer:
            return None
        request = Request(
            stage=Stage.END_OF_MESSAGE,
            client=self._client,
            helo=self._helo,
            sender=_bare(sender),
            sasl_user=sasl_user,
            sasl_method=sasl_method,
        )
        message = self._message = MilterMessage(self._app.facts(request), request)
        message.macros = {**self._macros, **macros}
        envelope = {Method.SPF, Method.IPREV, Method.DMARC} & set(self._app.plan.config.verify.methods)
        if envelope and self._judges(message) and not message.facts.recall_envelope():
            message.asking = True
            return message.facts.start_envelope
        return None

    def rcpt(self, recipient: str) -> None:
        """A recipient that Postfix has accepted."""
        if self._message is not None:
            self._message.recipient_count += 1
            if self._app.plan.signing.never_to:
                self._message.recipients.append(_bare(recipient))

    def header(self, name: bytes, value: bytes) -> None:
        """One header field, folds as CRLF."""
        if self._message is not None:
            self._message.headers.append(Header(name, value if self._leading_space else b" " + value))

    def end_of_header(self, *, queue_id: str = "", macros: Mapping[str, str] = _NO_MACROS) -> Ahead | None:
        """The header is complete: decide whether to sign or to judge. Offers to fetch the keys of the signatures."""
        message = self._message
        if message is None:
            return None
        message.request = message.request._replace(queue_id=queue_id, recipient_count=message.recipient_count)
        message.macros.update(macros)
        if self._app.plan.signing.exempted(message.headers):
            message.edits = Edits()
        else:
            self._judge_header(message)
        if message.edits is not None:
            return None
        if "s" in self._app.plan.config.milter.mode:
            self._choose(message)
        if not (self._judges(message) or self._judges_ours(message)):
            return None
        message.verifier = self._app.verifier(message.headers)
        message.facts.add_message(message.headers, message.verifier)
        if message.asking or not message.facts.recall_message():
            message.asking = True
            return message.facts.start_prefetch
        return None

    def _judge_header(self, message: MilterMessage) -> None:
        """Whether the form of its header alone decides what becomes of the message."""
        check = self._app.plan.config.checks.dkim
        verdict = PASS if check.mode is Mode.OFF else check.of_header(message.headers)
        if not verdict.reason:
            return
        applied = check.mode is Mode.ENFORCE
        step = Step(END_OF_DATA, check.name, verdict, applied=applied)
        decision = Decision(message.request, verdict if applied else PASS, (step,), verdict)
        _log(decision, logging.WARNING)
        if applied:
            message.edits = self._in_this_mode(_edits(decision, (), ()))

    def _choose(self, message: MilterMessage) -> None:
        """Find the identities that sign."""
        plan, headers, now = self._app.plan, message.headers, self._app.clock()
        choice = plan.signing.choose(message.request, headers, message.macros, message.recipients)
        message.choice = choice
        if choice.identities:
            signer = message.signer = Signer(headers, choice.identities, plan.sign_options, now)
            if not plan.sign_options.remove_old:
                message.again = Resigning.detect(headers, choice.identities, signer.names, now)

    def body(self, chunk: bytes) -> None:
        """The next bytes of the body."""
        message = self._message
        if message is not None:
            for reader in (message.signer, message.again, message.verifier):
                if reader is not None:
                    reader.update(chunk)

    async def end_of_message(self) -> Edits:
        """Sign or judge, and say what is to be done: nothing in observe mode, where another milter may do the same.

        Does not raise for a fault of the message or of the DNS.
        """
        edits = self.end_at_once()
        return edits if edits is not None else await self.end_of_judged()

    def end_at_once(self) -> Edits | None:
        """The same for a message about which nothing has to be waited for, in any thread: one that is not to be judged
        (OpenSSL signs without Python's lock), or that the DNS need not be asked about. None, and nothing done, if
        `end_of_judged` has to be awaited.
        """
        message = self._message
        if message is None:
            return Edits()
        if message.verifier is None and message.edits is None:
            self._message = None
            return self._in_this_mode(self._sign(message))
        if message.asking or self._app.keeps_proofs:
            return None
        try:
            edits = message.edits or self._in_this_mode(run_without_waiting(self._judge(message)))
        except WouldWait:
            return None
        self._message = None
        return edits

    async def end_of_judged(self) -> Edits:
        """The same for the others, on the event loop."""
        message, self._message = self._message, None
        assert message is not None
        try:
            if message.edits is not None:
                return message.edits
            message.facts.patience(BUDGET)
            message.facts.start_all()
            return self._in_this_mode(await self._judge(message))
        finally:
            message.facts.close()

    @property
    def unsettled(self) -> bool:
        """Whether there is something to `settle`."""
        return bool(self._unsettled)

    async def settle(self) -> None:
        """What is written down of the messages that have been judged: to be awaited once Postfix has its answer."""
        unsettled, self._unsettled = self._unsettled, []
        for context, decision in unsettled:
            await context.settle(decision)

    def _in_this_mode(self, edits: Edits) -> Edits:
        return edits if self._app.plan.config.mode == "enforce" else Edits(decision=edits.decision)

    def abort(self) -> Facts | None:
        """Forget the message, if there is one; whose facts are left is the caller's to close, on the event loop."""
        message, self._message = self._message, None
        return message.facts if message is not None else None

    def _judges(self, message: MilterMessage) -> bool:
        plan = self._app.plan
        return "v" in plan.config.milter.mode and not plan.signing.origin_reason(message.request, message.macros)

    def _judges_ours(self, message: MilterMessage) -> bool:
        """OpenDKIM also verifies what is ours when it finds no key to sign it with."""
        config, choice = self._app.plan.config, message.choice
        unsigned = choice is None or not (choice.identities or choice.reply)
        return config.verify.unsigned_ours and "v" in config.milter.mode and unsigned

    async def _judge(self, message: MilterMessage) -> Edits:
        """Tell what SPF, DKIM and DMARC say, and do what the checks make of it."""
        verify = self._app.plan.config.verify
        removals = self._forged(message)
        decision, context = await self._app.decide_message(message.request, message.facts)
        results = await authentication_results(self._authserv_id(message), message.facts, verify.methods)
        silent = not verify.tell_none and await is_empty_result(message.facts, verify.methods)
        told = decision
        if message.choice is not None and message.choice.reason != "sign.not_origin":
            told = replace(decision, steps=(*decision.steps, _step(message.choice, PASS)))
        _log(told)
        if context.has_side_effects(decision):
            self._unsettled.append((context, decision))
        return _edits(told, removals, (*(() if silent else (insertion(results),)), *self._software(message)))

    def _authserv_id(self, message: MilterMessage) -> str:
        ours, queue_id = self._app.site.authserv_id, message.request.queue_id
        return f"{ours}/{queue_id}" if queue_id and self._app.plan.config.verify.job_id else ours

    def _forged(self, message: MilterMessage) -> tuple[Remove, ...]:
        """Removals of Authentication-Results that speak in our name, as far as the configuration wants it."""
        verify = self._app.plan.config.verify
        if verify.remove_results == "none":
            return ()
        names = (self._app.site.authserv_id, *verify.remove_results_of)
        return forged_results(message.headers, names, verify.methods if verify.remove_results == "told" else None)

    def _software(self, message: MilterMessage) -> tuple[Insert, ...]:
        """OpenDKIM's SoftwareHeader, in our name."""
        if not self._app.plan.config.milter.software_header:
            return ()
        text = f"gatekeeper v{version('gatekeeper')} {self._app.site.hostname} {message.request.queue_id}"
        return (Insert("DKIM-Filter", f" {printable(text).rstrip()}"),)

    def _sign(self, message: MilterMessage) -> Edits:
        """Add our signatures, or defer what should have been signed and cannot be."""
        request, choice = message.request, message.choice
        removals: tuple[Remove, ...] = ()
        if request.sasl_user or request.sasl_method:
            # A user cannot speak for this relay; a host of ours that verified the message before us can.
            removals = self._forged(message)
        if choice is None:
            return Edits(removals=removals)
        insertions: tuple[Insert, ...] = ()
        if message.signer is not None:
            done = message.again.valid_identities() if message.again is not None else []
            insertions = tuple(insertion(field) for field in message.signer.signatures(without=done))
            if insertions:
                insertions += self._software(message)
            else:
                choice = replace(choice, reason="sign.already", notes=(*choice.notes, _SIGNED_BEFORE))
            if self._app.plan.sign_options.remove_old:
                removals += every(message.headers, "DKIM-Signature")
        told = choice.reply or PASS
        decision = Decision(request, told, (_step(choice, told),), told)
        _log(decision, logging.WARNING if choice.missed else logging.INFO)
        return _edits(decision, removals, insertions)


_SIGNED_BEFORE = Note("signing", "it bears our signature already, and that holds")


def _step(choice: SigningChoice, told: Verdict) -> Step:
    verdict = told if told.refuses else Verdict(Outcome.PASS, choice.reason)
    return Step(END_OF_DATA, "sign", verdict, choice.notes)


def _log(decision: Decision, level: int = logging.INFO) -> None:
    write_decision(logger, decision, "milter", level)
    if logger.isEnabledFor(logging.DEBUG):
        for step in decision.steps:
            for note in step.notes:
                logger.debug("%s: %s: %s: %s", decision.request.queue_id, step.check, note.what, printable(note.found))


def _edits(decision: Decision, removals: tuple[Remove, ...], insertions: tuple[Insert, ...]) -> Edits:
    verdict = decision.verdict
    if verdict.refuses:
        return Edits(reply=verdict, decision=decision)
    if verdict.outcome is Outcome.ACTION and verdict.text.startswith("DISCARD"):
        return Edits(discard=True, decision=decision)
    held = verdict.outcome is Outcome.ACTION and verdict.text.startswith("HOLD")
    quarantine = (verdict.text[5:] or verdict.reason) if held else ""
    if verdict.outcome is Outcome.ACTION and verdict.text.startswith("PREPEND "):
        name, _, value = verdict.text.removeprefix("PREPEND ").partition(":")
        insertions = (Insert(name, printable(value)), *insertions)  # below what we found out, which stays on top
    return Edits(removals=removals, insertions=insertions, quarantine=quarantine, decision=decision)


def _bare(path: str) -> str:
    """The address of a MAIL or RCPT path without its angle brackets."""
    return path.removeprefix("<").removesuffix(">")
