# SPDX-License-Identifier: GPL-3.0-or-later
"""After kill -9 of the parent its workers hold no address, and a new start does not fail over them."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gatekeeper.daemon.orphans import is_orphan
from tests.support.milter_client import CONTINUE, MilterClient
from tests.support.service import Service, need_milter, until

pytestmark = pytest.mark.integration("gatekeeper")

CONFIG = """\
hostname = "mx.example"
mynetworks = []
[store]
url = "memory:"
[policy]
listen = ["unix:{folder}/policy.sock", "inet:127.0.0.1:{ports[0]}"]
workers = 2
restrictions = ["permit"]
[milter]
listen = ["unix:{folder}/milter.sock", "inet:127.0.0.1:{ports[1]}"]
workers = 2
"""
QUESTION = b"request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=192.0.2.1\n\n"


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


@pytest.fixture
def ports() -> list[int]:
    return free_ports(2)


@pytest.fixture
def config(ports: list[int]) -> Iterator[Path]:
    need_milter()
    with TemporaryDirectory(prefix="gatekeeper-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "gatekeeper.toml").write_text(CONFIG.format(folder=folder, ports=ports))
        yield folder / "gatekeeper.toml"


def test_a_start_right_after_a_kill_of_the_parent_serves_though_sessions_last(config: Path, ports: list[int]) -> None:
    milter: list[str | tuple[str, int]] = [str(config.parent / "milter.sock"), ("127.0.0.1", ports[1])]
    for _ in range(3):
        first = Service(config, "run")
        first.wait_for("explain")
        held = [MilterClient(address) for address in milter]
        for client in held:
            client.open()
            client.envelope()
        with socket.create_connection(("127.0.0.1", ports[0])) as policy:
            policy.sendall(QUESTION)
            assert b"action=DUNNO\n\n" == policy.recv(100)
            assert [] == [pid for pid in first.children() if is_orphan(pid)]
            first.process.kill()
            second = Service(config, "run")
            second.wait_for("explain")
        for address in milter:
            with MilterClient(address) as client:
                client.open()
                client.envelope()
                assert CONTINUE == client.content(b"Subject: x\r\n\r\nHello\r\n").answer
        for client in held:  # what an orphan holds is brought to its end
            with client:
                assert CONTINUE == client.content(b"Subject: x\r\n\r\nHello\r\n").answer
        first.process.wait()
        until(lambda: not orphans(config), "the orphans are gone")
        assert 0 == second.end()


SLOW = """\
import gatekeeper.daemon.worker as worker, time
now = worker.shut_down
worker.shut_down = lambda listeners: (time.sleep(3), now(listeners))
"""
"""Workers on a machine that is too busy for them to notice at once that their parent has gone."""


def test_a_start_waits_for_orphans_that_have_not_noticed_yet(config: Path) -> None:
    first = Service(config, "policy", prelude=f"exec({SLOW!r})")
    first.wait_for("explain")
    first.process.kill()
    first.process.wait()  # one that has not died yet is no orphan's parent, but a service that runs
    second = Service(config, "policy")
    second.wait_for("explain")
    assert 0 == second.end()
    until(lambda: not orphans(config), "the orphans are gone")


def test_nobody_waits_for_an_orphan_to_accept(config: Path, ports: list[int]) -> None:
    """Whoever connects after the death of the parent is refused, not left to wait for somebody who is leaving."""
    service = Service(config, "run")
    service.wait_for("explain")
    held = MilterClient(("127.0.0.1", ports[1]))
    held.open()
    held.envelope()
    service.process.kill()
    service.process.wait()
    until(lambda: all(refused(port) for port in ports), "nobody listens", 10)
    assert any(Path(f"/proc/{pid}").exists() for pid in orphans(config))
    with held:
        assert CONTINUE == held.content(b"Subject: x\r\n\r\nHello\r\n").answer
    until(lambda: not orphans(config), "the orphans are gone")


def refused(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(10)
        return client.connect_ex(("127.0.0.1", port)) != 0


def orphans(config: Path) -> list[int]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                if str(config).encode() in (process / "cmdline").read_bytes() and is_orphan(int(process.name)):
                    found.append(int(process.name))
            except OSError:
                continue
    return found


def test_an_address_that_a_running_service_holds_is_refused_by_its_name(config: Path) -> None:
    first = Service(config, "run")
    first.wait_for("explain")
    second = Service(config, "run")
    assert 75 == second.process.wait(60)
    second._reader.join(5)
    assert any(f"pid {pid}" in line for line in second.lines for pid in (first.process.pid, *first.children()))
    assert 0 == first.end()


def test_nobody_else_is_taken_for_an_orphan() -> None:
    with subprocess.Popen(["sleep", "1000"]) as other:
        try:
            assert [False, False, False] == [is_orphan(pid) for pid in (1, os.getpid(), other.pid)]
        finally:
            other.send_signal(signal.SIGKILL)
