# SPDX-License-Identifier: GPL-3.0-or-later
"""Our own `dnsbl`: weights, a threshold, and who is never refused."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gatekeeper.checks.dnslists.dnsbl import Dnsbl
from gatekeeper.core.verdict import PASS
from gatekeeper.dnsclient.resolver import Answer
from gatekeeper.dnsclient.zone import Zone
from tests.support.checking import World, rcpt

ZONE = """
1.2.0.192.one.example A 127.0.0.2
1.2.0.192.two.example A 127.0.0.3
1.2.0.192.allow.example A 127.0.0.1
1.2.0.192.two.example TXT "two says so"
2.2.0.192.one.example A 127.0.0.2
3.2.0.192.one.example A !SERVFAIL
3.2.0.192.two.example A 127.0.0.2
4.2.0.192.zen.spamhaus.org A 127.0.0.4
5.2.0.192.zen.spamhaus.org A 127.255.255.254
"""


def world(zone: str = ZONE, **options: object) -> World:
    return World("dnsbl", zone, {"dnsbl": Dnsbl.model_validate(options)})


async def test_zen_is_asked_when_nothing_is_said() -> None:
    verdict = await World("dnsbl", ZONE).verdict(rcpt(address="192.0.2.4"))
    assert ("554 5.7.1", "dnsbl.listed") == (f"{verdict.code} {verdict.enhanced}", verdict.reason)
    assert PASS == await World("dnsbl", ZONE).verdict(rcpt(address="192.0.2.5"))


@pytest.mark.parametrize(
    ("threshold", "lists", "refused"),
    [
        (1, ["one.example"], True),
        (2, ["one.example"], False),
        (2, ["one.example", "two.example"], True),
        (3, ["one.example*2", "two.example"], True),
        (1, ["one.example", "allow.example*-1"], False),
        (1, ["one.example*2", "allow.example*-1"], True),
    ],
)
async def test_weights_are_summed_up_to_the_threshold(threshold: int, lists: list[str], refused: bool) -> None:
    verdict = await world(lists=lists, threshold=threshold).verdict(rcpt())
    assert ("dnsbl.listed" if refused else "") == verdict.reason


async def test_the_reply_names_the_list_that_weighs_most() -> None:
    verdict = await world(lists=["one.example", "two.example*2"]).verdict(rcpt())
    assert "Service unavailable; Client host [192.0.2.1] blocked using two.example; two says so" == verdict.text


async def test_trouble_is_no_hit_and_is_written_down() -> None:
    decision = await world(lists=["one.example"]).decide(rcpt(address="192.0.2.3"))
    [note] = decision.steps[0].notes
    assert (PASS, "list one.example") == (decision.verdict, note.what)
    assert note.found.startswith("no answer")


async def test_one_list_in_trouble_does_not_hide_another() -> None:
    assert "554" == (await world(lists=["one.example", "two.example"]).verdict(rcpt(address="192.0.2.3"))).code


@pytest.mark.parametrize("recipient", ["postmaster@example.com", "Abuse@relay.example"])
async def test_our_postmaster_can_always_be_reached(recipient: str) -> None:
    decision = await world(lists=["one.example"]).decide(rcpt(recipient=recipient))
    assert (PASS, ("dnsbl.always_reachable",)) == (decision.verdict, decision.reasons)


async def test_another_s_postmaster_is_not_ours() -> None:
    assert "554" == (await world(lists=["one.example"]).verdict(rcpt(recipient="abuse@elsewhere.example"))).code


async def test_users_and_internal_hosts_are_not_looked_up() -> None:
    zone = "*.one.example A 127.0.0.2"
    assert PASS == await world(zone, lists=["one.example"]).verdict(rcpt(address="10.0.0.1"))
    assert PASS == await world(zone, lists=["one.example"]).verdict(rcpt(sasl_user="alice"))


async def test_all_lists_are_asked_at_once() -> None:
    everyone_is_here = asyncio.Barrier(3)

    class Meets:
        async def query(self, name: str, type: str) -> Answer:
            async with asyncio.timeout(20):
                await everyone_is_here.wait()
            return Answer(name, type, exists=False)

        async def close(self) -> None: ...

    subject = world(lists=["one.example", "two.example", "three.example"])
    subject.resolver = Meets()
    assert PASS == await subject.verdict(rcpt())


def test_a_mistake_in_a_list_says_what_is_allowed() -> None:
    with pytest.raises(ValidationError, match="allowed: "):
        Dnsbl.model_validate({"lists": ["zone=300.0.0.1"]})


@given(st.binary(max_size=255))
async def test_whatever_a_list_says_stays_in_its_place(text: bytes) -> None:
    quoted = "".join(f"\\{byte:03}" for byte in text)
    zone = f'1.2.0.192.one.example A 127.0.0.2\n1.2.0.192.one.example TXT "{quoted}"'
    assert Zone.parse(zone)
    reply = (await world(zone, lists=["one.example"]).verdict(rcpt())).reply
    assert reply.isascii()
    assert reply.isprintable()
    assert len(reply) < 400


NAMES = """
helo.example.dbl.example A 127.0.1.2
sender.example.dbl.example A 127.0.1.4
ptr.example.dbl.example A 127.0.1.6
ptr.example.dbl.example TXT "a bad name"
"""


@pytest.mark.parametrize(
    ("option", "label"),
    [
        ("helo_lists", "Helo command [helo.example]"),
        ("sender_lists", "Sender address [u@sender.example]"),
        ("reverse_name_lists", "Unverified Client host [ptr.example]"),
    ],
)
async def test_lists_of_names_are_asked_about_what_they_are_for(option: str, label: str) -> None:
    request = rcpt(helo="helo.example", sender="u@sender.example", reverse_name="ptr.example")
    verdict = await world(NAMES, lists=[], **{option: ["dbl.example"]}).verdict(request)
    assert f"Service unavailable; {label} blocked using dbl.example" == verdict.text.partition("; a bad")[0]


async def test_hits_about_all_subjects_make_one_sum() -> None:
    request = rcpt(helo="helo.example", sender="u@sender.example", reverse_name="ptr.example")
    options = {"helo_lists": ["dbl.example"], "sender_lists": ["dbl.example"], "reverse_name_lists": ["dbl.example*2"]}
    for threshold, code in ((4, "554"), (5, "")):
        assert code == (await world(NAMES, lists=[], threshold=threshold, **options).verdict(request)).code


@pytest.mark.parametrize(("helo", "sender"), [("[192.0.2.1]", ""), ("192.0.2.1", "u@[192.0.2.1]"), ("h.1", None)])
async def test_lists_of_names_are_not_asked_about_numbers_and_nobody(helo: str, sender: str | None) -> None:
    subject = world("*.dbl.example A 127.0.0.2", lists=[], helo_lists=["dbl.example"], sender_lists=["dbl.example"])
    assert ((),) == tuple(step.notes for step in (await subject.decide(rcpt(helo=helo, sender=sender))).steps)


@pytest.mark.parametrize(("allow", "code"), [("broken.example*-1", "450"), ("well.example*-1", "554")])
async def test_an_allow_list_that_does_not_answer_makes_the_refusal_temporary(allow: str, code: str) -> None:
    zone = ZONE + "*.broken.example A !SERVFAIL\n2.0.0.127.well.example A 127.0.0.2"
    assert code == (await world(zone, lists=["one.example", allow]).verdict(rcpt())).code


async def test_an_allow_list_that_could_not_have_saved_the_client_changes_nothing() -> None:
    zone = ZONE + "*.broken.example A !SERVFAIL"
    assert "554" == (await world(zone, lists=["one.example*3", "broken.example*-1"]).verdict(rcpt())).code
