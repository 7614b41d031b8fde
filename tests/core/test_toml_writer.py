# SPDX-License-Identifier: GPL-3.0-or-later
"""What is written as TOML reads back as it was, whatever it is."""

import tomllib
from datetime import UTC

import pytest
import tomlkit
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.core import toml_writer

PLAIN = (
    st.text()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.datetimes(timezones=st.sampled_from([None, UTC]))
    | st.dates()
)
LISTS = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3), max_leaves=5)


def sections(inner: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, object]]:
    return st.dictionaries(st.text(max_size=5), inner, max_size=3)


TREES = sections(
    st.recursive(LISTS, lambda inner: sections(inner) | st.lists(sections(inner), max_size=3), max_leaves=8)
)


@given(TREES)
def test_any_file_reads_back_as_it_was(tree: dict[str, object]) -> None:
    assert tree == tomllib.loads(toml_writer.text(tree))


@given(LISTS)
def test_any_value_of_a_document_reads_back_as_it_was(value: object) -> None:
    document = tomlkit.document()
    document.add("a", toml_writer.item(value))
    assert {"a": value} == tomllib.loads(toml_writer.text(document))


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("all", 'a = "all"'),
        (5, "a = 5"),
        (True, "a = true"),
        (["hash:x", "y"], 'a = ["hash:x", "y"]'),
        (("x",), 'a = ["x"]'),
        ('"\\\x7f\n', 'a = "\\"\\\\\\u007f\\n"'),
        ("b\udcff", 'a = "b\N{REPLACEMENT CHARACTER}"'),
    ],
)
def test_an_option_takes_one_line(value: object, line: str) -> None:
    assert line == toml_writer.line("a", value)


def test_a_list_that_is_too_long_for_a_line_has_one_for_each_item() -> None:
    document = tomlkit.document()
    document.add("a", toml_writer.item(["x" * 60, "y" * 60]))
    assert ["a = [", f'    "{"x" * 60}",', f'    "{"y" * 60}",', "]"] == toml_writer.text(document).splitlines()
