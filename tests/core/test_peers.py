# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may connect, over real sockets; users other than our own are in tests/milter/test_gate.py."""

import logging
import os
import pwd
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gatekeeper.core.peers import EVERYBODY, Door, parse_peers


@contextmanager
def accepted(family: socket.AddressFamily, address: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A connection as it is accepted, from ourselves."""
    if family == socket.AF_UNIX:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            yield theirs
        return
    with socket.create_server((address, 0), family=family, dualstack_ipv6=address == "::") as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1" if address == "::" else address, port)):
            sock, _ = listener.accept()
            with sock:
                yield sock


ME = os.geteuid()
CASES = [
    ([], socket.AF_UNIX, "", True),
    ([str(ME)], socket.AF_UNIX, "", True),
    ([pwd.getpwuid(ME).pw_name], socket.AF_UNIX, "", True),
    ([str(ME + 1)], socket.AF_UNIX, "", False),
    (["127.0.0.0/8"], socket.AF_UNIX, "", False),
    ([], socket.AF_INET, "127.0.0.1", True),
    (["127.0.0.1"], socket.AF_INET, "127.0.0.1", True),
    (["192.0.2.0/24", str(ME)], socket.AF_INET, "127.0.0.1", False),
    (["::1"], socket.AF_INET6, "::1", True),
    (["[::1]"], socket.AF_INET6, "::1", True),
    (["127.0.0.1"], socket.AF_INET6, "::1", False),
    (["127.0.0.1"], socket.AF_INET6, "::", True),  # an IPv4 client of an IPv6 socket
    (["[::ffff:127.0.0.0]/104"], socket.AF_INET6, "::", True),
]


@pytest.mark.parametrize(("words", "family", "address", "expected"), CASES)
def test_a_list_lets_in_whom_it_names_and_an_empty_one_everybody(
    words: list[str], family: socket.AddressFamily, address: str, expected: bool
) -> None:
    with accepted(family, address) as sock:
        assert expected == Door(parse_peers(words), "policy").lets_in(sock)


@pytest.mark.parametrize("word", ["no-such-user", "192.0.2.1/24", "192.0.2.300", "1.2.3", "::x", "a/b", "", "-1"])
def test_what_is_neither_a_user_nor_a_network_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"there is no user|not a valid network|did you mean"):
        parse_peers([word])


def test_refusals_are_one_line_a_minute_with_their_count(
    caplog: pytest.LogCaptureFixture,
) -> None:
    door = Door(parse_peers(["192.0.2.1"]), "milter")
    with accepted(socket.AF_INET) as sock, caplog.at_level(logging.WARNING):
        assert [False] * 5 == [door.lets_in(sock) for _ in range(5)]
        assert ["a milter connection of 127.0.0.1 is closed: milter.peers does not name it"] == caplog.messages
        door._quiet_until = 0.0
        door.lets_in(sock)
        assert caplog.messages[-1].endswith("; 4 more before")


def test_nobody_named_is_everybody_and_a_list_of_one_kind_shuts_out_the_other() -> None:
    assert EVERYBODY == parse_peers([])
    assert [(True, True), (True, False), (False, True)] == [
        peers.kinds for peers in (EVERYBODY, parse_peers(["0"]), parse_peers(["::1"]))
    ]
