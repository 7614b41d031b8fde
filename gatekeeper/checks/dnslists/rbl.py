# SPDX-License-Identifier: GPL-3.0-or-later
"""Postfix's words for DNS lists: reject_rbl_client, reject_rhsbl_*, permit_dnswl_client, permit_rhswl_client.

One list each. Deny lists that stand side by side are asked at once when it is the first one's turn; all lists of a
request share one budget of time. The reply is Postfix's, with the list's own text. A failing deny list decides nothing;
a failing allow list keeps a `defer_if_reject`, because it might have permitted; so does one that is switched off
because it does not answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from gatekeeper.checks.base.check_types import PostfixCheck
from gatekeeper.checks.dnslists.lookup import (
    ListResult,
    ListSubject,
    listed_domain,
    look_up,
    reply_text,
    reversed_address,
)
from gatekeeper.core.request import UNKNOWN, Request, Stage, domain_of
from gatekeeper.core.verdict import PASS, Verdict, defer_if_reject, permit, printable, reject
from gatekeeper.dnslists.dns_list import DnsList, ListKind
from gatekeeper.dnslists.monitor import ListUse
from gatekeeper.dnslists.queries import ListQuestion
from gatekeeper.pipeline.check import Check
from gatekeeper.pipeline.context import Context

CLIENT = "Client host"

Subject = Callable[[Request], tuple[str, str]]
"""What is looked up, for the reply, and what stands before the zone in the question: empty if there is nothing."""


@dataclass(frozen=True, slots=True)
class RejectListed:
    """554 5.7.1 (`maps_rbl_reject_code`) for what `site` has."""

    site: DnsList
    label: str
    subject: Subject
    reason: str
    ahead: tuple["RejectListed", ...] = ()
    """Lists further down whose turn comes next."""

    @property
    def use(self) -> ListUse:
        """The list, to be watched."""
        return self.site, _kind(self.subject)

    async def __call__(self, request: Request, context: Context) -> Verdict:
        if self.ahead:
            asked = ((next.site, _kind(next.subject), next.subject(request)[1]) for next in self.ahead)
            context.lists.prefetch([ListQuestion(site, kind, subject) for site, kind, subject in asked if subject])
        found = await _look_up(context, self.site, self.subject, request, self.label)
        if found is None or not found.hits:
            return PASS
        return reject(self.reason, "554", "5.7.1", await reply_text(context, found.hits[0]))


@dataclass(frozen=True, slots=True)
class PermitListed:
    """Permit a client, or its name, that `site` has; never for mail that we would have to relay."""

    site: DnsList
    subject: Subject
    reason: str

    @property
    def use(self) -> ListUse:
        """The list, to be watched."""
        return self.site, _kind(self.subject)

    async def __call__(self, request: Request, context: Context) -> Verdict:
        if request.stage is Stage.RCPT and not context.site.is_ours(domain_of(request.recipient or "")):
            return PASS
        found = await _look_up(context, self.site, self.subject, request, CLIENT)
        if found is None:
            return PASS
        if found.unknown:
            what, _ = self.subject(request)
            text = f"<{printable(what, 255)}>: {CLIENT} rejected: Service unavailable"
            return defer_if_reject(f"{self.reason}_temporary", "4.7.1", text)
        return permit(self.reason) if found.hits else PASS


def ask_ahead(checks: Sequence[Check]) -> tuple[Check, ...]:
    """`checks`, where the first of several deny lists that stand side by side has the others asked as well."""
    done: list[Check] = []
    for _, run in groupby(checks, lambda check: _deny_list(check) is not None):
        first, *rest = run
        mine = _deny_list(first)
        if rest and mine is not None and isinstance(first, PostfixCheck):
            ahead = tuple(judge for check in rest if (judge := _deny_list(check)) is not None)
            first = replace(first, judge=replace(mine, ahead=ahead))
        done += [first, *rest]
    return tuple(done)


def _deny_list(check: Check) -> RejectListed | None:
    return check.judge if isinstance(check, PostfixCheck) and isinstance(check.judge, RejectListed) else None


async def _look_up(
    context: Context, site: DnsList, subject: Subject, request: Request, label: str
) -> ListResult | None:
    what, asked = subject(request)
    return await look_up(context, [(site, ListSubject(label, _kind(subject), what, asked))]) if asked else None


def _kind(subject: Subject) -> ListKind:
    return ListKind.ADDRESS if subject is client_address else ListKind.NAME


def client_address(request: Request) -> tuple[str, str]:
    """The client's address."""
    address = request.client.address
    return ("", "") if address is None else (str(address), reversed_address(address))


def client_name(request: Request) -> tuple[str, str]:
    """The confirmed name."""
    return _name(request.client.name)


def reverse_client_name(request: Request) -> tuple[str, str]:
    """The PTR, confirmed or not."""
    return _name(request.client.reverse_name)


def helo(request: Request) -> tuple[str, str]:
    """The HELO name."""
    return _name(request.helo)


def sender(request: Request) -> tuple[str, str]:
    """The sender's domain; nothing for the null sender."""
    return _name(request.sender)


def recipient(request: Request) -> tuple[str, str]:
    """The recipient's domain."""
    return _name(request.recipient)


def _name(name: str | None) -> tuple[str, str]:
    return ("", "") if not name or name == UNKNOWN else (name, listed_domain(name) or "")
