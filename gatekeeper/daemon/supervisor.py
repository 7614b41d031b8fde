# SPDX-License-Identifier: GPL-3.0-or-later
"""The parent process: opens the sockets, forks the workers, replaces those that die, reloads and stops.

It keeps its privileges, so it reads nothing from the network: it reads the configuration, the tables and the keys,
hands them to its workers by fork, and watches. It never imports pymilter. Signals: TERM and INT stop (workers have
10 s for what they hold; another signal, a second later or more, cuts that short), HUP reloads: new workers on the
same sockets, then the old ones retire, and the policy connections that they hold pass through here to the new ones. A
configuration that cannot be used is refused with its errors, and the old one goes on.

Any system call may fail, for want of memory, descriptors or processes. A start that cannot be made is refused, and
leaves nothing behind; what fails later costs no service that there was: it is put off and tried again. A child ends by
os._exit, whatever happens to it: it must never come back into the parent's code, which would remove the sockets.

A table or key that changes does the same without a signal, once it has settled (core/watched_files.py). The
configuration file itself is read at a signal only: half an edit of it is not to be taken for one.
"""

import gc
import importlib.util
import logging
import math
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from gatekeeper.app.plan import Plan, prepare
from gatekeeper.config.config_file import Config, refreshed
from gatekeeper.core import log, watched_files
from gatekeeper.core.problem import ConfigError
from gatekeeper.core.watched_files import FileWatch
from gatekeeper.daemon import control_channel
from gatekeeper.daemon.listening_sockets import bound, open_listener, remove_socket
from gatekeeper.daemon.worker import (
    EX_TEMPFAIL,
    STOP_TIMEOUT,
    ProcessUser,
    WorkerKind,
    block_signals,
    find_process_user,
    preload_code,
    raise_file_limit,
    run_worker,
)
from gatekeeper.policy.connection_balance import ConnectionBalance
from gatekeeper.postfix.listen_address import ListenAddress
from gatekeeper.stores.state_owner import make_state_folder

logger = logging.getLogger(__name__)

EX_CONFIG = 78
HANG_LIMIT = 60.0
"""Seconds without a sign of life after which a worker counts as hanging and is killed."""
MAX_RESTART_DELAY = 30.0
"""Seconds to wait at most before a worker that keeps dying is started again."""

_START_LIMIT = 10.0
"""Seconds that new workers have to begin before a signal to reload goes before them."""
_STOP_LIMIT = STOP_TIMEOUT + 2
"""Seconds from the order to stop until whoever is left is killed."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)

Endpoint = tuple[WorkerKind, ListenAddress]


@dataclass(slots=True, eq=False)
class _Worker:
    """One worker process as the parent sees it. Times are of the monotonic clock."""

    kind: WorkerKind
    endpoints: tuple[Endpoint, ...]
    generation: int
    pid: int
    control: socket.socket
    slot: int
    started: float
    last_heard: float
    ready: bool = False
    retired: bool = False
    stopped: bool = False  # it has been told to stop


@dataclass(slots=True)
class _Restart:
    """A worker to be started again at `due`."""

    kind: WorkerKind
    endpoints: tuple[Endpoint, ...]
    slot: int
    due: float


def run(
    load: Callable[[], Config],
    up: Callable[[Mapping[WorkerKind, ListenAddress]], None],
    *,
    policy: bool = True,
    milter: bool = True,
    detached: bool = False,
) -> int:
    """Run the service in the foreground until a signal ends it; return the exit status (0, 75, 78).

    `load` reads the configuration, now and at each reload; `up` is called once, when every worker serves, with one
    address of each kind. `detached` workers let go of standard input and output once they serve.
    """
    try:
        with watched_files.recording() as file_states:
            plan = prepare(load(), lenient=True)
        process_user = find_process_user(plan.config.user, plan.config.group)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EX_CONFIG
    except LookupError as error:
        print(error.args[0], file=sys.stderr)
        return EX_CONFIG
    _log(plan)
    kinds = [WorkerKind.POLICY] if policy else []
    if milter:
        if importlib.util.find_spec("milter") is not None:
            kinds.append(WorkerKind.MILTER)
        else:
            _print_error("no milter: pymilter is not installed; pip install 'gatekeeper[milter]' adds it")
    if not kinds:
        return EX_TEMPFAIL
    try:
        balance = ConnectionBalance(plan.config.policy.workers)
        supervisor = Supervisor(
            load, up, plan, tuple(kinds), process_user, FileWatch(file_states), balance, detached=detached
        )
    except OSError as error:  # neither descriptors nor memory left
        _print_error(_sentence(error))
        return EX_TEMPFAIL
    return supervisor.run()


@dataclass(slots=True)
class Supervisor:
    """The parent's state: the plan in force, the open sockets, the workers."""

    load: Callable[[], Config]
    on_up: Callable[[Mapping[WorkerKind, ListenAddress]], None]
    plan: Plan
    kinds: tuple[WorkerKind, ...]
    process_user: ProcessUser | None
    watch: FileWatch
    balance: ConnectionBalance
    given_up: list[control_channel.ControlPacket] = field(
        default_factory=list
    )  # connections that retired workers gave up
    generation: int = 0
    detached: bool = False
    sockets: dict[Endpoint, socket.socket] = field(default_factory=dict)
    workers: list[_Worker] = field(default_factory=list)
    restarts: list[_Restart] = field(default_factory=list)
    announced: set[Endpoint] = field(default_factory=set)
    stop_deadline: float | None = None  # the deadline, once we are stopping
    reload_requested: bool = False  # a signal asked to read everything again
    up: bool = False  # every worker has served at least once
    failed: bool = False
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    quick_deaths: dict[tuple[Endpoint, ...], int] = field(default_factory=dict)
    signals: tuple[socket.socket, ...] = ()  # both ends: set_wakeup_fd holds only a number, and workers close them

    def run(self) -> int:
        """Open, fork, watch, stop. Returns the exit status."""
        raise_file_limit()  # connections pass through here when they change hands
        try:
            _make_state_folder(self.plan.config.store.url, self.process_user)
            self._open(self.plan)
            wakeup = self._catch_signals()
        except OSError as error:
            _print_error(_sentence(error))
            self._close(list(self.sockets))
            return EX_TEMPFAIL
        try:
            self._start(self.plan, self.balance)
            while self.workers or (self.restarts and self.stop_deadline is None):
                self._watch(wakeup)
        finally:
            self._close(list(self.sockets))
        return EX_TEMPFAIL if self.failed else 0

    # -- sockets ------------------------------------------------------------------------------------------------

    def _wanted(self, plan: Plan) -> list[Endpoint]:
        listen = {WorkerKind.POLICY: plan.config.policy.listen, WorkerKind.MILTER: plan.config.milter.listen}
        return [(kind, address) for kind in self.kinds for address in listen[kind]]

    def _open(self, plan: Plan) -> None:
        """Open what `plan` wants and is not open yet, or has lost its file; all or none. Raises OSError."""
        opened: dict[Endpoint, socket.socket] = {}
        try:
            for endpoint in self._wanted(plan):
                if endpoint not in opened and (endpoint not in self.sockets or _is_gone(endpoint)):
                    kind, address = endpoint
                    section = plan.config.policy if kind is WorkerKind.POLICY else plan.config.milter
                    if plan.config.sockets is not None:
                        plan.config.sockets.make_folder_for(address)
                    owner = -1 if self.process_user is None else self.process_user.uid
                    opened[endpoint] = open_listener(address, section.socket_mode, section.socket_group, owner)
        except OSError:
            for endpoint, listener in opened.items():
                _shut(endpoint, listener)
            raise
        # Old ones are dropped only now: a worker that is forked after a refusal needs a listener for each endpoint,
        # even if its file is gone.
        for endpoint in opened.keys() & self.sockets.keys():
            self.sockets.pop(endpoint).close()
            self.announced.discard(endpoint)
        self.sockets.update(opened)

    def _close(self, endpoints: list[Endpoint]) -> None:
        for endpoint in endpoints:
            self.announced.discard(endpoint)
            _shut(endpoint, self.sockets.pop(endpoint))

    # -- signals ------------------------------------------------------------------------------------------------

    def _catch_signals(self) -> socket.socket:
        """Turn signals into bytes on a socket that the selector watches: nothing happens between two instructions."""
        self.signals = ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self.selector.register(ours, selectors.EVENT_READ)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)
        return ours

    def _read_signals(self, wakeup: socket.socket) -> None:
        try:
            numbers = wakeup.recv(4096)
        except OSError:  # no memory for a moment: they are still there, and wake us again
            return
        for number in numbers:
            if number in (signal.SIGHUP, signal.SIGUSR1):  # USR1: the unit of Debian's opendkim reloads by it
                self.reload_requested = True
            elif number in (signal.SIGTERM, signal.SIGINT):
                if self.stop_deadline is None:
                    self._stop()
                elif time.monotonic() > self.stop_deadline - _STOP_LIMIT + 1:
                    # Not within a second of the first: a signal to the whole process group may come to us twice.
                    self._kill(self.workers)

    # -- workers ------------------------------------------------------------------------------------------------

    def _start(self, plan: Plan, balance: ConnectionBalance) -> None:
        """Fork a new generation of workers for `plan`, which share connections evenly by `balance`."""
        self.generation += 1
        self.restarts.clear()
        self.balance = balance
        with suppress(ImportError, OSError):  # a worker will say what is missing, and the parent lives on
            preload_code(plan, self.kinds)
        # The plan before this one, whose tables refer to each other, goes; what is left is shared with the workers,
        # whose collectors shall not write to it.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        wanted = self._wanted(plan)
        if WorkerKind.POLICY in self.kinds:
            endpoints = tuple(endpoint for endpoint in wanted if endpoint[0] is WorkerKind.POLICY)
            for slot in range(plan.config.policy.workers):
                self._fork(WorkerKind.POLICY, endpoints, slot)
        for endpoint in wanted:
            if endpoint[0] is WorkerKind.MILTER:  # libmilter serves one address a process
                for _ in range(plan.config.milter.workers):
                    self._fork(WorkerKind.MILTER, (endpoint,))

    def _fork(self, kind: WorkerKind, endpoints: tuple[Endpoint, ...], slot: int = 0) -> None:
        """Fork a worker. If that cannot be done now, it is tried again later; if none ever worked, we stop."""
        if self.stop_deadline is not None:
            return
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # who read it has gone, or the disk is full
                stream.flush()
        now = time.monotonic()
        ours = None
        try:
            ours, theirs = control_channel.control_pair()
            worker = _Worker(kind, endpoints, self.generation, 0, ours, slot, now, now)
            # Before the fork, which is the last thing that may fail: a worker that nobody hears is one too many.
            self.selector.register(ours, selectors.EVENT_READ, worker)
            with theirs:
                # Signals wait until the child has undone our handling: what is meant for it would be told to us.
                before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
                try:
                    worker.pid = os.fork()
                    if worker.pid == 0:
                        self._become(worker, theirs, before)
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, before)
        except OSError as error:
            if ours is not None:
                with suppress(KeyError):
                    self.selector.unregister(ours)
                ours.close()
            logger.error("cannot fork a %s worker: %s", kind, _sentence(error))  # noqa: TRY400 (the sentence says it)
            if self._never_worked(kind):
                self._give_up(kind)
            else:
                self._schedule_restart(kind, endpoints, slot, quick=True)
            return
        self.workers.append(worker)

    def _become(self, worker: _Worker, theirs: socket.socket, mask: set[int]) -> NoReturn:
        """Become `worker`, in the process just forked for it; `mask` are the signals that were blocked before."""
        try:
            block_signals()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self.selector.close()
            for sock in (*self.signals, worker.control, *(other.control for other in self.workers)):
                sock.close()
            for packet in self.given_up:
                packet.close()
            for endpoint, listener in self.sockets.items():
                if endpoint not in worker.endpoints:  # held open here, it would take connections that nobody answers
                    listener.close()
            listeners = [self.sockets[endpoint] for endpoint in worker.endpoints]
            slot = self.balance.slot(worker.slot)
            run_worker(worker.kind, self.plan, listeners, theirs, self.process_user, slot, detached=self.detached)
        except OSError as error:
            logger.error("a %s worker could not begin: %s", worker.kind, _sentence(error))  # noqa: TRY400 (the sentence says it)
        except BaseException:
            logger.exception("a %s worker could not begin", worker.kind)
        finally:
            os._exit(EX_TEMPFAIL)

    def _watch(self, wakeup: socket.socket) -> None:
        for key, _ in self.selector.select(timeout=self._select_timeout()):
            if key.fileobj is wakeup:
                self._read_signals(wakeup)
            elif key.data in self.workers:
                self._receive(key.data)
        self._reap()
        log.tell_dropped()
        now = time.monotonic()
        for restart in [restart for restart in self.restarts if restart.due <= now]:
            self.restarts.remove(restart)
            self._fork(restart.kind, restart.endpoints, restart.slot)
        self._hand_over()
        self._retire_old()
        if self.reload_requested and not self._still_starting(now):
            self.reload_requested = False
            self._reload()
        elif self.stop_deadline is None and (changed := self.watch.changed()):
            self._reload(changed)
        self._kill([worker for worker in self.workers if now - worker.last_heard > HANG_LIMIT])
        if self.stop_deadline is not None:
            self._tell_to_stop()
            if now > self.stop_deadline:
                self._kill(self.workers)

    def _still_starting(self, now: float) -> bool:
        """Return True while the newest workers still have time to begin.

        A further reload waits for them: a storm of signals would otherwise be as many generations at once.
        """
        new = [worker for worker in self.workers if worker.generation == self.generation and not worker.ready]
        return any(now < worker.started + _START_LIMIT for worker in new)

    def _select_timeout(self) -> float:
        """Return the seconds until there is something to do without being woken."""
        if self.restarts or self.stop_deadline is not None or self.reload_requested or self._not_retired():
            soonest = min((restart.due for restart in self.restarts), default=math.inf)
            return min(0.5, max(0.0, soonest - time.monotonic()))
        if self.given_up:  # the worker that is to take them has to read on first
            return 0.05
        return min(5.0, max(0.0, self.watch.due - time.monotonic()))

    def _receive(self, worker: _Worker) -> None:
        while (packet := control_channel.receive_packet(worker.control)) is not None:
            if not packet.word:  # it is about to be reaped
                self.selector.unregister(worker.control)
                return
            worker.last_heard = time.monotonic()
            if packet.word == control_channel.TAKE and packet.descriptor >= 0:
                self.given_up.append(packet)
                continue
            packet.close()
            if packet.word == control_channel.READY and not worker.ready:
                worker.ready = True
                self._announce(worker)

    def _hand_over(self) -> None:
        """Give each connection that a retired worker gave up to a current worker, in turn."""
        takers = [
            worker
            for worker in self.workers
            if worker.kind is WorkerKind.POLICY and worker.ready and worker.generation == self.generation
        ]
        if not takers and self.stop_deadline is None:
            return  # they wait until somebody is ready
        waiting, self.given_up = self.given_up, []
        for number, packet in enumerate(waiting):
            first = number % len(takers) if takers else 0
            if any(
                control_channel.send_packet(taker.control, *packet.parts) for taker in takers[first:] + takers[:first]
            ):
                packet.close()
            elif self.stop_deadline is None:
                self.given_up.append(packet)
            else:
                packet.close()

    def _announce(self, worker: _Worker) -> None:
        for endpoint in worker.endpoints:
            if endpoint not in self.announced:
                self.announced.add(endpoint)
                _print_error(f"listening {endpoint[0]} {bound(endpoint[1], self.sockets[endpoint])}")

    def _retire_old(self) -> None:
        """Once every current worker serves, let the old ones retire, and close the sockets no longer wanted."""
        current = [worker for worker in self.workers if worker.generation == self.generation]
        if (
            self.stop_deadline is not None
            or self.restarts
            or not current
            or not all(worker.ready for worker in current)
        ):
            return
        for worker in self._not_retired():
            worker.retired = control_channel.send_packet(
                worker.control, control_channel.RETIRE
            )  # else it is told at the next turn
        if not self.up:
            self.up = True
            addresses = {kind: bound(listen, self.sockets[kind, listen]) for kind, listen in reversed(self.sockets)}
            try:
                self.on_up(addresses)
            except OSError as error:  # who wanted to know has gone
                logger.error("the service is up, and cannot say so: %s", _sentence(error))  # noqa: TRY400 (the sentence says it)
        wanted = self._wanted(self.plan)
        self._close([endpoint for endpoint in self.sockets if endpoint not in wanted])

    def _not_retired(self) -> list[_Worker]:
        """Return the workers of earlier generations that have not been told to retire."""
        return [worker for worker in self.workers if worker.generation < self.generation and not worker.retired]

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for worker in [worker for worker in self.workers if worker.pid == pid]:
                self._forget(worker, os.waitstatus_to_exitcode(status))

    def _forget(self, worker: _Worker, status: int) -> None:
        """Forget a worker that has ended, and have it replaced unless it was meant to end."""
        self.workers.remove(worker)
        if worker.control in self.selector.get_map():
            self._receive(worker)  # its last words may be connections
        if worker.control in self.selector.get_map():
            self.selector.unregister(worker.control)
        worker.control.close()
        if worker.kind is WorkerKind.POLICY and worker.generation == self.generation:
            self.balance.clear(worker.slot)
        if worker.retired or worker.generation < self.generation or self.stop_deadline is not None:
            return
        if not worker.ready and self._never_worked(worker.kind):
            self._give_up(worker.kind)
            return
        logger.error("a %s worker (pid %d) ended with status %d and is replaced", worker.kind, worker.pid, status)
        quick = worker.started + 5 > time.monotonic()
        self._schedule_restart(worker.kind, worker.endpoints, worker.slot, quick=quick)

    def _never_worked(self, kind: WorkerKind) -> bool:
        return not self.up and not any(worker.ready for worker in self.workers if worker.kind is kind)

    def _give_up(self, kind: WorkerKind) -> None:
        """Stop, because none ever worked: the reason is in the log, and trying again would only repeat it."""
        self.failed = True
        self._stop()
        logger.error("a %s worker could not start; stopping", kind)

    def _schedule_restart(self, kind: WorkerKind, endpoints: tuple[Endpoint, ...], slot: int, *, quick: bool) -> None:
        """Have a worker started again: now, or after a pause if the last one ended too `quick`ly."""
        failures = self.quick_deaths.get(endpoints, 0) + 1 if quick else 0
        self.quick_deaths[endpoints] = failures
        delay = min(MAX_RESTART_DELAY, 2.0**failures) if failures else 0.0
        self.restarts.append(_Restart(kind, endpoints, slot, time.monotonic() + delay))

    def _kill(self, workers: list[_Worker]) -> None:
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
            logger.error("a %s worker (pid %d) does not end or answer and is killed", worker.kind, worker.pid)

    # -- reload and stop ----------------------------------------------------------------------------------------

    def _reload(self, changed: Sequence[str] = ()) -> None:
        """Read everything again and start new workers with it, or log why not and go on with what is in force.

        Where tables and keys have `changed`, the configuration itself is not read again; Postfix is asked again.
        """
        if self.stop_deadline is not None:
            return
        file_states: dict[str, watched_files.FileState] = {}
        try:
            with watched_files.recording() as file_states:
                plan = prepare(refreshed(self.plan.config) if changed else self.load(), old=self.plan)
            process_user = find_process_user(plan.config.user, plan.config.group)
            balance = ConnectionBalance(plan.config.policy.workers)
            self._open(plan)  # last: from here on there is no way back
        except (ConfigError, LookupError, OSError) as error:
            for line in (_sentence(error) if isinstance(error, OSError) else str(error)).splitlines():
                logger.error("not reloaded: %s", line)  # noqa: TRY400 (the sentence says it)
            # Also what only the refused one names: it may be mended there.
            self.watch = FileWatch({**self.watch.known, **file_states})
            return
        self.watch = FileWatch(file_states)
        self.plan, self.process_user = plan, process_user
        _log(plan)
        logger.info("reloaded%s", f": {', '.join(changed)} changed" if changed else "")
        self._start(plan, balance)

    def _stop(self) -> None:
        self.stop_deadline = time.monotonic() + _STOP_LIMIT
        self.restarts.clear()
        self._tell_to_stop()

    def _tell_to_stop(self) -> None:
        """Tell all workers to stop, each once; those that cannot be told now are told at the next turn."""
        for worker in self.workers:
            worker.stopped = worker.stopped or control_channel.send_packet(worker.control, control_channel.STOP)


def _is_gone(endpoint: Endpoint) -> bool:
    """Return True if somebody has removed the socket's file, so that nobody can connect any more."""
    path = endpoint[1].path
    return bool(path) and not Path(path).exists()


def _shut(endpoint: Endpoint, listener: socket.socket) -> None:
    """Close the listener and remove its file. A file that cannot be removed stays: the next start finds it stale."""
    listener.close()
    if endpoint[1].path:
        try:
            remove_socket(endpoint[1].path)
        except OSError as error:
            logger.error("cannot remove %s: %s", endpoint[1].path, error.strerror)  # noqa: TRY400 (the sentence says it)


def _print_error(text: str) -> None:
    """Print `text` on standard error; a reader who has gone, or a full disk, keeps nobody from serving."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def _sentence(error: OSError) -> str:
    """Return the error as a sentence: the one it was raised with, or the system's own."""
    if error.errno is None or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _log(plan: Plan) -> None:
    """Log as the plan wants, beginning with its warnings."""
    log.setup(plan.config.log.level, syslog=plan.config.log.syslog, name=plan.config.log.syslog_name)
    for warning in (*plan.warnings, *plan.config.drift):
        logger.warning("%s", warning)


def _make_state_folder(url: str, process_user: ProcessUser | None) -> None:
    """Make the folder of the embedded store, which a worker that is no longer root could not. Raises OSError."""
    if process_user is not None:
        make_state_folder(url, (process_user.uid, process_user.gid))
