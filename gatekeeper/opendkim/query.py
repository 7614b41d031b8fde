# SPDX-License-Identifier: GPL-3.0-or-later
"""`opendkim -Q`: look-ups in a data set, answered in OpenDKIM's own words, for those who test their tables with it.

The first line names the data set, each other line is `KEY/N`: the first N fields of the value of KEY, the last of them
with all remaining colons. Keys are compared literally; in a refile the first pattern that matches counts.
"""

import re
from collections.abc import Iterable, Iterator

from gatekeeper.core.working_folder import working_folder
from gatekeeper.signing import data_set
from gatekeeper.signing.data_set import DataSet, DataSetEntry

PROMPT = "opendkim: enter data set description\n\tcsl:entry1[,entry2[,...]]\n\tfile:path\n\trefile:path\n> "
NEXT = "opendkim: enter 'query/n' where 'n' is number of fields to request\n> "


class BadQuery(Exception):
    """The data set or the query is not valid; the text says why."""


def open_set(description: str) -> DataSet:
    """Read the data set that `description` names. Raises BadQuery."""
    data, problems = data_set.read(description.strip(), "the data set", working_folder())
    for problem in problems:
        if not problem.warning:
            raise BadQuery(str(problem))
    return data


def answers(data: DataSet, lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines that answer each query. Raises BadQuery at the first that is not valid."""
    for line in lines:
        query = line.removesuffix("\n")
        if query.strip():
            yield from _answer(data, query)


def _answer(data: DataSet, query: str) -> Iterator[str]:
    key, slash, number = query.partition("/")
    count = re.match(r"\s*([0-9]{0,9})", number)
    if not slash or number.startswith("-") or count is None:
        raise BadQuery(f"invalid query {query!r}; allowed: KEY/N")
    entry = next((entry for entry in data.entries if _matches(data, entry, key)), None)
    if entry is None:
        yield "opendkim: dkimf_db_get(): record not found"
        return
    field_count = int(count[1] or 0)
    fields = entry.value.split(":", max(field_count - 1, 0)) if entry.value else [""] * field_count
    if len(fields) < field_count:
        yield f"opendkim: dkimf_db_get(): {query!r} has {len(fields)} fields"
        return
    yield from (f"'{field}'" for field in fields[:field_count])


def _matches(data: DataSet, entry: DataSetEntry, key: str) -> bool:
    if data.kind != "refile":
        return entry.key == key
    try:
        return data_set.pattern(entry.key, ignore_case=False).search(key) is not None
    except ValueError:
        return False
