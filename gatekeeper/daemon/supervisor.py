# SPDX-License-Identifier: GPL-3.0-or-later
"""The parent: opens the sockets, forks the workers, replaces what dies, stops in order.

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
from gatekeeper.config.config_file import Config
from gatekeeper.core import log, watched_files
from gatekeeper.core.problem import ConfigError
from gatekeeper.core.watched_files import FileWatch
from gatekeeper.daemon import control_channel
from gatekeeper.daemon.listening_sockets import bound, open_listener
from gatekeeper.daemon.worker import (
    EX_TEMPFAIL,
    STOP_TIMEOUT,
    ProcessUser,
    WorkerKind,
    allow_connections,
    block_signals,
    find_identity,
    run_worker,
)
from gatekeeper.policy.connection_balance import ConnectionBalance
from gatekeeper.postfix.listen_address import ListenAddress

logger = logging.getLogger(__name__)

EX_CONFIG = 78
SILENCE = 60.0
"""Seconds without a sign of life after which a worker counts as hanging and is killed."""
SLOWEST_RESTART = 30.0
"""Seconds to wait at most before a worker that keeps dying is started again."""

_START = 10.0
"""Seconds that new workers have to begin before a signal to reload goes before them."""
_PATIENCE = STOP_TIMEOUT + 2
"""Seconds from the order to stop until whoever is left is killed."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD)

Place = tuple[WorkerKind, ListenAddress]


@dataclass(slots=True, eq=False)
class _Worker:
    """One worker process as the parent sees it. Times are of the monotonic clock."""

    kind: WorkerKind
    places: tuple[Place, ...]
    generation: int
    pid: int
    control: socket.socket
    seat: int
    started: float
    heard: float
    ready: bool = False
    retired: bool = False
    stopped: bool = False  # it has been told to


@dataclass(slots=True)
class _Vacancy:
    """A worker to be started again at `due`."""

    kind: WorkerKind
    places: tuple[Place, ...]
    seat: int
    due: float


def run(
    load: Callable[[], Config],
    up: Callable[[Mapping[WorkerKind, ListenAddress]], None],
    *,
    policy: bool = True,
    milter: bool = True,
    detached: bool = False,
) -> int:
    """Run the service in the foreground until a signal ends it; the exit status of the command (0, 75, 78).

    `load` reads the configuration, now and at each reload; `up` is called once, when every worker serves, with one
    address of each kind. `detached` workers let go of standard input and output once they serve.
    """
    try:
        with watched_files.recording() as noted:
            plan = prepare(load(), lenient=True)
        identity = find_identity(plan.config.user, plan.config.group)
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
            _say("no milter: pymilter is not installed; pip install 'gatekeeper[milter]' adds it")
    if not kinds:
        return EX_TEMPFAIL
    try:
        share = ConnectionBalance(plan.config.policy.workers)
        supervisor = Supervisor(load, up, plan, tuple(kinds), identity, FileWatch(noted), share, detached=detached)
    except OSError as error:  # neither descriptors nor memory left
        _say(_why(error))
        return EX_TEMPFAIL
    return supervisor.run()


@dataclass(slots=True)
class Supervisor:
    """The parent's state: what is planned, which sockets are open, who works."""

    load: Callable[[], Config]
    say_up: Callable[[Mapping[WorkerKind, ListenAddress]], None]
    plan: Plan
    kinds: tuple[WorkerKind, ...]
    identity: ProcessUser | None
    sources: FileWatch
    share: ConnectionBalance
    homeless: list[control_channel.ControlPacket] = field(
        default_factory=list
    )  # connections that retired workers gave up
    generation: int = 0
    detached: bool = False
    sockets: dict[Place, socket.socket] = field(default_factory=dict)
    workers: list[_Worker] = field(default_factory=list)
    vacancies: list[_Vacancy] = field(default_factory=list)
    announced: set[Place] = field(default_factory=set)
    stopping: float | None = None  # the deadline, once we are stopping
    asked: bool = False  # to read everything again
    up: bool = False  # every worker has served at least once
    failed: bool = False
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    quick_deaths: dict[tuple[Place, ...], int] = field(default_factory=dict)
    signals: tuple[socket.socket, ...] = ()  # both ends: set_wakeup_fd holds only a number, and workers close them

    def run(self) -> int:
        """Open, fork, watch, stop. Returns the exit status."""
        allow_connections()  # connections pass through here when they change hands
        try:
            _make_state_folder(self.plan.config.store.url, self.identity)
            self._open(self.plan)
            wakeup = self._catch_signals()
        except OSError as error:
            _say(_why(error))
            self._close(list(self.sockets))
            return EX_TEMPFAIL
        try:
            self._start(self.plan, self.share)
            while self.workers or (self.vacancies and self.stopping is None):
                self._watch(wakeup)
        finally:
            self._close(list(self.sockets))
        return EX_TEMPFAIL if self.failed else 0

    # -- sockets ------------------------------------------------------------------------------------------------

    def _wanted(self, plan: Plan) -> list[Place]:
        listen = {WorkerKind.POLICY: plan.config.policy.listen, WorkerKind.MILTER: plan.config.milter.listen}
        return [(kind, address) for kind in self.kinds for address in listen[kind]]

    def _open(self, plan: Plan) -> None:
        """Open what `plan` wants and is not open yet, or has lost its file; all or none. Raises OSError."""
        opened: dict[Place, socket.socket] = {}
        try:
            for place in self._wanted(plan):
                if place not in opened and (place not in self.sockets or _is_gone(place)):
                    kind, address = place
                    section = plan.config.policy if kind is WorkerKind.POLICY else plan.config.milter
                    owner = -1 if self.identity is None else self.identity.uid
                    opened[place] = open_listener(address, section.socket_mode, section.socket_group, owner)
        except OSError:
            for place, listener in opened.items():
                _shut(place, listener)
            raise
        # Old ones are dropped only now: a worker that is forked after a refusal needs a listener for each place, even
        # if its file is gone.
        for place in opened.keys() & self.sockets.keys():
            self.sockets.pop(place).close()
            self.announced.discard(place)
        self.sockets.update(opened)

    def _close(self, places: list[Place]) -> None:
        for place in places:
            self.announced.discard(place)
            _shut(place, self.sockets.pop(place))

    # -- signals ------------------------------------------------------------------------------------------------

    def _catch_signals(self) -> socket.socket:
        """Signals become bytes on a socket that the selector watches: nothing happens between two instructions."""
        self.signals = ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self.selector.register(ours, selectors.EVENT_READ)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)
        return ours

    def _signalled(self, wakeup: socket.socket) -> None:
        try:
            numbers = wakeup.recv(4096)
        except OSError:  # no memory for a moment: they are still there, and wake us again
            return
        for number in numbers:
            if number in (signal.SIGHUP, signal.SIGUSR1):  # USR1: the unit of Debian's opendkim reloads by it
                self.asked = True
            elif number in (signal.SIGTERM, signal.SIGINT):
                if self.stopping is None:
                    self._stop()
                elif time.monotonic() > self.stopping - _PATIENCE + 1:
                    # Not within a second of the first: a signal to the whole process group may come to us twice.
                    self._kill(self.workers)

    # -- workers ------------------------------------------------------------------------------------------------

    def _start(self, plan: Plan, share: ConnectionBalance) -> None:
        """Fork a new generation of workers for `plan`, which share connections by `share`."""
        self.generation += 1
        self.vacancies.clear()
        self.share = share
        # The plan before this one, whose tables refer to each other, goes; what is left is shared with the workers,
        # whose collectors shall not write to it.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        wanted = self._wanted(plan)
        if WorkerKind.POLICY in self.kinds:
            places = tuple(place for place in wanted if place[0] is WorkerKind.POLICY)
            for seat in range(plan.config.policy.workers):
                self._fork(WorkerKind.POLICY, places, seat)
        for place in wanted:
            if place[0] is WorkerKind.MILTER:  # libmilter serves one address a process
                for _ in range(plan.config.milter.workers):
                    self._fork(WorkerKind.MILTER, (place,))

    def _fork(self, kind: WorkerKind, places: tuple[Place, ...], seat: int = 0) -> None:
        """Fork a worker. If that cannot be done now its place stays vacant; if none ever worked, we stop."""
        if self.stopping is not None:
            return
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # who read it has gone, or the disk is full
                stream.flush()
        now = time.monotonic()
        ours = None
        try:
            ours, theirs = control_channel.control_pair()
            worker = _Worker(kind, places, self.generation, 0, ours, seat, now, now)
            # Before the fork, which is the last thing that may fail: a worker that nobody hears is one too many.
            self.selector.register(ours, selectors.EVENT_READ, worker)
            with theirs:
                # Signals wait until the child has undone our handling: what is meant for it would be told to us.
                before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
                try:
                    worker.pid = os.fork()
                    if worker.pid == 0:
                        self._be(worker, theirs, before)
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, before)
        except OSError as error:
            if ours is not None:
                with suppress(KeyError):
                    self.selector.unregister(ours)
                ours.close()
            logger.error("cannot fork a %s worker: %s", kind, _why(error))  # noqa: TRY400 (the sentence says it)
            if self._never_worked(kind):
                self._give_up(kind)
            else:
                self._leave_vacant(kind, places, seat, quick=True)
            return
        self.workers.append(worker)

    def _be(self, worker: _Worker, theirs: socket.socket, mask: set[int]) -> NoReturn:
        """Be `worker`, in the process just forked for it; `mask` are the signals that were blocked before."""
        try:
            block_signals()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            self.selector.close()
            for sock in (*self.signals, worker.control, *(other.control for other in self.workers)):
                sock.close()
            for packet in self.homeless:
                packet.close()
            for place, listener in self.sockets.items():
                if place not in worker.places:  # held open here, it would take connections that nobody answers
                    listener.close()
            listeners = [self.sockets[place] for place in worker.places]
            seat = self.share.slot(worker.seat)
            run_worker(worker.kind, self.plan, listeners, theirs, self.identity, seat, detached=self.detached)
        except OSError as error:
            logger.error("a %s worker could not begin: %s", worker.kind, _why(error))  # noqa: TRY400 (the sentence says it)
        except BaseException:
            logger.exception("a %s worker could not begin", worker.kind)
        finally:
            os._exit(EX_TEMPFAIL)

    def _watch(self, wakeup: socket.socket) -> None:
        for key, _ in self.selector.select(timeout=self._patience()):
            if key.fileobj is wakeup:
                self._signalled(wakeup)
            elif key.data in self.workers:
                self._heard(key.data)
        self._reap()
        now = time.monotonic()
        for vacancy in [vacancy for vacancy in self.vacancies if vacancy.due <= now]:
            self.vacancies.remove(vacancy)
            self._fork(vacancy.kind, vacancy.places, vacancy.seat)
        self._house()
        self._settle()
        if self.asked and not self._starting(now):
            self.asked = False
            self._reload()
        elif self.stopping is None and (changed := self.sources.changed()):
            self._reload(changed)
        self._kill([worker for worker in self.workers if now - worker.heard > SILENCE])
        if self.stopping is not None:
            self._tell_to_stop()
            if now > self.stopping:
                self._kill(self.workers)

    def _starting(self, now: float) -> bool:
        """True while workers have a moment more to begin. Another generation waits for them: a storm of signals would
        else be as many generations at once.
        """
        new = [worker for worker in self.workers if worker.generation == self.generation and not worker.ready]
        return any(now < worker.started + _START for worker in new)

    def _patience(self) -> float:
        """Seconds until there is something to do without being told."""
        if self.vacancies or self.stopping is not None or self.asked or self._not_retired():
            soonest = min((vacancy.due for vacancy in self.vacancies), default=math.inf)
            return min(0.5, max(0.0, soonest - time.monotonic()))
        if self.homeless:  # whoever is to take them has to read on first
            return 0.05
        return min(5.0, max(0.0, self.sources.due - time.monotonic()))

    def _heard(self, worker: _Worker) -> None:
        while (packet := control_channel.receive_packet(worker.control)) is not None:
            if not packet.word:  # it is about to be reaped
                self.selector.unregister(worker.control)
                return
            worker.heard = time.monotonic()
            if packet.word == control_channel.TAKE and packet.descriptor >= 0:
                self.homeless.append(packet)
                continue
            packet.close()
            if packet.word == control_channel.READY and not worker.ready:
                worker.ready = True
                self._announce(worker)

    def _house(self) -> None:
        """Give each connection that was given up to a worker of today, in turn."""
        hosts = [
            worker
            for worker in self.workers
            if worker.kind is WorkerKind.POLICY and worker.ready and worker.generation == self.generation
        ]
        if not hosts and self.stopping is None:
            return  # they wait until somebody is ready
        waiting, self.homeless = self.homeless, []
        for number, packet in enumerate(waiting):
            turn = number % len(hosts) if hosts else 0
            if any(control_channel.send_packet(host.control, *packet.parts) for host in hosts[turn:] + hosts[:turn]):
                packet.close()
            elif self.stopping is None:
                self.homeless.append(packet)
            else:
                packet.close()

    def _announce(self, worker: _Worker) -> None:
        for place in worker.places:
            if place not in self.announced:
                self.announced.add(place)
                _say(f"listening {place[0]} {bound(place[1], self.sockets[place])}")

    def _settle(self) -> None:
        """Once every worker of today serves, let the old ones retire, and close what is no longer wanted."""
        current = [worker for worker in self.workers if worker.generation == self.generation]
        if self.stopping is not None or self.vacancies or not current or not all(worker.ready for worker in current):
            return
        for worker in self._not_retired():
            worker.retired = control_channel.send_packet(
                worker.control, control_channel.RETIRE
            )  # else it is told at the next turn
        if not self.up:
            self.up = True
            addresses = {kind: bound(listen, self.sockets[kind, listen]) for kind, listen in reversed(self.sockets)}
            try:
                self.say_up(addresses)
            except OSError as error:  # who wanted to know has gone
                logger.error("the service is up, and cannot say so: %s", _why(error))  # noqa: TRY400 (the sentence says it)
        wanted = self._wanted(self.plan)
        self._close([place for place in self.sockets if place not in wanted])

    def _not_retired(self) -> list[_Worker]:
        """The workers of old that have not been told to go."""
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
                self._lost(worker, os.waitstatus_to_exitcode(status))

    def _lost(self, worker: _Worker, status: int) -> None:
        """A worker has ended: forget it, and find another unless it was meant to go."""
        self.workers.remove(worker)
        if worker.control in self.selector.get_map():
            self._heard(worker)  # its last words may be connections
        if worker.control in self.selector.get_map():
            self.selector.unregister(worker.control)
        worker.control.close()
        if worker.kind is WorkerKind.POLICY and worker.generation == self.generation:
            self.share.clear(worker.seat)
        if worker.retired or worker.generation < self.generation or self.stopping is not None:
            return
        if not worker.ready and self._never_worked(worker.kind):
            self._give_up(worker.kind)
            return
        logger.error("a %s worker (pid %d) ended with status %d and is replaced", worker.kind, worker.pid, status)
        quick = worker.started + 5 > time.monotonic()
        self._leave_vacant(worker.kind, worker.places, worker.seat, quick=quick)

    def _never_worked(self, kind: WorkerKind) -> bool:
        return not self.up and not any(worker.ready for worker in self.workers if worker.kind is kind)

    def _give_up(self, kind: WorkerKind) -> None:
        """None ever worked: the reason is in the log, and trying again would only repeat it."""
        logger.error("a %s worker could not start; stopping", kind)
        self.failed = True
        self._stop()

    def _leave_vacant(self, kind: WorkerKind, places: tuple[Place, ...], seat: int, *, quick: bool) -> None:
        """Have somebody started there: now, or after a pause if the last one ended too `quick`ly."""
        failures = self.quick_deaths.get(places, 0) + 1 if quick else 0
        self.quick_deaths[places] = failures
        delay = min(SLOWEST_RESTART, 2.0**failures) if failures else 0.0
        self.vacancies.append(_Vacancy(kind, places, seat, time.monotonic() + delay))

    def _kill(self, workers: list[_Worker]) -> None:
        for worker in workers:
            logger.error("a %s worker (pid %d) does not end or answer and is killed", worker.kind, worker.pid)
            os.kill(worker.pid, signal.SIGKILL)

    # -- reload and stop ----------------------------------------------------------------------------------------

    def _reload(self, changed: Sequence[str] = ()) -> None:
        """Read everything again and start anew with it, or say why not and go on. Where tables and keys have `changed`,
        the configuration stays what it is.
        """
        if self.stopping is not None:
            return
        noted: dict[str, watched_files.FileState] = {}
        try:
            with watched_files.recording() as noted:
                plan = prepare(self.plan.config if changed else self.load(), old=self.plan)
            identity = find_identity(plan.config.user, plan.config.group)
            share = ConnectionBalance(plan.config.policy.workers)
            self._open(plan)  # last: from here on there is no way back
        except (ConfigError, LookupError, OSError) as error:
            for line in (_why(error) if isinstance(error, OSError) else str(error)).splitlines():
                logger.error("not reloaded: %s", line)  # noqa: TRY400 (the sentence says it)
            # Also what only the refused one names: it may be mended there.
            self.sources = FileWatch({**self.sources.known, **noted})
            return
        self.sources = FileWatch(noted)
        self.plan, self.identity = plan, identity
        _log(plan)
        logger.info("reloaded%s", f": {', '.join(changed)} changed" if changed else "")
        self._start(plan, share)

    def _stop(self) -> None:
        self.stopping = time.monotonic() + _PATIENCE
        self.vacancies.clear()
        self._tell_to_stop()

    def _tell_to_stop(self) -> None:
        """Tell all, each once; who cannot be told now is told at the next turn."""
        for worker in self.workers:
            worker.stopped = worker.stopped or control_channel.send_packet(worker.control, control_channel.STOP)


def _is_gone(place: Place) -> bool:
    """True if somebody has removed the socket's file, so that nobody can come any more."""
    path = place[1].path
    return bool(path) and not Path(path).exists()


def _shut(place: Place, listener: socket.socket) -> None:
    """Close the listener, and remove its file. One that cannot be removed stays: the next start takes it for stale."""
    listener.close()
    if place[1].path:
        try:
            Path(place[1].path).unlink(missing_ok=True)
        except OSError as error:
            logger.error("cannot remove %s: %s", place[1].path, error.strerror)  # noqa: TRY400 (the sentence says it)


def _say(text: str) -> None:
    """Print it on standard error; a reader who has gone, or a full disk, keeps nobody from serving."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def _why(error: OSError) -> str:
    """A sentence: what was raised as one, or what the system says."""
    if error.errno is None or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _log(plan: Plan) -> None:
    """Log as the plan wants, beginning with its warnings."""
    log.setup(plan.config.log.level, syslog=plan.config.log.syslog, name=plan.config.log.syslog_name)
    for warning in (*plan.warnings, *plan.config.drift):
        logger.warning("%s", warning)


def _make_state_folder(url: str, identity: ProcessUser | None) -> None:
    """Make the folder of the embedded store, which a worker that is no longer root could not. Raises OSError."""
    folder = Path(url.removeprefix("sqlite:")).parent
    if identity is None or not url.startswith("sqlite:/") or folder.exists():
        return
    folder.mkdir(mode=0o750, parents=True)
    try:
        os.chown(folder, identity.uid, identity.gid)
    except OSError:
        folder.rmdir()  # the next start would take it for one that is as it should be
        raise
