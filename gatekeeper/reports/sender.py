# SPDX-License-Identifier: GPL-3.0-or-later
"""Who sent the mail that a report came in, as our own Authentication-Results field in it says.

The mailbox for reports is public, and who writes a report may call himself what he likes. But receivers send reports
from a domain for which DMARC passes (RFC 7489 section 7.2.1.1 and RFC 9990 demand it), and our milter has judged the
mail as it came and removed what others wrote in our name (RFC 8601 section 5). So a field in our name is believed; of
two that say different things, neither.
"""

import re

from gatekeeper.auth.domains import normal_domain
from gatekeeper.auth.forged_results import claims_to_be_ours
from gatekeeper.auth.received_results import parse_received_results
from gatekeeper.core.message import Header

_RESULTS = re.compile(rb"^authentication-results[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)", re.IGNORECASE | re.MULTILINE)
_FROM = re.compile(rb"\sheader\.from=([A-Za-z0-9._-]{1,255})(?=[\s;]|\Z)")


def proven_sender(header: bytes, authserv_id: str) -> str | None:
    """Return the domain of From if DMARC passed for it, empty if not; None if no field in our name speaks of DMARC."""
    domains: set[str] = set()
    for field in _RESULTS.findall(header):
        if not authserv_id or not claims_to_be_ours(Header(b"Authentication-Results", field), authserv_id):
            continue
        found = parse_received_results(b"ours;" + field.partition(b";")[2])  # our name may be quoted
        if "dmarc" not in found.results:
            continue
        names = {normal_domain(name.decode("ascii")) for name in _FROM.findall(field)}
        domains |= names if found.passed("dmarc") and names else {""}
    return None if not domains else domains.pop() if len(domains) == 1 else ""
