# SPDX-License-Identifier: GPL-3.0-or-later
"""Where in a TOML file each key stands, which tomllib does not tell.

One scan over a text that tomllib has accepted: it only has to know where keys, values and brackets end, and leaves what
they mean to tomllib. It is made when there is something to report, and takes about as long as reading the file did. In
a text that is not TOML, what stands before the mistake is found.
"""

import copy
import re
import tomllib
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import count
from typing import Any

from gatekeeper.core.problem import Problem

KeyPath = tuple[str | int, ...]
"""Keys and list indices from the top: `("policy", "listen", 0)`."""

# Runs of characters are possessive (`++`): what has been read is not divided in another way, so the scan is linear.
# Groups are not: Python before 3.11.5 gets possessive groups wrong that look ahead.
_GAP = r"(?:[ \t\r\n]++|#[^\n]*+)*"
_SPACE = r"[ \t]*+"
_TEXT = r'"(?:[^"\\\n]++|\\.)*"|' + r"'[^'\n]*+'"
# Up to two of the quotes at the end belong to the text.
_LONG_TEXT = r'"""(?:[^"\\]++|\\.|"(?!""))*"{3,5}|' + r"'''(?:[^']++|'(?!''))*'{3,5}"
_NAME = rf"(?:[A-Za-z0-9_-]++|{_TEXT})"
_KEY = rf"{_NAME}(?:{_SPACE}\.{_SPACE}{_NAME})*"
_ASSIGNED = rf"(?P<key>{_KEY}){_SPACE}="
_STATEMENT = re.compile(
    rf"{_GAP}(?:{_ASSIGNED}|\[\[{_SPACE}(?P<item>{_KEY}){_SPACE}\]\]|\[{_SPACE}(?P<table>{_KEY}){_SPACE}\])", re.DOTALL
)
_PART = re.compile(
    rf"{_GAP}(?:{_ASSIGNED}|(?P<opening>[\[{{])|(?P<closing>[\]}}])|(?P<comma>,)"
    rf"|(?P<plain>{_LONG_TEXT}|{_TEXT}|[^ \t\r\n#,\[\]{{}}][^\r\n#,\[\]{{}}]*+))",
    re.DOTALL,
)


class KeyLocations:
    """The line of each key path in `text`."""

    def __init__(self, text: str) -> None:
        self._text = text

    def line(self, path: Sequence[str | int]) -> int:
        """Return the line (from 1) of `path`, or of its nearest parent that is written down; 0 if none is."""
        for length in range(len(path), 0, -1):
            if (line := self._lines.get(tuple(path[:length]))) is not None:
                return line
        return 0

    def problem(self, file: str, path: KeyPath, what: str, *, warning: bool = False) -> Problem:
        """Return a Problem with what stands at `path` in `file`, which holds the text."""
        return Problem(file, self.line(path), what, warning)

    def line_inside(self, path: Sequence[str | int], below: int) -> int:
        """Return the line of what stands `below` line endings into the string at `path`."""
        line = self.line(path)
        if not line:
            return 0
        # TOML drops a line end that directly follows the opening quotes.
        return line + (line in self._opens) + below

    def without_text(self) -> "KeyLocations":
        """Return the same places for a process that is not to have the text."""
        bare = copy.copy(self)
        bare._lines = self._lines
        bare._opens = self._opens
        bare._text = ""
        return bare

    @cached_property
    def _opens(self) -> frozenset[int]:
        """The lines that end in the opening quotes of a string."""
        rows = enumerate(self._text.split("\n"), 1)
        return frozenset(number for number, row in rows if row.rstrip("\r").endswith(('"""', "'''")))

    @cached_property
    def _lines(self) -> dict[KeyPath, int]:
        found: dict[KeyPath, int] = {}
        line, counted = 1, 0
        with suppress(tomllib.TOMLDecodeError):
            for at, path in _written(self._text):
                line += self._text.count("\n", counted, at)
                counted = at
                found.setdefault(path, line)
        return found


def _written(text: str) -> Iterator[tuple[int, KeyPath]]:
    """Yield each path and the offset at which it is written, in the order of the text; a path may come again.

    Raises TOMLDecodeError.
    """
    newest: dict[KeyPath, int] = {}  # the last item so far, by array of tables
    table: KeyPath = ()
    at = 0
    while statement := _STATEMENT.match(text, at):
        kind = str(statement.lastgroup)
        path = table if kind == "key" else ()
        names = _names(statement[kind])
        for number, name in enumerate(names, 1):
            path = (*path, name)
            yield statement.start(kind), path
            if kind == "item" and number == len(names):
                newest[path] = newest.get(path, -1) + 1
            if path in newest:
                path = (*path, newest[path])
                yield statement.start(kind), path
        at = statement.end()
        if kind == "key":
            at = yield from _written_inside(text, at, path)
        else:
            table = path


def _written_inside(text: str, at: int, path: KeyPath) -> Generator[tuple[int, KeyPath], None, int]:
    """Yield the same for the value of `path`, which begins at offset `at`; return where it ends."""
    # Brackets that are open: what stands before them, and in a list the number of the next item. No recursion, since
    # this may run much deeper in calls than tomllib did. The first is the statement itself.
    around: list[tuple[KeyPath, Iterator[int] | None]] = [(path, None)]
    while part := _PART.match(text, at):
        kind, at = str(part.lastgroup), part.end()
        above, items = around[-1]
        if kind == "key":
            path = above
            for name in _names(part["key"]):
                path = (*path, name)
                yield part.start("key"), path
            continue
        if kind == "closing":
            around.pop()
        elif kind != "comma":
            if items is not None:
                path = (*above, next(items))
                yield part.start(kind), path
            if kind == "opening":
                around.append((path, count() if part["opening"] == "[" else None))
        if len(around) < 2:
            break
    return at


def _names(key: str) -> list[str]:
    """Return the parts of a dotted key, without their quotes. Raises TOMLDecodeError."""
    names = []
    rest: Any = tomllib.loads(f"{key} = 0")
    while rest:
        [(name, rest)] = rest.items()
        names.append(name)
    return names
