# SPDX-License-Identifier: GPL-3.0-or-later
"""Restriction lists: main.cf's one string and TOML's list say the same."""

from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.restrictions import split
from gatekeeper.sections import DEFAULT_RESTRICTIONS

MAIN_CF = """
    permit_mynetworks,
    check_client_access hash:/etc/postfix/access, warn_if_reject reject_unknown_client_hostname
    warn_if_reject, reject_rbl_client zen.spamhaus.org=127.0.0.[2..11]
    check_helo_access inline:{a=reject, b=ok} check_policy_service { inet:127.0.0.1:1, timeout=5s }
    check_relay_domains
    permit
"""


def words(text: str) -> list[str]:
    return [str(restriction) for restriction in split(text)]


def test_a_list_moves_over_from_main_cf_by_copying_it() -> None:
    assert [
        "permit_mynetworks",
        "check_client_access hash:/etc/postfix/access",
        "warn_if_reject reject_unknown_client_hostname",
        "warn_if_reject reject_rbl_client zen.spamhaus.org=127.0.0.[2..11]",
        "check_helo_access inline:{a=reject, b=ok}",
        "check_policy_service { inet:127.0.0.1:1, timeout=5s }",
        "check_relay_domains",
        "permit",
    ] == words(MAIN_CF)


def test_a_restriction_in_a_string_knows_its_line() -> None:
    assert [1, 2, 2, 3, 4, 4, 5, 6] == [restriction.lines_below for restriction in split(MAIN_CF)]


def test_a_missing_argument_stays_missing() -> None:
    assert ["permit", "check_client_access"] == words("permit, check_client_access")
    assert ["warn_if_reject"] == words("warn_if_reject")


def test_the_default_list_has_one_word_for_each_restriction() -> None:
    assert DEFAULT_RESTRICTIONS.split(", ") == words(DEFAULT_RESTRICTIONS)


@given(st.text(alphabet="abc_{}:,/ \n", max_size=80))
def test_no_character_but_separators_is_lost(text: str) -> None:
    kept = "".join(word for restriction in split(text) for word in restriction.words)
    assert sorted(c for c in text if c not in ", \n") == sorted(c for c in kept if c not in ", \n")
