# SPDX-License-Identifier: GPL-3.0-or-later
"""One line of a log: when, which host, which program and process, and what it said.

Five notations are told apart line by line: traditional syslog (`Jan  2 03:04:05 host tag[pid]: text`, RFC 3164), the
same with an RFC 3339 date, RFC 5424, standard error of gatekeeper, and rspamd's own log file. The journal has two of
its own (journal.py).

A traditional date has neither year nor zone. The zone is this machine's. The year is the latest in which the first date
of the file is not after `newest`, when the file was last written; it grows by one where the month falls back by more
than half a year. So a file that holds more than a year is dated wrongly, and nothing can be done about that.
"""

import re
import time
from datetime import datetime
from typing import NamedTuple

_NAMES = "JanFebMarAprMayJunJulAugSepOctNovDec"
_MONTHS = {_NAMES[at : at + 3]: at // 3 + 1 for at in range(0, 36, 3)}
_DAY = 86400.0
_RSPAMD = re.compile(r"#(\d+)\((\w+)\) (?=<)")
_LEVEL = re.compile(r"(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) ")
_MAX_TAG = 128


class Line(NamedTuple):
    """A line of a log. `at` is in seconds since the epoch; `program` is the tag, as `postfix/submission/smtpd`."""

    at: float
    host: str
    program: str
    pid: str
    text: str


class LineParser:
    """Parses the lines of one file, which are expected in order of time; `newest` is when it was last written."""

    def __init__(self, newest: float) -> None:
        self._newest = newest
        self._year: int | None = None
        self._month = 0
        self._stamp = ""
        self._at = 0.0
        self._iso = ""
        self._iso_at = 0.0

    def parse(self, text: str) -> Line | None:
        """Return the line that `text` is, without its line break; None if it is none."""
        first = text[:1]
        if first == "<":
            return self._rfc5424(text)
        if first.isdigit():
            return self._dated(text)
        return self._traditional(text)

    def _traditional(self, text: str) -> Line | None:
        stamp = text[:15]
        if stamp != self._stamp:
            if (at := self._traditional_time(stamp)) is None:
                return None
            self._stamp, self._at = stamp, at
        if text[15:16] != " ":
            return None
        host, _, rest = text[16:].partition(" ")
        return _tagged(self._at, host, rest)

    def _traditional_time(self, stamp: str) -> float | None:
        month = _MONTHS.get(stamp[:3], 0)
        try:
            day, hour, minute, second = int(stamp[4:6]), int(stamp[7:9]), int(stamp[10:12]), int(stamp[13:15])
        except ValueError:
            return None
        if not month or (stamp[3], stamp[6], stamp[9], stamp[12]) != (" ", " ", ":", ":"):
            return None
        if not (1 <= day <= 31 and 0 <= hour < 24 and 0 <= minute < 60 and 0 <= second <= 60):
            return None
        if self._year is None:
            self._year = time.localtime(self._newest).tm_year
            if _local(self._year, month, day, hour, minute, second) > self._newest + _DAY:
                self._year -= 1
        elif month < self._month - 6:
            self._year += 1
        elif month > self._month + 6 and self._month:
            # A line of the old year that came late: dated back, and the year stays.
            return _local(self._year - 1, month, day, hour, minute, second)
        self._month = month
        return _local(self._year, month, day, hour, minute, second)

    def _dated(self, text: str) -> Line | None:
        stamp, _, rest = text.partition(" ")
        if len(stamp) == 10:  # date and time are two words: ours or rspamd's
            clock, _, rest = rest.partition(" ")
            if (at := self._iso_time(f"{stamp} {clock}")) is None:
                return None
            if found := _RSPAMD.match(rest):
                return Line(at, "", "rspamd", found[1], rest[found.end() :])
            line = _tagged(at, "", rest)
            return line and line._replace(text=_LEVEL.sub("", line.text, count=1))
        if (at := self._iso_time(stamp)) is None:
            return None
        host, _, rest = rest.partition(" ")
        return _tagged(at, host, rest)

    def _rfc5424(self, text: str) -> Line | None:
        priority, _, rest = text[1:].partition(">")
        if not priority.isdigit():
            return None
        if not rest.startswith("1 "):
            return self.parse(rest) if rest[:1] not in ("<", "") else None
        words = rest.split(" ", 6)
        if len(words) < 7 or (at := self._iso_time(words[1])) is None:
            return None
        _, _, host, program, pid, _, rest = words
        _, text = _structured(rest)
        return Line(at, host, program, "" if pid == "-" else pid, text.removeprefix("\ufeff"))

    def _iso_time(self, stamp: str) -> float | None:
        if stamp != self._iso:
            try:
                self._iso_at = datetime.fromisoformat(stamp).timestamp()
            except (ValueError, OverflowError, OSError):
                return None
            self._iso = stamp
        return self._iso_at


def _local(year: int, month: int, day: int, hour: int, minute: int, second: int) -> float:
    return time.mktime((year, month, day, hour, minute, second, 0, 0, -1))


def _tagged(at: float, host: str, rest: str) -> Line | None:
    """Return the line whose tag and text are `rest`; None without a tag."""
    tag, colon, text = rest.partition(": ")
    if not colon:
        tag = rest.removesuffix(":")
        if tag == rest:
            return None
    if not tag or len(tag) > _MAX_TAG or " " in tag:
        return None
    program, bracket, pid = tag.partition("[")
    if bracket and pid[-1:] != "]":
        return None
    return Line(at, host, program, pid[:-1], text)


def _structured(text: str) -> tuple[str, str]:
    """Return RFC 5424's structured data and the message behind it."""
    if not text.startswith("["):
        data, _, message = text.partition(" ")
        return data, message
    quoted = escaped = False
    for at, character in enumerate(text):
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == '"':
            quoted = not quoted
        elif character == "]" and not quoted and text[at + 1 : at + 2] in (" ", ""):
            return text[: at + 1], text[at + 2 :]
    return text, ""
