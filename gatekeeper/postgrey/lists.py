# SPDX-License-Identifier: GPL-3.0-or-later
"""The conversion of postgrey's allow lists into access tables, with their comments (postgrey 1.37, read_*_whitelists).

Names and mailboxes go into an indexed table, networks into a cidr: table, `/patterns/` into a pcre: table: postgrey's
patterns are Perl's, and match the client's confirmed name or the whole recipient case-insensitively.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path

from gatekeeper.checks.tables.regex import compile_perl
from gatekeeper.core.problem import Problem
from gatekeeper.core.text_files import read_text

INDEXED, CIDR, PCRE = "hash", "cidr", "pcre"

_PATTERN = re.compile(r"/(\S+)/")
_IPV4 = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}(?:/\d{1,2})?", re.ASCII)
_IPV4_PREFIX = re.compile(r"\d{1,3}(?:\.\d{1,3}){1,2}", re.ASCII)
_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*", re.IGNORECASE | re.ASCII)
_MAILBOX = re.compile(r"[^\s@/]+@[a-z0-9_.-]*", re.IGNORECASE)
_BARE_SLASH = re.compile(r"(\\.)|/", re.DOTALL)

Convert = Callable[[str], tuple[str, str]]
"""Returns the type of table that an entry belongs in, and its key there. Raises ValueError with the reason."""


@dataclass(slots=True)
class AllowTables:
    """The tables made from one kind of list: lines with comments by type of table, and the entries not understood."""

    lines: dict[str, list[str]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    entries: int = 0

    def read(self, file: Path, convert: Convert) -> None:
        """Add the entries of one of postgrey's files. Raises OSError."""
        comments: list[str] = []
        for number, line in enumerate(read_text(file, "replace").splitlines(), 1):
            entry, _, comment = line.partition("#")
            entry = entry.strip()
            if not entry:
                comments += [f"#{comment}".rstrip()] if comment.strip() else []
                continue
            try:
                type, key = convert(entry)
            except ValueError as error:
                self.problems.append(Problem(str(file), number, f"{entry!a} {error}", warning=True))
            else:
                self.lines.setdefault(type, []).extend([*comments, f"{key} OK"])
                self.entries += 1
            comments = []


def convert_client(entry: str) -> tuple[str, str]:
    """Convert an entry of whitelist_clients; see Convert."""
    if match := _PATTERN.fullmatch(entry):
        return PCRE, _pattern(match[1])
    if _IPV4.fullmatch(entry) or entry.count(":") >= 2:
        return CIDR, _network(entry)
    if _IPV4_PREFIX.fullmatch(entry):
        bits = 8 * (entry.count(".") + 1)
        return CIDR, _network(f"{entry}{'.0' * (4 - bits // 8)}/{bits}")
    if _NAME.fullmatch(entry):
        return INDEXED, entry.lower()
    raise ValueError("is not a host name, network or /pattern/, and has never matched anything")


def convert_recipient(entry: str) -> tuple[str, str]:
    """Convert an entry of whitelist_recipients; see Convert."""
    if match := _PATTERN.fullmatch(entry):
        return PCRE, _pattern(match[1])
    if _MAILBOX.fullmatch(entry) or _NAME.fullmatch(entry):
        return INDEXED, entry.lower()
    raise ValueError("is not a mailbox, user@, domain or /pattern/")


def _network(text: str) -> str:
    try:
        return str(ip_network(text, strict=False))
    except ValueError as error:
        raise ValueError(f"is not a network: {error}") from None


def _pattern(text: str) -> str:
    compile_perl(text, "")
    return f"/{_BARE_SLASH.sub(lambda match: match[1] or chr(92) + '/', text)}/"


def table_files(kind: str, tables: AllowTables) -> Iterator[tuple[str, str, list[str]]]:
    """Yield type, file name and lines of each table that is not empty. `kind` is clients or recipients."""
    for type in (INDEXED, CIDR, PCRE):
        if lines := tables.lines.get(type):
            yield type, f"postgrey_{kind}{'' if type == INDEXED else '.' + type}", lines
