# SPDX-License-Identifier: GPL-3.0-or-later
"""A comparison of outcomes with expectations: differences as sentences, and new expectations from outcomes.

The rules of comparison are those of replay/fixture.py. Knows nothing of how a case was played.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gatekeeper.core.message import Header
from gatekeeper.core.verdict import printable
from gatekeeper.replay.fixture import EXPECTED, Case, Expected, ExpectedConnection


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageOutcome:
    """The outcome of a message: a reply to each recipient and then, if any was accepted, to the data.

    For a connection: one reply, its greeting or what refused it.
    """

    replies: tuple[str, ...]
    reasons: tuple[str, ...] = ()
    headers_added: tuple[Header, ...] = ()
    headers_removed: tuple[Header, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOutcome(MessageOutcome):
    """The outcome of a connection, and those of its messages in order."""

    messages: tuple[MessageOutcome, ...] = ()


NOTHING_EXPECTED = f"nothing is expected in {EXPECTED}; `gatekeeper replay --update` writes down what happens"


def findings(case: Case, outcomes: Sequence[ConnectionOutcome]) -> list[str]:
    """Return a sentence for each reason why the case does not pass; an empty list if it does."""
    return [NOTHING_EXPECTED] if case.expects_nothing else differences(case, outcomes)


def differences(case: Case, outcomes: Sequence[ConnectionOutcome]) -> list[str]:
    """Return a sentence for each expectation that is not met."""
    found = []
    for number, (expected, outcome) in enumerate(zip(case.expected, outcomes, strict=False), 1):
        found += [f"connection {number}: {text}" for text in _differences(expected, outcome)]
        for index, pair in enumerate(zip(expected.messages, outcome.messages, strict=False)):
            message = case.connections[number - 1].messages[index]
            where = f"connection {number}, message {index + 1} from <{printable(message.sender, 80)}>"
            found += [f"{where}: {text}" for text in _differences(*pair)]
        if len(outcome.messages) < len(expected.messages):
            found.append(f"connection {number}: only {len(outcome.messages)} of its messages were sent")
    return found


def updated(case: Case, outcomes: Sequence[ConnectionOutcome]) -> Case:
    """Return `case` with expectations that these outcomes meet.

    What matches stays as it is written, and what is not compared stays out; a message without any expectation gets all
    of them, and so does the reply of a connection in which none was sent. What is expected of a message that was not
    sent goes.
    """
    connections = []
    for number, outcome in enumerate(outcomes):
        expected = case.expected[number] if number < len(case.expected) else ExpectedConnection()
        more = [Expected()] * (len(outcome.messages) - len(expected.messages))
        messages = [*expected.messages[: len(outcome.messages)], *more]
        new = tuple(_updated(*pair, fill=True) for pair in zip(messages, outcome.messages, strict=True))
        fields = _fields(_updated(expected, outcome))
        if not outcome.messages and expected.is_empty:
            fields["reply"] = _as_expectation(outcome).reply
        connections.append(ExpectedConnection(**fields, messages=new))
    return case.model_copy(update={"expected": tuple(connections)})


_KEYS = ("reply", "reasons", "headers_added", "headers_removed")


def _fields(expected: Expected) -> dict[str, Any]:
    return {key: getattr(expected, key) for key in _KEYS}


def _updated(expected: Expected, outcome: MessageOutcome, *, fill: bool = False) -> Expected:
    fields, actual = _fields(expected), _fields(_as_expectation(outcome))
    if fill and expected.is_empty:
        return Expected(**actual)
    wrong = {key for key, _ in _compare(expected, outcome)}
    return Expected(**{key: actual[key] if key in wrong else value for key, value in fields.items()})


def _as_expectation(outcome: MessageOutcome) -> Expected:
    """Turn an outcome into an expectation: codes without texts, header fields without what changes each time."""
    replies = tuple(_codes(reply) for reply in outcome.replies)
    return Expected(
        reply=replies[0] if len(replies) == 1 else replies,
        reasons=outcome.reasons,
        headers_added=tuple(map(_stable_header, outcome.headers_added)),
        headers_removed=tuple(map(_stable_header, outcome.headers_removed)),
    )


_REPLY = re.compile(r"\s*(?:(\d{3})(?=\s|$))?\s*(?:([245]\.\d{1,3}\.\d{1,3})(?=\s|$))?\s*(.*)", re.DOTALL)


def _parts(reply: str) -> tuple[str, str, str]:
    """Split a reply into code, enhanced code and text; what is missing is empty."""
    match = _REPLY.fullmatch(reply)
    assert match is not None, "every part is optional"
    return match[1] or "", match[2] or "", match[3].strip()


def _codes(reply: str) -> str:
    """Return the codes of a reply; for 2xx only the first, because the second says nothing that matters."""
    code, enhanced, _ = _parts(reply)
    return code if code.startswith("2") else f"{code} {enhanced}".strip()


def _differences(expected: Expected, outcome: MessageOutcome) -> Iterator[str]:
    for _, text in _compare(expected, outcome):
        yield text


def _compare(expected: Expected, outcome: MessageOutcome) -> Iterator[tuple[str, str]]:
    """Yield for each expectation that is not met its key and a sentence."""
    replies = outcome.replies[-1:] if isinstance(expected.reply, str) else outcome.replies
    if expected.reply is not None and not _replies_match(expected.reply, replies):
        yield "reply", f"expected the reply {_quoted(expected.reply)}, it was {_quoted(replies)}"
    if expected.reasons is not None:
        missing = [reason for reason in expected.reasons if reason not in outcome.reasons]
        if missing or (not expected.reasons and outcome.reasons):
            yield "reasons", f"expected the reasons {_listed(expected.reasons)}, they were {_listed(outcome.reasons)}"
    for key, fields, done in (
        ("headers_added", outcome.headers_added, "added"),
        ("headers_removed", outcome.headers_removed, "removed"),
    ):
        items: tuple[str, ...] | None = getattr(expected, key)
        if items is not None and not _headers_match(items, fields):
            lines = [f"{_name(field)}: {_text(field)}" for field in fields]
            yield key, f"expected to be {done}: {_listed(items)}; actually {done}: {_listed(lines)}"


def _replies_match(expected: str | tuple[str, ...], replies: Sequence[str]) -> bool:
    if isinstance(expected, str):
        expected = (expected,)
    return len(expected) == len(replies) and all(map(_reply_matches, expected, replies))


def _reply_matches(expected: str, reply: str) -> bool:
    code, enhanced, text = _parts(expected)
    actual = _parts(reply)
    return code in ("", actual[0]) and enhanced in ("", actual[1]) and text in actual[2]


def _headers_match(items: Sequence[str], fields: Sequence[Header]) -> bool:
    """Return whether each item has a field of its own; without items, whether there are no fields."""
    left = list(fields)
    for item in items:
        field = next((field for field in left if _header_matches(item, field)), None)
        if field is None:
            return False
        left.remove(field)
    return bool(items) or not fields


def _header_matches(item: str, field: Header) -> bool:
    name, _, words = item.partition(":")
    value = _text(field)
    return name.strip().lower() == _name(field).lower() and all(word in value for word in words.split())


def _name(field: Header) -> str:
    return field.name.decode("ascii", "replace")


def _text(field: Header) -> str:
    """Return the unfolded value as text."""
    return " ".join(field.value.decode("utf-8", "replace").split())


_STABLE_PARTS = {
    "authentication-results": re.compile(r"^[^;\s]+|(?<![.\w])(?:spf|dkim|dmarc|iprev|arc|auth)=\w+"),
    "dkim-signature": re.compile(r"(?<!\w)[ds]=[^;\s]+"),
}
"""The parts of a field that do not depend on time or key."""


def _stable_header(field: Header) -> str:
    pattern = _STABLE_PARTS.get(_name(field).lower())
    words = dict.fromkeys(pattern.findall(_text(field))) if pattern else ()
    return f"{_name(field)}: {' '.join(words)}" if words else _name(field)


def _quoted(replies: str | Sequence[str]) -> str:
    return f'"{printable(replies)}"' if isinstance(replies, str) else _listed(replies)


def _listed(items: Sequence[str]) -> str:
    return ", ".join(f'"{printable(item)}"' for item in items) or "none"
