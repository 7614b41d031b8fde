# SPDX-License-Identifier: GPL-3.0-or-later
"""`permit_always_reachable`, an addition to Postfix's restrictions: our postmaster and abuse mailboxes.

A stranger whose mail is refused must be able to write to them (RFC 5321 section 4.5.1, RFC 2142). The restriction
stands near the head of the default list, so that nothing there refuses such mail; our own checks spare it wherever
they stand.
"""

from gatekeeper.core.request import Request, domain_of
from gatekeeper.core.verdict import PASS, Verdict, permit
from gatekeeper.pipeline.context import Context
from gatekeeper.pipeline.site import Site

_MAILBOXES = ("postmaster", "abuse")


async def permit_always_reachable(request: Request, context: Context) -> Verdict:
    """Permit mail to our postmaster and abuse mailboxes, whoever sends it."""
    return permit("always_reachable") if always_reachable(request.recipient, context.site) else PASS


def always_reachable(recipient: str | None, site: Site) -> bool:
    """Return whether `recipient` is one of our postmaster and abuse mailboxes.

    If neither local nor relay domains are configured, every domain counts as ours here: the answer can only prevent
    a refusal.
    """
    if recipient is None:
        return False
    local, _, domain = recipient.rpartition("@")
    if (local or domain).lower() not in _MAILBOXES:
        return False
    return not local or site.is_ours(domain_of(recipient)) or not (site.local_domains or site.relay_domains)
