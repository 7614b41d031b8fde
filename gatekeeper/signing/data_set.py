# SPDX-License-Identifier: GPL-3.0-or-later
"""OpenDKIM's data sets: `file:`, `refile:`, `csl:`, a bare path, a comma list; or a list of lines.

Reads them into entries with their location; what keys and values mean is up to the tables. As in OpenDKIM
(opendkim-db.c), `#` starts a comment anywhere, the key ends at the first white space, and the value is the rest. A
refile key is a pattern: `*` is any text, `+` and `.` are literal, the rest is a POSIX extended regular expression. A
KeyTable may hold private keys, so nothing that could be one is shown in a problem.
"""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gatekeeper.core import watched_files
from gatekeeper.core.problem import Problem
from gatekeeper.core.text_files import without_bom
from gatekeeper.dnsclient.names import with_u_labels

_TYPE = re.compile(r"([a-z]+):(?!:)", re.IGNORECASE)
_UNSUPPORTED = ("db", "dsn", "ldap", "ldapi", "ldaps", "lua", "memcache", "erlang", "mdb", "socket", "repute")
_KEY = re.compile(r"[A-Za-z0-9+/=]{32,}")
_ALLOWED = "allowed are file:PATH, refile:PATH, csl:LIST, the path of a file and a comma list"


@dataclass(frozen=True, slots=True)
class DataSetEntry:
    """One line, or one item of a list. `line` is 0 if it is not from a file."""

    line: int
    key: str
    value: str = ""

    def __repr__(self) -> str:
        return f"DataSetEntry({self.line}, {self.key!r}, ...)"


@dataclass(frozen=True, slots=True)
class DataSet:
    """The entries of a data set.

    `name` is the file, or the option that holds the list. `kind` is `file`, `refile`, `csl` or `list`.
    """

    name: str
    kind: str
    entries: tuple[DataSetEntry, ...]

    def location(self, entry: DataSetEntry) -> str:
        """Return where `entry` was read: `file:line`, or the option."""
        return f"{self.name}:{entry.line}" if entry.line else self.name

    def problem(self, entry: DataSetEntry, what: str, *, warning: bool = False) -> Problem:
        """Return a Problem at the location of `entry`. A key that ended up in the wrong field is not shown."""
        return Problem(self.name, entry.line, _KEY.sub("(a key?)", what), warning=warning)


def read(spec: str | Sequence[str], where: str, base: Path = Path()) -> tuple[DataSet, list[Problem]]:
    """Read the data set that `spec` names. Never raises.

    Relative paths start at `base`. `where` names the option, for lists and problems. If `spec` is a sequence, it is a
    list whose items are written like the lines of a file.
    """
    if not isinstance(spec, str):
        return DataSet(where, "list", tuple(_lines(spec, numbered=False))), []
    kind, rest = _kind(spec.strip(), base)
    if kind in ("file", "refile"):
        return _read_file(kind, base / rest, where)
    if kind == "csl":
        pairs = (item.partition("=") for item in rest.split(","))
        entries = (DataSetEntry(0, key.strip(), value.strip()) for key, _, value in pairs)
        return DataSet(where, "csl", tuple(entry for entry in entries if entry.key)), []
    return DataSet(where, "csl", ()), [Problem(where, 0, f"{kind}; {_ALLOWED}")]


def is_file(spec: str | Sequence[str], base: Path = Path()) -> bool:
    """Return whether `spec` names a file, rather than being the data set itself."""
    return isinstance(spec, str) and _kind(spec.strip(), base)[0] in ("file", "refile")


def _kind(spec: str, base: Path) -> tuple[str, str]:
    """Return the kind and the path or list; for an unsupported kind, what is wrong with it in place of the kind."""
    match = _TYPE.match(spec)
    if match is not None:
        name = match[1].lower()
        if name in ("file", "refile", "csl"):
            return name, spec[match.end() :].strip()
        if name in _UNSUPPORTED:
            return f"{name}: tables are not supported, write their contents to a text file", ""
        if not re.fullmatch(r"[0-9a-f]{1,4}", name):  # the beginning of an IPv6 address in a comma list
            return f"{name}: is not a type of table", ""
    if spec.startswith("/"):
        if spec.endswith(".db"):
            return "Berkeley DB files are not supported, name the text file that this one was made from", ""
        return "file", spec
    # `key_table = "KeyTable"` in gatekeeper.toml; OpenDKIM would take it for a list of one
    return "file" if os.path.isfile(base / spec) else "csl", spec


def _read_file(kind: str, path: Path, where: str) -> tuple[DataSet, list[Problem]]:
    name = str(path)
    try:
        # It may not be UTF-8: other bytes are kept as surrogates, and match nothing.
        text = without_bom(watched_files.read(path)).decode("utf-8", "surrogateescape")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        return DataSet(name, kind, ()), [
            Problem(where, 0, f"cannot read the table {name}: {reason}; fix the path, or write the file")
        ]
    lines = text.split("\n")
    entries = tuple(_lines(lines))
    if kind == "file":
        return DataSet(name, kind, entries), []
    # OpenDKIM cuts a refile line at its first white space, so an indented one is empty.
    indented = {entry for entry in entries if lines[entry.line - 1][0].isspace()}
    what = "a line of a refile that starts with white space does not count, as in OpenDKIM; remove the white space"
    problems = [Problem(name, entry.line, what, warning=True) for entry in entries if entry in indented]
    return DataSet(name, kind, tuple(entry for entry in entries if entry not in indented)), problems


def _lines(lines: Iterable[str], *, numbered: bool = True) -> Iterator[DataSetEntry]:
    for number, line in enumerate(lines, 1):
        fields = line.partition("#")[0].split(None, 1)
        if fields:
            yield DataSetEntry(number if numbered else 0, fields[0], fields[1].strip() if len(fields) > 1 else "")


def parents(domain: str) -> Iterator[str]:
    """Yield the parent domains with a leading dot: `.example.com`, `.com` for `mail.example.com`."""
    dot = domain.find(".")
    while dot >= 0:
        yield domain[dot:]
        dot = domain.find(".", dot + 1)


def pattern(text: str, *, ignore_case: bool = True) -> re.Pattern[str]:
    """Compile the refile pattern `text`, to be used with `search`. Raises ValueError.

    OpenDKIM puts `^` before and `$` after it, so `a|b` is anything that begins with a or ends with b.
    """
    try:
        return re.compile(_translate(f"^{_globbed(text)}$"), re.DOTALL | (re.IGNORECASE if ignore_case else 0))
    except (re.error, ValueError, OverflowError, RecursionError):
        raise ValueError(f"the pattern {text} is not a valid regular expression") from None


def without_final_dot(text: str) -> str:
    """Return the pattern `text` of a domain without a dot behind its last label: no domain in mail has one."""
    return text.removesuffix(".") if re.search(r"[^\W_]\.\Z", text) else text


def matches(compiled: re.Pattern[str], text: str) -> bool:
    """Return whether a pattern matches, as it is written with umlauts too: `text` has its domain as A-labels."""
    if compiled.search(text):
        return True
    return not compiled.pattern.isascii() and "xn--" in text and compiled.search(with_u_labels(text)) is not None


def is_literal(text: str) -> bool:
    """Return whether the refile pattern `text` matches only itself."""
    return not _SPECIAL.search(text)


_SPECIAL = re.compile(r"[*?()\[\]{}|^$\\]")


def _globbed(text: str) -> str:
    """Return what OpenDKIM's dkimf_mkregexp() turns a pattern into, without the anchors.

    It works character by character, so that an escaped dot becomes an escaped backslash and any character.
    """
    return re.sub(r"\*+", ".*", re.sub(r"[+.]", r"\\\g<0>", text))


_CLASSES = {
    "alpha": "a-zA-Z",
    "digit": "0-9",
    "alnum": "a-zA-Z0-9",
    "upper": "A-Z",
    "lower": "a-z",
    "space": r"\s",
    "blank": r" \t",
    "punct": r"!-/:-@\[-`{-~",
    "xdigit": "0-9a-fA-F",
    "print": " -~",
    "graph": "!-~",
    "cntrl": r"\x00-\x1f\x7f",
}
_TOKEN = re.compile(r"\\(.?)|\[(\^?\]?(?:\[:[a-z]+:\]|[^\]])*)\]|(.)", re.DOTALL)


def _translate(posix: str) -> str:
    """Translate a POSIX extended regular expression to Python's syntax."""

    def token(match: re.Match[str]) -> str:
        if match[2] is not None:
            return "[" + _bracket(match[2]) + "]"
        if match[3] is not None:
            if match[3] == "[" or (match[3] == "(" and posix.startswith("?", match.end())):
                raise ValueError("a bracket is not closed, or it is a group that POSIX does not know")
            return r"\Z" if match[3] == "$" else match[3]
        # glibc knows \w \W \s \S \b \B and back-references; any other escaped character is literal
        return match[0] if match[1] and match[1] in "wWsSbB123456789" else re.escape(match[1] or "\\")

    return _TOKEN.sub(token, posix)


def _bracket(inside: str) -> str:
    """Translate the inside of a bracket expression: backslash and leading ] are literal, [:class:] is a class."""
    negated, inside = ("^", inside[1:]) if inside.startswith("^") else ("", inside)
    parts = re.split(r"\[:([a-z]+):\]", inside)
    plain = (re.sub(r"[\\\[\]&~|]", r"\\\g<0>", part) for part in parts[::2])
    classes = [_CLASSES.get(name, "") for name in parts[1::2]]
    return negated + "".join(text + name for text, name in zip(plain, [*classes, ""], strict=True))
