# SPDX-License-Identifier: GPL-3.0-or-later
"""Postfix's words for DNS lists: what is asked, what is skipped, and what trouble does."""

import asyncio

import pytest

from gatekeeper.checks.base.check_types import PostfixCheck
from gatekeeper.checks.dnslists.rbl import RejectListed, prefetch_adjacent
from gatekeeper.dnsclient.caching import CachingResolver
from gatekeeper.dnsclient.resolver import Answer
from tests.support.checking import World, mistakes, rcpt, reply

ZONE = r"""
1.2.0.192.bl.example A 127.0.0.2
1.2.0.192.bl.example TXT "Listed, see" " https://bl.example/192.0.2.1"
2.2.0.192.bl.example A 127.0.0.10
3.2.0.192.bl.example A 127.255.255.254
4.2.0.192.bl.example A 203.0.113.7
5.2.0.192.bl.example A !SERVFAIL
6.2.0.192.bl.example A 127.0.0.2
6.2.0.192.bl.example TXT !SERVFAIL
1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.bl.example A 127.0.0.2
bad.example.dbl.example A 127.0.1.2
"""


@pytest.mark.parametrize(
    ("address", "list", "code"),
    [
        ("192.0.2.1", "bl.example", "554 5.7.1"),
        ("2001:db8::1", "bl.example", "554 5.7.1"),
        ("192.0.2.1", "bl.example=127.0.0.2", "554 5.7.1"),
        ("192.0.2.1", "bl.example=127.0.0.[3..11]", ""),
        ("192.0.2.2", "bl.example=127.0.0.[2;4..11]", "554 5.7.1"),
        ("192.0.2.3", "bl.example", ""),  # the operator's error
        ("192.0.2.3", "bl.example=127.[0..255].[0..255].[0..255]", ""),
        ("192.0.2.4", "bl.example", ""),  # a parked zone
        ("192.0.2.5", "bl.example", ""),  # trouble
        ("192.0.2.6", "bl.example", "554 5.7.1"),  # listed, with no text to be had
        ("192.0.2.9", "bl.example", ""),
        ("unknown", "bl.example", ""),
    ],
)
async def test_reject_rbl_client(address: str, list: str, code: str) -> None:
    assert code == await reply(f"reject_rbl_client {list}", rcpt(address=address), ZONE)


async def test_the_reply_is_postfix_s_with_the_list_s_own_words() -> None:
    verdict = await World("reject_rbl_client bl.example=127.0.0.2", ZONE).verdict(rcpt())
    expected = "Service unavailable; Client host [192.0.2.1] blocked using bl.example; Listed, see https://bl.example/192.0.2.1"
    assert expected == verdict.text


@pytest.mark.parametrize(
    ("word", "request_"),
    [
        ("reject_rhsbl_client", rcpt(name="bad.example")),
        ("reject_rhsbl_reverse_client", rcpt(reverse_name="bad.example")),
        ("reject_rhsbl_helo", rcpt(helo="BAD.example")),
        ("reject_rhsbl_sender", rcpt(sender="user@bad.example")),
        ("reject_rhsbl_recipient", rcpt(recipient="user@bad.example")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_rhsbl_asks_for_the_domain(word: str, request_: object) -> None:
    assert "554 5.7.1" == await reply(f"{word} dbl.example", request_, ZONE)  # type: ignore[arg-type]  # a Request


@pytest.mark.parametrize("helo", ["192.0.2.1", "[192.0.2.1]", "host.123", "", "bad..example"])
async def test_rhsbl_asks_for_no_numbers_and_no_nonsense(helo: str) -> None:
    decision = await World("reject_rhsbl_helo dbl.example", "*.dbl.example A 127.0.0.2").decide(rcpt(helo=helo))
    assert ((), ()) == (decision.reasons, decision.steps[0].notes)


@pytest.mark.parametrize("word", ["client", "reverse_client", "helo", "sender", "recipient"])
async def test_unknown_is_no_name_of_a_client_and_a_name_like_others_elsewhere(word: str) -> None:
    for name in ("unknown", "Unknown"):
        request = rcpt(name=name, reverse_name=name, helo=name, sender=f"a@{name}", recipient=f"b@{name}")
        listed = await reply(f"reject_rhsbl_{word} dbl.example", request, "unknown.dbl.example A 127.0.0.2")
        assert ("" if word.endswith("client") else "554 5.7.1") == listed


async def test_an_allow_list_permits_for_our_domains_only() -> None:
    words = "permit_dnswl_client bl.example, reject"
    assert "" == await reply(words, rcpt(), ZONE)
    assert "554 5.7.1" == await reply(words, rcpt(recipient="user@elsewhere.example"), ZONE)
    assert "554 5.7.1" == await reply(words, rcpt(address="192.0.2.9"), ZONE)


async def test_a_failing_allow_list_makes_a_later_5xx_temporary() -> None:
    assert "450 4.7.1" == await reply("permit_dnswl_client bl.example, reject", rcpt(address="192.0.2.5"), ZONE)


async def test_an_allow_list_of_names_permits() -> None:
    assert "" == await reply("permit_rhswl_client dbl.example, reject", rcpt(name="bad.example"), ZONE)


class Together:
    """Answers nobody before three have asked."""

    def __init__(self) -> None:
        self.barrier = asyncio.Barrier(3)

    async def query(self, name: str, type: str) -> Answer:
        async with asyncio.timeout(20):
            await self.barrier.wait()
        return Answer(name, type, exists=False, ttl=60)

    async def close(self) -> None:
        pass


async def test_lists_that_stand_side_by_side_are_asked_at_once() -> None:
    world = World(", ".join(["permit_mynetworks", *(f"reject_rbl_client {letter}.example" for letter in "abc")]))
    world.checks = prefetch_adjacent(world.checks)
    world.resolver = CachingResolver(Together())
    world.lists.timeout = 30
    assert ["not listed"] * 3 == [note.found for step in (await world.decide(rcpt())).steps for note in step.notes]


def test_only_the_first_of_neighbours_asks_ahead() -> None:
    lists = [f"reject_rbl_client {letter}.example" for letter in "abcde"]
    world = World(", ".join([*lists[:3], "permit_mynetworks", *lists[3:]]))
    judges = [check.judge for check in prefetch_adjacent(world.checks) if isinstance(check, PostfixCheck)]
    assert [2, 0, 0, 1, 0] == [len(judge.prefetched) for judge in judges if isinstance(judge, RejectListed)]


def test_a_weight_belongs_to_our_own_lists() -> None:
    [what] = mistakes("reject_rbl_client bl.example*2")
    assert "reject_rbl_client takes no weights; lists with weights go into [checks.dnsbl]" == what
