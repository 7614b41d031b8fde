# SPDX-License-Identifier: GPL-3.0-or-later
"""What decides nothing where it stands in a list is told: behind its end, or behind what lets users through."""

from pathlib import Path

import pytest

from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.builder.builder import CheckBuilder, Words
from gatekeeper.checks.limits.ratelimit import RateLimit
from gatekeeper.config.schema import DEFAULT_RESTRICTIONS
from gatekeeper.core.verdict import Mode
from gatekeeper.postfix.restriction_list import parse_restrictions

BEHIND = "after permit_sasl_authenticated never sees a user who has logged in; put it before"


def written(text: str) -> list[Words]:
    return [(one.words, SourceLine("g.toml", n)) for n, one in enumerate(parse_restrictions(text), 1)]


def told(text: str, *, ratelimit: RateLimit | None = None, **classes: str) -> list[str]:
    """What is said about the order of a list, and of the classes that it may name."""
    builder = CheckBuilder(
        {"ratelimit": ratelimit or RateLimit()},
        Path("/nonexistent"),
        classes={name: written(words) for name, words in classes.items()},
        maps={"sender_login_maps": (["static:joe"], SourceLine("g.toml"))},
    )
    builder.warn_unreachable(written(text))
    builder.check_classes()
    return [str(problem).removeprefix("g.toml:") for problem in builder.problems]


@pytest.mark.parametrize(
    "word",
    [
        "reject_sender_login_mismatch",
        "reject_authenticated_sender_login_mismatch",
        "reject_known_sender_login_mismatch",
        "Reject_Sender_Login_Mismatch",
        "warn_if_reject reject_sender_login_mismatch",
        "check_sasl_access static:DUNNO",
        "ratelimit",
    ],
)
def test_what_is_about_users_behind_the_word_that_permits_them_is_told(word: str) -> None:
    assert [f"2: warning: {word} {BEHIND}"] == told(f"permit_sasl_authenticated, {word}")
    assert [f"4: warning: {word} {BEHIND}"] == told(f"permit_mynetworks, permit_sasl_authenticated, greylist, {word}")
    assert [] == told(f"{word}, permit_sasl_authenticated")
    assert [] == told(f"permit_mynetworks, {word}")


@pytest.mark.parametrize(
    "word", ["reject_unauthenticated_sender_login_mismatch", "greylist", "check_sender_access static:DUNNO", "dnsbl"]
)
def test_what_is_about_strangers_belongs_there(word: str) -> None:
    assert [] == told(f"permit_sasl_authenticated, {word}")


def test_limits_that_count_nothing_of_users_belong_there() -> None:
    text = "permit_sasl_authenticated, ratelimit"
    assert [] == told(text, ratelimit=RateLimit(user_messages=(), user_recipients=()))
    assert [] == told(text, ratelimit=RateLimit(mode=Mode.OFF))
    by_user = RateLimit.model_validate(
        {"user_messages": [], "user_recipients": [], "rules": {"a": {"by": ["user", "client"], "messages": ["1/1m"]}}}
    )
    assert [f"2: warning: ratelimit {BEHIND}"] == told(text, ratelimit=by_user)


def test_classes_are_looked_into() -> None:
    users = "permit_sasl_authenticated"
    assert [f"2: warning: own {BEHIND}"] == told(
        "users, own", users=users, own="outer", outer="check_sasl_access static:DUNNO"
    )
    assert [f"2: warning: check_sasl_access static:DUNNO {BEHIND}"] == told(
        "permit", users=f"{users}, check_sasl_access static:DUNNO"
    )
    assert ["2: warning: greylist after reject is never reached"] == told("permit", closed="reject, greylist")


def test_classes_that_name_classes_many_times_cost_nothing_more() -> None:
    classes = {f"c{n}": f"c{n + 1}, c{n + 1}" for n in range(40)} | {"c40": "permit_sasl_authenticated"}
    builder = CheckBuilder({}, Path("/nonexistent"), classes={name: written(text) for name, text in classes.items()})
    builder.warn_unreachable(written("c0, check_sasl_access static:DUNNO"))
    assert [f"check_sasl_access static:DUNNO {BEHIND}"] == [problem.what for problem in builder.problems]
    builder.check(["check_sender_access", "inline:{ { a.example = c0 } }"], SourceLine("g.toml"))


def test_the_default_list_has_everything_in_its_place() -> None:
    assert [] == told(", ".join(map(str, DEFAULT_RESTRICTIONS)))
