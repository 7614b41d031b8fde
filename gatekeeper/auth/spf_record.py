# SPDX-License-Identifier: GPL-3.0-or-later
"""The grammar of SPF records (RFC 7208 sections 4.6.1, 7.1 and 12): text becomes terms, or what is wrong with it.

Whoever evaluates a record and whoever checks our own read it by `parse`. Names of mechanisms and modifiers are in lower
case. A record with any mistake is `permerror` as a whole, wherever the mistake stands (section 4.6). Knows no DNS.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import quote

from gatekeeper.core.verdict import printable

MECHANISMS = ("all", "include", "a", "mx", "ptr", "ip4", "ip6", "exists")
MODIFIERS = ("redirect", "exp")

_MAX_RECORD = 8192  # bytes
_MAX_TERM = 512  # characters of a domain-spec, which macros may make longer
_MAX_EXPLANATION = 1024
_MAX_CACHED = 512
"""Bytes of the longest record whose terms are kept: they take a hundred times that, and strangers publish them."""
_MAX_NAME = 253

_VERSION = re.compile(rb"v=spf1(?: |\Z)", re.IGNORECASE)
_MODIFIER = re.compile(r"(?P<name>[a-z][a-z0-9._-]*)=(?P<value>.*)\Z", re.IGNORECASE | re.DOTALL)
_LENGTH = r"(?:0|[1-9][0-9]{0,2})"
_DIRECTIVE = re.compile(
    rf"(?P<qualifier>[+?~-]?)(?P<name>[a-z0-9]+)(?P<argument>:.*?)?(?:/(?P<first>{_LENGTH}))?(?://(?P<second>{_LENGTH}))?\Z",
    re.IGNORECASE | re.DOTALL,
)
_TRANSFORMERS = r"(?P<count>0*[1-9][0-9]*)?(?P<reverse>r?)(?P<delimiters>[.+,/_=-]*)"
_MACRO = re.compile(rf"%(?:\{{(?P<letter>[slodiphvcrt]){_TRANSFORMERS}\}}|[%_-])", re.IGNORECASE)


def _macro_string(literals: str, letters: str) -> str:
    transformers = re.sub(r"\?P<\w+>", "?:", _TRANSFORMERS)
    return rf"(?:[{literals}]|%(?:\{{[{letters}]{transformers}\}}|[%_-]))"


_CHARACTER = _macro_string("!-$&-~", "slodiphv")
_MACRO_STRING = re.compile(rf"{_CHARACTER}*\Z", re.IGNORECASE)
_TOP_LABEL = r"\.(?:[0-9a-z]*[a-z][0-9a-z]*|[0-9a-z]+-[0-9a-z-]*[0-9a-z])\.?"
_DOMAIN_SPEC = re.compile(rf"{_CHARACTER}*?(?:{_TOP_LABEL}|(?=%){_CHARACTER})\Z", re.IGNORECASE)
_ASCII = r"\x00-$&-\x7f"  # all but the percent sign; what is not printable will not be printed
_EXPLANATION = re.compile(rf"{_macro_string(_ASCII, 'slodiphvcrt')}*\Z", re.IGNORECASE)
_CLIENTS_WORDS = re.compile(r"%\{[slpihc]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Term:
    """One directive or modifier. `domain` is its domain-spec, the value of a modifier; `lengths` those of prefixes.

    `qualifier` is empty for a modifier; `network` belongs to `ip4` and `ip6`.
    """

    text: str
    name: str
    qualifier: str = ""
    domain: str = ""
    network: IPv4Network | IPv6Network | None = None
    lengths: tuple[int, int] = (32, 128)

    @property
    def is_by_client(self) -> bool:
        """Whether the client or whoever sends through it has a say in it: macros of sender, HELO, address or name."""
        return _CLIENTS_WORDS.search(self.domain) is not None


@dataclass(frozen=True, slots=True)
class SpfRecord:
    """The terms of a record in their order, and what is wrong with it, in words for people."""

    terms: tuple[Term, ...]
    problems: tuple[str, ...]

    @property
    def directives(self) -> Iterator[Term]:
        """The mechanisms with their qualifiers."""
        return (term for term in self.terms if term.qualifier)

    def modifier(self, name: str) -> Term | None:
        """Return the modifier of this name."""
        return next((term for term in self.terms if term.name == name and not term.qualifier), None)


def find_records(texts: Iterable[object]) -> list[bytes]:
    """Return those of the TXT records of a name that are SPF records (section 4.5)."""
    return [text for text in texts if isinstance(text, bytes) and _VERSION.match(text)]


def parse(record: bytes) -> SpfRecord:
    """Return the terms of an SPF record, which begins with its version."""
    return _known_record(record) if len(record) <= _MAX_CACHED else _parse(record)


def _parse(record: bytes) -> SpfRecord:
    if len(record) > _MAX_RECORD:
        return SpfRecord((), (f"the record is longer than {_MAX_RECORD} bytes",))
    terms: list[Term] = []
    problems: list[str] = []
    for word in filter(None, record.decode("ascii", "replace").split(" ")[1:]):
        try:
            term = _modifier(word, *match.groups()) if (match := _MODIFIER.match(word)) else _directive(word)
        except ValueError as error:
            problems.append(f"{printable(word, 80)} {error}")
            continue
        if term.name in MODIFIERS and any(other.name == term.name for other in terms):
            problems.append(f"{term.name}= appears twice")
        terms.append(term)
    return SpfRecord(tuple(terms), tuple(problems))


_known_record = lru_cache(maxsize=256)(_parse)


def _modifier(word: str, name: str, value: str) -> Term:
    """Return a modifier; one that is not known is ignored, once it is well-formed. Raises ValueError."""
    name = name.lower()
    if name in MODIFIERS:
        _require_domain(value)
    elif not _MACRO_STRING.match(value):
        raise ValueError("has a malformed macro")
    return Term(word, name, domain=value)


def _directive(word: str) -> Term:
    """Return a mechanism with its qualifier. Raises ValueError with what follows the word in a sentence."""
    match = _DIRECTIVE.match(word)
    name = match["name"].lower() if match else ""
    if match is None or name not in MECHANISMS:
        raise ValueError(f"is not a mechanism{_suggestion(word)}")
    argument, qualifier = match["argument"], match["qualifier"] or "+"
    lengths = [None if text is None else int(text) for text in match.group("first", "second")]
    if name in ("ip4", "ip6"):
        return Term(word, name, qualifier, network=_network(name, argument, *lengths))
    if name in ("a", "mx"):
        first, second = (32 if lengths[0] is None else lengths[0]), (128 if lengths[1] is None else lengths[1])
        if first > 32 or second > 128:
            raise ValueError("has a malformed prefix length: at most /32 for IPv4, //128 for IPv6")
    elif lengths != [None, None]:
        raise ValueError("has a prefix length, which only a, mx, ip4 and ip6 take")
    else:
        first, second = 32, 128
    if name == "all" and argument is not None:
        raise ValueError("has an argument: all takes no argument")
    if argument is None and name in ("include", "exists"):
        raise ValueError("lacks its domain: the domain is missing")
    if argument is not None:
        _require_domain(argument[1:])
    return Term(word, name, qualifier, (argument or "")[1:], lengths=(first, second))


def _suggestion(word: str) -> str:
    """Return what a word that is no mechanism was probably meant to be."""
    name = re.split("[:/=]", word.lstrip("+?~-"))[0].lower()
    if name in MODIFIERS:
        return f"; did you mean {name}=?"
    if name in MECHANISMS:
        return f": what comes after {name} is malformed"
    close = get_close_matches(name, MECHANISMS, 1)
    return f"; did you mean {close[0]}?" if close else ""


def _network(name: str, argument: str | None, length: int | None, second: int | None) -> IPv4Network | IPv6Network:
    version, most = int(name[2]), 32 if name == "ip4" else 128
    if second is not None or (length or 0) > most:
        raise ValueError(f"has a malformed prefix length: /0 to /{most} is allowed")
    text = (argument or ":")[1:]
    try:
        address = ip_address(text)
        if isinstance(address, IPv6Address) and address.scope_id is not None:
            address = ip_address("")  # a zone index
        network = ip_network((address, most if length is None else length), strict=False)
    except ValueError:
        raise ValueError("has a malformed address: that is not an address or network") from None
    if network.version != version:
        raise ValueError(f"has the wrong name: that is an address for ip{network.version}")
    return network


def _require_domain(text: str) -> None:
    """Raise ValueError unless `text` is a domain-spec."""
    if not text:
        raise ValueError("lacks its domain: the domain is missing")
    if len(text) > _MAX_TERM:
        raise ValueError(f"has a domain of more than {_MAX_TERM} characters")
    if _DOMAIN_SPEC.match(text):
        return
    if set(text) <= set("0123456789."):
        raise ValueError(f"has an address for its domain; did you mean ip4:{text}?")
    why = "a macro in it is malformed" if "%" in text else "it takes two labels, of which the last is no number"
    raise ValueError(f"has a malformed domain: {why}")


def expand(text: str, values: Mapping[str, str]) -> str:
    """Return a macro-string with its macros replaced (section 7); `values` by lower-case letter."""
    return _MACRO.sub(lambda match: _expansion(match, values), text)


def expand_name(text: str, values: Mapping[str, str]) -> str:
    """Return the name that a domain-spec stands for, cut from the left to what the DNS allows."""
    name = expand(text, values).lower().removesuffix(".")
    if len(name) <= _MAX_NAME:
        return name
    cut = name[-_MAX_NAME:]
    return cut if name[-_MAX_NAME - 1] == "." else cut.partition(".")[2]


def expand_explanation(text: str, values: Mapping[str, str]) -> str:
    """Return the text of an explanation (section 6.2); empty if it is malformed."""
    return expand(text, values) if len(text) <= _MAX_EXPLANATION and _EXPLANATION.match(text) else ""


def _expansion(match: re.Match[str], values: Mapping[str, str]) -> str:
    letter = match["letter"]
    if letter is None:
        return {"%%": "%", "%_": " ", "%-": "%20"}[match[0]]
    value = values[letter.lower()]
    if match["count"] or match["reverse"] or match["delimiters"]:
        parts = re.split(f"[{re.escape(match['delimiters'] or '.')}]", value)
        if match["reverse"]:
            parts.reverse()
        value = ".".join(parts[-int(match["count"] or 0) :])
    return quote(value, safe="~") if letter.isupper() else value
