# SPDX-License-Identifier: GPL-3.0-or-later
"""`dnsbl`: DNS lists with weights, all queried at once; a client whose hits reach the threshold is refused.

As in postscreen(8) an allow list has a negative weight. Lists of addresses are queried for the client, lists of names
for its HELO name, the sender's domain and its reverse name; the weights of all hits are added up. DNS trouble is not a
hit; an allow list that does not answer, and whose hit would have let the client pass, makes the refusal temporary. Our
postmaster and abuse mailboxes, authenticated users and mynetworks are never refused.
"""

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field, StrictInt

from gatekeeper.checks.base.always_reachable import always_reachable
from gatekeeper.checks.base.check_types import ConfiguredCheck
from gatekeeper.checks.dnslists.lookup import (
    ListSubject,
    Sites,
    address_subject,
    name_of_client,
    name_subject,
    parse_list,
    query_lists,
    reply_text,
)
from gatekeeper.core.request import Address, Request
from gatekeeper.core.verdict import PASS, Outcome, Verdict, defer_if_permit, reject
from gatekeeper.dnslists.dns_list import DnsList, ListKind
from gatekeeper.dnslists.monitor import ListUse
from gatekeeper.pipeline.context import Context

ZEN: DnsList = parse_list("zen.spamhaus.org=127.0.0.[2..11]")


class Dnsbl(ConfiguredCheck):
    """554 5.7.1 for a client on the lists; the reply names the list with the greatest weight and quotes its text."""

    name: ClassVar[str] = "dnsbl"

    lists: Sites = Field(
        default=(ZEN,),
        description='lists as Postfix writes them, ZONE[=127.0.0.[2..11]][*WEIGHT]; an allow list weighs "*-1". '
        "Without a filter all of 127.0.0.0/8 counts except 127.255.255.0/24, with which operators refuse to answer",
    )
    helo_lists: Sites = Field(default=(), description="lists of names, queried for the HELO name")
    sender_lists: Sites = Field(default=(), description="the same, queried for the sender's domain")
    reverse_name_lists: Sites = Field(
        default=(), description="the same, queried for the client's reverse name, confirmed or not"
    )
    threshold: StrictInt = Field(default=1, ge=1, description="the client is refused if the weights add up to this")

    def queried_lists(self) -> Iterator[ListUse]:
        yield from ((site, ListKind.ADDRESS) for site in self.lists)
        yield from ((site, ListKind.NAME) for site in (*self.helo_lists, *self.sender_lists, *self.reverse_name_lists))

    async def judge(self, request: Request, context: Context) -> Verdict:
        """Refuse the client, or pass it and say how far it is below the threshold."""
        address = request.client.address
        if address is None or request.sasl_user or context.site.is_internal(request.client):
            return PASS
        found = await query_lists(context, list(self._queries(request, address)))
        if not found.hits:
            return PASS
        score = sum(hit.list.weight for hit in found.hits)
        if score > 0:
            context.journal.suspicions.append(
                f"is listed on {max(found.hits, key=lambda hit: hit.list.weight).list.shown}"
            )
        if score < self.threshold:
            context.note("score", f"{score} of {self.threshold}")
            return Verdict(Outcome.PASS, "dnsbl.below_threshold")
        if always_reachable(request.recipient, context.site):
            context.note("recipient", "is always reachable")
            return Verdict(Outcome.PASS, "dnsbl.always_reachable")
        text = await reply_text(context, max(found.hits, key=lambda hit: hit.list.weight))
        if score + sum(min(site.weight, 0) for site in found.unknown) < self.threshold:
            return defer_if_permit("dnsbl.listed_temporary", "4.7.1", text)
        return reject("dnsbl.listed", "554", "5.7.1", text)

    def _queries(self, request: Request, address: Address) -> Iterator[tuple[DnsList, ListSubject]]:
        subject = address_subject(address)
        for site in self.lists:
            yield site, subject
        for lists, label, name in (
            (self.helo_lists, "Helo command", request.helo),
            (self.sender_lists, "Sender address", request.sender),
            (self.reverse_name_lists, "Unverified Client host", name_of_client(request.client.reverse_name)),
        ):
            if lists and (named := name_subject(label, name)) is not None:
                for site in lists:
                    yield site, named
