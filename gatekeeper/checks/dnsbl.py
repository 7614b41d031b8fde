# SPDX-License-Identifier: GPL-3.0-or-later
"""`dnsbl`: several DNS lists with weights, all asked at once; a client whose hits reach the threshold is refused.

As in postscreen(8) an allow list has a negative weight. DNS trouble is no hit. Our postmaster and abuse mailboxes,
authenticated users and mynetworks are never refused.
"""

from typing import ClassVar

from pydantic import Field

from gatekeeper.checks.dnslist import DnsList, Site, ask_all, parse_list, reversed_address
from gatekeeper.checks.opinion import Opinion, always_reachable
from gatekeeper.checks.rbl import refusal
from gatekeeper.pipeline import Context
from gatekeeper.request import Request
from gatekeeper.verdict import PASS, Outcome, Verdict

ZEN: DnsList = parse_list("zen.spamhaus.org=127.0.0.[2..11]")


class Dnsbl(Opinion):
    """554 5.7.1 for a client on the lists. The reply names the list that weighs most, with that list's own words."""

    name: ClassVar[str] = "dnsbl"

    lists: tuple[Site, ...] = Field(
        default=(ZEN,),
        description='lists as Postfix writes them, ZONE[=127.0.0.[2..11]][*WEIGHT]; an allow list weighs "*-1". '
        "Without a filter all of 127.0.0.0/8 counts but 127.255.255.0/24, with which operators refuse to answer",
    )
    threshold: int = Field(default=1, ge=1, description="the sum of weights from which on the client is refused")

    async def judge(self, request: Request, context: Context) -> Verdict:
        """Refused, or how many points the client has below the threshold."""
        address = request.client.address
        if address is None or request.sasl_user or context.site.is_internal(address):
            return PASS
        hits = await ask_all(context, self.lists, reversed_address(address))
        score = sum(hit.list.weight for hit in hits)
        if not hits:
            return PASS
        if score < self.threshold:
            context.note("score", f"{score} of {self.threshold}")
            return Verdict(Outcome.PASS, "dnsbl.below_threshold")
        if always_reachable(request.recipient, context.site):
            context.note("recipient", "is always reachable")
            return Verdict(Outcome.PASS, "dnsbl.always_reachable")
        heaviest = max(hits, key=lambda hit: hit.list.weight)
        return await refusal(context, "dnsbl.listed", "Client host", str(address), heaviest)
