# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables without a file, written in the restriction itself (DATABASE_README).

`inline:{ key=value, { key = value with spaces } }` has exact keys, as a hash: table; of two equal keys the last one
counts, as in Postfix. `static:value` and `static:{ value with spaces }` give the same result for every key.
`cidr:{ { rule }, { rule } }`, and likewise regexp: and pcre:, contain the lines of a file.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.tables.action import TableAction
from gatekeeper.checks.tables.indexed import IndexedTable, fold
from gatekeeper.checks.tables.table import Actions
from gatekeeper.core.request import Address
from gatekeeper.core.verdict import PASS
from gatekeeper.postfix.restriction_list import split_words, strip_braces

_ALLOWED = "allowed: inline:{ KEY=ACTION, { KEY = ACTION with spaces } }"

_ALLOWED_RULES = "allowed: cidr:{ { NETWORK ACTION }, { NETWORK ACTION } }, pcre:{ { /PATTERN/ ACTION } }"


@dataclass(frozen=True, slots=True)
class StaticTable:
    """A table with the same action for every key."""

    action: TableAction
    allows: Sequence[SourceLine] = field(default=())

    @property
    def asks_spf(self) -> bool:
        """Whether the action may ask for SPF of the sender."""
        return self.action.asks_spf

    def search(self, keys: Iterable[str]) -> TableAction | None:
        """Return the action, unless there is nothing to look up."""
        return self.action if next(iter(keys), "") else None

    def search_address(self, address: Address) -> TableAction | None:  # noqa: ARG002 (the protocol's signature)
        """Return the action."""
        return self.action


def parse_inline(data: bytes, actions: Actions) -> IndexedTable:
    """Parse an inline: table, written in `data` with its braces. Mistakes are noted in `actions`, without a line."""
    text = data.decode("utf-8", "surrogateescape")
    entries = [word for _, word in split_words(strip_braces(text) or "")]
    table = IndexedTable(len(entries) + 1, actions)
    if not entries:
        actions.mistake(0, f"{text!r} is not a table; {_ALLOWED}")
    for word in reversed(entries):
        pair = strip_braces(word)
        key, equals, value = (" ".join(part.split()) for part in (word if pair is None else pair).partition("="))
        if not equals or not key:
            actions.mistake(0, f"{word!r} is not an entry; {_ALLOWED}")
        elif actions.check(0, value):
            folded, right = fold(_bytes(key)), _bytes(value)
            if table.entries.add(folded, right):
                table.note_key(0, folded, right)
    return table


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def parse_static(data: bytes, actions: Actions) -> StaticTable:
    """Parse a static: table, which has the action in `data` for every key."""
    text = data.decode("utf-8", "surrogateescape")
    return StaticTable(actions.action(0, strip_braces(text) or text) or TableAction(PASS), actions.allows)


def inline_lines(text: str) -> bytes:
    """Return the rules of a table in braces, each as a line of a file. Raises ValueError with what is allowed."""
    rules = [(word, strip_braces(word)) for _, word in split_words(strip_braces(text) or "")]
    if not rules:
        raise ValueError(f"{text!r} is not a table; {_ALLOWED_RULES}")
    for word, rule in rules:
        if rule is None:
            raise ValueError(f"{word!r} is not a rule; {_ALLOWED_RULES}")
    return b"".join(_bytes(" ".join((rule or "").split())) + b"\n" for _, rule in rules)
