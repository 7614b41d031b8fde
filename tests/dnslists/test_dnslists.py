# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists that one can trust: what test points say of a list, when it is off, and how it comes back; and the budget."""

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address

import pytest

from gatekeeper.checks.dnslists.lookup import parse_list, reversed_address
from gatekeeper.dnsclient.caching import CachingResolver
from gatekeeper.dnsclient.resolver import Answer, TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.dnslists.dns_list import DnsList, ListKind
from gatekeeper.dnslists.health import STRIKES
from gatekeeper.dnslists.monitor import ListMonitor
from gatekeeper.dnslists.queries import ListQueries, ListQuestion
from tests.support.checking import World, rcpt

V6 = "0.0.0.0.f.7.f.f.f.f" + 20 * ".0"
GOOD = """
2.0.0.127.bl.example A 127.0.0.2
9.2.0.192.bl.example A 127.0.0.4
"""
LISTED = ListQuestion(parse_list("bl.example"), ListKind.ADDRESS, "9.2.0.192")


def lists(zone: str, *written: str, kind: ListKind = ListKind.ADDRESS) -> ListMonitor:
    return ListMonitor(
        TableResolver(Zone.parse(zone)), uses=[(parse_list(text), kind) for text in written or ("bl.example",)]
    )


def change(watched: ListMonitor, zone: str) -> None:
    watched.resolver = TableResolver(Zone.parse(zone))


async def why_off(zone: str, written: str = "bl.example", kind: ListKind = ListKind.ADDRESS, probes: int = 1) -> str:
    watched = lists(zone, written, kind=kind)
    for _ in range(probes):
        await watched.probe()
    return watched.why_off(parse_list(written))


@pytest.mark.parametrize(
    ("zone", "written", "kind"),
    [
        (GOOD, "bl.example", ListKind.ADDRESS),
        (GOOD, "bl.example=127.0.0.9", ListKind.ADDRESS),  # what the filter wants, no test point shows
        (f"2.0.{V6}.bl.example A 127.0.0.2", "bl.example", ListKind.ADDRESS),
        ("test.bl.example A 127.0.1.2", "bl.example", ListKind.NAME),
        ("dbltest.com.dbl.spamhaus.org A 127.0.1.2", "dbl.spamhaus.org", ListKind.NAME),
        # an answer that no use of the list counts harms nobody
        (GOOD + "1.0.0.127.bl.example A 127.0.0.1", "bl.example=127.0.0.[2..9]", ListKind.ADDRESS),
        (f"{GOOD}2.0.{V6}.bl.example A !SERVFAIL", "bl.example", ListKind.ADDRESS),
    ],
)
async def test_a_list_that_is_well_stays_on(zone: str, written: str, kind: ListKind) -> None:
    assert "" == await why_off(zone, written, kind, STRIKES)


@pytest.mark.parametrize(
    ("zone", "written", "kind", "expected"),
    [
        ("*.bl.example A 127.0.0.2", "bl.example", ListKind.ADDRESS, "lists everything, even 127.0.0.1"),
        (f"{GOOD}1.0.{V6}.bl.example A 127.0.0.2", "bl.example", ListKind.ADDRESS, "lists everything"),
        ("*.bl.example A 127.0.1.2", "bl.example=127.0.1.[2..99]", ListKind.NAME, "lists everything, even invalid"),
        ("*.bl.example A 203.0.113.7", "bl.example", ListKind.ADDRESS, "answers what no list answers (203.0.113.7)"),
        ("*.bl.example A 127.255.255.252", "bl.example", ListKind.ADDRESS, "mistyped: check how it is spelled"),
        (
            "*.bl.example A 127.255.255.254",
            "bl.example",
            ListKind.ADDRESS,
            "public resolver: ask through a resolver of",
        ),
        ("*.bl.example A 127.255.255.255", "bl.example", ListKind.ADDRESS, "too often: take it out, or ask"),
        ("*.bl.example A 127.255.255.1", "bl.example", ListKind.ADDRESS, "refuses to answer (127.255.255.1"),
        ("*.list.dnswl.org A 127.0.0.255", "list.dnswl.org", ListKind.ADDRESS, "127.0.0.255, it was asked too often"),
        ("*.multi.uribl.com A 127.0.0.1", "multi.uribl.com", ListKind.NAME, "127.0.0.1, it was asked too often"),
        ("*.dbl.spamhaus.org A 127.0.1.255", "dbl.spamhaus.org", ListKind.ADDRESS, "it lists names"),
        ("", "bl.example", ListKind.ADDRESS, "lists nothing, not even 127.0.0.2"),
        ("", "bl.example", ListKind.NAME, "lists nothing, not even test"),
    ],
)
async def test_a_list_that_is_ill_is_off_and_says_why(zone: str, written: str, kind: ListKind, expected: str) -> None:
    assert expected in await why_off(zone, written, kind)


KARMA = """
2.0.0.127.karma.example A 127.0.0.2
1.0.0.127.karma.example A 127.0.0.1
9.2.0.192.karma.example A 127.0.0.2
8.2.0.192.karma.example A 127.0.0.1
"""
DENY, ALLOW, ANY = "karma.example=127.0.0.2", "karma.example=127.0.0.1", "karma.example"


async def replies(watched: ListMonitor, *written: str, subject: str = "9.2.0.192") -> list[tuple[str, ...]]:
    questions = [ListQuestion(parse_list(text), ListKind.ADDRESS, subject) for text in written]
    return [reply.records for reply in await ListQueries(watched).ask(questions)]


async def test_a_list_that_says_of_127_0_0_1_that_it_is_good_is_off_only_where_that_counts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watched = lists(KARMA, DENY, ALLOW, ANY)
    for _ in range(STRIKES):
        await watched.probe()
    assert ["", True, True] == [
        watched.why_off(parse_list(DENY)),
        "even 127.0.0.1" in watched.why_off(parse_list(ALLOW)),
        "even 127.0.0.1" in watched.why_off(parse_list(ANY)),
    ]
    assert [("127.0.0.2",), (), ()] == await replies(watched, DENY, ALLOW, ANY)
    assert [()] == await replies(watched, ALLOW, subject="8.2.0.192")
    why = "it lists everything, even 127.0.0.1, which no list may have (127.0.0.1)"
    off = f"DNS list karma.example is switched off where that answer counts: {why}. Its other uses go on"
    assert [off] == caplog.messages
    change(watched, KARMA.replace("1.0.0.127.karma", "1.0.0.127.other"))
    await watched.probe()
    assert [("127.0.0.2",)] * 3 == await replies(watched, DENY, ALLOW, ANY)
    assert "DNS list karma.example is switched on again: its test points are as they should be" == caplog.messages[-1]


@pytest.mark.parametrize("order", [(DENY, ALLOW), (ALLOW, DENY)])
async def test_one_question_serves_two_uses_of_which_one_is_off(order: tuple[str, ...]) -> None:
    for cached in (False, True):
        watched = lists(KARMA, DENY, ALLOW)
        await watched.probe()
        counting = Counting(KARMA)
        watched.resolver = CachingResolver(counting) if cached else counting
        watched.cache = watched.resolver if isinstance(watched.resolver, CachingResolver) else None
        for _ in range(2):
            assert [("127.0.0.2",) if one == DENY else () for one in order] == await replies(watched, *order)
        assert (1 if cached else 2) == len(counting.asked)


async def test_a_list_that_denies_everything_is_off_for_denying_and_harmless_for_allowing() -> None:
    watched = lists("*.karma.example A 127.0.0.2", DENY, ALLOW)
    await watched.probe()
    assert "even 127.0.0.1" in watched.why_off(parse_list(DENY))
    assert [()] == await replies(watched, DENY)


async def test_a_list_of_names_and_addresses_is_off_for_what_it_lists_all_of() -> None:
    zone = "2.0.0.127.karma.example A 127.0.0.2\n" + "".join(
        f"{name}.karma.example A 127.0.0.2\n" for name in ("test", "invalid", "bad.example", "9.2.0.192")
    )
    both = [(parse_list(ANY), kind) for kind in ListKind]
    watched = ListMonitor(TableResolver(Zone.parse(zone)), uses=both)
    await watched.probe()
    questions = [ListQuestion(*both[0], "9.2.0.192"), ListQuestion(*both[1], "bad.example")]
    assert [("127.0.0.2",), ()] == [reply.records for reply in await ListQueries(watched).ask(questions)]


async def test_a_use_that_is_off_stays_off_while_the_list_does_not_answer() -> None:
    watched = lists(KARMA, DENY, ALLOW)
    await watched.probe()
    change(watched, "*.karma.example A !SERVFAIL")
    for _ in range(STRIKES):
        await watched.probe()
        assert "" != watched.why_off(parse_list(ALLOW))
    change(watched, KARMA)
    await watched.probe()
    assert ["", True] == [watched.why_off(parse_list(DENY)), "" != watched.why_off(parse_list(ALLOW))]


@pytest.mark.parametrize("fault", ["SERVFAIL", "TIMEOUT"])
async def test_a_list_that_does_not_answer_is_off_after_some_tries(fault: str) -> None:
    zone = f"bl.example TXT x\n*.bl.example A !{fault}"
    assert "" == await why_off(zone, probes=STRIKES - 1)
    assert f"does not answer (!{fault})" == await why_off(zone, probes=STRIKES)


async def test_one_answer_in_between_starts_the_count_anew() -> None:
    watched = lists(GOOD)
    for bad in [True] * (STRIKES - 1) + [False] + [True] * (STRIKES - 1):
        change(watched, "*.bl.example A !SERVFAIL" if bad else GOOD)
        await watched.probe()
    assert "" == watched.why_off(LISTED.list)


class Counting:
    """A table that counts what it is asked."""

    def __init__(self, zone: str) -> None:
        self.inner = TableResolver(Zone.parse(zone))
        self.asked: list[str] = []

    async def query(self, name: str, type: str) -> Answer:
        self.asked.append(name)
        return await self.inner.query(name, type)

    async def close(self) -> None:
        pass


async def test_a_list_that_is_off_is_not_asked_and_its_answers_do_not_count() -> None:
    watched = lists("*.bl.example A 127.0.0.2")
    await watched.probe()
    watched.resolver = counting = Counting(GOOD)
    [reply] = await ListQueries(watched).ask([LISTED])
    assert ((), []) == (reply.records, counting.asked)
    assert reply.why.startswith("switched off: lists everything")


async def test_nothing_counts_before_the_first_probe_is_back() -> None:
    watched = lists("*.bl.example A 127.0.0.2\n*.late.example A 127.0.0.2")
    watching = watched.start()
    late = ListQuestion(parse_list("late.example"), ListKind.ADDRESS, "9.2.0.192")
    replies = await ListQueries(watched).ask([LISTED]) + await ListQueries(watched).ask([late])
    assert [True, True] == [reply.why.startswith("switched off: lists everything") for reply in replies]
    watching.cancel()


@pytest.mark.parametrize(
    "ill", ["*.bl.example A 127.0.0.2", "*.bl.example A 203.0.113.7", "*.bl.example A 127.255.255.254", ""]
)
async def test_going_and_coming_back_are_a_line_each(ill: str, caplog: pytest.LogCaptureFixture) -> None:
    watched = lists(ill)
    await watched.probe()
    await watched.probe()
    change(watched, GOOD)
    await watched.probe()
    await watched.probe()
    off, on = (record.getMessage() for record in caplog.records)
    assert off.startswith("DNS list bl.example is switched off: it ")
    assert "DNS list bl.example is switched on again: its test points are as they should be" == on
    assert (("127.0.0.4",), "") == ((await ListQueries(watched).ask([LISTED]))[0].records, watched.why_off(LISTED.list))


async def test_a_private_list_without_test_points_comes_back_with_its_first_hit_and_stays() -> None:
    watched = lists("9.2.0.192.bl.example A 127.0.0.4")
    await watched.probe()
    [reply] = await ListQueries(watched).ask([ListQuestion(LISTED.list, ListKind.ADDRESS, "1.2.0.192")])
    assert reply.why.startswith("not listed, but the list lists nothing, not even 127.0.0.2")
    assert ("127.0.0.4",) == (await ListQueries(watched).ask([LISTED]))[0].records
    for _ in range(3):
        await watched.probe()
    assert "" == watched.why_off(LISTED.list)


async def test_a_list_that_had_a_test_point_and_lost_it_is_off_once_it_hits_nobody() -> None:
    watched = lists(GOOD)
    await watched.probe()
    await ListQueries(watched).ask([LISTED])
    change(watched, "")
    await watched.probe()
    assert "" == watched.why_off(LISTED.list)  # it has listed somebody since
    await watched.probe()
    assert watched.why_off(LISTED.list).startswith("lists nothing")


@pytest.mark.parametrize(
    ("zone", "probes", "said"),
    [
        ("*. NS !TIMEOUT\n*. A !TIMEOUT", STRIKES, "the DNS resolver does not answer"),
        ("*. A 203.0.113.7", 1, "the DNS resolver invents answers"),
        ("", 1, "the DNS resolver finds no test point of any DNS list"),
    ],
)
async def test_a_resolver_that_is_ill_is_blamed_once_and_not_each_list(
    zone: str, probes: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    watched = lists(zone, "bl.example", "two.example")
    for _ in range(probes + 1):
        await watched.probe()
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(said)
    assert line.endswith("no DNS list works: bl.example, two.example")
    change(watched, GOOD + "2.0.0.127.two.example A 127.0.0.2")
    await watched.probe()
    assert "the DNS resolver is well again: DNS lists count (bl.example, two.example)" == caplog.messages[-1]


async def test_lists_that_fail_beside_a_resolver_that_works_are_named(caplog: pytest.LogCaptureFixture) -> None:
    watched = lists("*.bl.example A !SERVFAIL\n*.two.example A !SERVFAIL", "bl.example", "two.example")
    for _ in range(STRIKES):
        await watched.probe()
    assert ["bl.example", "two.example"] == [message.split()[2] for message in caplog.messages]


async def test_names_that_strangers_choose_switch_no_list_off() -> None:
    watched = lists(GOOD + "*.example.net.bl.example A !SERVFAIL\n*.evil.example.bl.example A 127.255.255.252")
    for number in range(20):
        names = (f"x{number}.example.net", f"x{number}.evil.example")
        await ListQueries(watched).ask([ListQuestion(LISTED.list, ListKind.NAME, name) for name in names])
    await watched.probe()
    assert ("127.0.0.4",) == (await ListQueries(watched).ask([LISTED]))[0].records


async def test_an_operator_s_error_about_a_client_is_told_once_and_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    world = World("reject_rbl_client bl.example", GOOD + "1.2.0.192.bl.example A 127.255.255.254")
    for _ in range(3):
        assert "" == (await world.decide(rcpt())).verdict.reply
        await world.lists.probe()
    [line] = caplog.messages
    assert "127.255.255.254, it was asked through a public resolver: ask through a resolver of your own" in line


async def test_one_health_serves_all_uses_of_a_zone() -> None:
    world = World("reject_rbl_client bl.example=127.0.0.2, reject_rbl_client bl.example", "*.bl.example A 127.0.0.2")
    await world.lists.probe()
    decision = await world.decide(rcpt())
    notes = [note.found for step in decision.steps for note in step.notes]
    assert [True, True] == [found.startswith("switched off: lists everything") for found in notes]


async def test_lists_in_a_suspicion_of_greylisting_are_watched_too() -> None:
    from gatekeeper.checks.greylisting.greylist import Greylist

    section = Greylist.model_validate({"lists": ["bl.example"]})
    world = World("greylist", "*.bl.example A 127.0.0.2", {"greylist": section})
    await world.lists.probe()
    assert world.lists.why_off(LISTED.list).startswith("lists everything")
    assert "" == (await world.verdict(rcpt())).reply


async def test_an_allow_list_that_does_not_answer_still_tempers_refusals_when_it_is_off() -> None:
    world = World("permit_dnswl_client bl.example, reject", "*.bl.example A !SERVFAIL")
    for _ in range(STRIKES):
        await world.lists.probe()
    assert "450" == (await world.verdict(rcpt())).code


async def test_an_allow_list_that_lists_everybody_permits_nobody() -> None:
    world = World("permit_dnswl_client bl.example, reject", "*.bl.example A 127.0.0.2")
    await world.lists.probe()
    assert "554" == (await world.verdict(rcpt())).code


class Slow:
    """Answers names of slow.example only when it may, and all others at once: everything is listed."""

    def __init__(self) -> None:
        self.may = asyncio.Event()

    async def query(self, name: str, type: str) -> Answer:
        if name.endswith("slow.example"):
            await self.may.wait()
        return Answer(name, type, ("127.0.0.2",), ttl=60)

    async def close(self) -> None:
        pass


def questions(*zones: str) -> Sequence[ListQuestion]:
    subject = reversed_address(ip_address("192.0.2.1"))
    return [ListQuestion(DnsList(zone), ListKind.ADDRESS, subject) for zone in zones]


async def test_a_slow_list_costs_the_others_nothing_and_fills_the_cache_when_it_comes() -> None:
    slow = Slow()
    resolver = CachingResolver(slow)
    watched = ListMonitor(resolver, timeout=0.05)
    replies = await ListQueries(watched).ask(questions("one.example", "slow.example", "two.example"))
    assert [("127.0.0.2",), (), ("127.0.0.2",)] == [reply.records for reply in replies]
    assert ("no answer: not within 0.05s", True) == (replies[1].why, replies[1].unknown)
    slow.may.set()
    await asyncio.sleep(0)
    [reply] = await ListQueries(watched).ask(questions("slow.example"))
    assert ("127.0.0.2",) == reply.records


async def test_all_lists_of_a_request_share_one_budget() -> None:
    slow = Slow()
    asking = ListQueries(ListMonitor(slow, timeout=0.05))
    await asking.ask(questions("slow.example"))
    loop = asyncio.get_running_loop()
    asked = loop.create_task(asking.ask(questions("two.slow.example", "three.slow.example")))
    turns = 0
    while not asked.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns < 20  # nothing was waited for
    assert [True, True] == [reply.unknown for reply in asked.result()]


async def test_what_is_remembered_counts_even_if_no_time_is_left_for_the_rest() -> None:
    slow = Slow()
    resolver = CachingResolver(slow)
    watched = ListMonitor(resolver)
    await ListQueries(watched).ask(questions("one.example"))
    replies = await ListQueries(watched, lambda: 0.0).ask(questions("slow.example", "one.example"))
    assert [(), ("127.0.0.2",)] == [reply.records for reply in replies]
    assert [True, False] == [reply.unknown for reply in replies]


async def test_a_question_that_two_lists_share_is_asked_once() -> None:
    counting = Counting(GOOD)
    sites = [parse_list("bl.example=127.0.0.2"), parse_list("bl.example=127.0.0.4")]
    replies = await ListQueries(ListMonitor(counting)).ask(
        [ListQuestion(site, ListKind.ADDRESS, "9.2.0.192") for site in sites]
    )
    assert (["9.2.0.192.bl.example"], 2) == (counting.asked, len(replies))
