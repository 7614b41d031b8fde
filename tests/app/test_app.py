# SPDX-License-Identifier: GPL-3.0-or-later
"""The wiring: what a configuration names is read once and ends up where it decides."""

from ipaddress import ip_address
from pathlib import Path

import pytest

from gatekeeper.app.app import App, open_app
from gatekeeper.app.plan import Plan, prepare
from gatekeeper.config import config_file
from gatekeeper.core.problem import ConfigError
from gatekeeper.core.request import Client, Request, Stage
from gatekeeper.dnsclient.resolver import TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.pipeline.pipeline import END_OF_DATA
from gatekeeper.stores.memory import MemoryStore
from tests.support.postconf import no_postfix

ZONE = """
example.com. MX 10 mail.example.com.
example.org. MX 10 mail.example.org.
"""
REQUEST = Request(
    stage=Stage.RCPT,
    client=Client(address=ip_address("192.0.2.1"), name="mail.example.com", reverse_name="mail.example.com"),
    helo="mail.example.com",
    sender="a@example.com",
    recipient="b@example.org",
    instance="1",
)


def plan(folder: Path, text: str) -> Plan:
    (folder / "gatekeeper.toml").write_text(text)
    return prepare(config_file.load(folder / "gatekeeper.toml", no_postfix))


def complaints(folder: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as wrong:
        plan(folder, text)
    return [str(problem).removeprefix(f"{folder}/") for problem in wrong.value.problems]


async def opened(folder: Path, text: str) -> App:
    return await open_app(
        plan(folder, text), resolver=TableResolver(Zone.parse(ZONE)), store=MemoryStore(lambda: 1e9), clock=lambda: 1e9
    )


async def test_the_default_list_lets_a_correct_sender_pass(tmp_path: Path) -> None:
    app = await opened(tmp_path, "")
    decision, _ = await app.decide(REQUEST)
    assert ("", False) == (decision.verdict.reply, decision.judged.refuses)
    assert 14 == len(decision.steps)  # spf is off


async def test_the_default_list_refuses_a_helo_without_a_dot(tmp_path: Path) -> None:
    app = await opened(tmp_path, "")
    decision, _ = await app.decide(REQUEST._replace(helo="localhost"))
    assert ("504", "helo.non_fqdn") == (decision.verdict.code, decision.verdict.reason)


async def test_a_context_has_its_own_lists_and_an_unknown_one_those_of_the_policy(tmp_path: Path) -> None:
    text = '[policy]\nrestrictions = ["reject"]\n[policy.contexts.submission]\nrestrictions = ["permit"]'
    app = await opened(tmp_path, text)
    codes = [
        (await app.decide(REQUEST._replace(policy_context=context)))[0].verdict.code
        for context in ("submission", "", "unheard-of")
    ]
    assert ["", "554", "554"] == codes


async def test_observe_mode_answers_nothing_and_tells_what_it_would_have_answered(tmp_path: Path) -> None:
    app = await opened(tmp_path, 'mode = "observe"\n[policy]\nrestrictions = ["reject"]')
    decision, _ = await app.decide(REQUEST)
    assert ("", "554") == (decision.verdict.code, decision.judged.code)


async def test_observe_mode_keeps_its_state_apart(tmp_path: Path) -> None:
    app = await opened(tmp_path, "")
    facts = app.facts(REQUEST)
    observed, enforced = await app.context(facts, observe=True), await app.context(facts)
    assert observed.keys("greylist", "x") == "observe:" + enforced.keys("greylist", "x")


async def test_one_check_can_be_observed_alone(tmp_path: Path) -> None:
    text = '[policy]\nrestrictions = ["greylist"]\n[checks.greylist]\nmode = "observe"\nclients = "all"\nlearning = 0'
    app = await opened(tmp_path, text)
    decision, _ = await app.decide(REQUEST)
    assert (("greylist.early",), "") == (decision.reasons, decision.verdict.code)


async def test_side_effects_wait_until_they_are_settled(tmp_path: Path) -> None:
    text = '[policy]\nrestrictions = ["greylist"]\n[checks.greylist]\nclients = "all"\nlearning = 0\ndelay = "0s"'
    app = await opened(tmp_path, text)
    reasons = []
    for _ in range(2):
        decision, context = await app.decide(REQUEST)
        reasons.append(decision.verdict.reason or decision.reasons[0])
    await context.settle(decision)
    reasons.append((await app.decide(REQUEST))[0].reasons[0])
    assert ["greylist.early", "greylist.early", "greylist.passed"] == reasons


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('dmarc = "reject"', "also refuses mail whose From names no domain"),
        ('dmarc = "quarantine"', "also quarantines mail whose From names no domain"),
        ('dmarc = "reject"\nmalformed_from = "accept"', ""),
        ('dmarc = "reject"\nmethods = ["dkim"]', ""),
        ('dmarc = "observe"', ""),
    ],
)
def test_who_obeys_dmarc_is_told_what_that_means_for_a_from_without_a_domain(
    tmp_path: Path, text: str, told: str
) -> None:
    warnings = [str(warning) for warning in plan(tmp_path, f"[verify]\n{text}").warnings]
    assert ([f"{tmp_path}/gatekeeper.toml:2"] if told else []) == [line.partition(": ")[0] for line in warnings]
    assert all(told in line for line in warnings)


def test_the_milter_obeys_dmarc_as_far_as_the_configuration_says(tmp_path: Path) -> None:
    *_, check = plan(tmp_path, '[verify]\ndmarc = "reject"').milter_pipeline.lists[END_OF_DATA]
    assert ("dmarc", "reject") == (check.name, getattr(check, "obey", ""))


def test_every_mistake_in_lists_and_tables_is_named_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "access").write_text("192.0.2.1 REJECT\nexample.com NONSENSE here\n")
    text = '''[store]
url = "mysql://x"
[policy]
client_restrictions = [
  "reject_unauth_destination",
  "check_client_access hash:access",
]
restrictions = """
  permit_mynetworks
  check_helo_access hash:nothing, reject_rbl_client
"""
[signing]
key_table = "csl:k=example.com:s:/nowhere/key"
'''
    places = [complaint.partition(": ")[0] for complaint in complaints(tmp_path, text)]
    assert ["/nowhere/key", "access:2"] == places[:2]
    assert [f"gatekeeper.toml:{line}" for line in (2, 5, 10, 10, 13)] == places[2:]


def test_tables_and_keys_are_relative_to_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "KeyTable").write_text("k example.com:s:./key.pem\n")
    (tmp_path / "SigningTable").write_text("*@example.com k\n")
    found = complaints(tmp_path, '[signing]\nkey_table = "KeyTable"\nsigning_table = "refile:SigningTable"')
    what = f"cannot read the private key, named in {tmp_path}/KeyTable:1: No such file or directory"
    assert [f"key.pem: {what}"] == found


def test_a_signing_table_needs_a_key_table(tmp_path: Path) -> None:
    found = complaints(tmp_path, '[signing]\nsigning_table = ["example.com k"]')
    assert "gatekeeper.toml:2: signing.signing_table signs nothing without signing.key_table" in found


def test_internal_hosts_are_mynetworks_unless_they_are_named(tmp_path: Path) -> None:
    ours = Request(stage=Stage.END_OF_MESSAGE, client=Client(address=ip_address("192.0.2.1")))
    assert plan(tmp_path, 'mynetworks = "192.0.2.0/24"').signing.origin(ours).is_ours
    named = plan(tmp_path, 'mynetworks = "192.0.2.0/24"\n[signing]\ninternal_hosts = ["198.51.100.1"]')
    assert not named.signing.origin(ours).is_ours


def test_a_network_that_opendkim_would_not_match_is_a_warning(tmp_path: Path) -> None:
    (warning,) = plan(tmp_path, '[signing]\ninternal_hosts = "10.0.0.1/8"').warnings
    assert (2, True) == (warning.line, warning.warning)


def test_a_user_that_does_not_exist_is_named(tmp_path: Path) -> None:
    text = 'user = "no-such-user-here"'
    try:
        said = [str(warning) for warning in plan(tmp_path, text).warnings]
    except ConfigError as error:
        said = [str(problem) for problem in error.problems]
    assert ["there is no user 'no-such-user-here' on this machine"] == [line.partition("user: ")[2] for line in said]


async def test_an_app_opens_what_the_configuration_names(tmp_path: Path) -> None:
    app = await open_app(
        plan(tmp_path, f'[store]\nurl = "sqlite:{tmp_path}/state.db"\n[dns]\nnameservers = "127.0.0.1:1"')
    )
    assert 32 == len(await app.store.secret())
    await app.close()
    assert (tmp_path / "state.db").exists()


def test_our_own_mail_is_judged_by_dkim_alone_or_not_at_all(tmp_path: Path) -> None:
    text = "[verify]\nunsigned_ours = true\n"
    [problem] = complaints(tmp_path, text)
    assert "gatekeeper.toml:2: verify.unsigned_ours judges mail of our own clients" in problem
    plan(tmp_path, text + 'methods = ["dkim"]\n')
