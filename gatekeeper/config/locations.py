# SPDX-License-Identifier: GPL-3.0-or-later
"""Where in a TOML file each key stands, which tomllib does not tell.

The trick: parse growing prefixes of the file and see at which line a key first shows. That costs time, so it is done
only when there is something to report. Multi-line arrays and strings are closed for the attempt.
"""

import tomllib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from gatekeeper.core.problem import Problem

KeyPath = tuple[str | int, ...]
"""Keys and list indices from the top: `("policy", "listen", 0)`."""

_CLOSERS = ("", "]", '"""', "'''", "]]", '"""]', "''']")
_MOST_LINES = 5000
"""A longer file than anybody writes by hand gets no line numbers: the search takes quadratic time."""


class KeyLocations:
    """The line of each key path in `text`."""

    def __init__(self, text: str) -> None:
        self._text = text

    def line(self, path: Sequence[str | int]) -> int:
        """The line (from 1) of `path`, or of the nearest thing above it that is written down; 0 if nothing is."""
        for length in range(len(path), 0, -1):
            if (line := self._lines.get(tuple(path[:length]))) is not None:
                return line
        return 0

    def problem(self, file: str, path: KeyPath, what: str, *, warning: bool = False) -> Problem:
        """A Problem of what stands at `path` in `file`, which holds the text."""
        return Problem(file, self.line(path), what, warning)

    def line_inside(self, path: Sequence[str | int], below: int) -> int:
        """The line of what stands `below` line ends into the string at `path`."""
        line = self.line(path)
        if not line:
            return 0
        # TOML drops a line end that directly follows the opening quotes.
        opens = self._text.split("\n")[line - 1].rstrip("\r").endswith(('"""', "'''"))
        return line + opens + below

    @cached_property
    def _lines(self) -> dict[KeyPath, int]:
        found: dict[KeyPath, int] = {}
        prefix = ""
        for number, line in enumerate(self._text.split("\n")[:_MOST_LINES], 1):
            prefix += line + "\n"
            for path in _paths(_parse(prefix)):
                found.setdefault(path, number)
        return found


def _parse(prefix: str) -> Mapping[str, Any]:
    """The tree of an unfinished file; empty where not even a closer makes it one."""
    for closer in _CLOSERS:
        try:
            return tomllib.loads(prefix + closer)
        except (ValueError, RecursionError):
            continue
    return {}


def _paths(tree: Any, above: KeyPath = ()) -> list[KeyPath]:
    paths: list[KeyPath] = []
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        paths.append((*above, key))
        paths.extend(_paths(value, (*above, key)))
    return paths
