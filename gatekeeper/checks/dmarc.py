# SPDX-License-Identifier: GPL-3.0-or-later
"""`dmarc`: whether the policy that a From domain publishes is obeyed (RFC 9989). Asked by the milter.

False positives of enforcement: mailing lists and forwarders that change a message whose author's domain says `reject`.
"""

from typing import ClassVar, Literal

from pydantic import Field

from gatekeeper.auth.dmarc import DmarcResult, Policy
from gatekeeper.checks.opinion import Opinion
from gatekeeper.pipeline import Context
from gatekeeper.request import Request, Stage
from gatekeeper.verdict import PASS, Outcome, Verdict, printable, reject


class Dmarc(Opinion):
    """550 5.7.1 or quarantine (HOLD), at most as much as `obey` says; DNS trouble decides nothing."""

    name: ClassVar[str] = "dmarc"

    obey: Literal["observe", "quarantine", "reject"] = Field(
        default="observe",
        description="observe: only written down; quarantine: held where the domain says quarantine or reject; "
        "reject: as the domain says",
    )

    async def judge(self, request: Request, context: Context) -> Verdict:
        """What the domain asks for, as far as it is obeyed."""
        if request.stage is not Stage.END_OF_MESSAGE:
            return PASS
        dmarc = await context.facts.dmarc()
        domain = printable(dmarc.domain, 255)
        context.note(f"DMARC of {domain or 'nobody'}", f"{dmarc.result} {dmarc.reason}".strip())
        if dmarc.result is not DmarcResult.FAIL or dmarc.policy is Policy.NONE or self.obey == "observe":
            return Verdict(Outcome.PASS, f"dmarc.{dmarc.result}")
        if dmarc.policy is Policy.REJECT and self.obey == "reject":
            text = f"DMARC policy of {domain} refuses mail that neither SPF nor DKIM proves to be its own"
            return reject("dmarc.reject", "550", "5.7.1", text)
        return Verdict(Outcome.ACTION, "dmarc.quarantine", text=f"HOLD DMARC policy of {domain}")
