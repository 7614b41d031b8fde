# SPDX-License-Identifier: GPL-3.0-or-later
"""From whom and for whom the mail of a story was, as its client named them."""

from gatekeeper.maillog.events import Kind
from gatekeeper.maillog.stories import Story


def envelope_recipients(story: Story) -> list[str]:
    """Return whom the mail was for, as the client named them."""
    found: dict[str, None] = {}
    for event in story.events:
        if event.kind in (Kind.REFUSED, Kind.DECIDED, Kind.DELIVERED):
            recipient = event.fields.get("original_recipient") or event.fields.get("recipient")
            if recipient:
                found[recipient] = None
    return list(found)


def envelope_sender(story: Story) -> str | None:
    """Return the envelope sender, "" for the null sender; None if the log does not tell it."""
    told = story.first("sender", Kind.QUEUED, Kind.REFUSED, Kind.DECIDED, Kind.SUBMITTED)
    return story.first("sender") if told is None else told
