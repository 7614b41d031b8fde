# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose line is it, and what does it say: the tag of a line to the parser of that program."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from gatekeeper.maillog import companion_lines, postfix_lines
from gatekeeper.maillog.events import Event, Found
from gatekeeper.maillog.lines import Line

_MAX_TAGS = 4096


def read_events(lines: Iterable[Line], foreign: Counter[str]) -> Iterator[Event]:
    """Yield what the lines tell about mail; count in `foreign` the lines of programs that are not known, by tag."""
    parsers: dict[str, Callable[[str], Found | None] | None] = {}
    for line in lines:
        at, host, program, pid, text = line
        try:
            parse = parsers[program]
        except KeyError:
            parse = _parser(program)
            if len(parsers) < _MAX_TAGS:
                parsers[program] = parse
        if parse is None:
            if program in foreign or len(foreign) < _MAX_TAGS:
                foreign[program] += 1
        elif found := parse(text):
            yield Event(at, host, program, pid, *found)


def _parser(program: str) -> Callable[[str], Found | None] | None:
    _, slash, daemon = program.rpartition("/")
    if slash and postfix_lines.is_daemon(daemon):
        return partial(postfix_lines.understand, daemon)
    return partial(companion_lines.understand, program) if companion_lines.is_companion(program) else None
