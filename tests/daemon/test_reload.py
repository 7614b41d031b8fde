# SPDX-License-Identifier: GPL-3.0-or-later
"""What befalls a running service when its files and its signals misbehave."""

import os
import signal
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.service import Service, until

pytestmark = pytest.mark.integration("gatekeeper")

QUESTION = (
    b"request=smtpd_access_policy\nprotocol_state=RCPT\nhelo_name=localhost\nclient_address=192.0.2.1\n"
    b"sender=a@example.com\nrecipient=b@example.org\ninstance=%d\nsasl_username=%s\n\n"
)
CONFIG = """\
mynetworks = ["127.0.0.0/8"]
[store]
url = "memory:"
[policy]
listen = ["inet:127.0.0.1:0", "unix:{folder}/policy.sock"]
workers = 1
restrictions = ["ratelimit", "check_helo_access hash:helo"]
[checks.ratelimit]
user_messages = "0/1h"
exceptions = "user:{folder}/users"
"""
QUICK = "from gatekeeper.core.watched_files import FileWatch as W; W.INTERVAL = W.SETTLED = 0.1"


def ask(connection: socket.socket, number: int = 0, user: bytes = b"") -> bytes:
    connection.sendall(QUESTION % (number, user))
    answer = b""
    while not answer.endswith(b"\n\n"):
        data = connection.recv(4096)
        assert data, answer
        answer += data
    return answer


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    # not tmp_path: workers that have given up root must be able to reach the socket's folder
    with TemporaryDirectory(prefix="gatekeeper-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "helo").write_text("localhost REJECT generation 0\n")
        (folder / "users").write_text("bob\n")
        (folder / "gatekeeper.toml").write_text(CONFIG.format(folder=folder))
        yield folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    running = Service(folder / "gatekeeper.toml", "policy", prelude=QUICK)
    running.wait_for("^listening policy unix")
    yield running
    assert 0 == running.end()


def test_a_name_file_of_a_limit_is_read_again_when_it_changes(service: Service, folder: Path) -> None:
    with service.policy() as connection:
        assert b"action=450 4.7.1" in ask(connection, 1, b"eve")
        (folder / "users").write_text("bob\neve\n")
        until(lambda: b"generation 0" in ask(connection, 2, b"eve"), "eve is an exception")


@pytest.mark.parametrize("odd", [Path.mkdir, os.mkfifo], ids=["directory", "fifo"])
def test_what_is_no_file_in_a_table_s_place_holds_nobody_up(service: Service, folder: Path, odd: object) -> None:
    table = folder / "helo"
    before = sum("not reloaded" in line for line in service.lines)
    with service.policy() as connection:
        table.unlink()
        assert callable(odd)
        odd(table)
        service.wait_for(f"not reloaded: .*cannot read {table}: [iI]s ", before + 1)
        assert b"generation" in ask(connection)
        table.rmdir() if table.is_dir() else table.unlink()
        table.write_text(f"localhost REJECT generation back {before}\n")
        until(lambda: f"generation back {before}".encode() in ask(connection), "the table that is back answers")


def test_a_storm_of_signals_makes_no_storm_of_workers(service: Service) -> None:
    reloads = sum("INFO reloaded: " in line for line in service.lines)
    most = 0
    for _ in range(50):
        service.process.send_signal(signal.SIGHUP)
        most = max(most, len(service.children()))
    service.wait_for("INFO reloaded: ", reloads + 1)
    until(lambda: len(service.children()) == 1, "one worker is left")
    # a worker, its successor, and one that is only about to leave
    assert (True, True) == (most <= 3, sum("INFO reloaded: " in line for line in service.lines) <= reloads + 4)


def test_many_idle_connections_change_hands_at_once_and_the_old_worker_leaves(service: Service) -> None:
    connections = [service.policy() for _ in range(700)]  # more than a control socket holds
    try:
        for connection in connections:
            ask(connection)
        old = service.children()
        service.process.send_signal(signal.SIGHUP)
        until(lambda: not set(old) & set(service.children()), "the old worker has given all away")
        assert all(b"generation" in ask(connection) for connection in connections)
    finally:
        for connection in connections:
            connection.close()


def test_a_socket_whose_file_was_removed_is_there_again_after_a_reload(service: Service, folder: Path) -> None:
    path = folder / "policy.sock"
    path.unlink()
    service.process.send_signal(signal.SIGHUP)
    until(path.exists, "the socket is there")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        until(lambda: connection.connect_ex(str(path)) == 0, "somebody listens")
        assert b"generation" in ask(connection)


def test_mynetworks_follow_main_cf_and_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with TemporaryDirectory(prefix="gatekeeper-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        main_cf, table, printers = folder / "main.cf", folder / "networks.cidr", folder / "printers"
        table.write_text("198.51.100.0/24 office\n")
        printers.write_text("203.0.113.9\n")
        main_cf.write_text(f"compatibility_level = 3.6\nmynetworks = cidr:{table} {printers}\n")
        (folder / "gatekeeper.toml").write_text(
            'hostname = "mx.example.org"\n[store]\nurl = "memory:"\n[policy]\nlisten = "inet:127.0.0.1:0"\n'
            "workers = 1\n"
            'restrictions = ["permit_mynetworks", "reject"]\n'
        )
        monkeypatch.setenv("MAIL_CONFIG", name)
        service = Service(folder / "gatekeeper.toml", "policy", prelude=QUICK)
        try:
            with service.policy() as connection:
                assert ask(connection).startswith(b"action=554")
                main_cf.write_text(f"compatibility_level = 3.6\nmynetworks = 192.0.2.0/24 cidr:{table} {printers}\n")
                service.wait_for(r"reloaded: .*main\.cf changed")
                until(lambda: ask(connection).startswith(b"action=DUNNO"), "who is in mynetworks passes")
                main_cf.write_text(f"compatibility_level = 3.6\nmynetworks = cidr:{table} {printers}\n")
                until(lambda: ask(connection).startswith(b"action=554"), "and no more when it is not")
                table.write_text("192.0.2.0/24 office\n")
                until(lambda: ask(connection).startswith(b"action=DUNNO"), "nor when its table says so")
                table.write_text("198.51.100.0/24 office\n")
                until(lambda: ask(connection).startswith(b"action=554"), "and back")
                printers.write_text("192.0.2.1\n")
                until(lambda: ask(connection).startswith(b"action=DUNNO"), "as in a file")
        finally:
            service.end()


def said_no(service: Service, seen: int) -> bool:
    return any("not reloaded" in line for line in service.lines[seen:])


def test_no_start_and_no_reload_tells_a_password() -> None:
    with TemporaryDirectory(prefix="gatekeeper-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        file = folder / "gatekeeper.toml"
        text = 'hostname = "mx.example.org"\n[policy]\nlisten = "inet:127.0.0.1:0"\nworkers = 1\n[store]\nurl = "{}"\n'
        file.write_text(text.format("redis://user:hunter/zwei2x@h/0"))
        service = Service(file, "policy")
        assert 78 == service.process.wait(60)
        until(lambda: [line for line in service.lines if "percent-encoded" in line], "what is wrong with the url")
        refused = service.lines
        file.write_text(text.format("redis://user:hunter%2Fzwei2x@127.0.0.1:1/0"))
        service = Service(file, "policy")
        try:
            service.wait_for(r"redis://127\.0\.0\.1:1/0")
            for url in ("redis://user:hunter?zwei2x@h/0", "redis://user:hunter#zwei2x@h", "redis+x://hunter:zwei2x@h"):
                file.write_text(text.format(url))
                seen = len(service.lines)
                service.process.send_signal(signal.SIGHUP)
                until(partial(said_no, service, seen), url)
        finally:
            service.end()
        heard = "\n".join([*refused, *service.lines])
        assert not [piece for piece in ("hunter", "zwei2x") if piece in heard], heard


def test_a_bad_line_keeps_back_no_start_and_only_a_reload_that_brings_it() -> None:
    with TemporaryDirectory(prefix="gatekeeper-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        table, file = folder / "helo", folder / "gatekeeper.toml"
        table.write_text("localhost REJECT generation 0\nworse nonsense\n")
        file.write_text(CONFIG.replace('exceptions = "user:{folder}/users"\n', "").format(folder=folder))
        hourly = "; from gatekeeper.daemon import refused_reload as r; r.AGAIN = 1.0"
        service = Service(file, "policy", prelude=QUICK + hourly)
        try:
            service.wait_for(f"{table}:2: warning: this entry is answered 451 4.3.5: unknown action 'nonsense'")
            service.wait_for(f"{table}: warning: 1 line with an action that is not understood; the rest is in force")
            with service.policy() as connection:
                assert b"generation 0" in ask(connection)
                table.write_text("# generated anew\nlocalhost REJECT generation 1\nworse nonsense\n")
                until(lambda: b"generation 1" in ask(connection), "the table with the bad line of before is taken")
                table.write_text("localhost REJECT generation 2\nlocalhost.localdomain\n")
                service.wait_for(f"not reloaded: {table}:2: 'localhost.localdomain' has no action")
                service.wait_for(
                    f"a reload is still refused, after 1s: {table}:2: 'localhost.localdomain' has no action"
                )
                assert b"generation 1" in ask(connection)
                table.write_text("localhost REJECT generation 3\n")
                until(lambda: b"generation 3" in ask(connection), "the mended table answers")
        finally:
            service.end()
