# SPDX-License-Identifier: GPL-3.0-or-later
"""A log that nobody reads stops nothing: all requests are answered, and the service ends when it is told to."""

import os
import pty
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.policy.test_wire import CONFIG, SEEN, ask
from tests.support.needs import ROOT
from tests.support.service import until

pytestmark = pytest.mark.integration("gatekeeper")

REQUESTS = 5000
OWN_LINES = 3
"""Lines of the service about itself, as that it stops, that may be among those that were dropped and counted."""
LIMIT = 30.0
"""Seconds in which a service ends that is told to: the machine may be busy."""


@contextmanager
def service(
    folder: Path, stderr: int, *, more: str = "", prelude: str = "pass", lines: str = ""
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The policy daemon with one worker on a unix socket, its standard error on `stderr`."""
    address = folder / "policy.sock"
    config = CONFIG.replace("inet:127.0.0.1:0", f"unix:{address}").replace("workers = 2", "workers = 1")
    (folder / "gatekeeper.toml").write_text(config + more)
    code = f"{prelude}; import sys; from gatekeeper.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "--config", str(folder / "gatekeeper.toml"), "policy"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=stderr, cwd=ROOT, start_new_session=True
    ) as process:
        try:
            yield process, address
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def connected(address: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(30)
    until(lambda: address.exists() and sock.connect_ex(str(address)) == 0, "it serves")
    return sock


def ask_often(address: Path) -> None:
    with connected(address) as connection:
        for number in range(REQUESTS):
            assert SEEN == ask(connection, instance=b"%d" % number)


def children(process: subprocess.Popen[bytes]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def has_other_children(process: subprocess.Popen[bytes], before: list[int]) -> bool:
    now = children(process)
    return bool(now) and not set(now) & set(before)


def end(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(LIMIT)


class Reader:
    """What comes out of a descriptor, once somebody reads it."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._text = b""

    def lines(self) -> list[str]:
        while True:
            try:
                data = os.read(self._descriptor, 65536)
            except BlockingIOError:
                break
            if not data:
                break
            self._text += data
        return self._text.decode().splitlines()


WHOLE = re.compile(r"[\d-]{10} [\d:.]{12} gatekeeper\[\d+\]: INFO side=policy .* to=<bob@example.org> .*took=[\d.]+")


def are_whole(lines: list[str]) -> bool:
    return all(WHOLE.fullmatch(line) for line in lines if "side=" in line)


def decided(lines: list[str]) -> int:
    return sum("side=policy " in line for line in lines)


def is_decided(read: Callable[[], list[str]], count: int) -> bool:
    return decided(read()) == count


def counted(lines: list[str]) -> int:
    return sum(int(match[1]) for line in lines if (match := re.search(r" (\d+) log lines? w\w+ dropped: ", line)))


def socket_pair() -> tuple[int, int]:
    ours, theirs = socket.socketpair()
    return ours.detach(), theirs.detach()


@pytest.mark.parametrize("pair", [os.pipe, socket_pair, pty.openpty], ids=["pipe", "socket", "terminal"])
def test_a_standard_error_that_nobody_reads(tmp_path: Path, pair: Callable[[], tuple[int, int]]) -> None:
    read, write = pair()
    with service(tmp_path, write) as (process, address):
        ask_often(address)
        reader = Reader(read)
        before = len(reader.lines())
        assert before < REQUESTS
        lines = until(lambda: found if counted(found := reader.lines()) else None, "how many were dropped is told")
        with connected(address) as connection:
            assert SEEN == ask(connection)
        until(lambda: len(reader.lines()) > len(lines), "lines flow again")
        assert 0 == end(process)
        lines = reader.lines()
        assert are_whole(lines)
        assert decided(lines) + counted(lines) - OWN_LINES <= REQUESTS + 1 <= decided(lines) + counted(lines)
    os.close(read)
    os.close(write)


def test_it_reloads_replaces_a_worker_and_ends_while_nobody_reads_standard_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    with service(tmp_path, write) as (process, address):
        ask_often(address)
        for what in (signal.SIGHUP, signal.SIGKILL):
            before = children(process)
            os.kill(process.pid if what is signal.SIGHUP else before[0], what)
            until(partial(has_other_children, process, before), "other workers")
            with connected(address) as connection:
                assert SEEN == ask(connection)
        assert 0 == end(process)
    os.close(read)
    os.close(write)


def test_a_pipe_that_is_shared_does_not_become_one_that_never_waits_for_others(tmp_path: Path) -> None:
    read, write = os.pipe()
    with service(tmp_path, write) as (process, address):
        connected(address).close()
        assert os.get_blocking(write)
        assert 0 == end(process)
    os.close(read)
    os.close(write)


def test_a_disk_that_is_full_stops_nothing(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full, service(tmp_path, full.fileno()) as (process, address):
        ask_often(address)
        assert 0 == end(process)


def test_a_reader_that_has_gone_stops_nothing(tmp_path: Path) -> None:
    read, write = os.pipe()
    with service(tmp_path, write) as (process, address):
        connected(address).close()
        os.close(read)
        ask_often(address)
        assert 0 == end(process)
    os.close(write)


def test_a_pipe_of_another_user_is_written_to_without_waiting(tmp_path: Path) -> None:
    """It cannot be opened again. As root everything can, so opening fails by other means."""
    read, write = os.pipe()
    prelude = "import gatekeeper.core.log_output as o; o._open_again = lambda descriptor: False"
    with service(tmp_path, write, prelude=prelude) as (process, address):
        ask_often(address)
        assert os.get_blocking(write)
        assert 0 == end(process)
        assert are_whole(Reader(read).lines())
    os.close(read)
    os.close(write)


class Syslog:
    """A socket like /dev/log."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        path.chmod(0o666)  # as /dev/log: workers are not root
        self._socket.setblocking(False)
        self._heard: list[str] = []

    def read(self) -> list[str]:
        """All that has come so far."""
        while True:
            try:
                self._heard.append(self._socket.recv(65536).decode())
            except BlockingIOError:
                return self._heard

    def close(self) -> None:
        self._socket.close()
        self._path.unlink()


@pytest.fixture
def dev() -> Iterator[Path]:
    """A folder that workers can look into, as they can into /dev."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def prelude_of(path: Path) -> str:
    return f"import pathlib, gatekeeper.core.log as l; l._SYSLOG = pathlib.Path({str(path)!r})"


SYSLOG = '[log]\nsyslog = "mail"\n'


def test_a_syslog_that_is_never_read(tmp_path: Path, dev: Path) -> None:
    syslog = Syslog(dev / "log")
    with service(tmp_path, subprocess.DEVNULL, more=SYSLOG, prelude=prelude_of(dev / "log")) as (process, address):
        ask_often(address)
        assert 0 < len(syslog.read()) < REQUESTS
        until(lambda: counted(syslog.read()), "how many were dropped is told")
        with connected(address) as connection:
            assert SEEN == ask(connection)
        until(lambda: REQUESTS + 1 <= decided(syslog.read()) + counted(syslog.read()), "no line is unaccounted for")
        assert decided(syslog.read()) + counted(syslog.read()) <= REQUESTS + 1 + OWN_LINES
        assert all(re.match(r"<2\d>gatekeeper\[\d+\]: ", line) for line in syslog.read())
        assert 0 == end(process)
    syslog.close()


def test_it_ends_while_nobody_reads_syslog(tmp_path: Path, dev: Path) -> None:
    syslog = Syslog(dev / "log")
    with service(tmp_path, subprocess.DEVNULL, more=SYSLOG, prelude=prelude_of(dev / "log")) as (process, address):
        ask_often(address)
        began = time.monotonic()
        assert 0 == end(process)
        assert time.monotonic() - began < LIMIT
    syslog.close()


def test_syslog_comes_and_goes(tmp_path: Path, dev: Path) -> None:
    """While it is away, lines go to standard error; also where it comes only after we have begun."""
    read, write = os.pipe()
    reader = Reader(read)
    with service(tmp_path, write, more=SYSLOG, prelude=prelude_of(dev / "log")) as (process, address):
        with connected(address) as connection:
            for number in range(2):
                assert SEEN == ask(connection)
                until(partial(is_decided, reader.lines, number + 1), "the line is on standard error")
                syslog = Syslog(dev / "log")
                assert SEEN == ask(connection)
                until(partial(is_decided, syslog.read, 1), "the line is in syslog")
                syslog.close()
        assert 0 == end(process)
        assert are_whole(reader.lines())
    os.close(read)
    os.close(write)


def test_a_syslog_that_hangs_and_is_replaced_is_left_for_its_successor(tmp_path: Path, dev: Path) -> None:
    hanging = Syslog(dev / "log")
    with service(tmp_path, subprocess.DEVNULL, more=SYSLOG, prelude=prelude_of(dev / "log")) as (process, address):
        ask_often(address)
        (dev / "log").rename(dev / "old")  # its process is still there, and reads nothing
        successor = Syslog(dev / "log")
        until(lambda: counted(successor.read()), "the successor is told how many were dropped")
        assert 0 == end(process)
    successor.close()
    (dev / "log").touch()
    hanging.close()
