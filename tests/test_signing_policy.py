# SPDX-License-Identifier: GPL-3.0-or-later
"""Sign or verify: each condition, alone and named."""

from ipaddress import ip_address

import pytest

from gatekeeper.message import Header
from gatekeeper.request import Client, Request, Stage
from gatekeeper.signing.hosts import HostList
from gatekeeper.signing.policy import DAEMON_NAME, SigningChoice, SigningPolicy, WithoutKey
from gatekeeper.signing.tables import KeyTable, SigningTable
from tests.signing_world import ed25519_pem, rsa_pem

OUTSIDE = Client(address=ip_address("198.51.100.7"), name="mx.example.net")
INSIDE = Client(address=ip_address("192.0.2.7"), name="pc.example.com")


def inline(pem: bytes) -> str:
    return pem.decode().replace("\n", "")


def policy(*rules: str, multiple: bool = False, without_key: WithoutKey = WithoutKey.TEMPFAIL) -> SigningPolicy:
    keys, _ = KeyTable.read(
        [
            f"k example.com:mail:{inline(rsa_pem())}",
            f"e example.com:ed:{inline(ed25519_pem())}",
            f"any %:mail:{inline(rsa_pem())}",
            "broken example.com:mail:broken",
            "unread example.com:mail:/nonexistent/mail.private",
        ]
    )
    table, _ = SigningTable.read(rules or ["example.com k"], keys)
    hosts, _ = HostList.read(["192.0.2.0/24"])
    return SigningPolicy(
        signing_table=table, key_table=keys, internal_hosts=hosts, multiple=multiple, without_key=without_key
    )


def choose(
    policy: SigningPolicy,
    *values: str,
    client: Client = INSIDE,
    sasl_user: str = "",
    daemon_name: str = "",
    fields: tuple[Header, ...] = (),
) -> SigningChoice:
    request = Request(stage=Stage.END_OF_MESSAGE, client=client, sasl_user=sasl_user)
    headers = [*fields, *(Header(b"From", b" " + value.encode()) for value in values), Header(b"To", b" a@example.net")]
    return policy.choose(request, headers, {DAEMON_NAME: daemon_name})


def notes(choice: SigningChoice) -> list[str]:
    return [f"{note.what}: {note.found}" for note in choice.notes]


@pytest.mark.parametrize(
    ("client", "sasl_user", "daemon_name", "origin"),
    [
        (INSIDE, "", "smtpd", "the client is internal by 192.0.2.0/24"),
        (OUTSIDE, "joe", "smtpd", "authenticated as joe"),
        (OUTSIDE, "", "ORIGINATING", "the daemon is ORIGINATING"),
        (INSIDE, "joe", "ORIGINATING", "the daemon is ORIGINATING"),
    ],
)
def test_mail_is_ours_by_its_daemon_its_user_or_its_client(
    client: Client, sasl_user: str, daemon_name: str, origin: str
) -> None:
    choice = choose(policy(), "joe@example.com", client=client, sasl_user=sasl_user, daemon_name=daemon_name)
    assert ("sign.ok", origin) == (choice.reason, choice.origin)
    assert [("example.com", "mail")] == [(who.domain, who.selector) for who in choice.identities]


def test_why_mail_is_signed_is_written_down_condition_by_condition() -> None:
    assert [
        "signing: the client is internal by 192.0.2.0/24",
        "signing table: SigningTable: example.com",
        "key k: d=example.com s=mail",
    ] == notes(choose(policy(), "joe@example.com"))


def test_mail_from_outside_is_not_signed_and_no_condition_is_left_out() -> None:
    choice = choose(policy(), "joe@example.net", client=OUTSIDE, daemon_name="smtpd")
    assert ("sign.not_origin", "", ()) == (choice.reason, choice.origin, choice.identities)
    told = "the daemon is smtpd, nobody has authenticated, and mx.example.net[198.51.100.7] is not internal"
    assert [f"signing: not ours: {told}"] == notes(choice)


@pytest.mark.parametrize(
    ("values", "reason", "said"),
    [
        ([], "sign.no_from", "From: there is none"),
        (["joe@example.com", "joe@example.com"], "sign.ambiguous_from", "From: there are 2 of them"),
        (["joe@example.com, eve@example.org"], "sign.ambiguous_from", "From: its addresses are in several domains"),
        (["joe"], "sign.ambiguous_from", "From: there is no address of the form user@domain"),
        (["joe@example.org"], "sign.no_match", "signing table: no line for joe@example.org"),
        (["joe@a.example.com"], "sign.no_match", "signing table: no line for joe@a.example.com"),
    ],
)
def test_mail_of_ours_that_is_not_signed_passes_and_says_why(values: list[str], reason: str, said: str) -> None:
    choice = choose(policy(), *values)
    assert (reason, (), False) == (choice.reason, choice.identities, choice.defer)
    assert said == notes(choice)[-1]
    assert choice.origin


def test_several_addresses_in_one_domain_are_signed_for() -> None:
    assert "sign.ok" == choose(policy(), "joe@example.com, ann@Example.com").reason


@pytest.mark.parametrize(
    ("rule", "reason", "said"),
    [
        ("example.com gone", "sign.no_key", "key gone: not in the KeyTable"),
        ("example.com broken", "sign.bad_key", "key broken: KeyTable: this is neither PEM nor base64"),
        (
            "example.com unread",
            "sign.bad_key",
            "key unread: /nonexistent/mail.private could not be read when we started",
        ),
    ],
)
def test_without_a_usable_key_mail_is_deferred_unless_it_may_leave_unsigned(rule: str, reason: str, said: str) -> None:
    for without_key, defer in ((WithoutKey.TEMPFAIL, True), (WithoutKey.UNSIGNED, False)):
        choice = choose(policy(rule, without_key=without_key), "joe@example.com")
        assert (reason, (), defer) == (choice.reason, choice.identities, choice.defer)
        assert said == notes(choice)[-1]


def test_only_the_first_rule_signs_unless_several_may() -> None:
    rules = ("joe@example.com e", "example.com k", ".com gone")
    assert ["ed"] == [who.selector for who in choose(policy(*rules), "joe@example.com").identities]
    both = policy(*rules[:2], multiple=True)
    assert ["ed", "mail"] == [who.selector for who in choose(both, "joe@example.com").identities]


def test_one_key_of_several_that_is_missing_defers_all_or_leaves_the_others() -> None:
    rules = ("example.com k", ".com gone")
    assert choose(policy(*rules, multiple=True), "joe@example.com").defer
    choice = choose(policy(*rules, multiple=True, without_key=WithoutKey.UNSIGNED), "joe@example.com")
    assert ("sign.ok", ["mail"]) == (choice.reason, [who.selector for who in choice.identities])


def test_percent_signs_stand_for_the_from_domain() -> None:
    (who,) = choose(policy("* any:robot@lists.%"), "joe@Example.org").identities
    assert ("example.org", "robot@lists.example.org") == (who.domain, who.signer)


def test_the_sender_field_decides_if_it_is_asked_for_but_several_from_are_never_signed() -> None:
    asked = policy()
    asked = SigningPolicy(
        signing_table=asked.signing_table,
        key_table=asked.key_table,
        internal_hosts=asked.internal_hosts,
        sender_headers=("Sender", "From"),
    )
    fields = (Header(b"sender", b" ann@example.com"),)
    assert "sign.ok" == choose(asked, "joe@example.org", fields=fields).reason
    assert "sign.no_match" == choose(asked, "joe@example.org").reason
    assert "sign.ambiguous_from" == choose(asked, "a@example.com", "b@example.com", fields=fields).reason


def test_the_envelope_sender_is_never_consulted() -> None:
    request = Request(stage=Stage.END_OF_MESSAGE, client=INSIDE, sender="joe@example.com")
    assert "sign.no_match" == policy().choose(request, [Header(b"From", b" joe@example.org")]).reason
