# SPDX-License-Identifier: GPL-3.0-or-later
"""Sign or verify: each condition, alone and named."""

from dataclasses import replace
from ipaddress import ip_address

import pytest

from gatekeeper.core.message import Header
from gatekeeper.core.request import Client, Request, Stage
from gatekeeper.signing.host_list import HostList
from gatekeeper.signing.key_table import KeyTable
from gatekeeper.signing.name_set import MacroList, NameSet
from gatekeeper.signing.origin import Owner
from gatekeeper.signing.policy import DAEMON_NAME, SigningChoice, SigningPolicy, WithoutKey
from gatekeeper.signing.sender_binding import BindTo, Mismatch, SenderBinding
from gatekeeper.signing.signing_table import SigningTable
from tests.support.signing_world import ed25519_pem, rsa_pem

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
    return decide(policy, request, headers, {DAEMON_NAME: daemon_name})


def decide(
    policy: SigningPolicy, request: Request, headers: list[Header], macros: dict[str, str], to: tuple[str, ...] = ()
) -> SigningChoice:
    return policy.choose(request, headers, policy.exempting(policy.origin(request, macros), headers), to)


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
    assert ("sign.ok", origin) == (choice.reason, choice.origin.why.found)
    assert [("example.com", "mail")] == [(who.domain, who.selector) for who in choice.identities]


def test_why_mail_is_signed_is_written_down_condition_by_condition() -> None:
    assert [
        "signing: the client is internal by 192.0.2.0/24",
        "signing table: SigningTable: example.com",
        "key k: d=example.com s=mail",
    ] == notes(choose(policy(), "joe@example.com"))


def test_mail_from_outside_is_not_signed_and_no_condition_is_left_out() -> None:
    choice = choose(policy(), "joe@example.net", client=OUTSIDE, daemon_name="smtpd")
    assert ("sign.not_origin", Owner.STRANGER, ()) == (choice.reason, choice.origin.owner, choice.identities)
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
    assert choice.origin.is_ours


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
            "key unread: /nonexistent/mail.private could not be used when it was read",
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
    assert "sign.no_match" == decide(policy(), request, [Header(b"From", b" joe@example.org")], {}).reason


def test_a_macro_makes_mail_ours_and_is_missed_in_the_reason_if_it_does_not() -> None:
    macros, _ = MacroList.read(["client_role staff|robot"], "signing.macros")
    wants = replace(policy(), macros=macros)
    request = Request(stage=Stage.END_OF_MESSAGE, client=OUTSIDE)
    headers = [Header(b"From", b" joe@example.com")]
    assert "the macro {client_role}=robot" == wants.origin(request, {"{client_role}": "robot"}).why.found
    (told, _) = notes(decide(wants, request, headers, {"{client_role}": "guest"}))
    assert told.endswith("; of the macros {client_role} none is set as required")


def test_no_daemon_name_makes_mail_ours_if_none_is_wanted() -> None:
    choice = choose(
        replace(policy(), daemon_names=NameSet()), "joe@example.com", client=OUTSIDE, daemon_name="ORIGINATING"
    )
    assert not choice.origin.is_ours


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("joe@example.com", "sign.external"),
        ("joe@example.org", "sign.not_origin"),
        ("joe@example.com, joe@example.org", "sign.not_origin"),
    ],
)
def test_an_external_host_that_uses_a_domain_of_ours_is_told(value: str, reason: str) -> None:
    assert reason == choose(policy(), value, client=OUTSIDE).reason


def test_no_external_host_is_told_that_is_to_be_ignored_or_for_a_table_that_signs_for_all() -> None:
    ignored, _ = HostList.read("mx.example.net", "signing.external_ignore")
    known = replace(policy(), external=ignored)
    assert "sign.not_origin" == choose(known, "joe@example.com", client=OUTSIDE).reason
    assert "sign.not_origin" == choose(policy("* k"), "joe@example.com", client=OUTSIDE).reason


def test_mail_of_a_peer_or_from_an_exempt_domain_is_left_alone() -> None:
    peers, _ = HostList.read("192.0.2.7", "signing.peers")
    assert ("sign.peer", ()) == (lambda c: (c.reason, c.identities))(
        choose(replace(policy(), peers=peers), "joe@example.com")
    )
    exempt = replace(policy(), exempt=NameSet("Example.com"))
    assert "sign.exempt" == choose(exempt, "joe@example.com").reason
    assert "sign.exempt" == choose(exempt, "joe@example.com", client=OUTSIDE).reason
    assert "sign.no_match" == choose(exempt, "joe@example.org").reason


def test_mail_to_some_recipients_is_not_signed() -> None:
    never = replace(policy(), never_to=NameSet("robot@example.net"))
    request = Request(stage=Stage.END_OF_MESSAGE, client=INSIDE)
    headers = [Header(b"From", b" joe@example.com")]
    found = [
        decide(never, request, headers, {}, to) for to in (("a@example.net",), ("a@example.net", "Robot@example.net"))
    ]
    assert [("sign.ok", False), ("sign.recipient", False)] == [(choice.reason, choice.missed) for choice in found]


def test_a_binding_holds_for_every_address_in_from() -> None:
    owners = {"joe@example.com": frozenset({"joe"}), "chief@example.com": frozenset({"chief"})}
    bound = replace(policy(), binding=SenderBinding(BindTo.LOGIN, owners=owners.get))
    for value in ("joe@example.com, chief@example.com", "Team: Joe <joe@example.com>, Chief <chief@example.com>;"):
        assert "sign.unbound" == choose(bound, value, client=OUTSIDE, sasl_user="joe").reason
    assert "sign.ok" == choose(bound, "Joe, Doe <joe@example.com>", client=OUTSIDE, sasl_user="joe").reason


@pytest.mark.parametrize(("mismatch", "reply"), [(Mismatch.UNSIGNED, ""), (Mismatch.REJECT, "550 5.7.1")])
def test_who_is_bound_to_another_domain_is_not_signed_or_is_refused(mismatch: Mismatch, reply: str) -> None:
    bound = replace(policy(), binding=SenderBinding(BindTo.LOGIN, mismatch=mismatch))
    assert "sign.ok" == choose(bound, "joe@example.com", client=OUTSIDE, sasl_user="ann@example.com").reason
    choice = choose(bound, "joe@example.com", client=OUTSIDE, sasl_user="eve@example.net")
    assert ("sign.unbound", (), True) == (choice.reason, choice.identities, choice.missed)
    assert reply == (choice.reply.reply[:9] if choice.reply else "")
    assert "bind = login: the login eve@example.net is in example.net" in notes(choice)[-1]


@pytest.mark.parametrize(
    ("value", "missed"),
    [("joe@example.org", True), ("joe@a.example.net", True), ("joe@example.net", False), ("joe@other.example", False)],
)
def test_mail_from_a_local_domain_that_has_no_line_is_missed(value: str, missed: bool) -> None:
    choice = choose(replace(policy(), local_domains=("example.org", ".example.net")), value)
    assert ("sign.no_match", missed) == (choice.reason, choice.missed)
    assert missed == ("is a domain of ours" in notes(choice)[-1])


def test_without_a_previous_key_mail_waits() -> None:
    choice = choose(policy("example.com broken", without_key=WithoutKey.PREVIOUS), "joe@example.com")
    assert ("sign.bad_key", True) == (choice.reason, choice.defer)


def test_the_key_before_the_reload_signs_while_the_new_one_is_broken() -> None:
    old = policy("example.com k", without_key=WithoutKey.PREVIOUS)
    keys, _ = KeyTable.read([f"k example.com:new:{inline(rsa_pem())[:300]}"])
    for _ in range(2):  # another reload does not forget it
        keys.inherit(old.key_table)
        table, _ = SigningTable.read(["example.com k"], keys)
        new = replace(old, key_table=keys, signing_table=table)
        choice = choose(new, "joe@example.com")
        assert ("sign.previous_key", "mail", True) == (choice.reason, choice.identities[0].selector, choice.missed)
        assert "key k: signing with the key of that name from before" in notes(choice)
        old, keys = new, KeyTable.read([f"k example.com:new:{inline(rsa_pem())[:300]}"])[0]
