# SPDX-License-Identifier: GPL-3.0-or-later
"""Listen addresses in every spelling that people have in their files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.postfix.listen_address import ListenAddress, parse_listen_address

SPELLINGS = {
    "inet:127.0.0.1:10040": "inet:127.0.0.1:10040",
    "inet:8891@localhost": "inet:localhost:8891",
    "inet:8891@[::1]": "inet:[::1]:8891",
    "inet6:8891@::1": "inet:[::1]:8891",
    "inet:[::1]:8891": "inet:[::1]:8891",
    "inet:8891": "inet:*:8891",
    "inet:*:25": "inet:*:25",
    "INET:localhost:0": "inet:localhost:0",
    "localhost:10040": "inet:localhost:10040",
    "unix:/run/g.sock": "unix:/run/g.sock",
    "local:/run/g.sock": "unix:/run/g.sock",
    "/run/g.sock": "unix:/run/g.sock",
}


@pytest.mark.parametrize(("text", "canonical"), SPELLINGS.items())
def test_each_spelling_has_one_canonical_form_that_reads_back(text: str, canonical: str) -> None:
    listen = parse_listen_address(text)
    assert canonical == str(listen)
    assert listen == parse_listen_address(canonical)


@pytest.mark.parametrize(
    "text",
    ["", "foo", "8891", "inet:", "inet:host", "inet:host:70000", "inet:host:-1", "inet:::1:25", "unix:run/g.sock"],
)
def test_what_is_no_address_is_refused_with_the_text_that_was_written(text: str) -> None:
    with pytest.raises(ValueError, match=r"allowed|must be|brackets") as refused:
        parse_listen_address(text)
    assert repr(text) in str(refused.value)


@pytest.mark.parametrize("text", ["unix:/" + 107 * "x", "tcp:1:2:3", "inet:a b:25", "inet:٣@localhost", "unix:/a\0b"])
def test_what_no_system_could_bind_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"allowed|at most|brackets"):
        parse_listen_address(text)


@given(st.text(max_size=60) | st.from_regex(r"(inet6?|unix|local):[\[\]:@/*0-9a-z.]*", fullmatch=True))
def test_any_text_is_an_address_that_reads_back_or_a_value_error(text: str) -> None:
    try:
        listen = parse_listen_address(text)
    except ValueError:
        return
    assert listen == parse_listen_address(str(listen))


def test_an_ipv6_host_makes_the_family_inet6() -> None:
    assert ListenAddress("inet6", "::1", 25) == parse_listen_address("inet:[::1]:25")
