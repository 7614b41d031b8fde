# SPDX-License-Identifier: GPL-3.0-or-later
"""What the milter would do with one message, without a milter: `verify`, `sign` and `explain --message`.

The milter's own MilterSession is fed with the message, so that what is shown is what would happen; the findings behind
it are asked from the same facts. The rule: what came of a message has the name that the milter has for it, taken from
the decision that it logs (`logged_reasons`, `_signing`); nothing is named here that the milter does not come to. A file
is read as Postfix reads it (core/message.py).
"""

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from ipaddress import IPv4Address
from typing import Any, NamedTuple, TypeVar

from gatekeeper.app.app import App
from gatekeeper.auth.arc import ArcFinding
from gatekeeper.auth.dkim import DkimFinding
from gatekeeper.auth.dmarc import DmarcFinding
from gatekeeper.auth.iprev import IprevFinding
from gatekeeper.auth.results import authentication_results
from gatekeeper.auth.spf import SpfFinding
from gatekeeper.core.message import Header, from_file
from gatekeeper.core.request import Client, Request
from gatekeeper.core.verdict import Note, printable
from gatekeeper.milter.edits import Edits
from gatekeeper.milter.session import MilterSession
from gatekeeper.signing.line_length import LineLimit
from gatekeeper.signing.policy import DAEMON_NAME, SigningChoice

_LOCALHOST = Client(address=IPv4Address("127.0.0.1"), name="localhost")
_SUBMISSION = "ORIGINATING"
"""The daemon name by which a milter knows outbound mail (`milter_macro_daemon_name`)."""
_CHUNK = 65535
"""The most bytes of a body that a milter is given at a time (MILTER_CHUNK_SIZE)."""


_RECORD_WIDTH = 400
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Mail:
    """A message read from a file. `newline` is the line ending of the file."""

    headers: list[Header]
    body: bytes
    newline: bytes = b"\r\n"

    @classmethod
    def read(cls, raw: bytes) -> "Mail":
        """Parse `raw`, whatever its line endings, as Postfix's sendmail(1) does."""
        return cls(*from_file(raw), b"\n" if b"\n" in raw and b"\r\n" not in raw else b"\r\n")

    def return_path(self) -> str | None:
        """Return the envelope sender that final delivery recorded (RFC 5321 section 4.4); None if it did not."""
        for field in self.headers:
            if field.name.lower() == b"return-path":
                match = re.search(rb"<([^<>\s]*)>", field.value)
                return match[1].decode("utf-8", "surrogateescape") if match else None
        return None

    def edited(self, edits: Edits) -> bytes:
        """Return the message as Postfix writes it after `edits`."""
        headers = list(self.headers)
        for removal in edits.removals:
            indices = [i for i, field in enumerate(headers) if field.name.lower() == removal.name.lower().encode()]
            del headers[indices[removal.index - 1]]
        added = [Header(i.name.encode(), i.value.replace("\n", "\r\n").encode()) for i in reversed(edits.insertions)]
        return b"".join(field.line + b"\r\n" for field in [*added, *headers]) + b"\r\n" + self.body


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageFindings:
    """What authentication found, and the header field that says so.

    `records` are by method the DNS queries with their answers, each under the method that made it first.
    """

    iprev: IprevFinding
    spf: SpfFinding
    helo_spf: SpfFinding
    dkim: tuple[DkimFinding, ...]
    dmarc: DmarcFinding
    arc: ArcFinding
    field: Header
    records: Mapping[str, tuple[Note, ...]]


DnsNote = Callable[[str, str], None]
"""Takes a DNS query and its answer, both in words."""


async def verify(
    app: App, request: Request, mail: Mail, set_note: Callable[[DnsNote], None] = lambda _note: None
) -> MessageFindings:
    """Find out everything that the milter would find out about `mail`.

    Before each method begins, `set_note` is called with the function that takes the DNS queries made from then on.
    """
    facts = app.facts(request)
    verifier = app.verifier(mail.headers)
    facts.add_message(mail.headers, verifier)
    verifier.update(mail.body)
    records: dict[str, list[Note]] = {}

    async def with_records(method: str, finding: Awaitable[T]) -> T:
        notes = records.setdefault(method, [])
        set_note(lambda what, found: notes.append(Note(what, found)))
        return await finding

    try:
        return MessageFindings(
            iprev=await with_records("iprev", facts.iprev()),
            spf=await with_records("spf", facts.spf()),
            helo_spf=await with_records("helo_spf", facts.helo_spf()),
            dkim=await with_records("dkim", facts.dkim()),
            dmarc=await with_records("dmarc", facts.dmarc()),
            arc=await with_records("arc", facts.arc()),
            field=await authentication_results(app.site.authserv_id, facts, app.plan.config.verify.methods),
            records={method: tuple(dict.fromkeys(notes)) for method, notes in records.items()},
        )
    finally:
        facts.close()


async def play(app: App, request: Request, mail: Mail, *, daemon_name: str = "") -> Edits:
    """Play `mail` through a milter session, and return what it would do to it."""
    session = MilterSession(app)
    client = request.client
    session.connect(client.name, str(client.address or ""), client.port, daemon_name=daemon_name)
    session.helo(request.helo or "")
    session.mail(f"<{request.sender or ''}>", sasl_user=request.sasl_user, sasl_method=request.sasl_method)
    session.rcpt(f"<{request.recipient or ''}>")
    for field in mail.headers:
        session.header(field.name, field.value)
    session.end_of_header()
    for start in range(0, len(mail.body), _CHUNK):
        session.body(mail.body[start : start + _CHUNK])
    edits = await session.end_of_message()
    await session.settle()
    return edits


@dataclass(frozen=True, slots=True)
class SigningReport:
    """What the milter does with a message: `findings` if it verifies it, what came of signing, the `edits`.

    `obstacles` keep it from doing what it would like to.
    """

    findings: MessageFindings | None
    signing: "SigningOutcome"
    edits: Edits
    obstacles: tuple[str, ...]


class SigningOutcome(NamedTuple):
    """What came of signing: the milter's reason code, empty if it did not come to that; and the notes on it."""

    reason: str
    notes: tuple[Note, ...]


async def sign_or_verify(app: App, request: Request, mail: Mail) -> SigningReport:
    """Sign or verify `mail`, as the milter would, and report the reasons."""
    edits = await play(app, request, mail)
    findings = await verify(app, request, mail) if edits.judged else None
    signing = _signing(app, choose(app, request, mail, {}), edits)
    return SigningReport(findings, signing, edits, tuple(_obstacles(app)))


async def sign(app: App, request: Request, mail: Mail, *, submitted: bool) -> tuple[bytes, str]:
    """Return `mail` as it would leave, and why it is signed or not.

    The line endings of the file are kept. With `submitted` the message comes from the submission service of this host.
    """
    macros = {DAEMON_NAME: _SUBMISSION} if submitted else {}
    request = request._replace(client=_LOCALHOST) if submitted else request
    edits, choice = Edits(), choose(app, request, mail, macros)
    if choice.origin.is_ours:
        edits = await play(app, request, mail, daemon_name=macros.get(DAEMON_NAME, ""))
    reason, notes = _signing(app, choice, edits)
    lines = LineLimit(app.plan.sign_options.line_length_limit)
    sent = lines.feed(mail.edited(edits)) + lines.end()
    why = [reason or ", ".join(logged_reasons(edits)), *(f"{note.what}: {printable(note.found)}" for note in notes)]
    if edits.reply is not None:
        why.append(f"the milter would answer: {edits.reply.reply}")
    return sent.replace(b"\r\n", mail.newline), "; ".join(filter(None, [*why, *_obstacles(app)]))


def choose(app: App, request: Request, mail: Mail, macros: Mapping[str, str]) -> SigningChoice:
    """Return what the milter decides about signing, condition by condition."""
    signing = app.plan.signing
    origin = signing.exempting(signing.origin(request, macros), mail.headers)
    return signing.choose(request, mail.headers, origin, [request.recipient or ""])


def logged_reasons(edits: Edits) -> tuple[str, ...]:
    """Return the reason codes that the milter logs with these edits."""
    return edits.decision.reasons if edits.decision is not None else ()


def _signing(app: App, choice: SigningChoice, edits: Edits) -> SigningOutcome:
    """Return what came of signing, for a message of which the policy chose this and the milter made these edits."""
    for step in edits.decision.steps if edits.decision is not None else ():
        if step.check == "sign":
            return SigningOutcome(step.verdict.reason, step.notes)
    # It does not tell of strangers' mail and of what it leaves alone; with all others it did not come to signing.
    told_elsewhere = not choice.origin.is_ours and (choice.origin.is_left_alone or "s" in app.plan.config.milter.mode)
    return SigningOutcome(choice.reason if told_elsewhere else "", choice.notes[:1])


def _obstacles(app: App) -> Iterator[str]:
    """Say what keeps the milter from doing what is asked for here."""
    config = app.plan.config
    if "s" not in config.milter.mode:
        yield f'milter.mode = "{config.milter.mode}": this milter does not sign'
    if config.mode == "observe":
        yield 'mode = "observe": the milter would leave the message as it is'


def not_judged(app: App, request: Request, mail: Mail) -> str:
    """Return why the milter would not add its findings about `mail`, in words; empty if it would."""
    config = app.plan.config
    origin = choose(app, request, mail, {}).origin
    if "v" not in config.milter.mode:
        return f'milter.mode = "{config.milter.mode}": this milter does not verify'
    if origin.is_left_alone or (origin.is_ours and not config.verify.unsigned_ours):
        return f"{origin.why.what}: {printable(origin.why.found)}"
    return 'mode = "observe"' if config.mode == "observe" else ""


def sentences(findings: MessageFindings, edits: Edits, why_not: str = "") -> Iterator[str]:
    """Yield the findings for people, line by line, and the header field that states them.

    `edits` are what the milter would do to the message, `why_not` is why it would not judge it.
    """
    yield from _finding_lines(findings)
    yield ""
    answer = [*_answer_sentences(edits)]
    yield from answer
    if answer:
        yield from _reason_sentences(edits)
    if why_not:
        yield f"The milter would not tell this ({why_not}). If it did, it would add:"
    else:
        is_taken = edits.reply is None and not edits.discard
        yield "The milter would add:" if is_taken else "If it let the message pass, it would add:"
    yield from field_lines(findings.field)


def _finding_lines(findings: MessageFindings, *, records: bool = True) -> Iterator[str]:
    def record_lines(method: str) -> Iterator[str]:
        for note in findings.records[method] if records else ():
            yield " " * 17 + printable(f"{note.what}: {note.found}", _RECORD_WIDTH)

    iprev, spf, helo, dmarc = findings.iprev, findings.spf, findings.helo_spf, findings.dmarc
    yield _line("iprev", iprev.result, iprev.address or "no client address", iprev.name or iprev.reverse, iprev.reason)
    yield from record_lines("iprev")
    yield _line("SPF", spf.result, f"{spf.identity} {spf.domain}".strip(), spf.reason, spf.explanation)
    yield from record_lines("spf")
    if spf.identity != "helo":
        yield _line("SPF", helo.result, f"helo {helo.domain}".strip(), helo.reason)
        yield from record_lines("helo_spf")
    for dkim in findings.dkim:
        key = f"{dkim.algorithm}, {dkim.key_bits} bits" if dkim.key_bits else dkim.algorithm
        who = f"d={dkim.domain} s={dkim.selector}" if dkim.domain else ""
        yield _line("DKIM", dkim.result, who, key, dkim.reason)
    yield from record_lines("dkim")
    policy = f"published policy {dmarc.published}" if dmarc.record_domain else ""
    yield _line("DMARC", dmarc.result, dmarc.domain, policy, dmarc.reason)
    yield from record_lines("dmarc")
    yield _line("ARC", findings.arc.result, findings.arc.reason)
    yield from record_lines("arc")
    for instance, hop in enumerate(findings.arc.hops, 1):
        results = ", ".join(f"{method}={result}" for method, result in hop.stated.results.items())
        who = f"i={instance} d={hop.domain} s={hop.selector}"
        yield " " * 17 + printable(f"{who}; {hop.stated.authserv_id} says {results}")


def field_lines(field: Header) -> Iterator[str]:
    """Yield the lines of a header field, safe to print."""
    yield from (printable(line.replace("\t", "    ")) for line in field.line.decode("latin-1").split("\r\n"))


def _line(method: str, result: StrEnum, *details: str) -> str:
    text = "; ".join(printable(detail) for detail in details if detail)
    return f"{method:6} {result:9} {text}".rstrip()


def judgement_as_json(edits: Edits) -> dict[str, Any]:
    """Return for programs what the milter would answer, and the reasons that it would log."""
    return {
        "reasons": list(logged_reasons(edits)),
        "reply": edits.reply.reply if edits.reply else "",
        "quarantine": edits.quarantine,
    }


def as_json(findings: MessageFindings) -> dict[str, Any]:
    """Return the findings for programs."""
    return {
        "iprev": asdict(findings.iprev),
        "spf": asdict(findings.spf),
        "helo_spf": asdict(findings.helo_spf),
        "dkim": [asdict(dkim) for dkim in findings.dkim],
        "dmarc": asdict(findings.dmarc),
        "arc": asdict(findings.arc),
        "records": {method: [note._asdict() for note in notes] for method, notes in findings.records.items()},
        "header": "\n".join(field_lines(findings.field)),
    }


def report_sentences(report: SigningReport) -> Iterator[str]:
    """Yield for people, line by line, what the milter does with the message."""
    yield ""
    yield "The message"
    if report.findings is not None:
        yield from (f"  {line}" for line in _finding_lines(report.findings, records=False))
    for note in report.signing.notes:
        yield f"  {note.what}: {printable(note.found)}"
    yield from (f"  ({reason})" for reason in (report.signing.reason,) if reason)
    yield from (f"  {obstacle}" for obstacle in report.obstacles)
    yield ""
    yield from edit_sentences(report.edits)


def _unfolded(value: str) -> str:
    return printable(f" {' '.join(value.split())}", 2000)


def report_as_json(report: SigningReport) -> dict[str, Any]:
    """Return for programs what the milter does with the message."""
    return {
        "findings": as_json(report.findings) if report.findings else None,
        **judgement_as_json(report.edits),
        "signing": report.signing.reason,
        "notes": [{"what": note.what, "found": note.found} for note in report.signing.notes],
        "adds": [f"{insertion.name}:{insertion.value}" for insertion in report.edits.insertions],
        "removes": [f"{removal.name} {removal.index}" for removal in report.edits.removals],
    }


def edit_sentences(edits: Edits) -> Iterator[str]:
    """Yield for people, line by line, what the milter would do to the message, and the reasons that it would log."""
    yield from _edit_sentences(edits)
    yield from _reason_sentences(edits)


def _reason_sentences(edits: Edits) -> Iterator[str]:
    if reasons := logged_reasons(edits):
        yield f"The milter would log: reasons={','.join(reasons)}"


def _answer_sentences(edits: Edits) -> Iterator[str]:
    """Say what the milter would answer, if it is more than that the message goes on."""
    if edits.reply is not None:
        yield f"The milter would refuse the message: {edits.reply.reply}"
    elif edits.discard:
        yield "The milter would accept the message and discard it"
    elif edits.quarantine:
        yield f"The milter would hold the message: {printable(edits.quarantine)}"


def _edit_sentences(edits: Edits) -> Iterator[str]:
    yield from _answer_sentences(edits)
    if edits.reply is not None or edits.discard:
        return
    for removal in reversed(edits.removals):
        yield f"The milter would remove the forged field {removal.name} number {removal.index}"
    for insertion in edits.insertions:
        yield f"The milter would add: {insertion.name}:{_unfolded(insertion.value)}"
    if not (edits.removals or edits.insertions or edits.quarantine):
        yield "The milter would leave the message as it is"
