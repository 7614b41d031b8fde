# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of words: what a restriction list may say, and the sentence about what it may not."""

import gzip
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.builder.builder import CheckBuilder
from gatekeeper.checks.builder.own_checks import OWN_CHECKS, SECTIONS
from gatekeeper.checks.builder.postfix_words import (
    BARE_TABLES,
    LIST_WORDS,
    LOGIN_WORDS,
    MAP_WORDS,
    OLD_NAMES,
    PLAIN_WORDS,
    TABLE_WORDS,
    UNSUPPORTED,
)
from gatekeeper.checks.tables.certificate_access import parse_search
from gatekeeper.core.verdict import Mode
from gatekeeper.pipeline.check import Check
from gatekeeper.postfix.restriction_list import split_words
from tests.support.checking import HERE, mistakes
from tests.support.needs import ROOT

POSTFIX = [
    "check_ccert_access",
    "check_client_a_access",
    "check_client_access",
    "check_client_mx_access",
    "check_client_ns_access",
    "check_etrn_access",
    "check_helo_a_access",
    "check_helo_access",
    "check_helo_mx_access",
    "check_helo_ns_access",
    "check_policy_service",
    "check_recipient_a_access",
    "check_recipient_access",
    "check_recipient_maps",
    "check_recipient_mx_access",
    "check_recipient_ns_access",
    "check_relay_domains",
    "check_reverse_client_hostname_a_access",
    "check_reverse_client_hostname_access",
    "check_reverse_client_hostname_mx_access",
    "check_reverse_client_hostname_ns_access",
    "check_sasl_access",
    "check_sender_a_access",
    "check_sender_access",
    "check_sender_mx_access",
    "check_sender_ns_access",
    "defer",
    "defer_if_permit",
    "defer_if_reject",
    "defer_unauth_destination",
    "permit",
    "permit_auth_destination",
    "permit_dnswl_client",
    "permit_inet_interfaces",
    "permit_mx_backup",
    "permit_mynetworks",
    "permit_naked_ip_address",
    "permit_rhswl_client",
    "permit_sasl_authenticated",
    "permit_tls_all_clientcerts",
    "permit_tls_clientcerts",
    "reject",
    "reject_authenticated_sender_login_mismatch",
    "reject_invalid_helo_hostname",
    "reject_invalid_hostname",
    "reject_known_sender_login_mismatch",
    "reject_maps_rbl",
    "reject_multi_recipient_bounce",
    "reject_non_fqdn_helo_hostname",
    "reject_non_fqdn_hostname",
    "reject_non_fqdn_recipient",
    "reject_non_fqdn_sender",
    "reject_plaintext_session",
    "reject_rbl",
    "reject_rbl_client",
    "reject_rhsbl_client",
    "reject_rhsbl_helo",
    "reject_rhsbl_recipient",
    "reject_rhsbl_reverse_client",
    "reject_rhsbl_sender",
    "reject_sender_login_mismatch",
    "reject_unauth_destination",
    "reject_unauth_pipelining",
    "reject_unauthenticated_sender_login_mismatch",
    "reject_unknown_address",
    "reject_unknown_client",
    "reject_unknown_client_hostname",
    "reject_unknown_helo_hostname",
    "reject_unknown_hostname",
    "reject_unknown_recipient_domain",
    "reject_unknown_reverse_client_hostname",
    "reject_unknown_sender_domain",
    "reject_unlisted_recipient",
    "reject_unlisted_sender",
    "reject_unverified_recipient",
    "reject_unverified_sender",
    "sleep",
    "warn_if_reject",
]
"""Every restriction that generic_checks() of Postfix 3.7 to 3.12 knows, old names included."""

MAPS = {option: (["inline:{ a=b }"], SourceLine("gatekeeper.toml")) for option in MAP_WORDS.values()}


def read(words: str, folder: Path = HERE) -> Check | None:
    return CheckBuilder({}, folder, maps=MAPS).check(
        [word for _, word in split_words(words)], SourceLine("gatekeeper.toml", 7)
    )


def argument_of(word: str) -> str:
    if OLD_NAMES.get(word, word) in LIST_WORDS:
        return " bl.example"
    return " inline:{ a=DUNNO }" if word in TABLE_WORDS else " permit" if word == "warn_if_reject" else ""


@pytest.mark.parametrize("word", POSTFIX)
def test_every_word_of_postfix_is_done_or_refused_with_a_reason(word: str) -> None:
    assert (read(word + argument_of(word)) is None) == (word in UNSUPPORTED)


def test_no_word_is_refused_that_postfix_does_not_have() -> None:
    assert UNSUPPORTED.keys() <= set(POSTFIX)


def test_the_installed_postfix_documents_no_other_word() -> None:
    page = next(Path("/usr/share/man/man5").glob("postconf.5*"), None)
    if page is None:
        pytest.skip("the manual page postconf(5) is not installed")
    text = gzip.decompress(page.read_bytes()) if page.suffix == ".gz" else page.read_bytes()
    words = set(re.findall(r'^\.IP "\\fB((?:check|reject|permit|defer|warn)[a-z_]*)', text.decode(), re.MULTILINE))
    words -= {"check_address_map"}  # of local_header_rewrite_clients alone
    assert words
    assert words <= set(POSTFIX)


@pytest.mark.parametrize(
    "word",
    [*PLAIN_WORDS, *OWN_CHECKS, *MAP_WORDS, "access", "ratelimit", *(f"{word} bl.example" for word in LIST_WORDS)],
)
def test_each_word_makes_a_check(word: str) -> None:
    check = read(word)
    assert isinstance(check, Check)
    assert word == check.name


@pytest.mark.parametrize("word", TABLE_WORDS)
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


@pytest.mark.parametrize("word", UNSUPPORTED)
def test_what_cannot_be_had_is_refused_with_the_reason(word: str) -> None:
    assert [f"{word} cannot be checked here: {UNSUPPORTED[word]}"] == mistakes(word)


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
    reader = CheckBuilder({}, HERE)
    assert reader.check(["permit", "me"], SourceLine("gatekeeper.toml", 7)) is None
    assert ["gatekeeper.toml:7: permit takes no argument: 'me'"] == list(map(str, reader.problems))


def test_every_mistake_is_collected() -> None:
    assert 3 == len(mistakes("nonsense, check_policy_service unix:x, reject_rbl_client a..b"))


def test_a_section_is_the_check() -> None:
    section = OWN_CHECKS["dnsbl"].model_validate({"mode": "observe"})
    check = CheckBuilder({"dnsbl": section}, HERE).check(["dnsbl"], SourceLine("x"))
    assert check is section
    assert Mode.OBSERVE is section.mode


@pytest.mark.parametrize("model", SECTIONS.values(), ids=SECTIONS)
def test_every_option_says_what_it_is_for(model: type) -> None:
    fields = model.model_fields  # type: ignore[attr-defined]  # a pydantic model
    assert [] == [name for name, field in fields.items() if not field.description]


@given(st.lists(st.sampled_from([*UNSUPPORTED, *LIST_WORDS, "warn_if_reject", "permit"]) | st.text(), max_size=6))
def test_any_words_make_a_check_or_a_problem(words: list[str]) -> None:
    reader = CheckBuilder({}, HERE)
    assert (reader.check(words, SourceLine("x")) is None) == bool(reader.problems)


@pytest.mark.parametrize("word", [*LOGIN_WORDS, "permit_tls_clientcerts"])
def test_a_word_that_needs_tables_of_postfix_says_where_to_name_them(word: str) -> None:
    option = MAP_WORDS[word]
    assert [f"{word} needs the tables of Postfix's {option}; name them in policy.{option}"] == mistakes(word)


@pytest.mark.parametrize(("list_name", "word"), BARE_TABLES.items())
def test_a_table_without_a_word_means_what_it_means_in_postfix(list_name: str, word: str) -> None:
    check = CheckBuilder({}, HERE).check(["inline:{a=OK}"], SourceLine("x"), list_name)
    assert check is not None
    assert f"{word} inline:{{a=OK}}" == check.name


@pytest.mark.parametrize("written", ["$mine", "${mine}", "$(mine)", "check_client_access hash:$mine/access"])
def test_a_parameter_of_main_cf_is_refused_with_what_to_do(written: str) -> None:
    [what] = mistakes(written)
    assert what.startswith("$")
    assert what.endswith(" is not known here; write what `postconf -xh mine` says in its place")


def test_the_name_of_the_parameter_is_not_copied() -> None:
    [what, *_] = mistakes("smtpd_helo_restrictions = permit")
    assert "'smtpd_helo_restrictions' is not a restriction; write only what comes after the = in main.cf" == what


@pytest.mark.parametrize(
    ("argument", "attributes"),
    [
        ("hash:t", ("ccert_fingerprint", "ccert_pubkey_fingerprint")),
        ("{ hash:t }", ("ccert_fingerprint", "ccert_pubkey_fingerprint")),
        ("{ hash:t, { search_order = pubkey_fingerprint } }", ("ccert_pubkey_fingerprint",)),
        (
            "{ hash:t { search_order = pubkey_fingerprint cert_fingerprint } }",
            ("ccert_pubkey_fingerprint", "ccert_fingerprint"),
        ),
    ],
)
def test_check_ccert_access_has_a_search_order(argument: str, attributes: tuple[str, ...]) -> None:
    assert ("hash:t", attributes) == parse_search(argument)


@pytest.mark.parametrize("argument", ["{ hash:t, { search_order = } }", "{ hash:t, x=y }", "{ hash:t, { order=a } }"])
def test_a_search_order_that_is_none_is_refused(argument: str) -> None:
    with pytest.raises(ValueError, match="is not a search order; allowed: "):
        parse_search(argument)


def test_every_word_is_explained() -> None:
    page = (ROOT / "docs" / "restrictions.md").read_text(encoding="utf-8")
    ours = {*PLAIN_WORDS, *OWN_CHECKS, *LIST_WORDS, *TABLE_WORDS, *MAP_WORDS, "access", "ratelimit"}
    assert [] == sorted(word for word in ours | set(POSTFIX) if f"`{word}`" not in page)
