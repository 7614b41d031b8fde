# SPDX-License-Identifier: GPL-3.0-or-later
"""Parsing the mailboxes of a From or Sender field: the sender that a signature is for (RFC 5322 section 3.6.2).

The rule: a signature vouches for one domain, so what two readers could read differently is refused, not guessed. That
includes things that RFC 5322 or RFC 6854 allow and that no mail program writes: routes, groups, domain literals, an
address followed by more text. A display name may contain anything, even an unquoted address.
"""

import re
from dataclasses import dataclass

from gatekeeper.auth.domains import normal_domain
from gatekeeper.auth.mailbox import usual_mailbox

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
    | (?P<quoted>"(?:[^"\\]|\\.)*")
    | (?P<comment>\()
    | (?P<special>[<>,;:@\[\]\\])
    | (?P<atom>[^ \t\r\n()<>,;:@"\[\]\\]+)""",
    re.VERBOSE | re.DOTALL,
)
_COMMENT = re.compile(r"[^()\\]+|\\.|[()]", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MAX_USER = 256
"""Characters of a local part. RFC 5321 allows 64 bytes; some systems create longer ones."""

_Tokens = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class MessageSender:
    """A mailbox: `user` as written, quotes included; `domain` as A-labels in lower case."""

    user: str
    domain: str

    def __str__(self) -> str:
        return f"{self.user}@{self.domain}"


def parse_senders(value: bytes) -> list[MessageSender]:
    """Parse the mailboxes in a field's value, folded or not.

    Raises ValueError with what is wrong, which quotes nothing of `value`.
    """
    if usual := usual_mailbox(value):
        return [MessageSender(*usual)]
    text = value.replace(b"\r\n", b"").decode("utf-8", "surrogateescape")
    mailboxes: list[_Tokens] = [[]]
    angle = False
    for kind, token in _tokens(text):
        if token == "," and not angle:
            mailboxes.append([])
            continue
        angle = token == "<" or (angle and token != ">")
        mailboxes[-1].append((kind, token))
    senders = [_mailbox(tokens) for tokens in mailboxes if tokens]
    if not senders:
        raise ValueError("there is no address in it")
    return senders


def _tokens(text: str) -> _Tokens:
    """Split `text` into tokens, without white space and comments."""
    tokens = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError("a quote or a parenthesis is not closed")
        position = match.end()
        kind = match.lastgroup or ""
        if kind == "comment":
            position = _skip_comment(text, position)
        elif kind != "space":
            tokens.append((kind, match[0]))
    return tokens


def _skip_comment(text: str, position: int) -> int:
    depth = 1
    for match in _COMMENT.finditer(text, position):
        depth += (match[0] == "(") - (match[0] == ")")
        if depth == 0:
            return match.end()
    raise ValueError("a quote or a parenthesis is not closed")


def _mailbox(tokens: _Tokens) -> MessageSender:
    """Parse `phrase <user@domain>` or `user@domain`."""
    texts = [text for _, text in tokens]
    if "<" in texts:
        start = texts.index("<")
        if texts.count(">") != 1 or texts[-1] != ">":
            raise ValueError("there is more than the address after the name")
        if ":" in texts[:start] or ";" in texts[:start]:
            raise ValueError("it is a group of addresses")
        tokens = tokens[start + 1 : -1]
    if [kind for kind, _ in tokens] not in (["atom", "special", "atom"], ["quoted", "special", "atom"]):
        raise ValueError("there is no address of the form user@domain")
    (_, user), (_, at), (_, domain) = tokens
    if at != "@" or len(user) > _MAX_USER or _CONTROL.search(user):
        raise ValueError("there is no address of the form user@domain")
    if not (name := normal_domain(domain)):
        raise ValueError("its domain is not a valid domain name")
    return MessageSender(user, name)
