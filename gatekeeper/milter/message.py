# SPDX-License-Identifier: GPL-3.0-or-later
"""One message as the milter hears it, from MAIL to its end, and what is to be done with it: callbacks -> Edits.

Whose mail is it? Decided at MAIL (signing/origin.py). What is ours is signed if a key is found for it, and not judged;
a stranger's is judged, and not signed; what is exempt is left alone.

    MAIL            `start_envelope`      whose it is; SPF and iprev begin, if it will be judged
    each field      `headers`
    end of header   `end_of_header`       left alone, refused by its header, signed or judged; the keys are fetched
    each chunk      `body`                into the hashes, and never kept
    end             `end_without_waiting` or, if that is not possible, `end_on_event_loop`

No I/O and no libmilter here: all but `end_on_event_loop` and what is offered as an EarlyStart may be called in any
thread. Most messages need no event loop: what is ours, and what the DNS need not be asked about.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version

from gatekeeper.app.app import App
from gatekeeper.auth.dkim import DkimVerifier
from gatekeeper.auth.results import authentication_results, is_empty_result
from gatekeeper.core.log import Pair, took_ms, write_decision
from gatekeeper.core.message import Header
from gatekeeper.core.request import Request
from gatekeeper.core.verdict import PASS, Decision, Mode, Note, Outcome, Step, Verdict, printable
from gatekeeper.dnsclient.resolver import WouldWait, run_without_waiting
from gatekeeper.milter.edits import Edits, Insert, Remove, answer, edits_of, every, forged_results, insertion
from gatekeeper.pipeline.context import Context
from gatekeeper.pipeline.pipeline import END_OF_DATA
from gatekeeper.signing.origin import Origin, Owner
from gatekeeper.signing.policy import SigningChoice
from gatekeeper.signing.resigning import Resigning
from gatekeeper.signing.signer import Signer, SigningIdentity

logger = logging.getLogger(__name__)

BUDGET = 30.0
"""Seconds that all facts of one message may take together from its end on; what is not known then is `temperror`."""

EarlyStart = Callable[[], None]
"""Begins to find something out; to be called on the event loop, and not waited for."""

_SIGNED_BEFORE = Note("signing", "it bears our signature already, and that holds")


class MilterMessage:
    """One message: envelope and header as far as they are known, the hashes of the body so far, and what comes of it.

    `macros` are those that were known at MAIL.
    """

    def __init__(self, app: App, request: Request, origin: Origin, macros: dict[str, str]) -> None:
        self._app = app
        self._config = app.plan.config
        self.request = request
        self.origin = origin
        self.facts = app.facts(request)
        self.macros = macros
        self.recipient_count = 0
        self.recipients: list[str] = []  # only where DontSignMailTo asks for them
        self.headers: list[Header] = []
        self.to_settle: tuple[Context, Decision] | None = None  # to be written down once Postfix has its answer
        self._began = 0.0  # to be judged or signed, on the clock of time.perf_counter
        self._needs_event_loop = False  # because something has been asked of the DNS
        # Known at the end of the header, each None until then and where it does not apply:
        self._foregone: Edits | None = None  # what comes of the message, whatever its body is
        self._choice: SigningChoice | None = None
        self._signer: Signer | None = None
        self._resigning: Resigning | None = None
        self._verifier: DkimVerifier | None = None  # of a message that is judged
        self._readers: list[Callable[[bytes], None]] = []  # of the body

    # MAIL

    def start_envelope(self) -> EarlyStart | None:
        """Find out SPF and iprev of what will be judged, if all that it takes is remembered; else offer to begin."""
        if not self._is_judged_as_a_strangers() or self.facts.recall_envelope():
            return None
        self._needs_event_loop = True
        return self.facts.start_envelope

    # The end of the header

    def end_of_header(self, queue_id: str, macros: Mapping[str, str]) -> EarlyStart | None:
        """Decide whether to sign or to judge. Offers to fetch the keys of the signatures."""
        signing = self._app.plan.signing
        self.request = self.request._replace(queue_id=queue_id, recipient_count=self.recipient_count)
        if macros:
            # Those of MacroList may come with the end of the header only, and what makes a message ours may be one.
            self.macros.update(macros)
            self.origin = signing.origin(self.request, self.macros)
        self.origin = signing.exempting(self.origin, self.headers)
        self._foregone = Edits() if self.origin.is_left_alone else self._refused_by_its_header()
        if self._foregone is not None:
            return None
        if "s" in self._config.milter.mode:
            self._choose_signatures()
        return self._begin_judging() if self._is_judged_as_a_strangers() or self._is_judged_as_unsigned() else None

    def _refused_by_its_header(self) -> Edits | None:
        """Return what comes of a message for the form of its header alone; None if that is in order."""
        check = self._config.checks.dkim
        verdict = PASS if check.mode is Mode.OFF else check.of_header(self.headers)
        if not verdict.reason:
            return None
        applied = check.mode is Mode.ENFORCE and not self._observing
        step = Step(END_OF_DATA, check.name, verdict, applied=applied)
        decision = Decision(self.request, verdict if applied else PASS, (step,), verdict)
        log_decision(decision, logging.WARNING)
        return None if check.mode is Mode.OBSERVE else self._unless_observing(edits_of(decision))

    def _choose_signatures(self) -> None:
        """Find the identities that sign."""
        plan, headers, now = self._app.plan, self.headers, self._app.clock()
        choice = self._choice = plan.signing.choose(self.request, headers, self.origin, self.recipients)
        if not choice.identities:
            return
        signer = self._signer = Signer(headers, choice.identities, plan.sign_options, now)
        self._readers.append(signer.update)
        if not plan.sign_options.remove_old:
            self._resigning = Resigning.detect(headers, choice.identities, signer.names, now)
            if self._resigning is not None:
                self._readers.append(self._resigning.update)

    def _is_judged_as_a_strangers(self) -> bool:
        return self.origin.owner is Owner.STRANGER and "v" in self._config.milter.mode

    def _is_judged_as_unsigned(self) -> bool:
        """Return whether this is judged though it may be ours, as OpenDKIM does: there is no key to sign it with."""
        choice = self._choice
        unsigned = choice is None or not (choice.identities or choice.reply)
        return self._config.verify.unsigned_ours and "v" in self._config.milter.mode and unsigned

    def _begin_judging(self) -> EarlyStart | None:
        verifier = self._verifier = self._app.verifier(self.headers)
        self._readers.append(verifier.update)
        self.facts.add_message(self.headers, verifier)
        if not self._needs_event_loop and self.facts.recall_message():
            return None
        self._needs_event_loop = True
        return self.facts.start_prefetch

    # The body

    def body(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        for update in self._readers:
            update(chunk)

    # The end

    def end_without_waiting(self) -> Edits | None:
        """Sign or judge where nothing has to be waited for, in any thread (OpenSSL signs without Python's lock).

        Returns None, and has done nothing, if `end_on_event_loop` has to be awaited.
        """
        self._began = time.perf_counter()
        if self._verifier is None and self._foregone is None:
            return self._unless_observing(self._sign())
        if self._needs_event_loop or self._app.keeps_proofs:
            return None
        try:
            return self._foregone or self._unless_observing(run_without_waiting(self._judge()))
        except WouldWait:
            return None

    async def end_on_event_loop(self) -> Edits:
        """Judge, and wait for what has been asked of the DNS, within BUDGET. No fact is asked any more after it."""
        try:
            if self._foregone is not None:
                return self._foregone
            self.facts.patience(BUDGET)
            self.facts.start_all()
            return self._unless_observing(await self._judge())
        finally:
            self.facts.close()

    def _sign(self) -> Edits:
        """Add our signatures, or defer what should have been signed and cannot be; and judge nothing."""
        request, choice = self.request, self._choice
        removals: tuple[Remove, ...] = ()
        if request.sasl_user or request.sasl_method:
            # A user cannot speak for this relay; a host of ours that verified the message before us can.
            removals = self._forged_results()
        if choice is None:
            return Edits(removals=removals)
        insertions: tuple[Insert, ...] = ()
        done: Sequence[SigningIdentity] = ()
        if self._signer is not None:
            done = self._resigning.valid_identities() if self._resigning is not None else []
            insertions = tuple(insertion(field) for field in self._signer.signatures(without=done))
            if insertions and self._observing:
                choice = replace(choice, reason="sign.observed", notes=(*choice.notes, _would_sign(choice)))
            elif insertions:
                insertions += self._software_header()
            else:
                choice = replace(choice, reason="sign.already", notes=(*choice.notes, _SIGNED_BEFORE))
            if self._app.plan.sign_options.remove_old:
                removals += every(self.headers, "DKIM-Signature")
        judged = choice.reply or PASS
        step = _step(choice, judged, applied=not self._observing)
        decision = Decision(request, PASS if self._observing else judged, (step,), judged)
        # What was made is told: a field that was not added, or is only observed, is no signature.
        made = [
            one for one in choice.identities if choice.reason in ("sign.ok", "sign.previous_key") and one not in done
        ]
        signed = ",".join(f"{one.domain}:{one.selector}" for one in made)
        level = logging.WARNING if choice.missed else logging.INFO
        log_decision(decision, level, (("signed", signed), took_ms(time.perf_counter() - self._began)))
        return edits_of(decision, removals, insertions)

    async def _judge(self) -> Edits:
        """Tell what SPF, DKIM and DMARC say, and do what the checks make of it."""
        facts, verify = self.facts, self._config.verify
        removals = self._forged_results()
        decision, context = await self._app.decide_message(self.request, facts)
        results = await authentication_results(self._authserv_id(), facts, verify.methods)
        silent = not verify.tell_none and await is_empty_result(facts, verify.methods)
        explained = decision
        if self._choice is not None and self._choice.reason != "sign.not_origin":
            step = _step(self._choice, PASS, applied=not self._observing)
            explained = replace(decision, steps=(*decision.steps, step))
        log_decision(explained, known=(*facts.told(), took_ms(time.perf_counter() - self._began)))
        if context.has_side_effects(decision):
            self.to_settle = context, decision
        insertions = (*(() if silent else (insertion(results),)), *self._software_header())
        return replace(edits_of(explained, removals, insertions), judged=True)

    @property
    def _observing(self) -> bool:
        return self._config.mode == "observe"

    def _unless_observing(self, edits: Edits) -> Edits:
        """Return nothing to do in observe mode, where another milter may do the same."""
        return Edits(decision=edits.decision, judged=edits.judged) if self._observing else edits

    def _authserv_id(self) -> str:
        ours, queue_id = self._app.site.authserv_id, self.request.queue_id
        return f"{ours}/{queue_id}" if queue_id and self._config.verify.job_id else ours

    def _forged_results(self) -> tuple[Remove, ...]:
        """Return removals of Authentication-Results that speak in our name, as far as the configuration wants it."""
        verify = self._config.verify
        if verify.remove_results == "none":
            return ()
        names = (self._app.site.authserv_id, *verify.remove_results_of)
        return forged_results(self.headers, names, verify.methods if verify.remove_results == "told" else None)

    def _software_header(self) -> tuple[Insert, ...]:
        """Return OpenDKIM's SoftwareHeader, in our name, if it is wanted."""
        if not self._config.milter.software_header:
            return ()
        text = f"gatekeeper v{version('gatekeeper')} {self._app.site.hostname} {self.request.queue_id}"
        return (Insert("DKIM-Filter", f" {printable(text).rstrip()}"),)


def _step(choice: SigningChoice, verdict: Verdict, *, applied: bool) -> Step:
    """Return the step that tells of signing, in a decision that comes to `verdict`."""
    told = verdict if verdict.refuses else Verdict(Outcome.PASS, choice.reason)
    return Step(END_OF_DATA, "sign", told, choice.notes, applied)


def _would_sign(choice: SigningChoice) -> Note:
    keys = " and ".join(f"d={one.domain} s={one.selector}" for one in choice.identities)
    return Note("signing", f"only observed; enforced, it would have been signed with {keys}")


def log_decision(decision: Decision, level: int = logging.INFO, known: Iterable[Pair] = ()) -> None:
    """Write the line of a decision, and at level debug one for each note of its steps."""
    write_decision(logger, decision, "milter", answer, level, known=known)
    if logger.isEnabledFor(logging.DEBUG):
        for step in decision.steps:
            for note in step.notes:
                logger.debug("%s: %s: %s: %s", decision.request.queue_id, step.check, note.what, printable(note.found))
