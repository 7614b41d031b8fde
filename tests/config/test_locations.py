# SPDX-License-Identifier: GPL-3.0-or-later
"""Places tells the line of each key: in any TOML the same as parsing the file as far as each of its lines tells."""

import tomllib
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gatekeeper.config.locations import KeyLocations, KeyPath

QUOTES = '"""', "'''"
CLOSERS = [
    quotes + "".join(brackets)
    for quotes in ("", *QUOTES)
    for depth in range(4)
    for brackets in product("]}", repeat=depth)
]
"""What makes an unfinished statement a whole one, with up to three brackets open."""


def lines_by_prefix(text: str) -> dict[KeyPath, int]:
    """The line of each path, found the slow way: parse ever more of the file, and see what is new."""
    found: dict[KeyPath, int] = {}
    prefix = ""
    for number, line in enumerate(text.split("\n"), 1):
        prefix += line + "\n"
        for path in paths(parse_unfinished(prefix)):
            found.setdefault(path, number)
    return found


def parse_unfinished(prefix: str) -> Mapping[str, Any]:
    for closer in CLOSERS:
        try:
            return tomllib.loads(prefix + closer)
        except tomllib.TOMLDecodeError:
            continue
    assume(False)  # more brackets are open than CLOSERS has
    raise AssertionError("not reached")


def paths(tree: object, above: KeyPath = ()) -> Iterator[KeyPath]:
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*above, key)
        yield from paths(value, (*above, key))


# Characters that mean something in one place and nothing in another.
CONTENT = st.text(alphabet="ab=.,#[]{}'\" \té", max_size=8)
LONG_CONTENT = st.text(alphabet="ab=.,#[]{}'\" \t\né", max_size=12)


def escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def long_basic(text: str, opening: str, ending: str) -> str:
    return f'"""{opening}{text.replace(QUOTES[0], "").rstrip(chr(34))}{ending}"""'


def long_literal(text: str, opening: str, ending: str) -> str:
    return f"'''{opening}{text.replace(QUOTES[1], '').rstrip(chr(39))}{ending}'''"


SHORT_TEXTS = CONTENT.map(lambda text: f'"{escaped(text)}"') | CONTENT.map(
    lambda text: f"'{text.replace(chr(39), '')}'"
)
LONG_TEXTS = st.builds(
    long_basic, LONG_CONTENT, st.sampled_from(["", "\n", "\\\n  "]), st.sampled_from(["", '"', '""', '\\"', "\\\\"])
) | st.builds(long_literal, LONG_CONTENT, st.sampled_from(["", "\n"]), st.sampled_from(["", "'", "''", "\\"]))
NAMES = st.sampled_from(["a", "b", "c-d_1", "1", '"a"', "'b'", '"x.y"', '"\\u0061"', "'#'", '""'])
KEYS = st.lists(NAMES, min_size=1, max_size=3).flatmap(
    lambda names: st.sampled_from([".", " . "]).map(lambda dot: dot.join(names))
)
PLAIN = st.sampled_from(["0", "-1_000", "0xAf", "1.5e-3", "-inf", "true", "1979-05-27 07:32:00.5Z", "07:32:00"])
SEPARATORS = st.sampled_from(["", " ", "\n", "\n\n  ", ' # ], } """\n', "\t"])


def array(items: list[str], gaps: list[str], comma: bool) -> str:
    gap = iter(gaps * 20)
    inner = ",".join(f"{next(gap)}{item}{next(gap)}" for item in items)
    return f"[{inner}{',' if comma and items else ''}{next(gap)}]"


def inline_table(pairs: list[tuple[str, str]], space: str) -> str:
    return "{" + ",".join(f"{space}{key}{space}={space}{value}{space}" for key, value in pairs) + "}"


VALUES = st.recursive(
    PLAIN | SHORT_TEXTS | LONG_TEXTS,
    lambda inner: (
        st.builds(array, st.lists(inner, max_size=3), st.lists(SEPARATORS, min_size=1, max_size=5), st.booleans())
        | st.builds(inline_table, st.lists(st.tuples(KEYS, inner), max_size=3), st.sampled_from(["", " "]))
    ),
    max_leaves=6,
)
STATEMENTS = (
    st.builds("{} = {}".format, KEYS, VALUES)
    | st.builds("  {}={} # a = 1".format, KEYS, VALUES)
    | st.builds("[{}]".format, KEYS)
    | st.builds("[[ {} ]] # [x]".format, KEYS)
    | st.sampled_from(["", "  ", "# [a] = '''"])
)


@st.composite
def documents(draw: st.DrawFn) -> str:
    """A file of statements that tomllib takes, each as the one after the others."""
    text = ""
    for statement in draw(st.lists(STATEMENTS, max_size=12)):
        try:
            tomllib.loads(text + statement)
        except tomllib.TOMLDecodeError:
            continue
        text += statement + "\n"
    return draw(st.sampled_from([text, text.removesuffix("\n"), text.replace("\n", "\r\n")]))


@given(documents())
def test_each_key_of_any_file_stands_where_it_first_shows(text: str) -> None:
    everything = list(paths(tomllib.loads(text)))
    expected = lines_by_prefix(text)
    places = KeyLocations(text)
    assert {path: expected[path] for path in everything} == {path: places.line(path) for path in everything}


MANY = 20_000


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"key{number} = 1\n" for number in range(MANY)),
        "".join(f"[a.b{number}]\n" for number in range(MANY)),
        "[[a]]\n" * MANY,
        "a = [\n" + '  "b",\n' * (MANY - 2) + "]\n",
        'a = """\n' + 'it\'s # one "text"\n' * (MANY - 2) + '"""\n',
        "# # # #\n" * MANY,
    ],
    ids=["keys", "sections", "items", "list", "text", "comments"],
)
def test_a_file_may_be_of_any_length(text: str) -> None:
    assert MANY + 1 == KeyLocations(text + "[last]").line(("last",))


def test_lists_may_be_nested_as_deep_as_toml_is_read() -> None:
    text = "a = " + "[\n" * 200 + "1" + "]" * 200
    assert 200 == len(list(paths(tomllib.loads(text)))) - 1
    assert 201 == KeyLocations(text).line(("a", *[0] * 200))


@pytest.mark.parametrize(
    "text",
    ['a = 1\nb = """', "a = 1\n'b", 'a = 1\n"\\q" = 1', "a = 1\n]", "a = 1\nb = }", "a = 1\n= [", "a = 1\nb = [[}}"],
)
def test_of_what_is_no_toml_the_lines_before_the_mistake_are_known(text: str) -> None:
    assert 1 == KeyLocations(text).line(("a",))
