# SPDX-License-Identifier: GPL-3.0-or-later
"""Envelope addresses: Postfix's reject_non_fqdn_{sender,recipient} and reject_unknown_{sender,recipient}_domain.

The null sender passes all of them, and so does an address literal (`user@[192.0.2.1]`).
"""

from dataclasses import dataclass

from gatekeeper.checks.base.dns_lookups import Lookups, a_label, is_null_mx, server_names
from gatekeeper.core.request import Request, domain_of
from gatekeeper.core.verdict import PASS, Verdict, defer_if_permit, printable, reject
from gatekeeper.pipeline.context import Context
from gatekeeper.pipeline.site import Site
from gatekeeper.postfix.hostname_syntax import is_hostname, without_final_dot


@dataclass(frozen=True, slots=True)
class Side:
    """One end of the envelope and Postfix's reply codes for it; `attribute` is the Request's."""

    attribute: str
    label: str
    unknown: str
    """The enhanced status code for a domain that does not exist, without its first digit."""
    null_mx: tuple[str, str]
    """Reply code and enhanced code for a domain that takes no mail (RFC 7505): fixed, whatever the parameters say."""

    def text(self, mailbox: str, why: str) -> str:
        """Return Postfix's reply text."""
        return f"<{printable(mailbox, 320)}>: {self.label} rejected: {why}"


SENDER = Side("sender", "Sender address", ".1.8", ("550", "5.7.27"))
RECIPIENT = Side("recipient", "Recipient address", ".1.2", ("556", "5.1.10"))


@dataclass(frozen=True, slots=True)
class NonFqdn:
    """504 5.5.2 for a mailbox whose domain is missing, has no dot, or is not a host name."""

    side: Side

    async def __call__(self, request: Request, _context: Context) -> Verdict:
        mailbox: str = getattr(request, self.side.attribute) or ""
        domain = mailbox.rpartition("@")[2] if "@" in mailbox else ""
        if not mailbox or _is_literal(domain):
            return PASS
        # U-labels (RFC 6531) are names; Postfix takes them only with SMTPUTF8, which it does not report to a policy
        # service.
        name = a_label(without_final_dot(domain))
        if is_hostname(name) and "." in name:
            return PASS
        text = self.side.text(mailbox, "need fully-qualified address")
        return reject(f"{self.side.attribute}.non_fqdn", "504", "5.5.2", text)


@dataclass(frozen=True, slots=True)
class UnknownDomain:
    """`unknown_address_reject_code` for a domain with neither MX nor address, 550 or 556 for one with a null MX.

    DNS trouble defers and never rejects; if the MX query fails but the domain has an address, it passes.
    """

    side: Side

    async def __call__(self, request: Request, context: Context) -> Verdict:
        mailbox: str = getattr(request, self.side.attribute) or ""
        domain = domain_of(mailbox)
        if not domain or _is_literal(domain) or _is_final(context.site, domain):
            return PASS
        side, domain = self.side, a_label(domain)
        found: bool | None = False
        if is_hostname(domain):
            addresses = (domain, "A"), (domain, "AAAA")
            with Lookups(context, (domain, "MX"), *addresses) as lookups:
                mx = await lookups.answer(domain, "MX")
                if mx is not None and is_null_mx(mx):
                    text = side.text(mailbox, f"Domain {domain} does not accept mail (nullMX)")
                    return reject(f"{side.attribute}.null_mx", *side.null_mx, text)
                if mx is not None and mx.records:
                    found = bool(server_names(mx))  # if all names are malformed, Postfix looks no further
                else:
                    found = await lookups.any_exist(*addresses)
                    if mx is None and not found:
                        found = None
        if found:
            return PASS
        text = side.text(mailbox, "Domain not found")
        if found is None:
            return defer_if_permit(f"{side.attribute}.unknown_domain_temporary", f"4{side.unknown}", text)
        code = context.site.unknown_address_reject_code
        return reject(f"{side.attribute}.unknown_domain", code, f"{code[0]}{side.unknown}", text)


def _is_literal(domain: str) -> bool:
    return domain.startswith("[") and domain.endswith("]")


def _is_final(site: Site, domain: str) -> bool:
    """Return whether mail for `domain` is delivered here. Relay domains do not count: Postfix looks those up too."""
    return any(domain == ours or (ours.startswith(".") and domain.endswith(ours)) for ours in site.local_domains)
