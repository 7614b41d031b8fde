# SPDX-License-Identifier: GPL-3.0-or-later
"""The author domain of a message, or the reason why From does not name exactly one (RFC 5322 section 3.4, RFC 9989).

An attacker must not be able to choose which of several addresses is judged while readers see another, so parsing is
strict: there must be one From field, and every address in it, even one that poses as a display name, must have the same
domain; anything outside the grammar is a problem. Encoded words are only ever display names here, as they are to
readers.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from gatekeeper.auth.domains import normal_domain
from gatekeeper.auth.mailbox import usual_mailbox
from gatekeeper.core.message import Header

_MAX_LENGTH = 65536  # characters of a From field
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f]")
_COMMENT_EDGE = re.compile(r"[()]|\\.?", re.DOTALL)
_TOKEN = re.compile(
    r"""(?P<space>[ \t]+)
    |(?P<word>"(?:[^"\\]|\\.)*")
    |(?P<literal>\[[^\[\]\\]*\])
    |(?P<atom>[A-Za-z0-9!\#$%&'*+/=?^_`{|}~\x80-\U0010ffff-]+)
    |(?P<special>[<>@,;:.])""",
    re.VERBOSE | re.DOTALL,
)


class Author(NamedTuple):
    """The author's `domain` in normal form, or empty with the `problem` in our own words."""

    domain: str
    problem: str = ""


class _Token(NamedTuple):
    kind: str  # word (quoted), atom, literal, or special
    text: str

    def is_special(self, character: str) -> bool:
        return self.kind == "special" and self.text == character


def from_domain(headers: Sequence[Header]) -> Author:
    """Return the domain of the author of a message with these header fields. Never raises."""
    fields = [field for field in headers if field.name.lower() == b"from"]
    if len(fields) != 1:
        return Author("", f"there are {len(fields)} From fields" if fields else "there is no From field")
    if usual := usual_mailbox(fields[0].value):
        return Author(usual[1])
    try:
        domains = dict.fromkeys(parse_mailboxes(fields[0].value))
    except ValueError as error:
        return Author("", str(error))
    if len(domains) != 1:
        return Author("", "From has addresses of several domains" if domains else "From has no address in it")
    return Author(next(iter(domains)))


def parse_mailboxes(value: bytes) -> list[str]:
    """Return the domains of all addresses in an address list, groups included, in order and in normal form.

    Raises ValueError with the problem, in words that can be reported as the reason.
    """
    text = value.replace(b"\r\n ", b" ").replace(b"\r\n\t", b"\t").decode("utf-8", "surrogateescape")
    if len(text) > _MAX_LENGTH:
        raise ValueError("From is too long")
    if _CONTROL.search(text):
        raise ValueError("From has control characters in it")
    domains = []
    for element in _elements(_tokens(text)):
        domains += _address(element)
    return domains


def _tokens(text: str) -> list[_Token]:
    """Split `text` into tokens, without white space and comments."""
    tokens, at = [], 0
    while at < len(text):
        if text[at] == "(":
            at = _end_of_comment(text, at)
            continue
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError("From is malformed")
        kind = match.lastgroup or ""
        if kind != "space":
            tokens.append(_Token(kind, match[0]))
        at = match.end()
    return tokens


def _end_of_comment(text: str, at: int) -> int:
    """Return the position after the comment that starts at `at`; comments nest, to any depth."""
    depth = 0
    for edge in _COMMENT_EDGE.finditer(text, at):
        depth += {"(": 1, ")": -1}.get(edge[0], 0)
        if not depth:
            return edge.end()
    raise ValueError("From has an unterminated comment")


def _elements(tokens: list[_Token]) -> list[list[_Token]]:
    """Return the tokens of each address; the names of groups are dropped."""
    elements: list[list[_Token]] = [[]]
    in_angle = in_group = False
    for token in tokens:
        special = token.text if token.kind == "special" else ""
        if in_angle or special == "<":
            in_angle = special != ">"
            elements[-1].append(token)
        elif special == ",":
            elements.append([])
        elif special == ":":
            if in_group or any(token.is_special("@") or token.is_special(">") for token in elements[-1]):
                raise ValueError("From is malformed")
            in_group, elements[-1] = True, []
        elif special == ";":
            if not in_group:
                raise ValueError("From is malformed")
            in_group = False
            elements.append([])
        else:
            elements[-1].append(token)
    if in_angle or in_group:
        raise ValueError("From is malformed")
    return [element for element in elements if element]


def _address(tokens: list[_Token]) -> list[str]:
    """Return the domain of one address, and that of a display name that poses as an address (`a@b <c@d>`)."""
    start = next((at for at, token in enumerate(tokens) if token.is_special("<")), None)
    if start is None:
        return [_addr_spec(tokens)]
    display, inner, end = tokens[:start], tokens[start + 1 : -1], tokens[-1]
    if not end.is_special(">") or any(token.is_special(">") for token in (*display, *inner)):
        raise ValueError("From is malformed")
    domains = [_addr_spec(inner)]
    if any(token.is_special("@") for token in display):
        domains.append(_addr_spec(display))
    return domains


def _addr_spec(tokens: list[_Token]) -> str:
    """Return the domain of `local@domain`; the local part may have dots anywhere, as in some old mailboxes."""
    at = next((at for at, token in enumerate(tokens) if token.is_special("@")), None)
    if at is None:
        raise ValueError("From has an address without a domain")
    local, right = tokens[:at], tokens[at + 1 :]
    words = [token for token in local if not token.is_special(".")]
    adjacent = any(not a.is_special(".") and not b.is_special(".") for a, b in pairwise(local))
    if not words or adjacent or any(token.kind not in ("atom", "word") for token in words):
        raise ValueError("From is malformed")
    if [token.kind for token in right] == ["literal"]:
        raise ValueError("From has an address literal for a domain")
    alternate = all(token.kind == "atom" if n % 2 == 0 else token.is_special(".") for n, token in enumerate(right))
    domain = normal_domain("".join(token.text for token in right)) if alternate and len(right) % 2 else ""
    if not domain:
        raise ValueError("From has an address with a malformed domain")
    return domain
