# SPDX-License-Identifier: GPL-3.0-or-later
"""Patterns for sessions that a limit applies to: the words of `for`, `except` and `exceptions`, and files of them.

    "192.0.2.0/24", "mynetworks", "authenticated", "client:.example.net", "user:alice", "user:@example.com",
    "sender:news@example.com", "sender:<>", "recipient:@example.org", "user:/etc/gatekeeper/newsletters",
    "!192.0.2.9", "cidr:/etc/postfix/partners"

What says who the client is, is one list in order (postfix/client_list.py): the first word that matches decides, and
after `!` it takes the client out: "!192.0.2.9, 192.0.2.0/24".

A file, as in Postfix's lists, stands for its contents: the first word of each line, so that the source text of a
Postfix table can be used as well. Files are read once, at start and at a reload. Comparison ignores case.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from gatekeeper.auth.domains import configured_domain, configured_mailbox
from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.tables.client_list_reader import read_client_list
from gatekeeper.checks.tables.reader import FILELESS_READERS, READERS
from gatekeeper.core import watched_files
from gatekeeper.core.problem import Problem
from gatekeeper.core.request import UNKNOWN, Request, domain_of
from gatekeeper.core.text_files import without_bom
from gatekeeper.core.units import HostBits, parse_network, unmap_network
from gatekeeper.pipeline.site import Site
from gatekeeper.postfix.client_list import ClientList, ClientPattern
from gatekeeper.postfix.restriction_list import split_if_string

MYNETWORKS, AUTHENTICATED = "mynetworks", "authenticated"
_KINDS = ("client", "user", "sender", "recipient")
_INVALID = "is not a client, user or address"
_ALLOWED = (
    'allowed: "192.0.2.0/24", "mynetworks", "authenticated", "client:NAME", "client:.DOMAIN", "user:NAME", '
    '"user:@DOMAIN", "sender:ADDRESS", "sender:@DOMAIN", "recipient:…", "user:/FILE" and so on, "cidr:/FILE", "!CLIENT"'
)
_MAX_LINES = 1_000_000
"""Most lines that a file may have."""


@dataclass(frozen=True, slots=True)
class SessionPattern:
    """One word: its kind (client, user, sender or recipient) and its value, which may be the name of a file.

    The value of kind `table` is a lookup table for clients. What is not `included` takes clients out.
    """

    text: str
    kind: str
    value: str
    included: bool = True

    @property
    def is_file(self) -> bool:
        """Whether the value names a file."""
        return self.value.startswith(("/", "./", "../"))

    def __str__(self) -> str:
        return self.text


def parse_session_pattern(value: Any) -> SessionPattern:
    """Parse one word of `for`, `except` or `exceptions`. Raises ValueError with what is allowed."""
    if isinstance(value, SessionPattern):
        return value
    if not isinstance(value, str):
        raise ValueError(f"{value!r} {_INVALID}; {_ALLOWED}")  # noqa: TRY004 (pydantic wants ValueError)
    text = value.strip()
    bare = text.lstrip("!")
    included = (len(text) - len(bare)) % 2 == 0
    kind, colon, rest = bare.partition(":")
    if bare in (MYNETWORKS, AUTHENTICATED):
        pattern = SessionPattern(text, "client" if bare == MYNETWORKS else "user", bare, included)
    elif colon and kind in (*READERS, *FILELESS_READERS):
        return SessionPattern(text, "table", bare, included)
    elif not colon or kind not in _KINDS:
        if _network(bare) is None:
            raise ValueError(f"{value!r} {_INVALID}; {_ALLOWED}")
        return SessionPattern(text, "client", bare, included)
    else:
        pattern = SessionPattern(text, kind, rest.strip(), included)
    if pattern.kind != "client" and not included:
        raise ValueError(f'{value!r} takes nobody out; allowed after "!" are clients')
    if not pattern.is_file and pattern.value not in (MYNETWORKS, AUTHENTICATED):
        _parse_value(pattern.kind, pattern.value)
    return pattern


SessionPatternList = Annotated[
    tuple[Annotated[SessionPattern, BeforeValidator(parse_session_pattern)], ...], BeforeValidator(split_if_string)
]


@dataclass(frozen=True, slots=True)
class SessionPatterns:
    """Patterns, with their files read, in a form that is quick to match.

    `names` are by kind (`user`: alice, @example.com). `clients` are lists to be asked in order, or whether mynetworks
    are included there.
    """

    authenticated: bool
    clients: tuple[ClientList | bool, ...]
    names: Mapping[str, frozenset[str]]

    def matches(self, request: Request, site: Site) -> bool:
        """Return whether any of the patterns matches the session."""
        return self.matches_names(request) or self.matches_client(request, site)

    def matches_names(self, request: Request) -> bool:
        """Return whether a pattern matches the user, the sender or the recipient."""
        if request.sasl_user and (self.authenticated or _contains(self.names.get("user"), request.sasl_user)):
            return True
        if self.names:
            for kind, address in (("sender", request.sender), ("recipient", request.recipient)):
                if address is not None and _contains(self.names.get(kind), address or "<>"):
                    return True
        return False

    def matches_client(self, request: Request, site: Site) -> bool:
        """Return whether a pattern matches the client."""
        client = request.client
        if client.name == UNKNOWN:
            client = client._replace(name="")
        for clients in self.clients:
            if isinstance(clients, bool):
                if site.is_internal(request.client):
                    return clients
                continue
            included, found = clients.decide(client)
            if found:
                return included
        return False


def load_patterns(patterns: Sequence[SessionPattern], folder: Path) -> tuple[SessionPatterns, list[Problem]]:
    """Return `patterns` with their files read (relative paths start at `folder`), and the mistakes in these."""
    names: dict[str, set[str]] = {}
    problems: list[Problem] = []
    clients: list[list[ClientPattern] | bool] = [[]]
    for pattern in patterns:
        if pattern.value == MYNETWORKS:
            clients += [pattern.included, []]
            continue
        if pattern.value == AUTHENTICATED:
            continue
        here = clients[-1]
        assert isinstance(here, list)
        if pattern.kind == "table":
            here.append(ClientPattern(pattern.text, "table", pattern.value, pattern.included))
            continue
        for value in (
            _read_file(pattern, folder, problems) if pattern.is_file else (_parse_value(pattern.kind, pattern.value),)
        ):
            if pattern.kind != "client":
                names.setdefault(pattern.kind, set()).add(str(value))
            else:
                kind: Literal["name", "network"] = "name" if isinstance(value, str) else "network"
                here.append(ClientPattern(pattern.text, kind, value, pattern.included))
    loaded = SessionPatterns(
        authenticated=AUTHENTICATED in {pattern.value for pattern in patterns},
        clients=tuple(part if isinstance(part, bool) else _client_list(part, folder, problems) for part in clients),
        names={kind: frozenset(found) for kind, found in names.items()},
    )
    return loaded, problems


def _client_list(patterns: list[ClientPattern], folder: Path, problems: list[Problem]) -> ClientList:
    found, mistakes = read_client_list(
        patterns, "[checks.ratelimit]", SourceLine("[checks.ratelimit]"), folder, parents=False
    )
    problems += mistakes
    return found


def _read_file(
    pattern: SessionPattern, folder: Path, problems: list[Problem]
) -> Iterator[str | IPv4Network | IPv6Network]:
    path = folder / pattern.value
    try:
        lines = without_bom(watched_files.read(path)).decode("utf-8", "surrogateescape").split("\n")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        problems.append(Problem(str(path), 0, f"cannot be read: {reason}"))
        return
    if len(lines) > _MAX_LINES:
        problems.append(Problem(str(path), _MAX_LINES, f"has more than {_MAX_LINES} lines"))
        return
    for number, line in enumerate(lines, 1):
        # A line that begins with white space continues the one before, as in Postfix's tables.
        if not line.strip() or line[0] in " \t#":
            continue
        try:
            yield _parse_value(pattern.kind, line.split()[0])
        except ValueError as error:
            problems.append(Problem(str(path), number, str(error)))


def _parse_value(kind: str, value: str) -> str | IPv4Network | IPv6Network:
    """Parse the value of a pattern of `kind`. Raises ValueError with what is allowed."""
    name = _normal(value)
    if kind == "client":
        if (network := _network(name)) is not None:
            return network
        if (host := configured_domain(name)) and not name.replace(".", "").isdigit():
            return host
        raise ValueError(f'{value!r} is not a client; allowed: "192.0.2.0/24", "mail.example.net", ".example.net"')
    if not name or re.search(r"\s", name):
        raise ValueError(f'{value!r} is not a {kind}; allowed: a name, or "@example.com" for the whole domain')
    if kind != "user" and "@" not in name and not (kind == "sender" and name == "<>"):
        raise ValueError(
            f'{value!r} is not a {kind}; allowed: "someone@example.com", or "@example.com" for the whole domain'
        )
    return name


def _network(text: str) -> IPv4Network | IPv6Network | None:
    """Return the network in `text`, None if it is not a network. Raises HostBits for one with host bits set."""
    try:
        return unmap_network(parse_network(text))
    except HostBits:
        raise
    except ValueError:
        return None


def _normal(value: str) -> str:
    """Return a login or mailbox in lower case, with its domain, if it has one, in the form of auth/domains.py."""
    return (configured_mailbox(value) if "@" in value else value).lower()


def _contains(names: frozenset[str] | None, value: str) -> bool:
    if not names:
        return False
    value = _normal(value)
    return value in names or f"@{domain_of(value)}" in names
