# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker that hangs is found by what it does and replaced within seconds; one that is only slow is left alone."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gatekeeper.daemon.vital_signs import Look, look_at, why_hanging
from gatekeeper.daemon.worker import WorkerKind
from gatekeeper.daemon.worker_processes import Post, WorkerProcess
from tests.support.service import Service, until


@pytest.mark.parametrize(
    ("first", "last", "why"),
    [
        (Look("T", "5 5", 1.0), Look("T", "5 5", 1.0), "is stopped"),
        (Look("t", "5 5", 1.0), Look("T", "5 5", 1.0), "is stopped"),
        (Look("S", "5 5", 1.0), Look("S", "5 5", 1.0), "waits for something"),
        (Look("R", "5 5", 1.0), Look("R", "5 90", 2.5), "is busy with one thing"),
        (Look("S", "5 5", 1.0), Look("R", "9 5", 2.9), "is busy with one thing"),  # another thread holds it up
        # it wants to run, and the machine does not let it
        (Look("R", "5 5", 1.0), Look("R", "5 5", 1.0), ""),
        (Look("R", "5 5", 1.0), Look("R", "5 40", 1.4), ""),
        # its memory is being swapped in, or a disk is slow
        (Look("D", "5 5", 1.0), Look("D", "5 5", 1.0), ""),
        (Look("D", "5 5", 1.0), Look("S", "6 5", 1.0), ""),
        # it has just been woken, or is woken again and again
        (Look("T", "5 5", 1.0), Look("S", "5 6", 1.0), ""),
        (Look("S", "5 5", 1.0), Look("S", "6 5", 1.0), ""),
    ],
)
def test_it_hangs_if_it_could_have_given_a_sign_and_did_not(first: Look, last: Look, why: str) -> None:
    assert why == why_hanging(first, last)


def test_what_cannot_be_seen_does_not_hang() -> None:
    assert None is look_at(2**22 + 1)
    look = look_at(os.getpid())
    assert look is not None
    assert "R" == look.state
    assert look.cpu > 0


def test_what_was_seen_before_the_parent_itself_was_away_does_not_count() -> None:
    with (
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process,
        socket.socket() as control,
    ):
        process.send_signal(signal.SIGSTOP)
        until(lambda: (look := look_at(process.pid)) is not None and look.state == "T", "it is stopped")
        worker = WorkerProcess(Post(WorkerKind.POLICY, ()), 1, process.pid, control, 0.0, 0.0, ready=True)
        assert ["", "", "", "is stopped"] == [worker.why_hanging(now) for now in (4.0, 5.0, 6.0, 7.0)]
        worker.heard(8.0)
        # stopped for a minute between two looks, with everybody else
        assert ["", "", "", ""] == [worker.why_hanging(now) for now in (13.0, 14.0, 74.0, 75.0)]
        assert "is stopped" == worker.why_hanging(76.0)
        process.kill()


CONFIG = """\
hostname = "mx.example"
mynetworks = []
[store]
url = "memory:"
[policy]
listen = "unix:{folder}/policy.sock"
workers = 2
restrictions = ["check_helo_access hash:{folder}/helo"]
"""
QUESTION = b"request=smtpd_access_policy\nprotocol_state=RCPT\nhelo_name=x.example\nclient_address=192.0.2.1\n\n"
BLOCKED = """\
import gatekeeper.policy.server as s, os, time
before = s.PolicyServer._answer
async def answer(self, attributes, connection):
    if attributes.get('helo_name') == 'sleep.example': time.sleep(1000)
    while attributes.get('helo_name') == 'busy.example': pass
    return await before(self, attributes, connection)
s.PolicyServer._answer = answer
"""
"""A worker with a fault: two names that its event loop never comes back from."""


@contextmanager
def serving(prelude: str = "") -> Iterator[tuple[Service, Path]]:
    with TemporaryDirectory(prefix="gatekeeper-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "helo").write_text("other REJECT\n")
        (folder / "gatekeeper.toml").write_text(CONFIG.format(folder=folder))
        encoded = f"exec({prelude!r})" if prelude else ""
        service = Service(folder / "gatekeeper.toml", "policy", prelude=encoded)
        service.wait_for("explain")
        yield service, folder / "policy.sock"
        assert 0 == service.end()


def ask(path: Path, question: bytes = QUESTION, timeout: float = 30.0) -> bytes:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(timeout)
        client.connect(str(path))
        client.sendall(question)
        return client.recv(1000)


@pytest.mark.integration("gatekeeper")
def test_a_worker_that_is_stopped_is_replaced_within_ten_seconds_and_the_other_takes_who_waits() -> None:
    with serving() as (service, path):
        victim = service.children()[0]
        began = time.monotonic()
        os.kill(victim, signal.SIGSTOP)
        for _ in range(5):
            assert b"action=DUNNO\n\n" == ask(path)
        service.wait_for(rf"worker \(pid {victim}\) is stopped and is killed")
        took = time.monotonic() - began
        until(lambda: len({*service.children()} - {victim}) == 2, "it is replaced")
        assert took < 10
        for _ in range(10):
            assert b"action=DUNNO\n\n" == ask(path)


@pytest.mark.integration("gatekeeper")
@pytest.mark.parametrize(("name", "why"), [("sleep", "waits for something"), ("busy", "is busy with one thing")])
def test_a_worker_whose_loop_does_not_turn_is_replaced_and_its_connections_are_closed(name: str, why: str) -> None:
    with serving(BLOCKED) as (service, path):
        began = time.monotonic()
        with suppress(ConnectionResetError):
            assert b"" == ask(path, QUESTION.replace(b"x.example", f"{name}.example".encode()), 60)
        assert time.monotonic() - began < 15  # 10, and what a busy machine adds
        service.wait_for(rf"worker \(pid \d+\) {why} and is killed")
        assert b"action=DUNNO\n\n" == ask(path)


def _turn() -> None:
    while True:
        pass


@pytest.mark.integration("gatekeeper")
@pytest.mark.timeout(120)
def test_no_worker_is_killed_on_a_machine_that_has_no_time_for_it() -> None:
    """Workers at the lowest priority, beside four loops a core, for three times as long as a hanging one has."""
    with serving("import os; os.setpriority(os.PRIO_PROCESS, 0, 19)") as (service, path):
        workers = service.children()
        loops = [multiprocessing.Process(target=_turn, daemon=True) for _ in range(4 * (os.cpu_count() or 1))]
        for loop in loops:
            loop.start()
        try:
            end = time.monotonic() + 25
            while time.monotonic() < end:
                assert b"action=DUNNO\n\n" == ask(path, timeout=60)
        finally:
            for loop in loops:
                loop.kill()
                loop.join()
        assert workers == service.children()
        assert not [line for line in service.lines if "killed" in line]


@pytest.mark.integration("gatekeeper")
def test_no_worker_is_killed_when_the_whole_service_was_stopped_for_a_while() -> None:
    with serving() as (service, path):
        workers = service.children()
        everybody = [service.process.pid, *workers]
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(8)
        for pid in everybody:
            os.kill(pid, signal.SIGCONT)
        assert b"action=DUNNO\n\n" == ask(path)
        time.sleep(4)  # what it takes to be sure that somebody hangs
        assert workers == service.children()
