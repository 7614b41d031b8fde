# SPDX-License-Identifier: GPL-3.0-or-later
"""The counts of statistics.py as tables: what a page, a terminal and a program are shown, each in its own way."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from gatekeeper.core.verdict import printable
from gatekeeper.evidence.statistics import Statistics
from gatekeeper.evidence.tops import Tops
from gatekeeper.maillog.reader import Tally

WORDS = ("accepted", "deferred", "refused")
_SHOWN = 15
_WAITS = ((300.0, "5 minutes"), (900.0, "15 minutes"), (3600.0, "an hour"), (4 * 3600.0, "4 hours"), (86400.0, "a day"))


@dataclass(frozen=True, slots=True)
class Table:
    """Rows below a title. `key` is its name for programs; `series` says which columns a picture shows, if any."""

    key: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | int]]
    left_out: int = 0
    """How many things the rows that are not shown count."""
    series: Sequence[str] = ()
    note: str = ""


def tables(found: Statistics, shown: int | None = _SHOWN) -> Iterator[Table]:
    """Yield what there is to say, each as a table; with at most `shown` rows where a log could have any number."""
    yield Table(
        "fates", "What became of the mail", ("fate", "mails"), [(str(f), n) for f, n in found.fates.most_common()]
    )
    yield _by_time("days", "By day", [(day, found.days[day]) for day in sorted(found.days)])
    yield _by_time("hours", "By hour of the day", [(f"{hour:02}", counts) for hour, counts in enumerate(found.hours)])
    yield _refused(found, shown)
    yield _simple("observed", "What observe mode would have refused", ("reason", "recipients"), found.observed, shown)
    yield _simple("lists", "DNS lists that refused", ("list", "recipients"), found.lists, shown)
    yield _waits(found)
    yield _by_whom("networks", "Client networks", "network", found.networks, shown)
    yield _by_whom("senders", "Domains of senders", "domain", found.senders, shown)
    yield _by_whom("recipients", "Domains of recipients", "domain", found.recipients, shown)
    yield _by_whom("logins", "Logins", "login", found.logins, shown)
    yield _simple("signed", "Signed by us", ("d=", "mails"), found.signed, shown)
    yield _pairs("unsigned", "Ours, and not signed", ("sender's domain", "why", "mails"), found.unsigned, shown)
    yield _pairs("verified", "Verified", ("method", "result", "times"), found.verified, shown)
    yield _pairs("failing", "DMARC failures", ("domain", "result", "mails"), found.failing, shown)
    yield _pairs("limits", "Over a limit", ("who", "limit", "recipients"), found.limits, shown)


def _by_time(key: str, title: str, counted: Iterable[tuple[str, "dict[str, int]"]]) -> Table:
    rows: list[Sequence[str | int]] = [(when, *(counts.get(word, 0) for word in WORDS)) for when, counts in counted]
    return Table(key, title, ("", *WORDS), rows, series=WORDS)


def _refused(found: Statistics, shown: int | None) -> Table:
    rows = [
        (
            by,
            why,
            "for now" if temporary else "for good",
            count,
            printable(found.examples.get((by, why, temporary), ""), 64),
        )
        for (by, why, temporary), count in found.refused.most_common(shown)
    ]
    note = "An example: gatekeeper why EXAMPLE LOG."
    return Table(
        "refused", "What was refused, and by whom", ("by", "why", "how", "recipients", "example"), rows,
        _rest(found.refused, shown), note=note if rows else "",
    )  # fmt: skip


def _waits(found: Statistics) -> Table:
    waited = found.waited
    rows: list[tuple[str, int]] = [("asked to come back", waited.asked), ("has not, or not yet", found.waiting)]
    below = 0.0
    for limit, words in _WAITS:
        rows.append((f"came back within {words}", sum(below <= wait < limit for wait in waited.waits)))
        below = limit
    rows.append(("came back later", sum(wait >= below for wait in waited.waits)))
    note = f"Half of those that came back waited less than {_minutes(median(waited.waits))}." if waited.waits else ""
    return Table("waited", "Mail that was refused for now", ("", "recipients"), rows if waited.asked else [], note=note)


def _simple(key: str, title: str, columns: Sequence[str], counted: Tops[str], shown: int | None) -> Table:
    rows = [(printable(name, 80), count) for name, count in counted.most_common(shown)]
    return Table(key, title, columns, rows, _rest(counted, shown))


def _pairs(key: str, title: str, columns: Sequence[str], counted: Tops[tuple[str, str]], shown: int | None) -> Table:
    rows = [(printable(one, 80), printable(two, 120), count) for (one, two), count in counted.most_common(shown)]
    return Table(key, title, columns, rows, _rest(counted, shown))


def _by_whom(key: str, title: str, column: str, counted: Tops[tuple[str, str]], shown: int | None) -> Table:
    """One row for each name, those with most mail first."""
    names: dict[str, dict[str, int]] = {}
    for (name, word), count in counted.counts.items():
        names.setdefault(name, {})[word] = count
    order = sorted(names, key=lambda name: (-sum(names[name].values()), name))
    rows: list[Sequence[str | int]] = [
        (printable(name, 80), *(names[name].get(word, 0) for word in WORDS)) for name in order[:shown]
    ]
    left = sum(sum(names[name].values()) for name in order[len(rows) :]) + counted.others
    return Table(key, title, (column, *WORDS), rows, left, series=WORDS)


def _rest(counted: Tops[Any], shown: int | None) -> int:
    return counted.total - sum(count for _, count in counted.most_common(shown))


def headline(found: Statistics, tally: Tally) -> str:
    """Return what was read, in a sentence."""
    if tally.first is None or tally.last is None:
        return f"{tally.lines} lines, and nothing about mail in them"
    first, last = (time.strftime("%Y-%m-%d %H:%M", time.localtime(at)) for at in (tally.first, tally.last))
    return f"{found.stories} mails and sessions in {tally.lines} lines, {first} to {last}"


def as_text(found: Statistics, tally: Tally, shown: int = _SHOWN) -> Iterator[str]:
    """Yield the statistics for a terminal or a mail, line by line."""
    yield headline(found, tally)
    for table in tables(found, shown):
        if any(isinstance(cell, int) and cell for row in table.rows for cell in row):
            yield ""
            yield table.title
            yield from _lines(table)


def _lines(table: Table) -> Iterator[str]:
    rows = [tuple(table.columns), *(tuple(map(str, row)) for row in table.rows)]
    numbers = [all(isinstance(row[at], int) for row in table.rows) for at in range(len(table.columns))]
    widths = [max(len(row[at]) for row in rows) for at in range(len(table.columns))]
    for row in rows:
        cells = (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numbers, strict=True)
        )
        yield f"  {'  '.join(cells)}".rstrip()
    if table.left_out:
        yield f"  … and {table.left_out} more"
    if table.note:
        yield f"  {table.note}"


def as_json(found: Statistics, tally: Tally) -> dict[str, Any]:
    """Return the statistics for programs: each table by its key, its rows as objects."""
    said: dict[str, Any] = {
        "lines": tally.lines,
        "unreadable": tally.unreadable,
        "from": tally.first,
        "to": tally.last,
        "stories": found.stories,
        "waits": {"median": median(found.waited.waits) if found.waited.waits else None},
    }
    for table in tables(found, None):
        names = [column or table.key.removesuffix("s") for column in table.columns]
        said[table.key] = [dict(zip(names, row, strict=True)) for row in table.rows]
    return said


def _minutes(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.0f} h"
    )
