# SPDX-License-Identifier: GPL-3.0-or-later
"""What became of the mail of a story: taken, delivered to whom, refused by whom, or still on its way."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from gatekeeper.maillog.events import Event, Kind
from gatekeeper.maillog.stories import Story


class Fate(StrEnum):
    """What became of a mail as a whole, as far as the log tells."""

    DELIVERED = "delivered"
    PARTLY = "partly delivered"
    """Some recipients have it; the others bounced, or wait."""
    WAITING = "in the queue"
    BOUNCED = "bounced"
    REFUSED = "refused"
    """With 5xx: its sender was told that it will not do."""
    DEFERRED = "refused for now"
    """With 4xx: its sender was asked to come back."""
    GONE = "given up by the client"
    """A queue file was opened, and the client went away without sending a message."""
    TAKEN = "taken"
    """Received; the log tells no more."""
    UNKNOWN = "unknown"
    """Nothing but words about it: a policy daemon's, or a connection."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """The last attempt for one recipient. `status` is Postfix's: sent, deferred, bounced, expired ..."""

    recipient: str
    status: str
    relay: str
    text: str
    at: float


def deliveries(story: Story) -> Mapping[str, Delivery]:
    """Return the last attempt for each recipient, without those that only handed the mail to a filter and back."""
    found: dict[str, Delivery] = {}
    for event in story.events:
        if event.kind is Kind.DELIVERED and event.fields.get("next_id") not in story.queue_ids:
            fields = event.fields
            recipient = fields["recipient"]
            found[recipient] = Delivery(recipient, fields["status"], fields["relay"], fields.get("text", ""), event.at)
    return found


def refusals(story: Story) -> list[Event]:
    """Return what Postfix refused in a story, in order, without what it only warned of."""
    return [event for event in story.events if event.kind is Kind.REFUSED and "warned" not in event.fields]


def is_temporary(refusal: Event) -> bool:
    """Tell whether a refusal asked to come back (4xx)."""
    return refusal.fields.get("reply", "").startswith("4")


def fate(story: Story) -> Fate:
    """Return what became of the mail."""
    refused = refusals(story)
    if any(event.fields["stage"] in ("END-OF-MESSAGE", "DATA", "header", "body") for event in refused):
        return _refused(refused)
    if attempts := deliveries(story):
        sent = [one.status == "sent" for one in attempts.values()]
        if all(sent):
            return Fate.DELIVERED
        if any(sent):
            return Fate.PARTLY
        waits = any(one.status == "deferred" for one in attempts.values()) and story.in_queue
        return Fate.WAITING if waits else Fate.BOUNCED
    if not story.queue_ids:
        return _refused(refused) if refused else Fate.UNKNOWN
    if not any(event.kind is Kind.ACCEPTED for event in story.events) or story.message_id:
        return Fate.TAKEN
    return Fate.GONE


def _refused(refused: list[Event]) -> Fate:
    return Fate.DEFERRED if all(map(is_temporary, refused)) else Fate.REFUSED
