# SPDX-License-Identifier: GPL-3.0-or-later
"""Greylisting: who waits, how long, and who is known."""

import pytest

from gatekeeper.checks.greylist import Greylist
from gatekeeper.request import Request
from gatekeeper.store import StoreError
from gatekeeper.stores.memory import MemoryStore
from gatekeeper.verdict import Outcome
from tests.checking import World, rcpt

DAY = 86400


def world(words: str = "greylist", zone: str = "", **options: object) -> World:
    return World(words, zone, {"greylist": Greylist.model_validate({"learning": 0} | options)})


def stranger(**what: str) -> Request:
    return rcpt(**{"name": "unknown"} | what)  # type: ignore[arg-type]  # strings only


async def reasons(subject: World, *requests: Request) -> list[str]:
    return [", ".join((await subject.decide(request)).reasons) for request in requests]


async def test_the_first_mail_waits_and_is_told_how_long() -> None:
    verdict = await world().verdict(stranger())
    assert "450 4.7.1 Greylisted: please try again in 5 minutes" == verdict.reply
    assert (Outcome.DEFER_IF_PERMIT, "greylist.early") == (verdict.outcome, verdict.reason)


async def test_a_retry_that_comes_too_early_is_told_what_is_left() -> None:
    subject = world()
    await subject.decide(stranger())
    subject.now += 250
    assert "try again in 1 minute" in (await subject.verdict(stranger())).text


async def test_a_retry_after_the_delay_passes_and_is_known_from_then_on() -> None:
    subject = world()
    assert ["greylist.early"] == await reasons(subject, stranger())
    subject.now += 300
    assert ["greylist.passed", "greylist.known"] == await reasons(subject, stranger(), stranger())


async def test_a_retry_from_a_neighbour_address_is_the_same_client() -> None:
    subject = world()
    await subject.decide(stranger(address="192.0.2.1"))
    await subject.decide(stranger(address="2001:db8::1"))
    subject.now += 300
    expected = ["greylist.passed", "greylist.early", "greylist.passed", "greylist.early"]
    addresses = ["192.0.2.200", "192.0.3.1", "2001:db8::ffff", "2001:db8:0:1::1"]
    assert expected == await reasons(subject, *(stranger(address=address) for address in addresses))


async def test_another_sender_or_recipient_waits_for_itself_and_case_does_not_matter() -> None:
    subject = world()
    await subject.decide(stranger())
    subject.now += 300
    same = stranger(sender="SENDER@example.net", recipient="User@Example.com")
    others = stranger(sender="other@example.net"), stranger(recipient="other@example.com"), stranger(sender="")
    assert ["greylist.passed"] + ["greylist.early"] * 3 == await reasons(subject, same, *others)


async def test_who_comes_back_after_the_retry_window_starts_again() -> None:
    subject = world(retry_window="1h")
    await subject.decide(stranger())
    subject.now += 3601
    assert ["greylist.early"] == await reasons(subject, stranger())


async def test_a_triplet_is_known_for_its_lifetime_since_its_last_mail() -> None:
    subject = world(lifetime="10d")
    await subject.decide(stranger())
    subject.now += 300
    for _ in range(4):
        assert ["early" not in reason for reason in await reasons(subject, stranger())] == [True]
        subject.now += 9 * DAY
    subject.now += 2 * DAY
    assert ["greylist.early"] == await reasons(subject, stranger())


async def test_a_network_that_has_shown_enough_triplets_waits_no_more() -> None:
    subject = world(auto_allow=2)
    first = [stranger(sender=f"{name}@example.net") for name in "ab"]
    assert ["greylist.early"] * 2 == await reasons(subject, *first)
    subject.now += 300
    assert ["greylist.passed", "greylist.passed"] == await reasons(subject, *first)
    assert ["greylist.known_network"] == await reasons(subject, stranger(sender="c@example.net"))


async def test_one_triplet_that_comes_often_does_not_make_its_network_known() -> None:
    subject = world(auto_allow=2)
    await subject.decide(stranger())
    for _ in range(9):
        subject.now += 4 * DAY / 9 + 300
        await subject.decide(stranger())
    assert ["greylist.early"] == await reasons(subject, stranger(sender="c@example.net"))


@pytest.mark.parametrize(
    ("request_", "waits"),
    [
        (rcpt(), False),
        (rcpt(name="unknown"), True),
        (rcpt(name="dsl-192-0-2-1.example.net"), True),
        (rcpt(name="host.dhcp.example.net"), True),
        (rcpt(address="192.0.2.7"), True),
        (rcpt(name="unknown", address="10.0.0.1"), False),
        (rcpt(name="unknown", sasl_user="alice"), False),
        (rcpt(name="unknown", recipient="postmaster@example.com"), False),
        (rcpt(name="unknown", recipient="abuse@relay.example"), False),
        (rcpt(name="unknown", address="unknown"), False),
    ],
)
async def test_only_suspicious_clients_wait(request_: Request, waits: bool) -> None:
    subject = world(zone="7.2.0.192.wide.example A 127.0.0.2", lists=["wide.example"])
    assert waits == ("greylist.early" in (await subject.decide(request_)).reasons)


async def test_everybody_waits_where_that_is_wanted() -> None:
    assert ["greylist.early"] == await reasons(world(clients="all"), rcpt())


async def test_in_its_first_days_a_store_learns_and_nobody_waits() -> None:
    subject = world(learning="1d")
    assert ["greylist.learning"] == await reasons(subject, stranger())
    subject.now += DAY + 1
    assert ["greylist.known", "greylist.early"] == await reasons(
        subject, stranger(), stranger(sender="new@example.net")
    )


async def test_what_is_refused_for_good_is_not_remembered() -> None:
    subject = world("greylist, reject_non_fqdn_helo_hostname")
    await subject.decide(stranger(helo="localhost"))
    subject.now += 300
    assert ["greylist.early"] == await reasons(subject, stranger())


async def test_a_later_check_can_still_refuse_for_good() -> None:
    assert "504" == (await world("greylist, reject_non_fqdn_helo_hostname").verdict(stranger(helo="localhost"))).code


@pytest.mark.parametrize("broken", ["get", "set"])
async def test_without_a_store_nobody_waits_longer_than_it_knows(broken: str) -> None:
    async def fails(*args: object, **options: object) -> None:
        raise StoreError("gone")

    subject = world()
    subject.store = MemoryStore(lambda: subject.now)
    await subject.store.born()
    setattr(subject.store, broken, fails)
    expected = ("greylist.store",) if broken == "get" else ("greylist.early",)
    assert expected == (await subject.decide(stranger())).reasons


async def test_a_damaged_entry_passes() -> None:
    class Damaged(MemoryStore):
        async def get(self, key: str) -> bytes | None:
            return b"\xff\x00"

    subject = world()
    subject.store = Damaged()
    assert ["greylist.passed"] == await reasons(subject, stranger())
