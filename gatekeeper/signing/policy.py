# SPDX-License-Identifier: GPL-3.0-or-later
"""Sign or verify? OpenDKIM's decision, with a note for each condition: "why is it not signing?" has an answer.

A message is ours if the daemon's name says so (`{daemon_name}`, by custom ORIGINATING in the submission service), if
its sender has authenticated, or if the client is internal. It is signed if the SigningTable has a rule for the
address in From (or in another of `sender_headers`) and the KeyTable the key. The envelope sender is never consulted.

Never signed: several From fields, and what could be read as being from several domains.

Reason codes: sign.ok, sign.not_origin, sign.no_from, sign.ambiguous_from, sign.no_match (no rule for this sender),
sign.no_key (the rule's key is not in the KeyTable), sign.bad_key (it is, but cannot be used).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from gatekeeper.message import Header
from gatekeeper.request import Request
from gatekeeper.signing.hosts import HostList
from gatekeeper.signing.keys import BadKey
from gatekeeper.signing.sender import Sender, parse_senders
from gatekeeper.signing.signer import Identity
from gatekeeper.signing.tables import KeyTable, Rule, SigningTable
from gatekeeper.verdict import Note


class WithoutKey(StrEnum):
    """What becomes of mail whose key is missing or broken."""

    TEMPFAIL = "tempfail"
    """Deferred, as OpenDKIM does: it can still leave signed once the key is mended."""
    UNSIGNED = "unsigned"


@dataclass(frozen=True, slots=True)
class SigningChoice:
    """`identities` sign, if there are any. `origin` says why the message is ours, and is empty if it is not: then it
    is to be verified. With `defer`, the message must be deferred, because its key cannot be used."""

    identities: tuple[Identity, ...]
    reason: str
    notes: tuple[Note, ...]
    origin: str = ""
    defer: bool = False


class _NotSigned(Exception):
    """A condition that is not met: the reason code, and the note that goes with it."""

    def __init__(self, reason: str, what: str, found: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.note = Note(what, found)


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningPolicy:
    """Whom to sign for. `daemon_names` is OpenDKIM's MTA, `sender_headers` its SenderHeaders, and `multiple` its
    MultipleSignatures: all rules that match sign, not only the first."""

    signing_table: SigningTable
    key_table: KeyTable
    internal_hosts: HostList
    daemon_names: tuple[str, ...] = ("ORIGINATING",)
    sender_headers: tuple[str, ...] = ("From",)
    multiple: bool = False
    without_key: WithoutKey = WithoutKey.TEMPFAIL

    def origin(self, request: Request, daemon_name: str = "") -> str:
        """Why the message is ours, in words; empty if it is not."""
        if daemon_name in self.daemon_names:
            return f"the daemon is {daemon_name}"
        if request.sasl_user or request.sasl_method:
            return f"authenticated as {request.sasl_user}"
        entry = self.internal_hosts.find(request.client)
        return f"the client is internal by {entry}" if entry else ""

    def choose(self, request: Request, headers: Sequence[Header], *, daemon_name: str = "") -> SigningChoice:
        """Decide for one message, at the end of its header. Never raises."""
        origin = self.origin(request, daemon_name)
        if not origin:
            return SigningChoice((), "sign.not_origin", (Note("signing", _foreign(request, daemon_name)),))
        notes = [Note("signing", origin)]
        try:
            sender = self._sender(headers)
            identities, broken = self._identities(self._rules(sender), sender.domain, notes)
        except _NotSigned as reason:
            return SigningChoice((), reason.reason, (*notes, reason.note), origin)
        if broken and self.without_key is WithoutKey.TEMPFAIL:
            return SigningChoice((), broken, tuple(notes), origin, defer=True)
        return SigningChoice(identities, "sign.ok" if identities else broken, tuple(notes), origin)

    def _sender(self, headers: Sequence[Header]) -> Sender:
        if not (authors := _values(headers, "From")):
            raise _NotSigned("sign.no_from", "From", "there is none")
        if len(authors) > 1:
            raise _NotSigned("sign.ambiguous_from", "From", f"there are {len(authors)} of them")
        for name in self.sender_headers:
            if values := _values(headers, name):
                return _one_sender(name, values[0])
        return _one_sender("From", authors[0])

    def _rules(self, sender: Sender) -> list[Rule]:
        rules = list(self.signing_table.match(sender.user, sender.domain))
        if not rules:
            raise _NotSigned("sign.no_match", "signing table", f"no line for {sender}")
        return rules if self.multiple else rules[:1]

    def _identities(self, rules: Sequence[Rule], domain: str, notes: list[Note]) -> tuple[tuple[Identity, ...], str]:
        """The identities that can sign, and the reason code of the first that cannot, or nothing."""
        identities = []
        broken = ""
        for rule in rules:
            notes.append(Note("signing table", f"{rule.place}: {rule.pattern}"))
            name = rule.key_for(domain)
            try:
                identity = self._identity(name, rule, domain)
            except _NotSigned as reason:
                notes.append(reason.note)
                broken = broken or reason.reason
            else:
                notes.append(Note(f"key {name}", f"d={identity.domain} s={identity.selector}"))
                identities.append(identity)
        return tuple(identities), broken

    def _identity(self, name: str, rule: Rule, domain: str) -> Identity:
        key = self.key_table.find(name, domain)
        if key is None:
            raise _NotSigned("sign.no_key", f"key {name}", "not in the KeyTable")
        if key.private is None:
            raise _NotSigned("sign.bad_key", f"key {name}", f"{key.location} could not be read when we started")
        try:
            key.private.kind  # noqa: B018  # parses the key, at its first use
        except BadKey as bad:
            raise _NotSigned("sign.bad_key", f"key {name}", f"{key.private.origin}: {bad}") from None
        return Identity(key.domain, key.selector, key.private, rule.signer_for(domain))


def _foreign(request: Request, daemon_name: str) -> str:
    """Why a message is not ours: each of the conditions, so that the one that was meant to hold is seen."""
    client = request.client
    return (
        f"not ours: the daemon is {daemon_name or 'not named'}, nobody has authenticated, "
        f"and {client.name}[{client.address}] is not internal"
    )


def _values(headers: Sequence[Header], name: str) -> list[bytes]:
    wanted = name.lower().encode()
    return [field.value for field in headers if field.name.lower() == wanted]


def _one_sender(name: str, value: bytes) -> Sender:
    try:
        senders = parse_senders(value)
    except ValueError as error:
        raise _NotSigned("sign.ambiguous_from", name, str(error)) from None
    if len({sender.domain for sender in senders}) > 1:
        raise _NotSigned("sign.ambiguous_from", name, "its addresses are in several domains")
    return senders[0]
