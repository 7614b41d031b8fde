# SPDX-License-Identifier: GPL-3.0-or-later
"""A story from the log as a policy daemon would be asked about it again: one session for each recipient."""

from gatekeeper.core.request import parse_address
from gatekeeper.diagnose.explain import AskedSession
from gatekeeper.maillog.envelope import envelope_recipients, envelope_sender
from gatekeeper.maillog.events import Kind
from gatekeeper.maillog.stories import Story


def sessions(story: Story) -> list[AskedSession]:
    """Return what a policy daemon would be asked about this mail, for each recipient, as far as the log tells."""
    client = story.first("client", Kind.ACCEPTED, Kind.REFUSED, Kind.DECIDED) or ""
    name = story.first("name", Kind.ACCEPTED, Kind.REFUSED, Kind.DECIDED) or ""
    return [
        AskedSession(
            address=parse_address(client),
            name="" if name == "unknown" else name,
            helo=story.first("helo", Kind.REFUSED, Kind.DECIDED, Kind.SPF),
            sender=envelope_sender(story),
            recipient=recipient,
            sasl_user=story.first("sasl_user") or "",
            context=story.first("context", Kind.DECIDED) or "",
        )
        for recipient in envelope_recipients(story)
    ]
