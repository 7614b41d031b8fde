# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose mail is it by its From? The one reading of From, for those who judge and those who sign (RFC 5322 section 3.4).

Mail programs do not agree about a From that is a little wrong, and show something of it all the same. So a reading has
two parts. `domains` are all that a mail program could show as the author's: whatever stands behind an `@`, in groups,
routes and unquoted display names too. Every one of them is judged (auth/dmarc.py), so that nobody is judged by one
domain and shown as another. `mailboxes` are the addresses proper, of which a signature vouches for the first if all
`domains` are one (signing/message_sender.py). So what we sign has one author for us too.

Display names in quotes, comments and encoded words are for people, and name nobody: RFC 5322 has them, and everybody
writes addresses into them. But they do count where a program has nothing better to show: where there is no address
beside them, or where it is not certain what is quoted, because a quote, bracket or parenthesis is not closed.

    Bank, Service <a@bank.example>    bank.example: an unquoted comma makes a name of two parts, and no other author
    Joe @ Work <joe@example.com>      example.com: `Work` is no domain that a display name could pose with
    a@bank.example <joe@example.com>  both: some programs take the first address that they find
    "a@bank.example" <joe@e.example>  e.example alone
    "a@bank.example", <joe@e.example> both: the first has nothing but its name
    a@ba=nk.example                   bank.example: what no domain may have in it is left out

A domain counts as it would in the right form: lower-case A-labels (auth/domains.py). Never raises, and takes time in
proportion to the length; beyond MAX_DOMAINS it reads none.
"""

import re
from binascii import Error, a2b_base64
from collections.abc import Iterable, Iterator, Sequence
from email.quoprimime import header_decode
from enum import StrEnum
from itertools import pairwise
from typing import NamedTuple

from gatekeeper.auth.domains import normal_domain
from gatekeeper.auth.mailbox import usual_mailbox
from gatekeeper.core.message import Header

MAX_DOMAINS = 10
"""The most domains that a message may name: each is looked up."""
_MAX_ADDRESSES = 100
"""The most `@` in a field that is read."""
_MAX_LABEL, _MAX_NAME = 63, 253
"""Characters of a label and of a name in the DNS."""
_MAX_USER = 256
"""Characters of a local part that is an address. RFC 5321 allows 64 bytes; some systems create longer ones."""
_FOLD = re.compile(rb"\r\n(?=[ \t])")
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f]")
_COMMENT_EDGE = re.compile(r"[()]|\\.?", re.DOTALL)
_TOKEN = re.compile(
    r"""(?P<blank>[ \t]+)
    |(?P<quoted>"(?:[^"\\]|\\.)*")
    |(?P<literal>\[[^\[\]\\]*\])
    |(?P<special>[<>@,;:])
    |(?P<dots>\.+)
    |(?P<other>[)\]]|\\(?!["()<>@,;:\[\]\\]))
    |(?P<atom>[^ \t()<>@,;:."\[\]\\]+)""",
    re.VERBOSE | re.DOTALL,
)
_ENCODED_WORD = re.compile(r"=\?[^?\s]+\?([bq])\?([^?]*)\?=", re.IGNORECASE)
_BEHIND_AT = re.compile("@([^@<>(),;:\\[\\]]*)")
_PLAIN_COMMENT = re.compile(r"\([^()]*\)")
_NOISE = re.compile('[\x00-\x08\x0a-\x1f\x7f"\\\\]')
_DOTS = re.compile("[.\u3002\uff0e\uff61]")
"""Dots, and what UTS 46 takes for one."""
_ODD = re.compile("[^\\w.\u3002\uff0e\uff61-]")
"""What no domain can have, in ASCII or beyond it."""
_NOT_OF_A_DOMAIN = re.compile(r"[^a-z0-9_.-]")


class Mailbox(NamedTuple):
    """An address: `user` as written, quotes included, and `domain` in normal form.

    `user` is empty unless the address is user@domain and nothing else, `domain` if there is none (`joe@[192.0.2.1]`).
    """

    user: str
    domain: str


class Reading(NamedTuple):
    """What a field says; the module's docstring has what `mailboxes` and `domains` are.

    With a `doubt` it is not certain what is quoted, and no address is one. `too_many` means that nothing was read.
    """

    mailboxes: tuple[Mailbox, ...]
    domains: tuple[str, ...]
    doubt: str = ""
    too_many: bool = False


class Named(StrEnum):
    """How many domains a message names as its author's."""

    ONE = "one"
    SEVERAL = "several"
    """Or there are several From fields, whatever they name."""
    NONE = "none"
    TOO_MANY = "too many"
    """More than are looked up."""


class Author(NamedTuple):
    """The domains that a message names as its author's; with the `problem` in our own words if they are not one."""

    named: Named
    domains: tuple[str, ...] = ()
    problem: str = ""


def author_of(headers: Sequence[Header]) -> Author:
    """Return whom a message with these header fields names as its author. Never raises."""
    fields = [field for field in headers if field.name.lower() == b"from"]
    readings = [read_mailboxes(field.value) for field in fields]
    domains = tuple(dict.fromkeys(domain for reading in readings for domain in reading.domains))
    if len(domains) > MAX_DOMAINS or any(reading.too_many for reading in readings):
        return Author(Named.TOO_MANY, problem=f"From names more than {MAX_DOMAINS} domains")
    if not domains:
        return Author(Named.NONE, problem="From names no domain" if fields else "there is no From field")
    if len(fields) > 1:
        return Author(Named.SEVERAL, domains, f"there are {len(fields)} From fields")
    if len(domains) > 1:
        return Author(Named.SEVERAL, domains, "From names several domains")
    return Author(Named.ONE, domains)


def read_mailboxes(value: bytes) -> Reading:
    """Read the value of a field of addresses, folded or not."""
    if usual := usual_mailbox(value):
        return Reading((Mailbox(*usual),), (usual[1],))
    text = _FOLD.sub(b"", value).decode("utf-8", "surrogateescape")
    if _decoded(text).count("@") > _MAX_ADDRESSES:
        return Reading((), (), "there are too many addresses in it", too_many=True)
    if _CONTROL.search(text):
        return Reading((), _anywhere(text), "there are control characters in it")
    tokens = _tokens(text)
    if tokens is None:
        return Reading((), _anywhere(text), "a quote, a bracket or a parenthesis is not closed")
    mailboxes: list[Mailbox] = []
    domains: dict[str, None] = {}
    for element in _elements(tokens, len(text)):
        domains.update(dict.fromkeys(_read_element(text, element, mailboxes)))
    return Reading(tuple(mailboxes), tuple(domains) or _anywhere(text))


class _Token(NamedTuple):
    kind: str  # quoted, literal, atom, dots, special, or other: what has no business there
    text: str
    start: int
    end: int

    @property
    def special(self) -> str:
        return self.text if self.kind == "special" else ""


def _tokens(text: str) -> list[_Token] | None:
    """Split `text` into tokens, without white space and comments; None if something is not closed."""
    tokens, at = [], 0
    while at < len(text):
        if text[at] == "(":
            end = _end_of_comment(text, at)
            if end is None:
                return None
            at = end
            continue
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        kind = match.lastgroup or ""
        if kind != "blank":
            tokens.append(_Token(kind, match[0], at, match.end()))
        at = match.end()
    return tokens


def _end_of_comment(text: str, at: int) -> int | None:
    """Return the position after the comment that starts at `at`; comments nest, to any depth. None if it has no end."""
    depth = 0
    for edge in _COMMENT_EDGE.finditer(text, at):
        depth += {"(": 1, ")": -1}.get(edge[0], 0)
        if not depth:
            return edge.end()
    return None


class _Element(NamedTuple):
    """What stands between two commas, or what stands for them: at most one author, or a part of a name."""

    tokens: list[_Token]
    start: int
    end: int
    is_group_name: bool


def _elements(tokens: Iterable[_Token], length: int) -> Iterator[_Element]:
    """Yield the elements of a text of this length.

    The marks of groups are nothing but more separators: so groups need not be closed, and `Re: Joe` is a name.
    """
    found: list[_Token] = []
    start, in_angle = 0, False
    for token in tokens:
        if token.special in (",", ":", ";") and not in_angle:
            if token.start > start:
                yield _Element(found, start, token.start, token.special == ":")
            found, start = [], token.end
            continue
        in_angle = token.special == "<" or (in_angle and token.special != ">")
        found.append(token)
    yield _Element(found, start, length, is_group_name=False)


def _read_element(text: str, element: _Element, mailboxes: list[Mailbox]) -> Iterator[str]:
    """Yield the domains that an element shows, and append its mailboxes."""
    name, address = _name_and_address(element)
    for at in _ats(name):
        first, _ = _behind(name, at, in_name=True)
        yield from filter(_has_dot, _domains(first, first))
    ats = _ats(address)
    for at in ats:
        domains = _domains(*_behind(address, at))
        user = _user(address) if len(ats) == 1 and len(domains) == 1 else ""
        mailboxes.append(Mailbox(user, domains[0] if domains else ""))
        yield from domains
    if not ats:
        yield from filter(_has_dot, _anywhere(text[element.start : element.end]))
    elif _has_encoded_word(address):
        # no place for an encoded word (RFC 2047 section 5), but there are programs that decode first
        yield from _anywhere(text[address[0].start : address[-1].end])


def _name_and_address(element: _Element) -> tuple[list[_Token], list[_Token]]:
    """Return the tokens of the display name and those of the address: all of them, unless `name <address>` it is."""
    tokens = element.tokens
    starts = [at for at, token in enumerate(tokens) if token.special == "<"]
    ends = [at for at, token in enumerate(tokens) if token.special == ">"]
    if starts and ends and ends[-1] == len(tokens) - 1 and (len(ends) == 1 or ends[-2] < starts[-1]):
        name, address = tokens[: starts[-1]], tokens[starts[-1] + 1 : -1]
        # More angle brackets may stand in a name (`Joe <3 <joe@example.com>`), but not around another address.
        if _ats(address) and (len(starts) == len(ends) == 1 or not (_ats(name) or _has_encoded_word(name))):
            return name, address
    return (tokens, []) if element.is_group_name and not starts and not ends else ([], tokens)


def _has_encoded_word(tokens: Iterable[_Token]) -> bool:
    return any("=?" in token.text for token in tokens)


def _ats(tokens: Sequence[_Token]) -> list[int]:
    return [at for at, token in enumerate(tokens) if token.special == "@"]


def _behind(tokens: Sequence[_Token], at: int, *, in_name: bool = False) -> tuple[str, str]:
    """Return what stands behind the `@` at `at`: up to the first thing that ends it for some, and all words as one.

    Blanks around dots end no domain (RFC 5322 section 4.4), but in a display name `Joe @ St. Mary` names none.
    """
    if at + 1 < len(tokens) and tokens[at + 1].kind == "quoted":
        return tokens[at + 1].text[1:-1], ""
    first = ""
    words: list[str] = []
    before: _Token | None = None
    for token in tokens[at + 1 :]:
        if token.kind not in ("atom", "dots", "other"):
            break
        if before is not None and not first:
            apart = token.start > before.end and (in_name or "dots" not in (before.kind, token.kind))
            if apart or token.kind == "other":
                first = "".join(words)
        words.append(token.text)
        before = token
    whole = "".join(words)
    return first or whole, whole


def _user(address: Sequence[_Token]) -> str:
    """Return the local part of tokens that are user@domain and nothing else, with one `@`; empty if they are not.

    The local part may have dots anywhere, as in some old mailboxes.
    """
    (at,) = _ats(address)
    user, domain = (_one_word(tokens) for tokens in (address[:at], address[at + 1 :]))
    quoted = at == 1 and address[0].kind == "quoted"
    user = address[0].text if quoted else user
    return user if len(user) <= _MAX_USER and len(domain) <= _MAX_NAME and normal_domain(domain) else ""


def _one_word(tokens: Sequence[_Token]) -> str:
    """Return the text of tokens that are words with dots between them; empty if they are something else."""
    ends = any("dots" not in (one.kind, other.kind) for one, other in pairwise(tokens))
    fit = all(token.kind in ("atom", "dots") for token in tokens) and not ends
    return "".join(token.text for token in tokens) if fit else ""


def _anywhere(text: str) -> tuple[str, ...]:
    """Return all domains that stand behind an `@`, in quotes, comments and encoded words too.

    What is noise to some programs and a blank or nothing to others is read in every way. A name without a dot counts
    only where there is no other.
    """
    if "@" not in text and "=?" not in text:
        return ()
    readings = {reading: None for whole in (text, _decoded(text)) for reading in (whole, _PLAIN_COMMENT.sub("", whole))}
    found: dict[str, None] = {}
    for reading in dict.fromkeys(_NOISE.sub(noise, reading) for reading in readings for noise in (" ", "")):
        for match in _BEHIND_AT.finditer(reading):
            words = match[1].split()
            found.update(dict.fromkeys(_domains("".join(words[:1]), "".join(words))))
    return tuple(filter(_has_dot, found)) or tuple(found)


def _decoded(text: str) -> str:
    """Return `text` with its encoded words decoded (RFC 2047), those of base64 that cannot be left as they are.

    Whatever their charset is, only ASCII matters, and that is the same in all of them but for NULs.
    """
    return _ENCODED_WORD.sub(_decoded_word, text) if "=?" in text else text


def _decoded_word(word: re.Match[str]) -> str:
    if word[1] in "qQ":
        return header_decode(word[2])
    try:
        return a2b_base64(word[2].encode("ascii") + b"==").decode("utf-8", "surrogateescape")
    except (Error, UnicodeError):
        return word[0]


def _domains(first: str, whole: str) -> list[str]:
    """Return the domains that can be read in `whole`, of which `first` is the beginning that some take for all of it.

    For some that ends at the first character that no domain can have. A beginning needs a dot.
    """
    odd = _ODD.search(first)
    beginnings = _domain(first), _domain(first[: odd.start()]) if odd else ""
    found = (_domain(whole), *filter(_has_dot, beginnings))
    return list(filter(None, dict.fromkeys(found)))


def _has_dot(domain: str) -> bool:
    return "." in domain


def _domain(text: str) -> str:
    """Return the domain that `text` shows, in normal form; empty if there is none.

    What cannot be in a domain is left out: dots that have nothing between them, and characters. Of a name that is too
    long for the DNS its end counts.
    """
    labels = [label for label in _DOTS.split(text[-2 * _MAX_NAME :]) if label]
    whole = ".".join(labels)
    fits = len(whole) <= _MAX_NAME and all(len(label) <= _MAX_LABEL for label in labels)
    if fits and (domain := normal_domain(whole)):
        return domain
    labels = [label for label in (_NOT_OF_A_DOMAIN.sub("", label.lower()) for label in labels) if label]
    for start in range(len(labels)):
        if domain := normal_domain(".".join(labels[start:])):
            return domain if not start or "." in domain else ""
    return ""
