# SPDX-License-Identifier: GPL-3.0-or-later
"""HELO restrictions: the codes, the order of questions and the exceptions of a real Postfix."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.checking import SITE, World, rcpt, reply

ZONE = """
a.example A 192.0.2.1
aaaa.example AAAA 2001:db8::1
mx.example MX 10 a.example.
null.example MX 0 .
servfail.example ANY !SERVFAIL
mxfail.example MX !SERVFAIL
mxfail.example A 192.0.2.1
afail.example A !SERVFAIL
afail.example AAAA !NODATA
afail.example MX 10 a.example.
"""


@pytest.mark.parametrize(
    ("helo", "invalid", "non_fqdn", "unknown"),
    [
        ("a.example", "", "", ""),
        ("a.example.", "", "", "450 4.7.1"),  # one trailing dot is stripped before the syntax checks, not for DNS
        ("a.example..", "501 5.5.2", "504 5.5.2", "450 4.7.1"),
        ("localhost", "", "504 5.5.2", "450 4.7.1"),
        ("192.0.2.1", "", "504 5.5.2", "450 4.7.1"),
        ("2001:db8::1", "", "504 5.5.2", "450 4.7.1"),
        ("bad name", "501 5.5.2", "504 5.5.2", "450 4.7.1"),
        ("under_score.example", "", "", "450 4.7.1"),
        ("[192.0.2.1]", "", "", ""),
        ("[ipv6:2001:db8::1]", "", "", ""),
        ("[2001:db8::1]", "501 5.5.2", "501 5.5.2", "501 5.5.2"),
        ("[192.0.2.1", "501 5.5.2", "501 5.5.2", "501 5.5.2"),
        ("[]", "501 5.5.2", "501 5.5.2", "501 5.5.2"),
        ("", "", "", ""),
        ("aaaa.example", "", "", ""),
        ("mx.example", "", "", ""),
        ("null.example", "", "", ""),
        ("servfail.example", "", "", "450 4.7.1"),
        ("mxfail.example", "", "", ""),
        ("afail.example", "", "", ""),
        ("nowhere.example", "", "", "450 4.7.1"),
        ("\u00e9.example", "501 5.5.2", "504 5.5.2", "450 4.7.1"),
    ],
)
async def test_the_codes_are_those_of_postfix(helo: str, invalid: str, non_fqdn: str, unknown: str) -> None:
    request = rcpt(helo=helo)
    assert invalid == await reply("reject_invalid_helo_hostname", request, ZONE)
    assert non_fqdn == await reply("reject_non_fqdn_helo_hostname", request, ZONE)
    assert unknown == await reply("reject_unknown_helo_hostname", request, ZONE)


async def test_only_a_missing_name_is_refused_with_the_code_of_the_parameter() -> None:
    site = replace(SITE, unknown_hostname_reject_code="550")
    assert "550 5.7.1" == await reply("reject_unknown_helo_hostname", rcpt(helo="no.example"), ZONE, site)
    assert "450 4.7.1" == await reply("reject_unknown_helo_hostname", rcpt(helo="servfail.example"), ZONE, site)


async def test_dns_trouble_leaves_the_word_to_later_checks() -> None:
    world = World("reject_unknown_helo_hostname, reject", ZONE)
    assert "554" == (await world.verdict(rcpt(helo="servfail.example"))).code


async def test_the_explanation_names_each_question() -> None:
    decision = await World("reject_unknown_helo_hostname", ZONE).decide(rcpt(helo="null.example"))
    assert ["A null.example", "AAAA null.example", "MX null.example"] == [note.what for note in decision.steps[0].notes]


@given(st.text())
async def test_no_helo_name_gets_out_of_its_place_in_the_reply(helo: str) -> None:
    verdict = await World("reject_invalid_helo_hostname, reject_non_fqdn_helo_hostname").verdict(rcpt(helo=helo))
    assert verdict.reply.isascii()
    assert verdict.reply.isprintable()
    assert len(verdict.reply) < 500
