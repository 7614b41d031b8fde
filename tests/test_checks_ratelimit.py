# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits: what is counted, once, for whom, and what is given back."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gatekeeper.checks.ratelimit import Limit, RateLimit, parse_limit
from gatekeeper.request import Request, Stage
from gatekeeper.store import StoreError
from gatekeeper.stores.memory import MemoryStore
from gatekeeper.verdict import Mode, Outcome
from tests.checking import World, rcpt

NONE: dict[str, object] = dict.fromkeys(
    ("client_messages", "client_recipients", "user_messages", "user_recipients"), ()
)


def world(words: str = "ratelimit", **options: object) -> World:
    return World(words, sections={"ratelimit": RateLimit.model_validate(NONE | options)})


async def codes(subject: World, *requests: Request) -> list[str]:
    return [(await subject.verdict(request)).code for request in requests]


def message(number: int, **what: str) -> Request:
    return rcpt(instance=f"i{number}", **what)  # type: ignore[arg-type]  # strings only


async def test_more_than_the_limit_is_deferred_as_anvil_does() -> None:
    subject = world(client_messages=["2/1m"])
    assert ["", "", "450"] == await codes(subject, message(1), message(2), message(3))
    verdict = await subject.verdict(message(4))
    assert ("4.7.1", "ratelimit.messages") == (verdict.enhanced, verdict.reason)
    assert "Error: too much mail from 192.0.2.1: the limit is 2 in 1m; try again later" == verdict.text


async def test_the_window_slides() -> None:
    subject = world(client_messages=["1/1m"])
    assert ["", "450"] == await codes(subject, message(1), message(2))
    subject.now += 62
    assert [""] == await codes(subject, message(3))


async def test_a_message_counts_once_however_many_recipients_and_stages_it_has() -> None:
    subject = world(client_messages=["1/1m"])
    requests = [
        message(1, recipient=None, stage=Stage.MAIL),  # type: ignore[arg-type]  # not known yet
        message(1, recipient="a@example.com"),
        message(1, recipient="b@example.com", queue_id="Q"),
    ]
    assert ["", "", "", "450"] == await codes(subject, *requests, message(2))


async def test_each_recipient_counts() -> None:
    subject = world(client_recipients=["2/1m"])
    recipients = [message(1, recipient=f"{name}@example.com", queue_id="Q") for name in "aabc"]
    assert ["", "", "", "450"] == await codes(subject, *recipients)
    assert "ratelimit.recipients" == (await subject.verdict(recipients[-1])).reason


async def test_several_windows_hold_at_once() -> None:
    subject = world(client_messages=["2/1m", "3/1h"])
    for number in range(3):
        assert [""] == await codes(subject, message(number))
        subject.now += 61
    assert ["450"] == await codes(subject, message(9))


async def test_clients_are_counted_by_network() -> None:
    subject = world(client_messages=["1/1m"], ipv4_prefix=24)
    other = message(2, address="192.0.2.200")
    assert ["", "450", ""] == await codes(subject, message(1), other, message(3, address="198.51.100.1"))


async def test_ipv6_clients_are_counted_by_84_bits_as_in_anvil() -> None:
    subject = world(client_messages=["1/1m"])
    near, far = message(2, address="2001:db8::ffff"), message(3, address="2001:db8:0:0:ffff::")
    assert ["", "450", ""] == await codes(subject, message(1, address="2001:db8::1"), near, far)


async def test_a_user_is_counted_by_name_from_anywhere() -> None:
    subject = world(user_messages=["1/1m"], client_messages=["1/1m"])
    again = message(2, sasl_user="Alice", address="198.51.100.1")
    assert ["", "450", ""] == await codes(subject, message(1, sasl_user="alice"), again, message(3, sasl_user="bob"))


async def test_mynetworks_has_no_limit() -> None:
    subject = world(client_messages=["0/1m"])
    assert ["", "450"] == await codes(subject, message(1, address="10.0.0.1"), message(2))


async def test_what_is_refused_by_a_later_check_does_not_count() -> None:
    subject = world("ratelimit, reject_non_fqdn_sender", client_messages=["1/1m"])
    refused = [message(number, sender="u@localhost") for number in range(5)]
    assert ["504"] * 5 + ["", "450"] == await codes(subject, *refused, message(6), message(7))


async def test_a_refused_recipient_does_not_take_its_message_back() -> None:
    subject = world("ratelimit, reject_non_fqdn_recipient", client_messages=["1/1m"])
    second = message(1, recipient="u@localhost", queue_id="Q")
    assert ["", "504", "450"] == await codes(subject, message(1), second, message(2))


async def test_without_an_instance_every_request_counts() -> None:
    assert ["", "450"] == await codes(world(client_messages=["1/1m"]), rcpt(), rcpt())


async def test_our_postmaster_can_always_be_reached() -> None:
    assert [""] == await codes(world(client_messages=["0/1m"]), message(1, recipient="postmaster@example.com"))


async def test_without_a_store_nobody_is_limited() -> None:
    class Down(MemoryStore):
        async def hit(self, hits: object) -> list[int]:
            raise StoreError("gone")

    subject = world(client_messages=["0/1m"])
    subject.store = Down()
    decision = await subject.decide(message(1))
    assert (Outcome.PASS, ("ratelimit.store",)) == (decision.verdict.outcome, decision.reasons)


async def test_in_observe_mode_counts_are_kept_though_the_verdict_does_not_count() -> None:
    subject = world(client_messages=["1/1m"], mode=Mode.OBSERVE)
    decisions = [await subject.decide(message(number)) for number in range(2)]
    assert [(), ("ratelimit.messages",)] == [decision.reasons for decision in decisions]


@pytest.mark.parametrize("text", ["", "10", "10/", "/1m", "10/0s", "10/m", "-1/1m", "1.5/1m"])
def test_a_mistake_in_a_limit_says_what_is_allowed(text: str) -> None:
    with pytest.raises(ValidationError, match="allowed: "):
        RateLimit.model_validate({"client_messages": [text]})


@given(st.integers(0, 10**9 - 1), st.sampled_from(["1s", "10m", "1d"]))
def test_a_limit_reads_what_it_prints(count: int, window: str) -> None:
    limit = parse_limit(f"{count}/{window}")
    assert limit == parse_limit(str(limit).replace(" in ", "/")) == Limit(count, limit.window)


@given(st.text(max_size=30))
def test_any_text_is_a_limit_or_a_value_error(text: str) -> None:
    with suppress(ValueError):
        assert parse_limit(text).window > 0
