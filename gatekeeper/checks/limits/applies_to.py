# SPDX-License-Identifier: GPL-3.0-or-later
"""Whom a rule is for, or not: the words of `for`, `except` and `exceptions`, and the files that they name.

    "192.0.2.0/24", "mynetworks", "authenticated", "client:.example.net", "user:alice", "user:@example.com",
    "sender:news@example.com", "sender:<>", "recipient:@example.org", "user:/etc/gatekeeper/newsletters"

A file, as in Postfix's lists, stands for what is in it: the first word of each line, so that the source text of a
Postfix table serves too. Files are read once, at start and at a reload. Everything is compared without case.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from gatekeeper.core import watched_files
from gatekeeper.core.problem import Problem
from gatekeeper.core.request import UNKNOWN, Request, domain_of
from gatekeeper.core.units import HostBits, parse_network, unmap_network
from gatekeeper.pipeline.site import Site

MYNETWORKS, AUTHENTICATED = "mynetworks", "authenticated"
_KINDS = ("client", "user", "sender", "recipient")
_ALLOWED = (
    'allowed: "192.0.2.0/24", "mynetworks", "authenticated", "client:NAME", "client:.DOMAIN", "user:NAME", '
    '"user:@DOMAIN", "sender:ADDRESS", "sender:@DOMAIN", "recipient:…", or "user:/FILE" and so on'
)
_MOST = 1_000_000
"""Lines of a file."""


@dataclass(frozen=True, slots=True)
class SessionPattern:
    """One word: of which `kind` it is, and its value as far as it can be told without opening files."""

    text: str
    kind: str
    value: str

    @property
    def is_file(self) -> bool:
        """True if the value names a file."""
        return self.value.startswith(("/", "./"))

    def __str__(self) -> str:
        return self.text


def parse_session_pattern(value: Any) -> SessionPattern:
    """The word in `value`. Raises ValueError with what is allowed."""
    if isinstance(value, SessionPattern):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is nobody; {_ALLOWED}")  # noqa: TRY004 (pydantic wants ValueError)
    text = value.strip()
    kind, colon, rest = text.partition(":")
    if text in (MYNETWORKS, AUTHENTICATED):
        return SessionPattern(text, "client" if text == MYNETWORKS else "user", text)
    if not colon or kind not in _KINDS:
        if _network(text) is None:
            raise ValueError(f"{value!r} is nobody; {_ALLOWED}")
        return SessionPattern(text, "client", text)
    word = SessionPattern(text, kind, rest.strip())
    if not word.is_file:
        _entry(kind, word.value)
    return word


def _words(value: Any) -> Any:
    return [part for part in re.split(r"[\s,]+", value) if part] if isinstance(value, str) else value


SessionPatternList = Annotated[
    tuple[Annotated[SessionPattern, BeforeValidator(parse_session_pattern)], ...], BeforeValidator(_words)
]


@dataclass(frozen=True, slots=True)
class SessionPatterns:
    """Words and their files in a form that is quick to ask. `names` are by kind (`user`: alice, @example.com),
    `networks` by IP version and host bits.
    """

    mynetworks: bool
    authenticated: bool
    networks: Mapping[tuple[int, int], frozenset[int]]
    names: Mapping[str, frozenset[str]]

    def holds(self, request: Request, site: Site) -> bool:
        """True if any of the words is said of the session."""
        return self.holds_names(request) or self.holds_client(request, site)

    def holds_names(self, request: Request) -> bool:
        """The same by user, sender and recipient."""
        if request.sasl_user and (self.authenticated or _named(self.names.get("user"), request.sasl_user)):
            return True
        if self.names:
            for kind, address in (("sender", request.sender), ("recipient", request.recipient)):
                if address is not None and _named(self.names.get(kind), address or "<>"):
                    return True
        return False

    def holds_client(self, request: Request, site: Site) -> bool:
        """The same by the client."""
        address, name = request.client.address, request.client.name
        if address is not None:
            if self.mynetworks and site.is_internal(address):
                return True
            for (version, host_bits), networks in self.networks.items():
                if version == address.version and int(address) >> host_bits in networks:
                    return True
        names = self.names.get("client", frozenset())
        return bool(names) and name != UNKNOWN and not names.isdisjoint(_domains(name.lower()))


def read(words: Sequence[SessionPattern], folder: Path) -> tuple[SessionPatterns, list[Problem]]:
    """What `words` say, their files read (relative ones from `folder`), and what is wrong in these."""
    networks: dict[tuple[int, int], set[int]] = {}
    names: dict[str, set[str]] = {}
    problems: list[Problem] = []
    for word in words:
        if word.value in (MYNETWORKS, AUTHENTICATED):
            continue
        for entry in _file(word, folder, problems) if word.is_file else (_entry(word.kind, word.value),):
            if isinstance(entry, str):
                names.setdefault(word.kind, set()).add(entry)
            else:
                host_bits = entry.max_prefixlen - entry.prefixlen
                networks.setdefault((entry.version, host_bits), set()).add(int(entry.network_address) >> host_bits)
    values = {word.value for word in words}
    whom = SessionPatterns(
        mynetworks=MYNETWORKS in values,
        authenticated=AUTHENTICATED in values,
        networks={bits: frozenset(found) for bits, found in networks.items()},
        names={kind: frozenset(found) for kind, found in names.items()},
    )
    return whom, problems


def _file(word: SessionPattern, folder: Path, problems: list[Problem]) -> Iterator[str | IPv4Network | IPv6Network]:
    path = folder / word.value
    try:
        lines = watched_files.read(path).decode("utf-8", "surrogateescape").split("\n")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        problems.append(Problem(str(path), 0, f"cannot be read: {reason}"))
        return
    if len(lines) > _MOST:
        problems.append(Problem(str(path), _MOST, f"has more than {_MOST} lines"))
        return
    for number, line in enumerate(lines, 1):
        # A line that begins with white space continues the one before, as in Postfix's tables.
        if not line.strip() or line[0] in " \t#":
            continue
        try:
            yield _entry(word.kind, line.split()[0])
        except ValueError as error:
            problems.append(Problem(str(path), number, str(error)))


def _entry(kind: str, value: str) -> str | IPv4Network | IPv6Network:
    """One value of a kind. Raises ValueError."""
    name = value.lower()
    if kind == "client":
        if (network := _network(name)) is not None:
            return network
        if re.fullmatch(r"\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*", name) and not name.replace(".", "").isdigit():
            return name
        raise ValueError(f'{value!r} is no client; allowed: "192.0.2.0/24", "mail.example.net", ".example.net"')
    if not name or re.search(r"\s", name):
        raise ValueError(f'{value!r} is no {kind}; allowed: a name, or "@example.com" for all of a domain')
    if kind != "user" and "@" not in name and not (kind == "sender" and name == "<>"):
        raise ValueError(
            f'{value!r} is no {kind}; allowed: "someone@example.com", or "@example.com" for the whole domain'
        )
    return name


def _network(text: str) -> IPv4Network | IPv6Network | None:
    """The network in `text`, None if it is none. Raises ValueError for one that says more than its prefix."""
    try:
        return unmap_network(parse_network(text))
    except HostBits:
        raise
    except ValueError:
        return None


def _named(names: frozenset[str] | None, value: str) -> bool:
    if not names:
        return False
    value = value.lower()
    return value in names or f"@{domain_of(value)}" in names


def _domains(name: str) -> Iterator[str]:
    """`a.b.c` with `.b.c` and `.c`, what names it in Postfix's lists."""
    yield name
    while "." in name.lstrip("."):
        name = name.lstrip(".").partition(".")[2]
        yield f".{name}"
