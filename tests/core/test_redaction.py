# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys of paid lists: shown nowhere, whatever goes wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.checks.dnslists.dnsbl import Dnsbl
from gatekeeper.checks.dnslists.lookup import parse_list, sanitize
from gatekeeper.core import redaction
from tests.support.checking import World, mistakes, rcpt

KEY = "abcd1234efgh5678ijkl90mnop"
ZEN = f"{KEY}.zen.dq.spamhaus.net"


@pytest.mark.parametrize(
    ("zone", "shown"),
    [
        (ZEN, "zen.dq.spamhaus.net"),
        (f"{KEY}.dbl.dq.spamhaus.net", "dbl.dq.spamhaus.net"),
        ("short.combined.mail.abusix.zone", "combined.mail.abusix.zone"),
        (f"{KEY}.lists.example.com", "lists.example.com"),
        (KEY, "(a key)"),
        ("zen.spamhaus.org", "zen.spamhaus.org"),
        ("zen.dq.spamhaus.net", "zen.dq.spamhaus.net"),
        ("hostkarma.junkemailfilter.com", "hostkarma.junkemailfilter.com"),
        ("all.s5h.net", "all.s5h.net"),
        ("b.barracudacentral.org", "b.barracudacentral.org"),
    ],
)
def test_a_zone_is_shown_without_its_key(zone: str, shown: str) -> None:
    assert shown == redaction.without_key(zone)


@pytest.mark.parametrize(
    "text",
    [
        f"A 2.0.0.127.{ZEN}: no answer in time",
        f"'{ZEN}=127.0.0.[2..11' is not a DNS list",
        f"unknown restriction '{ZEN.upper()}'",
        f"dnsbl takes no argument: {ZEN}*3",
        f"x.example.{KEY}.unknown.operator.example: SERVFAIL",
        f"<{ZEN}>",
        f"a!{ZEN}",
    ],
)
def test_no_text_shows_a_key(text: str) -> None:
    assert KEY not in redaction.hide_keys(text).lower()


@given(st.text("ab01.-_ '\"=[]*"), st.text("xyz456_-", min_size=1), st.text("ab01.-_ '\"=[]*"))
def test_a_known_operator_s_key_is_hidden_in_any_text(before: str, key: str, after: str) -> None:
    hidden = redaction.hide_known_keys(f"{before}.{key}.zen.dq.spamhaus.net {after}")
    assert not {*hidden} & {*key} - {*"-_z"}


@given(st.text())
def test_text_without_keys_of_known_operators_is_left_alone(text: str) -> None:
    assert text == redaction.hide_known_keys(text)


def test_a_list_s_representation_has_no_key() -> None:
    assert KEY not in repr(parse_list(ZEN))


@pytest.mark.parametrize(
    "words",
    [
        f"reject_rbl_client {ZEN}=127.0.0.[2..11",
        f"reject_rbl_client {ZEN}=10.0.0.1",
        f"reject_rbl_client {ZEN}*2",
        f"reject_rbl_client {ZEN}=127.0.0.2 {ZEN}",
        f"reject_rbl_clients {ZEN}",
        f"dnsbl {ZEN}",
        ZEN,
        f"{ZEN}..",
        f"reject_rbl_client {KEY}..{ZEN}",
        f"reject_rbl_client {KEY}!",
    ],
)
def test_a_mistake_about_a_list_does_not_tell_its_key(words: str) -> None:
    problems = mistakes(words)
    assert [] == [problem for problem in problems if KEY in problem]


ZONE = f"""
1.2.0.192.{ZEN} A 127.0.0.2
1.2.0.192.{ZEN} TXT "see https://check.example/{KEY}?q={ZEN.upper()} for more"
2.2.0.192.{ZEN} A !SERVFAIL
3.2.0.192.{ZEN} A 127.255.255.252
bad.example.{KEY}.dbl.dq.spamhaus.net A 127.0.1.2
"""


@pytest.mark.parametrize("address", ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.9"])
@pytest.mark.parametrize("words", ["dnsbl", f"reject_rbl_client {ZEN}, reject_rhsbl_sender {KEY}.dbl.dq.spamhaus.net"])
async def test_a_decision_does_not_tell_a_key(address: str, words: str, caplog: pytest.LogCaptureFixture) -> None:
    world = World(words, ZONE, {"dnsbl": Dnsbl.model_validate({"lists": [ZEN]})})
    for _ in range(3):
        await world.lists.probe()
        decision = await world.decide(rcpt(address=address, sender="user@bad.example"))
        assert KEY not in repr(decision).lower()
    assert KEY not in caplog.text.lower()


async def test_the_reply_names_the_list_without_its_key() -> None:
    reply = (await World(f"reject_rbl_client {ZEN}", ZONE).verdict(rcpt())).reply
    expected = "blocked using zen.dq.spamhaus.net; see https://check.example/?q=ZEN.DQ.SPAMHAUS.NET for more"
    assert expected in reply


@given(st.lists(st.binary(max_size=80) | st.just(KEY.encode()), max_size=5))
def test_a_list_s_own_words_are_a_line_of_bounded_length_without_the_key(texts: list[bytes]) -> None:
    said = sanitize(texts, ZEN)
    assert (True, True, True) == (said.isascii(), said.isprintable(), len(said) <= 200)
    assert KEY not in said.lower()
