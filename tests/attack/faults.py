# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done to the service from below: its processes are killed, its configuration, store, DNS and log break."""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from gatekeeper.dnsclient.zone import Zone
from tests.attack.honest import QUESTIONS, SILENT, Tally, ask, load
from tests.attack.report import Result
from tests.attack.world import ZONE, World, every, world
from tests.support.needs import ROOT
from tests.support.redis_server import redis_server
from tests.support.service import until

DNS_BUDGET = 8.0
"""Seconds within which a request is answered whatever name servers do."""


def kills(result: Result, times: int, rng: random.Random) -> None:
    """Kill a worker every half second, with signals that leave it no time, under load."""
    with world() as attacked, load(attacked.policy_address, attacked.milter_address) as clients:

        def kill(_: int) -> None:
            workers = attacked.workers
            if workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(workers), rng.choice((signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)))

        every(0.5, times, kill)
        attacked.answers()
        clients.end()
        result.clients(clients.policy, clients.milter)
        result.count("kills", times)
        # A worker holds one connection of each client here: a kill ends one session, not the other worker's.
        lost = clients.policy.lost + clients.milter.lost
        result.require(lost <= times, "no more sessions are lost than workers killed")
        result.require(max(clients.policy.away, clients.milter.away) < 2.0, "somebody always takes connections (2 s)")
        result.end(attacked)


def parent_kills(result: Result, times: int) -> None:
    """Kill the parent, and start the service again at once, as systemd does."""
    with world() as attacked:
        longest = 0.0
        for _ in range(times):
            attacked.service.process.kill()
            attacked.service.process.wait()
            begun = time.monotonic()
            attacked.start_again()
            longest = max(longest, time.monotonic() - begun)
        result.count("kills of the parent", times)
        result.figure("longest until it serves again", f"{longest:.1f} s")
        result.end(attacked)


def reloads(result: Result, times: int) -> None:
    """Reload under load: with a changed table, by signal, and with a configuration that has to be refused."""
    with world(level="info") as attacked, load(attacked.policy_address, attacked.milter_address) as clients:

        def reload(number: int) -> None:
            attacked.write_config('nonsense = "x"\n' if number % 5 == 4 else "")
            if number % 3 == 0:
                attacked.touch_table(number)
            attacked.service.process.send_signal(signal.SIGHUP)

        every(0.6, times, reload)
        attacked.write_config()
        before = len(_reloaded(attacked))
        attacked.service.process.send_signal(signal.SIGHUP)
        until(lambda: len(_reloaded(attacked)) > before, "the last reload")
        clients.end()
        result.clients(clients.policy, clients.milter)
        result.count("signals to reload", times)
        result.count("reloads", len(_reloaded(attacked)))
        result.count("refused", len([line for line in attacked.service.lines if "not reloaded: " in line]))
        result.require(clients.policy.lost + clients.milter.lost == 0, "a reload loses no session")
        until(lambda: len(attacked.workers) <= 4, "the old generations go", 60)
        result.end(attacked)


def _reloaded(attacked: World) -> list[str]:
    return [line for line in attacked.service.lines if "reloaded" in line and "not reloaded" not in line]


# -- the store ------------------------------------------------------------------------------------------------------


@contextmanager
def redis_faults() -> Iterator[tuple[str, dict[str, tuple[Callable[[], object], Callable[[], object]]]]]:
    """A redis-server's url, and what can be wrong with it: name -> how to break it, how to mend it."""
    with redis_server() as server:

        def pid() -> int:
            return int(server.admin.info("server")["process_id"])

        hung: list[int] = []

        def hang() -> None:
            hung.append(pid())
            os.kill(hung[0], signal.SIGSTOP)

        yield (
            server.tcp_url,
            {
                "redis: killed": (server.stop, server.start),
                "redis: hangs": (hang, lambda: os.kill(hung.pop(), signal.SIGCONT)),
                "redis: full": (
                    lambda: server.admin.config_set("maxmemory", "1"),
                    lambda: server.admin.config_set("maxmemory", "0"),
                ),
                "redis: read-only": (
                    lambda: server.admin.replicaof("127.0.0.1", 9),
                    lambda: server.admin.replicaof("NO", "ONE"),
                ),
                "redis: cuts its connections": (
                    lambda: server.admin.execute_command("CLIENT KILL TYPE normal"),
                    lambda: None,
                ),
                "redis: emptied": (lambda: server.admin.flushall(), lambda: None),
            },
        )


def _sqlite_faults(state: Path) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """What can be wrong with an SQLite file."""

    def replace(content: bytes) -> None:
        for path in state.parent.iterdir():
            path.unlink()
        state.write_bytes(content)
        shutil.chown(state, "nobody")

    def remove() -> None:
        for path in state.parent.iterdir():
            path.rmdir() if path.is_dir() else path.unlink()

    def made_anew() -> None:
        until(state.is_file, "a state file that was removed is made anew", 60)

    def removed() -> None:
        remove()
        made_anew()

    def overwrite() -> None:
        with state.open("r+b") as file:
            file.write(os.urandom(8192))

    def into_folder() -> None:
        remove()
        state.mkdir()

    def locked() -> None:
        code = f"import sqlite3,time; c=sqlite3.connect({str(state)!r}); c.execute('begin exclusive'); time.sleep(60)"
        lockers.append(subprocess.Popen([sys.executable, "-c", code]))

    def unlocked() -> None:
        process = lockers.pop()
        process.kill()
        process.wait()

    lockers: list[subprocess.Popen[bytes]] = []
    return {
        "sqlite: file removed": (remove, made_anew),
        "sqlite: overwritten with noise": (overwrite, removed),
        "sqlite: another file in its place": (lambda: replace(b"this is not a database\n" * 1000), removed),
        "sqlite: emptied": (lambda: os.truncate(state, 0), removed),
        "sqlite: a folder in its place": (into_folder, removed),
        "sqlite: locked by another process": (locked, unlocked),
    }


def stores(result: Result, seconds: float) -> None:
    """Break the store in every way for `seconds`, under load, and mend it."""
    with redis_faults() as (url, faults), world(url) as attacked:
        _break_each(result, attacked, faults, seconds)
        result.end(attacked)
    with world() as attacked:
        _break_each(result, attacked, _sqlite_faults(attacked.folder / "state" / "state.db"), seconds)
        result.end(attacked)


def _break_each(
    result: Result,
    attacked: World,
    faults: dict[str, tuple[Callable[[], object], Callable[[], object]]],
    seconds: float,
) -> None:
    for name, (break_it, mend) in faults.items():
        with load(attacked.policy_address, attacked.milter_address) as clients:
            time.sleep(1.0)
            clients.broken()
            break_it()
            time.sleep(seconds)
            mend()
            _settled(attacked, name)
            clients.mended()
            time.sleep(1.0)
            clients.end()
        result.clients(clients.policy, clients.milter, name)
        result.count("faults of the store", 1)
        longest = max(clients.policy.longest, clients.milter.longest)
        result.note(f"{name}: {clients.policy.answered} + {clients.milter.answered} answers, longest {longest:.2f} s")
        result.require(clients.policy.lost + clients.milter.lost == 0, f"{name}: no session is lost")
        result.require(longest < 1.0, f"{name}: nobody waits for the store (1 s on a busy machine)")


def _settled(attacked: World, name: str) -> None:
    """Wait until a first mail is deferred by both workers again: the store is used."""
    first = next(question for question in QUESTIONS if question.name == "first mail")

    def deferred() -> bool:
        with ExitStack() as stack:  # all at once, so that each worker has some
            connect = partial(socket.create_connection, attacked.policy_address, timeout=30)
            connections = [stack.enter_context(connect()) for _ in range(8)]
            fresh = f"settled{time.monotonic()}"
            answers = [ask(one, first, f"{fresh}.{number}") for number, one in enumerate(connections)]
        return all(answer.startswith(f"action={first.right}") for answer in answers)

    until(deferred, f"{name}: the store is used again", 90)


# -- DNS ------------------------------------------------------------------------------------------------------------


def dns(result: Result, seconds: float) -> None:
    """Let the resolver fail in every way for `seconds`, under load; then 130 requests for a domain that is silent."""
    with world() as attacked:
        broken: dict[str, str] = {
            "silent": ". ANY !TIMEOUT\n*. ANY !TIMEOUT\n",
            "SERVFAIL": "*. ANY !SERVFAIL\n",
            "everything exists": '*. A 203.0.113.9\n*. MX 10 x.example.\n*. TXT "x"\n',
        }
        for name, zone in broken.items():
            tally = Tally()
            attacked.dns.zone = Zone.parse(zone)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                _ask_at_once(attacked, tally, 40, f"{name}{time.monotonic()}", SILENT.right, "450", "DUNNO")
            result.clients(tally, Tally(), f"DNS {name}")
            result.note(f"DNS {name}: {tally}")
            result.require(tally.longest < DNS_BUDGET + 1, f"DNS {name}: answered within {DNS_BUDGET:g} s")
            result.require(tally.lost == 0, f"DNS {name}: everybody is answered")
        attacked.dns.zone = Zone.parse(ZONE)
        result.end(attacked)
    with world() as attacked:
        tally = Tally()
        _ask_at_once(attacked, tally, 130, "silent", SILENT.right)
        result.clients(tally, Tally())
        result.count("requests for a silent domain at once", tally.asked)
        result.note(f"a silent domain: {tally}")
        result.require(tally.longest < DNS_BUDGET + 1, f"a silent domain: answered within {DNS_BUDGET:g} s")
        result.end(attacked)


def _ask_at_once(attacked: World, tally: Tally, many: int, fresh: str, *right: str) -> None:
    address, lock = attacked.policy_address, threading.Lock()

    def one(number: int) -> None:
        begun = time.monotonic()
        try:
            with socket.create_connection(address, timeout=60) as connection:
                answer = ask(connection, SILENT, f"{fresh}.{number}")
        except OSError:
            answer = ""
        took = time.monotonic() - begun
        with lock:
            tally.asked += 1
            tally.answered += bool(answer)
            tally.lost += not answer
            tally.longest = max(tally.longest, took)
            if answer and not answer.startswith(tuple(f"action={words}" for words in right)):
                tally.mistake(f"{SILENT.name}: {answer!r}")

    with ThreadPoolExecutor(many) as pool:
        list(pool.map(one, range(many)))


# -- the log --------------------------------------------------------------------------------------------------------


def logs(result: Result, requests: int) -> None:
    """Ask while nobody reads what the service says, and end it."""
    with world(level="info") as made:
        made.end()
        read, write = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-m", "gatekeeper", "--config", made.config, "run"], stderr=write, stdout=write, cwd=ROOT
        )
        os.close(write)
        tally = Tally()
        try:
            until(lambda: _listens(made.policy_address), "it serves")
            with socket.create_connection(made.policy_address, timeout=10) as connection:
                for number in range(requests):
                    question = QUESTIONS[number % len(QUESTIONS)]
                    tally.asked += 1
                    begun = time.monotonic()
                    answer = ask(connection, question, f"log{number}")
                    tally.longest = max(tally.longest, time.monotonic() - begun)
                    tally.answered += 1
                    if not answer.startswith(f"action={question.right}"):
                        tally.mistake(f"{question.name}: {answer!r}")
        except OSError as error:
            result.require(False, f"an unread log: {error} after {tally.answered} answers")
        process.terminate()
        try:
            result.require(process.wait(20) == 0, "an unread log: ends on SIGTERM with status 0")
        except subprocess.TimeoutExpired:
            result.require(False, "an unread log: ends on SIGTERM within 20 s")
            process.kill()
            process.wait()
        os.close(read)
        result.clients(tally, Tally())
        result.note(f"a log that nobody reads: {tally}")


def _listens(address: tuple[str, int]) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=1):
        return True
    return False
