# SPDX-License-Identifier: GPL-3.0-or-later
"""What a child of the parent has from it: in its memory no private key that it does not need, and of its descriptors
those alone that daemon/open_descriptors.py lists. Looked up in /proc, after a start and after each kind of reload."""

import base64
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from tests.support.milter_client import MilterClient
from tests.support.process_memory import forms, forms_in_memory
from tests.support.service import Service, need_milter, until
from tests.support.signing_world import ed25519_pem, rsa_pem, write_key

pytestmark = pytest.mark.integration("gatekeeper")

CONFIG = """\
hostname = "mx.example"
mynetworks = ["127.0.0.0/8"]
[dns]
nameservers = ["127.0.0.1:9"]
[store]
url = "{store}"
[policy]
listen = ["unix:{folder}/policy.sock", "inet:127.0.0.1:0"]
workers = 2
restrictions = ["check_helo_access hash:helo"]
[milter]
listen = ["unix:{folder}/one.sock", "unix:{folder}/two.sock"]
workers = 1
[signing]
signing_table = ["file.example file", "inline.example inline", "seed.example seed"]
key_table = {keys}
"""
QUICK = "from gatekeeper.core.watched_files import FileWatch as W; W.INTERVAL = W.SETTLED = 0.1"
INHERITED = "; import os; os.dup2(os.open('/etc/hostname', os.O_RDONLY), 77)"
"""What a shell does that leaves a descriptor open to what it starts."""


def _inline(pem: bytes) -> str:
    return "".join(pem.decode().splitlines()[1:-1])


def _seed(pem: bytes) -> str:
    key = load_pem_private_key(pem, None)
    return base64.b64encode(key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())).decode()


@dataclass
class World:
    folder: Path
    keys: tuple[bytes, bytes, bytes]
    """One in a file, one as a line has it, and a seed."""

    def lines(self) -> list[str]:
        file, inline, seed = self.folder / "file.pem", _inline(self.keys[1]), _seed(self.keys[2])
        return [
            f"file file.example:s:{file}",
            f"inline inline.example:s:{inline}",
            f"seed seed.example:s:{seed}",
        ]

    def configure(self, where: str, store: str = "memory:") -> Path:
        """Write the configuration, with the KeyTable in a file or in the configuration itself."""
        write_key(self.folder / "file.pem", self.keys[0])
        (self.folder / "helo").write_text("localhost REJECT\n")
        table = self.folder / "KeyTable"
        table.write_text("\n".join(self.lines()) + "\n")
        table.chmod(0o600)
        keys = {
            "file": f'"{table}"',
            "list": "[\n" + "".join(f'  "{line}",\n' for line in self.lines()) + "]",
            "csl": '"csl:' + ", ".join(line.replace(" ", "=", 1) for line in self.lines()) + '"',
        }[where]
        config = self.folder / "gatekeeper.toml"
        config.write_text(CONFIG.format(folder=self.folder, keys=keys, store=store))
        config.chmod(0o600)
        return config


@pytest.fixture
def world() -> Iterator[World]:
    # not tmp_path: workers that have given up root must be able to reach the sockets' folder
    with TemporaryDirectory(prefix="gatekeeper-test-") as name:
        Path(name).chmod(0o755)
        yield World(Path(name), (rsa_pem(), rsa_pem(1024), ed25519_pem()))


@contextmanager
def running(config: Path, prelude: str = QUICK) -> Iterator[Service]:
    need_milter()
    service = Service(config, "run", prelude=prelude)
    try:
        service.wait_for("explain")
        yield service
    finally:
        assert 0 == service.end()


def _is_milter(pid: int) -> bool:
    try:
        return "libmilter" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:  # it has gone
        return False


def _sign(folder: Path) -> None:
    """Have a milter worker use its keys."""
    for domain in ("file.example", "inline.example", "seed.example"):
        with MilterClient(str(folder / "one.sock")) as client:
            client.open(daemon_name="ORIGINATING")
            client.envelope(f"a@{domain}".encode())
            outcome = client.content(f"From: a@{domain}\r\nSubject: x\r\n\r\nHello\r\n".encode())
            assert ["DKIM-Signature"] == [name for name, _ in outcome.fields], (domain, outcome)


def _leaks(service: Service, world: World) -> dict[str, set[str]]:
    """Which forms of which keys are in the memory of the parent and of policy workers."""
    wanted = {
        f"key {number}: {form}": pieces for number, pem in enumerate(world.keys) for form, pieces in forms(pem).items()
    }
    who = {"parent": service.process.pid}
    who |= {f"policy worker {pid}": pid for pid in service.children() if not _is_milter(pid)}
    assert len(who) >= 3
    found = {name: forms_in_memory(pid, wanted) for name, pid in who.items()}
    return {name: forms for name, forms in found.items() if forms}


def _settle(service: Service, old: list[int]) -> None:
    """Wait until there are two policy workers, a milter worker for each of two addresses, and nobody of before."""

    def are_there() -> bool:
        now = service.children()
        # A milter worker is known by libmilter, which it loads when it has its keys.
        return len(now) == 4 and not {*now} & {*old} and sum(_is_milter(pid) for pid in now) == 2

    until(are_there, "the workers of today alone are there")


@pytest.mark.parametrize("where", ["file", "list", "csl"])
def test_no_private_key_is_in_the_memory_of_the_parent_or_of_a_policy_worker(world: World, where: str) -> None:
    with running(world.configure(where)) as service:
        _sign(world.folder)
        # that the search would find them
        milter = next(pid for pid in service.children() if _is_milter(pid))
        assert all("text" in forms_in_memory(milter, forms(pem)) for pem in world.keys[:1])
        [signer] = [
            pid
            for pid in service.children()
            if _is_milter(pid) and "little endian" in forms_in_memory(pid, forms(world.keys[0]))
        ]
        assert "seed" in forms_in_memory(signer, forms(world.keys[2]))
        assert {} == _leaks(service, world)

        old = service.children()
        service.process.send_signal(signal.SIGHUP)
        _settle(service, old)
        _sign(world.folder)
        assert {} == _leaks(service, world)

        old = service.children()
        (world.folder / "helo").write_text("localhost DUNNO\n")
        _settle(service, old)
        _sign(world.folder)
        assert {} == _leaks(service, world)

        old = service.children()
        write_key(world.folder / "file.pem", b"garbage")
        service.wait_for("WARNING .*file.pem: warning: this is neither PEM nor base64; the key from before signs on")
        _settle(service, old)
        for pid in (old := service.children()):
            os.kill(pid, signal.SIGKILL)
        _settle(service, old)
        until(lambda: _signs(world.folder), "the key from before signs, in the hands of a new worker too")
        assert {} == _leaks(service, world)


def _signs(folder: Path) -> bool:
    try:
        _sign(folder)
    except OSError:
        return False
    return True


def _open(pid: int) -> dict[int, str]:
    """Descriptor and what is open there, but what this look itself opens."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
    return found


def _sockets(pid: int) -> set[str]:
    return {what for what in _open(pid).values() if what.startswith("socket:")}


def _listeners(path: str) -> set[str]:
    """Sockets that are bound to this path, or for a number to this port of loopback."""
    found = set()
    if path.isdecimal():
        for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = row.split()
            if fields[3] == "0A" and fields[1].endswith(f":{int(path):04X}"):
                found.add(f"socket:[{fields[9]}]")
        return found
    for row in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = row.split()
        if len(fields) == 8 and fields[7] == path and fields[3] == "00010000":  # __SO_ACCEPTCON
            found.add(f"socket:[{fields[6]}]")
    return found


OWN = re.compile(
    r"socket:\[\d+\]|anon_inode:\[(eventpoll|eventfd|timerfd|io_uring)\]|/dev/null|pipe:\[\d+\]"
    r"|.*/state(/state\.db(-wal|-shm)?)?"
    r"|/tmp/gatekeeper-\w+/milter\.sock \(deleted\)"  # libmilter's private socket, behind the gate
)


def _wrong(parent: int, workers: list[int], folder: Path, port: str) -> list[str]:
    """What somebody has that they should not."""
    wrong = []
    policy = _listeners(f"{folder}/policy.sock") | (_listeners(port) if port else set())
    milter = [_listeners(f"{folder}/{name}.sock") for name in ("one", "two")]
    allowed = [policy, *milter] if port else milter
    seen = []
    standard = {what for number, what in _open(parent).items() if number < 3}
    if sum("memfd:gatekeeper-keys" in what for what in _open(parent).values()) != 1:
        wrong.append("the parent does not hold one set of keys")
    for pid in workers:
        have = _open(pid)
        shared = _sockets(pid) & _sockets(parent)
        if shared not in allowed:
            wrong.append(f"{pid} shares {shared} with its parent, and may share one of {allowed}")
        seen.append(shared)
        wrong += [
            f"{pid} and {other} both have {both}"
            for other in workers
            if other != pid and (both := _sockets(pid) & _sockets(other)) and both not in allowed
        ]
        wrong += [
            f"{pid} has {number} -> {what}" for number, what in have.items() if number > 2 and not OWN.fullmatch(what)
        ]
        pipes = [what for number, what in have.items() if number > 2 and what in standard and what != "/dev/null"]
        if pipes:
            wrong.append(f"{pid} has {pipes} once more")
    return wrong + [f"nobody has {each}" for each in allowed if each not in seen]


@pytest.mark.parametrize("store", ["memory:", "sqlite:{folder}/state/state.db"])
def test_a_worker_holds_of_its_parents_descriptors_what_is_listed_and_nothing_else(world: World, store: str) -> None:
    config = world.configure("file", store.format(folder=world.folder))
    with running(config, QUICK + INHERITED) as service:
        port = service.wait_for(r"^listening policy inet:127\.0\.0\.1:(\d+)$")[1]
        parent = service.process.pid
        assert "/etc/hostname" == _open(parent)[77]
        for reload in ("none", "HUP", "changed", "kill"):
            old = service.children() if reload != "none" else []
            if reload == "HUP":
                service.process.send_signal(signal.SIGHUP)
            elif reload == "changed":
                (world.folder / "helo").write_text("localhost DUNNO\n")
            for pid in old if reload == "kill" else ():
                os.kill(pid, signal.SIGKILL)
            _settle(service, old)
            # A worker that has only just begun has not closed everything yet, and is reading its modules.
            wrong = ["not looked at"]

            def nothing_wrong(wrong: list[str] = wrong) -> bool:
                wrong[:] = _wrong(parent, service.children(), world.folder, port)
                return not wrong

            with suppress(AssertionError):
                until(nothing_wrong, "nobody has more than is listed", 20)
            assert [] == wrong, reload


def test_in_the_background_a_worker_holds_no_more_and_no_key_is_in_its_parents_memory(world: World) -> None:
    need_milter()
    folder = world.folder
    (folder / "opendkim.conf").write_text(
        f"Mode s\nSocket local:{folder}/one.sock\nPidFile {folder}/pid\nUMask 0\nBackground yes\n"
        f"KeyTable csl:k=inline.example:s:{_inline(world.keys[1])}\nSigningTable csl:inline.example=k\n"
    )
    service = Service(folder / "unused", "opendkim", "-x", str(folder / "opendkim.conf"), prelude="1" + INHERITED)
    assert 0 == service.process.wait(60), service.lines
    parent = int((folder / "pid").read_text())
    try:
        workers = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
        assert all("text" in forms_in_memory(pid, forms(world.keys[1])) for pid in workers)
        assert set() == forms_in_memory(parent, forms(world.keys[1]))
        for pid in workers:
            assert _sockets(pid) & _sockets(parent) == _listeners(f"{folder}/one.sock")
            assert [] == [what for what in _open(pid).values() if not OWN.fullmatch(what)]
            assert set() == {what for what in _open(pid).values() if what.startswith("pipe:")} & {
                *_open(parent).values()
            }
    finally:
        os.kill(parent, signal.SIGTERM)
        until(lambda: not Path(f"/proc/{parent}").exists(), "it has ended")
    assert not (folder / "one.sock").exists()


def test_who_connects_to_a_worker_cannot_be_taken_for_a_signal(world: World) -> None:
    """A worker has no socket of which the other end is the parent's, but its control socket: whatever it writes there
    neither stops nor reloads the service."""
    with running(world.configure("file")) as service:
        worker = next(pid for pid in service.children() if not _is_milter(pid))
        for number, what in _open(worker).items():
            if not what.startswith("socket:"):
                continue
            pidfd = os.pidfd_open(worker)
            try:
                taken = _pidfd_getfd(pidfd, number)
            finally:
                os.close(pidfd)
            with socket.socket(fileno=taken) as sock:
                for byte in (1, 2, 15):
                    try:
                        sock.send(bytes([byte]), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                    except OSError:
                        break
        service.process.send_signal(signal.SIGHUP)
        service.wait_for("INFO reloaded: ")
        assert 1 == sum("INFO reloaded: " in line for line in service.lines)
        assert service.process.poll() is None


def _pidfd_getfd(pidfd: int, number: int) -> int:
    import ctypes

    taken = int(ctypes.CDLL(None, use_errno=True).syscall(438, pidfd, number, 0))  # SYS_pidfd_getfd
    if taken < 0:
        pytest.skip("this machine does not let us take another process's descriptor")
    return taken
