# SPDX-License-Identifier: GPL-3.0-or-later
"""`opendkim -Q`: what a data set says to a question, in OpenDKIM's own words, for those who test their tables by it.

The first line names the data set, each other line is `KEY/N`: the first N fields of the value of KEY, the last of them
with all colons that are left. Keys are compared as they are written; in a refile the first pattern that matches counts.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from gatekeeper.signing import data_set
from gatekeeper.signing.data_set import DataSet, DataSetEntry

PROMPT = "opendkim: enter data set description\n\tcsl:entry1[,entry2[,...]]\n\tfile:path\n\trefile:path\n> "
NEXT = "opendkim: enter 'query/n' where 'n' is number of fields to request\n> "


class BadQuery(Exception):
    """What was asked is no question. The text says why."""


def open_set(description: str) -> DataSet:
    """The data set. Raises BadQuery."""
    data, problems = data_set.read(description.strip(), "the data set", Path.cwd())
    for problem in problems:
        if not problem.warning:
            raise BadQuery(str(problem))
    return data


def answers(data: DataSet, lines: Iterable[str]) -> Iterator[str]:
    """The answer to each line, as lines. Raises BadQuery at the first that is no question."""
    for line in lines:
        asked = line.removesuffix("\n")
        if asked.strip():
            yield from _answer(data, asked)


def _answer(data: DataSet, asked: str) -> Iterator[str]:
    key, slash, number = asked.partition("/")
    count = re.match(r"\s*([0-9]{0,9})", number)
    if not slash or number.startswith("-") or count is None:
        raise BadQuery(f"invalid query {asked!r}; allowed: KEY/N")
    entry = next((entry for entry in data.entries if _matches(data, entry, key)), None)
    if entry is None:
        yield "opendkim: dkimf_db_get(): record not found"
        return
    wanted = int(count[1] or 0)
    fields = entry.value.split(":", max(wanted - 1, 0)) if entry.value else [""] * wanted
    if len(fields) < wanted:
        yield f"opendkim: dkimf_db_get(): {asked!r} has {len(fields)} fields"
        return
    yield from (f"'{field}'" for field in fields[:wanted])


def _matches(data: DataSet, entry: DataSetEntry, key: str) -> bool:
    if data.kind != "refile":
        return entry.key == key
    try:
        return data_set.pattern(entry.key, ignore_case=False).search(key) is not None
    except ValueError:
        return False
