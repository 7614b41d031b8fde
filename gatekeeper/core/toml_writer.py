# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes TOML that people read, by tomlkit: every file and every line of TOML that gatekeeper writes.

TOML is UTF-8: for bytes that are not, as a stranger's address may hold, U+FFFD is written.
"""

import re
from collections.abc import Mapping

import tomlkit
from tomlkit.items import Array, Item

_WIDTH = 120
_NOT_UTF8 = re.compile("[\ud800-\udfff]")


def text(tree: Mapping[str, object]) -> str:
    """Return the file with these options and sections; `tree` may be a document of tomlkit's."""
    return _NOT_UTF8.sub("\N{REPLACEMENT CHARACTER}", tomlkit.dumps(tree))


def line(name: str, value: object) -> str:
    """Return the line that gives the option `name` this value, without a line ending."""
    return text({name: value}).rstrip("\n")


def item(value: object) -> Item:
    """Return the value for a document of tomlkit's; a list too long for one line gets a line for each item."""
    made = tomlkit.item(value)
    if isinstance(made, Array) and len(made.as_string()) > _WIDTH:
        made.multiline(True)
    return made
