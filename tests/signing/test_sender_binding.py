# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may sign for whom."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.builder.builder import CheckBuilder
from gatekeeper.core.request import Request, Stage
from gatekeeper.signing.message_sender import MessageSender
from gatekeeper.signing.sender_binding import BindTo, Owners, SenderBinding

JOE = MessageSender("joe", "example.com")
MAP = "joe@example.com jsmith, ann\n@example.org ann\ninfo@example.org joe@example.com\n"
MAP += '"odd user"@example.com odd\n'


@cache
def owners() -> Owners:
    """The owners that a Postfix map gives."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "logins").write_text(MAP)
        reader = CheckBuilder({}, Path(folder), maps={"sender_login_maps": (["hash:logins"], SourceLine(""))})
        return reader.owners("mx.example.com", "+")


def objection(
    bind: BindTo, sender: MessageSender = JOE, *, login: str = "", envelope: str = "", by_map: bool = False
) -> str:
    request = Request(
        stage=Stage.END_OF_MESSAGE, sender=envelope, sasl_user=login, sasl_method="PLAIN" if login else ""
    )
    return SenderBinding(bind, owners() if by_map else lambda mailbox: None).objection(request, sender)


def test_nothing_is_bound_unless_it_is_wanted() -> None:
    assert "" == objection(BindTo.NONE, login="eve@example.net", envelope="eve@example.net")


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
    assert said == objection(BindTo.LOGIN, login=login)


@pytest.mark.parametrize(
    ("login", "sender", "may"),
    [
        ("JSmith", JOE, True),
        ("ann", JOE, True),
        ("joe@example.com", JOE, False),  # the map says who owns this address, and it is not this login
        ("ann", MessageSender("joe+list", "example.com"), True),
        ("ann", MessageSender("x", "example.org"), True),
        ("ann", MessageSender("INFO", "example.org"), False),
        ("joe@example.com", MessageSender("info", "example.org"), True),
        ("bob@example.net", MessageSender("bob", "example.net"), True),
        ("odd", MessageSender('"odd user"', "example.com"), True),
        ("jsmith", MessageSender('"joe"', "example.com"), True),  # quotes that nobody needs make no other mailbox
        ("joe@example.com", MessageSender('"joe"', "example.com"), False),
    ],
)
def test_the_map_of_logins_decides_where_it_says_something(login: str, sender: MessageSender, may: bool) -> None:
    assert may == (not objection(BindTo.LOGIN, sender, login=login, by_map=True))


def test_a_host_that_does_not_authenticate_is_not_bound_to_a_login() -> None:
    assert "" == objection(BindTo.LOGIN)


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
    assert said == objection(BindTo.ENVELOPE, envelope=envelope)


def test_no_tables_own_nothing() -> None:
    assert CheckBuilder({}, Path()).owners("mx.example.com", "")(str(JOE)) is None


@given(st.text(max_size=60), st.text(max_size=20))
def test_no_text_upsets_the_map(user: str, login: str) -> None:
    objection(BindTo.LOGIN, MessageSender(user, "example.org"), login=login, by_map=True)
