# SPDX-License-Identifier: GPL-3.0-or-later
"""DNS data in a file, from which fixtures (`dns.zone`), `explain --dns` and the tests' loopback DNS server answer.

Master-file lines (RFC 1035 section 5) with absolute names, with or without a final dot: `name [TTL] [IN] TYPE data`,
comments, quoted strings, parentheses, `$TTL`. A line that starts with a blank continues the name of the line before it.
In addition:

    name TYPE !SERVFAIL|!TIMEOUT|!NXDOMAIN|!NODATA      the result of one query
    name ANY  !TIMEOUT                                  and of all others for that name

A name that is not listed is NXDOMAIN; one that only has names below it exists and has no data. `*.name` works as in
RFC 4592: for every name below it that neither exists itself nor lies under another one that does. No I/O except in
`Zone.read`; knows all record types that dnspython knows.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self

import dns.exception
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdataset
import dns.rdatatype
import dns.rrset
import dns.tokenizer
import dns.ttl
from dns.rdatatype import RdataType

from gatekeeper.core.problem import ConfigError, Problem
from gatekeeper.core.text_files import read_text
from gatekeeper.dnsclient.names import to_name

DEFAULT_TTL = 300
MAX_CHAIN = 16
"""CNAMEs to follow before they count as a loop, as in dnspython."""

_STAR = b"*"
_PARTS = re.compile(r'"(?:\\.|[^"\\])*(?:"|$)|\\.|;.*|[()]')
"""What decides where an entry ends: parentheses, unless in a string, in a comment, or after a backslash."""


class Fault(StrEnum):
    """Why there are no records."""

    SERVFAIL = "SERVFAIL"
    TIMEOUT = "TIMEOUT"
    NXDOMAIN = "NXDOMAIN"
    NODATA = "NODATA"


@dataclass(frozen=True, slots=True)
class ZoneAnswer:
    """The answer section: CNAMEs in the order in which they were followed, then the records asked for.

    With a `fault` the records asked for are missing; CNAMEs that led to it may be there.
    """

    rrsets: tuple[dns.rrset.RRset, ...] = ()
    fault: Fault | None = None


@dataclass(slots=True)
class _Node:
    records: dict[RdataType, dns.rdataset.Rdataset] = field(default_factory=dict)
    faults: dict[RdataType, Fault] = field(default_factory=dict)

    @property
    def exists(self) -> bool:
        """False if the only data about this name is that it does not exist."""
        return bool(self.records) or any(fault is not Fault.NXDOMAIN for fault in self.faults.values())


class Zone:
    """The names of one file. Not a zone in the sense of the DNS: there are no delegations."""

    def __init__(self, nodes: dict[dns.name.Name, _Node]) -> None:
        self._nodes = nodes
        self._existing = {dns.name.root}
        for name, node in nodes.items():
            if node.exists:
                while name not in self._existing:
                    self._existing.add(name)
                    name = name.parent()

    @classmethod
    def parse(cls, text: str, file: str = "dns.zone") -> Self:
        """Parse `text`. Raises ConfigError with every mistake in it; `file` is the name that its Problems give."""
        parser = _Parser(file)
        for line, entry in _entries(text):
            parser.read(line, entry)
        if parser.problems:
            raise ConfigError(parser.problems)
        return cls(parser.nodes)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read and parse the file at `path`. Raises ConfigError, also if the file cannot be read."""
        try:
            return cls.parse(read_text(path, "surrogateescape"), str(path))
        except OSError as error:
            raise ConfigError([Problem(str(path), 0, f"cannot be read: {error.strerror}")]) from None

    def lookup(self, name: str | dns.name.Name, rdtype: str | RdataType) -> ZoneAnswer:
        """Answer a query as a recursive server would, CNAMEs followed."""
        wanted = dns.rdatatype.from_text(rdtype) if isinstance(rdtype, str) else rdtype
        qname = to_name(name) if isinstance(name, str) else name.canonicalize()
        if qname is None:
            return ZoneAnswer(fault=Fault.NXDOMAIN)
        chain: list[dns.rrset.RRset] = []
        while len(chain) <= MAX_CHAIN:
            found = self._at(qname, wanted)
            if isinstance(found, Fault):
                return ZoneAnswer(tuple(chain), found)
            chain.append(dns.rrset.from_rdata_list(qname, found.ttl, list(found)))
            if found.rdtype == wanted:
                return ZoneAnswer(tuple(chain))
            qname = found[0].target.canonicalize()
        return ZoneAnswer(fault=Fault.SERVFAIL)

    def _at(self, name: dns.name.Name, wanted: RdataType) -> dns.rdataset.Rdataset | Fault:
        """Return what one name has: the records, a CNAME instead of them, or a fault."""
        node = self._node(name)
        if node is None:
            return Fault.NODATA if name in self._existing else Fault.NXDOMAIN
        if wanted in node.faults:
            return node.faults[wanted]
        found = node.records.get(wanted) or node.records.get(RdataType.CNAME)
        if found is not None:
            return found
        return node.faults.get(RdataType.ANY) or (Fault.NODATA if node.exists else Fault.NXDOMAIN)

    def _node(self, name: dns.name.Name) -> _Node | None:
        node = self._nodes.get(name)
        if node is not None or name in self._existing:
            return node
        encloser = name.parent()
        while encloser not in self._existing:
            encloser = encloser.parent()
        return self._nodes.get(dns.name.Name((_STAR, *encloser.labels)))


def _entries(text: str) -> Iterator[tuple[int, str]]:
    """Yield (number of its first line, text) for each entry; a line with an open parenthesis continues on the next."""
    entry, first, depth = "", 0, 0
    for number, line in enumerate(text.split("\n"), 1):
        if not depth:
            entry, first = "", number
        entry += line.rstrip("\r") + "\n"
        for part in _PARTS.findall(line):
            depth += {"(": 1, ")": -1}.get(part, 0)
        depth = max(depth, 0)
        if not depth:
            yield first, entry
    if depth:
        yield first, entry


class _Parser:
    """Reads entries one by one into nodes, and continues after a mistake."""

    def __init__(self, file: str) -> None:
        self.nodes: dict[dns.name.Name, _Node] = {}
        self.problems: list[Problem] = []
        self._file = file
        self._ttl = DEFAULT_TTL
        self._owner: dns.name.Name | None = None

    def read(self, line: int, entry: str) -> None:
        """Add one entry, or record what is wrong with it."""
        try:
            self._read(dns.tokenizer.Tokenizer(entry, idna_codec=dns.name.IDNA_2008_Practical))
        except (dns.exception.DNSException, ValueError) as error:
            self.problems.append(Problem(self._file, line, str(error) or type(error).__name__))

    def _read(self, tokens: dns.tokenizer.Tokenizer) -> None:
        token = tokens.get(want_leading=True)
        if token.is_eol_or_eof():
            return
        if token.is_whitespace():
            token = tokens.get()
            if token.is_eol_or_eof():
                return
            tokens.unget(token)
            if self._owner is None:
                raise ValueError("a line that starts with a blank needs a name in a line before it")
        elif token.value.startswith("$"):
            self._directive(token.value.upper(), tokens)
            return
        else:
            self._owner = None  # if the name is wrong, so are the lines that continue it
            self._owner = tokens.as_name(token, dns.name.root).canonicalize()
        self._record(self._owner, tokens)

    def _directive(self, word: str, tokens: dns.tokenizer.Tokenizer) -> None:
        if word != "$TTL":
            raise ValueError(f"{word} is not known here; write absolute names; $TTL is allowed")
        self._ttl = dns.ttl.from_text(tokens.get_string())
        tokens.get_eol()

    def _record(self, owner: dns.name.Name, tokens: dns.tokenizer.Tokenizer) -> None:
        ttl, word = self._ttl, tokens.get_string()
        if word[:1].isdigit():
            ttl, word = dns.ttl.from_text(word), tokens.get_string()
        if word.upper() == "IN":
            word = tokens.get_string()
        try:
            rdtype = dns.rdatatype.from_text(word)
        except (dns.exception.DNSException, ValueError):
            raise ValueError(f"{word!a} is not a record type; a line is `name [TTL] [IN] TYPE data`") from None
        node = self.nodes.get(owner, _Node())
        token = tokens.get()
        if token.is_identifier() and token.value.startswith("!"):
            self._fault(node, rdtype, token.value[1:].upper())
            tokens.get_eol()
        else:
            tokens.unget(token)
            self._data(node, rdtype, ttl, tokens)
        self.nodes[owner] = node

    def _fault(self, node: _Node, rdtype: RdataType, word: str) -> None:
        if word not in Fault.__members__:
            raise ValueError(f"!{word} is not known; allowed are {', '.join('!' + fault for fault in Fault)}")
        if rdtype in node.records or node.faults.get(rdtype, word) != word:
            raise ValueError(f"{dns.rdatatype.to_text(rdtype)} of this name already has another answer further up")
        node.faults[rdtype] = Fault(word)

    def _data(self, node: _Node, rdtype: RdataType, ttl: int, tokens: dns.tokenizer.Tokenizer) -> None:
        kind = dns.rdatatype.to_text(rdtype)
        if dns.rdatatype.is_metatype(rdtype):
            raise ValueError(f"{kind} is a query type, not a record; it can only have one of !SERVFAIL, !TIMEOUT, ...")
        if rdtype in node.faults:
            raise ValueError(f"{kind} of this name already has another answer further up")
        present = {*node.records, rdtype}
        if RdataType.CNAME in present and len(present) > 1:
            raise ValueError("a name with a CNAME has no other records (RFC 1034 section 3.6.2)")
        try:
            data = dns.rdata.from_text(
                dns.rdataclass.IN, rdtype, tokens, dns.name.root, False, idna_codec=dns.name.IDNA_2008_Practical
            )
        except (dns.exception.DNSException, ValueError) as error:
            raise ValueError(f"this is not the data of a record of type {kind}: {error}") from None
        records = node.records.setdefault(rdtype, dns.rdataset.Rdataset(dns.rdataclass.IN, rdtype))
        if rdtype == RdataType.CNAME and records:
            raise ValueError("a name has one CNAME, and this one has another further up")
        records.add(data, ttl)
