# SPDX-License-Identifier: GPL-3.0-or-later
"""A model of what Postfix does around a policy service, for sessions played without it (smtpd_check.c, access(5)).

Which attributes it sends, and what it replies to its SMTP client: Postfix names what it rejects, and adapts the
enhanced status code to the restriction list that rejects. Our service is asked where postfix-snippets puts it, in
smtpd_recipient_restrictions, with `policy_context=submission` for authenticated clients.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from gatekeeper.core.request import Client, Stage


class Restrictions(StrEnum):
    """A restriction list, by its name in a reply (SMTPD_NAME_* in smtpd_check.h)."""

    RECIPIENT = "Recipient address"
    DATA = "Data command"
    END_OF_DATA = "End-of-data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """What Postfix knows about a message at any stage. `instance` is unique for each message."""

    client: Client
    helo: str | None
    sasl_user: str
    sender: str
    instance: str

    def attributes(self, stage: Stage, *, recipient: str, count: int, queue_id: str) -> dict[str, str]:
        """Return the attributes of a policy request, as Postfix 3.7 sends them; those about TLS are left out."""
        return {
            "request": "smtpd_access_policy",
            "protocol_state": stage.value,
            "protocol_name": "ESMTP",
            "client_address": str(self.client.address),
            "client_name": self.client.name,
            "client_port": str(self.client.port),
            "reverse_client_name": self.client.reverse_name,
            "server_address": "127.0.0.1",
            "server_port": "587" if self.sasl_user else "25",
            "helo_name": self.helo or "",
            "sender": self.sender,
            "recipient": recipient,
            "recipient_count": str(count),
            "queue_id": queue_id,
            "instance": self.instance,
            "size": "0",
            "etrn_domain": "",
            "stress": "",
            "sasl_method": "PLAIN" if self.sasl_user else "",
            "sasl_username": self.sasl_user,
            "sasl_sender": "",
            "policy_context": "submission" if self.sasl_user else "",
        }


def refusal(action: str, restrictions: Restrictions, name: str) -> str:
    """Return the reply for an access(5) action on `name` (`<recipient>`, `<DATA>`); empty if it refuses nothing."""
    word, _, rest = action.partition(" ")
    code, dsn = _REFUSALS.get(word.upper(), (word, word[:1] + ".7.1"))
    if not re.fullmatch(r"[45]\d\d", code) or (code == word and not rest.strip()):
        return ""
    match = re.match(r"\s*([245]\.\d{1,3}\.\d{1,3})(?:\s+|$)", rest)
    if match:
        dsn, rest = match[1], rest[match.end() :]
    dsn = code[0] + _adapted(dsn, restrictions)[1:]
    return f"{code} {dsn} <{name}>: {restrictions} rejected: {rest.strip() or 'Access denied'}"


_REFUSALS = {
    "REJECT": ("554", "5.7.1"),
    "DEFER": ("450", "4.7.1"),
    "DEFER_IF_PERMIT": ("450", "4.7.1"),
}
"""Reply code and enhanced code of the actions that refuse. DEFER_IF_REJECT does not: nothing rejects after us."""

_RECIPIENT_DETAIL = {**{same: same for same in "123456"}, "7": "3", "8": "2"}
"""smtpd_dsn_fix.c: the detail y of x.1.y for a recipient: a sender's (7, 8) becomes a recipient's; others are 0."""


def _adapted(dsn: str, restrictions: Restrictions) -> str:
    if not re.fullmatch(r"\d\.1\.\d+", dsn):
        return dsn
    if restrictions is not Restrictions.RECIPIENT:
        return "4.0.0"
    return f"4.1.{_RECIPIENT_DETAIL.get(dsn[4:], '0')}"
