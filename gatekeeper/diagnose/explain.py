# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatekeeper explain`: how one session would be answered and why, step by step, in sentences or as JSON.

Nothing is recomputed for display: the steps are those of the decision itself, and DNS queries are noted as they are
made. The store is read and never written.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from gatekeeper.app.app import App
from gatekeeper.auth.iprev import check_iprev
from gatekeeper.core import redaction
from gatekeeper.core.request import UNKNOWN, Address, Client, Request, Stage
from gatekeeper.core.verdict import Decision, Note, Outcome, Step, Verdict, printable
from gatekeeper.dnsclient.resolver import MX, Answer, DNSError, Resolver
from gatekeeper.pipeline.pipeline import DATA, END_OF_DATA
from gatekeeper.policy.protocol import encode_answer


@dataclass(slots=True)
class NotingResolver:
    """A resolver that passes queries on, and each with its answer to `note` once it is there."""

    inner: Resolver
    note: Callable[[str, str], None] = lambda _what, _found: None

    async def query(self, name: str, type: str) -> Answer:
        what = f"{type} {printable(redaction.hide_keys(name), 255)}"
        try:
            answer = await self.inner.query(name, type)
        except DNSError as error:
            self.note(what, f"no answer: {redaction.hide_keys(str(error)) or error.__class__.__name__}")
            raise
        self.note(what, _describe_answer(answer))
        return answer

    async def close(self) -> None:
        await self.inner.close()


def _describe_answer(answer: Answer) -> str:
    """Describe an answer in words: its records, `no data`, or `no such name`."""
    if not answer.exists:
        return "no such name"
    return ", ".join(map(_record, answer.records)) or "no data"


def _record(record: str | bytes | MX) -> str:
    if isinstance(record, MX):
        return f"{record.preference} {printable(record.host, 255) or '.'}"
    return printable(record.decode("utf-8", "replace") if isinstance(record, bytes) else record)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedSession:
    """The session as the command line gives it."""

    address: Address | None = None
    name: str = ""
    helo: str | None = None
    sender: str | None = None
    recipient: str | None = None
    sasl_user: str = ""
    context: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The decision, and what led to it.

    `before` is what was looked up before the checks began, `connection` what the milter decided when the client
    connected (None where connections are not limited), `later` the decisions at DATA and at the end of the message,
    where these stages have lists.
    """

    decision: Decision
    before: tuple[Note, ...] = ()
    connection: Decision | None = None
    later: tuple[Decision, ...] = ()


async def explain(app: App, resolver: NotingResolver, session: AskedSession, *, probe: bool = False) -> Explanation:
    """Decide about `session` as the policy daemon would.

    `app` must have been opened with `resolver` and a read-only store. With `probe` the DNS lists are tested first, as
    the daemon does all the time: one that fails its tests does not count.
    """
    before: list[Note] = []
    resolver.note = lambda what, found: before.append(Note(what, found))
    request = await build_request(resolver, session)
    facts = app.hurried_facts(request)
    pipeline = app.pipeline(request)
    if probe:
        resolver.note = lambda _what, _found: None
        await app.lists.probe()
    try:
        context = await app.context(facts, observe=pipeline.observe)
        resolver.note = context.note
        connection = None
        if app.connections.limited:
            connects = Request(stage=Stage.CONNECT, client=request.client, instance=app.connections.new())
            connection, _ = await app.decide_connection(connects)
        decision = await pipeline.decide(request, context)
        later = []
        if request.stage is Stage.RCPT and not decision.verdict.refuses:
            for name, stage in ((DATA, Stage.DATA), (END_OF_DATA, Stage.END_OF_MESSAGE)):
                if pipeline.lists.get(name):
                    later.append(await pipeline.decide(request._replace(stage=stage, recipient_count=1), context))
        return Explanation(decision, tuple(before), connection, tuple(later))
    finally:
        facts.close()


async def build_request(resolver: Resolver, session: AskedSession) -> Request:
    """Build the policy request that Postfix would send about `session`."""
    return Request(
        stage=_stage(session),
        instance="explain",  # so that limits take its stages for one message
        client=await _client(resolver, session.address, session.name),
        helo=session.helo,
        sender=session.sender,
        recipient=session.recipient,
        sasl_user=session.sasl_user,
        sasl_method="PLAIN" if session.sasl_user else "",
        policy_context=session.context,
    )


def _stage(session: AskedSession) -> Stage:
    """Return the latest stage that the session has reached."""
    if session.recipient is not None:
        return Stage.RCPT
    if session.sender is not None:
        return Stage.MAIL
    return Stage.CONNECT if session.helo is None else Stage.HELO


async def _client(resolver: Resolver, address: Address | None, name: str) -> Client:
    """Return the client. A given `name` counts as confirmed; without it the names are looked up as Postfix does."""
    if name or address is None:
        return Client(address=address, name=name or UNKNOWN, reverse_name=name or UNKNOWN)
    found = await check_iprev(resolver, address)
    return Client(address=address, name=found.name or UNKNOWN, reverse_name=found.reverse or UNKNOWN)


def sentences(explanation: Explanation) -> Iterator[str]:
    """Yield the explanation for people, line by line."""
    decision = explanation.decision
    yield f"{_session(decision.request)}."
    yield from _note_lines(explanation.before)
    if explanation.connection:
        yield from ("", "When the client connects, in the milter")
        for step in explanation.connection.steps:
            yield f"  {step.check}: {sentence(step)}"
            yield from _note_lines(step.notes)
    for one in (decision, *explanation.later):
        yield from _decision_lines(one)


def _decision_lines(decision: Decision) -> Iterator[str]:
    current_list = ""
    for step in decision.steps:
        if step.list != current_list:
            current_list = step.list
            yield ""
            yield f"{current_list.replace('_', ' ')} restrictions".capitalize()
        yield f"  {step.check}: {sentence(step)}"
        yield from _note_lines(step.notes)
    yield ""
    yield _verdict(decision)
    yield f"Postfix is answered: {answer(decision)}"


def sentence(step: Step) -> str:
    """Say in a sentence what one check decided."""
    text = _SENTENCES[step.verdict.outcome].format(
        reply=step.verdict.reply, text=printable(step.verdict.text), list=step.list
    )
    if not step.applied and step.verdict.outcome is not Outcome.PASS:
        text = f"observe mode, does not count: {text}"
    return f"{text} ({step.verdict.reason})" if step.verdict.reason else text


_SENTENCES = {
    Outcome.PASS: "has no objection",
    Outcome.PERMIT: "permits, so the rest of the {list} list is skipped",
    Outcome.ACCEPT: "accepts, so everything else is skipped",
    Outcome.REJECT: "refuses with {reply}",
    Outcome.DEFER_IF_PERMIT: "defers with {reply} unless something else rejects for good",
    Outcome.DEFER_IF_REJECT: "could not tell, so a later refusal becomes {reply}",
    Outcome.ACTION: "asks Postfix for {text}",
}


def answer(decision: Decision) -> str:
    """Return the line that is sent to Postfix."""
    line = encode_answer(decision.verdict, decision.request).decode("utf-8", "backslashreplace").strip()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _session(request: Request) -> str:
    who = str(request.client.address or "A client of unknown address")
    names = request.client.name
    if names == UNKNOWN and request.client.reverse_name != UNKNOWN:
        names = f"{UNKNOWN}, its PTR says {request.client.reverse_name}"
    parts = [f"{who} ({printable(names, 255)})"]
    if request.helo is not None:
        parts.append(f"HELO {printable(request.helo, 255)}")
    if request.sender is not None:
        parts.append(f"from <{printable(request.sender, 320)}>")
    if request.recipient is not None:
        parts.append(f"to <{printable(request.recipient, 320)}>")
    if request.sasl_user:
        parts.append(f"authenticated as {printable(request.sasl_user)}")
    return ", ".join(parts)


def _note_lines(notes: tuple[Note, ...]) -> Iterator[str]:
    for note in dict.fromkeys(notes):
        yield f"      {note.what}: {note.found}"


def _verdict(decision: Decision) -> str:
    said = f"Verdict: {_in_words(decision.verdict)}."
    if decision.judged == decision.verdict:
        return said
    return f'{said} Without mode = "observe" it would be: {_in_words(decision.judged)}.'


def _in_words(verdict: Verdict) -> str:
    why = f" ({verdict.reason})" if verdict.reason else ""
    if verdict.refuses:
        return f"refused {'for good' if verdict.code.startswith('5') else 'for now'}{why}"
    if verdict.outcome is Outcome.DEFER_IF_REJECT:
        return f"not refused here; a later refusal by Postfix would be temporary{why}"
    if verdict.outcome is Outcome.ACTION:
        return f"{printable(verdict.text)}{why}"
    return f"not refused{why}"


def as_json(explanation: Explanation) -> dict[str, Any]:
    """Return the explanation for programs."""
    decision = explanation.decision
    request = decision.request
    return {
        "client": {
            "address": str(request.client.address) if request.client.address else None,
            "name": request.client.name,
            "reverse_name": request.client.reverse_name,
        },
        "stage": str(request.stage),
        "looked_up": _notes(explanation.before),
        "connection": [_step(step) for step in explanation.connection.steps] if explanation.connection else [],
        "steps": [_step(step) for step in decision.steps],
        **_verdict_json(decision.verdict),
        "reasons": list(decision.reasons),
        "observed": list(decision.observed),
        "judged": _verdict_json(decision.judged),
        "answer": answer(decision),
        "later": [
            {"stage": str(one.request.stage), "steps": [_step(step) for step in one.steps], "answer": answer(one)}
            for one in explanation.later
        ],
    }


def _verdict_json(verdict: Verdict) -> dict[str, str]:
    return {"outcome": str(verdict.outcome), "reason": verdict.reason, "reply": verdict.reply}


def _step(step: Step) -> dict[str, Any]:
    return {
        "list": step.list,
        "check": step.check,
        **_verdict_json(step.verdict),
        "applied": step.applied,
        "notes": _notes(step.notes),
        "sentence": sentence(step),
    }


def _notes(notes: tuple[Note, ...]) -> list[dict[str, str]]:
    return [{"what": note.what, "found": note.found} for note in notes]
