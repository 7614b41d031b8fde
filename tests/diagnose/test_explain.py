# SPDX-License-Identifier: GPL-3.0-or-later
"""`explain` says what the daemon then does: whatever the session, and whatever is remembered of the ones before."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatekeeper.app.app import open_app
from gatekeeper.app.plan import Plan, prepare
from gatekeeper.config.config_file import load
from gatekeeper.core.request import parse_address
from gatekeeper.core.verdict import Decision
from gatekeeper.diagnose import explain
from gatekeeper.diagnose.explain import AskedSession, NotingResolver
from gatekeeper.dnsclient.resolver import TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.policy.protocol import encode_answer
from gatekeeper.stores.memory import MemoryStore
from gatekeeper.stores.readonly import ReadOnlyStore
from tests.support.postconf import no_postfix

CONFIG = """\
hostname = "mx.example.org"
mynetworks = "10.0.0.0/8"
local_domains = "example.org"
[policy]
client_restrictions = "check_client_access cidr:{ {198.51.100.0/24 DEFER_IF_REJECT later} {203.0.113.9 HOLD} }"
helo_restrictions = "warn_if_reject reject_unknown_helo_hostname"
sender_restrictions = "check_sender_access inline:{ {news.example = OK if=spf}, {bad.example = REJECT} }"
recipient_restrictions = '''
    permit_mynetworks, ratelimit, permit_sasl_authenticated, reject_invalid_helo_hostname,
    reject_non_fqdn_helo_hostname, reject_helo_ours, reject_unknown_sender_domain, reject_unknown_recipient_domain,
    dnsbl, spf, reject_rbl_client other.lists.example, greylist'''
[checks.ratelimit]
client_messages = "6/1h"
user_recipients = "3/1h"
[checks.dnsbl]
lists = "bl.lists.example"
[checks.spf]
mode = "enforce"
[checks.greylist]
clients = "all"
learning = 0
auto_allow = 1
"""
ZONE = Zone.parse(
    """
good.example MX 10 mail.good.example
good.example TXT "v=spf1 ip4:192.0.2.0/24 -all"
mail.good.example A 192.0.2.1
1.2.0.192.in-addr.arpa PTR mail.good.example
news.example MX 10 mail.good.example
news.example TXT "v=spf1 ip4:203.0.113.0/24 ?all"
broken.example MX !SERVFAIL
broken.example A !SERVFAIL
example.org A 192.0.2.99
7.2.0.192.bl.lists.example A 127.0.0.2
7.2.0.192.bl.lists.example TXT "spam"
8.2.0.192.other.lists.example A !SERVFAIL
"""
)
SESSIONS = st.builds(
    AskedSession,
    address=st.sampled_from(["192.0.2.1", "192.0.2.7", "192.0.2.8", "198.51.100.1", "203.0.113.9", "10.0.0.1"]).map(
        parse_address
    ),
    helo=st.sampled_from(["mail.good.example", "localhost", "mx.example.org", "b!d", "[192.0.2.1]", f"{'x.' * 120}y"]),
    sender=st.sampled_from(
        ["", "a@good.example", "x@news.example", "x@bad.example", "a@broken.example", "a@none.test"]
    ),
    recipient=st.sampled_from(
        ["b@example.org", "postmaster@example.org", "c@elsewhere.test", "Postmaster", f"{'x' * 400}@example.org"]
    ),
    sasl_user=st.sampled_from(["", "", "alice"]),
)
STEPS = st.lists(st.tuples(SESSIONS, st.sampled_from([1, 400, 4000])), min_size=1, max_size=12)


def said(decision: Decision) -> list[tuple[str, str]]:
    return [(step.check, step.verdict.reason) for step in decision.steps]


async def check(plan: Plan, steps: list[tuple[AskedSession, int]]) -> None:
    now = 1e9

    def clock() -> float:
        return now

    store = MemoryStore(clock)
    await store.secret()
    app = await open_app(plan, resolver=TableResolver(ZONE), store=store, clock=clock)
    for number, (asked, wait) in enumerate(steps):
        now += wait
        resolver = NotingResolver(TableResolver(ZONE))
        looking = await open_app(plan, resolver=resolver, store=ReadOnlyStore(store, clock), clock=clock)
        told = await explain.explain(looking, resolver, asked)
        decision, context = await app.decide(told.decision.request._replace(instance=str(number)))
        wire = encode_answer(decision.verdict, decision.request).decode().strip()
        assert said(decision) == said(told.decision)
        assert wire == explain.as_json(told)["answer"]
        assert wire in list(explain.sentences(told))[-1]
        await context.settle(decision)
        await looking.close()
    await app.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(steps=STEPS)
def test_what_explain_says_the_daemon_does(tmp_path: Path, steps: list[tuple[AskedSession, int]]) -> None:
    file = tmp_path / "gatekeeper.toml"
    file.write_text(CONFIG)
    asyncio.run(check(prepare(load(file, no_postfix)), steps))


async def test_what_lists_say_at_data_and_at_the_end_of_the_message_is_told_too(tmp_path: Path) -> None:
    file = tmp_path / "gatekeeper.toml"
    file.write_text(
        '[policy]\nrestrictions = "permit"\ndata_restrictions = "permit_mynetworks, reject_multi_recipient_bounce"\n'
        'end_of_data_restrictions = "check_sender_access inline:{ {a.example = HOLD big} }"\n'
    )
    resolver = NotingResolver(TableResolver(ZONE))
    app = await open_app(prepare(load(file, no_postfix)), resolver=resolver, store=MemoryStore())
    asked = AskedSession(
        address=parse_address("192.0.2.1"), helo="x.example", sender="b@a.example", recipient="c@d.example"
    )
    told = await explain.explain(app, resolver, asked)
    assert ["action=DUNNO", "action=HOLD big"] == [one["answer"] for one in explain.as_json(told)["later"]]
    assert "Postfix is answered: action=HOLD big" == list(explain.sentences(told))[-1]
    await app.close()


@pytest.mark.parametrize("observing", ['mode = "observe"', '[checks.greylist]\nmode = "observe"'])
async def test_what_is_only_observed_is_no_verdict(tmp_path: Path, observing: str) -> None:
    text = CONFIG.replace("[checks.greylist]", "[checks.greylist]\n" + observing.partition("\n")[2])
    (tmp_path / "gatekeeper.toml").write_text(f"{observing}\n{text}" if "[" not in observing else text)
    plan = prepare(load(tmp_path / "gatekeeper.toml", no_postfix))
    resolver = NotingResolver(TableResolver(ZONE))
    app = await open_app(plan, resolver=resolver, store=ReadOnlyStore(MemoryStore()))
    asked = AskedSession(
        address=parse_address("192.0.2.1"), helo="mail.good.example", sender="a@good.example", recipient="b@example.org"
    )
    found = await explain.explain(app, resolver, asked)
    lines = list(explain.sentences(found))
    assert any(line.startswith("  greylist: observe mode, does not count: defers with 450") for line in lines)
    told = next(line for line in lines if line.startswith("Verdict:"))
    assert told.startswith("Verdict: not refused")
    assert told.endswith('Without mode = "observe" it would be: refused for now (greylist.early).')
    data = explain.as_json(found)
    assert ("pass", "action=DUNNO") == (data["outcome"], data["answer"])
    assert ("defer_if_permit", "greylist.early") == (data["judged"]["outcome"], data["judged"]["reason"])
    assert "greylist.early" in data["observed"]
