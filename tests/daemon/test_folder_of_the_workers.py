# SPDX-License-Identifier: GPL-3.0-or-later
"""A socket in a folder of the workers' user, as Debian's /run/opendkim: he can take it away, and gains nothing."""

import contextlib
import os
import pwd
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gatekeeper.daemon.listening_sockets import AddressTaken, holder, open_listener
from gatekeeper.postfix.listen_address import ListenAddress
from tests.support.milter_client import CONTINUE, MilterClient
from tests.support.service import Service, need_milter, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root works in folders of others")

USER = "nobody"
UID = pwd.getpwnam(USER).pw_uid
CONFIG = """\
hostname = "mx.example"
mynetworks = ["127.0.0.0/8"]
user = "nobody"
[store]
url = "memory:"
[policy]
listen = "unix:{folder}/theirs/policy.sock"
socket_mode = "0660"
workers = 1
restrictions = ["permit"]
"""
QUESTION = b"request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=192.0.2.1\n\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    # not tmp_path, which is root's alone
    with TemporaryDirectory(prefix="gatekeeper-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "theirs").mkdir()
        os.chown(folder / "theirs", UID, -1)
        (folder / "victim").write_text("root's own")
        (folder / "victim").chmod(0o600)
        (folder / "gatekeeper.toml").write_text(CONFIG.format(folder=folder))
        yield folder


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        try:
            client.connect(str(path))
            client.sendall(QUESTION)
            return client.recv(100) == b"action=DUNNO\n\n"
        except OSError:
            return False


def assert_untouched(victim: Path) -> None:
    status = victim.stat()
    assert ("root's own", 0, 0, 0o600) == (
        victim.read_text(),
        status.st_uid,
        status.st_gid,
        stat.S_IMODE(status.st_mode),
    )


@pytest.mark.integration("gatekeeper")
def test_a_link_in_the_socket_s_place_is_refused_and_gives_nobody_a_file_of_root_s(folder: Path) -> None:
    path, victim = folder / "theirs" / "policy.sock", folder / "victim"
    service = Service(folder / "gatekeeper.toml", "policy")
    service.wait_for("explain")
    assert (UID, 0o660) == (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode))
    assert answers(path)
    path.unlink()
    path.symlink_to(folder / "nowhere")  # what is there, or will be
    service.process.send_signal(signal.SIGHUP)
    service.wait_for("not reloaded: .*there is a symbolic link in .*/theirs, a folder that is not only root's")
    assert not (folder / "nowhere").exists()
    path.unlink()
    service.process.send_signal(signal.SIGHUP)
    service.wait_for(" reloaded|^reloaded")
    until(lambda: answers(path), "the socket is there again")
    thief = os.fork()
    if not thief:
        _steal(path, victim)
    try:
        for _ in range(19):
            service.process.send_signal(signal.SIGHUP)
            until(lambda: not path.is_socket(), "the socket is stolen")
            assert_untouched(victim)
    finally:
        os.kill(thief, signal.SIGKILL)
        os.waitpid(thief, 0)
    path.unlink(missing_ok=True)
    service.process.send_signal(signal.SIGHUP)
    until(lambda: answers(path), "the socket is there again")
    assert 0 == service.end()
    assert_untouched(victim)
    assert [] == list((folder / "theirs").iterdir())


def _steal(path: Path, victim: Path) -> None:
    """Take the socket away as soon as it is there, with a link in its place and then none, for ever."""
    try:
        os.setgid(65534)
        os.setuid(UID)
        while True:
            with contextlib.suppress(OSError):
                path.unlink()
            with contextlib.suppress(OSError):
                path.symlink_to(victim)
            with contextlib.suppress(OSError):
                path.unlink()
    finally:
        os._exit(1)


@pytest.mark.integration("gatekeeper")
def test_a_held_milter_session_outlives_a_reload_and_the_old_worker_waits_for_it_alone(folder: Path) -> None:
    need_milter()
    path = folder / "theirs" / "milter.sock"
    config = folder / "gatekeeper.toml"
    config.write_text(config.read_text() + f'[milter]\nlisten = "unix:{path}"\nworkers = 1\n')
    service = Service(config, "milter")
    service.wait_for("explain")
    assert holder(str(path)).endswith(f", pid {service.process.pid}")
    before = service.children()
    with MilterClient(str(path)) as client:
        client.open()
        client.envelope()
        service.process.send_signal(signal.SIGHUP)
        until(lambda: set(service.children()) > set(before), "there is a new worker")
        assert CONTINUE == client.content(b"Subject: x\r\n\r\nHello\r\n").answer
    until(lambda: not set(before) & set(service.children()), "the old worker has gone")
    with MilterClient(str(path)) as client:
        client.open()
    assert 0 == service.end()


@pytest.mark.integration("gatekeeper")
@pytest.mark.parametrize("put", [lambda path, victim: path.symlink_to(victim), lambda path, victim: os.mkfifo(path)])
def test_a_pid_file_takes_the_place_of_what_somebody_has_put_there(
    folder: Path, put: Callable[[Path, Path], None]
) -> None:
    need_milter()
    conf, pid_file = folder / "opendkim.conf", folder / "theirs" / "pid"
    conf.write_text(f"Mode v\nSocket local:{folder}/theirs/sock\nPidFile {pid_file}\nUserID {USER}\nSyslog no\n")
    put(pid_file, folder / "victim")
    service = Service(folder / "gatekeeper.toml", "opendkim", "-f", "-x", str(conf))
    until(lambda: pid_file.is_file() and not pid_file.is_symlink(), "the pid file is written")
    assert f"{service.process.pid}\n" == pid_file.read_text()
    assert (0, 0o644) == (pid_file.stat().st_uid, stat.S_IMODE(pid_file.stat().st_mode))
    assert_untouched(folder / "victim")
    assert 0 == service.end()
    assert [] == list((folder / "theirs").iterdir())


@pytest.mark.parametrize("theirs", [True, False])
def test_an_address_is_taken_while_somebody_listens_and_no_longer(folder: Path, theirs: bool) -> None:
    where = folder / "theirs" if theirs else folder
    listen = ListenAddress("unix", path=str(where / "x.sock"))
    with open_listener(listen, 0o600), pytest.raises(AddressTaken, match=rf"is taken by .*, pid {os.getpid()}"):
        open_listener(listen)
    with open_listener(listen, 0o666, "nogroup", UID) as newer:  # over the stale one
        status = os.stat(listen.path)
        assert (UID, 65534, 0o666) == (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode))
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(listen.path)
            newer.accept()[0].close()
    child = os.fork()
    if not child:
        try:
            os.unlink(listen.path)
            with open_listener(listen):
                signal.pause()
        finally:
            os._exit(1)
    try:
        until(lambda: _is_answered(listen.path), "the other listens")
        with pytest.raises(AddressTaken, match=rf"is taken by .*, pid {child}"):
            open_listener(listen)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with open_listener(listen):  # what the dead leave behind
        assert _is_answered(listen.path)


def _is_answered(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0
