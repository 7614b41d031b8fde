# SPDX-License-Identifier: GPL-3.0-or-later
"""What a session left behind where it was played for real: reasons in gatekeeper's log, header fields in what arrived.

The log is read as a person would: by trace id for the connection, then by sender and recipient, in order. Whoever
reads it stops gatekeeper first or waits, since a decision is written down after it is answered.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from gatekeeper.core.log import read_decision, trace_id
from gatekeeper.core.message import Header, crlf, parse
from gatekeeper.replay.compare import ConnectionOutcome, MessageOutcome
from gatekeeper.replay.fixture import Case, RecordedMessage
from gatekeeper.replay.smtp import ConnectionReplies, MessageReplies

Line = Mapping[str, str]
"""One decision in the log, by name."""


def outcomes(
    case: Case, heard: Sequence[ConnectionReplies], log: str, delivered: Callable[[str], bytes | None]
) -> tuple[ConnectionOutcome, ...]:
    """What came of a case that was played. `delivered` gives the message that arrived under a queue id, if one did."""
    return tuple(
        ConnectionOutcome(
            replies=(said.reply,),
            messages=tuple(
                _outcome(case.content(message), answered, lines, delivered)
                for message, answered, lines in zip(
                    made.messages, said.messages, lines_of(log, said, made.messages), strict=False
                )
            ),
        )
        for made, said in zip(case.connections, heard, strict=True)
    )


def is_complete(case: Case, heard: Sequence[ConnectionReplies], log: str) -> bool:
    """True if the log says something of each message: a decision is written down just after it is answered."""
    return all(all(lines_of(log, said, made.messages)) for made, said in zip(case.connections, heard, strict=True))


def decisions(log: str) -> Iterator[Line]:
    """The decision lines of a log, in order."""
    for line in log.splitlines():
        if (found := read_decision(line)) is not None:
            yield found


def lines_of(log: str, connection: ConnectionReplies, messages: Sequence[RecordedMessage]) -> list[list[Line]]:
    """For each message of a connection that was played, the decisions about it: one for each recipient, the milter's.

    `messages` are those of the case. A decision is taken once, so of two equal messages each has its own.
    """
    trace = trace_id(connection.client)
    left = [line for line in decisions(log) if line.get("trace") == trace]
    return [_take(left, message, heard) for message, heard in zip(messages, connection.messages, strict=False)]


def _outcome(
    content: bytes | None, heard: MessageReplies, lines: Sequence[Line], delivered: Callable[[str], bytes | None]
) -> MessageOutcome:
    reasons = dict.fromkeys(code for line in lines for code in line.get("reasons", "").split(",") if code)
    arrived = delivered(heard.queue_id) if heard.queue_id else None
    added, removed = header_changes(crlf(content or b""), arrived) if arrived is not None else ((), ())
    return MessageOutcome(
        replies=heard.replies, reasons=tuple(reasons), headers_added=tuple(added), headers_removed=tuple(removed)
    )


def _take(left: list[Line], message: RecordedMessage, heard: MessageReplies) -> list[Line]:
    wanted = [("policy", f"<{recipient}>") for recipient in message.recipients]
    if len(heard.replies) > len(message.recipients):
        wanted.append(("milter", ""))
    taken = []
    for side, recipient in wanted:
        for line in left:
            told = recipient if side == "policy" else line.get("recipient", "")
            if (line["side"], line.get("sender"), line.get("recipient", "")) == (side, f"<{message.sender}>", told):
                left.remove(line)
                taken.append(line)
                break
    return taken


def header_changes(sent: bytes, arrived: bytes) -> tuple[list[Header], list[Header]]:
    """The header fields that are in what arrived and were not sent, and the other way round.

    Both with CRLF. The Received field that Postfix puts in itself does not count.
    """
    before, after = parse(sent)[0], parse(arrived)[0]
    own = next((field for field in after if field.name == b"Received"), None)
    if own is not None:
        after.remove(own)
    return _without(after, before), _without(before, after)


def _without(fields: Sequence[Header], others: Sequence[Header]) -> list[Header]:
    """`fields` less `others`, each taken away once, in order."""
    others_left = Counter(others)
    rest = []
    for field in fields:
        if others_left[field]:
            others_left[field] -= 1
        else:
            rest.append(field)
    return rest
