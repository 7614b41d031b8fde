# SPDX-License-Identifier: GPL-3.0-or-later
"""`spf`: refuses mail that SPF says may not come from this client (RFC 7208). Off by default.

False positives: mail forwarded without rewriting the sender, and domains whose owner forgot one of the paths that its
mail takes. Softfail and neutral never refuse: domains that publish them ask for that (RFC 7208 section 8.2, 8.5).
Clients that are authenticated, in mynetworks, or permitted further up in the list are not judged; our postmaster and
abuse mailboxes accept mail from everybody. Of the results for the HELO name only `fail` refuses.
"""

from typing import ClassVar, Literal

from pydantic import Field, StrictBool

from gatekeeper.auth.spf import SpfFinding as Finding
from gatekeeper.auth.spf import SpfResult
from gatekeeper.checks.base.always_reachable import always_reachable
from gatekeeper.checks.base.check_types import ConfiguredCheck
from gatekeeper.core.request import Request
from gatekeeper.core.verdict import PASS, Mode, Outcome, Verdict, defer_if_permit, printable, reject
from gatekeeper.pipeline.context import Context


class SpfCheck(ConfiguredCheck):
    """550 5.7.23 if SPF gives `fail` for the HELO name or the sender's domain; the codes are RFC 7372's."""

    name: ClassVar[str] = "spf"
    needs: ClassVar[tuple[str, ...]] = ("sender",)
    asks_spf: ClassVar[bool] = True

    mode: Mode = Field(
        default=Mode.OFF, description="enforce: fail is refused; observe: it is only logged; off: SPF is not checked"
    )
    helo: StrictBool = Field(default=True, description="whether the HELO name is judged too (RFC 7208 section 2.3)")
    temperror: Literal["pass", "defer"] = Field(
        default="pass", description="what to do with mail when DNS trouble prevents an SPF result"
    )
    permerror: Literal["pass", "reject"] = Field(
        default="pass", description="what to do with mail from a domain whose record cannot be evaluated"
    )

    async def judge(self, request: Request, context: Context) -> Verdict:
        """Refuse the mail, or pass it with the SPF result for the sender."""
        if request.client.address is None or request.sasl_user or context.site.is_internal(request.client):
            return PASS
        facts = context.facts
        if self.helo and request.sender:  # for the null sender, facts.spf() itself checks HELO
            facts.start_spf()
            helo = await facts.helo_spf()
            verdict = self._verdict(helo, "spf.helo_", request, context)
            if helo.result is SpfResult.FAIL and verdict.refuses:
                return verdict
        return self._verdict(await facts.spf(), "spf.", request, context)

    def _verdict(self, spf: Finding, reason: str, request: Request, context: Context) -> Verdict:
        domain = printable(spf.domain, 255)
        context.note(f"SPF of {domain or 'nobody'} ({spf.identity})", f"{spf.result} {spf.reason}".strip())
        code, passes = f"{reason}{spf.result}", Verdict(Outcome.PASS, f"{reason}{spf.result}")
        permanent = spf.result is SpfResult.FAIL or (spf.result is SpfResult.PERMERROR and self.permerror == "reject")
        if permanent and always_reachable(request.recipient, context.site):
            context.note("recipient", "is always reachable")
            return passes
        match spf.result:
            case SpfResult.FAIL:
                what = "greet with this name" if spf.identity == "helo" else "send its mail"
                text = f"SPF of {domain} does not allow {request.client.address} to {what}"
                # RFC 7208 section 6.2: the explanation is the domain's, and the reply has to say so
                why = f"; {domain} explains: {printable(spf.explanation, 160)}" if spf.explanation else ""
                return reject(code, "550", "5.7.23", printable(f"{text}{why}"))
            case SpfResult.PERMERROR if permanent:
                return reject(code, "550", "5.7.24", f"SPF of {domain} cannot be evaluated: its record is wrong")
            case SpfResult.TEMPERROR if self.temperror == "defer":
                return defer_if_permit(code, "4.7.24", f"SPF of {domain} could not be looked up")
        return passes
