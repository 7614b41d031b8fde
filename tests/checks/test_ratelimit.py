# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits: what is counted, once, for whom, and what is given back."""

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gatekeeper.checks.limits.applies_to import load_patterns, parse_session_pattern
from gatekeeper.checks.limits.limit import Limit, parse_limit
from gatekeeper.checks.limits.ratelimit import RateLimit
from gatekeeper.config import config_file
from gatekeeper.core.problem import ConfigError
from gatekeeper.core.request import Request, Stage
from gatekeeper.core.verdict import Mode
from gatekeeper.stores.memory import MemoryStore
from gatekeeper.stores.store import StoreError
from tests.support.checking import SITE, World, rcpt
from tests.support.postconf import no_postfix

NONE: dict[str, object] = dict.fromkeys(
    ("client_messages", "client_recipients", "user_messages", "user_recipients"), ()
)


def world(words: str = "ratelimit", **options: object) -> World:
    return World(words, sections={"ratelimit": RateLimit.model_validate(NONE | options)}, at_end=True)


async def codes(subject: World, *requests: Request) -> list[str]:
    return [(await subject.verdict(request)).code for request in requests]


def message(number: int, **what: str) -> Request:
    return rcpt(instance=f"i{number}", **what)  # type: ignore[arg-type]  # strings only


async def test_more_than_the_limit_is_deferred_as_anvil_does() -> None:
    subject = world(client_messages=["2/1m"])
    assert ["", "", "450"] == await codes(subject, message(1), message(2), message(3))
    verdict = await subject.verdict(message(4))
    assert ("4.7.1", "ratelimit.messages") == (verdict.enhanced, verdict.reason)
    assert "Error: too much mail from 192.0.2.1: the limit is 2 in 1m; try again in 61s" == verdict.text


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


async def test_without_a_store_each_process_counts_alone() -> None:
    class Down(MemoryStore):
        async def hit_and_get(self, hits: object, gets: object) -> NoReturn:
            raise StoreError("gone")

        async def hit(self, hits: object) -> NoReturn:
            raise StoreError("gone")

    subject = world("ratelimit, reject_non_fqdn_sender", client_messages=["1/1m"])
    subject.store = Down()
    refused = message(1, sender="u@localhost")
    assert ["504", "", "450"] == await codes(subject, refused, message(2), message(3))
    notes = [note.found for step in (await subject.decide(message(4))).steps for note in step.notes]
    assert ["gone; this process counts alone", "2 of 1 in 1m"] == notes


async def test_in_observe_mode_counts_are_kept_though_the_verdict_does_not_count() -> None:
    subject = world(client_messages=["1/1m"], mode=Mode.OBSERVE)
    decisions = [await subject.decide(message(number)) for number in range(2)]
    assert [(), ("ratelimit.messages",)] == [decision.reasons for decision in decisions]


async def test_what_would_have_been_refused_is_given_back_where_all_is_observed() -> None:
    """The mail came through, but the limits that would have been do not count it."""
    subject = world("ratelimit, reject_non_fqdn_sender", client_messages=["1/1m"])
    subject.observe = True
    requests = [*(message(number, sender="u@localhost") for number in range(3)), message(4), message(5)]
    decisions = [await subject.decide(request) for request in requests]
    assert [""] * 5 == [decision.verdict.code for decision in decisions]
    assert ["504"] * 3 + ["", "450"] == [decision.judged.code for decision in decisions]


async def test_a_limit_that_is_observed_alone_gives_back_what_is_really_refused() -> None:
    subject = world("ratelimit, reject_non_fqdn_sender", client_messages=["1/1m"], mode=Mode.OBSERVE)
    requests = [*(message(number, sender="u@localhost") for number in range(3)), message(4), message(5)]
    decisions = [await subject.decide(request) for request in requests]
    assert ["504"] * 3 + ["", ""] == [decision.verdict.code for decision in decisions]
    assert ["504"] * 3 + ["", "450"] == [decision.judged.code for decision in decisions]


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


def rules(*rules: dict[str, object], words: str = "ratelimit", **options: object) -> World:
    return world(words, rules={f"r{number}": rule for number, rule in enumerate(rules)}, **options)


async def test_a_rule_counts_by_the_senders_domain() -> None:
    subject = rules({"by": "sender_domain", "messages": "1/1m"})
    other = message(2, sender="other@EXAMPLE.net", address="198.51.100.1")
    assert ["", "450", ""] == await codes(subject, message(1), other, message(3, sender="a@example.org"))
    assert "Error: too much mail from example.net: the limit is 1 in 1m" in (await subject.verdict(other)).text


async def test_a_rule_counts_by_what_it_names_together() -> None:
    subject = rules({"by": ["user", "recipient_domain"], "recipients": ["1/1h"]})
    to = [message(1, sasl_user="alice", recipient=f"{name}") for name in ("a@one.example", "a@two.example")]
    more = message(2, sasl_user="alice", recipient="b@one.example")
    assert ["", "", "450", ""] == await codes(
        subject, *to, more, message(3, sasl_user="bob", recipient="b@one.example")
    )
    assert "too many recipients from alice to one.example: the limit is 1 in 1h" in (await subject.verdict(more)).text


async def test_a_message_counts_once_for_each_domain_that_it_goes_to() -> None:
    subject = rules({"by": "recipient_domain", "messages": "1/1h"})
    to = [message(1, recipient=f"{name}.example", queue_id="Q") for name in ("a@one", "b@one", "a@two")]
    assert ["", "", "", "450"] == await codes(subject, *to, message(2, recipient="c@one.example"))


async def test_bounces_have_no_sender_to_count_by() -> None:
    subject = rules({"by": "sender", "messages": "0/1h"}, {"by": "sender_domain", "messages": "0/1h"})
    assert ["", "450"] == await codes(subject, message(1, sender=""), message(2))


async def test_the_first_rule_that_is_for_a_user_holds() -> None:
    news: dict[str, object] = {"by": "user", "for": ["user:newsletter", "user:@lists.example"], "messages": ["3/1m"]}
    subject = rules(news, {"by": "user", "for": "198.51.100.0/24", "messages": []}, user_messages=["1/1m"])
    sent = [message(n, sasl_user="newsletter") for n in range(4)] + [message(9, sasl_user="a@Lists.example")]
    assert ["", "", "", "450", ""] == await codes(subject, *sent)
    free = [message(n, sasl_user="bob", address="198.51.100.7") for n in range(10, 13)]
    assert ["", "", ""] == await codes(subject, *free)
    assert ["", "450"] == await codes(subject, *(message(n, sasl_user="bob") for n in (20, 21)))


async def test_what_a_rule_does_not_name_is_left_to_the_next() -> None:
    subject = rules({"by": "user", "messages": ["9/1m"]}, user_recipients=["1/1m"])
    assert ["", "450"] == await codes(subject, *(message(n, sasl_user="bob") for n in range(2)))


async def test_rules_that_count_by_different_words_hold_together() -> None:
    subject = rules({"by": "client", "ipv4_prefix": 24, "messages": ["2/1m"]}, client_messages=["1/1m"])
    sent = [message(n, address=f"192.0.2.{host}") for n, host in enumerate((1, 1, 2, 3))]
    assert ["", "450", "", "450"] == await codes(subject, *sent)


async def test_a_rule_is_not_for_whom_it_excepts() -> None:
    subject = rules({"by": "client", "except": "192.0.2.0/25, client:.example.org", "messages": "0/1m"})
    clients = [message(1), message(2, address="192.0.2.200", name="mx.example.org"), message(3, address="192.0.2.200")]
    assert ["", "", "450"] == await codes(subject, *clients)


async def test_a_user_in_mynetworks_is_limited_unless_excepted_by_name() -> None:
    subject = world(user_messages=["0/1m"], exceptions=["mynetworks", "user:root"])
    alice, root = (message(n, sasl_user=user, address="10.0.0.1") for n, user in enumerate(("alice", "root")))
    assert ["450", ""] == await codes(subject, alice, root)


async def test_exceptions_may_be_domains() -> None:
    subject = world(client_messages=["0/1m"], exceptions=["sender:@example.org", "recipient:vip@example.com"])
    spared = message(1, sender="a@example.org"), message(2, recipient="VIP@example.com")
    assert ["", "", "450", "450"] == await codes(subject, *spared, message(3, address="10.0.0.1"), message(4))


async def test_what_is_over_one_limit_counts_for_none() -> None:
    subject = world(client_messages=["1/1m"], client_recipients=["9/1m"])
    await codes(subject, *(message(n) for n in range(30)))
    subject.now += 3
    steps = (await subject.decide(message(99))).steps
    assert [("messages from 192.0.2.1", "2 of 1 in 1m"), ("recipients from 192.0.2.1", "2 of 9 in 1m")] == [
        (note.what, note.found) for note in steps[0].notes
    ]


async def test_what_is_refused_counts_if_that_is_wanted() -> None:
    subject = world("ratelimit, reject_non_fqdn_sender", client_messages=["1/1m"], count_refused=True)
    assert ["504", "450"] == await codes(subject, message(1, sender="u@localhost"), message(2))


async def test_a_refusal_says_how_long_the_longest_limit_lasts() -> None:
    subject = world(user_messages=["1/1m", "2/1d"])
    for number in range(2):
        await codes(subject, message(number, sasl_user="bob"))
        subject.now += 62
    await codes(subject, message(2, sasl_user="bob"))
    text = (await subject.verdict(message(3, sasl_user="bob"))).text
    assert "Error: too much mail from bob: the limit is 2 in 1d; try again in 25h" == text


async def test_logins_are_connections_in_which_somebody_has_authenticated() -> None:
    subject = rules({"by": "user", "logins": "2/1h"})
    ports = [rcpt(sasl_user="alice", port=port, instance=f"i{n}") for n, port in enumerate((1, 1, 2, 2, 3))]
    assert ["", "", "", "", "450"] == await codes(subject, *ports)
    assert "ratelimit.logins" == (await subject.verdict(ports[-1])).reason
    assert ["", ""] == await codes(subject, rcpt(port=9), rcpt(sasl_user="alice"))


async def test_a_class_of_users_may_stand_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "newsletters").write_text("# who may send more\nnewsletter  OK\n\n@lists.example\n", "utf-8")
    limits = {"by": "user", "for": "user:./newsletters", "messages": []}
    options = RateLimit.model_validate(NONE | {"user_messages": ["0/1m"], "rules": {"news": limits}})
    subject = World("ratelimit", sections={"ratelimit": options}, folder=tmp_path)
    users = ("newsletter", "a@lists.example", "ok")
    assert ["", "", "450"] == await codes(subject, *(message(n, sasl_user=user) for n, user in enumerate(users)))


def test_mistakes_in_a_file_are_told_by_line(tmp_path: Path) -> None:
    (tmp_path / "clients").write_text("192.0.2.0/24\nno/client\n", "utf-8")
    limits = {"by": "client", "for": ["client:./clients", "client:./missing"], "messages": "1/1m"}
    options = RateLimit.model_validate({"rules": {"news": limits}})
    with pytest.raises(ConfigError) as caught:
        World("ratelimit", sections={"ratelimit": options}, folder=tmp_path)
    assert [(str(tmp_path / "clients"), 2), (str(tmp_path / "missing"), 0)] == sorted(
        (problem.file, problem.line) for problem in caught.value.problems
    )


@pytest.mark.parametrize(
    ("rule", "what"),
    [
        ({"messages": "1/1m"}, "by is missing"),
        ({"by": "user"}, "limits nothing; allowed: one or more of messages, recipients"),
        ({"by": "usr", "messages": "1/1m"}, "by: 'usr' is not something to count by; allowed: client, user, sender"),
        ({"by": ["user", "user"], "messages": "1/1m"}, "names the same thing twice"),
        ({"by": [], "messages": "1/1m"}, "names nothing to count by"),
        ({"by": "user", "messages": ["1/1m", "2/60s"]}, "has two limits for 1m; allowed: one for each window"),
        ({"by": "user", "messages": "1/1000d"}, "has too long a window; allowed: up to 366d"),
        (
            {"by": "user", "mesages": "1/1m"},
            "unknown key 'mesages' in [checks.ratelimit.rules.r]; did you mean 'messages'",
        ),
        (
            {"by": "user", "messages": "1/1m", "for": "alice"},
            "for: 'alice' is not a client, user or address; allowed: \"192.0.2.0/24\"",
        ),
        (
            {"by": "user", "messages": "1/1m", "except": "sender:bob"},
            "'bob' is not a sender; allowed: \"someone@example",
        ),
        ({"by": "client", "messages": "1/1m", "for": "192.0.2.1/24"}, "did you mean '192.0.2.0/24'?"),
        ({"by": "user", "messages": "1/1m", "ipv4_prefix": 24}, 'ipv4_prefix is of no use without by = "client"'),
        (
            {"by": "user", "connections": "1/1m"},
            'connections are counted when a client connects; allowed: by = "client"',
        ),
        ({"by": "client", "simultaneous": 1, "for": "user:bob"}, "simultaneous are counted before user:bob is known"),
        ({"by": "client", "simultaneous": -1}, "simultaneous"),
    ],
)
def test_a_mistake_in_a_rule_says_where_and_what_is_allowed(rule: dict[str, object], what: str, tmp_path: Path) -> None:
    lines = [f"{key} = {json.dumps(value)}" for key, value in rule.items()]
    path = tmp_path / "gatekeeper.toml"
    path.write_text("\n".join(["# 1", "[checks.ratelimit.rules.r]", *lines]), "utf-8")
    with pytest.raises(ConfigError) as caught:
        config_file.load(path, no_postfix)
    [problem] = caught.value.problems
    assert what in problem.what
    assert 2 <= problem.line <= 2 + len(lines)


WORDS = st.sampled_from([*"aZ09.:/@[]<>-_ ", "user:", "client:", "sender:", "192.0.2.0/24", "mynetworks"])


@given(st.lists(WORDS, max_size=8).map("".join) | st.text(max_size=20))
def test_any_text_says_who_or_is_a_value_error(text: str) -> None:
    with suppress(ValueError):
        word = parse_session_pattern(text)
        assert word == parse_session_pattern(str(word))
        if not word.is_file:
            patterns, problems = load_patterns([word], Path("/nonexistent"))
            assert [] == problems
            assert patterns.matches(rcpt(), SITE) in (True, False)


@given(
    st.lists(st.tuples(st.floats(0, 45), st.integers(0, 3)), max_size=30),
    st.integers(0, 5),
    st.sampled_from([60.0, 90.5]),
)
def test_no_more_than_the_limit_comes_through_in_any_window(
    steps: list[tuple[float, int]], most: int, window: float
) -> None:
    async def play() -> None:
        subject = world(client_messages=[f"{most}/{window}s"])
        accepted: list[float] = []
        for number, (wait, burst) in enumerate(steps):
            subject.now += wait
            for each in range(burst):
                recent = [at for at in accepted if at > subject.now - window]
                counted = [at for at in accepted if at > subject.now - window * 61 / 60]
                [code] = await codes(subject, message(number * 10 + each))
                # Never more than the limit within the window; never refused but for what came within 1/60 more.
                assert (len(recent) < most) if not code else (len(counted) >= most)
                accepted += [subject.now] * (not code)

    asyncio.run(play())


# At DATA and at the end of the message


def end(number: int, count: int, stage: Stage = Stage.DATA, **what: str) -> Request:
    """A request at DATA or later for a message to `count` recipients; which, Postfix says only of a single one."""
    recipient = "r0@example.org" if count == 1 else None
    request = message(number, stage=stage, recipient=recipient, queue_id="Q", **what)  # type: ignore[arg-type]
    return request._replace(recipient_count=count)


def recipients(number: int, count: int, **what: str) -> list[Request]:
    return [
        message(number, recipient=f"r{which}@example.org", queue_id="Q" if which else "", **what)
        for which in range(count)
    ]


async def left(subject: World, most: int = 100) -> int:
    """How many more recipients come through, one message each."""
    return (await codes(subject, *(end(1000 + number, 1) for number in range(most)))).count("")


@pytest.mark.parametrize("stage", [Stage.DATA, Stage.END_OF_MESSAGE])
async def test_recipients_count_all_at_once_where_the_message_is_complete(stage: Stage) -> None:
    subject = world(client_recipients=["100/1h"])
    assert ["", "450", "", "450"] == await codes(
        subject, end(1, 60, stage), end(2, 60, stage), end(3, 40, stage), end(4, 1, stage)
    )
    subject.now += 3700
    assert [""] == await codes(subject, end(5, 100, stage))


async def test_a_message_given_up_before_it_is_asked_about_counts_for_nothing() -> None:
    subject = world(client_recipients=["100/1h"])
    verdict = await subject.verdict(end(1, 150))
    assert "Error: too many recipients from 192.0.2.1: the limit is 100 in 1h; this message has 150" == verdict.text
    assert 100 == await left(subject, 101)


async def test_recipients_that_counted_at_rcpt_do_not_count_again() -> None:
    subject = world(client_recipients=["10/1h"])
    whole = [*recipients(1, 4), end(1, 4), end(1, 4, Stage.END_OF_MESSAGE)]
    assert [""] * 6 == await codes(subject, *whole)
    assert 6 == await left(subject, 10)


async def test_what_was_not_counted_at_rcpt_counts_at_data() -> None:
    subject = world("ratelimit", client_recipients=["10/1h"])
    assert [""] * 4 == await codes(subject, *recipients(1, 2), end(1, 5), end(1, 5, Stage.END_OF_MESSAGE))
    assert 5 == await left(subject, 10)


async def test_a_recipient_that_is_refused_leaves_no_mark() -> None:
    subject = world("ratelimit, reject_non_fqdn_recipient", client_recipients=["10/1h"])
    refused = message(1, recipient="r9@localhost", queue_id="Q")
    assert ["", "", "504", ""] == await codes(subject, *recipients(1, 2), refused, end(1, 2))
    assert 8 == await left(subject, 10)


async def test_a_message_that_is_refused_at_its_end_is_given_back() -> None:
    subject = world(
        "ratelimit, check_sender_access inline:{ {bad@example.net = REJECT} }",
        client_recipients=["10/1h"],
        client_messages=["1/1h"],
    )
    assert ["554"] * 3 == await codes(subject, *(end(number, 9, sender="bad@example.net") for number in range(3)))
    assert ["", "450"] == await codes(subject, end(4, 10), end(5, 1))


async def test_a_stolen_account_is_stopped_wherever_recipients_are_counted() -> None:
    for stage in (Stage.RCPT, Stage.DATA, Stage.END_OF_MESSAGE):
        subject = world(user_recipients=["100/1h"])
        through = 0
        for number in range(50):
            many = 1 + number % 12
            if stage is Stage.RCPT:
                answers = await codes(subject, *recipients(number, many, sasl_user="alice"))
                through += answers.count("")
            elif [""] == await codes(subject, end(number, many, stage, sasl_user="alice")):
                through += many
        assert 88 < through <= 100, stage


async def test_whoever_goes_on_trying_is_not_let_in_by_what_is_given_back() -> None:
    assert ["", "450", "450", "450"] == await codes(world(client_messages=["1/1m"]), *[rcpt()] * 4)


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.sampled_from(["rcpt", "data", "end", "all", "given up"])),
        min_size=1,
        max_size=12,
    )
)
async def test_never_more_recipients_than_the_limit_are_sent(messages: list[tuple[int, str]]) -> None:
    """Whatever list asks, in whatever order, however often a message is given up."""
    subject = world(client_recipients=["10/1h"])
    sent = 0
    for number, (count, asked) in enumerate(messages):
        accepted = count
        if asked != "data" and asked != "end":
            accepted = (await codes(subject, *recipients(number, count))).count("")
        if not accepted or asked == "given up":
            continue
        stages = {"data": [Stage.DATA], "end": [Stage.END_OF_MESSAGE], "all": [Stage.DATA, Stage.END_OF_MESSAGE]}
        if not any(await codes(subject, *(end(number, accepted, stage) for stage in stages.get(asked, [])))):
            sent += accepted
    assert sent <= 10
