# SPDX-License-Identifier: GPL-3.0-or-later
"""Ownership of sender addresses: Postfix's reject_*sender_login_mismatch with `policy.sender_login_maps`.

The tables say who owns a sender address: login names, separated by commas or white space. They are searched as in
Postfix (mail_addr_find(3)): `user+ext@domain`, `user@domain`, then for our own host name `user+ext` and `user`, then
`@domain`; each in all tables before the next. The null sender has no owner and is never refused.

Known difference: Postfix tries a bare `user` for all of mydestination; here only for `hostname`, because
`local_domains` contains virtual domains too, in which the same user may be another person.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gatekeeper.checks.tables.access import without_extension
from gatekeeper.checks.tables.patterns import NetworkTable, RuleTable
from gatekeeper.checks.tables.table import Table
from gatekeeper.core.request import Request
from gatekeeper.core.verdict import PASS, Verdict, printable, reject
from gatekeeper.pipeline.context import Context


def search(tables: Sequence[Table], whole: str, parts: Sequence[str] = ()) -> str | None:
    """Return the value for `whole`, else for the first of `parts` that has one; patterns only match the whole."""
    for key in (whole, *parts):
        for table in tables:
            if key is not whole and isinstance(table, RuleTable | NetworkTable):
                continue
            if (found := table.search([key])) is not None:
                return found.verdict.text
    return None


def _parts(mailbox: str, delimiter: str, hostname: str) -> Iterator[str]:
    local, _, domain = mailbox.rpartition("@")
    bare = without_extension(local, delimiter)
    if bare != local:
        yield f"{bare}@{domain}"
    if domain == hostname:
        yield local
        if bare != local:
            yield bare
    yield f"@{domain}"


@dataclass(frozen=True, slots=True)
class SenderOwners:
    """The owners of an address, by `tables`; `hostname` is ours, `delimiter` separates user and extension."""

    tables: tuple[Table, ...]
    hostname: str = ""
    delimiter: str = ""

    def __call__(self, mailbox: str) -> frozenset[str] | None:
        """Return the logins, in lower case, that own the address; None if the tables have none."""
        mailbox = mailbox.lower()
        found = search(self.tables, mailbox, tuple(_parts(mailbox, self.delimiter, self.hostname)))
        return None if found is None else frozenset(re.split(r"[\s,]+", found.lower())) - {""}


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
        mailbox = request.sender.lower()
        hostname = context.site.hostname.lower()
        mailbox = mailbox if "@" in mailbox else f"{mailbox}@{hostname}"
        owners = search(self.tables, mailbox, tuple(_parts(mailbox, context.site.recipient_delimiter, hostname)))
        context.note(f"owners of {printable(mailbox, 320)}", printable(owners or "nobody", 200))
        if owners is None and (not user or self.known_only):
            return PASS
        if not user:
            return _refuse(request.sender, "sender.login_needed", "not logged in")
        if user.lower() in re.split(r"[\s,]+", (owners or "").lower()):
            return PASS
        return _refuse(request.sender, "sender.login_mismatch", f"not owned by user {printable(user, 120)}")


def _refuse(sender: str, reason: str, why: str) -> Verdict:
    return reject(reason, "553", "5.7.1", f"<{printable(sender, 320)}>: Sender address rejected: {why}")
