# SPDX-License-Identifier: GPL-3.0-or-later
"""What came of a case, beside what was expected of it: differences as sentences, and new expectations from outcomes.

The rules of comparison are those of replay/fixture.py. Knows nothing of how a case was played.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gatekeeper.core.message import Header
from gatekeeper.core.verdict import printable
from gatekeeper.replay.fixture import Case, Expected, ExpectedConnection


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageOutcome:
    """What came of a message: a reply for each recipient and then, if it came to that, for the data.

    Of a connection: one reply, its greeting or what refused it.
    """

    replies: tuple[str, ...]
    reasons: tuple[str, ...] = ()
    headers_added: tuple[Header, ...] = ()
    headers_removed: tuple[Header, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOutcome(MessageOutcome):
    """What came of a connection and of its messages, in order."""

    messages: tuple[MessageOutcome, ...] = ()


def differences(case: Case, outcomes: Sequence[ConnectionOutcome]) -> list[str]:
    """A sentence for each expectation that is not met; an empty list if the case passes."""
    found = []
    for number, (wanted, came) in enumerate(zip(case.expected, outcomes, strict=False), 1):
        found += [f"connection {number}: {text}" for text in _differences(wanted, came)]
        for index, (expected, outcome) in enumerate(zip(wanted.messages, came.messages, strict=False)):
            message = case.connections[number - 1].messages[index]
            where = f"connection {number}, message {index + 1} from <{printable(message.sender, 80)}>"
            found += [f"{where}: {text}" for text in _differences(expected, outcome)]
        if len(came.messages) < len(wanted.messages):
            found.append(f"connection {number}: only {len(came.messages)} of its messages were taken")
    return found


def updated(case: Case, outcomes: Sequence[ConnectionOutcome]) -> Case:
    """`case` with the expectations that these outcomes meet.

    What fits stays as it is written, what is not compared stays out; a message of which nothing was expected gets
    everything.
    """
    connections = []
    for number, came in enumerate(outcomes):
        wanted = case.expected[number] if number < len(case.expected) else ExpectedConnection()
        messages = (*wanted.messages, *[Expected()] * (len(came.messages) - len(wanted.messages)))
        new = tuple(_updated(*pair, whole=True) for pair in zip(messages, came.messages, strict=True))
        connections.append(ExpectedConnection(**_fields(_updated(wanted, came)), messages=new))
    return case.model_copy(update={"expected": tuple(connections)})


_KEYS = ("reply", "reasons", "headers_added", "headers_removed")


def _fields(expected: Expected) -> dict[str, Any]:
    return {key: getattr(expected, key) for key in _KEYS}


def _updated(wanted: Expected, came: MessageOutcome, *, whole: bool = False) -> Expected:
    fields, seen = _fields(wanted), _fields(_seen(came))
    if whole and not any(value is not None for value in fields.values()):
        return Expected(**seen)
    wrong = {key for key, _ in _compare(wanted, came)}
    return Expected(**{key: seen[key] if key in wrong else value for key, value in fields.items()})


def _seen(came: MessageOutcome) -> Expected:
    """The outcome in the words of an expectation: codes without texts, header fields without what changes each time."""
    replies = tuple(_codes(reply) for reply in came.replies)
    return Expected(
        reply=replies[0] if len(replies) == 1 else replies,
        reasons=came.reasons,
        headers_added=tuple(map(_gist, came.headers_added)),
        headers_removed=tuple(map(_gist, came.headers_removed)),
    )


_REPLY = re.compile(r"\s*(?:(\d{3})(?=\s|$))?\s*(?:([245]\.\d{1,3}\.\d{1,3})(?=\s|$))?\s*(.*)", re.DOTALL)


def _parts(reply: str) -> tuple[str, str, str]:
    """Code, enhanced code and text of a reply; what is not there is empty."""
    match = _REPLY.fullmatch(reply)
    assert match is not None, "every part is optional"
    return match[1] or "", match[2] or "", match[3].strip()


def _codes(reply: str) -> str:
    """The codes of a reply; of a good one only the first, because the second says nothing that matters."""
    code, enhanced, _ = _parts(reply)
    return code if code.startswith("2") else f"{code} {enhanced}".strip()


def _differences(wanted: Expected, came: MessageOutcome) -> Iterator[str]:
    for _, text in _compare(wanted, came):
        yield text


def _compare(wanted: Expected, came: MessageOutcome) -> Iterator[tuple[str, str]]:
    """For each expectation that is not met, its key and a sentence."""
    replies = came.replies[-1:] if isinstance(wanted.reply, str) else came.replies
    if wanted.reply is not None and not _reply_fits(wanted.reply, replies):
        yield "reply", f"expected the reply {_quoted(wanted.reply)}, it was {_quoted(replies)}"
    if wanted.reasons is not None:
        missing = [reason for reason in wanted.reasons if reason not in came.reasons]
        if missing or (not wanted.reasons and came.reasons):
            yield "reasons", f"expected the reasons {_listed(wanted.reasons)}, they were {_listed(came.reasons)}"
    for key, fields, done in (
        ("headers_added", came.headers_added, "added"),
        ("headers_removed", came.headers_removed, "removed"),
    ):
        items: tuple[str, ...] | None = getattr(wanted, key)
        if items is not None and not _headers_fit(items, fields):
            lines = [f"{_name(field)}: {_text(field)}" for field in fields]
            yield key, f"expected to be {done}: {_listed(items)}; {done} was: {_listed(lines)}"


def _reply_fits(wanted: str | tuple[str, ...], replies: Sequence[str]) -> bool:
    if isinstance(wanted, str):
        wanted = (wanted,)
    return len(wanted) == len(replies) and all(map(_one_reply_fits, wanted, replies))


def _one_reply_fits(wanted: str, reply: str) -> bool:
    code, enhanced, text = _parts(wanted)
    real = _parts(reply)
    return code in ("", real[0]) and enhanced in ("", real[1]) and text in real[2]


def _headers_fit(items: Sequence[str], fields: Sequence[Header]) -> bool:
    """True if each item has a field of its own; without items, if there are no fields."""
    left = list(fields)
    for item in items:
        field = next((field for field in left if _header_fits(item, field)), None)
        if field is None:
            return False
        left.remove(field)
    return bool(items) or not fields


def _header_fits(item: str, field: Header) -> bool:
    name, _, words = item.partition(":")
    value = _text(field)
    return name.strip().lower() == _name(field).lower() and all(word in value for word in words.split())


def _name(field: Header) -> str:
    return field.name.decode("ascii", "replace")


def _text(field: Header) -> str:
    """The value unfolded, as text."""
    return " ".join(field.value.decode("utf-8", "replace").split())


_GISTS = {
    "authentication-results": re.compile(r"^[^;\s]+|(?<![.\w])(?:spf|dkim|dmarc|iprev|arc|auth)=\w+"),
    "dkim-signature": re.compile(r"(?<!\w)[ds]=[^;\s]+"),
}
"""What of a field does not depend on time or key."""


def _gist(field: Header) -> str:
    gist = _GISTS.get(_name(field).lower())
    words = dict.fromkeys(gist.findall(_text(field))) if gist else ()
    return f"{_name(field)}: {' '.join(words)}" if words else _name(field)


def _quoted(replies: str | Sequence[str]) -> str:
    return f'"{printable(replies)}"' if isinstance(replies, str) else _listed(replies)


def _listed(items: Sequence[str]) -> str:
    return ", ".join(f'"{printable(item)}"' for item in items) or "none"
