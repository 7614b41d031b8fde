# SPDX-License-Identifier: GPL-3.0-or-later
"""TOML within bounds: what would overflow the parser's stack, or take minutes, is a mistake in the file."""

import tomllib

import pytest

from gatekeeper.core.toml_reader import MAX_KEY_PARTS, TOMLLimitError, parse_toml

DEEP = 100_000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = " + "[" * DEEP + "]" * DEEP, "nested too deeply"),
        ("a = " + "[" * DEEP, "nested too deeply"),
        ("a = " + "{a = " * DEEP, "nested too deeply"),
        (".".join(["a"] * DEEP) + " = 1", "a key of more than 100 parts"),
        (" . ".join(["'a'", '"b"'] * DEEP) + " = 1", "a key of more than 100 parts"),
        ("[" + ".".join(["a"] * DEEP) + "]", "a key of more than 100 parts"),
        ("[[" + ".".join(["a"] * DEEP) + "]]", "a key of more than 100 parts"),
        ("x = {" + ".".join(["a"] * DEEP) + " = 1}", "a key of more than 100 parts"),
        ("x = " + "9" * DEEP, "a number with too many digits"),
    ],
)
def test_a_text_beyond_a_limit_is_refused_with_the_limit(text: str, words: str) -> None:
    with pytest.raises(TOMLLimitError, match=words):
        parse_toml(text)


@pytest.mark.parametrize("text", ["a = ", "a.b = 1\na = 2", "a = '\n'", 'a = "' + '\\"' * DEEP, "'" * DEEP, "a" * DEEP])
def test_other_mistakes_are_what_tomllib_says(text: str) -> None:
    with pytest.raises(tomllib.TOMLDecodeError):
        parse_toml(text)


def test_what_people_write_is_read() -> None:
    name = ".".join("a" * MAX_KEY_PARTS)
    text = f"{name} = 1\n[b]\nc = ['x.y.z']\nd = 'one. two. three.'"
    assert tomllib.loads(text) == parse_toml(text)
