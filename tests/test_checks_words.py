# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of words: what a restriction list may say, and the sentence about what it may not."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.checks import OPINIONS, SECTIONS, Place, Reader
from gatekeeper.checks.words import ACCESS_WORDS, LIST_WORDS, OLD_NAMES, PLAIN_WORDS, REFUSED
from gatekeeper.pipeline import Check
from gatekeeper.verdict import Mode
from tests.checking import HERE, mistakes


def read(words: str, folder: Path = HERE) -> Check | None:
    return Reader({}, folder).check(words.split(), Place("gatekeeper.toml", 7))


@pytest.mark.parametrize("word", [*PLAIN_WORDS, *OPINIONS, "access", *(f"{word} bl.example" for word in LIST_WORDS)])
def test_each_word_makes_a_check(word: str) -> None:
    check = read(word)
    assert isinstance(check, Check)
    assert word == check.name


@pytest.mark.parametrize("word", ACCESS_WORDS)
def test_each_access_word_opens_its_table(word: str, tmp_path: Path) -> None:
    (tmp_path / "t").write_text("a.example REJECT\n")
    check = read(f"{word} hash:t", tmp_path)
    assert check is not None
    assert f"{word} hash:t" == check.name


@pytest.mark.parametrize(("old", "new"), OLD_NAMES.items())
def test_old_names_are_understood(old: str, new: str) -> None:
    argument = " bl.example" if new in LIST_WORDS else ""
    check = read(old + argument)
    assert check is not None
    assert new + argument == check.name


def test_words_may_be_written_in_capitals() -> None:
    assert read("Reject_Non_FQDN_Sender") is PLAIN_WORDS["reject_non_fqdn_sender"]


@pytest.mark.parametrize("word", REFUSED)
def test_what_cannot_be_had_is_refused_with_the_reason(word: str) -> None:
    assert [f"{word} cannot be checked here: {REFUSED[word]}"] == mistakes(word)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("reject_unknow_sender_domain", "reject_unknown_sender_domain"),
        ("grey_list", "greylist"),
        ("permit_sasl_auth", "permit_sasl_authenticated"),
    ],
)
def test_an_unknown_word_is_answered_with_the_nearest(written: str, meant: str) -> None:
    assert [f"unknown restriction {written!r}; did you mean {meant!r}?"] == mistakes(written)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("reject_rbl_client", "reject_rbl_client needs a DNS list"),
        ("check_client_access", "check_client_access needs a table"),
        ("warn_if_reject", "warn_if_reject needs a restriction"),
        ("hash:/etc/postfix/access", "'hash:/etc/postfix/access' stands without a word before it"),
    ],
)
def test_a_missing_argument_is_named(words: str, what: str) -> None:
    assert [True] == [mistake.startswith(what) for mistake in mistakes(words)]


def test_an_argument_too_many_is_named() -> None:
    reader = Reader({}, HERE)
    assert reader.check(["permit", "me"], Place("gatekeeper.toml", 7)) is None
    assert ["gatekeeper.toml:7: permit takes no argument: 'me'"] == list(map(str, reader.problems))


def test_every_mistake_is_collected() -> None:
    assert 3 == len(mistakes("nonsense, check_policy_service unix:x, reject_rbl_client a..b"))


def test_a_section_is_the_check() -> None:
    section = OPINIONS["dnsbl"].model_validate({"mode": "observe"})
    check = Reader({"dnsbl": section}, HERE).check(["dnsbl"], Place("x"))
    assert check is section
    assert Mode.OBSERVE is section.mode


@pytest.mark.parametrize("model", SECTIONS.values(), ids=SECTIONS)
def test_every_option_says_what_it_is_for(model: type) -> None:
    fields = model.model_fields  # type: ignore[attr-defined]  # a pydantic model
    assert [] == [name for name, field in fields.items() if not field.description]


@given(st.lists(st.sampled_from([*REFUSED, *LIST_WORDS, "warn_if_reject", "permit"]) | st.text(), max_size=6))
def test_any_words_make_a_check_or_a_problem(words: list[str]) -> None:
    reader = Reader({}, HERE)
    assert (reader.check(words, Place("x")) is None) == bool(reader.problems)
