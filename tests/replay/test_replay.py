# SPDX-License-Identifier: GPL-3.0-or-later
"""Replay: what counts as a difference, and cases played in a world of their own."""

from pathlib import Path

import pytest

from gatekeeper.core.message import Header
from gatekeeper.core.problem import ConfigError
from gatekeeper.replay import fixture
from gatekeeper.replay.command import main
from gatekeeper.replay.compare import ConnectionOutcome, MessageOutcome, differences, updated
from gatekeeper.replay.fixture import Case, Expected, ExpectedConnection, RecordedConnection, RecordedMessage
from gatekeeper.replay.in_process import play
from tests.support.signing_world import write_key

pytest_plugins = ["pytester"]

CONFIG = """\
hostname = "mx.example.net"
mynetworks = ["127.0.0.0/8"]
relay_domains = ["example.net"]
[policy]
restrictions = "reject_non_fqdn_helo_hostname, reject_unknown_client_hostname, reject_unknown_sender_domain, greylist"
[checks.greylist]
clients = "all"
learning = "0s"
delay = "1m"
"""
ZONE = """\
1.2.0.192.in-addr.arpa PTR mail.example.org
mail.example.org A 192.0.2.1
example.org MX 10 mail.example.org
"""
EARLY = "450 4.7.1 <bob@example.net>: Recipient address rejected: "


EARLY_EXPECTED = (ExpectedConnection(messages=(Expected(reply="450"),)),)


def message(sender: str = "alice@example.org", data: str | None = None) -> RecordedMessage:
    return RecordedMessage(sender=sender, recipients=("bob@example.net",), data=data)


def connection(
    *messages: RecordedMessage, helo: str = "mail.example.org", wait: float = 0.0, user: str = ""
) -> RecordedConnection:
    return RecordedConnection(
        client="192.0.2.1", helo=helo, wait=wait, sasl_user=user, messages=messages or (message(),)
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "gatekeeper.toml").write_text(CONFIG)
    return tmp_path / "case"


def case(folder: Path, *connections: RecordedConnection, **more: object) -> Case:
    """A case on disk, as it reads back."""
    made = Case.model_validate({"folder": folder, "connections": connections, "zone": ZONE, **more})
    fixture.write(made)
    return fixture.read(folder)


async def replies(case: Case) -> list[tuple[str, ...]]:
    return [message.replies for connection in await play(case) for message in connection.messages]


OUTCOME = MessageOutcome(
    replies=("250 2.1.5 Ok", "450 4.7.1 <b@c>: Recipient address rejected: too early"),
    reasons=("greylist.early", "dmarc.pass"),
    headers_added=(
        Header(b"Authentication-Results", b" mx.example;\r\n\tspf=pass smtp.mailfrom=a.example;\r\n\tdkim=none"),
        Header(b"DKIM-Signature", b" v=1; a=rsa-sha256; d=example.org; s=mx;\r\n\tbh=abc; b=def"),
    ),
)


def check(expected: Expected, outcome: MessageOutcome = OUTCOME) -> list[str]:
    """The differences of one message, without where it is."""
    case = Case(folder=Path("case"), connections=(connection(),), expected=(ExpectedConnection(messages=(expected,)),))
    found = differences(case, [ConnectionOutcome(replies=("220",), messages=(outcome,))])
    return [text.partition(">: ")[2] for text in found]


@pytest.mark.parametrize(
    "expected",
    [
        Expected(),
        Expected(reply="450"),
        Expected(reply="450 4.7.1"),
        Expected(reply="450 too early"),
        Expected(reply="450 4.7.1 rejected: too"),
        Expected(reply="too early"),
        Expected(reply=("250", "450")),
        Expected(reasons=("dmarc.pass",)),
        Expected(reasons=("dmarc.pass", "greylist.early")),
        Expected(headers_added=("Authentication-Results", "DKIM-Signature")),
        Expected(headers_added=("authentication-results: dkim=none spf=pass smtp.mailfrom=a.example;",)),
        Expected(headers_added=("DKIM-Signature: d=example.org s=mx",), headers_removed=()),
    ],
)
def test_what_fits_is_no_difference(expected: Expected) -> None:
    assert [] == check(expected)


@pytest.mark.parametrize(
    "expected",
    [
        Expected(reply="45"),
        Expected(reply="450 4.7"),
        Expected(reply="450 4.7.10"),
        Expected(reply="554"),
        Expected(reply="450 4.7.1 too late"),
        Expected(reply=("450",)),
        Expected(reply=("250", "250")),
        Expected(reply=("250", "450", "250")),
        Expected(reasons=("greylist",)),
        Expected(reasons=()),
        Expected(headers_added=()),
        Expected(headers_added=("DKIM-Signature", "DKIM-Signature")),
        Expected(headers_added=("Authentication-Results: dkim=pass",)),
        Expected(headers_removed=("Authentication-Results",)),
    ],
)
def test_what_does_not_fit_is_one_difference(expected: Expected) -> None:
    assert 1 == len(check(expected))


def test_a_difference_is_a_sentence_with_both_sides() -> None:
    assert [
        'expected the reply "250", it was "450 4.7.1 <b@c>: Recipient address rejected: too early"',
        'expected the reasons "x", they were "greylist.early", "dmarc.pass"',
        'expected to be removed: "Subject"; actually removed: none',
    ] == check(Expected(reply="250", reasons=("x",), headers_removed=("Subject",)))


@pytest.mark.parametrize("wanted", [Expected(), Expected(reply="250"), Expected(reasons=("greylist.early", "x"))])
def test_an_updated_expectation_fits(wanted: Expected) -> None:
    old = Case(folder=Path("case"), connections=(connection(),), expected=(ExpectedConnection(messages=(wanted,)),))
    came = [ConnectionOutcome(replies=("220 mx",), messages=(OUTCOME,))]
    assert [] == differences(updated(old, came), came)


def test_an_update_keeps_what_fits_and_what_is_not_compared() -> None:
    wanted = Expected(reply="250", reasons=("dmarc.pass",))
    old = Case(folder=Path("case"), connections=(connection(),), expected=(ExpectedConnection(messages=(wanted,)),))
    (new,) = updated(old, [ConnectionOutcome(replies=("220",), messages=(OUTCOME,))]).expected[0].messages
    assert Expected(reply=("250", "450 4.7.1"), reasons=("dmarc.pass",)) == new


def test_a_new_expectation_leaves_out_what_changes_each_time() -> None:
    old = Case(folder=Path("case"), connections=(connection(),))
    (new,) = updated(old, [ConnectionOutcome(replies=("220",), messages=(OUTCOME,))]).expected[0].messages
    assert ("Authentication-Results: mx.example spf=pass dkim=none", "DKIM-Signature: d=example.org s=mx") == (
        new.headers_added
    )


async def test_the_clock_jumps_over_a_wait(folder: Path) -> None:
    early, late = await replies(case(folder, connection(), connection(wait=120.0)))
    assert early[0].startswith(EARLY)
    assert ("250 2.1.5 Ok",) == late


async def test_each_case_begins_with_an_empty_store(folder: Path) -> None:
    made = case(folder, connection())
    assert await replies(made) == await replies(made)


async def test_a_client_without_a_name_is_looked_up_in_the_cases_dns(folder: Path) -> None:
    ((reply,),) = await replies(case(folder, connection(), zone="example.org MX 10 mail.example.org\n"))
    assert reply.startswith("450 4.7.25 <bob@example.net>: Recipient address rejected: ")


async def test_the_reasons_of_all_decisions_are_told(folder: Path) -> None:
    (outcome,) = await play(case(folder, connection(helo="localhost")))
    assert ("helo.non_fqdn",) == outcome.messages[0].reasons


async def test_accepted_data_goes_through_the_milter(folder: Path) -> None:
    content = b"From: alice@example.org\nAuthentication-Results: mx.example.net; spf=pass\nSubject: x\n\nhello\n"
    made = case(
        folder,
        connection(message(), message(data="m.eml")),
        connection(message(data="m.eml"), wait=120),
        files={"m.eml": content},
    )
    early, late = await play(made)
    assert () == early.messages[1].headers_added
    (outcome,) = late.messages
    assert ("250", "250") == tuple(reply[:3] for reply in outcome.replies)
    assert [b"Authentication-Results"] == [field.name for field in outcome.headers_added]
    assert (Header(b"Authentication-Results", b" mx.example.net; spf=pass"),) == outcome.headers_removed


async def test_a_user_who_has_logged_in_gets_the_submission_restrictions(folder: Path) -> None:
    (folder.parent / "gatekeeper.toml").write_text(CONFIG + '[policy.contexts.submission]\nrestrictions = ["permit"]\n')
    assert [("250 2.1.5 Ok",)] == await replies(case(folder, connection(helo="laptop", user="alice")))


async def test_a_case_without_a_configuration_says_so(tmp_path: Path) -> None:
    made = case(tmp_path / "case", connection())
    with pytest.raises(ConfigError, match="name one with --config"):
        await play(made)


def test_the_command_tells_what_differs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ExpectedConnection(messages=(Expected(reply="250"),))
    case(folder, connection(helo="localhost"), expected=(wrong,))
    assert 1 == main([folder.parent])
    assert (
        f"differs: {folder}\n"
        '    connection 1, message 1 from <alice@example.org>: expected the reply "250", it was "504 5.5.2 '
        "<bob@example.net>: Recipient address rejected: <localhost>: Helo command rejected: need fully-qualified "
        'hostname"\n'
        "0 of 1 case as expected\n"
    ) == capsys.readouterr().out


def test_the_command_updates_expectations(folder: Path) -> None:
    wrong = ExpectedConnection(messages=(Expected(reply="250"),))
    case(folder, connection(), expected=(wrong,))
    assert [1, 0, 0] == [main([folder]), main([folder], update=True), main([folder])]
    assert "450 4.7.1" == fixture.read(folder).expected[0].messages[0].reply


@pytest.mark.parametrize(
    "expected",
    [(), (ExpectedConnection(),), (ExpectedConnection(messages=(Expected(), Expected())),)],
    ids=["no file", "a connection", "messages"],
)
def test_a_case_that_expects_nothing_is_a_finding(
    folder: Path, expected: tuple[ExpectedConnection, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    case(folder, connection(message(), message("eve@example.org")), expected=expected)
    if not expected:
        (folder / "expected.toml").unlink(missing_ok=True)
    assert 1 == main([folder])
    assert (
        f"expects nothing: {folder}\n"
        "    nothing is expected in expected.toml; `gatekeeper replay --update` writes down what happens\n"
        "0 of 1 case as expected\n"
    ) == capsys.readouterr().out
    assert [0, 0] == [main([folder], update=True), main([folder])]


def test_a_case_that_expects_something_of_one_message_is_none(folder: Path) -> None:
    expected = ExpectedConnection(messages=(Expected(), Expected(reasons=())))
    assert not case(folder, connection(message(), message()), expected=(expected,)).expects_nothing


LIMITED = CONFIG + '[checks.ratelimit]\nclient_connections = "1/1h"\n'


def test_a_connection_in_which_nothing_was_sent_gets_its_reply_as_expectation(folder: Path) -> None:
    (folder.parent / "gatekeeper.toml").write_text(LIMITED)
    sent = ExpectedConnection(messages=(Expected(reply="450"),))
    case(folder, connection(), connection(), expected=(sent, sent))
    assert [1, 0, 0] == [main([folder]), main([folder], update=True), main([folder])]
    first, second = fixture.read(folder).expected
    assert (sent, ExpectedConnection(reply="421")) == (first, second)


def test_a_connection_without_a_message_can_be_a_case(folder: Path) -> None:
    (folder.parent / "gatekeeper.toml").write_text(LIMITED)
    bare = RecordedConnection(client="192.0.2.1")
    case(folder, bare, bare)
    assert [1, 0, 0] == [main([folder]), main([folder], update=True), main([folder])]
    assert ["220", "421"] == [one.reply for one in fixture.read(folder).expected]


MACHINE = """
compatibility_level = 3.6
myhostname = mail.example.org
mydestination = example.net
mynetworks = 192.0.2.0/24
recipient_delimiter = +
"""


@pytest.fixture(params=["nothing", "another world"])
def machine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the Postfix of this machine says of itself, if there is one."""
    (tmp_path / "postfix").mkdir()
    if request.param != "nothing":
        (tmp_path / "postfix" / "main.cf").write_text(MACHINE)
    monkeypatch.setenv("MAIL_CONFIG", str(tmp_path / "postfix"))
    return str(request.param)


OF_A_STRANGER = (
    ExpectedConnection(
        messages=(
            Expected(
                reply=("250", "250"),
                headers_added=("Authentication-Results: relay.invalid;",),
                headers_removed=("Authentication-Results: relay.invalid;",),
            ),
        )
    ),
)


@pytest.mark.usefixtures("machine")
def test_a_case_comes_out_the_same_whatever_the_postfix_of_the_machine_says(
    tmp_path: Path, pytester: pytest.Pytester
) -> None:
    folder = tmp_path / "cases" / "case"
    content = b"From: alice@example.org\nAuthentication-Results: relay.invalid; spf=pass\n\nhello\n"
    case(folder, connection(message(data="m.eml")), files={"m.eml": content}, expected=OF_A_STRANGER)
    (folder.parent / "gatekeeper.toml").write_text('[policy]\nrestrictions = "reject_helo_ours"\n')
    assert 0 == main([folder])
    pytester.runpytest("-p", "no:asyncio", folder).assert_outcomes(passed=1)


def test_a_case_needs_no_user_of_the_machine_that_it_is_for(folder: Path) -> None:
    users = 'socket_group = "nobody-here"\npeers = ["nobody-here"]\nlisten = "unix:/run/x.sock"\n'
    config = f'user = "nobody-here"\ngroup = "nobody-here"\n{CONFIG}'.replace("[policy]\n", f"[policy]\n{users}")
    (folder.parent / "gatekeeper.toml").write_text(f"{config}[milter]\n{users}")
    case(folder, connection(), expected=EARLY_EXPECTED)
    assert 0 == main([folder])


def test_the_command_plays_a_case_once_and_all_in_spite_of_a_broken_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case(folder, connection(), expected=EARLY_EXPECTED)
    (folder.parent / "broken").mkdir()
    (folder.parent / "broken" / "session.toml").write_text("format = 2\n")
    assert 78 == main([folder, folder.parent])
    assert "1 of 2 cases as expected" in capsys.readouterr().out


def test_the_command_needs_a_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 2 == main([tmp_path])
    assert "no case at or below" in capsys.readouterr().out


def test_pytest_plays_cases_in_any_repository(folder: Path, pytester: pytest.Pytester) -> None:
    wrong = ExpectedConnection(messages=(Expected(reply="250"),))
    case(folder, connection(), expected=(wrong,))
    case(folder.parent / "good", connection(), expected=EARLY_EXPECTED)
    case(folder.parent / "says-nothing", connection())
    (folder.parent / "other").mkdir()
    (folder.parent / "other" / "session.toml").write_text("of = 1\n")
    result = pytester.runpytest("-p", "no:asyncio", folder.parent)
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["nothing is expected in expected.toml; `gatekeeper replay --update` writes*"])
    result.stdout.fnmatch_lines(['connection 1, message 1 from <alice@example.org>: expected the reply "250", it was*'])


async def test_what_is_only_observed_changes_no_reply_and_signs_nothing(folder: Path) -> None:
    write_key(folder.parent / "mail.private")
    signing = f'[signing]\nkey_table = "csl:k=example.org:mail:{folder.parent}/mail.private"\n'
    (folder.parent / "gatekeeper.toml").write_text(
        f'mode = "observe"\n{CONFIG}{signing}signing_table = "csl:example.org=k"\n'
    )
    content = {"m.eml": b"From: alice@example.org\n\nhello\n"}
    made = case(folder, connection(message(data="m.eml"), user="alice"), connection(message()), files=content)
    submitted, waiting = (one.messages[0] for one in await play(made))
    assert (("250", "250"), (), ("sign.observed",)) == (
        tuple(reply[:3] for reply in submitted.replies),
        submitted.headers_added,
        submitted.reasons,
    )
    assert (("250 2.1.5 Ok",), ("greylist.early",)) == (waiting.replies, waiting.reasons)
