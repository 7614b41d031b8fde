# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may sign for whom."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.request import Request, Stage
from gatekeeper.signing.binding import Bind, Binding, Logins
from gatekeeper.signing.sender import Sender

JOE = Sender("joe", "example.com")
MAP = ["joe@example.com jsmith, ann", "@example.org ann", "info@example.org joe@example.com"]


def objection(bind: Bind, sender: Sender = JOE, *, login: str = "", envelope: str = "", by_map: bool = False) -> str:
    logins, problems = Logins.read(MAP if by_map else (), "signing.sender_logins")
    assert [] == problems
    request = Request(
        stage=Stage.END_OF_MESSAGE, sender=envelope, sasl_user=login, sasl_method="PLAIN" if login else ""
    )
    return Binding(bind, logins).objection(request, sender)


def test_nothing_is_bound_unless_it_is_wanted() -> None:
    assert "" == objection(Bind.NONE, login="eve@example.net", envelope="eve@example.net")


@pytest.mark.parametrize(
    ("login", "said"),
    [
        ("joe@example.com", ""),
        ("ann@Example.COM", ""),
        ("eve@example.org", "the login eve@example.org is in example.org, and sender_logins does not give it "),
        ("eve@a.example.com", "the login eve@a.example.com is in a.example.com, and sender_logins does not give it "),
        ("joe", "the login joe is in no domain, and sender_logins does not give it "),
    ],
)
def test_a_login_may_sign_for_its_own_domain(login: str, said: str) -> None:
    assert said + (str(JOE) if said else "") == objection(Bind.LOGIN, login=login)


@pytest.mark.parametrize(
    ("login", "sender", "may"),
    [
        ("JSmith", JOE, True),
        ("ann", JOE, True),
        ("joe@example.com", JOE, False),  # the map says who owns this address, and it is not this login
        ("ann", Sender("x", "example.org"), True),
        ("ann", Sender("INFO", "example.org"), False),
        ("joe@example.com", Sender("info", "example.org"), True),
        ("bob@example.net", Sender("bob", "example.net"), True),
    ],
)
def test_the_map_of_logins_decides_where_it_says_something(login: str, sender: Sender, may: bool) -> None:
    assert may == (not objection(Bind.LOGIN, sender, login=login, by_map=True))


def test_a_host_that_does_not_authenticate_is_not_bound_to_a_login() -> None:
    assert "" == objection(Bind.LOGIN)


@pytest.mark.parametrize(
    ("envelope", "said"),
    [
        ("bounces@example.com", ""),
        ("x@EXAMPLE.com", ""),
        ("x@a.example.com", "the envelope sender is in a.example.com"),
        ("x@example.org", "the envelope sender is in example.org"),
        ("", "the envelope sender is in no domain"),
    ],
)
def test_the_envelope_sender_may_sign_for_its_own_domain(envelope: str, said: str) -> None:
    assert said == objection(Bind.ENVELOPE, envelope=envelope)


def test_the_source_of_a_postfix_map_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "logins").write_text("# who\njoe@example.com\tjsmith,ann\n@example.org ann\n")
    for spec in (f"hash:{tmp_path}/logins", "lmdb:logins", f"{tmp_path}/logins"):
        logins, problems = Logins.read(spec, "signing.sender_logins", base=tmp_path)
        assert ([], frozenset({"jsmith", "ann"})) == (problems, logins.owners(JOE))


def test_a_line_without_an_address_or_a_login_is_named(tmp_path: Path) -> None:
    (tmp_path / "logins").write_text("joe jsmith\nann@example.com\n")
    _, problems = Logins.read(f"hash:{tmp_path}/logins", "signing.sender_logins")
    assert [1, 2] == [problem.line for problem in problems]


@given(st.text(max_size=60), st.text(max_size=20))
def test_no_text_upsets_the_map(line: str, login: str) -> None:
    logins, _ = Logins.read([line], "x")
    Binding(Bind.LOGIN, logins).objection(Request(stage=Stage.END_OF_MESSAGE, sasl_user=login), JOE)
