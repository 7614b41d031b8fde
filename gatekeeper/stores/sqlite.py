# SPDX-License-Identifier: GPL-3.0-or-later
"""State in one SQLite file that all processes of one machine share: the embedded default.

Called inline on the event loop: a call takes about 20 µs, and handing it to a thread costs more. WAL, so readers never
wait; `synchronous=NORMAL`, so no call waits for the disk: after a power cut the last writes may be missing, the file is
whole. What several requests write in one round of the event loop is one transaction, which is most of what it costs;
while another process writes they wait, no longer than the time limit, and nothing else does.

After an error the file is opened anew, also if it has been replaced or deleted while we run (noticed within
MAINTENANCE seconds); a damaged file is left for a person: moved away, it is replaced by a new one. Expiry and
checkpoints (which wait for the disk) run in a thread with a connection of its own, in one process at a time: whoever
gets the lease of the round. Rows go in batches, so that writers get in between. What an entry takes: docs/state.md.
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

from gatekeeper.store import Clock, Hit, Kept, Lease, StoreError
from gatekeeper.stores import rows
from gatekeeper.stores.origin import Origin
from gatekeeper.stores.window import place, spread

T = TypeVar("T")

AGAIN = 0.0005
"""Seconds between two tries to write while another process does. SQLite's own waiting holds up the whole process, for a
millisecond at least."""
MAINTENANCE = 30.0
"""Seconds between two rounds of expiry and checkpoint."""
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
        self._writes: list[_Write] = []
        self._read_only = read_only
        self._db: sqlite3.Connection | None = None
        self._inode = (0, 0)
        self._origin = Origin(self, clock)
        self._maintenance: asyncio.Task[None] | None = None
        self._closing = threading.Event()

    async def ask(self, hits: Sequence[Hit], gets: Sequence[str]) -> tuple[list[int], list[bytes | None]]:
        now = self._clock()
        places = [place(hit, now) for hit in hits]
        do = self._write if any(at.amount for at in places) else self._read
        return await do(lambda db: rows.ask(db, places, gets, now))

    async def get(self, key: str) -> bytes | None:
        return (await self._read(lambda db: rows.get(db, (key,), self._clock())))[0]

    async def set(self, key: str, value: bytes, ttl: float, *, absent: bool = False) -> bool:
        return await self._write(lambda db: rows.set_(db, key, value, ttl, self._clock(), absent=absent))

    async def delete(self, key: str) -> None:
        await self._write(lambda db: rows.delete(db, key))

    async def hit(self, hits: Sequence[Hit]) -> list[int]:
        return (await self.ask(hits, ()))[0]

    async def unhit(self, hits: Sequence[Hit]) -> None:
        now = self._clock()
        places = [place(hit, now) for hit in hits]
        await self._write(lambda db: rows.unhit(db, places))

    async def spread(self, hit: Hit) -> list[tuple[float, int]]:
        now = self._clock()
        return spread(hit, now, await self._read(lambda db: rows.spread(db, place(hit, now).name)))

    async def lease(self, leases: Sequence[Lease], ttl: float) -> list[int]:
        now = self._clock()
        if all(lease.most == 0 for lease in leases):  # nothing is ever taken, so no lock is needed either
            return await self._read(lambda db: rows.lease(db, leases, now, now))
        return await self._write(lambda db: rows.lease(db, leases, now, now + ttl))

    async def release(self, leases: Sequence[Lease]) -> None:
        await self._write(lambda db: rows.release(db, leases))

    async def page(self, kind: str, after: str = "") -> tuple[list[Kept], str]:
        now = self._clock()
        found = await self._read(lambda db: rows.page(db, kind, after, now, BATCH))
        return [Kept(key, value, expires - now) for key, value, expires in found], found[-1][0] if found else ""

    async def tally(self, bucket: str, row: bytes, ttl: float, most: int) -> bool:
        return await self._write(lambda db: rows.tally(db, bucket, row, ttl, self._clock(), most))

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
        self._drop()

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` at once: in WAL mode no writer keeps a reader waiting, only who opens the file or mends it after a
        crash. Raises StoreError."""
        clock = asyncio.get_running_loop().time
        until = 0.0
        while True:
            try:
                return work(self._db or self._open())
            except (sqlite3.Error, OSError) as error:
                until = until or clock() + self._timeout
                if not _is_busy(error) or clock() > until:
                    raise self._accident(error) from None
            await asyncio.sleep(AGAIN)

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` in a transaction, one for all who want to write in this round of the loop. Raises StoreError."""
        loop = asyncio.get_running_loop()
        write = _Write(work, loop.create_future(), loop.time() + self._timeout)
        self._writes.append(write)
        if len(self._writes) == 1:
            loop.call_soon(self._commit)
        result: T = await write.done
        return result

    def _commit(self) -> None:
        """Do what is waiting, all or nothing. While another process writes, wait for it without holding up the loop."""
        try:
            db = self._db or self._open()
            db.execute("BEGIN IMMEDIATE")
        except (sqlite3.Error, OSError) as error:
            loop = asyncio.get_running_loop()
            if _is_busy(error) and self._writes and loop.time() < self._writes[0].until:
                loop.call_later(AGAIN, self._commit)
            else:
                self._end(self._accident(error))
            return
        try:
            results = [write.work(db) for write in self._writes]
            db.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            self._end(self._accident(error))
        except Exception as error:
            db.execute("ROLLBACK")
            self._end(error)
        else:
            self._end(results)

    def _end(self, ended: list[Any] | Exception) -> None:
        """Tell everybody who waits: what came of it, or what went wrong for all."""
        writes, self._writes = self._writes, []
        for number, write in enumerate(writes):
            if write.done.done():  # whoever wanted it has gone
                continue
            if isinstance(ended, Exception):
                write.done.set_exception(ended.__class__(*ended.args))  # a fresh one for each
            else:
                write.done.set_result(ended[number])

    def _accident(self, error: Exception) -> StoreError:
        """After anything but a busy file it is opened anew."""
        if not _is_busy(error):
            self._drop()
        return StoreError(f"{self._path}: {error}")

    def _open(self) -> sqlite3.Connection:
        if not self._read_only:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _create(self._path)
            if not os.access(self._path, os.W_OK, effective_ids=True):
                # SQLite would open it to read, and leave files beside it that stay read-only when this one is mended.
                raise PermissionError(errno.EACCES, "cannot be written")
        db = _connect(self._path, 0.0, read_only=self._read_only)
        try:
            if not self._read_only:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = NORMAL")
                db.execute("PRAGMA wal_autocheckpoint = 20000")  # pages: the net below _maintain()
                db.execute("BEGIN IMMEDIATE")
                for line in rows.SCHEMA.split(";"):
                    db.execute(line)
                db.execute("COMMIT")
            self._inode = _inode(self._path)
        except BaseException:
            db.close()
            raise
        self._db = db
        if not self._read_only and self._maintenance is None:
            self._maintenance = asyncio.create_task(self._maintain())
        return db

    def _drop(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    async def _maintain(self) -> None:
        while True:
            await asyncio.sleep(MAINTENANCE)
            if self._db is not None and self._inode != _inode(self._path):
                self._drop()
            try:
                if await self.set(_LEASE, b"", MAINTENANCE * 0.9, absent=True):
                    await asyncio.to_thread(self._sweep)
            except (StoreError, sqlite3.Error):
                continue  # whoever asks something next hears it

    def _sweep(self) -> None:
        """One round, in a thread. Ends early when the store is closed."""
        with closing(_connect(self._path, self._timeout)) as db:
            for statement, parameters in rows.expired(db, self._clock(), BATCH):
                db.execute("BEGIN IMMEDIATE")
                db.executemany(statement, parameters)
                db.execute("COMMIT")
                if self._closing.wait(0.005):
                    return
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")


def _is_busy(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY


def _connect(path: Path, busy: float, *, read_only: bool = False) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}", uri=True, timeout=busy, isolation_level=None
    )


def _create(path: Path) -> None:
    """Make the file, because SQLite would make it readable for all; the files beside it get the same mode.

    One that exists is not even opened: closing it would drop all locks that this process has on it (fcntl(2)).
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        pass


def _inode(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return (found.st_dev, found.st_ino)
