# SPDX-License-Identifier: GPL-3.0-or-later
"""Clients with a TLS certificate: Postfix's check_ccert_access, permit_tls_clientcerts, permit_tls_all_clientcerts.

If `smtpd_tls_ask_ccert` is on, Postfix reports the fingerprints of a certificate, trusted or not, but the names in it
only if it trusts the certificate: permit_tls_all_clientcerts relies on that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gatekeeper.checks.tables.action import Subject, apply
from gatekeeper.checks.tables.table import Table
from gatekeeper.core.request import Request
from gatekeeper.core.verdict import PASS, Verdict, permit
from gatekeeper.pipeline.context import Context
from gatekeeper.postfix.restriction_list import split_words, strip_braces

SEARCH_KEYS = {"cert_fingerprint": "ccert_fingerprint", "pubkey_fingerprint": "ccert_pubkey_fingerprint"}
"""Keyword of `search_order` -> the Request attribute that is looked up; in the default order."""


def parse_search(argument: str) -> tuple[str, tuple[str, ...]]:
    """Return table and attributes of `TYPE:FILE` or `{ TYPE:FILE, { search_order = KEY, KEY } }`. Raises ValueError."""
    inner = strip_braces(argument)
    if inner is None:
        return argument, tuple(SEARCH_KEYS.values())
    table, *options = [word for _, word in split_words(inner)] or [""]
    keys = list(SEARCH_KEYS.values())
    if options:
        text = " ".join(options)
        name, equals, value = (strip_braces(text) or text).partition("=")
        keys = [SEARCH_KEYS.get(word, "") for _, word in split_words(value)]
        if not equals or name.strip() != "search_order" or not keys or "" in keys:
            raise ValueError(f"{text!r} is not a search order; allowed: {{ search_order = {', '.join(SEARCH_KEYS)} }}")
    return table, tuple(keys)


@dataclass(frozen=True, slots=True)
class CertificateAccess:
    """One table, searched for the fingerprints in `attributes` until an entry decides."""

    table: Table
    attributes: tuple[str, ...]

    @property
    def asks_spf(self) -> bool:
        """Whether an entry may ask for SPF of the sender."""
        return self.table.asks_spf

    async def __call__(self, request: Request, context: Context) -> Verdict:
        for attribute in self.attributes:
            fingerprint: str = getattr(request, attribute)
            action = self.table.search([fingerprint.lower()]) if fingerprint else None
            if action is None:
                continue
            subject = Subject(request.ccert_subject, "Client certificate")
            verdict = await apply(action, subject, request, context)
            context.note(f"certificate {fingerprint}", verdict.text or verdict.reason or verdict.outcome)
            if verdict.outcome is not PASS.outcome or verdict.earlier:
                return verdict
        return PASS


@dataclass(frozen=True, slots=True)
class PermitCertificates:
    """Permit a client whose fingerprint is a key in `policy.relay_clientcerts`, whatever the right-hand side.

    With `trusted`, also permit one whose certificate Postfix trusts.
    """

    tables: Sequence[Table]
    trusted: bool

    async def __call__(self, request: Request, _context: Context) -> Verdict:
        if self.trusted and (request.ccert_subject or request.ccert_issuer):
            return permit("certificate.trusted")
        for attribute in SEARCH_KEYS.values():
            fingerprint: str = getattr(request, attribute).lower()
            if fingerprint and any(table.search([fingerprint]) is not None for table in self.tables):
                return permit("certificate.listed")
        return PASS
