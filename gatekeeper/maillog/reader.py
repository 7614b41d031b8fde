# SPDX-License-Identifier: GPL-3.0-or-later
"""Several logs as one: their lines in order of time, and an account of what could not be read.

Each log is taken to be in order of time by itself. Where a line stands in two logs (Debian's rsyslog writes warnings to
mail.warn and mail.log), it comes once.
"""

import heapq
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count, repeat

from gatekeeper.maillog import journal
from gatekeeper.maillog.files import LogFile
from gatekeeper.maillog.lines import Line, LineParser

_REPEATED = re.compile(r"message repeated (\d{1,5}) times: \[ ?(.*)\]$", re.DOTALL)
_LAST_REPEATED = re.compile(r".{15} \S+ last message repeated (\d{1,5}) times$")
_BACK = 3600.0


@dataclass(slots=True)
class Tally:
    """What was read. Each count is of lines."""

    lines: int = 0
    unreadable: int = 0
    """Lines that are none of a log: cut ones, binary data."""
    too_long: int = 0
    in_two_logs: int = 0
    backwards: int = 0
    """Lines that are dated more than an hour before one that stands above them."""
    programs: Counter[str] = field(default_factory=Counter)
    hosts: Counter[str] = field(default_factory=Counter)
    first: float | None = None
    last: float | None = None
    damaged: list[tuple[str, str]] = field(default_factory=list)
    """Logs whose end could not be read, each with the reason."""


_MAX_KINDS = 1000
"""How many names of programs and hosts are counted: a log of nonsense could hold any number."""


def read_lines(logs: Iterable[LogFile], tally: Tally, progress: Callable[[], None] = lambda: None) -> Iterator[Line]:
    """Yield the lines of `logs` in order of time, and count in `tally`. `progress` is called every thousand lines."""
    logs = list(logs)
    hosts = {host for log in logs if (host := _first_host(log))}
    host = hosts.pop() if len(hosts) == 1 else ""
    each = [_in_one_log(log, host, tally) for log in logs]
    lines = each[0] if len(each) == 1 else _once(each, tally)
    newest = float("-inf")
    for number, line in enumerate(lines):
        at, host, program, _, _ = line
        if at > newest:
            newest = tally.last = at
            if tally.first is None:
                tally.first = at
        elif at < newest - _BACK:
            tally.backwards += 1
        if program in tally.programs or len(tally.programs) < _MAX_KINDS:
            tally.programs[program] += 1
        if host in tally.hosts or len(tally.hosts) < _MAX_KINDS:
            tally.hosts[host] += 1
        if number % 1000 == 0:
            progress()
        yield line
    tally.damaged += [(log.name, log.damage) for log in logs if log.damage]


def _first_host(log: LogFile) -> str:
    """Return the host in the first line of a log; empty if it tells none."""
    head, whole, _ = log.head().partition(b"\n")
    line = LineParser(log.newest).parse(head.decode("utf-8", "replace").rstrip("\r")) if whole else None
    return line.host if line else ""


def _in_one_log(log: LogFile, host: str, tally: Tally) -> Iterator[Line]:
    """Yield a log's lines; `host` is the host of those that tell none, as a program's standard error."""
    lines = _lines(log, tally)
    return lines if not host else (line if line.host else line._replace(host=host) for line in lines)


def _lines(log: LogFile, tally: Tally) -> Iterator[Line]:
    head = log.head()
    if head.startswith((b"__CURSOR=", b"__REALTIME_TIMESTAMP=")):
        return _known(journal.from_export(log.stream), tally)
    if head.startswith(b"{"):
        return _known(map(journal.from_json, _short(log, tally)), tally)
    return _syslog(log, tally)


def _known(lines: Iterable[Line | None], tally: Tally) -> Iterator[Line]:
    for line in lines:
        tally.lines += 1
        if line is None:
            tally.unreadable += 1
        else:
            yield line


def _short(log: LogFile, tally: Tally) -> Iterator[str]:
    for text in log.lines():
        if text is None:
            tally.lines += 1
            tally.too_long += 1
        else:
            yield text


def _syslog(log: LogFile, tally: Tally) -> Iterator[Line]:
    parse = LineParser(log.newest).parse
    line: Line | None = None
    for text in _short(log, tally):
        tally.lines += 1
        found, times = parse(text), 1
        if "repeated " in text:
            # Only where syslogd itself says it: a stranger's HELO may hold the same words.
            if found is not None and (said := _REPEATED.match(found.text)):
                found, times = found._replace(text=said[2]), int(said[1])
            elif found is None and line is not None and (said := _LAST_REPEATED.match(text)):
                found, times = line, int(said[1])
        if found is None:
            tally.unreadable += bool(text)
        else:
            line = found
            yield from repeat(line, times)


def _once(each: list[Iterator[Line]], tally: Tally) -> Iterator[Line]:
    """Merge logs by time; a line of the same second that another log has too comes as often as in one of them."""
    second: float | None = None
    seen: dict[Line, Counter[int]] = {}
    given: Counter[Line] = Counter()
    for line, number in heapq.merge(*map(_numbered, each, count()), key=_time):
        if line.at != second:
            second = line.at
            seen.clear()
            given.clear()
        counts = seen.setdefault(line, Counter())
        counts[number] += 1
        if counts[number] > given[line]:
            given[line] += 1
            yield line
        else:
            tally.in_two_logs += 1


def _numbered(lines: Iterator[Line], number: int) -> Iterator[tuple[Line, int]]:
    for line in lines:
        yield line, number


def _time(numbered: tuple[Line, int]) -> float:
    return numbered[0].at
