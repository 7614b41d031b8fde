# SPDX-License-Identifier: GPL-3.0-or-later
"""What the milter does with one message, outside any milter: `verify`, `sign` and `explain --message`.

The milter's own MilterSession is fed with the message, so that what is shown is what would happen; the findings behind
it are asked from the same facts. A file with bare LF line ends is taken as the same mail with CRLF, as Postfix sends
it.
"""

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Address
from typing import Any, TypeVar

from gatekeeper.app.app import App
from gatekeeper.auth.arc import ArcFinding
from gatekeeper.auth.dkim import DkimFinding
from gatekeeper.auth.dmarc import DmarcFinding
from gatekeeper.auth.iprev import IprevFinding
from gatekeeper.auth.results import authentication_results
from gatekeeper.auth.spf import SpfFinding
from gatekeeper.core.message import Header, crlf, parse
from gatekeeper.core.request import Client, Request
from gatekeeper.core.verdict import Note, printable
from gatekeeper.milter.edits import Edits
from gatekeeper.milter.session import MilterSession
from gatekeeper.signing.line_length import LineLimit
from gatekeeper.signing.policy import DAEMON_NAME, SigningChoice

_HERE = Client(address=IPv4Address("127.0.0.1"), name="localhost")
_SUBMISSION = "ORIGINATING"
"""The daemon name by which a milter knows outbound mail (`milter_macro_daemon_name`)."""
_CHUNK = 65535
"""How much of a body a milter is given at a time (MILTER_CHUNK_SIZE)."""


_RECORD_WIDTH = 400
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Mail:
    """A message, read from a file. `newline` is how its lines end there."""

    headers: list[Header]
    body: bytes
    newline: bytes = b"\r\n"

    @classmethod
    def read(cls, raw: bytes) -> "Mail":
        """The message in `raw`, whatever its line ends."""
        return cls(*parse(crlf(raw)), b"\n" if b"\n" in raw and b"\r\n" not in raw else b"\r\n")

    def return_path(self) -> str | None:
        """The envelope sender that the final delivery wrote down (RFC 5321 section 4.4); None if it did not."""
        for field in self.headers:
            if field.name.lower() == b"return-path":
                match = re.search(rb"<([^<>\s]*)>", field.value)
                return match[1].decode("utf-8", "surrogateescape") if match else None
        return None

    def edited(self, edits: Edits) -> bytes:
        """The message as Postfix writes it after `edits`."""
        headers = list(self.headers)
        for removal in edits.removals:
            places = [i for i, field in enumerate(headers) if field.name.lower() == removal.name.lower().encode()]
            del headers[places[removal.index - 1]]
        added = [Header(i.name.encode(), i.value.replace("\n", "\r\n").encode()) for i in reversed(edits.insertions)]
        return b"".join(field.line + b"\r\n" for field in [*added, *headers]) + b"\r\n" + self.body


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageFindings:
    """What authentication found, and the field that says so. `records` are, by method, the questions to the DNS with
    their answers, each where it was asked first.
    """

    iprev: IprevFinding
    spf: SpfFinding
    helo_spf: SpfFinding
    dkim: tuple[DkimFinding, ...]
    dmarc: DmarcFinding
    arc: ArcFinding
    field: Header
    records: Mapping[str, tuple[Note, ...]]


Listener = Callable[[str, str], None]
"""Is told each question to the DNS with its answer."""


async def verify(
    app: App, request: Request, mail: Mail, listen: Callable[[Listener], None] = lambda listener: None
) -> MessageFindings:
    """Everything that the milter would find out about `mail`. `listen` is given who is to hear what the DNS says while
    each method is at work.
    """
    facts = app.facts(request)
    verifier = app.verifier(mail.headers)
    facts.add_message(mail.headers, verifier)
    verifier.update(mail.body)
    records: dict[str, list[Note]] = {}

    async def hear(method: str, finding: Awaitable[T]) -> T:
        heard = records.setdefault(method, [])
        listen(lambda what, found: heard.append(Note(what, found)))
        return await finding

    try:
        return MessageFindings(
            iprev=await hear("iprev", facts.iprev()),
            spf=await hear("spf", facts.spf()),
            helo_spf=await hear("helo_spf", facts.helo_spf()),
            dkim=await hear("dkim", facts.dkim()),
            dmarc=await hear("dmarc", facts.dmarc()),
            arc=await hear("arc", facts.arc()),
            field=await authentication_results(app.site.authserv_id, facts, app.plan.config.verify.methods),
            records={method: tuple(dict.fromkeys(heard)) for method, heard in records.items()},
        )
    finally:
        facts.close()


async def play(app: App, request: Request, mail: Mail, *, daemon_name: str = "") -> Edits:
    """What the milter would do to `mail`."""
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
    """What the milter makes of one message: `findings` if it judges it, `choice` if it is ours, and its edits."""

    findings: MessageFindings | None
    choice: SigningChoice
    edits: Edits


async def explain(app: App, request: Request, mail: Mail) -> SigningReport:
    """Sign or judge, with the reasons."""
    choice = choose(app, request, mail, {})
    findings = None if choice.origin.is_ours else await verify(app, request, mail)
    return SigningReport(findings, choice, await play(app, request, mail))


async def sign(app: App, request: Request, mail: Mail, *, submitted: bool) -> tuple[bytes, str]:
    """`mail` as it would leave, with the line ends of the file, and why it is signed or not; if it is `submitted`, as
    the submission service of this host hands it in.
    """
    macros = {DAEMON_NAME: _SUBMISSION} if submitted else {}
    request = request._replace(client=_HERE) if submitted else request
    edits, choice = Edits(), choose(app, request, mail, macros)
    if choice.origin.is_ours:
        edits = await play(app, request, mail, daemon_name=macros.get(DAEMON_NAME, ""))
        choice = replace(choice, reason=signing_reason(edits) or choice.reason)
    lines = LineLimit(app.plan.sign_options.line_length_limit)
    sent = lines.feed(mail.edited(edits)) + lines.end()
    why = [choice.reason, *(f"{note.what}: {printable(note.found)}" for note in choice.notes), *_not_here(app, edits)]
    return sent.replace(b"\r\n", mail.newline), "; ".join(why)


def choose(app: App, request: Request, mail: Mail, macros: Mapping[str, str]) -> SigningChoice:
    """What the milter decides about signing, condition by condition."""
    signing = app.plan.signing
    origin = signing.exempting(signing.origin(request, macros), mail.headers)
    return signing.choose(request, mail.headers, origin, [request.recipient or ""])


def signing_reason(edits: Edits) -> str:
    """The reason code of the step that signs; empty if there was none."""
    steps = edits.decision.steps if edits.decision is not None else ()
    return next((step.verdict.reason for step in steps if step.check == "sign"), "")


def _not_here(app: App, edits: Edits) -> Iterator[str]:
    config = app.plan.config
    if edits.reply is not None:
        yield f"the milter would answer: {edits.reply.reply}"
    if "s" not in config.milter.mode:
        yield f'milter.mode = "{config.milter.mode}": this milter does not sign'
    if config.mode == "observe":
        yield 'mode = "observe": the milter would leave the message as it is'


def sentences(findings: MessageFindings) -> Iterator[str]:
    """The findings, line by line, for a person, and the field that says them."""
    yield from _found(findings)
    yield ""
    yield "The milter would add:"
    yield from field_lines(findings.field)


def _found(findings: MessageFindings, *, records: bool = True) -> Iterator[str]:
    def told(method: str) -> Iterator[str]:
        for note in findings.records[method] if records else ():
            yield " " * 17 + printable(f"{note.what}: {note.found}", _RECORD_WIDTH)

    iprev, spf, helo, dmarc = findings.iprev, findings.spf, findings.helo_spf, findings.dmarc
    yield _line("iprev", iprev.result, iprev.address or "no client address", iprev.name or iprev.reverse, iprev.reason)
    yield from told("iprev")
    yield _line("SPF", spf.result, f"{spf.identity} {spf.domain}".strip(), spf.reason, spf.explanation)
    yield from told("spf")
    if spf.identity != "helo":
        yield _line("SPF", helo.result, f"helo {helo.domain}".strip(), helo.reason)
        yield from told("helo_spf")
    for dkim in findings.dkim:
        key = f"{dkim.algorithm}, {dkim.key_bits} bits" if dkim.key_bits else dkim.algorithm
        who = f"d={dkim.domain} s={dkim.selector}" if dkim.domain else ""
        yield _line("DKIM", dkim.result, who, key, dkim.reason)
    yield from told("dkim")
    policy = f"published policy {dmarc.published}" if dmarc.record_domain else ""
    yield _line("DMARC", dmarc.result, dmarc.domain, policy, dmarc.reason)
    yield from told("dmarc")
    yield _line("ARC", findings.arc.result, findings.arc.reason)
    yield from told("arc")
    for instance, hop in enumerate(findings.arc.hops, 1):
        said = ", ".join(f"{method}={result}" for method, result in hop.stated.results.items())
        who = f"i={instance} d={hop.domain} s={hop.selector}"
        yield " " * 17 + printable(f"{who}; {hop.stated.authserv_id} says {said}")


def field_lines(field: Header) -> Iterator[str]:
    """A header field as lines that are safe to print."""
    yield from (printable(line.replace("\t", "    ")) for line in field.line.decode("latin-1").split("\r\n"))


def _line(method: str, result: StrEnum, *details: str) -> str:
    said = "; ".join(printable(detail) for detail in details if detail)
    return f"{method:6} {result:9} {said}".rstrip()


def as_json(findings: MessageFindings) -> dict[str, Any]:
    """The findings for a program."""
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


def told_sentences(told: SigningReport) -> Iterator[str]:
    """What the milter makes of the message, line by line, for a person."""
    yield ""
    yield "The message"
    if told.findings is not None:
        yield from (f"  {line}" for line in _found(told.findings, records=False))
    for note in told.choice.notes:
        yield f"  {note.what}: {printable(note.found)}"
    yield f"  ({told.choice.reason})"
    yield ""
    yield from changes(told.edits)


def _unfolded(value: str) -> str:
    return printable(f" {' '.join(value.split())}", 2000)


def told_json(told: SigningReport) -> dict[str, Any]:
    """What the milter makes of the message, for a program."""
    reply = told.edits.reply
    return {
        "findings": as_json(told.findings) if told.findings else None,
        "signing": told.choice.reason,
        "notes": [{"what": note.what, "found": note.found} for note in told.choice.notes],
        "adds": [f"{insertion.name}:{insertion.value}" for insertion in told.edits.insertions],
        "removes": [f"{removal.name} {removal.index}" for removal in told.edits.removals],
        "reply": reply.reply if reply else "",
        "quarantine": told.edits.quarantine,
    }


def changes(edits: Edits) -> Iterator[str]:
    """What the milter would do, line by line, for a person."""
    if edits.reply is not None:
        yield f"The milter would refuse the message: {edits.reply.reply}"
        return
    if edits.discard:
        yield "The milter would take the message and throw it away"
        return
    if edits.quarantine:
        yield f"The milter would hold the message: {printable(edits.quarantine)}"
    for removal in reversed(edits.removals):
        yield f"The milter would remove the forged field {removal.name} number {removal.index}"
    for insertion in edits.insertions:
        yield f"The milter would add: {insertion.name}:{_unfolded(insertion.value)}"
    if not (edits.removals or edits.insertions or edits.quarantine):
        yield "The milter would leave the message as it is"
