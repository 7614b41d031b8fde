# SPDX-License-Identifier: GPL-3.0-or-later
"""Postfix's restrictions with DNS lists: reject_rbl_client, reject_rhsbl_*, permit_dnswl_client, permit_rhswl_client.

One list each. Deny lists that stand side by side are all queried when the first one runs; all lists of a request share
one time limit. The reply is Postfix's, with the list's own text. A failing deny list decides nothing; a failing allow
list keeps a `defer_if_reject`, because it might have permitted; so does one that is switched off because it does not
answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from gatekeeper.checks.base.check_types import PostfixCheck
from gatekeeper.checks.dnslists.lookup import (
    ListResult,
    ListSubject,
    listed_domain,
    name_of_client,
    query_lists,
    reply_text,
    reversed_address,
)
from gatekeeper.core.request import Request, Stage, domain_of
from gatekeeper.core.verdict import PASS, Verdict, defer_if_reject, permit, printable, reject
from gatekeeper.dnslists.dns_list import DnsList, ListKind
from gatekeeper.dnslists.monitor import ListUse
from gatekeeper.dnslists.queries import ListQuestion
from gatekeeper.pipeline.check import Check
from gatekeeper.pipeline.context import Context

CLIENT_LABEL = "Client host"

SubjectSource = Callable[[Request], tuple[str, str]]
"""Returns what is looked up, as the reply names it, and as it precedes the zone; empty if there is nothing."""


@dataclass(frozen=True, slots=True)
class RejectListed:
    """554 5.7.1 (`maps_rbl_reject_code`) for a subject that `site` lists."""

    site: DnsList
    label: str
    subject: SubjectSource
    reason: str
    prefetched: tuple["RejectListed", ...] = ()
    """The deny lists right after this one, which are queried together with it."""

    @property
    def use(self) -> ListUse:
        """The list and what it is used for, so that it can be monitored."""
        return self.site, _kind(self.subject)

    async def __call__(self, request: Request, context: Context) -> Verdict:
        if self.prefetched:
            queries = ((next.site, _kind(next.subject), next.subject(request)[1]) for next in self.prefetched)
            context.lists.prefetch([ListQuestion(site, kind, query) for site, kind, query in queries if query])
        found = await _query(context, self.site, self.subject, request, self.label)
        if found is None or not found.hits:
            return PASS
        return reject(self.reason, "554", "5.7.1", await reply_text(context, found.hits[0]))


@dataclass(frozen=True, slots=True)
class PermitListed:
    """Permit a client that `site` lists by address or name; never for mail that we would have to relay."""

    site: DnsList
    subject: SubjectSource
    reason: str

    @property
    def use(self) -> ListUse:
        """The list and what it is used for, so that it can be monitored."""
        return self.site, _kind(self.subject)

    async def __call__(self, request: Request, context: Context) -> Verdict:
        if request.stage is Stage.RCPT and not context.site.is_ours(domain_of(request.recipient or "")):
            return PASS
        found = await _query(context, self.site, self.subject, request, CLIENT_LABEL)
        if found is None:
            return PASS
        if found.unknown:
            what, _ = self.subject(request)
            text = f"<{printable(what, 255)}>: {CLIENT_LABEL} rejected: Service unavailable"
            return defer_if_reject(f"{self.reason}_temporary", "4.7.1", text)
        return permit(self.reason) if found.hits else PASS


def prefetch_adjacent(checks: Sequence[Check]) -> tuple[Check, ...]:
    """Return `checks`, where the first of several adjacent deny lists starts the queries of the others, too."""
    done: list[Check] = []
    for _, run in groupby(checks, lambda check: _deny_list(check) is not None):
        first, *rest = run
        deny_list = _deny_list(first)
        if rest and deny_list is not None and isinstance(first, PostfixCheck):
            others = tuple(judge for check in rest if (judge := _deny_list(check)) is not None)
            first = replace(first, judge=replace(deny_list, prefetched=others))
        done += [first, *rest]
    return tuple(done)


def _deny_list(check: Check) -> RejectListed | None:
    return check.judge if isinstance(check, PostfixCheck) and isinstance(check.judge, RejectListed) else None


async def _query(
    context: Context, site: DnsList, subject: SubjectSource, request: Request, label: str
) -> ListResult | None:
    what, query = subject(request)
    return await query_lists(context, [(site, ListSubject(label, _kind(subject), what, query))]) if query else None


def _kind(subject: SubjectSource) -> ListKind:
    return ListKind.ADDRESS if subject is client_address else ListKind.NAME


def client_address(request: Request) -> tuple[str, str]:
    """Return the client's address."""
    address = request.client.address
    return ("", "") if address is None else (str(address), reversed_address(address))


def client_name(request: Request) -> tuple[str, str]:
    """Return the client's confirmed name."""
    return _name(name_of_client(request.client.name))


def reverse_client_name(request: Request) -> tuple[str, str]:
    """Return the client's PTR, confirmed or not."""
    return _name(name_of_client(request.client.reverse_name))


def helo(request: Request) -> tuple[str, str]:
    """Return the HELO name."""
    return _name(request.helo)


def sender(request: Request) -> tuple[str, str]:
    """Return the sender and its domain; nothing for the null sender."""
    return _name(request.sender)


def recipient(request: Request) -> tuple[str, str]:
    """Return the recipient and its domain."""
    return _name(request.recipient)


def _name(name: str | None) -> tuple[str, str]:
    return (name, listed_domain(name) or "") if name else ("", "")
