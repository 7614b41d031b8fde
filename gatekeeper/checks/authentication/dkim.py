# SPDX-License-Identifier: GPL-3.0-or-later
"""`dkim`: actions by DKIM result, as OpenDKIM's On-BadSignature and its relatives; off by default.

One valid signature is enough. Forwarders and lists break signatures, and most spam is signed properly, so refusing by
DKIM alone loses mail: DMARC is what domains publish for that. The signature of a key in test mode (t=y) never causes
an action. Also OpenDKIM's limits on the header, MaximumHeaders and RequiredHeaders, which hold for our own mail too.
"""

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from typing import ClassVar

from pydantic import Field, StrictBool, StrictInt

from gatekeeper.auth.dkim import DkimFinding as Finding
from gatekeeper.auth.dkim import DkimResult
from gatekeeper.checks.base.check_types import ConfiguredCheck
from gatekeeper.core.message import Header
from gatekeeper.core.request import Request, Stage
from gatekeeper.core.verdict import PASS, Mode, Outcome, Verdict, printable, reject
from gatekeeper.pipeline.context import Context


class SignatureAction(StrEnum):
    """The actions that OpenDKIM knows."""

    ACCEPT = "accept"
    DISCARD = "discard"
    QUARANTINE = "quarantine"
    REJECT = "reject"
    TEMPFAIL = "tempfail"


_REPLIES = {
    "no_signature": ("20", "this message has no DKIM signature"),
    "bad_signature": ("20", "no DKIM signature of this message is valid"),
    "no_key": ("20", "the key of this message's DKIM signature does not exist"),
    "dns_error": ("5", "the key of this message's DKIM signature cannot be looked up now"),
    "internal_error": ("0", "the DKIM signature of this message could not be processed"),
    "long_header": ("0", "the header of this message is too long"),
}
"""Reason -> detail of the enhanced status code (RFC 7372, RFC 3463) and reply text."""

_EXACTLY_ONE = ("From", "Date")
_AT_MOST_ONE = ("Reply-To", "To", "Cc", "Bcc", "Message-ID", "In-Reply-To", "References", "Subject")


class DkimCheck(ConfiguredCheck):
    """550 or 451, quarantine (HOLD) or discard, as each option says; a message with a valid signature passes."""

    name: ClassVar[str] = "dkim"

    mode: Mode = Field(default=Mode.OFF, description=ConfiguredCheck.model_fields["mode"].description)
    no_signature: SignatureAction = Field(default=SignatureAction.ACCEPT, description="mail without a signature")
    bad_signature: SignatureAction = Field(
        default=SignatureAction.ACCEPT,
        description="mail without a valid signature: it was changed on the way, or the key is another one or "
        "revoked; a signature that has expired or is incomplete is accepted",
    )
    key_not_found: SignatureAction = Field(
        default=SignatureAction.ACCEPT, description="mail whose signature names a key that does not exist"
    )
    dns_error: SignatureAction = Field(
        default=SignatureAction.ACCEPT, description="mail whose key cannot be looked up at the moment"
    )
    internal_error: SignatureAction = Field(
        default=SignatureAction.ACCEPT, description="mail whose signature we fail to process"
    )
    max_header: StrictInt = Field(default=0, ge=0, description="bytes that a header may have; 0: no limit")
    long_header: SignatureAction = Field(default=SignatureAction.TEMPFAIL, description="mail whose header is longer")
    required_headers: StrictBool = Field(
        default=False, description="whether mail that lacks the fields required by RFC 5322 section 3.6 is refused"
    )

    async def judge(self, request: Request, context: Context) -> Verdict:
        """Return the action for the result of the signatures."""
        if request.stage is not Stage.END_OF_MESSAGE:
            return PASS
        findings = await context.facts.dkim()
        for finding in findings:
            context.note(f"DKIM of {printable(finding.domain, 255) or 'nobody'}", f"{finding.result} {finding.reason}")
        if any(finding.result is DkimResult.PASS for finding in findings):
            return Verdict(Outcome.PASS, "dkim.pass")
        reason, action = self._action(findings[0])
        if findings[0].testing:
            return Verdict(Outcome.PASS, "dkim.testing")
        return _verdict(reason, action)

    def of_header(self, headers: Sequence[Header]) -> Verdict:
        """Return the verdict on a header, before its message is signed or judged."""
        # as OpenDKIM counts: names, values with their leading space, and two for each field
        if self.max_header and sum(len(name) + len(value) + 2 for name, value in headers) > self.max_header:
            return _verdict("long_header", self.long_header)
        if self.required_headers and (fault := _fault(headers)):
            return reject("dkim.malformed", "550", "5.6.0", f"RFC 5322: {fault}")
        return PASS

    def _action(self, finding: Finding) -> tuple[str, SignatureAction]:
        """Return the reason and the action for the topmost signature, which decides, as in OpenDKIM."""
        match finding.result:
            case DkimResult.NONE:
                return "no_signature", self.no_signature
            case DkimResult.TEMPERROR:
                return "dns_error", self.dns_error
            case DkimResult.NEUTRAL:
                return "internal_error", self.internal_error
        if finding.no_key:
            return "no_key", self.key_not_found
        # OpenDKIM accepts what has expired or is incomplete, and keys that are too short, whatever On-BadSignature says
        if finding.domain and (not finding.tried or finding.result is DkimResult.POLICY):
            return "invalid", SignatureAction.ACCEPT
        return "bad_signature", self.bad_signature


def _fault(headers: Sequence[Header]) -> str:
    """Return how these fields violate RFC 5322 section 3.6; empty if they do not."""
    count = Counter(field.name.lower() for field in headers)
    for name in _EXACTLY_ONE:
        if (found := count[name.lower().encode()]) != 1:
            return f"this message has {found or 'no'} {name} field{'s' if found else ''}, not one"
    for name in _AT_MOST_ONE:
        if (found := count[name.lower().encode()]) > 1:
            return f"this message has {found} {name} fields, not one"
    return ""


def _verdict(reason: str, action: SignatureAction) -> Verdict:
    code = f"dkim.{reason}"
    detail, text = _REPLIES.get(reason, ("0", ""))
    match action:
        case SignatureAction.REJECT:
            return reject(code, "550", f"5.7.{detail}", f"DKIM: {text}")
        case SignatureAction.TEMPFAIL:
            return reject(code, "451", f"4.7.{detail}", f"DKIM: {text}")
        case SignatureAction.QUARANTINE:
            return Verdict(Outcome.ACTION, code, text=f"HOLD DKIM: {text}")
        case SignatureAction.DISCARD:
            return Verdict(Outcome.ACTION, code, text=f"DISCARD DKIM: {text}")
    return Verdict(Outcome.PASS, code)
