# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: ASYNC110 (what a test waits for happens in other processes)
"""What only the SQLite store promises: several processes at one file, nobody held up, nobody killed."""

import asyncio
import fcntl
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gatekeeper.stores.sqlite import files, rows
from gatekeeper.stores.sqlite import store as sqlite_module
from gatekeeper.stores.sqlite.fair_lock import FairLock
from gatekeeper.stores.sqlite.short_timer import ShortTimer
from gatekeeper.stores.sqlite.store import SqliteStore
from gatekeeper.stores.store import CounterHit, Lease, StoreError

LIMIT = 1.0
HAMMER = """
import asyncio, sys
from pathlib import Path
import uvloop
from gatekeeper.stores.sqlite.store import SqliteStore
from gatekeeper.stores.store import CounterHit as Hit

async def main(path, worker):
    store = SqliteStore(Path(path), timeout=60)
    async def task(number):
        for n in range(60):
            few = Hit("few", 600.0, 1, f"{worker} {number} {n}", limit=10**6)
            await store.hit_and_get([Hit("all", 600.0), few], ["k"])
            await store.hit([Hit("limited", 600.0, limit=1500), Hit("with it", 600.0)])
            assert await store.set(f"{worker} {number} {n}", b"1", 600.0)
    await asyncio.gather(*(task(number) for number in range(16)))
    await store.close()

uvloop.run(main(*sys.argv[1:]))
"""
OTHER = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
try:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("SELECT count(*) FROM kept").fetchone()
except sqlite3.Error:  # what lies beside it does not fit
    pass
if sys.argv[2:]:
    os._exit(0)  # killed: the files beside it stay
db.close()
"""
LOCKED = """
import fcntl, struct, sys
for suffix, first, count in (("", 2**30 + 2, 510), ("-shm", 128, 1)):
    with open(sys.argv[1] + suffix, "r+b") as file:
        flock = struct.pack("hhqqi0q", fcntl.F_WRLCK, 0, first, count, 0)
        print(struct.unpack("hhqqi0q", fcntl.fcntl(file, fcntl.F_GETLK, flock))[0] == fcntl.F_RDLCK)
"""
STRUCK = """
import asyncio, os, sqlite3, subprocess, sys
from pathlib import Path
from gatekeeper.stores.sqlite import store as sqlite

sqlite.CHECKPOINT_WRITES = 10**9

async def main(path, other, blow, locked):
    store = sqlite.SqliteStore(Path(path), timeout=1)
    for number in range(4500):  # so many that -shm has a second part
        await store.set(f"{number}", b"", 600.0)
    db = store._db
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO kept VALUES ('k', x'', 1e10, NULL)")
    if blow == "replaced":
        os.rename(path, path + "-old")
        Path(path).touch()
    else:
        for number in os.listdir("/proc/self/fd"):
            try:
                os.close(os.dup(int(number)))  # SQLite's own locks are gone
            except OSError:
                pass
    subprocess.run([sys.executable, "-c", locked, path], check=True)
    subprocess.run([sys.executable, "-c", other, path, "killed"], check=True)
    try:
        await asyncio.to_thread(store._clean_up, sweep=False)
    except (OSError, sqlite3.Error) as error:
        print(error)
    db.execute("COMMIT")
    subprocess.run([sys.executable, "-c", other, path], check=True)
    await store.set("last", b"1", 600.0)
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(path, timeout=LIMIT)
    await store.created_at()
    yield store
    await store.close()


@pytest.fixture
async def other(store: SqliteStore, path: Path) -> AsyncIterator[sqlite3.Connection]:
    """Another process, as far as SQLite's lock for writers is concerned."""
    db = sqlite3.connect(path, isolation_level=None, timeout=0)
    yield db
    db.close()


async def test_many_tasks_of_many_processes_lose_nothing_and_exceed_nothing(path: Path) -> None:
    workers = [await asyncio.create_subprocess_exec(sys.executable, "-c", HAMMER, str(path), str(n)) for n in range(4)]
    assert [0] * 4 == [await worker.wait() for worker in workers]
    store = SqliteStore(path, timeout=60)
    asked = [
        CounterHit("all", 600.0, 0),
        CounterHit("few", 600.0, 0),
        CounterHit("limited", 600.0, 0),
        CounterHit("with it", 600.0, 0),
    ]
    assert [3840, 3840, 1500, 1500] == await store.hit(asked)
    values = [f"{worker} {task} {n}" for worker in range(4) for task in range(16) for n in range(60)]
    assert ([], [b"1"] * 3840) == await store.hit_and_get([], values)
    await store.close()


async def test_what_several_write_in_one_round_is_one_transaction(store: SqliteStore, path: Path) -> None:
    size = os.stat(f"{path}-wal").st_size
    await asyncio.gather(*(store.set(f"k{number}", b"1", 60.0) for number in range(20)))
    assert os.stat(f"{path}-wal").st_size - size < 3 * 4200
    assert [b"1"] * 20 == (await store.hit_and_get([], [f"k{number}" for number in range(20)]))[1]


async def test_while_another_process_writes_reads_and_timers_go_on(
    store: SqliteStore, other: sqlite3.Connection
) -> None:
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.create_task(store.set("k", b"1", 60.0))
    for _ in range(20):
        assert await store.get("k") is None
        await asyncio.sleep(0.001)
    assert not writing.done()
    other.execute("ROLLBACK")
    assert await writing
    assert b"1" == await store.get("k")


async def test_who_finds_the_file_locked_hears_of_it_within_the_limit(
    store: SqliteStore, other: sqlite3.Connection
) -> None:
    other.execute("BEGIN IMMEDIATE")
    begun = time.monotonic()
    early = asyncio.create_task(store.set("early", b"1", 60.0))
    await asyncio.sleep(LIMIT / 2)
    late = asyncio.create_task(store.set("late", b"1", 60.0))
    with pytest.raises(StoreError, match="locked"):
        await early
    assert LIMIT / 2 < time.monotonic() - begun
    other.execute("ROLLBACK")
    assert await late  # its own time is not over
    assert await store.get("early") is None


async def test_a_write_that_is_wrong_or_not_wanted_any_more_fails_alone(store: SqliteStore) -> None:
    writes = [asyncio.create_task(store.set(key, b"1", 60.0)) for key in ("a", "\udc80", "cancelled", "b")]
    await asyncio.sleep(0)
    writes[2].cancel()
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert [True, UnicodeEncodeError, asyncio.CancelledError, True] == [
        result if result is True else type(result) for result in results
    ]
    assert [b"1", None, b"1"] == (await store.hit_and_get([], ["a", "cancelled", "b"]))[1]


async def test_what_waits_when_the_store_is_closed_is_told(store: SqliteStore, other: sqlite3.Connection) -> None:
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.create_task(store.set("k", b"1", 60.0))
    await asyncio.sleep(0.01)
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await writing


async def test_any_number_of_hits_and_keys_can_be_asked(store: SqliteStore) -> None:
    await store.set("k399", b"1", 60.0)
    hits = [CounterHit(f"a{number}", 60.0, 1, f"m{number}") for number in range(250)]
    for _ in range(2):
        sums, values = await store.hit_and_get(hits, [f"k{number}" for number in range(400)])
        assert ([1] * 250, [None] * 399 + [b"1"]) == (sums, values)


def strike(path: Path, blow: str) -> subprocess.CompletedProcess[str]:
    """A process that has the store open, in the middle of a transaction, while another opens it, after something that
    made it die of SIGBUS: stores/sqlite/files.py says why."""
    command = [sys.executable, "-c", STRUCK, str(path), OTHER, blow, LOCKED]
    return subprocess.run(command, capture_output=True, text=True, check=False)


async def test_a_worker_survives_that_the_file_is_replaced_without_those_beside_it(path: Path) -> None:
    done = strike(path, "replaced")
    assert (0, "") == (done.returncode, done.stderr)
    assert "has been replaced" in done.stdout


async def test_a_worker_survives_that_its_descriptors_are_duplicated_and_closed_and_loses_nothing(path: Path) -> None:
    done = strike(path, "duplicated")
    # Who opens -shm and finds no lock truncates it; who closes and finds none on state.db deletes -shm and -wal.
    assert (0, "True\nTrue\n", "") == (done.returncode, done.stdout, done.stderr)
    assert ["state.db"] == os.listdir(path.parent)  # whoever closes it last tidies up
    store = SqliteStore(path, timeout=60)
    assert ([], [b"", b"", b"1"]) == await store.hit_and_get([], ["4499", "k", "last"])
    await store.close()


async def test_a_path_is_one_file_as_long_as_it_is_open(path: Path) -> None:
    files.create(path)
    first, second = files.connect(path, 0.0), files.connect(path, 0.0)
    os.rename(path, path.with_name("old"))
    files.create(path)
    first.close()
    first.close()
    with pytest.raises(files.FileReplaced):
        files.connect(path, 0.0)
    second.close()
    files.connect(path, 0.0).close()


@pytest.mark.parametrize("names", [["state.db-shm"], ["state.db-wal", "state.db-shm"]])
async def test_a_file_whose_companions_are_gone_is_opened_anew(
    names: list[str], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_module, "MAINTENANCE_INTERVAL", 0.02)
    store = SqliteStore(path, timeout=LIMIT)
    await store.created_at()
    for name in names:
        path.with_name(name).unlink()
    while store._files != files.files(path):
        await asyncio.sleep(0.02)
    await store.set("k", b"1", 60.0)
    newcomer = SqliteStore(path, timeout=LIMIT)
    assert b"1" == await newcomer.get("k")
    for each in (store, newcomer):
        await each.close()


async def test_the_log_of_writes_does_not_grow_without_end(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_module, "CHECKPOINT_WRITES", 50)
    monkeypatch.setattr(sqlite_module, "RESTART_PAGES", 100)
    for number in range(2000):
        await store.set(f"k{number}", bytes(100), 60.0)
        await asyncio.sleep(0.0005 * (number % 10 == 0))
    assert os.stat(f"{path}-wal").st_size < 1500 * 4120


@pytest.mark.parametrize("years", [1, 40])
async def test_what_a_clock_that_was_ahead_has_written_lives_no_longer_than_anything_else(
    path: Path, monkeypatch: pytest.MonkeyPatch, years: int
) -> None:
    monkeypatch.setattr(sqlite_module, "MAINTENANCE_INTERVAL", 0.02)
    now = real = 1_800_000_000.0
    store = SqliteStore(path, lambda: now, timeout=LIMIT)
    secret = await store.secret()
    now += years * 366 * 86400
    await store.created_at()
    await store.set("k", b"1", 600.0)
    await store.hit([CounterHit("a", 60.0, once="m1")])
    await store.lease([Lease("k", "a")], 60.0)
    await store.tally("b", b"row", 60.0, 9)
    db = sqlite3.connect(path)
    while db.execute("SELECT count(*) FROM lease WHERE key = 'maintenance'").fetchone() != (1,):
        await asyncio.sleep(0.02)
    now = real
    late = " UNION ALL ".join(f"SELECT expires FROM {table} WHERE ttl < 1e9" for table in rows._KEYS)
    while db.execute(f"SELECT max(expires) FROM ({late})").fetchone()[0] > now + 602:
        await asyncio.sleep(0.02)
    now += 603
    while db.execute(f"SELECT count(*) FROM ({late})").fetchone()[0] > 1:  # the lease of who sweeps
        await asyncio.sleep(0.02)
    assert secret == await store.secret()
    db.close()
    await store.close()


async def test_a_file_from_before_rows_had_a_time_to_live_is_completed(path: Path) -> None:
    files.create(path)
    db = sqlite3.connect(path)
    db.executescript(re.sub(r",\s*ttl INTEGER", "", rows.SCHEMA))
    db.execute("INSERT INTO kept VALUES ('k', x'31', 1e10)")
    db.commit()
    db.close()
    store = SqliteStore(path, timeout=LIMIT)
    assert b"1" == await store.get("k")
    assert await store.set("k", b"2", 60.0)
    assert [1] == await store.hit([CounterHit("a", 60.0, once="m1")])
    assert [1] == await store.lease([Lease("k", "a")], 60.0)
    assert await store.tally("b", b"row", 60.0, 9)
    await store.close()


def test_a_turn_is_one_processs_at_a_time(tmp_path: Path) -> None:
    ours, theirs = FairLock(tmp_path), FairLock(tmp_path)
    ours.claim()
    theirs.claim()
    assert (False, True) == (ours.is_claimed_elsewhere(), theirs.is_claimed_elsewhere())
    ours.release()
    theirs.claim()
    assert (True, False) == (ours.is_claimed_elsewhere(), theirs.is_claimed_elsewhere())
    theirs.close()
    assert not ours.is_claimed_elsewhere()
    ours.close()
    assert not FairLock(tmp_path / "missing").is_claimed_elsewhere()


async def test_a_turn_that_is_never_used_does_not_keep_others_from_writing(store: SqliteStore, path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    begun = time.monotonic()
    assert await store.set("k", b"1", 60.0)
    assert LIMIT / 3 < time.monotonic() - begun
    os.close(folder)


async def test_who_has_waited_for_long_claims_the_next_turn_and_gives_it_back(
    store: SqliteStore, other: sqlite3.Connection, path: Path
) -> None:
    watcher = FairLock(path.parent)
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.create_task(store.set("k", b"1", 60.0))
    await asyncio.sleep(sqlite_module.CLAIM_DELAY * 3)
    assert watcher.is_claimed_elsewhere()
    other.execute("ROLLBACK")
    await writing
    assert not watcher.is_claimed_elsewhere()
    watcher.close()


async def test_an_alarm_rings_once_each_time_it_is_set() -> None:
    rung: list[float] = []
    alarm = ShortTimer(
        lambda: rung.append(time.monotonic()),
    )
    begun = time.monotonic()
    alarm.set(0.0002)
    await asyncio.sleep(0.02)
    assert 1 == len(rung)
    assert rung[0] - begun >= 0.0002
    alarm.set(0.0002)
    alarm.close()
    await asyncio.sleep(0.01)
    assert 1 == len(rung)
