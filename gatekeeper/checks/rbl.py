# SPDX-License-Identifier: GPL-3.0-or-later
"""Postfix's words for DNS lists: reject_rbl_client, reject_rhsbl_*, permit_dnswl_client, permit_rhswl_client.

One list each, asked when its turn comes. The reply is Postfix's, with the list's own text. A failing deny list decides
nothing; a failing allow list keeps a `defer_if_reject`, because it might have permitted.
"""

from collections.abc import Callable
from dataclasses import dataclass

from gatekeeper.checks.dnslist import DnsList, Hit, ask_all, listed_domain, reason_of, reply_text, reversed_address
from gatekeeper.pipeline import Context
from gatekeeper.request import UNKNOWN, Request, Stage, domain_of
from gatekeeper.resolver import DNSError
from gatekeeper.verdict import PASS, Verdict, defer_if_reject, permit, printable, reject

CLIENT = "Client host"

Subject = Callable[[Request], tuple[str, str]]
"""What is looked up, for the reply, and what stands before the zone in the question: empty if there is nothing."""


@dataclass(frozen=True, slots=True)
class RejectListed:
    """554 5.7.1 for what `site` has."""

    site: DnsList
    label: str
    subject: Subject
    reason: str

    async def __call__(self, request: Request, context: Context) -> Verdict:
        what, question = self.subject(request)
        if not question:
            return PASS
        hits = await ask_all(context, [self.site], question)
        return await refusal(context, self.reason, self.label, what, hits[0]) if hits else PASS


@dataclass(frozen=True, slots=True)
class PermitListed:
    """Permit a client, or its name, that `site` has; never for mail that we would have to relay."""

    site: DnsList
    subject: Subject
    reason: str

    async def __call__(self, request: Request, context: Context) -> Verdict:
        if request.stage is Stage.RCPT and not context.site.is_ours(domain_of(request.recipient or "")):
            return PASS
        what, question = self.subject(request)
        if not question:
            return PASS
        # not ask_all: here, and only here, DNS trouble matters
        try:
            answer = await context.resolver.query(f"{question}.{self.site.zone}", "A")
        except DNSError as error:
            context.note(f"list {self.site.zone}", f"no answer: {str(error) or type(error).__name__}")
            text = f"<{printable(what, 255)}>: {CLIENT} rejected: Service unavailable"
            return defer_if_reject(f"{self.reason}_temporary", "4.7.1", text)
        hit = any(self.site.matches(record) for record in answer.records)
        context.note(f"list {self.site.zone}", "listed" if hit else "not listed")
        return permit(self.reason) if hit else PASS


async def refusal(context: Context, reason: str, label: str, what: str, hit: Hit) -> Verdict:
    """The reply of reject_rbl_client: `maps_rbl_reject_code` 554, 5.7.1."""
    text = reply_text(label, what, hit.list.zone, await reason_of(context, hit))
    return reject(reason, "554", "5.7.1", text)


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
