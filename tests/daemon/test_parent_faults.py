# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever system call of the parent fails, nothing is left behind, and no service is lost that there was.

Each call that the parent makes around fork, bind and reload fails in turn (tests/support/parent_faults.py). After that
either the start has been refused, with a sentence, and there are no socket files, children or folders left of it; or
the service is as it should be, at the latest after a second SIGHUP where the first was refused: every address answers,
by the workers of today, who hold no socket of their parent's but their listeners; the parent has no descriptor more
than without the fault, no signal is blocked, and it stops in order.
"""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from gatekeeper.daemon.background import in_background
from tests.support.needs import ROOT
from tests.support.service import Service, need_milter, until

pytestmark = pytest.mark.integration("gatekeeper")

SCENARIOS = {
    "start": ("os.fork", "socketpair", "bind", "listen", "os.chmod", "epoll_create", "epoll_ctl", "mmap"),
    "stale": ("os.open", "connect", "os.unlink"),
    "foreign": ("os.mkdir", "os.open", "bind", "os.chown", "os.chmod", "listen", "os.replace", "os.rmdir"),
    "reload": ("os.fork", "socketpair", "bind", "listen", "os.chmod", "epoll_ctl", "mmap", "recv", "send", "os.unlink"),
    "gone": ("os.stat", "bind", "listen", "os.chmod"),
    "replace": ("os.fork", "socketpair", "epoll_ctl", "recv"),
    "stop": ("recv", "send", "os.unlink"),
    "start child": ("set_wakeup_fd", "signal", "sigmask", "epoll.close", "socket.close", "setpgid"),
    "reload child": ("set_wakeup_fd", "signal", "sigmask", "epoll.close", "socket.close", "setpgid"),
    "replace child": ("set_wakeup_fd", "signal", "sigmask", "epoll.close", "socket.close", "setpgid"),
}
"""What is played, and some of the calls that must have failed in it."""


def play(scenario: str) -> dict[str, Any]:
    """What came of a scenario. Not shared between tests: each process that runs some of them would play all."""
    command = [sys.executable, "-m", "tests.support.parent_faults", *scenario.split()]
    # Not measured: thousands of processes would each write down what they came by.
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=300)
    assert 0 == done.returncode, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.timeout(400)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_fault_leaves_anything_behind_or_loses_a_service(scenario: str) -> None:
    need_milter()
    if scenario == "foreign" and os.geteuid() != 0:
        pytest.skip("only root opens sockets in folders of others")
    report = play(scenario)
    assert {} == report["findings"]
    # nothing of this was idle
    kinds = {call.partition(" in ")[0] for call in report["calls"]}
    assert {*SCENARIOS[scenario]} <= kinds
    assert report["missed"] <= len(report["calls"]) // 10
    assert "start" not in scenario or report["refused"] > len(report["calls"]) // 3


@pytest.mark.parametrize("call", ["pipe", "fork"])
def test_who_cannot_leave_the_foreground_says_so_and_keeps_nothing_open(
    call: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, call, fail)
    before = os.listdir("/proc/self/fd")
    assert 75 == in_background(lambda up: 0)
    assert before == os.listdir("/proc/self/fd")
    assert "cannot leave the foreground: Resource temporarily unavailable\n" == capsys.readouterr().err


def test_a_child_in_the_background_ends_whatever_happens_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    mine = os.getpid()
    monkeypatch.setattr(os, "setsid", fail)
    try:
        assert 70 == in_background(lambda up: 0)
    finally:
        if mine != os.getpid():
            os._exit(99)


CONFIG = """\
hostname = "mx.example"
mynetworks = []
[store]
url = "memory:"
[policy]
listen = ["unix:{folder}/a/policy.sock", "unix:{folder}/b/policy.sock"]
workers = 1
restrictions = ["permit"]
"""
QUESTION = b"request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=192.0.2.1\n\n"


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        try:
            client.connect(str(path))
            client.sendall(QUESTION)
            return client.recv(100) == b"action=DUNNO\n\n"
        except OSError:
            return False


def test_a_folder_that_was_removed_with_its_socket_costs_neither_the_other_socket_nor_the_service() -> None:
    """A child that was forked then looked for the socket that was no longer open, and removed the other."""
    # not tmp_path: workers that have given up root must be able to reach the socket's folder
    with TemporaryDirectory(prefix="gatekeeper-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for each in ("a", "b"):
            (folder / each).mkdir()
        (folder / "gatekeeper.toml").write_text(CONFIG.format(folder=folder))
        service = Service(folder / "gatekeeper.toml", "policy")
        service.wait_for("explain")
        first, second = folder / "a" / "policy.sock", folder / "b" / "policy.sock"
        assert answers(first)
        assert answers(second)
        shutil.rmtree(first.parent)
        service.process.send_signal(signal.SIGHUP)
        service.wait_for(f"not reloaded: .*unix:{first}: its folder is missing")
        [worker] = service.children()
        os.kill(worker, signal.SIGKILL)
        until(lambda: {worker} != {*service.children()} and answers(second), "the dead worker is replaced")
        assert second.exists()
        first.parent.mkdir()
        service.process.send_signal(signal.SIGHUP)
        until(lambda: answers(first), "the socket is there again")
        assert answers(second)
        assert 0 == service.end()
        assert [] == [line for line in service.lines if "Traceback" in line]
        assert [] == [*folder.glob("?/*.sock")]
