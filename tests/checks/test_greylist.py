# SPDX-License-Identifier: GPL-3.0-or-later
"""Greylisting: who waits, how long, and who is known."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from gatekeeper.checks.dnslists.dnsbl import Dnsbl
from gatekeeper.checks.greylisting.greylist import SHIPPED, Greylist
from gatekeeper.core.problem import ConfigError
from gatekeeper.core.request import Request
from gatekeeper.core.verdict import Outcome
from gatekeeper.dnsclient.resolver import TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.stores.memory import MemoryStore
from gatekeeper.stores.store import StoreError
from tests.support.checking import World, rcpt

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


@pytest.mark.parametrize("clients", ["suspicious", "all"])
async def test_a_pool_that_spf_authenticates_passes_from_any_of_its_addresses(clients: str) -> None:
    zone = 'example.net TXT "v=spf1 ip4:192.0.2.0/24 ip4:198.51.100.0/24 ip6:2001:db8::/32 -all"'
    subject = world(zone=zone, clients=clients)
    assert ["greylist.early"] == await reasons(subject, stranger(address="192.0.2.1"))
    subject.now += 300
    assert ["greylist.passed", "greylist.known"] == await reasons(
        subject, stranger(address="198.51.100.9"), stranger(address="2001:db8:1::1")
    )
    assert ["greylist.early"] == await reasons(subject, stranger(address="203.0.113.1"))


@pytest.mark.parametrize(
    "record",
    [
        *("+all", "exists:yes.s.example", "exists:%{i}.s.example", "a:x.example/0//64", "redirect=open.example"),
        *("include:open.example", "ip4:0.0.0.0/0", "ip4:192.0.0.0/2 ip4:1.0.0.0/2", "mx:x.example/0"),
    ],
)
async def test_a_domain_that_lets_everybody_send_makes_nobody_known(record: str) -> None:
    subject = world(
        zone=f"""example.net TXT "v=spf1 {record}"
open.example TXT "v=spf1 +all"
x.example A 192.0.2.1
x.example MX 10 x.example
*.s.example A 127.0.0.2"""
    )
    await subject.decide(stranger(address="192.0.2.1"))
    subject.now += 300
    assert ["greylist.early"] == await reasons(subject, stranger(address="198.51.100.9"))


async def test_a_domain_that_has_shown_enough_triplets_waits_no_more_wherever_it_sends_from() -> None:
    subject = world(zone='example.net TXT "v=spf1 ip4:192.0.0.0/16 -all"', auto_allow=2)
    first = [stranger(sender=f"{name}@example.net", address=f"192.0.{n}.1") for n, name in enumerate("ab")]
    await reasons(subject, *first)
    subject.now += 300
    assert ["greylist.passed", "greylist.passed"] == await reasons(subject, *first)
    other = stranger(sender="c@example.net", address="192.0.77.1")
    assert ["greylist.known_network"] == await reasons(subject, other)


async def test_a_bounce_is_known_by_the_name_that_spf_confirms() -> None:
    subject = world(zone='mail.example.net TXT "v=spf1 ip4:192.0.0.0/16 -all"')
    await subject.decide(stranger(sender="", address="192.0.2.1"))
    subject.now += 300
    assert ["greylist.passed"] == await reasons(subject, stranger(sender="", address="192.0.3.1"))


async def test_who_waits_while_spf_cannot_be_known_does_not_wait_again_when_it_can() -> None:
    subject = world(zone="example.net TXT !SERVFAIL")
    await subject.decide(stranger())
    subject.resolver = TableResolver(Zone.parse('example.net TXT "v=spf1 ip4:192.0.2.1 -all"'))
    subject.now += 300
    assert ["greylist.passed"] == await reasons(subject, stranger())


async def test_a_sender_that_is_new_with_each_mail_is_one_sender() -> None:
    subject = world()
    await subject.decide(stranger(sender="bounce-1234-user=example.com@lists.example.net"))
    subject.now += 300
    again = stranger(sender="bounce-1235-user=example.com@lists.example.net")
    assert ["greylist.passed"] == await reasons(subject, again)


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


async def test_a_triplet_that_waits_passes_when_its_network_becomes_known() -> None:
    subject = world(auto_allow=1)
    await subject.decide(stranger())
    subject.now += 250
    await subject.decide(stranger(sender="b@example.net"))
    subject.now += 50
    expected = ["greylist.passed", "greylist.known_network"]
    assert expected == await reasons(subject, stranger(), stranger(sender="b@example.net"))


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    (tmp_path / "clients").write_text("known.example OK\n192.0.2 OK\nbad.known.example REJECT\n")
    (tmp_path / "recipients").write_text("open.example OK\nuser@ OK\nproven@example.com OK if=spf\n")
    (tmp_path / "opt-in").write_text("careful@example.com greylist\nopt.example greylist\n")
    return tmp_path


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (stranger(address="192.0.2.200"), "greylist.allowed"),
        (stranger(address="198.51.100.1", recipient="a@below.open.example"), "greylist.allowed"),
        (stranger(address="198.51.100.1", recipient="user+ext@example.com"), "greylist.allowed"),
        (stranger(address="198.51.100.1", recipient="proven@example.com"), "greylist.early"),
        (stranger(address="198.51.100.1", recipient="other@example.com"), "greylist.early"),
        (rcpt(address="198.51.100.1", name="dhcp.mx.known.example", recipient="b@c.example"), "greylist.allowed"),
        (rcpt(address="198.51.100.1", name="dhcp.bad.known.example", recipient="b@c.example"), "greylist.early"),
    ],
)
async def test_who_is_on_an_allow_list_does_not_wait(tables: Path, request_: Request, expected: str) -> None:
    options = {"allow_clients": ["hash:clients"], "allow_recipients": ["hash:recipients"], "learning": 0}
    subject = World("greylist", "", {"greylist": Greylist.model_validate(options)}, folder=tables)
    assert [expected] == await reasons(subject, request_)


async def test_recipients_can_ask_for_greylisting_one_by_one(tables: Path) -> None:
    words = "check_recipient_access hash:opt-in"
    subject = World(words, "", {"greylist": Greylist(learning=0, clients="all")}, folder=tables)
    asked = [stranger(recipient=to) for to in ("careful@example.com", "a@opt.example", "other@example.com")]
    assert ["greylist.early", "greylist.early", ""] == await reasons(subject, *asked)


def shipped() -> list[str]:
    path = Path(SHIPPED.removeprefix("hash:"))
    return [line for line in path.read_text(encoding="ascii").splitlines() if line and line[0] != "#"]


@pytest.mark.parametrize("line", shipped())
async def test_every_entry_of_the_shipped_list_is_a_domain_with_its_reason(line: str) -> None:
    domain, ok, why = line.split(None, 2)
    client = rcpt(name=f"dhcp-1.{domain}", address="198.51.100.1")
    assert ("OK", True, ["greylist.allowed"]) == (ok, bool(why), await reasons(world(), client))
    assert ["greylist.early"] == await reasons(world(allow_shipped=False), client)


async def test_only_a_confirmed_name_is_looked_up_in_the_shipped_list() -> None:
    assert ["greylist.early"] == await reasons(world(), rcpt(name="unknown", reverse_name="mail.google.com"))


def test_a_mistake_in_an_allow_list_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "clients").write_text("example.com\n")
    with pytest.raises(ConfigError, match=r"clients:1: 'example\.com' has no action"):
        World("greylist", "", {"greylist": Greylist(allow_clients=("hash:clients",))}, folder=tmp_path)


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


@pytest.mark.parametrize(
    "options", [{"threshold": 2}, {"mode": "observe"}, {"lists": ["wide.example*2", "good.example*-1"], "threshold": 2}]
)
async def test_who_is_listed_and_not_refused_for_it_waits(options: dict[str, object]) -> None:
    sections: dict[str, BaseModel] = {
        "dnsbl": Dnsbl.model_validate({"lists": ["wide.example"]} | options),
        "greylist": Greylist(learning=0),
    }
    zone = "1.2.0.192.wide.example A 127.0.0.2\n1.2.0.192.good.example A 127.0.0.2\n8.2.0.192.good.example A 127.0.0.2"
    subject = World("dnsbl, greylist", zone, sections)
    assert "greylist.early" in (await subject.decide(rcpt(address="192.0.2.1"))).reasons
    assert "greylist.early" not in (await subject.decide(rcpt(address="192.0.2.8"))).reasons


async def test_everybody_waits_where_that_is_wanted() -> None:
    assert ["greylist.early"] == await reasons(world(clients="all"), rcpt())


async def test_in_its_first_days_a_store_learns_and_nobody_waits() -> None:
    subject = world(learning="1d")
    assert ["greylist.learning"] == await reasons(subject, stranger())
    subject.now += DAY + 1
    assert ["greylist.known", "greylist.early"] == await reasons(
        subject, stranger(), stranger(sender="new@example.net")
    )


@pytest.mark.parametrize("ahead", [3600, 366 * DAY, 40 * 366 * DAY])
async def test_who_was_first_seen_in_the_future_waits_from_now_on(ahead: int) -> None:
    subject = world()
    subject.now += ahead
    await subject.decide(stranger())
    subject.now -= ahead
    assert ["greylist.early"] == await reasons(subject, stranger())
    subject.now += 299
    assert ["greylist.early"] == await reasons(subject, stranger())
    subject.now += 2
    assert ["greylist.passed"] == await reasons(subject, stranger())


async def test_who_was_known_in_the_future_is_known_for_its_lifetime_from_now_on() -> None:
    subject = world(lifetime=10 * DAY)
    subject.now += 366 * DAY
    await subject.decide(stranger())
    subject.now += 300
    assert ["greylist.passed"] == await reasons(subject, stranger())
    subject.now -= 366 * DAY
    assert ["greylist.known"] == await reasons(subject, stranger())
    subject.now += 9 * DAY
    assert ["greylist.known"] == await reasons(subject, stranger())
    subject.now += 11 * DAY
    assert ["greylist.early"] == await reasons(subject, stranger())


async def test_a_store_that_was_born_in_the_future_learns_from_now_on() -> None:
    subject = world(learning=DAY)
    subject.now += 366 * DAY
    await subject.store.created_at()
    subject.now -= 366 * DAY
    assert ["greylist.learning"] == await reasons(subject, stranger())
    subject.now += DAY + 1
    assert ["greylist.early"] == await reasons(subject, stranger(sender="new@example.net"))


async def test_a_clock_that_is_put_forward_by_a_year_makes_everybody_a_stranger_again() -> None:
    subject = world()
    await subject.decide(stranger())
    subject.now += 366 * DAY
    assert ["greylist.early"] == await reasons(subject, stranger())
    subject.now += 300
    assert ["greylist.passed"] == await reasons(subject, stranger())


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
    await subject.store.created_at()
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
