# SPDX-License-Identifier: GPL-3.0-or-later
"""Decides whether a message is signed, as OpenDKIM does, with a note for each condition that explains the decision.

First whose mail it is (`origin`), then which identities sign (`choose`).

A message is ours if the daemon's name says so (`{daemon_name}`, usually ORIGINATING in the submission service), if a
macro of MacroList does, if its sender has authenticated, or if the client is internal. It is signed if the SigningTable
has a rule for the address in From (or in another of `sender_headers`) and the KeyTable has its key. The envelope sender
is consulted only if a binding requires it (sender_binding.py).

Never signed: messages with several From fields, and those that could be read as being from several domains.

Reason codes: sign.ok, sign.previous_key (signed with the key from before, since the new one cannot), sign.not_origin
(not our mail), sign.external (not our mail either, but from a domain of ours), sign.no_from, sign.ambiguous_from,
sign.exempt, sign.peer, sign.no_match (no rule for this sender), sign.recipient (mail to it is never signed),
sign.unbound (the user may not sign for this sender), sign.no_key (the rule's key is not in the KeyTable), sign.bad_key
(it is there, but cannot be used), sign.already (see resigning.py).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from gatekeeper.auth.domains import is_within
from gatekeeper.core.message import Header
from gatekeeper.core.request import Request
from gatekeeper.core.verdict import Note, Verdict, reject
from gatekeeper.postfix.client_list import ClientList
from gatekeeper.signing.host_list import HostList
from gatekeeper.signing.key_table import KeyTable, TableKey
from gatekeeper.signing.message_sender import MessageSender, parse_senders
from gatekeeper.signing.name_set import MacroList, NameSet
from gatekeeper.signing.origin import Origin, Owner
from gatekeeper.signing.sender_binding import Mismatch, SenderBinding
from gatekeeper.signing.signer import SigningIdentity
from gatekeeper.signing.signing_table import SigningRule, SigningTable

DAEMON_NAME = "{daemon_name}"
"""The milter macro that holds the name of the service, set with milter_macro_daemon_name in master.cf."""
_NO_MACROS: Mapping[str, str] = {}
_LEFT_ALONE = {Owner.PEER: "sign.peer", Owner.EXEMPT: "sign.exempt"}


class WithoutKey(StrEnum):
    """What happens to mail whose key is missing or unusable."""

    TEMPFAIL = "tempfail"
    """Deferred, as by OpenDKIM: it can still leave signed once the key has been fixed."""
    UNSIGNED = "unsigned"
    PREVIOUS = "previous"
    """As TEMPFAIL: whatever stands here, a key that signed before the broken one came goes on signing."""


@dataclass(frozen=True, slots=True)
class SigningChoice:
    """What is to be done with one message: `identities` sign it, if there are any.

    With a `reply` it is to be deferred or refused. `missed` marks a message that should probably have been signed, or
    signed with another key.
    """

    identities: tuple[SigningIdentity, ...]
    reason: str
    notes: tuple[Note, ...]
    origin: Origin
    reply: Verdict | None = None
    missed: bool = False

    @property
    def defer(self) -> bool:
        """Whether the message has to be deferred, because its key cannot be used."""
        return self.reply is not None and self.reply.code.startswith("4")


class _NotSigned(Exception):
    """A condition for signing is not met.

    Carries the reason code, the note that explains it, and whether the message should probably have been signed.
    """

    def __init__(
        self, reason: str, what: str, found: str, *, missed: bool = True, reply: Verdict | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.note = Note(what, found)
        self.missed = missed
        self.reply = reply


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningPolicy:
    """What mail to sign, with which keys.

    `daemon_names` is OpenDKIM's MTA, `macros` its MacroList, `exempt` ExemptDomains, `never_to` DontSignMailTo, `peers`
    PeerList, `external` ExternalIgnoreList; with `multiple` (MultipleSignatures) all matching rules sign, not only
    the first. Mail from `local_domains` (`.example.com`: all its subdomains) is expected to be signed.
    """

    signing_table: SigningTable
    key_table: KeyTable
    internal_hosts: HostList | ClientList
    daemon_names: NameSet = field(default_factory=lambda: NameSet("ORIGINATING"))
    macros: MacroList = field(default_factory=MacroList)
    peers: HostList = field(default_factory=HostList)
    external: HostList = field(default_factory=HostList)
    exempt: NameSet = field(default_factory=NameSet)
    never_to: NameSet = field(default_factory=NameSet)
    sender_headers: tuple[str, ...] = ("From",)
    binding: SenderBinding = field(default_factory=SenderBinding)
    multiple: bool = False
    without_key: WithoutKey = WithoutKey.TEMPFAIL
    local_domains: tuple[str, ...] = ()

    def origin(self, request: Request, macros: Mapping[str, str] = _NO_MACROS) -> Origin:
        """Return whose mail this is, as far as the envelope tells; `exempting` has the last word."""
        if peer := self.peers.find(request.client):
            return Origin(Owner.PEER, Note("peers", f"mail of {peer} is left alone"))
        daemon_name = macros.get(DAEMON_NAME, "")
        if daemon_name and self.daemon_names.find(daemon_name):
            return _ours(f"the daemon is {daemon_name}")
        if found := self.macros.find(macros):
            return _ours(f"the macro {found}")
        if request.sasl_user or request.sasl_method:
            return _ours(f"authenticated as {request.sasl_user}")
        if entry := self.internal_hosts.find(request.client):
            return _ours(f"the client is internal by {entry}")
        return self._of_a_stranger(request, daemon_name)

    def _of_a_stranger(self, request: Request, daemon_name: str) -> Origin:
        """Return the origin of what is not ours, with every condition that does not hold."""
        client = request.client
        what = (
            f"not ours: the daemon is {daemon_name or 'not named'}, nobody has authenticated, "
            f"and {client.name}[{client.address}] is not internal"
        )
        if self.macros.names:
            what += f"; of the macros {' '.join(self.macros.names)} none is set as required"
        return Origin(Owner.STRANGER, Note("signing", what))

    def exempting(self, origin: Origin, headers: Sequence[Header]) -> Origin:
        """Return `origin`, or the one of exempt mail if From, known at the end of the header, makes it that."""
        if not self.exempt or origin.is_left_alone:
            return origin
        try:
            domain = self.exempt.find(self._senders(headers)[0].domain)
        except _NotSigned:
            return origin
        if not domain:
            return origin
        return Origin(Owner.EXEMPT, Note("exempt_domains", f"mail from {domain} is left alone"))

    def choose(
        self, request: Request, headers: Sequence[Header], origin: Origin, recipients: Iterable[str] = ()
    ) -> SigningChoice:
        """Decide for one message of `origin`, at the end of its header. Never raises."""
        if reason := _LEFT_ALONE.get(origin.owner):
            return SigningChoice((), reason, (origin.why,), origin)
        if not origin.is_ours:
            return self._foreign(request, headers, origin)
        notes = [origin.why]
        try:
            senders = self._senders(headers)
            sender = senders[0]
            rules = self._rules(sender)
            self._check_allowed(request, senders, recipients)
            identities, unusable = self._identities(rules, sender.domain, notes)
        except _NotSigned as why:
            return SigningChoice((), why.reason, (*notes, why.note), origin, why.reply, why.missed)
        if unusable and self.without_key is not WithoutKey.UNSIGNED:
            return SigningChoice((), unusable, tuple(notes), origin, _deferral(unusable), missed=True)
        old = any(identity.previous for identity in identities)
        reason = ("sign.previous_key" if old else "sign.ok") if identities else unusable
        return SigningChoice(identities, reason, tuple(notes), origin, missed=old or bool(unusable))

    def _foreign(self, request: Request, headers: Sequence[Header], origin: Origin) -> SigningChoice:
        """Sign nothing of a stranger's, and say whether the mail uses one of our domains."""
        if (domain := self._hosted(headers)) and not self.external.find(request.client):
            note = Note("From", f"an external host sends as {domain}")
            return SigningChoice((), "sign.external", (origin.why, note), origin)
        return SigningChoice((), "sign.not_origin", (origin.why,), origin)

    def _hosted(self, headers: Sequence[Header]) -> str:
        """Return the sender's domain if we would sign for it; else nothing."""
        if not len(self.signing_table):
            return ""
        try:
            sender = self._senders(headers)[0]
        except _NotSigned:
            return ""
        rule = next(self.signing_table.match(sender.user, sender.domain), None)
        return sender.domain if rule is not None and not rule.is_for_all else ""

    def _senders(self, headers: Sequence[Header]) -> list[MessageSender]:
        """Return the mailboxes of the sender, the one that signs first. Raises _NotSigned."""
        if not (authors := _values(headers, "From")):
            raise _NotSigned("sign.no_from", "From", "there is none")
        if len(authors) > 1:
            raise _NotSigned("sign.ambiguous_from", "From", f"there are {len(authors)} of them")
        for name in self.sender_headers:
            if values := _values(headers, name):
                return _parsed(name, values[0])
        return _parsed("From", authors[0])

    def _rules(self, sender: MessageSender) -> list[SigningRule]:
        rules = list(self.signing_table.match(sender.user, sender.domain))
        if not rules:
            local = self._is_local(sender.domain)
            found = f"no line for {sender}" + (f", though {sender.domain} is a domain of ours" if local else "")
            raise _NotSigned("sign.no_match", "signing table", found, missed=local)
        return rules if self.multiple else rules[:1]

    def _is_local(self, domain: str) -> bool:
        return any(
            is_within(domain, name[1:]) and domain != name[1:] if name.startswith(".") else domain == name
            for name in self.local_domains
        )

    def _check_allowed(self, request: Request, senders: Sequence[MessageSender], recipients: Iterable[str]) -> None:
        """Raise _NotSigned if the message must not be signed although its sender is in the table."""
        for recipient in recipients if self.never_to else ():
            if entry := self.never_to.find(recipient):
                raise _NotSigned("sign.recipient", "dont_sign_to", f"mail to {entry} is not signed", missed=False)
        # of every mailbox: a user who may write as himself may not write as himself and his chief
        if objection := next(filter(None, (self.binding.objection(request, sender) for sender in senders)), ""):
            refused = reject("sign.unbound", "550", "5.7.1", f"You may not send mail from {senders[0].domain}")
            reply = refused if self.binding.mismatch is Mismatch.REJECT else None
            raise _NotSigned("sign.unbound", f"bind = {self.binding.bind}", objection, reply=reply)

    def _identities(
        self, rules: Sequence[SigningRule], domain: str, notes: list[Note]
    ) -> tuple[tuple[SigningIdentity, ...], str]:
        """Return the identities that can sign, and the reason code of the first that cannot, or nothing."""
        identities: dict[tuple[str, str], SigningIdentity] = {}
        unusable = ""
        for rule in rules:
            notes.append(Note("signing table", f"{rule.location}: {rule.pattern}"))
            name = rule.key_for(domain)
            try:
                identity = self._identity(name, rule, domain, notes)
            except _NotSigned as reason:
                notes.append(reason.note)
                unusable = unusable or reason.reason
            else:
                notes.append(Note(f"key {name}", f"d={identity.domain} s={identity.selector}"))
                # Two rules with the same key would make two signatures, as in OpenDKIM: that helps nobody.
                identities.setdefault((identity.domain, identity.selector), identity)
        return tuple(identities.values()), unusable

    def _identity(self, name: str, rule: SigningRule, domain: str, notes: list[Note]) -> SigningIdentity:
        key = self.key_table.find(name, domain)
        try:
            return _identity_with(name, key, rule.signer_for(domain))
        except _NotSigned as reason:
            previous = self.key_table.previous(name, domain)
            if previous is None:
                raise
            notes.append(reason.note)
            notes.append(Note(f"key {name}", "signing with the key of that name from before"))
            return _identity_with(name, previous, rule.signer_for(domain), previous=True)


def _ours(why: str) -> Origin:
    return Origin(Owner.OURS, Note("signing", why))


def _identity_with(name: str, key: TableKey | None, signer: str, *, previous: bool = False) -> SigningIdentity:
    """Return the identity that signs with `key`. Raises _NotSigned."""
    if key is None:
        raise _NotSigned("sign.no_key", f"key {name}", "not in the KeyTable")
    if key.private is None:
        raise _NotSigned("sign.bad_key", f"key {name}", f"{key.path or 'it'} could not be used when it was read")
    if fault := key.private.fault:  # parses the key, at its first use
        raise _NotSigned("sign.bad_key", f"key {name}", f"{key.private.origin}: {fault}")
    return SigningIdentity(key.domain, key.selector, key.private, signer, previous)


def _deferral(reason: str) -> Verdict:
    return reject(reason, "451", "4.7.5", "This message cannot be signed right now; try again later")


def _values(headers: Sequence[Header], name: str) -> list[bytes]:
    wanted = name.lower().encode()
    return [field.value for field in headers if field.name.lower() == wanted]


def _parsed(name: str, value: bytes) -> list[MessageSender]:
    try:
        return parse_senders(value)
    except ValueError as error:
        raise _NotSigned("sign.ambiguous_from", name, str(error)) from None
