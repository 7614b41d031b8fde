# SPDX-License-Identifier: GPL-3.0-or-later
"""State in one SQLite file that all processes of one machine share: the embedded default.

Called inline on the event loop: a call takes some 20 µs, and handing it to a thread costs more. WAL, so readers never
wait; `synchronous=NORMAL`, so no call waits for the disk: after a power cut the last writes may be missing, the file is
whole. What several requests write in one round of the event loop is one transaction. While another process writes they
wait, no longer than the time limit, and nothing else does: no call of SQLite's ever waits for a lock on the loop. Who
waits for long gets the next turn (fair_lock.py).

After an error the file is opened anew, also if it has been replaced or deleted while we run (noticed within
MAINTENANCE seconds); a damaged file is left for a person: moved away, it is replaced by a new one. Expiry and
checkpoints (which wait for the disk) run in a thread with a connection of its own, in one process at a time. Rows go
in batches, so that writers get in between. Why that connection cannot kill the process: files.py. What an operator
should know: docs/state.md.
"""

import asyncio
import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gatekeeper.stores.shared_values import SharedValues
from gatekeeper.stores.sliding_window import slot_position, spread
from gatekeeper.stores.sqlite import files, rows
from gatekeeper.stores.sqlite.fair_lock import FairLock
from gatekeeper.stores.sqlite.short_timer import ShortTimer
from gatekeeper.stores.store import Clock, CounterHit, Lease, StoredValue, StoreError

T = TypeVar("T")

AGAIN = 0.0002
"""Seconds until the next try to write while another process does, about what a transaction takes. Who has tried for
longer waits as long again, but no longer than"""
SELDOM = 0.001
"""seconds."""
PATIENCE = 0.01
"""Seconds of waiting after which a process claims the next turn."""
MAINTENANCE = 30.0
"""Seconds between two rounds of expiry."""
CHECKPOINT = 3000
"""Writes of a process between two checkpoints: `-wal`, in which whatever is read is looked up first, stays small."""
LONG = 5000
"""Pages of `-wal` (of 4 kB) after which writers have to wait until the checkpoint is done: it begins anew only when
all of it has been copied, and under load somebody has always written a little more."""
BATCH = 200
"""Rows deleted in one transaction."""
_LEASE = "maintenance"


class _Write(NamedTuple):
    """Something to be done in the next transaction, `until` a time of the loop's clock."""

    work: Callable[[sqlite3.Connection], Any]
    done: asyncio.Future[Any]
    until: float


class SqliteStore:
    """See store.Store. The file is opened at the first use, and created with its directory where it does not exist.

    With `read_only` it is neither created nor written.
    """

    def __init__(self, path: Path, clock: Clock = time.time, timeout: float = 0.1, *, read_only: bool = False) -> None:
        self._path = path
        self._clock = clock
        self._timeout = timeout
        self._read_only = read_only
        self._writes: list[_Write] = []
        self._db: files.SqliteConnection | None = None
        self._files: tuple[files.Inode, ...] = ()
        self._turn: FairLock | None = None
        self._alarm: ShortTimer | None = None
        self._origin = SharedValues(self, clock)
        self._maintenance: asyncio.Task[None] | None = None
        self._written = 0
        self._full = asyncio.Event()
        self._closing = threading.Event()

    async def ask(self, hits: Sequence[CounterHit], gets: Sequence[str]) -> tuple[list[int], list[bytes | None]]:
        now = self._clock()
        places = [slot_position(hit, now) for hit in hits]
        for at in places:
            if at.amount:
                return await self._write(lambda db: rows.ask(db, places, gets, now))
        return await self._read(lambda db: rows.ask(db, places, gets, now))

    async def get(self, key: str) -> bytes | None:
        return await self._read(lambda db: rows.get(db, key, self._clock()))

    async def set(self, key: str, value: bytes, ttl: float, *, absent: bool = False) -> bool:
        now = self._clock()
        return await self._write(lambda db: rows.set_(db, key, value, now + ttl, now, absent=absent))

    async def delete(self, key: str) -> None:
        await self._write(lambda db: rows.delete(db, key))

    async def hit(self, hits: Sequence[CounterHit]) -> list[int]:
        return (await self.ask(hits, ()))[0]

    async def unhit(self, hits: Sequence[CounterHit]) -> None:
        now = self._clock()
        places = [slot_position(hit, now) for hit in hits]
        await self._write(lambda db: rows.unhit(db, places))

    async def spread(self, hit: CounterHit) -> list[tuple[float, int]]:
        now = self._clock()
        return spread(hit, now, await self._read(lambda db: rows.spread(db, slot_position(hit, now).name)))

    async def lease(self, leases: Sequence[Lease], ttl: float) -> list[int]:
        now = self._clock()
        if all(lease.most == 0 for lease in leases):  # nothing is ever taken, so no lock is needed either
            return await self._read(lambda db: rows.lease(db, leases, now, now))
        return await self._write(lambda db: rows.lease(db, leases, now, now + ttl))

    async def release(self, leases: Sequence[Lease]) -> None:
        await self._write(lambda db: rows.release(db, leases))

    async def page(self, kind: str, after: str = "") -> tuple[list[StoredValue], str]:
        now = self._clock()
        found = await self._read(lambda db: rows.page(db, kind, after, now, BATCH))
        return [StoredValue(key, value, expires - now) for key, value, expires in found], found[-1][0] if found else ""

    async def tally(self, bucket: str, row: bytes, ttl: float, most: int) -> bool:
        now = self._clock()
        return await self._write(lambda db: rows.tally(db, bucket, row, now + ttl, now, most))

    async def tallies(self, bucket: str) -> dict[bytes, int]:
        return await self._read(lambda db: rows.tallies(db, bucket, self._clock()))

    async def born(self) -> float:
        return await self._origin.born()

    async def secret(self) -> bytes:
        return await self._origin.secret()

    async def close(self) -> None:
        self._closing.set()
        if self._maintenance is not None:
            self._maintenance.cancel()
            await asyncio.wait([self._maintenance])
        if self._writes:
            self._commit()
        _fail([write for write in self._writes if not write.done.done()], StoreError(f"{self._path} is closed"))
        self._writes = []
        if self._alarm is not None:
            self._alarm.close()
            self._alarm = None
        self._drop()

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` at once: in WAL mode no writer keeps a reader waiting, only who opens the file or mends it after a
        crash. Raises StoreError.
        """
        clock = asyncio.get_running_loop().time
        until = 0.0
        while True:
            try:
                return work(self._db or self._open())
            except (sqlite3.Error, OSError) as error:
                until = until or clock() + self._timeout
                if not _is_busy(error) or clock() > until:
                    raise self._accident(error) from None
            await asyncio.sleep(0.001)

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` in a transaction, one for all who want to write in this round of the loop. Raises StoreError."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        self._writes.append(_Write(work, done, loop.time() + self._timeout))
        if len(self._writes) == 1:
            loop.call_soon(self._commit)
        result: T = await done
        return result

    def _commit(self) -> None:
        """Do what waits, all or nothing. While another process writes, come back later."""
        writes = [write for write in self._writes if not write.done.done()]  # who was cancelled wants nothing
        self._writes = []
        while writes:
            at_work: _Write | None = None
            try:
                db = self._db or self._open()
                if self._lets_another(writes[0]):
                    self._wait(writes, "database is locked")
                    return
                _begin(db)
                results = []
                for at_work in writes:
                    results.append(at_work.work(db))
                db.execute("COMMIT")
            except (sqlite3.Error, OSError) as error:
                self._undo()
                if _is_busy(error):
                    self._wait(writes, str(error))
                    return
                _fail(writes, self._accident(error))
                break
            except Exception as error:
                self._undo()
                if at_work is None:
                    _fail(writes, error)
                    break
                at_work.done.set_exception(error)  # its own mistake: the others do without it
                writes.remove(at_work)
            else:
                for write, result in zip(writes, results, strict=True):
                    write.done.set_result(result)
                self._count(len(writes))
                break
        if self._turn is not None:
            self._turn.end()

    def _lets_another(self, first: _Write) -> bool:
        """True if another process has claimed the turn. Half of the time is ours: that one may have been stopped."""
        if self._turn is None or not self._turn.is_anothers():
            return False
        return first.until - asyncio.get_running_loop().time() > self._timeout / 2

    def _wait(self, writes: list[_Write], why: str) -> None:
        """Try these again soon, but those whose time is over."""
        now = asyncio.get_running_loop().time()
        late = [write for write in writes if write.until < now + SELDOM]
        _fail(late, StoreError(f"{self._path}: {why}"))
        self._writes = writes[len(late) :]
        if not self._writes:
            if self._turn is not None:
                self._turn.end()
            return
        waited = now - self._writes[0].until + self._timeout
        if waited > PATIENCE and self._turn is not None:
            self._turn.claim()
        self._alarm = self._alarm or ShortTimer(self._commit)
        self._alarm.set(min(max(waited, AGAIN), SELDOM))

    def _undo(self) -> None:
        if self._db is not None and self._db.in_transaction:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")

    def _count(self, writes: int) -> None:
        self._written += writes
        if self._written >= CHECKPOINT:
            self._written = 0
            self._full.set()

    def _accident(self, error: Exception) -> StoreError:
        """After anything but a busy file it is opened anew."""
        if not _is_busy(error):
            self._drop()
        return StoreError(f"{self._path}: {error}")

    def _open(self) -> files.SqliteConnection:
        if not self._read_only:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.create(self._path)
            if not os.access(self._path, os.W_OK, effective_ids=True):
                # SQLite would open it to read, and leave files beside it that stay read-only when this one is mended.
                raise PermissionError(errno.EACCES, "cannot be written")
        db = files.connect(self._path, 0.0, read_only=self._read_only)
        try:
            if not self._read_only:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = NORMAL")
                db.execute("PRAGMA wal_autocheckpoint = 20000")  # pages: the net below _maintain()
                db.execute("BEGIN IMMEDIATE")
                for line in rows.SCHEMA.split(";"):
                    db.execute(line)
                db.execute("COMMIT")
                db.guard()
            self._files = (db.file, *files.files(self._path)[1:])
        except BaseException:
            db.close()
            raise
        self._db = db
        if not self._read_only:
            self._turn = FairLock(self._path.parent)
            if self._maintenance is None:
                self._maintenance = asyncio.create_task(self._maintain())
        return db

    def _drop(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._turn is not None:
            self._turn.close()
            self._turn = None

    async def _maintain(self) -> None:
        clock = asyncio.get_running_loop().time
        due = clock() + MAINTENANCE
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._full.wait()
            self._full.clear()
            is_due = clock() >= due
            if is_due:
                due = clock() + MAINTENANCE
                if self._db is not None and self._files != files.files(self._path):
                    self._drop()
            try:
                if not is_due:
                    await asyncio.to_thread(self._clear, sweep=False)
                elif await self.set(_LEASE, b"", MAINTENANCE * 0.9, absent=True):
                    await asyncio.to_thread(self._clear, sweep=True)
            except (StoreError, sqlite3.Error, OSError):
                continue  # whoever asks something next hears it

    def _clear(self, *, sweep: bool) -> None:
        """Checkpoint, and before that sweep out what has expired; in a thread. Ends early when the store is closed."""
        with closing(files.connect(self._path, self._timeout)) as db:
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA wal_autocheckpoint = 0")
            for statement, parameters in rows.expired(db, self._clock(), BATCH) if sweep else ():
                db.execute("BEGIN IMMEDIATE")
                db.executemany(statement, parameters)
                db.execute("COMMIT")
                if self._closing.wait(0.005):
                    return
            _, pages, _ = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if pages > LONG:
                db.execute("PRAGMA wal_checkpoint(RESTART)")  # what is left is little


def _begin(db: sqlite3.Connection) -> None:
    try:
        db.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_BUSY_SNAPSHOT:
            raise
        db.execute("BEGIN IMMEDIATE")  # another process wrote between SQLite's look and its lock, and has done so


def _is_busy(error: Exception) -> bool:
    """True also for the extended codes: BUSY_SNAPSHOT and BUSY_RECOVERY pass, like BUSY."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def _fail(writes: Sequence[_Write], error: Exception) -> None:
    for write in writes:
        write.done.set_exception(StoreError(*error.args))  # a fresh one for each
