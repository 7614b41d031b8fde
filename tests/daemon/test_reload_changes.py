# SPDX-License-Identifier: GPL-3.0-or-later
"""What a reload changes outside of the workers, all of it or nothing: addresses, socket files, folders, processes."""

import errno
import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gatekeeper.daemon.endpoints import Access, Endpoint, Endpoints
from gatekeeper.daemon.worker import WorkerKind
from gatekeeper.postfix.listen_address import parse_listen_address
from tests.support.milter_client import CONTINUE, MilterClient
from tests.support.service import Service, need_milter, until

CONFIG = """\
hostname = "mx.example"
mynetworks = []
{top}
[store]
url = "{store}"
[policy]
listen = "unix:{folder}/policy.sock"
workers = 1
restrictions = ["permit"]
{access}
[milter]
listen = [{milter}]
workers = 1
{access}
"""
QUESTION = b"request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=192.0.2.1\n\n"


class Running:
    """A service and its configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.one, self.two = f"{folder}/one.sock", f"{folder}/two.sock"
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.configure()
        self.service = Service(folder / "gatekeeper.toml", "run")
        self.service.wait_for("explain")

    def configure(self, *addresses: str, top: str = "", store: str = "memory:", access: str = "") -> None:
        milter = ", ".join(f'"{address}"' for address in addresses or (f"unix:{self.one}",))
        text = CONFIG.format(folder=self.folder, milter=milter, top=top, store=store, access=access)
        (self.folder / "gatekeeper.toml").write_text(text)

    def reload(self) -> None:
        """Have it taken, and wait until the workers of today serve."""
        count = self._count("INFO reloaded: gatekeeper")
        old = {*self.service.children()}
        self.service.process.send_signal(signal.SIGHUP)
        self.service.wait_for("INFO reloaded: gatekeeper", count + 1)
        until(lambda: len({*self.service.children()} - old) == self.workers, "new workers")
        until(lambda: self.answers_policy(), "the policy daemon answers")

    workers = 2

    def refuse(self, why: str) -> None:
        count = self._count("not reloaded: ")
        self.service.process.send_signal(signal.SIGHUP)
        assert why in self.service.wait_for("not reloaded: .*", count + 1)[0]

    def _count(self, ending: str) -> int:
        return sum(ending.rstrip("$") in line for line in self.service.lines)

    def answers_policy(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(10)
            client.connect(f"{self.folder}/policy.sock")
            client.sendall(QUESTION)
            return client.recv(100) == b"action=DUNNO\n\n"


@pytest.fixture
def running() -> Iterator[Running]:
    need_milter()
    with TemporaryDirectory(prefix="gatekeeper-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        running = Running(folder)
        yield running
        ended = running.service.end()
        print("\n".join(running.service.lines))
        assert 0 == ended
        assert [] == [line for line in running.service.lines if "Traceback" in line]
        assert [] == [*folder.glob("*.sock*")]


def begin(address: str | tuple[str, int]) -> MilterClient:
    """A session that lasts."""
    client = MilterClient(address)
    client.open()
    client.envelope()
    return client


def finish(client: MilterClient) -> None:
    with client:
        assert CONTINUE == client.content(b"Subject: x\r\n\r\nHello\r\n").answer


def is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def _is_milter(pid: int) -> bool:
    try:
        return "libmilter" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:  # it has ended meanwhile
        return False


def refuses(address: str | tuple[str, int]) -> bool:
    """Whether nobody listens there: neither an answer nor a wait."""
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as client:
        client.settimeout(10)
        return client.connect_ex(address) in (errno.ECONNREFUSED, errno.ENOENT)


@pytest.mark.integration("gatekeeper")
@pytest.mark.parametrize("family", ["unix", "inet"])
def test_an_address_that_is_taken_out_is_free_at_once_though_a_session_lasts(running: Running, family: str) -> None:
    address: str | tuple[str, int] = running.two if family == "unix" else ("127.0.0.1", running.port)
    named = f"unix:{running.two}" if family == "unix" else f"inet:127.0.0.1:{running.port}"
    running.configure(f"unix:{running.one}", named)
    running.workers = 3
    running.reload()
    held = begin(address)
    running.configure()
    running.workers = 2
    running.reload()
    if family == "inet":  # for anybody; libmilter's poll(2) would hold it for nearly five seconds, unless one connects
        until(lambda: is_free(running.port), "others can have the port", 3)
    until(lambda: refuses(address), "nobody listens there", 10)
    finish(begin(running.one))
    running.configure(f"unix:{running.one}", named)
    running.workers = 3
    running.reload()
    finish(begin(address))
    finish(held)


@pytest.mark.integration("gatekeeper")
def test_socket_files_get_the_mode_and_owner_that_are_configured_now(running: Running) -> None:
    held = begin(running.one)
    sockets = [running.folder / "policy.sock", running.folder / "one.sock"]
    running.configure(access='socket_mode = "0606"')
    running.reload()
    assert [0o606, 0o606] == [stat.S_IMODE(path.stat().st_mode) for path in sockets]
    finish(begin(running.one))
    if os.geteuid() == 0:
        running.configure(access='socket_mode = "0606"\nsocket_group = "daemon"', top='user = "daemon"')
        running.reload()
        import grp
        import pwd

        wanted = (pwd.getpwnam("daemon").pw_uid, grp.getgrnam("daemon").gr_gid)
        assert [wanted, wanted] == [(path.stat().st_uid, path.stat().st_gid) for path in sockets]
        finish(begin(running.one))
    finish(held)
    assert [*map(str, sockets)] == sorted(map(str, running.folder.glob("*.sock*")), reverse=True)


@pytest.mark.integration("gatekeeper")
def test_the_folder_of_a_new_store_is_made_and_one_that_a_refused_reload_made_is_taken_back(running: Running) -> None:
    state = running.folder / "new" / "state"
    inodes = {path: path.stat() for path in running.folder.glob("*.sock")}
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(running.two)
        other.listen()
        running.configure(
            f"unix:{running.one}",
            f"unix:{running.two}",
            store=f"sqlite:{state}/state.db",
            access='socket_mode = "0600"',
        )
        running.refuse("taken by")
        assert not state.parent.exists()
        assert inodes == {path: path.stat() for path in running.folder.glob("*.sock") if str(path) != running.two}
        finish(begin(running.one))
        assert running.answers_policy()
        os.unlink(running.two)
    running.configure(store=f"sqlite:{state}/state.db")
    running.reload()
    until(lambda: (state / "state.db").exists(), "the store is there")
    assert not [line for line in running.service.lines if "cannot work" in line]


@pytest.mark.integration("gatekeeper")
@pytest.mark.timeout(180)
def test_however_many_reloads_leave_a_session_behind_old_workers_are_few(running: Running) -> None:
    held, most = [], 0
    for _ in range(6):
        held.append(begin(running.one))
        running.reload()
        most = max(most, sum(_is_milter(pid) for pid in running.service.children()))
    # today's, those of the two newest generations before, and those of two that are leaving
    assert most <= 5
    finish(held.pop())
    finish(held.pop())
    with pytest.raises((EOFError, OSError, AssertionError)):
        finish(held[0])
    until(lambda: len(running.service.children()) <= 3, "those who were to leave have left")
    for client in held[1:]:
        client.close()


# -- the sockets alone ---------------------------------------------------------------------------------------------


def endpoint(path: Path) -> Endpoint:
    return WorkerKind.POLICY, parse_listen_address(f"unix:{path}")


def test_where_one_socket_cannot_be_opened_all_others_are_as_they_were(tmp_path: Path) -> None:
    one, two, new, bad = (endpoint(tmp_path / name) for name in ("one", "two", "new", "none/bad"))
    endpoints = Endpoints((WorkerKind.POLICY,))
    endpoints.open({one: Access(), two: Access()})
    before = {path.name: (path.stat().st_ino, path.stat().st_mode) for path in tmp_path.iterdir()}
    listeners = dict(endpoints.sockets)
    for wanted in (
        {one: Access(0o600), two: Access(0o600), new: Access(), bad: Access()},
        {one: Access(0o600), two: Access(0o600, "no such group")},
    ):
        with pytest.raises(OSError, match=r"bad|no such group"):
            endpoints.open(wanted)
        assert before == {path.name: (path.stat().st_ino, path.stat().st_mode) for path in tmp_path.iterdir()}
        assert listeners == endpoints.sockets
        assert [] == endpoints.outgoing
        for name in ("one", "two"):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(tmp_path / name))
    endpoints.close(list(endpoints.sockets))


def test_what_is_closed_refuses_at_once_whoever_still_holds_it(tmp_path: Path) -> None:
    one = endpoint(tmp_path / "one")
    tcp: Endpoint = WorkerKind.POLICY, parse_listen_address("inet:127.0.0.1:0")
    endpoints = Endpoints((WorkerKind.POLICY,))
    endpoints.open({one: Access(), tcp: Access()})
    port = endpoints.sockets[tcp].getsockname()[1]
    os.link(tmp_path / "one", tmp_path / "another name")
    copies = [sock.dup() for sock in endpoints.sockets.values()]
    endpoints.close(list(endpoints.sockets))
    assert refuses(str(tmp_path / "another name"))
    assert refuses(("127.0.0.1", port))
    with socket.create_server(("127.0.0.1", port)):
        pass
    for copy in copies:
        copy.close()
