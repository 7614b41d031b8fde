# SPDX-License-Identifier: GPL-3.0-or-later
"""Which keys of a table of exact keys a lookup can ask for, so that the others are told to whoever wrote them.

Each key has a shape (a host name, a mailbox, the beginning of an address, ...), and a lookup asks for keys of some
shapes only: that is the table `ASKED_SHAPES`, as a real Postfix has it (tests/same_as_postfix/odd_keys.txt). What it
never asks for is an entry that never counts, be it a mistake in the key (`*.example.com`, `192.168.`) or a key in a
table of another kind (a mailbox in a table of clients).

Known limit: a word that may be a top-level domain or a user (`postmaster` in a table of recipients) is left alone.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv6Address, ip_address
from socket import AF_INET6, inet_ntop, inet_pton

from gatekeeper.checks.base.dns_lookups import a_label
from gatekeeper.core.units import parse_network
from gatekeeper.core.wide_networks import is_wide
from gatekeeper.postfix.hostname_syntax import is_address, is_literal

MAX_SAMPLES = 20
"""Keys of one shape that are told with their lines; any more are only counted."""


class Shape(StrEnum):
    """What a key looks like; the value is its name for people."""

    NAME = "a host name"
    ADDRESS = "an address"
    PREFIX = "the beginning of an address"
    NETWORK = "a network"
    NETWORK_ADDRESS = "the first address of a network"
    LITERAL = "an address in brackets"
    MAILBOX = "a mailbox"
    LOCAL = "a mailbox of any domain"
    AT_DOMAIN = "all mailboxes of a domain"
    NULL = "the null sender"
    U_LABEL = "a domain in its own script"
    DOTTED = "a domain with a dot before it"
    FINGERPRINT = "a fingerprint"
    WILD = "a pattern"
    ANGLED = "a word in angle brackets"
    OTHER = "neither a name nor an address nor a mailbox"


class Asked(StrEnum):
    """What a table is asked for; the value says it to people."""

    CLIENT = "clients, by name and address"
    SERVER = "servers, by name and address"
    SERVER_ADDRESS = "servers, by address"
    HELO = "HELO names"
    DOMAIN = "domains"
    SENDER = "senders"
    RECIPIENT = "recipients"
    LOGIN = "logins"
    OWNER = "the owners of senders"
    CERTIFICATE = "fingerprints of certificates"
    KNOWN_CERTIFICATE = "fingerprints of certificates that are let through"
    HOST = "hosts, by name and whole address"
    DOTTED_HOST = "hosts, by name and whole address, a dot standing for what is below a domain"

    @property
    def has_values(self) -> bool:
        """Whether right-hand sides are not actions but texts."""
        return self in (Asked.OWNER, Asked.KNOWN_CERTIFICATE, Asked.HOST, Asked.DOTTED_HOST)

    @property
    def has_addresses(self) -> bool:
        """Whether it is, among other things, addresses: else a cidr: table never matches."""
        return self in (Asked.CLIENT, Asked.SERVER, Asked.SERVER_ADDRESS, Asked.HELO, Asked.HOST, Asked.DOTTED_HOST)


_MAILBOXES = frozenset({Shape.NAME, Shape.LITERAL, Shape.MAILBOX, Shape.LOCAL, Shape.AT_DOMAIN, Shape.U_LABEL})
_ADDRESSES = frozenset({Shape.ADDRESS, Shape.PREFIX, Shape.NETWORK, Shape.NETWORK_ADDRESS})
ASKED_SHAPES: Mapping[Asked, frozenset[Shape]] = {
    Asked.CLIENT: _ADDRESSES | {Shape.NAME},
    Asked.SERVER: _ADDRESSES | {Shape.NAME},
    Asked.SERVER_ADDRESS: _ADDRESSES,
    Asked.HELO: frozenset({Shape.NAME, Shape.ADDRESS, Shape.NETWORK_ADDRESS, Shape.LITERAL, Shape.U_LABEL}),
    Asked.DOMAIN: frozenset({Shape.NAME, Shape.LITERAL, Shape.U_LABEL}),
    Asked.SENDER: _MAILBOXES | {Shape.NULL},
    Asked.RECIPIENT: _MAILBOXES,
    Asked.LOGIN: frozenset(Shape) - {Shape.AT_DOMAIN, Shape.LOCAL, Shape.NETWORK, Shape.NULL, Shape.WILD, Shape.ANGLED},
    Asked.OWNER: frozenset({Shape.NAME, Shape.PREFIX, Shape.MAILBOX, Shape.AT_DOMAIN, Shape.U_LABEL, Shape.OTHER}),
    Asked.CERTIFICATE: frozenset({Shape.FINGERPRINT}),
    Asked.KNOWN_CERTIFICATE: frozenset({Shape.FINGERPRINT}),
    Asked.HOST: frozenset({Shape.NAME, Shape.ADDRESS, Shape.NETWORK_ADDRESS}),
    Asked.DOTTED_HOST: frozenset({Shape.NAME, Shape.ADDRESS, Shape.NETWORK_ADDRESS, Shape.DOTTED}),
}
"""The shapes of the keys that each lookup asks for."""

_OCTET = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_LABEL = "[a-z0-9_]++(?:-++[a-z0-9_]++)*+"
_NAME = rf"{_LABEL}(?:\.{_LABEL})*+"
_LOCAL = r'(?:[^\s"*<>()\[\]:;@\\,]+|"(?:\\.|[^"\\])*")'
_SHAPES: tuple[tuple[Shape, str], ...] = (
    (Shape.WILD, r"\d+(?:\.\d+){0,2}(?:\.x)+"),
    (Shape.ADDRESS, rf"{_OCTET}(?:\.{_OCTET}){{3}}"),
    (Shape.PREFIX, rf"{_OCTET}(?:\.{_OCTET}){{0,2}}|[1-9]\d{{0,3}}"),  # 2001 begins an IPv6 address
    (Shape.NAME, _NAME),
    (Shape.MAILBOX, rf"{_LOCAL}@(?:{_NAME}|\[[0-9a-z.:]+\])"),
    (Shape.LOCAL, rf"{_LOCAL}@"),
    (Shape.AT_DOMAIN, rf"@{_NAME}"),
    (Shape.NULL, "<>"),
    (Shape.ANGLED, "<[^<>]+>"),
    (Shape.DOTTED, rf"\.{_NAME}"),
    (Shape.FINGERPRINT, r"[0-9a-f]{2}(?::[0-9a-f]{2}){15,}"),
)
_SHAPE = re.compile("|".join(f"(?P<{shape.name}>{pattern})" for shape, pattern in _SHAPES), re.ASCII | re.IGNORECASE)
_BY_GROUP = {shape.name: shape for shape in Shape}
_PREFIX6 = re.compile(r"(?:0|[1-9a-f][0-9a-f]{0,3})(?::(?:0|[1-9a-f][0-9a-f]{0,3})){0,6}:?")


def shape_of(key: str) -> Shape:
    """Return the shape of a key that has been folded."""
    if found := _SHAPE.fullmatch(key):
        shape = _BY_GROUP[found.lastgroup or ""]
        numeric = shape is Shape.NAME and key[-1].isdigit() and key.rpartition(".")[2].isdecimal()
        return Shape.OTHER if numeric else shape  # no host name ends in a number
    if "*" in key:
        return Shape.WILD
    if not key.isascii():
        plain = shape_of(re.sub(r"[^\x00-\x7f]", "x", key))
        ascii_domain = key.rpartition("@")[2].isascii()
        return plain if plain is Shape.LOCAL or ascii_domain or plain is Shape.OTHER else Shape.U_LABEL
    if "/" in key:
        return Shape.NETWORK if _network(key) else Shape.OTHER
    if key.startswith("["):
        return Shape.LITERAL if key.endswith("]") and (is_literal(key[1:-1]) or is_address(key[1:-1])) else Shape.OTHER
    return _shape_of_ipv6(key) if ":" in key else Shape.OTHER


def _shape_of_ipv6(key: str) -> Shape:
    try:
        packed = inet_pton(AF_INET6, key)  # ten times as fast as ip_address()
    except (OSError, ValueError):
        return Shape.PREFIX if _PREFIX6.fullmatch(key) else Shape.OTHER
    if inet_ntop(AF_INET6, packed) != key or key.startswith("::ffff:"):
        return Shape.OTHER
    return Shape.NETWORK_ADDRESS if key.endswith("::") and key != "::" else Shape.ADDRESS


def _network(key: str) -> bool:
    try:
        parse_network(key)
    except ValueError:
        return False
    return True


@dataclass(slots=True)
class SeenKeys:
    """The shapes of the keys in a table, each with the first keys that have it."""

    counts: dict[Shape, int] = field(default_factory=dict)
    samples: dict[Shape, list[tuple[int, str]]] = field(default_factory=dict)

    def add(self, line: int, key: str) -> Shape:
        """Add a key that has been folded, and return its shape."""
        shape = shape_of(key)
        count = self.counts[shape] = self.counts.get(shape, 0) + 1
        if count <= MAX_SAMPLES:
            self.samples.setdefault(shape, []).append((line, key))
        return shape

    def remarks(self, asked: frozenset[Asked]) -> Iterator[tuple[int, str]]:
        """Yield line and warning for each key that is never asked for, or asked for otherwise than one would think."""
        for shape, keys in self.samples.items():
            fitting = frozenset(one for one in asked if shape in ASKED_SHAPES[one])
            explain = _explain_fitting(shape, fitting) if fitting else lambda key: _explain_never(key, asked)
            found = [(line, what) for line, key in keys if (what := explain(key))]
            yield from found
            if found and (more := self.counts[shape] - len(keys)):
                yield 0, f"and {more} more keys like {keys[0][1]!r}"


def _explain_fitting(shape: Shape, asked: frozenset[Asked]) -> Callable[[str], str]:
    """Return what is to be said about keys of a shape that lookups do ask for."""
    match shape:
        case Shape.NETWORK if Asked.LOGIN not in asked:
            return _explain_network
        case Shape.AT_DOMAIN if Asked.OWNER not in asked:
            return lambda key: (
                f"Postfix never matches {key!r} here, but gatekeeper does; write {key[1:]!r}, "
                "which covers subdomains too"
            )
        case Shape.NETWORK_ADDRESS if asked & {Asked.CLIENT, Asked.SERVER, Asked.SERVER_ADDRESS, Asked.HOST}:
            return lambda key: (
                f"{key!r} matches this one address, as in Postfix; a network is a line of a cidr: table, {key}/64"
            )
        case Shape.U_LABEL if Asked.LOGIN not in asked:
            return lambda key: (
                f"{key!r} matches only where it is said in this script (SMTPUTF8), as in Postfix; "
                f"add a line for {_in_ascii(key)!r}"
            )
    return lambda _key: ""


def _explain_network(key: str) -> str:
    who = "neither Postfix nor gatekeeper matches" if is_wide(parse_network(key)) else "Postfix never matches"
    but = "" if who.startswith("neither") else ", but gatekeeper does"
    return f"{who} the network {key} here{but}; put it into a cidr: table"


def _in_ascii(key: str) -> str:
    local, at, domain = key.rpartition("@")
    return f"{local}{at}{a_label(domain)}"


def _explain_never(key: str, asked: frozenset[Asked]) -> str:
    never = f"neither Postfix nor gatekeeper matches {key!r} here"
    if meant := _meant_by(key, asked):
        return f"{never}; {meant}"
    return f"{never}: it is {shape_of(key)}, and this table is asked for {' and for '.join(sorted(asked))}"


def _meant_by(key: str, asked: frozenset[Asked]) -> str:
    """Return what to write in place of a key that is never asked for; empty if that cannot be told."""
    if not key.isascii():
        return _write(_in_ascii(key), asked)
    for pattern, advise in _ADVICE:
        found = pattern.fullmatch(key)
        if found and (advice := advise(found[found.lastindex or 0], asked)):
            return advice
    return ""


def _write(text: str, asked: frozenset[Asked]) -> str:
    """Return the advice to write `text`, if it is asked for."""
    shape = shape_of(text)
    if shape is Shape.NETWORK and not asked & {Asked.CLIENT, Asked.SERVER, Asked.SERVER_ADDRESS}:
        return f"put {text} into a cidr: table" if any(one.has_addresses for one in asked) else ""
    if not any(shape in ASKED_SHAPES[one] for one in asked):
        return ""
    covers = shape is Shape.NAME and not asked <= {Asked.LOGIN, Asked.OWNER, Asked.DOTTED_HOST}
    return f"write {text!r}{', which covers subdomains too' if covers else ''}"


def _write_domain(name: str, asked: frozenset[Asked]) -> str:
    if asked <= {Asked.OWNER, Asked.LOGIN}:
        return f"write '@{name}'" if Asked.OWNER in asked else ""
    return f"write '.{name}'" if asked <= {Asked.DOTTED_HOST} else _write(name, asked)


def _write_network(text: str, asked: frozenset[Asked]) -> str:
    try:
        return _write(str(parse_network(text)), asked)
    except ValueError as error:
        return str(error).partition("; ")[2] if any(one.has_addresses for one in asked) else ""


def _write_prefix(prefix: str, asked: frozenset[Asked]) -> str:
    """Advise on the beginning of an IPv4 address: written as it is, or else as the network that it stands for."""
    octets = prefix.split(".")
    network = f"{'.'.join([*octets, '0', '0', '0'][:4])}/{8 * len(octets)}"
    return _write(prefix, asked) or _write_network(network, asked)


def _write_address(text: str, asked: frozenset[Asked]) -> str:
    """Advise on an address in any form."""
    if re.fullmatch(r"\d+(\.\d+){3}", text, re.ASCII):
        text = ".".join(str(int(octet[:9])) for octet in text.split("."))
    try:
        address = ip_address(text)
    except ValueError:
        return ""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return _write(str(mapped or address), asked)


def _write_range(_text: str, asked: frozenset[Asked]) -> str:
    return "write the networks of the range into a cidr: table" if any(one.has_addresses for one in asked) else ""


def _write_fingerprint(text: str, asked: frozenset[Asked]) -> str:
    return _write(":".join(re.findall("..", text)), asked)


def _no_alias(text: str, asked: frozenset[Asked]) -> str:
    advice = _write(text, asked)
    return f"this is not an alias file: {advice}" if advice else ""


def _pattern(_text: str, _asked: frozenset[Asked]) -> str:
    return "`*` means nothing in a table of exact keys; for patterns take a pcre: table"


_FULL4, _PART4, _PORT = rf"{_OCTET}(?:\.{_OCTET}){{3}}", rf"{_OCTET}(?:\.{_OCTET}){{0,2}}", r"(?::\d{1,5})?"
_ADVICE: tuple[tuple[re.Pattern[str], Callable[[str, frozenset[Asked]], str]], ...] = tuple(
    (re.compile(pattern, re.ASCII | re.IGNORECASE), advise)
    for pattern, advise in (
        (rf"[*@.]+({_NAME})\.?", _write_domain),
        (rf"({_LOCAL}@)\*", _write),
        (rf"({_PART4})(?:\.[*x])*\.?", _write_prefix),
        (rf"({_NAME}|{_LOCAL}@{_NAME}|{_FULL4})\.+", _write),
        (rf"({_LOCAL}@[.*]+{_NAME})", _pattern),
        (rf"\[(?:ipv6:)?([0-9a-f.:]+)\]{_PORT}", _write_address),
        (rf"\[({_NAME})\]{_PORT}", _write),
        (r"<(.+)>", _write),
        (r"(?:from|to|connect|spam):(.+)", _write),
        (r"([0-9a-f.:]+)", _write_address),
        (rf"({_NAME}|{_FULL4}):\d{{1,5}}", _write),
        (r"(.+):", _no_alias),
        (r"([0-9.]+-[0-9.]+)", _write_range),
        (r"((?:[0-9a-f]{2}){16,})", _write_fingerprint),
        (r"(.*/.*)", _write_network),
        (r"(.*\*.*)", _pattern),
    )
)
"""What people write, and the advice on what they mean by it: the first that helps is given."""
