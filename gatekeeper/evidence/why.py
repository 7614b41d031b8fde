# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatekeeper why`: the story of one mail from the log, every program's part in order, and what became of it.

What people know of a mail is a queue id, a Message-ID, an address, a client, or the reference in a refusal that its
sender reads to them; one word finds it, whichever it is. All that a log holds came from strangers and is made printable
before it is shown.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gatekeeper.core.request import parse_address
from gatekeeper.core.verdict import printable
from gatekeeper.maillog.envelope import envelope_recipients, envelope_sender
from gatekeeper.maillog.events import Event, Kind
from gatekeeper.maillog.fates import deliveries, fate, refusals
from gatekeeper.maillog.stories import Story

_ADDRESSES = ("sender", "recipient", "original_recipient", "sasl_user")
_MAX_TEXT = 400


def finder(what: str) -> Callable[[Story], bool]:
    """Return a test whether a story is about `what`: an id, an address, a domain, a client or a reference."""
    what = what.strip()
    bare = what.removeprefix("<").removesuffix(">").lower()
    address = parse_address(what.removeprefix("[").removesuffix("]"))
    client = str(address) if address else ""
    reference = what.upper()

    def is_about(story: Story) -> bool:
        if what in story.queue_ids or (bare and story.message_id[1:-1].lower() == bare):
            return True
        return any(_is_about(event, bare, client, reference) for event in story.events)

    return is_about


def _is_about(event: Event, bare: str, client: str, reference: str) -> bool:
    fields = event.fields
    if client:
        return fields.get("client") == client
    if fields.get("ref") == reference:
        return True
    for name in _ADDRESSES:
        value = fields.get(name)
        if value is not None and (value := value.lower()) and (value == bare or value.endswith(f"@{bare}")):
            return True
    return bool(bare) and bare in (fields.get("name", "").lower(), fields.get("helo", "").lower())


def sentences(story: Story) -> Iterator[str]:
    """Yield the story for people, line by line."""
    yield _headline(story)
    yield from (f"  {line}" for line in _outcome(story))
    yield ""
    day = ""
    for event in story.events:
        date = time.strftime("%Y-%m-%d", time.localtime(event.at))
        if date != day:
            day = date
            yield f"  {day}"
        clock = time.strftime("%H:%M:%S", time.localtime(event.at))
        program = printable(event.program.removeprefix("postfix/"), 40)
        yield f"  {clock}  {program:20} {describe(event)}"
    if story.left_out:
        yield f"  … and {story.left_out} lines more"


def as_json(story: Story) -> dict[str, Any]:
    """Return the story for programs."""
    return {
        "queue_ids": story.queue_ids,
        "message_id": story.message_id,
        "sender": envelope_sender(story),
        "client": story.first("client", Kind.ACCEPTED) or story.first("client"),
        "sasl_user": story.first("sasl_user"),
        "fate": str(fate(story)),
        "deliveries": [
            {"recipient": one.recipient, "status": one.status, "relay": one.relay, "text": one.text, "at": one.at}
            for one in deliveries(story).values()
        ],
        "events": [
            {
                "at": event.at,
                "host": event.host,
                "program": event.program,
                "queue_id": event.queue_id,
                "kind": str(event.kind),
                **({"fields": dict(event.fields)} if event.fields else {}),
            }
            for event in story.events
        ],
        "left_out": story.left_out,
    }


def _headline(story: Story) -> str:
    sender = envelope_sender(story)
    who = "" if sender is None else f" from <{printable(sender, 320)}>"
    recipients = envelope_recipients(story)
    to = f" to <{printable(recipients[0], 320)}>" if recipients else ""
    more = f" and {len(recipients) - 1} more" if len(recipients) > 1 else ""
    if story.queue_ids:
        identity = f", {printable(story.message_id)}" if story.message_id else ""
        return f"Mail {', '.join(story.queue_ids)}{identity}{who}{to}{more}"
    return f"A session of {_peer(story.events[0].fields)}{who}{to}{more}"


def _outcome(story: Story) -> Iterator[str]:
    yield f"{str(fate(story)).capitalize()}."
    for one in deliveries(story).values():
        relay = "" if one.relay == "none" else f" by {printable(one.relay, 100)}"
        yield f"<{printable(one.recipient, 320)}>: {printable(one.status, 20)}{relay}: {printable(one.text, _MAX_TEXT)}"
    for event in refusals(story):
        yield f"{describe(event)}"


def describe(event: Event) -> str:
    """Say in a sentence what one event tells; printable."""
    return printable(_WORDS[event.kind](event), _MAX_TEXT)


def _peer(fields: Mapping[str, str]) -> str:
    return f"{printable(fields.get('name') or 'unknown', 255)}[{printable(fields.get('client', 'unknown'), 64)}]"


def _accepted(event: Event) -> str:
    fields = event.fields
    user = f", authenticated as {fields['sasl_user']}" if "sasl_user" in fields else ""
    filtered = f", back from a filter as which it was {fields['original_id']}" if "original_id" in fields else ""
    return f"opens {event.queue_id} for {_peer(fields)}{user}{filtered}"


def _refused(event: Event) -> str:
    fields = event.fields
    told = "would refuse" if "warned" in fields else "refuses"
    who = " because a milter says so" if "milter" in fields else ""
    recipient = f" <{fields['recipient']}>" if "recipient" in fields else ""
    return f"{told} {fields['stage']}{recipient}{who}: {fields.get('reply', '')} {fields.get('text', '')}".rstrip()


def _acted(event: Event) -> str:
    fields = event.fields
    content = f" because of {fields['content']!r}" if "content" in fields else ""
    return f"{fields['action']} at {fields['stage']}{content}: {fields.get('text', '')}"


def _disconnected(event: Event) -> str:
    return f"client gone after {event.fields['lost']}" if "lost" in event.fields else "client left"


def _queued(event: Event) -> str:
    fields = event.fields
    return f"{event.queue_id} from <{fields['sender']}>, {fields['size']} bytes, {fields['recipients']} recipients"


def _delivered(event: Event) -> str:
    fields = event.fields
    return (
        f"{fields['status']} for <{fields['recipient']}> by {fields['relay']} after {fields['delay']} s: "
        f"{fields.get('text', '')}"
    )


def _decided(event: Event) -> str:
    fields = event.fields
    said = [f"{fields.get('side', '')} at {fields.get('stage', '?')}"]
    if "recipient" in fields:
        said.append(f"for <{fields['recipient']}>")
    said.append(f"answers {fields.get('action', 'DUNNO')}")
    if "judged" in fields:
        said.append(f"and would have answered {fields['judged']}")
    left = {name: value for name, value in fields.items() if name not in _TOLD}
    facts = " ".join(f"{name}={value}" for name, value in left.items())
    return f"{' '.join(said)} ({fields.get('reasons') or 'nothing objected'}) {facts}".rstrip()


_TOLD = frozenset(
    (
        "side",
        "stage",
        "action",
        "judged",
        "reasons",
        "client",
        "name",
        "helo",
        "sender",
        "recipient",
        "trace",
        "context",
    )
)


def _dkim(event: Event) -> str:
    fields = event.fields
    signature = f" of d={fields['domain']} s={fields['selector']}" if "domain" in fields else ""
    text = f": {fields['text']}" if "text" in fields else ""
    return f"DKIM {fields['result'] or 'looked at the signature'}{signature}{text}"


def _spf(event: Event) -> str:
    fields = event.fields
    of = fields.get("sender") or fields.get("helo", "")
    reply = f", refuses with {fields['reply']}" if "reply" in fields else ""
    return f"SPF {fields['result']} of {of} from {fields.get('client', 'the client')}{reply}"


def _greylisted(event: Event) -> str:
    fields = event.fields
    waited = f" after {fields['delay']} s" if "delay" in fields else ""
    return f"{fields['action']} <{fields.get('recipient', '')}>{waited}: {fields.get('reason', '')}"


def _scanned(event: Event) -> str:
    fields = event.fields
    return f"{fields['action']}, score {fields['score']}: {fields.get('symbols', '')}"


_WORDS: Mapping[Kind, Callable[[Event], str]] = {
    Kind.CONNECTED: lambda event: f"connection of {_peer(event.fields)}",
    Kind.DISCONNECTED: _disconnected,
    Kind.TLS: lambda event: f"encrypted with {event.fields['tls']}",
    Kind.ACCEPTED: _accepted,
    Kind.SUBMITTED: lambda event: f"opens {event.queue_id} for local user {event.fields['uid']}",
    Kind.REFUSED: _refused,
    Kind.ACTED: _acted,
    Kind.MESSAGE_ID: lambda event: f"Message-ID {event.fields['message_id']}",
    Kind.QUEUED: _queued,
    Kind.DELIVERED: _delivered,
    Kind.EXPIRED: lambda event: f"{event.queue_id} was too long in the queue, and goes back to its sender",
    Kind.NOTIFIED: lambda event: f"{event.fields['what']}: {event.fields['next_id']}",
    Kind.REMOVED: lambda event: f"{event.queue_id} is done",
    Kind.SCREENED: lambda event: event.fields["verdict"],
    Kind.TROUBLE: lambda event: event.fields["text"],
    Kind.DECIDED: _decided,
    Kind.SIGNED: lambda event: f"signed with d={event.fields['domain']} s={event.fields['selector']}",
    Kind.UNSIGNED: lambda event: f"not signed: {event.fields['why']}",
    Kind.DKIM: _dkim,
    Kind.SPF: _spf,
    Kind.DMARC: lambda event: f"DMARC {event.fields['result']} for {event.fields['domain']}",
    Kind.GREYLISTED: _greylisted,
    Kind.SCANNED: _scanned,
}
