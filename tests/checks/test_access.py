# SPDX-License-Identifier: GPL-3.0-or-later
"""Access tables by access(5): what is looked up in which order, and what an entry does."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.builder.builder import CheckBuilder
from gatekeeper.checks.tables.access import AccessOptions, domain_keys, mailbox_keys
from gatekeeper.checks.tables.indexed import address_keys
from gatekeeper.core.request import Request
from gatekeeper.core.verdict import Decision, Outcome
from tests.support.checking import World, mistakes, rcpt


async def ask(folder: Path, word: str, table: str, request: Request, type: str = "hash", zone: str = "") -> Decision:
    """The decision by `check_..._access` on a table with this text."""
    (folder / "access").write_text(table)
    return await World(f"{word} {type}:access", zone, folder=folder).decide(request)


def test_a_name_is_looked_up_whole_then_by_its_parents_down_to_the_top() -> None:
    assert ["A.b.example", "b.example", "example"] == list(domain_keys("A.b.example"))


def test_a_numeric_name_has_no_parents() -> None:
    assert ["192.0.2.1"] == list(domain_keys("192.0.2.1"))


def test_a_name_with_a_final_dot_never_becomes_an_empty_key() -> None:
    assert ["a.example.", "example."] == list(domain_keys("a.example."))


def test_an_address_is_shortened_field_by_field() -> None:
    assert ["192.0.2.1", "192.0.2", "192.0", "192"] == list(address_keys("192.0.2.1"))
    assert ["2001:db8::1", "2001:db8:", "2001:db8", "2001"] == list(address_keys("2001:db8::1"))


def test_a_mailbox_is_looked_up_in_the_order_of_access_5() -> None:
    expected = ["u+x@a.example", "u@a.example", "a.example", "@a.example", "example", "u+x@", "u@"]
    assert expected == list(mailbox_keys("U+x@A.example", "+"))


def test_without_an_extension_there_are_fewer_keys() -> None:
    assert ["u@example", "example", "@example", "u@"] == list(mailbox_keys("u@example", "+"))
    assert ["u+x@example", "example", "@example", "u+x@"] == list(mailbox_keys("u+x@example", ""))


def test_a_mailbox_is_looked_up_as_postfix_writes_it() -> None:
    assert "u@x.example" == next(mailbox_keys("U@x.example.", ""))
    assert '"a b"@x.example' == next(mailbox_keys("a B@x.example", ""))
    assert r'"\"a b\""@x.example' == next(mailbox_keys('"a B"@x.example', ""))  # the quotes belong to the name
    assert "a%b.c@x.example" == next(mailbox_keys("a%b.c@x.example", ""))


async def test_patterns_see_names_in_the_case_they_have_and_addresses_in_lower_case(tmp_path: Path) -> None:
    # seen on Postfix 3.7: check_helo_access and check_client_access do not fold, the others do
    for word, said in (("helo", "HeLo.Example"), ("client", "Mail.Example"), ("sender", "u@example.net")):
        request = rcpt(helo="HeLo.Example", name="Mail.Example", sender="U@Example.net")
        decision = await ask(tmp_path, f"check_{word}_access", "/(.*)/ REJECT saw $1", request, type="pcre")
        assert decision.verdict.text.endswith(f" saw {said}")


@given(st.text(max_size=60), st.sampled_from(["", "+", "+-"]))
def test_any_mailbox_has_a_bounded_number_of_keys_and_none_is_empty(mailbox: str, delimiter: str) -> None:
    keys = list(mailbox_keys(mailbox, delimiter)) if mailbox else []
    assert "" not in keys
    assert len(keys) <= len(mailbox) + 11


@pytest.mark.parametrize(
    ("entry", "reply"),
    [
        ("REJECT", "554 5.7.1 <mail.example.net[192.0.2.1]>: Client host rejected: Access denied"),
        ("REJECT go away", "554 5.7.1 <mail.example.net[192.0.2.1]>: Client host rejected: go away"),
        ("reject 5.3.0 go away", "554 5.3.0 <mail.example.net[192.0.2.1]>: Client host rejected: go away"),
        ("DEFER", "450 4.7.1 <mail.example.net[192.0.2.1]>: Client host rejected: Access denied"),
        ("DEFER_IF_PERMIT x", "450 4.7.1 <mail.example.net[192.0.2.1]>: Client host rejected: x"),
        ("DEFER_IF_REJECT", "450 4.7.1 <mail.example.net[192.0.2.1]>: Client host rejected: Service unavailable"),
        ("451 4.3.0 later", "451 4.3.0 <mail.example.net[192.0.2.1]>: Client host rejected: later"),
        ("550 4.3.0 never", "550 5.3.0 <mail.example.net[192.0.2.1]>: Client host rejected: never"),
        ("550 5.1.1 no user", "550 5.0.0 <mail.example.net[192.0.2.1]>: Client host rejected: no user"),
        ("521 gone", "521 5.7.1 <mail.example.net[192.0.2.1]>: Client host rejected: gone"),
        ("OK", ""),
        ("RELAY because", ""),
        ("12345", ""),
        ("DUNNO", ""),
    ],
)
async def test_an_entry_says_what_postfix_makes_of_it(tmp_path: Path, entry: str, reply: str) -> None:
    decision = await ask(tmp_path, "check_client_access", f"192.0.2 {entry}\n", rcpt())
    assert reply == decision.verdict.reply


@pytest.mark.parametrize(
    ("code", "sender", "recipient"), [("1", "7", "1"), ("2", "8", "2"), ("7", "7", "3"), ("9", "0", "0")]
)
async def test_address_codes_are_made_to_fit_what_is_refused(
    tmp_path: Path, code: str, sender: str, recipient: str
) -> None:
    table = f"example.net 550 5.1.{code} x\nexample.com 550 5.1.{code} x\n"
    assert f"5.1.{sender}" == (await ask(tmp_path, "check_sender_access", table, rcpt())).verdict.enhanced
    assert f"5.1.{recipient}" == (await ask(tmp_path, "check_recipient_access", table, rcpt())).verdict.enhanced


@pytest.mark.parametrize(
    "entry", ["HOLD", "DISCARD", "REDIRECT a@b.example", "FILTER smtp:[x]:25", "PREPEND X-A: b", "WARN w"]
)
async def test_what_postfix_does_itself_is_answered_as_it_stands(tmp_path: Path, entry: str) -> None:
    verdict = (await ask(tmp_path, "check_client_access", f"192.0.2.1 {entry}", rcpt())).verdict
    assert (Outcome.ACTION, entry) == (verdict.outcome, verdict.text)
    assert f"access.{entry.split()[0].lower()}" == verdict.reason


async def test_an_entry_for_a_name_comes_before_a_closer_one_for_the_address(tmp_path: Path) -> None:
    table = "example.net REJECT\n192.0.2.1 OK\n"
    assert "access.reject" == (await ask(tmp_path, "check_client_access", table, rcpt())).verdict.reason


async def test_a_client_without_a_name_is_unknown_and_that_comes_before_its_address(tmp_path: Path) -> None:
    table = "unknown REJECT\n192.0.2.1 OK\n"
    assert "554" == (await ask(tmp_path, "check_client_access", table, rcpt(name="unknown"))).verdict.code


async def test_dunno_ends_the_look_up(tmp_path: Path) -> None:
    table = "mail.example.net DUNNO\nexample.net REJECT\n"
    decision = await ask(tmp_path, "check_client_access", table, rcpt())
    assert ("", ("access.dunno",)) == (decision.verdict.code, decision.reasons)


async def test_the_null_sender_has_a_key(tmp_path: Path) -> None:
    assert "554" == (await ask(tmp_path, "check_sender_access", "<> REJECT", rcpt(sender=""))).verdict.code


async def test_an_ok_ends_its_list_only(tmp_path: Path) -> None:
    (tmp_path / "access").write_text("192.0.2.1 OK")
    world = World("check_client_access hash:access, reject", folder=tmp_path)
    assert "" == (await world.verdict(rcpt())).code


async def test_a_soft_failure_remembered_before_an_ok_still_defers(tmp_path: Path) -> None:
    (tmp_path / "access").write_text("192.0.2.1 OK")
    world = World("defer_if_permit, check_client_access hash:access", folder=tmp_path)
    assert "450" == (await world.verdict(rcpt())).code


async def test_an_entry_may_name_restrictions(tmp_path: Path) -> None:
    table = "example.net reject_unknown_sender_domain, reject\n"
    decision = await ask(tmp_path, "check_sender_access", table, rcpt(), zone="example.net MX !SERVFAIL")
    assert "554" == decision.verdict.code
    table = "example.net warn_if_reject reject, permit\n"
    assert Outcome.PASS == (await ask(tmp_path, "check_sender_access", table, rcpt())).verdict.outcome


async def test_an_entry_that_names_a_check_that_is_off_has_no_opinion(tmp_path: Path) -> None:
    decision = await ask(
        tmp_path, "check_sender_access", "example.net spf\n", rcpt(), zone='example.net TXT "v=spf1 -all"'
    )
    assert ("", ()) == (decision.verdict.code, decision.reasons)


async def test_a_network_and_an_at_domain_in_a_hash_table_match_here(tmp_path: Path) -> None:
    table = "192.0.2.0/24 REJECT\n192.0.2.0/30 OK\n@example.net REJECT\n"
    assert "" == (await ask(tmp_path, "check_client_access", table, rcpt())).verdict.code
    assert "554" == (await ask(tmp_path, "check_client_access", table, rcpt(address="192.0.2.9"))).verdict.code
    assert "554" == (await ask(tmp_path, "check_sender_access", table, rcpt())).verdict.code
    assert "" == (await ask(tmp_path, "check_sender_access", table, rcpt(sender="u@sub.example.net"))).verdict.code


async def test_an_ok_for_a_ptr_is_a_server_error_as_in_postfix(tmp_path: Path) -> None:
    word = "check_reverse_client_hostname_access"
    (tmp_path / "access").write_text("mail.example.net OK\nbad.example REJECT\n")
    world = World(f"{word} hash:access, reject", folder=tmp_path)
    assert "451 4.3.5 Server configuration error" == (await world.verdict(rcpt())).reply
    assert "access.reject" == (await world.verdict(rcpt(reverse_name="bad.example"))).reason


async def test_a_login_name_is_looked_up_as_it_is(tmp_path: Path) -> None:
    assert "554" == (await ask(tmp_path, "check_sasl_access", "alice REJECT", rcpt(sasl_user="Alice"))).verdict.code
    assert "" == (await ask(tmp_path, "check_sasl_access", "alice REJECT", rcpt())).verdict.code


SPF = 'example.net TXT "v=spf1 ip4:192.0.2.1 -all"\n'


async def test_an_ok_may_demand_spf(tmp_path: Path) -> None:
    (tmp_path / "access").write_text("sender@example.net OK if=spf")
    world = World("check_sender_access hash:access, reject", SPF, folder=tmp_path)
    assert "" == (await world.verdict(rcpt())).code
    decision = await world.decide(rcpt(address="192.0.2.2"))
    assert ("554", "access.unproven") == (decision.verdict.code, decision.reasons[0])


def test_an_ok_for_a_sender_without_proof_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "access").write_text("a@example.net OK if=spf\nb@example.net OK\n")
    world = World("check_sender_access hash:access", folder=tmp_path)
    assert [("access", 2)] == [(Path(problem.file).name, problem.line) for problem in world.problems]
    (tmp_path / "clients").write_text("a.example OK\n")
    assert [] == mistakes("check_client_access hash:clients", tmp_path)


async def test_access_asks_its_tables_for_client_helo_sender_and_recipient(tmp_path: Path) -> None:
    for kind in ("client", "helo", "sender", "recipient"):
        (tmp_path / kind).write_text(f"{kind}.example REJECT {kind}\n")
    options = AccessOptions(
        client=("hash:client",), helo=("hash:helo",), sender=("hash:sender",), recipient=("hash:recipient",)
    )
    world = World("access", sections={"access": options}, folder=tmp_path)
    assert "" == (await world.verdict(rcpt())).code
    assert (
        "Client host rejected: client" in (await world.verdict(rcpt(name="client.example", helo="helo.example"))).text
    )
    assert "Helo command rejected: helo" in (await world.verdict(rcpt(helo="helo.example"))).text
    assert "Sender address rejected: sender" in (await world.verdict(rcpt(sender="u@sender.example"))).text
    assert "Recipient address rejected" in (await world.verdict(rcpt(recipient="u@recipient.example"))).text


async def test_access_without_tables_has_no_opinion() -> None:
    assert () == (await World("access").decide(rcpt())).reasons


@given(helo=st.text(max_size=300), sender=st.text(max_size=300))
async def test_nothing_a_client_says_gets_out_of_its_place(
    tmp_path_factory: pytest.TempPathFactory, helo: str, sender: str
) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / "any").write_text("/(.*)/ REJECT you said $1\n")
    world = World("check_helo_access pcre:any, check_sender_access pcre:any", folder=folder)
    reply = (await world.verdict(rcpt(helo=helo, sender=sender))).reply
    assert reply.isascii()
    assert reply.isprintable()


@pytest.mark.parametrize("text", ["550", "450", "554", "250"])
@pytest.mark.parametrize("type", ["hash", "cidr", "pcre"])
def test_a_reply_code_alone_is_an_ok_and_told(tmp_path: Path, type: str, text: str) -> None:
    key = {"hash": "192.0.2.1", "cidr": "192.0.2.1", "pcre": "/x/"}[type]
    (tmp_path / "access").write_text(f"{key} {text}\n")
    [what] = mistakes(f"check_client_access {type}:access", tmp_path)
    assert f"a number alone means OK, as in Postfix (access(5)); write REJECT, or {text} with a text" == what


@pytest.mark.parametrize("text", ["1234567890", "550 no", "REJECT", "1"])
def test_other_numbers_are_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "access").write_text(f"192.0.2.1 {text}\n")
    assert [] == mistakes("check_client_access hash:access", tmp_path)


def test_only_ascii_digits_are_a_number(tmp_path: Path) -> None:
    (tmp_path / "access").write_text("192.0.2.1 \uff15\uff15\uff10\n")
    assert "unknown action" in mistakes("check_client_access hash:access", tmp_path)[0]


@pytest.mark.parametrize("text", ["OK", "RELAY", "12345", "permit", "reject_unknown_sender_domain, permit", "opened"])
@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("check_sender_access", "an OK for a sender lets in whoever forges it; demand proof: OK if=spf"),
        ("check_helo_access", "an OK for a HELO name lets in whoever says it; write DUNNO, or name the client's"),
        (
            "check_sender_mx_access",
            "an OK for what a stranger chooses (PTR, servers) is answered 451 4.3.5; write DUNNO",
        ),
        ("check_reverse_client_hostname_access", "an OK for what a stranger chooses (PTR, servers) is answered 451"),
    ],
)
def test_whatever_permits_by_what_a_stranger_says_is_told(tmp_path: Path, word: str, why: str, text: str) -> None:
    (tmp_path / "access").write_text(f"a.example DUNNO\nb.example {text}\n")
    classes = {name: [([word], SourceLine("g.toml"))] for name, word in (("opened", "inner"), ("inner", "permit"))}
    builder = CheckBuilder({}, tmp_path, classes=classes)
    assert builder.check([word, "hash:access"], SourceLine("g.toml", 9)) is not None
    [problem] = builder.problems
    assert (2, True) == (problem.line, problem.what.startswith(why))


@pytest.mark.parametrize("text", ["DUNNO", "REJECT", "OK if=spf", "permit_mynetworks, reject", "warn_if_reject reject"])
def test_what_permits_nobody_by_a_sender_alone_is_not_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "access").write_text(f"b.example {text}\n")
    assert [] == mistakes("check_sender_access hash:access", tmp_path)
