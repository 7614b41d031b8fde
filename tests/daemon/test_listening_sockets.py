# SPDX-License-Identifier: GPL-3.0-or-later
"""Listening sockets: what is opened, with which rights, and what a taken address says."""

import os
import socket
import stat
from pathlib import Path

import pytest

from gatekeeper.daemon.listening_sockets import AddressTaken, bound, holder, open_listener
from gatekeeper.postfix.listen_address import ListenAddress, parse_listen_address


def test_a_tcp_listener_takes_any_free_port_and_tells_it() -> None:
    listen = parse_listen_address("inet:127.0.0.1:0")
    with open_listener(listen) as sock:
        assert sock.getsockname()[1] == bound(listen, sock).port
        assert not sock.getblocking()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_host_may_be_a_name() -> None:
    with open_listener(parse_listen_address("inet:0@localhost")) as sock:
        assert "127.0.0.1" == sock.getsockname()[0]


def test_a_unix_listener_has_the_mode_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "policy.sock"
    with open_listener(ListenAddress("unix", path=str(path)), mode=0o640):
        assert 0o640 == stat.S_IMODE(path.stat().st_mode)


def test_a_socket_that_a_dead_process_left_behind_is_replaced(tmp_path: Path) -> None:
    listen = ListenAddress("unix", path=str(tmp_path / "milter.sock"))
    open_listener(listen).close()
    assert Path(listen.path).exists()
    with open_listener(listen), socket.socket(socket.AF_UNIX) as client:
        client.connect(listen.path)


@pytest.mark.parametrize("text", ["inet:127.0.0.1:0", "unix:{}/milter.sock"])
def test_a_taken_address_names_its_holder(text: str, tmp_path: Path) -> None:
    listen = parse_listen_address(text.format(tmp_path))
    with open_listener(listen) as sock:
        with pytest.raises(AddressTaken, match=rf"is taken by .*, pid {os.getpid()}\b"):
            open_listener(bound(listen, sock))
        # the one that was there is left alone
        with socket.socket(sock.family) as client:
            client.connect(sock.getsockname())


def test_a_file_that_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("mail")
    with pytest.raises(OSError, match="a file that is not a socket is in the way"):
        open_listener(ListenAddress("unix", path=str(path)))
    assert "mail" == path.read_text()


def test_an_unknown_group_is_named_and_leaves_no_open_socket(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="there is no group 'nosuchgroup'"):
        open_listener(ListenAddress("unix", path=str(tmp_path / "x.sock")), group="nosuchgroup")


def test_an_address_that_is_not_ours_is_explained() -> None:
    with pytest.raises(OSError, match=r"cannot listen on inet:192\.0\.2\.1:0: Cannot assign requested address"):
        open_listener(ListenAddress("inet", host="192.0.2.1"))


def test_nobody_holds_a_free_port() -> None:
    with open_listener(parse_listen_address("inet:127.0.0.1:0")) as sock:
        port = sock.getsockname()[1]
    assert "" == holder(port)
