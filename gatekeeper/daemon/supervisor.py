# SPDX-License-Identifier: GPL-3.0-or-later
"""The parent process: opens the sockets, forks the workers, replaces those that die, reloads and stops.

It keeps its privileges, so it reads nothing from the network: it reads the tables, hands them to its workers by fork,
and watches. The keys it only holds for them (daemon/loading.py). It never imports pymilter. Signals: TERM and INT stop
(workers have 10 s for what they hold; another signal, a second later or more, cuts that short), HUP reloads: new
workers on the same sockets, then the old ones retire, and the policy connections that they hold pass through here to
the new ones. A configuration that cannot be used is refused with its errors; nothing is changed by that, and the old
one goes on.

Any system call may fail, for want of memory, descriptors or processes. A start that cannot be made is refused, and
leaves nothing behind; what fails later costs no service that there was: it is put off and tried again. A child ends by
os._exit, whatever happens to it: it must never come back into the parent's code, which would remove the sockets. What
it may hold of the parent's stands in daemon/open_descriptors.py.

A table or key that changes does the same without a signal, once it has settled (core/watched_files.py). The
configuration file itself is read at a signal only: half an edit of it is not to be taken for one.
"""

import gc
import importlib.util
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from gatekeeper.app.plan import Plan, observed
from gatekeeper.config.config_file import Config
from gatekeeper.core import log, safe_files
from gatekeeper.core.problem import ConfigError
from gatekeeper.core.watched_files import FileState, FileWatch
from gatekeeper.daemon import control_channel, open_descriptors
from gatekeeper.daemon.endpoints import Endpoint, Endpoints
from gatekeeper.daemon.listening_sockets import bound
from gatekeeper.daemon.loading import KeyMemory, load_plan
from gatekeeper.daemon.open_descriptors import Inherited
from gatekeeper.daemon.orphans import wait_for_orphans
from gatekeeper.daemon.refused_reload import RefusedReload
from gatekeeper.daemon.restarts import Restarts
from gatekeeper.daemon.wakeup import SIGNALS, Wakeup, reset
from gatekeeper.daemon.worker import (
    EX_TEMPFAIL,
    STOP_TIMEOUT,
    ProcessUser,
    WorkerKind,
    find_process_user,
    preload_code,
    raise_file_limit,
    run_worker,
)
from gatekeeper.daemon.worker_processes import SILENCE, Post, WorkerProcess, is_crowded, surplus
from gatekeeper.policy.connection_balance import ConnectionBalance
from gatekeeper.postfix.listen_address import ListenAddress
from gatekeeper.stores.state_owner import make_state_folder

logger = logging.getLogger(__name__)

EX_CONFIG = 78
HANG_LIMIT = 60.0
"""Seconds without a sign of life after which a worker is killed, whatever may be the reason."""

_START_LIMIT = 10.0
"""Seconds that new workers have to begin before a signal to reload goes before them."""
_STOP_LIMIT = STOP_TIMEOUT + 2
"""Seconds from the order to stop until whoever is left is killed."""


def run(
    load: Callable[[], Config],
    up: Callable[[Mapping[WorkerKind, ListenAddress], Config], None],
    *,
    policy: bool = True,
    milter: bool = True,
    detached: bool = False,
) -> int:
    """Run the service in the foreground until a signal ends it; return the exit status (0, 75, 78).

    `load` reads the configuration, now and at each reload; `up` is called once, when every worker serves, with one
    address of each kind and the configuration. `detached` workers let go of standard input and output once they serve.
    """
    file_states: dict[str, FileState] = {}
    try:
        inherited = open_descriptors.open_now()
        plan, keys = load_plan(load, lambda: open_descriptors.close_inherited(inherited), file_states)
        process_user = find_process_user(plan.config.user, plan.config.group)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EX_CONFIG
    except LookupError as error:
        print(error.args[0], file=sys.stderr)
        return EX_CONFIG
    except OSError as error:
        _print_error(f"cannot read the configuration: {_sentence(error)}")
        return EX_TEMPFAIL
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
            load,
            up,
            plan,
            keys,
            Endpoints(tuple(kinds)),
            process_user,
            FileWatch(file_states),
            balance,
            inherited,
            detached=detached,
        )
    except OSError as error:  # neither descriptors nor memory left
        _print_error(_sentence(error))
        return EX_TEMPFAIL
    return supervisor.run()


@dataclass(slots=True)
class Supervisor:
    """The parent's state: the plan in force, the open sockets, the workers.

    `inherited` is what whoever started us had open.
    """

    load: Callable[[], Config]
    on_up: Callable[[Mapping[WorkerKind, ListenAddress], Config], None]
    plan: Plan
    keys: KeyMemory
    endpoints: Endpoints
    process_user: ProcessUser | None
    watch: FileWatch
    balance: ConnectionBalance
    inherited: Inherited
    given_up: list[control_channel.ControlPacket] = field(
        default_factory=list
    )  # connections that retired workers gave up
    generation: int = 0
    detached: bool = False
    workers: list[WorkerProcess] = field(default_factory=list)
    restarts: Restarts[Post] = field(default_factory=Restarts)
    announced: set[Endpoint] = field(default_factory=set)
    stop_deadline: float | None = None  # the deadline, once we are stopping
    reload_requested: bool = False  # a signal asked to read everything again
    refused: RefusedReload = field(default_factory=RefusedReload)
    up: bool = False  # every worker has served at least once
    failed: bool = False
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    wakeup: Wakeup | None = None

    def run(self) -> int:
        """Open, fork, watch, stop. Returns the exit status."""
        raise_file_limit()  # connections pass through here when they change hands
        try:
            wait_for_orphans(lambda: self._open(self.plan, self.process_user))
            wakeup = self._catch_signals()
        except OSError as error:
            _print_error(_sentence(error))
            self._close(list(self.endpoints.sockets))
            return EX_TEMPFAIL
        try:
            self._start(self.plan, self.balance)
            while self.workers or (self.restarts and self.stop_deadline is None):
                self._watch(wakeup)
        finally:
            self._close(list(self.endpoints.sockets))
        return EX_TEMPFAIL if self.failed else 0

    # -- sockets ------------------------------------------------------------------------------------------------

    def _open(self, plan: Plan, process_user: ProcessUser | None) -> None:
        """Make what `plan` needs outside: folders and sockets; all or nothing. Raises OSError."""
        wanted = self.endpoints.wanted(plan, process_user)
        made: list[Path] = []
        try:
            if process_user is not None:  # workers that are no longer root could not
                made += make_state_folder(plan.config.store.url, (process_user.uid, process_user.gid))
            if plan.config.sockets is not None:
                made += plan.config.sockets.make_folder_for(address for _, address in wanted)
            opened = self.endpoints.open(wanted)
        except OSError:
            safe_files.remove_folders(made)
            raise
        self.announced.difference_update(opened)

    def _close(self, endpoints: list[Endpoint]) -> None:
        self.announced.difference_update(endpoints)
        self.endpoints.close(endpoints)

    # -- signals ------------------------------------------------------------------------------------------------

    def _catch_signals(self) -> Wakeup:
        wakeup = self.wakeup = Wakeup()
        self.selector.register(wakeup.socket, selectors.EVENT_READ)
        wakeup.catch()
        return wakeup

    def _read_signals(self, wakeup: Wakeup) -> None:
        for number in wakeup.read():
            if number in (signal.SIGHUP, signal.SIGUSR1):  # USR1: the unit of Debian's opendkim reloads by it
                self.reload_requested = True
            elif number in (signal.SIGTERM, signal.SIGINT):
                if self.stop_deadline is None:
                    self._stop()
                elif time.monotonic() > self.stop_deadline - _STOP_LIMIT + 1:
                    # Not within a second of the first: a signal to the whole process group may come to us twice.
                    self._kill(self.workers, "is not waited for")

    # -- workers ------------------------------------------------------------------------------------------------

    def _start(self, plan: Plan, balance: ConnectionBalance) -> None:
        """Fork a new generation of workers for `plan`, which share connections evenly by `balance`."""
        self.generation += 1
        self.restarts.forgive()
        self.balance = balance
        with suppress(ImportError, OSError):  # a worker will say what is missing, and the parent lives on
            preload_code(plan, self.endpoints.kinds)
        # The plan before this one, whose tables refer to each other, goes; what is left is shared with the workers,
        # whose collectors shall not write to it.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        wanted = list(self.endpoints.wanted(plan, self.process_user))
        policy = tuple(endpoint for endpoint in wanted if endpoint[0] is WorkerKind.POLICY)
        for slot in range(plan.config.policy.workers if policy else 0):
            self._fork(Post(WorkerKind.POLICY, policy, slot))
        for endpoint in wanted:
            if endpoint[0] is WorkerKind.MILTER:  # libmilter serves one address a process
                for slot in range(plan.config.milter.workers):
                    self._fork(Post(WorkerKind.MILTER, (endpoint,), slot))

    def _fork(self, post: Post) -> None:
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
            worker = WorkerProcess(post, self.generation, 0, ours, now, now)
            # Before the fork, which is the last thing that may fail: a worker that nobody hears is one too many.
            self.selector.register(ours, selectors.EVENT_READ, worker)
            with theirs:
                # Signals wait until the child has undone our handling: what is meant for it would be told to us.
                before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
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
            logger.error("cannot fork a %s worker: %s", post.kind, _sentence(error))  # noqa: TRY400 (the sentence says it)
            if self._never_worked(post.kind):
                self._give_up(post.kind)
            else:
                self.restarts.add(post, now, quick=True)
            return
        self.workers.append(worker)

    def _become(self, worker: WorkerProcess, theirs: socket.socket, mask: set[int]) -> NoReturn:
        """Become `worker`, in the process just forked for it; `mask` are the signals that were blocked before."""
        kind, mine = worker.post.kind, worker.post.endpoints
        try:
            reset()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            worker.control.close()
            self._let_go(mine)
            listeners = [self.endpoints.sockets[endpoint] for endpoint in mine]
            slot = self.balance.slot(worker.post.slot)
            plan = self.plan
            if kind is WorkerKind.MILTER:
                plan = self.keys.plan_with_keys(plan)
            else:
                self.keys.close()
            run_worker(kind, plan, listeners, theirs, self.process_user, slot, detached=self.detached)
        except OSError as error:
            logger.error("a %s worker could not begin: %s", kind, _sentence(error))  # noqa: TRY400 (the sentence says it)
        except BaseException:
            logger.exception("a %s worker could not begin", kind)
        finally:
            os._exit(EX_TEMPFAIL)

    def _let_go(self, mine: Sequence[Endpoint] = ()) -> None:
        """Close in a child what it must not hold (open_descriptors.py); the listeners of `mine` stay."""
        open_descriptors.close_inherited(self.inherited)
        self.selector.close()
        if self.wakeup is not None:
            self.wakeup.close()
        for other in self.workers:
            other.control.close()
        for _, listener in self.endpoints.outgoing:
            listener.close()
        for packet in self.given_up:
            packet.close()
        for endpoint, listener in self.endpoints.sockets.items():
            if endpoint not in mine:  # held open here, it would take connections that nobody answers
                listener.close()

    def _watch(self, wakeup: Wakeup) -> None:
        for key, _ in self.selector.select(timeout=self._select_timeout()):
            if key.fileobj is wakeup.socket:
                self._read_signals(wakeup)
            elif key.data in self.workers:
                self._receive(key.data)
        self._reap()
        log.tell_dropped()
        now = time.monotonic()
        for post in self.restarts.take_due(now, self._is_alone):
            self._fork(post)
        self._hand_over()
        self._retire_old()
        self._send_surplus_away(now)
        self._end_hanging(now)
        may_reload = self.stop_deadline is None and not is_crowded(self.workers)
        if self.reload_requested and may_reload and not self._still_starting(now):
            self.reload_requested = False
            self._reload()
        elif may_reload and (changed := self.watch.changed()):
            self._reload(changed)
        for line in self.refused.reminders(now):
            logger.error("%s", line)
        if self.stop_deadline is not None:
            self._tell_to_stop()
            if now > self.stop_deadline:
                self._kill(self.workers, "does not end")

    def _is_alone(self, post: Post) -> bool:
        """Return whether no worker of today serves any address of `post`."""
        return not any(
            worker.ready and worker.generation == self.generation and worker.post.shares_with(post)
            for worker in self.workers
        )

    def _end_hanging(self, now: float) -> None:
        """Kill the workers that hang; who waits to be accepted is taken by another, or by the one that follows."""
        for worker in self.workers:
            if now - worker.last_heard > HANG_LIMIT:
                self._kill([worker], "does not answer")
            elif why := worker.why_hanging(now):
                self._kill([worker], why)

    def _still_starting(self, now: float) -> bool:
        """Return True while the newest workers still have time to begin.

        A further reload waits for them: a storm of signals would otherwise be as many generations at once.
        """
        new = [worker for worker in self.workers if worker.generation == self.generation and not worker.ready]
        return any(now < worker.started + _START_LIMIT for worker in new)

    def _select_timeout(self) -> float:
        """Return the seconds until there is something to do without being woken."""
        now = time.monotonic()
        if (
            self.restarts
            or self.stop_deadline is not None
            or self.reload_requested
            or self._not_retired()
            or surplus(self.workers)
            or any(worker.is_silent(now) for worker in self.workers)
        ):
            soonest = self.restarts.soonest(self._is_alone)
            return 0.5 if soonest is None else min(0.5, max(0.0, soonest - now))
        if self.given_up:  # the worker that is to take them has to read on first
            return 0.05
        silent = min((worker.last_heard for worker in self.workers), default=now) + SILENCE
        return max(0.0, min(self.watch.due, silent) - now)

    def _receive(self, worker: WorkerProcess) -> None:
        while (packet := control_channel.receive_packet(worker.control)) is not None:
            if not packet.word:  # it is about to be reaped
                self.selector.unregister(worker.control)
                return
            worker.heard(time.monotonic())
            if packet.word == control_channel.TAKE and packet.descriptor >= 0:
                self.given_up.append(packet)
                continue
            packet.close()
            if packet.word == control_channel.READY and not worker.ready:
                worker.ready = True
                self._announce(worker)

    def _hand_over(self) -> None:
        """Give the connections that retired workers gave up to workers of today."""
        takers = [
            worker.control
            for worker in self.workers
            if worker.post.kind is WorkerKind.POLICY and worker.ready and worker.generation == self.generation
        ]
        if takers or self.stop_deadline is not None:  # else they wait until somebody is ready
            self.given_up = control_channel.pass_on(self.given_up, takers)
            if self.stop_deadline is not None:
                for packet in self.given_up:
                    packet.close()
                self.given_up = []

    def _announce(self, worker: WorkerProcess) -> None:
        for endpoint in worker.post.endpoints:
            if endpoint not in self.announced:
                self.announced.add(endpoint)
                _print_error(f"listening {endpoint[0]} {bound(endpoint[1], self.endpoints.sockets[endpoint])}")

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
            sockets = self.endpoints.sockets
            addresses = {kind: bound(listen, sockets[kind, listen]) for kind, listen in reversed(sockets)}
            logger.info("started: %s", _running(self.plan, sockets))
            try:
                self.on_up(addresses, self.plan.config)
            except OSError as error:  # who wanted to know has gone
                logger.error("the service is up, and cannot say so: %s", _sentence(error))  # noqa: TRY400 (the sentence says it)
        if not self._not_retired():  # nobody is to accept there any more
            wanted = self.endpoints.wanted(self.plan, self.process_user)
            self._close([endpoint for endpoint in self.endpoints.sockets if endpoint not in wanted])
            self.endpoints.close_outgoing()

    def _not_retired(self) -> list[WorkerProcess]:
        """Return the workers of earlier generations that have not been told to retire."""
        return [worker for worker in self.workers if worker.generation < self.generation and not worker.retired]

    def _send_surplus_away(self, now: float) -> None:
        """Have generations leave that have been retired longer than others; who does not is killed."""
        for worker in surplus(self.workers):
            if worker.leave_by is None and control_channel.send_packet(worker.control, control_channel.LEAVE):
                worker.leave_by = now + _STOP_LIMIT
            elif worker.leave_by is not None and now > worker.leave_by:
                self._kill([worker], "does not leave")

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

    def _forget(self, worker: WorkerProcess, status: int) -> None:
        """Forget a worker that has ended, and have it replaced unless it was meant to end."""
        self.workers.remove(worker)
        if worker.control in self.selector.get_map():
            self._receive(worker)  # its last words may be connections
        if worker.control in self.selector.get_map():
            self.selector.unregister(worker.control)
        worker.control.close()
        kind = worker.post.kind
        if kind is WorkerKind.POLICY and worker.generation == self.generation:
            self.balance.clear(worker.post.slot)
        if worker.retired or worker.generation < self.generation or self.stop_deadline is not None:
            return
        if not worker.ready and self._never_worked(kind):
            self._give_up(kind)
            return
        logger.error("a %s worker (pid %d) ended with status %d and is replaced", kind, worker.pid, status)
        now = time.monotonic()
        self.restarts.add(worker.post, now, quick=worker.started + 5 > now)

    def _never_worked(self, kind: WorkerKind) -> bool:
        return not self.up and not any(worker.ready for worker in self.workers if worker.post.kind is kind)

    def _give_up(self, kind: WorkerKind) -> None:
        """Stop, because none ever worked: the reason is in the log, and trying again would only repeat it."""
        self.failed = True
        self._stop()
        logger.error("a %s worker could not start; stopping", kind)

    def _kill(self, workers: list[WorkerProcess], why: str) -> None:
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
            logger.error("a %s worker (pid %d) %s and is killed", worker.post.kind, worker.pid, why)

    # -- reload and stop ----------------------------------------------------------------------------------------

    def _reload(self, changed: Sequence[str] = ()) -> None:
        """Read everything again and start new workers with it, or log why not and go on with what is in force.

        Where tables and keys have `changed`, the configuration itself is not read again; Postfix is asked again.
        """
        file_states: dict[str, FileState] = {}
        keys = None
        try:
            plan, keys = load_plan(self.load, self._let_go, file_states, self.keys, again=bool(changed))
            _refuse_new_mistakes(plan, self.plan)
            process_user = find_process_user(plan.config.user, plan.config.group)
            balance = ConnectionBalance(plan.config.policy.workers)
            self._open(plan, process_user)  # last: from here on there is no way back
        except (ConfigError, LookupError, OSError) as error:
            mistakes = (_sentence(error) if isinstance(error, OSError) else str(error)).splitlines()
            for line in mistakes:
                logger.error("not reloaded: %s", line)  # noqa: TRY400 (the sentence says it)
            self.refused.refuse(mistakes, time.monotonic())
            # Also what only the refused one names: it may be mended there.
            self.watch = FileWatch({**self.watch.known, **file_states})
            if keys is not None:
                keys.close()
            return
        self.keys.close()
        self.keys = keys
        self.watch = FileWatch(file_states)
        self.plan, self.process_user = plan, process_user
        self.refused.made()
        _log(plan)
        what = f"{', '.join(changed)} changed; " if changed else ""
        logger.info("reloaded: %s%s", what, _running(plan, self.endpoints.sockets))
        self._start(plan, balance)

    def _stop(self) -> None:
        logger.info("stopping: what has begun is finished first")
        self.stop_deadline = time.monotonic() + _STOP_LIMIT
        self.restarts.put_off()
        self._tell_to_stop()

    def _tell_to_stop(self) -> None:
        """Tell all workers to stop, each once; those that cannot be told now are told at the next turn."""
        for worker in self.workers:
            worker.stopped = worker.stopped or control_channel.send_packet(worker.control, control_channel.STOP)


def _print_error(text: str) -> None:
    """Print `text` on standard error; a reader who has gone, or a full disk, keeps nobody from serving."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def _sentence(error: OSError) -> str:
    """Return the error as a sentence: the one it was raised with, or the system's own."""
    if error.errno is None or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _refuse_new_mistakes(plan: Plan, in_force: Plan) -> None:
    """Raise ConfigError for lines of tables that cannot be used, but for those that are so in what is in force."""
    known = {(problem.file, problem.what) for problem in in_force.rejected}
    if new := [problem for problem in plan.rejected if (problem.file, problem.what) not in known]:
        raise ConfigError(new)


def _running(plan: Plan, sockets: Mapping[Endpoint, socket.socket]) -> str:
    """Say what runs: version, mode, and where it listens."""
    where = ", ".join(f"{kind} {bound(listen, sock)}" for (kind, listen), sock in sockets.items())
    return f"gatekeeper {version('gatekeeper')}, mode {plan.config.mode}, {where}"


def _log(plan: Plan) -> None:
    """Log as the plan wants, beginning with its warnings and with what it only observes."""
    log.setup(plan.config.log.level, syslog=plan.config.log.syslog, name=plan.config.log.syslog_name)
    for warning in (*plan.warnings, *plan.config.drift):
        logger.warning("%s", warning)
    if what := observed(plan):
        logger.warning("%s", what)
