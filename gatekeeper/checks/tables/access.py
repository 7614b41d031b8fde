# SPDX-License-Identifier: GPL-3.0-or-later
"""Lookups in access tables, in Postfix's order: check_{client,helo,sender,recipient}_access and our own `access`.

Client: the name, its parent domains up to the top level, then the address, shortened field by field. Mailbox:
`user+ext@domain`, `user@domain`, `domain` (and, only here, `@domain`), parent domains, `user+ext@`, `user@`; the null
sender is `<>`. The first entry found decides, even a DUNNO. (smtpd_check.c, check_namadr_access() and
check_mail_access(); access(5).)

A mailbox is a stranger's text: it becomes a key only in the forms of postfix/mailbox_form.py. One whose local part
routes (`boss%ours.example@ours.example`) is looked up as where it leads and as it is: Postfix asks for the first in
mydestination and for the second in other domains, and `local_domains` has both. An OK counts if both say it.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from gatekeeper.checks.base.nested import SERVER_ERROR
from gatekeeper.checks.tables.action import Subject, TableAction, apply
from gatekeeper.checks.tables.patterns import RuleTable
from gatekeeper.checks.tables.table import Table
from gatekeeper.core.request import Request
from gatekeeper.core.verdict import PASS, Mode, Outcome, Verdict
from gatekeeper.pipeline.context import Context
from gatekeeper.pipeline.site import Site
from gatekeeper.postfix import mailbox_form
from gatekeeper.postfix.hostname_syntax import is_address
from gatekeeper.postfix.restriction_list import TableNames

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Find = Callable[[Table, Request, Site], tuple[TableAction | None, Subject]]
"""Looks up one attribute of a request in a table."""


def domain_keys(name: str) -> Iterator[str]:
    """Yield the name and its parent domains, in their original case, because patterns see it; an address has none."""
    if is_address(name):
        yield name
        return
    while name:
        yield name
        name = name[1:].partition(".")[2]


def mailbox_keys(mailbox: str, delimiter: str) -> Iterator[str]:
    """Yield the keys of a sender or a recipient; each character of `delimiter` is a delimiter, as in Postfix."""
    mailbox = mailbox_form.normal(mailbox)
    local, at, domain = mailbox.rpartition("@")
    if not at:  # Postfix appends its own domain first, but looks up the part before the @ all the same
        yield from mailbox_form.forms(domain)
        bare = without_extension(domain, delimiter)
        yield from (f"{form}@" for form in dict.fromkeys((*_forms(domain), *_forms(bare))))
        return
    bare = without_extension(local, delimiter)
    # The quoted form first, then the other; most need no quotes.
    users = _forms(local) if bare == local else (*_forms(local), *_forms(bare))
    for form in users:
        yield f"{form}@{domain}"
    parents = domain_keys(domain)
    first = next(parents, "")
    if first:
        yield first
        yield f"@{domain}"
    yield from parents
    for form in users:
        yield f"{form}@"


def _forms(local: str) -> tuple[str, ...]:
    quoted = mailbox_form.external_local(local)
    return (quoted,) if quoted == local else (quoted, local)


def search_mailbox(table: Table, mailbox: str, delimiter: str) -> TableAction | None:
    """Return the entry for a mailbox in internal form."""
    found = table.search(mailbox_keys(mailbox, delimiter))
    if found is None and isinstance(table, RuleTable):
        # Its rules match no parts of the mailbox, but the whole of it in both its forms.
        for key in islice(mailbox_form.forms(mailbox_form.normal(mailbox)), 1, None):
            found = table.search([key])
    return found


def _search_routed(table: Table, mailbox: str, request: Request, site: Site) -> TableAction | None:
    """Return the entry for a mailbox, or for where its local part leads."""
    found = search_mailbox(table, mailbox, site.recipient_delimiter)
    leads_to = destination(mailbox, request, site)
    if not leads_to:
        return found
    there = search_mailbox(table, leads_to, site.recipient_delimiter)
    both = [action for action in (there, found) if action is not None]
    strict = next((action for action in both if not action.allows), None)
    return strict if strict is not None or len(both) < 2 else both[0]


def destination(mailbox: str, request: Request, site: Site) -> str:
    """Return the mailbox that the local part of one in our domains leads to; empty if it leads nowhere else."""
    mailbox = mailbox_form.normal(mailbox)
    if not set(mailbox.rpartition("@")[0] or mailbox) & set("@!%"):
        return ""
    ours = f"[{request.server_address}]".replace("[", "[ipv6:" if ":" in str(request.server_address) else "[")
    leads_to = mailbox_form.resolved(mailbox, lambda domain: site.is_local(domain) or domain == ours)
    return "" if leads_to == mailbox else leads_to


def without_extension(local: str, delimiter: str) -> str:
    """Return `user` of `user+ext`, cut at the first delimiter that is not at the start (strip_addr(3)).

    Postfix never splits mailer-daemon and double-bounce, nor owner-... and ...-request at a hyphen.
    """
    if local in ("mailer-daemon", "double-bounce") or (
        "-" in delimiter and (local.startswith("owner-") or local.endswith("-request"))
    ):
        return local
    ends = [at for char in delimiter if (at := local.find(char, 1)) > 0]
    return local[: min(ends)] if ends else local


def find_client(table: Table, request: Request, _site: Site) -> tuple[TableAction | None, Subject]:
    """Look up the client for check_client_access: by confirmed name, then by address."""
    client = request.client
    action = table.search(domain_keys(client.name))
    if action is None and client.address is not None:
        action = table.search_address(client.address)
    what = f"{client.name}[{client.address or 'unknown'}]" if action is not None else ""
    return action, Subject(what, "Client host")


def find_reverse_client(table: Table, request: Request, _site: Site) -> tuple[TableAction | None, Subject]:
    """Look up the client for check_reverse_client_hostname_access: by PTR, confirmed or not, then by address."""
    client = request.client
    action = table.search(domain_keys(client.reverse_name))
    if action is None and client.address is not None:
        action = table.search_address(client.address)
    return action, Subject(client.reverse_name, "Unverified Client host")


def find_helo(table: Table, request: Request, _site: Site) -> tuple[TableAction | None, Subject]:
    """Look up the HELO name for check_helo_access."""
    helo = request.helo or ""
    return table.search(domain_keys(helo)), Subject(helo, "Helo command")


def find_sender(table: Table, request: Request, site: Site) -> tuple[TableAction | None, Subject]:
    """Look up the sender for check_sender_access."""
    sender = request.sender or ""
    action = _search_routed(table, sender, request, site) if sender else table.search(["<>"])
    return action, Subject(sender, "Sender address")


def find_recipient(table: Table, request: Request, site: Site) -> tuple[TableAction | None, Subject]:
    """Look up the recipient for check_recipient_access."""
    recipient = request.recipient or ""
    return _search_routed(table, recipient, request, site), Subject(recipient, "Recipient address")


def find_sasl(table: Table, request: Request, _site: Site) -> tuple[TableAction | None, Subject]:
    """Look up the SASL login name for check_sasl_access, with `_` for control characters (Postfix's printable(3))."""
    user = _CONTROL.sub("_", request.sasl_user)
    return (table.search([user]) if user else None), Subject(user, "SASL login name")


def find_etrn(table: Table, request: Request, _site: Site) -> tuple[TableAction | None, Subject]:
    """Look up the domain of an ETRN command for check_etrn_access."""
    domain = request.etrn_domain
    return (table.search(domain_keys(domain)) if domain else None), Subject(domain, "Etrn command")


@dataclass(frozen=True, slots=True)
class LookUp:
    """One table, searched for one attribute of a request.

    `what` names the lookup in notes. Without `may_allow`, an OK is a configuration error.
    """

    what: str
    find: Find
    table: Table
    may_allow: bool = True

    @property
    def asks_spf(self) -> bool:
        """Whether an entry may ask for SPF of the sender."""
        return self.table.asks_spf

    async def __call__(self, request: Request, context: Context) -> Verdict:
        action, subject = self.find(self.table, request, context.site)
        if action is None:
            return PASS
        verdict = await apply(action, subject, request, context)
        context.note(f"{self.what} {subject.what or '<>'}", verdict.text or verdict.reason or verdict.outcome)
        if verdict.outcome is Outcome.PERMIT and not self.may_allow:
            return replace(SERVER_ERROR, earlier=verdict.earlier)
        return verdict


class AccessOptions(BaseModel):
    """The options of `[checks.access]`: tables that are searched in this order, until one decides."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str] = "access"

    mode: Mode = Field(
        default=Mode.ENFORCE,
        description="enforce: the verdict counts; observe: it is only logged; off: the check is not run",
    )
    client: TableNames = Field(default=(), description="tables (TYPE:FILE) searched for the client's name and address")
    helo: TableNames = Field(default=(), description="tables searched for the HELO name")
    sender: TableNames = Field(default=(), description="tables searched for the sender; <> is the null sender")
    recipient: TableNames = Field(default=(), description="tables searched for the recipient")


@dataclass(frozen=True, slots=True)
class Access:
    """The check `access`: several lookups as one check."""

    lookups: tuple[tuple[str, LookUp], ...]
    """The lookups, each with the Request attribute that it needs, or an empty string."""
    mode: Mode = Mode.ENFORCE
    name: str = "access"
    needs: tuple[str, ...] = ()

    @property
    def asks_spf(self) -> bool:
        """Whether one of the look-ups may ask for SPF of the sender."""
        return any(look_up.asks_spf for _, look_up in self.lookups)

    async def check(self, request: Request, context: Context) -> Verdict:
        """Return the first verdict that is more than PASS, else the last PASS with a reason."""
        passed = PASS
        for need, look_up in self.lookups:
            if need and getattr(request, need) is None:
                continue
            verdict = await look_up(request, context)
            if verdict.outcome is not Outcome.PASS or verdict.earlier:
                return verdict
            passed = verdict if verdict.reason else passed
        return passed
