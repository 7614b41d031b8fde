# SPDX-License-Identifier: GPL-3.0-or-later
"""Restriction lists: main.cf's one string and TOML's list say the same."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from gatekeeper.config.schema import DEFAULT_RESTRICTIONS
from gatekeeper.postfix.restriction_list import Restrictions, parse_restrictions, strip_braces

MAIN_CF = """
    permit_mynetworks,
    check_client_access hash:/etc/postfix/access, warn_if_reject reject_unknown_client_hostname
    warn_if_reject, reject_rbl_client zen.spamhaus.org=127.0.0.[2..11]
    check_helo_access inline:{a=reject, b=ok} check_policy_service { inet:127.0.0.1:1, timeout=5s }
    check_relay_domains
# a comment, with a word: reject
    check_ccert_access { hash:t, { search_order = cert_fingerprint,
        pubkey_fingerprint } }
    check_sender_access inline:{ { a@b.example = 450 4.7.1 not now, thanks }, c=OK },permit
"""


def words(text: str) -> list[str]:
    return [str(restriction) for restriction in parse_restrictions(text)]


def test_a_list_moves_over_from_main_cf_by_copying_it() -> None:
    assert [
        "permit_mynetworks",
        "check_client_access hash:/etc/postfix/access",
        "warn_if_reject reject_unknown_client_hostname",
        "warn_if_reject reject_rbl_client zen.spamhaus.org=127.0.0.[2..11]",
        "check_helo_access inline:{a=reject, b=ok}",
        "check_policy_service { inet:127.0.0.1:1, timeout=5s }",
        "check_relay_domains",
        "check_ccert_access { hash:t, { search_order = cert_fingerprint,\n        pubkey_fingerprint } }",
        "check_sender_access inline:{ { a@b.example = 450 4.7.1 not now, thanks }, c=OK }",
        "permit",
    ] == words(MAIN_CF)


def test_a_restriction_in_a_string_knows_its_line() -> None:
    assert [1, 2, 2, 3, 4, 4, 5, 7, 9, 9] == [restriction.line_offset for restriction in parse_restrictions(MAIN_CF)]


def test_an_item_of_a_list_may_hold_braces_and_more_than_one_restriction() -> None:
    value = ["permit_mynetworks, reject_rbl_client bl.example", "check_helo_access inline:{ a = b }", "  "]
    assert [
        (0, "permit_mynetworks"),
        (0, "reject_rbl_client bl.example"),
        (1, "check_helo_access inline:{ a = b }"),
    ] == [(found.index, str(found)) for found in TypeAdapter(Restrictions).validate_python(value)]


@pytest.mark.parametrize(
    ("text", "inner"),
    [("{ a }", "a"), ("{{ a }}", "{ a }"), ("{}", ""), ("a", None), ("{ a } { b }", None), ("{ a", None), ("", None)],
)
def test_what_stands_between_braces(text: str, inner: str | None) -> None:
    assert inner == strip_braces(text)


def test_a_missing_argument_stays_missing() -> None:
    assert ["permit", "check_client_access"] == words("permit, check_client_access")
    assert ["warn_if_reject"] == words("warn_if_reject")


def test_the_default_list_has_one_word_for_each_restriction() -> None:
    assert DEFAULT_RESTRICTIONS.split(", ") == words(DEFAULT_RESTRICTIONS)


@given(st.text(alphabet="abc_{}:,/ \n#", max_size=80).filter(lambda text: not re.search(r"(?m)^[ ]*#", text)))
def test_no_character_but_separators_is_lost(text: str) -> None:
    kept = "".join(word for restriction in parse_restrictions(text) for word in restriction.words)
    assert sorted(c for c in text if c not in ", \n") == sorted(c for c in kept if c not in ", \n")
