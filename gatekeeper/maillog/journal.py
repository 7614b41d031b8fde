# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal's two notations: `journalctl -o json` and `journalctl -o export`.

Source: systemd's "Journal Export Formats" and systemd.journal-fields(7). The time is that of the program that wrote the
entry, if the journal has it, else that of the journal.
"""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from gatekeeper.maillog.lines import Line

COMMAND = (
    *("journalctl", "--no-pager", "--quiet", "--output=json"),
    *("SYSLOG_FACILITY=2", "+", "SYSLOG_IDENTIFIER=gatekeeper", "+", "SYSLOG_IDENTIFIER=rspamd"),
)
"""Prints what the journal holds about mail: facility mail, and those that write to standard error."""
_MAX_FIELD = 64 * 1024
_WANTED = frozenset(
    {
        *("__REALTIME_TIMESTAMP", "_SOURCE_REALTIME_TIMESTAMP", "_HOSTNAME", "SYSLOG_IDENTIFIER", "_COMM"),
        *("SYSLOG_PID", "_PID", "MESSAGE"),
    }
)


def from_json(text: str) -> Line | None:
    """Return the entry that one line of `journalctl -o json` holds; None if it is none."""
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return _line(entry) if isinstance(entry, dict) else None


def from_export(stream: BinaryIO) -> Iterator[Line | None]:
    """Yield the entries of `journalctl -o export`; None for each one that has no time or no message, or is cut."""
    entry: dict[str, Any] = {}
    seen = False
    while field := stream.readline(_MAX_FIELD):
        if field == b"\n":
            if seen:
                yield _line(entry)
            entry, seen = {}, False
            continue
        seen = True
        name, equals, value = field.partition(b"=")
        if not equals:
            size = int.from_bytes(stream.read(8), "little")
            value = stream.read(min(size, _MAX_FIELD))
            if not _skip(stream, size - len(value)):
                yield None
                return
            stream.read(1)
        elif not field.endswith(b"\n"):
            _rest_of_line(stream)
        key = name.rstrip(b"\n").decode("ascii", "replace")
        if key in _WANTED:
            entry[key] = value.rstrip(b"\n").decode("utf-8", "surrogateescape")
    if seen:
        yield _line(entry)


def _line(entry: dict[str, Any]) -> Line | None:
    text = _text(entry.get("MESSAGE"))
    try:
        at = int(entry.get("_SOURCE_REALTIME_TIMESTAMP") or entry["__REALTIME_TIMESTAMP"]) / 1e6
    except (KeyError, ValueError, TypeError):
        return None
    if text is None:
        return None
    program = _text(entry.get("SYSLOG_IDENTIFIER")) or _text(entry.get("_COMM")) or ""
    pid = _text(entry.get("SYSLOG_PID")) or _text(entry.get("_PID")) or ""
    return Line(at, _text(entry.get("_HOSTNAME")) or "", program, pid, text)


def _text(value: Any) -> str | None:
    """Return a field's text. JSON has bytes that are no UTF-8 as a list of numbers, and several values as a list."""
    if isinstance(value, str):
        return value.partition("\n")[0]
    if isinstance(value, list):
        try:
            return bytes(value).decode("utf-8", "surrogateescape").partition("\n")[0]
        except (TypeError, ValueError):
            return next((_text(one) for one in value if isinstance(one, str)), None)
    return None


def _skip(stream: BinaryIO, size: int) -> bool:
    """Read `size` bytes away; False if the stream ends before."""
    while size > 0:
        if not (data := stream.read(min(size, _MAX_FIELD))):
            return False
        size -= len(data)
    return True


def _rest_of_line(stream: BinaryIO) -> None:
    while (data := stream.readline(_MAX_FIELD)) and not data.endswith(b"\n"):
        pass
