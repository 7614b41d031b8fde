# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes one system call of the parent fail, any of them, and says what that left behind.

`python -m tests.support.parent_faults SCENARIO` plays a scenario with a real parent and real forks, once without a
fault, to list the calls that it makes, and then once for each call, which fails; with `child`, the calls are those of a
child between the fork and its service. What it prints is JSON (`Report`). With the name of a call behind it, such as
`os.fork in supervisor.py:_fork #2`, it plays that fault alone.

The workers are real up to where they would serve (worker.live); what serves is a stub, so that a run takes a tenth of a
second. A fault strikes once. Only calls of the modules that make up the parent count: reading the configuration has
tests of its own, and logging lives with its own accidents.
"""

import contextlib
import ctypes
import errno
import functools
import json
import mmap
import os
import re
import resource
import select
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any, NoReturn, TextIO

import gatekeeper
from gatekeeper.app.plan import Plan
from gatekeeper.config import config_file
from gatekeeper.daemon import control_channel, restarts, supervisor, worker
from gatekeeper.daemon.listening_sockets import remove_socket
from gatekeeper.daemon.worker import WorkerKind
from gatekeeper.dnsclient.live import preload
from gatekeeper.policy.connection_balance import BalanceSlot

with contextlib.suppress(ImportError):  # else each milter worker would take its time for it
    import gatekeeper.milter.server

PARENT = (
    "supervisor.py",
    "endpoints.py",
    "listening_sockets.py",
    "loading.py",
    "open_descriptors.py",
    "short_lived.py",
    "wakeup.py",
    "control_channel.py",
    "worker.py",
    "background.py",
    "safe_files.py",
    "safe_path.py",
    "connection_balance.py",
)
_GATEKEEPER = os.path.dirname(gatekeeper.__file__)

CALLS: dict[str, tuple[Any, str, int]] = {
    "os.fork": (os, "fork", errno.EAGAIN),
    "os.open": (os, "open", errno.EMFILE),
    "os.dup2": (os, "dup2", errno.EMFILE),
    "os.chmod": (os, "chmod", errno.EPERM),
    "os.chown": (os, "chown", errno.EPERM),
    "os.mkdir": (os, "mkdir", errno.ENOSPC),
    "os.fchown": (os, "fchown", errno.EPERM),
    "os.fchmod": (os, "fchmod", errno.EPERM),
    "os.replace": (os, "replace", errno.ENOSPC),
    "os.rename": (os, "rename", errno.EACCES),
    "os.rmdir": (os, "rmdir", errno.EACCES),
    "os.pipe": (os, "pipe", errno.EMFILE),
    "memfd": (os, "memfd_create", errno.EMFILE),
    "os.unlink": (os, "unlink", errno.EACCES),
    "os.stat": (os, "stat", errno.EIO),
    "os.lstat": (os, "lstat", errno.EACCES),
    "os.listdir": (os, "listdir", errno.EMFILE),
    "os.kill": (os, "kill", errno.EPERM),
    "setrlimit": (resource, "setrlimit", errno.EPERM),
    "mmap": (mmap, "mmap", errno.ENOMEM),
    "socket": (socket.socket, "__init__", errno.EMFILE),
    "setsockopt": (socket.socket, "setsockopt", errno.ENOBUFS),
    "setblocking": (socket.socket, "setblocking", errno.EIO),
    "bind": (socket.socket, "bind", errno.EADDRINUSE),
    "listen": (socket.socket, "listen", errno.EADDRINUSE),
    "connect": (socket.socket, "connect", errno.EAGAIN),
    "send": (socket.socket, "send", errno.ENOBUFS),
    "recv": (socket.socket, "recv", errno.ENOMEM),
    "recvmsg": (socket.socket, "recvmsg", errno.ENOMEM),
    "socketpair": (socket, "socketpair", errno.EMFILE),
    "getaddrinfo": (socket, "getaddrinfo", errno.ENOMEM),
    "epoll_create": (selectors.EpollSelector, "__init__", errno.EMFILE),
    "epoll_ctl": (selectors.EpollSelector, "register", errno.ENOSPC),
}
"""What may fail: where Python has it, and with which error."""

IN_CHILD: dict[str, tuple[Any, str, int]] = {
    "set_wakeup_fd": (signal, "set_wakeup_fd", errno.EIO),
    "signal": (signal, "signal", errno.EIO),
    "sigmask": (signal, "pthread_sigmask", errno.EIO),
    "socket.close": (socket.socket, "close", errno.EIO),
    "epoll.close": (selectors.EpollSelector, "close", errno.EIO),
    "setpgid": (os, "setpgid", errno.EPERM),
    "initgroups": (os, "initgroups", errno.EPERM),
    "setresgid": (os, "setresgid", errno.EPERM),
    "setresuid": (os, "setresuid", errno.EAGAIN),
}
"""What besides may fail in a child before it serves: anything, since nothing it does there may bring it back."""


@dataclass
class Report:
    """What became of one scenario.

    `calls` are those that it makes without a fault; `findings` what is wrong after a fault, by its call.
    """

    calls: list[str] = field(default_factory=list)
    findings: dict[str, list[str]] = field(default_factory=dict)
    refused: int = 0
    """After how many faults the service did not start, or a reload was refused, as it should."""
    missed: int = 0
    """How many faults did not come to pass."""


class Faults:
    """Counts calls, in memory that parent and children share, and lets one of them fail."""

    ARMED, FIRED, REMOVING = 0, 1, 2

    def __init__(self, folder: Path, at: str | None, in_child: bool) -> None:
        self._flags = mmap.mmap(-1, 16)
        # By name each time: a child of the parent closes whatever it was not given.
        self._log = folder / "calls"
        self._log.touch(0o666)
        self._log.chmod(0o666)
        self._open, self._write, self._close = os.open, os.write, os.close
        self._at = at
        self._in_child = in_child
        self._count: Counter[str] = Counter()
        self._inside = False
        self._whose = 0
        self._parent = 0
        self.quiet = False
        """Set in a worker that serves: nothing counts any more."""

    def arm(self) -> None:
        """From now on calls count."""
        self._flags[self.ARMED] = 1

    @property
    def fired(self) -> bool:
        return bool(self._flags[self.FIRED])

    @property
    def unremoved(self) -> int:
        """How many files may be left because we have kept them from being removed."""
        return int(
            self.fired
            and (any(call in (self._at or "") for call in ("unlink", "rmdir")) or bool(self._flags[self.REMOVING]))
        )

    def calls(self) -> list[str]:
        """What was counted; of the children what the one did that did most."""
        made: dict[str, list[str]] = {}
        for line in self._log.read_text().splitlines():
            pid, _, call = line.partition(" ")
            made.setdefault(pid, []).append(call)
        return max(made.values(), key=len, default=[])

    def install(self) -> None:
        """In the parent, before it runs."""
        self._parent = os.getpid()
        for table, child_only in ((CALLS, False), (IN_CHILD, True)):
            for name, (owner, attribute, number) in table.items():
                shim = self._shim(name, getattr(owner, attribute), number, child_only)
                setattr(owner, attribute, shim)
        sys.stderr = self._stream(sys.stderr)
        sys.stdout = self._stream(sys.stdout)

    def _shim(self, name: str, original: Callable[..., Any], number: int, child_only: bool) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*arguments: Any, **options: Any) -> Any:
            if self._inside:
                return original(*arguments, **options)
            self.before(name, number, child_only)
            self._inside = True
            try:
                return original(*arguments, **options)
            finally:
                self._inside = False

        return call

    def _stream(self, stream: TextIO) -> Any:
        def write(text: str) -> int:
            self.before("write", errno.EPIPE)
            return stream.write(text)

        def flush() -> None:
            self.before("flush", errno.ENOSPC)
            stream.flush()

        return SimpleNamespace(write=write, flush=flush, fileno=stream.fileno)

    def before(self, name: str, number: int, child_only: bool = False) -> None:
        """Count a call, and raise if it is the one."""
        mine = os.getpid()
        if (
            self.quiet
            or not self._flags[self.ARMED]
            or (mine == self._parent) is self._in_child
            or (child_only and not self._in_child)
        ):
            return
        caller = _caller()
        if not caller:
            return
        if self._whose != mine:
            self._whose, self._count = mine, Counter()
        call = f"{name} in {caller}"
        self._count[call] += 1
        call += f" #{self._count[call]}"
        log = self._open(self._log, os.O_WRONLY | os.O_APPEND)
        self._write(log, f"{mine} {call}\n".encode())
        self._close(log)
        if self._at == call and not self.fired:
            self._flags[self.FIRED] = 1
            self._flags[self.REMOVING] = _is_removing()
            raise OSError(number, os.strerror(number))


def _caller() -> str:
    """The function of the parent that makes this call; empty if it is made by something else."""
    frame = sys._getframe(2)
    found = ""
    while frame is not None:
        folder, _, file = frame.f_code.co_filename.rpartition("/")
        if file == "__init__.py" and folder.endswith("/logging"):
            return ""  # which lives with its own accidents
        if frame.f_code.co_filename.startswith(_GATEKEEPER):
            found = f"{file}:{frame.f_code.co_name}" if file in PARENT else ""
            break
        frame = frame.f_back  # type: ignore[assignment]  # None ends the loop
    return found


def _is_removing() -> bool:
    """Whether the call is made on the way to remove a socket's file."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name == remove_socket.__name__:
            return True
        frame = frame.f_back
    return False


# -- the parent, in a process of its own ------------------------------------------------------------------------------


def _serve(kind: WorkerKind, plan: Plan, listeners: Sequence[socket.socket], orders: socket.socket) -> None:
    """In place of a worker's service: whoever connects is told kind, generation, and which sockets are open here."""
    said = f"{kind} {plan.config.hostname} {' '.join(_sockets('self'))}\n".encode()
    control_channel.send_packet(orders, control_channel.READY)
    while True:
        readable, _, _ = select.select([orders, *listeners], [], [], 1.0)
        if not readable:
            control_channel.send_packet(orders, control_channel.ALIVE)
        for sock in readable:
            if sock is not orders:
                with contextlib.suppress(OSError):
                    connection, _ = sock.accept()
                    with connection:
                        connection.sendall(said)
            elif (packet := control_channel.receive_packet(orders)) is not None:
                packet.close()
                if packet.word in (b"", control_channel.STOP, control_channel.RETIRE):
                    return


def _parent(folder: Path, faults: Faults) -> NoReturn:
    """Be the parent; its exit status is that of `supervisor.run`, or 99 if somebody returned who should not."""

    async def serve(
        kind: WorkerKind,
        plan: Plan,
        listeners: Sequence[socket.socket],
        control: socket.socket,
        slot: BalanceSlot,
        detached: bool,
    ) -> None:
        faults.quiet = True
        _serve(kind, plan, listeners, control)

    mine, status = os.getpid(), 99
    try:
        os.dup2(os.open(folder / "said", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666), 2)
        sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8")
        restarts.LONGEST_PAUSE = restarts.LONGEST_PAUSE_ALONE = 0.01
        supervisor._STOP_LIMIT = 2.0
        worker._serve = serve
        faults.install()
        file = folder / "gatekeeper.toml"
        status = supervisor.run(lambda: config_file.load(file, _no_postfix), lambda *_: _write(2, UP.encode()))
    except BaseException:  # noqa: BLE001 (a child must not go on in what forked it)
        os.write(2, traceback.format_exc().encode())
    finally:
        if os.getpid() != mine:
            os.write(2, b"ESCAPED: a child came back into its parent's code\n")
        os._exit(status)


def _no_postfix(_names: Sequence[str]) -> dict[str, str]:
    """Be where there is no Postfix; not a lambda, because a configuration remembers whom it asks and is sent."""
    return {}


def _write(descriptor: int, data: bytes) -> None:
    os.write(descriptor, data)


def _descriptors(process: int | str) -> list[str]:
    """What a process has open, as proc(5) names it: `socket:[4711]`."""
    found = []
    for name in os.listdir(f"/proc/{process}/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/{process}/fd/{name}"))
    return found


def _sockets(process: int | str) -> list[str]:
    return [name for name in _descriptors(process) if name.startswith("socket:")]


# -- who starts it, and looks -----------------------------------------------------------------------------------------

CONFIG = """\
hostname = "{generation}.example"
mynetworks = []
[store]
url = "sqlite:{folder}/state/state.db"
[policy]
listen = [{policy}]
workers = 1
restrictions = ["permit"]
[milter]
listen = ["unix:{folder}/b/milter.sock"]
workers = 1
"""
UP = "everybody serves\n"
LONGEST = 20.0
"""Seconds that a service may take to be as it should."""


class Trouble(Exception):
    """Something is not as it should be."""


class Service:
    """The parent of one run, and what one sees of it from outside."""

    def __init__(self, folder: Path, faults: Faults) -> None:
        self.folder = folder
        self.faults = faults
        self.generation = 0
        self.paths: list[str] = []
        self.lost = 0
        """Listeners whose file is gone."""
        self.before = (0, self.paths, 0)
        """Generation, paths and lost listeners that there were before the last `configure`."""
        self.stale: set[int] = set()
        """Inodes of socket files that were there before the start."""
        self.refused = False
        self.status: int | None = None
        self.pid = 0
        # an address of our own, so that no other test takes the port in between
        self.host = f"127.{os.getpid() % 254 + 1}.{os.getpid() // 254 % 256}.1"
        with socket.socket() as free:
            free.bind((self.host, 0))
            self.port = free.getsockname()[1]
        for name in "abc":
            (folder / name).mkdir(mode=0o755)
        self.configure("a")

    def configure(self, *folders: str) -> None:
        """The next generation: policy sockets in these folders and on TCP."""
        self.before = self.generation, self.paths, self.lost
        self.generation += 1
        self.lost = 0
        self.paths = [*(f"{self.folder}/{name}/policy.sock" for name in folders), f"{self.folder}/b/milter.sock"]
        policy = [f'"unix:{path}"' for path in self.paths[:-1]] + [f'"inet:{self.host}:{self.port}"']
        text = CONFIG.format(folder=self.folder, generation=self.generation, policy=", ".join(policy))
        (self.folder / "gatekeeper.toml").write_text(text)

    def start(self) -> None:
        self.pid = os.fork()
        if not self.pid:
            _parent(self.folder, self.faults)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def ended(self) -> bool:
        """Whether the parent has ended; reaps whatever has come to us."""
        while self.status is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                break
            if not pid:
                break
            self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def children(self) -> list[int]:
        with contextlib.suppress(OSError):
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        return []

    def ask(self, address: str | tuple[str, int]) -> str:
        """What is answered there; a sentence if nothing is."""
        with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as client:
            client.settimeout(1.0)
            try:
                client.connect(address)
                return client.recv(100).decode().strip() or "closes at once"
            except OSError as error:
                return error.strerror or str(error)

    def wrong(self) -> str:
        """What is not as it should be now; empty if all is well."""
        if self.ended():
            return f"it has ended with status {self.status}"
        if UP not in self.said():
            return "it is not up"
        files = {str(path) for path in self.folder.glob("?/*.sock")}
        if not files >= {*self.paths} or len(files) > len(self.paths) + self.faults.unremoved:
            return f"socket files {files}"
        if len(workers := self.children()) != 2:
            return f"{len(workers)} children"
        sockets = set(_sockets(self.pid))
        policy = len(self.paths) + self.lost  # listeners: one of the paths is the milter's, and there is TCP
        for address in self.addresses():
            kind, listeners = ("milter", 1) if address == self.paths[-1] else ("policy", policy)
            said = self.ask(address)
            if not said.startswith(f"{kind} {self.generation}.example "):
                return f"{address} answers: {said}"
            if len(shared := sockets & {*said.split()}) != listeners:
                return f"a {kind} worker has {shared} of its parent's sockets"
        if "SigBlk:\t0000000000000000" not in Path(f"/proc/{self.pid}/status").read_text():
            return "signals are blocked"
        # a control socket for each worker, two for signals, and the listeners
        if len(sockets) != 2 + 2 + policy + 1:
            return f"the parent has {len(sockets)} sockets"
        if (epolls := _descriptors(self.pid).count("anon_inode:[eventpoll]")) != 1:
            return f"the parent has {epolls} epolls"
        return ""

    def addresses(self) -> list[str | tuple[str, int]]:
        return [*self.paths, (self.host, self.port)]

    def settle(self) -> None:
        """Wait until all is as it should be. Raises Trouble."""
        deadline = time.monotonic() + LONGEST
        while wrong := self.wrong():
            if self.status is not None or time.monotonic() > deadline:
                raise Trouble(wrong)
            time.sleep(0.003)

    def reload(self) -> None:
        """Have the configuration taken. If that is refused, what was before has to go on; then ask again, as somebody
        does who has read the log."""
        refusals = self.said().count("not reloaded")
        self.signal(signal.SIGHUP)
        deadline = time.monotonic() + LONGEST
        while wrong := self.wrong():
            if self.status is not None or time.monotonic() > deadline:
                raise Trouble(wrong)
            if self.said().count("not reloaded") > refusals:
                self.refused = True
                wanted = self.generation, self.paths, self.lost
                self.generation, self.paths, self.lost = self.before
                self.settle()
                self.generation, self.paths, self.lost = wanted
                self.signal(signal.SIGHUP)
                self.settle()
                return
            time.sleep(0.003)

    def kill(self) -> None:
        """Kill every worker, and wait until the parent knows."""
        victims = {*self.children()}
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + LONGEST
        while victims & {*self.children()}:
            if self.ended() or time.monotonic() > deadline:
                raise Trouble("the dead are not buried")
            time.sleep(0.003)

    def said(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "said").read_text()
        return ""

    def stop(self) -> None:
        """Have it end; Trouble if it does not, or leaves anything behind."""
        if not self.ended():
            self.signal(signal.SIGTERM)
        deadline = time.monotonic() + LONGEST
        while not self.ended():
            if time.monotonic() > deadline:
                raise Trouble("it does not end")
            time.sleep(0.003)


def _start(service: Service) -> None:
    service.faults.arm()
    service.start()
    service.settle()


def _stale(service: Service) -> None:
    for path in service.paths:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(path)
            dead.listen()
        service.stale.add(os.stat(path).st_ino)
    _start(service)


def _foreign(service: Service) -> None:
    """The folder of a socket belongs to somebody else."""
    if os.geteuid() == 0:
        os.chown(service.folder / "a", 65534, 65534)
    _start(service)


def _reload(service: Service) -> None:
    service.start()
    service.settle()
    service.faults.arm()
    service.configure("c")
    service.reload()


def _replace(service: Service) -> None:
    service.start()
    service.settle()
    service.faults.arm()
    service.kill()
    service.settle()


def _gone(service: Service) -> None:
    """The file of a socket was removed, and a reload brings it back."""
    service.start()
    service.settle()
    os.unlink(service.paths.pop(0))
    service.lost = 1
    service.faults.arm()
    service.configure("a")
    service.reload()


def _stop(service: Service) -> None:
    service.start()
    service.settle()
    service.faults.arm()


SCENARIOS: dict[str, tuple[Callable[[Service], None], str]] = {
    "start": (_start, ""),
    "stale": (_stale, "_is_stale|_listener|_open_unix"),
    "foreign": (_foreign, "_bind_and_move|private_folder|_bind|give"),
    "reload": (_reload, ""),
    "gone": (_gone, "sockets.py|_open|_is_gone"),
    "replace": (_replace, ""),
    "stop": (_stop, ""),
}
"""What is played, and which calls are its own: those of others fail elsewhere."""
_OFTEN = 2
"""How many calls of one kind by one function fail: the third is as the second."""


def play(scenario: str, at: str | None = None, in_child: bool = False) -> tuple[list[str], list[str], str]:
    """Play it with the `at`-th call failing: the calls that were made, what is wrong, and what became of it."""
    folder = Path(tempfile.mkdtemp(prefix="gatekeeper-test-"))
    folder.chmod(0o755)
    faults = Faults(folder, at, in_child)
    service = Service(folder, faults)
    wrong, became = [], "went on"
    try:
        try:
            SCENARIOS[scenario][0](service)
            service.stop()
        except Trouble as trouble:
            if service.status in (75, 78) and scenario in ("start", "stale", "foreign"):
                became = "refused"
                if not service.said():
                    wrong.append("the start is refused without a word")
            else:
                wrong.append(str(trouble))
        wrong += _left(service)
        calls = faults.calls()
        if at is not None:
            became = "refused" if service.refused else became
            became = became if faults.fired else "missed"
        return calls, wrong, became
    finally:
        shutil.rmtree(folder)


def _left(service: Service) -> Iterator[str]:
    """What is left behind, and what was said that should not."""
    if service.status is None:  # it is known already what is wrong
        os.kill(service.pid, signal.SIGKILL)
        os.waitpid(service.pid, 0)
        _bury()
        return
    if service.status not in (0, 75, 78):
        yield f"it ends with status {service.status}"
    if orphans := _bury():
        yield f"{orphans} children outlive their parent"
    files = [
        str(path.relative_to(service.folder))
        for path in service.folder.glob("?/*.sock")
        if path.stat().st_ino not in service.stale
    ]
    files += [str(path.relative_to(service.folder)) for path in service.folder.glob("?/.*")]
    if len(files) > service.faults.unremoved:
        yield f"left behind: {files}"
    state = service.folder / "state"
    if os.geteuid() == 0 and state.exists() and state.stat().st_uid == 0:
        yield "the folder of the store is there, and not its user's"
    # Of a worker's own accident the log may tell more; what it writes stands behind a bar.
    if re.search("^Traceback|ESCAPED", said := service.said(), re.MULTILINE):
        yield said


def _bury() -> int:
    """End and reap the children that have come to us, as to a subreaper; how many there were."""
    orphans = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for orphan in map(int, orphans):
        os.kill(orphan, signal.SIGKILL)
        os.waitpid(orphan, 0)
    return len(orphans)


def main() -> None:
    """See the module."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    preload()
    scenario, *more = sys.argv[1:]
    in_child = "child" in more
    if alone := [word for word in more if word != "child"]:
        print(json.dumps(play(scenario, alone[0], in_child), indent=1))
        return
    report = Report()
    calls, wrong, _ = play(scenario, None, in_child)
    own = SCENARIOS[scenario][1]
    report.calls = [call for call in calls if re.search(own, call) and int(call.rpartition("#")[2]) <= _OFTEN]
    if wrong:
        report.findings["without a fault"] = wrong
    for call in report.calls:
        for _ in range(4):  # how often the parent wakes up is a matter of time: the call may not come this time
            _, wrong, became = play(scenario, call, in_child)
            if became != "missed" or wrong:
                break
        if wrong:
            report.findings[call] = wrong
        report.refused += became == "refused"
        report.missed += became == "missed"
    print(json.dumps(asdict(report), indent=1))


if __name__ == "__main__":
    main()
