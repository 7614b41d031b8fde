# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may sign for whom."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.checks import Place, Reader
from gatekeeper.request import Request, Stage
from gatekeeper.signing.binding import Bind, Binding, Owners
from gatekeeper.signing.sender import Sender

JOE = Sender("joe", "example.com")
MAP = "joe@example.com jsmith, ann\n@example.org ann\ninfo@example.org joe@example.com\n"


@cache
def owners() -> Owners:
    """The owners that a Postfix map gives."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "logins").write_text(MAP)
        reader = Reader({}, Path(folder), maps={"sender_login_maps": (["hash:logins"], Place(""))})
        return reader.owners("mx.example.com", "+")


def objection(bind: Bind, sender: Sender = JOE, *, login: str = "", envelope: str = "", by_map: bool = False) -> str:
    request = Request(
        stage=Stage.END_OF_MESSAGE, sender=envelope, sasl_user=login, sasl_method="PLAIN" if login else ""
    )
    return Binding(bind, owners() if by_map else lambda mailbox: None).objection(request, sender)


def test_nothing_is_bound_unless_it_is_wanted() -> None:
    assert "" == objection(Bind.NONE, login="eve@example.net", envelope="eve@example.net")


@pytest.mark.parametrize(
    ("login", "said"),
    [
        ("joe@example.com", ""),
        ("ann@Example.COM", ""),
        ("eve@example.org", "the login eve@example.org is in example.org"),
        (
            "eve@a.example.com",
            "the login eve@a.example.com is in a.example.com",
        ),
        ("joe", "the login joe is in no domain"),
    ],
)
def test_a_login_may_sign_for_its_own_domain(login: str, said: str) -> None:
    if said:
        said += ", and sender_login_maps does not give it joe@example.com"
    assert said == objection(Bind.LOGIN, login=login)


@pytest.mark.parametrize(
    ("login", "sender", "may"),
    [
        ("JSmith", JOE, True),
        ("ann", JOE, True),
        ("joe@example.com", JOE, False),  # the map says who owns this address, and it is not this login
        ("ann", Sender("joe+list", "example.com"), True),
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


def test_no_tables_own_nothing() -> None:
    assert Reader({}, Path()).owners("mx.example.com", "")(str(JOE)) is None


@given(st.text(max_size=60), st.text(max_size=20))
def test_no_text_upsets_the_map(user: str, login: str) -> None:
    objection(Bind.LOGIN, Sender(user, "example.org"), login=login, by_map=True)
