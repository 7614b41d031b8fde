# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads TOML: every text that gatekeeper takes for TOML, by tomllib and within bounds that tomllib lacks.

Python's parser recurses for each bracket, takes time and memory with the square of the parts of a dotted key, and
leaves to int() to refuse a number. Each of these is a mistake in the file like others, not an accident.
"""

import re
import tomllib
from typing import Any

MAX_KEY_PARTS = 100

_NAME = r"""(?:[A-Za-z0-9_-]++|"(?:[^"\\\n]++|\\.)*+"|'[^'\n]*+')"""
_LONG_KEY = re.compile(rf"(?<![A-Za-z0-9_\\-]){_NAME}(?:[ \t]*+\.[ \t]*+{_NAME}){{{MAX_KEY_PARTS},}}+")


class TOMLLimitError(ValueError):
    """A text may be TOML, but is beyond a limit; the message says which."""


def parse_toml(text: str) -> dict[str, Any]:
    """Return the tree in `text`. Raises TOMLDecodeError, and TOMLLimitError."""
    if _LONG_KEY.search(text):
        raise TOMLLimitError(f"has a key of more than {MAX_KEY_PARTS} parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise TOMLLimitError("is nested too deeply") from None
    except ValueError as error:
        if isinstance(error, tomllib.TOMLDecodeError):
            raise
        raise TOMLLimitError("has a number with too many digits") from None
