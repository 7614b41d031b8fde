# SPDX-License-Identifier: GPL-3.0-or-later
"""Store in one SQLite file that all processes of a machine share: the embedded default.

SQLite is called inline on the event loop: a call takes some 20 µs, and handing it to a thread costs more. WAL mode, so
readers never wait; `synchronous=NORMAL`, so no call waits for the disk: after a power cut the last writes may be
missing, but the file is intact. What several requests write in one iteration of the event loop is one transaction.
While another process writes, these requests wait, no longer than the timeout, and nothing else does: SQLite itself
never waits for a lock on the event loop. A process that has waited for long gets the next turn (fair_lock.py).

After an error the file is reopened, also if it was replaced or deleted while we run (noticed within
MAINTENANCE_INTERVAL seconds); a damaged file is left to the operator: once moved away, it is replaced by a new one.
Expiry and checkpoints (which wait for the disk) run in a thread with a connection of its own, in one process at a time.
Rows are deleted in batches, so that writers get in between. Why that connection cannot kill the process: files.py. What
an operator should know: docs/state.md.
"""

import asyncio
import errno
import logging
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from gatekeeper.stores.shared_values import SharedValues
from gatekeeper.stores.sliding_window import expirations, slot_position
from gatekeeper.stores.sqlite import files, rows
from gatekeeper.stores.sqlite.fair_lock import FairLock
from gatekeeper.stores.sqlite.short_timer import ShortTimer
from gatekeeper.stores.store import Clock, CounterHit, Lease, StoreBusy, StoreDamaged, StoredValue, StoreError

logger = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_DELAY = 0.0002
"""Seconds until the next attempt to write while another process does, about as long as a transaction takes. A
longer wait is followed by a delay as long as itself, up to MAX_RETRY_DELAY."""
MAX_RETRY_DELAY = 0.001
"""Seconds."""
CLAIM_DELAY = 0.01
"""Seconds of waiting after which a process claims the next turn."""
MIN_ATTEMPTS = 10
"""Attempts before a write is given up, whatever the time: a process without CPU has waited for itself, not the file."""
PATIENCE = 1.0
"""Seconds for which nothing could be written, from which on the file counts as gone and no longer as busy."""
MAINTENANCE_INTERVAL = 30.0
"""Seconds between two rounds of expiry."""
CHECKPOINT_WRITES = 3000
"""Writes of a process between two checkpoints: `-wal`, which every read searches first, stays small."""
RESTART_PAGES = 5000
"""Pages of `-wal` (of 4 kB) above which writers have to wait for the checkpoint: the log restarts only when all of it
has been copied, and under load somebody has always written a little more."""
STUCK_PAGES = 50_000
"""Pages of `-wal` that no checkpoint could copy, because a connection still reads what was before: 200 MB."""
BATCH_SIZE = 200
"""Rows deleted in one transaction."""
_LEASE = "maintenance"


class _Write(NamedTuple):
    """Something to do in the next transaction, until `deadline` by the loop's clock."""

    work: Callable[[sqlite3.Connection], Any]
    done: asyncio.Future[Any]
    deadline: float


class SqliteStore:
    """An implementation of store.Store.

    The file is opened at first use, and created with its directory where it does not exist; with `read_only` it is
    neither created nor written.
    """

    def __init__(self, path: Path, clock: Clock = time.time, timeout: float = 0.1, *, read_only: bool = False) -> None:
        self._path = path
        self._clock = clock
        self._timeout = timeout
        self._read_only = read_only
        self._opened_by: int | None = None  # effective user id
        self._writes: list[_Write] = []
        self._db: files.SqliteConnection | None = None
        self._files: tuple[files.Inode, ...] = ()
        self._fair_lock: FairLock | None = None
        self._retry_timer: ShortTimer | None = None
        self._attempts = 0  # to write what waits now
        self._locked_since = 0.0  # the first write that failed since the last that did not
        self._shared_values = SharedValues(self, clock)
        self._maintenance: asyncio.Task[None] | None = None
        self._writes_since_checkpoint = 0
        self._checkpoint_due = asyncio.Event()
        self._stuck = False
        self._closing = threading.Event()
        self._process = secrets.token_hex(8)  # as the holder of a lease

    async def hit_and_get(
        self, hits: Sequence[CounterHit], gets: Sequence[str]
    ) -> tuple[list[int], list[bytes | None]]:
        now = self._clock()
        positions = [slot_position(hit, now) for hit in hits]
        for position in positions:
            if position.amount:
                return await self._write(lambda db: rows.hit_and_get(db, positions, gets, now))
        return await self._read(lambda db: rows.hit_and_get(db, positions, gets, now))

    async def get(self, key: str) -> bytes | None:
        return await self._read(lambda db: rows.get(db, key, self._clock()))

    async def set(self, key: str, value: bytes, ttl: float, *, absent: bool = False) -> bool:
        now = self._clock()
        return await self._write(lambda db: rows.set_(db, key, value, ttl, now, absent=absent))

    async def delete(self, key: str) -> None:
        await self._write(lambda db: rows.delete(db, key))

    async def hit(self, hits: Sequence[CounterHit]) -> list[int]:
        return (await self.hit_and_get(hits, ()))[0]

    async def unhit(self, hits: Sequence[CounterHit]) -> None:
        now = self._clock()
        positions = [slot_position(hit, now) for hit in hits]
        await self._write(lambda db: rows.unhit(db, positions))

    async def expirations(self, hit: CounterHit) -> list[tuple[float, int]]:
        now = self._clock()
        return expirations(hit, now, await self._read(lambda db: rows.sums_by_slot(db, slot_position(hit, now).name)))

    async def lease(self, leases: Sequence[Lease], ttl: float) -> list[int]:
        now = self._clock()
        if all(lease.limit == 0 for lease in leases):  # nothing is ever taken, so no lock is needed either
            return await self._read(lambda db: rows.lease(db, leases, now, 0.0))
        return await self._write(lambda db: rows.lease(db, leases, now, ttl))

    async def release(self, leases: Sequence[Lease]) -> None:
        await self._write(lambda db: rows.release(db, leases))

    async def page(self, kind: str, after: str = "") -> tuple[list[StoredValue], str]:
        now = self._clock()
        found = await self._read(lambda db: rows.page(db, kind, after, now, BATCH_SIZE))
        return [StoredValue(key, value, expires - now) for key, value, expires in found], found[-1][0] if found else ""

    async def tally(self, bucket: str, row: bytes, ttl: float, limit: int) -> bool:
        now = self._clock()
        return await self._write(lambda db: rows.tally(db, bucket, row, ttl, now, limit))

    async def tallies(self, bucket: str) -> dict[bytes, int]:
        return await self._read(lambda db: rows.tallies(db, bucket, self._clock()))

    async def created_at(self) -> float:
        return await self._shared_values.created_at()

    async def secret(self) -> bytes:
        return await self._shared_values.secret()

    async def close(self) -> None:
        self._closing.set()
        if self._maintenance is not None:
            self._maintenance.cancel()
            await asyncio.wait([self._maintenance])
        if self._writes:
            self._commit()
        _fail([write for write in self._writes if not write.done.done()], StoreError(f"{self._path} is closed"))
        self._writes = []
        if self._retry_timer is not None:
            self._retry_timer.close()
            self._retry_timer = None
        self._disconnect()

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work` at once. Raises StoreError.

        In WAL mode a writer never makes a reader wait, only a process that opens the file or recovers it after a crash.
        """
        clock = asyncio.get_running_loop().time
        deadline = 0.0
        while True:
            try:
                return work(self._db or self._open())
            except (sqlite3.Error, OSError) as error:
                deadline = deadline or clock() + self._timeout
                if not _is_busy(error) or clock() > deadline:
                    raise self._to_store_error(error) from None
            await asyncio.sleep(0.001)

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Do `work` in the transaction of all writes in this iteration of the event loop. Raises StoreError."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        self._writes.append(_Write(work, done, loop.time() + self._timeout))
        if len(self._writes) == 1:
            loop.call_soon(self._commit)
        try:
            result: T = await done
        finally:
            del done  # an error holds this frame, which must not hold the error
        return result

    def _commit(self) -> None:
        """Do the pending writes, all or nothing. While another process writes, try again later."""
        writes = [write for write in self._writes if not write.done.done()]  # others were cancelled
        self._writes = []
        while writes:
            current: _Write | None = None
            try:
                db = self._db or self._open()
                if self._must_yield(writes[0]):
                    self._retry_later(writes, "database is locked")
                    return
                _begin(db)
                results = []
                for current in writes:
                    results.append(current.work(db))
                db.execute("COMMIT")
            except (sqlite3.Error, OSError) as error:
                self._roll_back()
                if _is_busy(error):
                    self._retry_later(writes, str(error))
                    return
                _fail(writes, self._to_store_error(error))
                break
            except Exception as error:  # noqa: BLE001 (raised in whoever asked for the write)
                self._roll_back()
                if current is None:
                    _fail(writes, error)
                    break
                current.done.set_exception(error)  # its own fault: the others are tried again without it
                writes.remove(current)
            else:
                self._locked_since = 0.0
                self._attempts = 0
                for write, result in zip(writes, results, strict=True):
                    write.done.set_result(result)
                self._count_writes(len(writes))
                break
        if self._fair_lock is not None:
            self._fair_lock.release()

    def _must_yield(self, first: _Write) -> bool:
        """Return True if another process has claimed the turn.

        After half of the timeout we no longer yield: that process may have been stopped.
        """
        if self._fair_lock is None or not self._fair_lock.is_claimed_elsewhere():
            return False
        return first.deadline - asyncio.get_running_loop().time() > self._timeout / 2

    def _retry_later(self, writes: list[_Write], why: str) -> None:
        """Try these writes again soon; those whose time is over fail."""
        now = asyncio.get_running_loop().time()
        self._attempts += 1
        expired = [write for write in writes if write.deadline < now + MAX_RETRY_DELAY]
        if expired and self._attempts < MIN_ATTEMPTS:
            expired = []
        if expired:
            _fail(expired, self._busy_error(why))
        self._writes = writes[len(expired) :]
        if not self._writes:
            self._attempts = 0
            if self._fair_lock is not None:
                self._fair_lock.release()
            return
        waited = now - self._writes[0].deadline + self._timeout
        if waited > CLAIM_DELAY and self._fair_lock is not None:
            self._fair_lock.claim()
        self._retry_timer = self._retry_timer or ShortTimer(self._commit)
        self._retry_timer.set(min(max(waited, RETRY_DELAY), MAX_RETRY_DELAY))

    def _roll_back(self) -> None:
        if self._db is not None and self._db.in_transaction:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")

    def _count_writes(self, writes: int) -> None:
        self._writes_since_checkpoint += writes
        if self._writes_since_checkpoint >= CHECKPOINT_WRITES:
            self._writes_since_checkpoint = 0
            self._checkpoint_due.set()

    def _to_store_error(self, error: Exception) -> StoreError:
        """Make a StoreError of `error`. After anything but a busy file, the file is reopened."""
        if _is_busy(error):
            return self._busy_error(str(error))
        self._disconnect()
        if _is_damage(error):
            before = files.state_for_people(self._path)
            what = f"{self._path}: {error}; `gatekeeper state check` says more"
            return StoreDamaged(what, lambda: files.state_for_people(self._path) == before)
        return StoreError(f"{self._path}: {error}")

    def _busy_error(self, why: str) -> StoreError:
        """Make the error of a call that came too late.

        One says nothing of the file: where CPU is short, others hold the lock for long now and then.
        """
        now = asyncio.get_running_loop().time()
        self._locked_since = self._locked_since or now
        return (StoreError if now - self._locked_since > PATIENCE else StoreBusy)(f"{self._path}: {why}")

    def _open(self) -> files.SqliteConnection:
        if self._opened_by not in (None, os.geteuid()):
            # A command that was its owner when it opened the file, and is root again (stores/state_owner.py).
            raise PermissionError(errno.EPERM, "it was opened as another user, and cannot be opened again")
        self._opened_by = os.geteuid()
        if not self._read_only:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            files.create(self._path)
            if not os.access(self._path, os.W_OK, effective_ids=True):
                # SQLite would open it for reading, and leave files beside it that stay read-only after it is fixed.
                raise PermissionError(errno.EACCES, "cannot be written")
        db = files.connect(self._path, 0.0, read_only=self._read_only)
        try:
            if not self._read_only:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = NORMAL")
                db.execute("PRAGMA wal_autocheckpoint = 20000")  # pages: a safety net below _maintain()
                db.execute("BEGIN IMMEDIATE")
                rows.prepare(db)
                db.execute("COMMIT")
                db.hold_locks()
            self._files = (db.file, *files.files(self._path)[1:])
        except BaseException:
            db.close()
            raise
        self._db = db
        if not self._read_only:
            self._fair_lock = FairLock(self._path.parent)
            if self._maintenance is None:
                self._maintenance = asyncio.create_task(self._maintain())
        return db

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._fair_lock is not None:
            self._fair_lock.close()
            self._fair_lock = None

    async def _maintain(self) -> None:
        clock = asyncio.get_running_loop().time
        due = clock() + MAINTENANCE_INTERVAL
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._checkpoint_due.wait()
            self._checkpoint_due.clear()
            is_due = clock() >= due
            if is_due:
                due = clock() + MAINTENANCE_INTERVAL
                if self._db is not None and self._files != files.files(self._path):
                    self._disconnect()
            try:
                if not is_due:
                    await asyncio.to_thread(self._clean_up, sweep=False)
                elif await self.lease([Lease(_LEASE, self._process, 1)], MAINTENANCE_INTERVAL * 0.9) == [1]:
                    await asyncio.to_thread(self._clean_up, sweep=True)
            except (StoreError, sqlite3.Error, OSError):
                continue  # the next call will report it

    def _clean_up(self, *, sweep: bool) -> None:
        """Delete what has expired (with `sweep`), then checkpoint; in a thread. Ends early when the store is closed."""
        with closing(files.connect(self._path, self._timeout)) as db:
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA wal_autocheckpoint = 0")
            for statement, parameters in rows.expired(db, self._clock(), BATCH_SIZE) if sweep else ():
                db.execute("BEGIN IMMEDIATE")
                db.executemany(statement, parameters)
                db.execute("COMMIT")
                if self._closing.wait(0.005):
                    return
            _, pages, _ = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if pages > RESTART_PAGES:
                _, pages, copied = db.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()  # what remains is little
                self._say_if_stuck(pages - copied)

    def _say_if_stuck(self, pages: int) -> None:
        """Say once that `-wal` cannot be begun anew: it grows until the disk is full."""
        if pages > STUCK_PAGES and not self._stuck:
            what = "something has been reading it for long, like a hung backup, so that -wal grows without end"
            logger.warning("%s: %s: %d MB", self._path, what, pages * 4096 // 10**6)
        self._stuck = pages > STUCK_PAGES


def _begin(db: sqlite3.Connection) -> None:
    try:
        db.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_BUSY_SNAPSHOT:
            raise
        db.execute("BEGIN IMMEDIATE")  # another process wrote between SQLite's read and its lock, and is done


def _is_busy(error: Exception) -> bool:
    """Return True for SQLITE_BUSY and its extended codes: BUSY_SNAPSHOT and BUSY_RECOVERY pass, too."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def _is_damage(error: Exception) -> bool:
    """Return True for SQLITE_CORRUPT and SQLITE_NOTADB."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _fail(writes: Sequence[_Write], error: Exception) -> None:
    kind = type(error) if isinstance(error, StoreError) else StoreError
    for write in writes:
        write.done.set_exception(kind(*error.args))  # a new one for each
