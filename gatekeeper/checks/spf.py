# SPDX-License-Identifier: GPL-3.0-or-later
"""`spf`: refuse what SPF says may not come from this client (RFC 7208). Off by default.

False positives: mail forwarded without rewriting the sender, and domains whose owner forgot a way that mail leaves.
"""

from typing import ClassVar, Literal

from pydantic import Field

from gatekeeper.auth.spf import SpfResult
from gatekeeper.checks.opinion import Opinion
from gatekeeper.pipeline import Context
from gatekeeper.request import Request
from gatekeeper.verdict import PASS, Mode, Outcome, Verdict, defer_if_permit, printable, reject


class Spf(Opinion):
    """550 5.7.23 (RFC 7372) for `fail` of the sender's domain; for the null sender, of the HELO name's."""

    name: ClassVar[str] = "spf"
    needs: ClassVar[tuple[str, ...]] = ("sender",)

    mode: Mode = Field(
        default=Mode.OFF, description="enforce: fail is refused; observe: it is only written down; off: not asked for"
    )
    temperror: Literal["pass", "defer"] = Field(
        default="pass", description="what becomes of mail when DNS trouble keeps SPF from being known"
    )

    async def judge(self, request: Request, context: Context) -> Verdict:
        """Refused, or what SPF found."""
        if request.client.address is None or request.sasl_user or context.site.is_internal(request.client.address):
            return PASS
        spf = await context.facts.spf()
        domain = printable(spf.domain, 255)
        context.note(f"SPF of {domain or 'nobody'}", f"{spf.result} {spf.reason}".strip())
        if spf.result is SpfResult.FAIL:
            why = f": {printable(spf.explanation, 160)}" if spf.explanation else ""
            text = f"SPF of {domain} does not allow {request.client.address} to send its mail{why}"
            return reject("spf.fail", "550", "5.7.23", text)
        if spf.result is SpfResult.TEMPERROR and self.temperror == "defer":
            return defer_if_permit("spf.temperror", "4.4.3", f"SPF of {domain} could not be looked up", code="451")
        return Verdict(Outcome.PASS, f"spf.{spf.result}")
