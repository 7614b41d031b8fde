# SPDX-License-Identifier: GPL-3.0-or-later
"""Ownership of sender addresses: Postfix's reject_*sender_login_mismatch with `policy.sender_login_maps`.

The tables say who owns a sender address: login names, separated by commas or white space. They are searched as in
Postfix (mail_addr_find(3)): `user+ext@domain`, `user@domain`, then for our own host name `user+ext` and `user`, then
`@domain`; each in all tables before the next, and in the forms of postfix/mailbox_form.py. The null sender has no owner
and is never refused.

The address is a stranger's text. What a pattern puts into its value ($1) is one login or part of one, never several,
whatever separators are in it (patterns.py); in Postfix `"x mallory y"@example.com` may come to be mallory's. And who
sends as `alice%example.com@ours.example`, which leads to alice@example.com, has to own both.

Known difference: Postfix tries a bare `user` for all of mydestination; here only for `hostname`, because
`local_domains` contains virtual domains too, in which the same user may be another person.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gatekeeper.checks.tables.access import destination, without_extension
from gatekeeper.checks.tables.patterns import NetworkTable, RuleTable
from gatekeeper.checks.tables.table import Table
from gatekeeper.core.request import Request
from gatekeeper.core.verdict import PASS, Verdict, printable, reject
from gatekeeper.pipeline.context import Context
from gatekeeper.postfix import mailbox_form

_SEPARATORS = re.compile(r"[ \t\r\n,]+")
"""What stands between two logins (Postfix's CHARS_COMMA_SP)."""


def _keys(mailbox: str, delimiter: str, hostname: str) -> Iterator[tuple[str, bool]]:
    """Yield each key, and whether it is the whole mailbox."""
    local, _, domain = mailbox.rpartition("@")
    bare = without_extension(local, delimiter)
    yield from ((form, True) for form in mailbox_form.forms(mailbox))
    parts = [f"{bare}@{domain}"] if bare != local else []
    if domain == hostname:
        parts += dict.fromkeys((local, bare))
    for part in parts:
        # A local part alone may have an @ in it, which is not the one before a domain.
        quoted = mailbox_form.external(part) if part.endswith(f"@{domain}") else mailbox_form.external_local(part)
        yield from ((form, False) for form in dict.fromkeys((quoted, part)))
    yield f"@{domain}", False


def find_owners(tables: Sequence[Table], mailbox: str, delimiter: str, hostname: str) -> tuple[str, ...] | None:
    """Return the logins, in lower case, that own a mailbox in internal form; None if the tables say nothing of it."""
    for key, whole in _keys(mailbox_form.normal(mailbox), delimiter, hostname):
        for table in tables:
            if not whole and isinstance(table, RuleTable | NetworkTable):
                continue
            if (found := table.search([key])) is not None:
                return tuple(login for login in _SEPARATORS.split(found.verdict.text.lower()) if login)
    return None


@dataclass(frozen=True, slots=True)
class SenderOwners:
    """The owners of an address, by `tables`; `hostname` is ours, `delimiter` separates user and extension."""

    tables: tuple[Table, ...]
    hostname: str = ""
    delimiter: str = ""

    def __call__(self, mailbox: str) -> frozenset[str] | None:
        """Return the logins, in lower case, that own the address of a header field; None if the tables have none."""
        owners = find_owners(self.tables, mailbox_form.internal(mailbox), self.delimiter, self.hostname)
        return None if owners is None else frozenset(owners)


@dataclass(frozen=True, slots=True)
class LoginMismatch:
    """553 5.7.1 for a sender address that belongs to somebody else.

    With `logged_in`, an authenticated user has to own the address; with `known_only`, only if it has an owner. With
    `logged_out`, a client that has not authenticated must not use an address that has an owner.
    """

    tables: tuple[Table, ...]
    logged_in: bool
    logged_out: bool
    known_only: bool = False

    async def __call__(self, request: Request, context: Context) -> Verdict:
        user = request.sasl_user
        if not request.sender or not (self.logged_in if user else self.logged_out):
            return PASS
        hostname, delimiter = context.site.hostname.lower(), context.site.recipient_delimiter
        mailbox = request.sender if "@" in request.sender else f"{request.sender}@{hostname}"
        owners = find_owners(self.tables, mailbox, delimiter, hostname)
        context.note(f"owners of {printable(mailbox, 320)}", printable(", ".join(owners or ("nobody",)), 200))
        leads_to = destination(request.sender, request, context.site)
        there = find_owners(self.tables, leads_to, delimiter, hostname) if leads_to else None
        if there is not None:
            context.note(f"owners of {printable(leads_to, 320)}", printable(", ".join(there or ("nobody",)), 200))
        if owners is None and there is None and (not user or self.known_only):
            return PASS
        if not user:
            return _refuse(request.sender, "sender.login_needed", "not logged in")
        if all(user.lower() in (found or ()) for found in (owners, *([there] if leads_to else []))):
            return PASS
        return _refuse(request.sender, "sender.login_mismatch", f"not owned by user {printable(user, 120)}")


def _refuse(sender: str, reason: str, why: str) -> Verdict:
    return reject(reason, "553", "5.7.1", f"<{printable(sender, 320)}>: Sender address rejected: {why}")
