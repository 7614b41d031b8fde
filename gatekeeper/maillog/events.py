# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lines of a log say happened, whichever program wrote them.

An event's `fields` have the names that `gatekeeper explain`'s options have: client, name, helo, sender, recipient,
sasl_user. A field that the line does not tell is absent. Addresses stand without angle brackets; the null sender is "".

Known limit: Postfix and others write strangers' text between marks that a stranger may write too (`; from=<`), so who
wants to can make one line tell another HELO or address. Only gatekeeper's own lines are unambiguous.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """What happened. Fields that an event of the kind has stand behind it."""

    CONNECTED = "connected"
    """client, name."""
    DISCONNECTED = "disconnected"
    """client, name; `lost` if the client went without QUIT, with the command before that."""
    TLS = "tls"
    """client, name, tls."""
    ACCEPTED = "accepted"
    """A queue file for a client's mail: client, name, sasl_user, sasl_method, original_id."""
    SUBMITTED = "submitted"
    """A queue file for mail of a local user: uid, sender."""
    REFUSED = "refused"
    """Postfix answered 4xx or 5xx: stage, client, name, reply, text, sender, recipient, helo, and `milter` if a milter
    wanted it, `warned` if it was only logged (warn_if_reject)."""
    ACTED = "acted"
    """Postfix did something else with it: action (hold, discard, filter, redirect ...), and as REFUSED."""
    MESSAGE_ID = "message-id"
    """message_id."""
    QUEUED = "queued"
    """sender, size, recipients (how many)."""
    DELIVERED = "delivered"
    """An attempt: recipient, original_recipient, relay, delay, dsn, status (sent, deferred, bounced, ...), text, and
    next_id, the queue id that the next server gave it."""
    EXPIRED = "expired"
    NOTIFIED = "notified"
    """The sender is told: what, next_id."""
    REMOVED = "removed"
    SCREENED = "screened"
    """postscreen: client, verdict (`PASS NEW`, `DNSBL rank 5`, ...)."""
    TROUBLE = "trouble"
    """A warning or error of a program, about no mail in particular: text."""
    DECIDED = "decided"
    """gatekeeper: the pairs of its line (core/log.py)."""
    SIGNED = "signed"
    """domain, selector."""
    UNSIGNED = "unsigned"
    """why."""
    DKIM = "dkim"
    """result, and domain, selector, text where told."""
    SPF = "spf"
    """result, identity (mailfrom, helo), and client, helo, sender, recipient, text where told."""
    DMARC = "dmarc"
    """domain, result."""
    GREYLISTED = "greylisted"
    """postgrey: action (greylist, pass), reason, client, name, sender, recipient, delay (seconds)."""
    SCANNED = "scanned"
    """rspamd: client, sasl_user, sender, recipient, message_id, action, score, symbols."""


class Event(NamedTuple):
    """Something that happened. `program` is the tag of the line, `queue_id` empty if the line has none."""

    at: float
    host: str
    program: str
    pid: str
    queue_id: str
    kind: Kind
    fields: Mapping[str, str]


Found = tuple[str, Kind, Mapping[str, str]]
"""What a line says: queue id, kind and fields."""
