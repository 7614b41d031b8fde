# SPDX-License-Identifier: GPL-3.0-or-later
"""What a message proposes is taken where it is proposed, and is not what was written."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.builder.builder import CheckBuilder
from gatekeeper.checks.builder.errors import known_words
from gatekeeper.checks.tables.action import ACTIONS
from gatekeeper.core.units import parse_network

HERE = Path("/nonexistent")
CLASSES = {name: [(["permit_mynetworks"], SourceLine("g.toml"))] for name in ("strict", "MyClass")}


def complaint(restriction: str, action: str = "") -> str:
    """What is said of a restriction, or of an action in a table."""
    words = ["check_client_access", f"inline:{{ {{ a.example = {action} }} }}"] if action else restriction.split()
    builder = CheckBuilder({}, HERE, classes=CLASSES)
    builder.check(words, SourceLine("g.toml"))
    return "; ".join(problem.what for problem in builder.problems if not problem.warning)


def proposed(said: str) -> str:
    found = re.search(r"did you mean '([^']*)'\?", said)
    return found[1] if found else ""


@pytest.mark.parametrize(
    ("action", "meant"),
    [
        ("ACCEPT", "OK"),
        ("accept", "OK"),
        ("ALLOW", "OK"),
        ("OKAY", "OK"),
        ("DENY", "REJECT"),
        ("REJCT no", "REJECT"),
        ("DISCRAD", "DISCARD"),
        ("IGNORE", "DUNNO"),
        ("QUARANTINE", "HOLD"),
        ("reject_unknown_sender_domain, OK", "permit"),
        ("reject_unknown_sender_domain, ACCEPT", "permit"),
        ("warn_if_reject OK", "permit"),
        ("reject_unknown_sender_domain, DENY", "reject"),
        ("Strict", "strict"),
        ("myclass", "MyClass"),
        ("check_client_acess", ""),
    ],
)
def test_an_action_that_is_unknown_is_told_with_what_is_meant(action: str, meant: str) -> None:
    said = complaint("", action)
    assert "unknown" in said
    assert meant == proposed(said) or (not meant and "check_client_access" != proposed(said))


WORDS = sorted({*known_words(), *ACTIONS, *CLASSES, "accept", "allow", "deny", "block", "drop", "pass", "none", "skip"})


def misspellings(word: str) -> set[str]:
    return {word[:n] + word[n + 1 :] for n in range(len(word))} | {
        word + "s",
        word.swapcase(),
        word[:-1] + word[-1] * 2,
    }


@pytest.mark.parametrize("word", WORDS)
def test_what_is_proposed_is_taken_in_its_place(word: str) -> None:
    for wrong in misspellings(word) | {word}:
        for template in ("", "reject_unknown_sender_domain, "):
            meant = proposed(complaint("", f"{template}{wrong}"))
            assert meant != wrong
            assert not meant or "unknown" not in complaint("", f"{template}{meant}"), wrong
            assert not meant or "cannot name another table" not in complaint("", f"{template}{meant}"), wrong
        meant = proposed(complaint(wrong))
        assert meant != wrong
        assert not meant or "unknown" not in complaint(meant), wrong


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_a_network_that_is_proposed_is_one(address: object, length: int) -> None:
    try:
        parse_network(f"{address}/{length}")
    except ValueError as error:
        parse_network(proposed(str(error)))


def test_a_substitution_in_a_list_is_sent_to_a_file_and_not_to_postconf() -> None:
    said = complaint("check_sender_access pcre:{{/(.*)/_REDIRECT_$1@a.example}}")
    assert "$1 cannot stand in a list; put the rule into a file, TYPE:FILE" == said
