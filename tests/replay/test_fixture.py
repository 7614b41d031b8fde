# SPDX-License-Identifier: GPL-3.0-or-later
"""Recorded sessions as files: what people write is understood or named with its line, what is written reads back."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatekeeper.core.problem import ConfigError
from gatekeeper.replay import fixture
from gatekeeper.replay.fixture import Case, Expected, ExpectedConnection, RecordedConnection, RecordedMessage

SESSION = """\
format = 1

[[connection]]
client = "192.0.2.1"
helo = "mail.example.org"
wait = "5m"

[[connection.message]]
from = ""
to = ["bob@example.net"]
data = "message.eml"
"""


def make(folder: Path, session: str = SESSION, **files: str) -> Path:
    """A case folder with these files; `expected_toml` stands for expected.toml."""
    folder.mkdir(exist_ok=True)
    (folder / "session.toml").write_text(session)
    (folder / "message.eml").write_bytes(b"Subject: hello\r\n\r\nbare LF\n")
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder


def problems(folder: Path) -> list[str]:
    """What is wrong with the case, without the path of its folder."""
    with pytest.raises(ConfigError) as caught:
        fixture.read(folder)
    return [str(problem).removeprefix(f"{folder}/") for problem in caught.value.problems]


def test_a_case_is_what_its_files_say(tmp_path: Path) -> None:
    case = fixture.read(make(tmp_path / "case", dns_zone="a.example A 192.0.2.1\n", README="why"))
    (connection,) = case.connections
    (message,) = connection.messages
    assert ("case", 300.0, "why") == (case.name, case.wait, case.readme)
    assert ("192.0.2.1", "mail.example.org", "") == (connection.client, connection.helo, message.sender)
    assert b"Subject: hello\r\n\r\nbare LF\n" == case.content(message)


def test_a_session_nested_too_deeply_is_a_mistake(tmp_path: Path) -> None:
    folder = make(tmp_path / "case", "a = " + "[" * 100_000)
    assert ["session.toml: is nested too deeply"] == problems(folder)


def test_every_mistake_is_named_with_its_place(tmp_path: Path) -> None:
    session = """\
format = 1
[[connection]]
client = "192.0.2.300"
wait = "5x"
[[connection.message]]
from = ""
too = []
to = []
data = "../message.eml"
"""
    folder = make(tmp_path / "case", session, dns_zone="a.example A b\n", expected_toml="[[connection]]\nreply = 5\n")
    assert [
        "session.toml:3",
        "session.toml:4",
        "session.toml:7",
        "session.toml:8",
        "session.toml:9",
        "expected.toml:2",
        "dns.zone:1",
    ] == [problem.partition(": ")[0] for problem in problems(folder)]


def test_a_misspelt_key_is_answered_with_the_right_one(tmp_path: Path) -> None:
    folder = make(tmp_path / "case", expected_toml="[[connection]]\n[[connection.message]]\nreson = []\n")
    assert ["expected.toml:3: unknown key 'reson' in [connection.message]; did you mean 'reasons'?"] == problems(folder)


@pytest.mark.parametrize(
    ("session", "problem"),
    [
        ("format = 1\n", "session.toml: connection is missing"),
        ("format = 1\nconnection = []\n", "session.toml:2: connection: is empty; at least one is needed"),
        (SESSION.replace("message.eml", "no.eml"), 'session.toml: data = "no.eml": No such file or directory'),
        (SESSION.replace("format = 1", "format = 2"), "session.toml:1: format is 2; allowed: 1"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, session: str, problem: str) -> None:
    assert [problem] == problems(make(tmp_path / "case", session))


def test_a_file_that_is_not_toml_is_named_with_the_line(tmp_path: Path) -> None:
    (problem,) = problems(make(tmp_path / "case", "format = 1\nconnection = [[\n"))
    assert problem.startswith("session.toml:")
    assert "is not TOML" in problem


def test_a_folder_without_a_session_is_no_case(tmp_path: Path) -> None:
    assert ["session.toml: cannot be read: No such file or directory"] == problems(tmp_path)


def test_an_expectation_of_what_is_not_played_is_a_mistake(tmp_path: Path) -> None:
    folder = make(tmp_path / "case", expected_toml="[[connection]]\n" + 2 * "[[connection.message]]\n")
    assert ["expected.toml: expects 2 messages in connection 1, session.toml has fewer"] == problems(folder)


def test_the_nearest_configuration_is_used(tmp_path: Path) -> None:
    folder = make(tmp_path / "case")
    (tmp_path / "gatekeeper.toml").touch()
    assert (tmp_path / "gatekeeper.toml").resolve() == fixture.read(folder).config
    (folder / "gatekeeper.toml").touch()
    assert (folder / "gatekeeper.toml").resolve() == fixture.read(folder).config


def test_cases_are_found_at_and_below_a_path(tmp_path: Path) -> None:
    one, two = make(tmp_path / "b"), make(tmp_path / "a")
    assert [two, one] == fixture.find(tmp_path)
    assert [one] == fixture.find(one)
    assert [] == fixture.find(tmp_path / "nothing")


def test_a_name_given_is_also_the_reverse_name(tmp_path: Path) -> None:
    assert None is fixture.client_names(RecordedConnection(client="192.0.2.1"))
    assert ("a.example", "a.example") == fixture.client_names(RecordedConnection(client="192.0.2.1", name="a.example"))
    assert ("unknown", "a.example") == fixture.client_names(
        RecordedConnection(client="192.0.2.1", reverse_name="a.example")
    )


texts = st.text(st.characters(codec="utf-8"))
recipients = st.lists(texts, min_size=1, max_size=2).map(tuple)
messages = st.tuples(texts, recipients).map(lambda drawn: RecordedMessage(sender=drawn[0], recipients=drawn[1]))
connections = st.builds(
    RecordedConnection,
    client=st.ip_addresses().map(str),
    name=st.none() | texts,
    helo=st.none() | texts,
    sasl_user=texts,
    wait=st.integers(0, 10**6).map(float) | st.sampled_from([0.5, 1.25]),
    messages=st.lists(messages, max_size=2).map(tuple),
)
items = st.none() | st.lists(texts, max_size=2).map(tuple)
outcomes = st.builds(Expected, reply=texts | items, reasons=items, headers_added=items, headers_removed=items)


@given(connections, outcomes)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_reads_back(tmp_path: Path, connection: RecordedConnection, outcome: Expected) -> None:
    wanted = (ExpectedConnection(messages=(outcome,) * len(connection.messages)),)
    case = Case(folder=tmp_path, connections=(connection,), expected=wanted)
    fixture.write(case)
    assert case == fixture.read(tmp_path)


def test_bytes_that_are_no_text_are_replaced_when_written(tmp_path: Path) -> None:
    connection = RecordedConnection(client="192.0.2.1", helo="a\udcffb\x7f\n")
    fixture.write(Case(folder=tmp_path, connections=(connection,)))
    assert "a\N{REPLACEMENT CHARACTER}b\x7f\n" == fixture.read(tmp_path).connections[0].helo


def test_a_message_is_written_byte_for_byte(tmp_path: Path) -> None:
    content = bytes(range(256))
    message = RecordedMessage(sender="", recipients=("a@b.example",), data="m.eml")
    connection = RecordedConnection(client="192.0.2.1", messages=(message,))
    fixture.write(Case(folder=tmp_path / "new", connections=(connection,), files={"m.eml": content}))
    assert content == fixture.read(tmp_path / "new").content(message)
