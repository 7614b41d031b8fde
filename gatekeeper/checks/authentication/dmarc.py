# SPDX-License-Identifier: GPL-3.0-or-later
"""`dmarc`: enforcement of the policy that the From domain publishes (RFC 9989). Run by the milter.

False positives of enforcement: mailing lists and forwarders that change a message whose author's domain says
`reject`. So before mail is refused or quarantined, the trusted intermediaries are tried, and only on proof: a forwarder
by its address or confirmed name, a mailing list by its own SPF or DKIM, a sealer by a valid ARC chain.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import ConfigDict, Field

from gatekeeper.auth.arc import ArcResult
from gatekeeper.auth.author import Named
from gatekeeper.auth.dmarc import DmarcFinding as Finding
from gatekeeper.auth.dmarc import DmarcResult
from gatekeeper.auth.dmarc_record import DmarcPolicy
from gatekeeper.auth.domains import is_within
from gatekeeper.checks.base.check_types import ConfiguredCheck
from gatekeeper.core.request import Request, Stage
from gatekeeper.core.verdict import PASS, Outcome, Verdict, printable, reject
from gatekeeper.pipeline.context import Context
from gatekeeper.signing.host_list import HostList

QUARANTINE_FIELD = "X-Gatekeeper-Quarantine"
"""The header field that marks quarantined mail if it is not held, so that a delivery filter can file it."""


_POLICIES = {
    "accept": DmarcPolicy.NONE,
    "observe": DmarcPolicy.NONE,
    "quarantine": DmarcPolicy.QUARANTINE,
    "reject": DmarcPolicy.REJECT,
}


class DmarcCheck(ConfiguredCheck):
    """550 5.7.1 or quarantine, as the domain asks, up to what `obey` allows; DNS trouble decides nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)
    name: ClassVar[str] = "dmarc"

    obey: Literal["observe", "quarantine", "reject"] = Field(
        default="observe",
        description="observe: only logged; quarantine: mail is quarantined where the domain says quarantine or "
        "reject; reject: as the domain says",
    )
    quarantine: Literal["hold", "header"] = Field(default="hold", description="what quarantine means here")
    malformed_from: Literal["", "accept", "quarantine", "reject"] = Field(
        default="",
        description="what to do with mail whose From does not name exactly one domain, if none of them fails; empty: "
        "as `obey`, where no domain can be read at all, and else accept",
    )
    overrides: Mapping[str, DmarcPolicy] = Field(
        default_factory=dict, description="the policy for a domain whose mail fails, whatever the domain says"
    )
    forwarders: HostList = Field(
        default_factory=HostList, description="clients whose mail fails DMARC for a legitimate reason"
    )
    sealers: tuple[str, ...] = Field(default=(), description="domains whose ARC seals are trusted")
    lists: tuple[str, ...] = Field(default=(), description="domains of mailing lists that may change mail")

    async def judge(self, request: Request, context: Context) -> Verdict:
        """Apply the policy of the author's domain, as far as `obey` allows."""
        if request.stage is not Stage.END_OF_MESSAGE:
            return PASS
        found = await context.facts.dmarc()
        domain = printable(found.domain, 255)
        context.note(f"DMARC of {domain or 'nobody'}", f"{found.result} {found.reason}".strip())
        if found.result is DmarcResult.PERMERROR:
            policy, reason = self._policy_for_malformed(found), "dmarc.permerror"
            text = f"From must name one author's domain: {found.reason}"
        elif found.result is DmarcResult.FAIL:
            policy, why, domain = self._strictest(found)
            text = f"{why.capitalize() or 'DMARC'} policy of {domain}"
            if policy is DmarcPolicy.REJECT:
                text += " refuses mail that neither SPF nor DKIM proves to be its own"
            reason = f"dmarc.{policy}" if policy is not DmarcPolicy.NONE else f"dmarc.{why or 'fail'}"
        else:
            return Verdict(Outcome.PASS, f"dmarc.{found.result}")
        if policy is DmarcPolicy.NONE:
            return Verdict(Outcome.PASS, reason)
        if exception := await self._exception(request, context):
            return Verdict(Outcome.PASS, f"dmarc.{exception}")
        if policy is DmarcPolicy.REJECT:
            return reject(reason, "550", "5.7.1", text)
        return self._quarantined(text, reason)

    def _strictest(self, found: Finding) -> tuple[DmarcPolicy, str, str]:
        """Return the strictest policy to apply of the domains that fail, with `_policy`'s word and the domain."""
        policies = [(*self._policy(one), printable(one.domain, 255)) for one in (found, *found.others)]
        return max(policies, key=lambda one: one[0].strictness)

    def _policy(self, found: Finding) -> tuple[DmarcPolicy, str]:
        """Return the policy to apply, and "override" if it is one of ours.

        An override applies whatever `obey` says; else it is the domain's policy, as far as `obey` allows.
        """
        for ours, policy in self.overrides.items():
            if found.domain == ours or (ours.startswith(".") and found.domain.endswith(ours)):
                return policy, "override"
        if self.obey == "observe":
            return DmarcPolicy.NONE, ""
        if found.policy is DmarcPolicy.REJECT and self.obey == "quarantine":
            return DmarcPolicy.QUARANTINE, ""
        return found.policy, ""

    def _policy_for_malformed(self, found: Finding) -> DmarcPolicy:
        """Return the policy to apply to a From that does not name exactly one domain, of which none fails."""
        wanted = _POLICIES[self.malformed_from or ("accept" if found.named is Named.SEVERAL else self.obey)]
        if found.named is Named.TOO_MANY:  # one of them may ask for whatever `obey` allows
            return max(wanted, _POLICIES[self.obey], key=lambda policy: policy.strictness)
        return wanted

    def _quarantined(self, why: str, reason: str) -> Verdict:
        text = f"HOLD {why}" if self.quarantine == "hold" else f"PREPEND {QUARANTINE_FIELD}: {why}"
        return Verdict(Outcome.ACTION, reason, text=text)

    async def _exception(self, request: Request, context: Context) -> str:
        """Return which trusted intermediary excuses the failure, as the end of the reason code; empty if none does."""
        if entry := self.forwarders.find(request.client):
            context.note("trusted forwarder", entry)
            return "forwarder"
        if self.lists and (mailing_list := await self._list(context)):
            context.note("trusted mailing list", mailing_list)
            return "list"
        if self.sealers and (sealer := await self._sealer(context)):
            context.note("trusted ARC sealer", sealer)
            return "sealer"
        return ""

    async def _list(self, context: Context) -> str:
        """Return the trusted mailing list that SPF or DKIM proves this message to come from; empty if there is none."""
        spf = await context.facts.spf()
        proven = [spf.domain] if spf.authenticates else []
        proven += [one.domain for one in await context.facts.dkim() if one.authenticates]
        return next((domain for domain in proven if any(is_within(domain, ours) for ours in self.lists)), "")

    async def _sealer(self, context: Context) -> str:
        """Return the trusted sealer that saw DMARC pass when it received the message; an empty string if there is none.

        All later sealers in the chain must be trusted as well, because they may have changed the message before they
        sealed it. And the newest signature must cover From, or the chain says nothing about the author.
        """
        arc = await context.facts.arc()
        if arc.result is not ArcResult.PASS or not arc.signs_from:
            return ""
        for hop in reversed(arc.hops):
            if not any(is_within(hop.domain, ours) for ours in self.sealers):
                return ""
            if hop.stated.passed("dmarc"):
                return hop.domain
        return ""
