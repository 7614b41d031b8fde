# SPDX-License-Identifier: GPL-3.0-or-later
"""State in one SQLite file that all processes of one machine share: the embedded default.

Called inline on the event loop: a call takes about 20 µs, and handing it to a thread costs more. WAL, so readers never
wait; `synchronous=NORMAL`, so no call waits for the disk: after a power cut the last writes may be missing, the file is
whole. A writer that finds another one at work waits for it, but not longer than half of the store's
time limit (50 ms), because all requests of the process wait with it. After an error the file is opened anew, also if it
has been replaced or deleted while we run (noticed within MAINTENANCE seconds); a damaged file is left for a person:
moved away, it is replaced by a new one.

Expiry and checkpoints (which wait for the disk) run in a thread with a connection of its own, in one process at a
time: whoever gets the lease of the round. Rows go in batches, so that writers get in between.

A greylist entry takes about 150 bytes of the file.
"""

import asyncio
import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from gatekeeper.store import Clock, Hit, Kept, Lease, StoreError
from gatekeeper.stores.origin import Origin
from gatekeeper.stores.window import Place, place, spread

T = TypeVar("T")

MAINTENANCE = 30.0
"""Seconds between two rounds of expiry and checkpoint."""
BATCH = 200
"""Rows deleted in one transaction."""
_LEASE = "maintenance"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value BLOB NOT NULL, expires REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counted (name TEXT, slot INTEGER, amount INTEGER NOT NULL, expires REAL NOT NULL,
                                    PRIMARY KEY (name, slot)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS token (token TEXT PRIMARY KEY, slot INTEGER NOT NULL, expires REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lease (key TEXT, holder TEXT, expires REAL NOT NULL,
                                  PRIMARY KEY (key, holder)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tally (bucket TEXT, row BLOB, amount INTEGER NOT NULL, expires REAL NOT NULL,
                                  PRIMARY KEY (bucket, row)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tally_expires ON tally (expires);
CREATE INDEX IF NOT EXISTS lease_expires ON lease (expires);
CREATE INDEX IF NOT EXISTS kept_expires ON kept (expires);
CREATE INDEX IF NOT EXISTS counted_expires ON counted (expires);
CREATE INDEX IF NOT EXISTS token_expires ON token (expires);
"""
_GET = "SELECT value FROM kept WHERE key = ? AND expires > ?"
_PAGE = """SELECT key, value, expires FROM kept
           WHERE expires > ? AND key > ? AND key < ? || '~' ORDER BY key LIMIT ?"""
_SET = """INSERT INTO kept VALUES (?, ?, ?)
          ON CONFLICT DO UPDATE SET value = excluded.value, expires = excluded.expires WHERE expires <= ?"""
_DELETE = "DELETE FROM kept WHERE key = ?"
_SUM = "SELECT coalesce(sum(amount), 0) FROM counted WHERE name = ? AND slot BETWEEN ? AND ?"
_ADD = """INSERT INTO counted VALUES (?, ?, ?, ?)
          ON CONFLICT DO UPDATE SET amount = amount + excluded.amount, expires = excluded.expires"""
_ONCE = """INSERT INTO token VALUES (?, ?, ?)
           ON CONFLICT DO UPDATE SET slot = excluded.slot, expires = excluded.expires WHERE slot NOT BETWEEN ? AND ?"""
_FORGET_TOKEN = "DELETE FROM token WHERE token = ? RETURNING slot"
_SLOTS = "SELECT slot FROM counted WHERE name = ? AND amount > 0 ORDER BY slot DESC"
_SPREAD = "SELECT slot, amount FROM counted WHERE name = ?"
_HOLDERS = "SELECT count(*) FROM lease WHERE key = ? AND holder != ? AND expires > ?"
_HOLD = "INSERT INTO lease VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET expires = excluded.expires"
_RELEASE = "DELETE FROM lease WHERE key = ? AND holder = ?"
_TALLY = """INSERT INTO tally SELECT ?1, ?2, 1, ?4
            WHERE EXISTS (SELECT 1 FROM tally WHERE bucket = ?1 AND row = ?2 AND expires > ?3)
               OR (SELECT count(*) FROM tally WHERE bucket = ?1 AND expires > ?3) < ?5
            ON CONFLICT DO UPDATE SET amount = iif(expires > ?3, amount, 0) + 1, expires = excluded.expires"""
_TALLIES = "SELECT row, amount FROM tally WHERE bucket = ? AND expires > ?"
_EXPIRE = (
    "DELETE FROM tally WHERE (bucket, row) IN (SELECT bucket, row FROM tally WHERE expires <= ? LIMIT ?)",
    "DELETE FROM kept WHERE key IN (SELECT key FROM kept WHERE expires <= ? LIMIT ?)",
    "DELETE FROM lease WHERE (key, holder) IN (SELECT key, holder FROM lease WHERE expires <= ? LIMIT ?)",
    "DELETE FROM token WHERE token IN (SELECT token FROM token WHERE expires <= ? LIMIT ?)",
    "DELETE FROM counted WHERE (name, slot) IN (SELECT name, slot FROM counted WHERE expires <= ? LIMIT ?)",
)


class SqliteStore:
    """See store.Store. The file is opened at the first use, and created with its directory where it does not exist.

    With `read_only` it is neither created nor written.
    """

    def __init__(self, path: Path, clock: Clock = time.time, timeout: float = 0.1, *, read_only: bool = False) -> None:
        self._path = path
        self._clock = clock
        self._busy = timeout / 2
        self._read_only = read_only
        self._db: sqlite3.Connection | None = None
        self._inode = (0, 0)
        self._origin = Origin(self, clock)
        self._maintenance: asyncio.Task[None] | None = None
        self._closing = threading.Event()

    async def ask(self, hits: Sequence[Hit], gets: Sequence[str]) -> tuple[list[int], list[bytes | None]]:
        now = self._clock()
        places = [place(hit, now) for hit in hits]

        def ask(db: sqlite3.Connection) -> tuple[list[int], list[bytes | None]]:
            sums = [_hit(db, at, now) for at in places]
            if db.in_transaction and any(sum_ > at.most for sum_, at in zip(sums, places, strict=True)):
                db.execute("ROLLBACK")
            return sums, [_get(db, key, now) for key in gets]

        if not any(at.amount for at in places):
            return self._run(ask)
        return self._run(lambda db: _transaction(db, lambda: ask(db)))

    async def get(self, key: str) -> bytes | None:
        return self._run(lambda db: _get(db, key, self._clock()))

    async def set(self, key: str, value: bytes, ttl: float, *, absent: bool = False) -> bool:
        now = self._clock()
        overwrite = now if absent else float("inf")
        return self._run(lambda db: db.execute(_SET, (key, value, now + ttl, overwrite)).rowcount) == 1

    async def delete(self, key: str) -> None:
        self._run(lambda db: db.execute(_DELETE, (key,)))

    async def hit(self, hits: Sequence[Hit]) -> list[int]:
        return (await self.ask(hits, ()))[0]

    async def unhit(self, hits: Sequence[Hit]) -> None:
        now = self._clock()
        places = [place(hit, now) for hit in hits]
        self._run(lambda db: _transaction(db, lambda: _unhit(db, places)))

    async def spread(self, hit: Hit) -> list[tuple[float, int]]:
        now = self._clock()
        return spread(hit, now, self._run(lambda db: dict(db.execute(_SPREAD, (place(hit, now).name,)).fetchall())))

    async def lease(self, leases: Sequence[Lease], ttl: float) -> list[int]:
        now = self._clock()
        if all(lease.most == 0 for lease in leases):  # nothing is ever taken, so no lock is needed either
            return self._run(lambda db: _lease(db, leases, now, now))
        return self._run(lambda db: _transaction(db, lambda: _lease(db, leases, now, now + ttl)))

    async def release(self, leases: Sequence[Lease]) -> None:
        rows = [(lease.key, lease.holder) for lease in leases]
        self._run(lambda db: _transaction(db, lambda: db.executemany(_RELEASE, rows)))

    async def page(self, kind: str, after: str = "") -> tuple[list[Kept], str]:
        now = self._clock()
        rows = self._run(lambda db: db.execute(_PAGE, (now, after or kind, kind, BATCH)).fetchall())
        return [Kept(key, bytes(value), expires - now) for key, value, expires in rows], rows[-1][0] if rows else ""

    async def tally(self, bucket: str, row: bytes, ttl: float, most: int) -> bool:
        now = self._clock()
        return self._run(lambda db: db.execute(_TALLY, (bucket, row, now, now + ttl, most)).rowcount) == 1

    async def tallies(self, bucket: str) -> dict[bytes, int]:
        found = self._run(lambda db: db.execute(_TALLIES, (bucket, self._clock())).fetchall())
        return {bytes(row): amount for row, amount in found}

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

    def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` on the open file. Raises StoreError; after anything but a busy file it is opened anew."""
        try:
            return work(self._db or self._open())
        except (sqlite3.Error, OSError) as error:
            if getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_BUSY:
                self._drop()
            raise StoreError(f"{self._path}: {error}") from None

    def _open(self) -> sqlite3.Connection:
        if not self._read_only:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _create(self._path)
            if not os.access(self._path, os.W_OK, effective_ids=True):
                # SQLite would open it to read, and leave files beside it that stay read-only when this one is mended.
                raise PermissionError(errno.EACCES, "cannot be written")
        db = _connect(self._path, self._busy, read_only=self._read_only)
        try:
            if not self._read_only:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = NORMAL")
                db.execute("PRAGMA wal_autocheckpoint = 20000")  # pages: the net below _maintain()
                _transaction(db, lambda: [db.execute(line) for line in _SCHEMA.split(";")])
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
        with closing(_connect(self._path, self._busy)) as db:
            for statement in _EXPIRE:
                deleted = BATCH
                while deleted == BATCH and not self._closing.is_set():
                    deleted = db.execute(statement, (self._clock(), BATCH)).rowcount
                    self._closing.wait(0.005)
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")


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


def _transaction(db: sqlite3.Connection, work: Callable[[], T]) -> T:
    db.execute("BEGIN IMMEDIATE")
    try:
        result = work()
        if db.in_transaction:  # else what was done has been undone
            db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return result


def _get(db: sqlite3.Connection, key: str, now: float) -> bytes | None:
    row = db.execute(_GET, (key, now)).fetchone()
    return None if row is None else bytes(row[0])


def _sum(db: sqlite3.Connection, at: Place) -> int:
    return int(db.execute(_SUM, (at.name, at.first, at.last)).fetchone()[0])


def _hit(db: sqlite3.Connection, at: Place, now: float) -> int:
    expires = now + at.ttl
    counts = at.amount != 0
    if counts and at.token:
        counts = db.execute(_ONCE, (at.token, at.slot, expires, at.first, at.last)).rowcount == 1
    if counts:
        db.execute(_ADD, (at.name, at.slot, at.amount, expires))
    return _sum(db, at)


def _lease(db: sqlite3.Connection, leases: Sequence[Lease], now: float, expires: float) -> list[int]:
    counts = [int(db.execute(_HOLDERS, (lease.key, lease.holder, now)).fetchone()[0]) + 1 for lease in leases]
    if all(lease.most is None or count <= lease.most for count, lease in zip(counts, leases, strict=True)):
        db.executemany(_HOLD, [(lease.key, lease.holder, expires) for lease in leases])
    return counts


def _unhit(db: sqlite3.Connection, places: Sequence[Place]) -> None:
    for at in places:
        if at.token:
            slots = db.execute(_FORGET_TOKEN, (at.token,)).fetchall()
        else:
            slots = db.execute(_SLOTS, (at.name,)).fetchall()
        left = at.amount
        for (slot,) in slots:
            if left <= 0:
                break
            left -= _take(db, at.name, slot, left)


def _take(db: sqlite3.Connection, name: str, slot: int, wanted: int) -> int:
    """Take up to `wanted` from the sum of one slot; how much it was."""
    (amount,) = db.execute("SELECT amount FROM counted WHERE name = ? AND slot = ?", (name, slot)).fetchone() or (0,)
    taken = min(wanted, amount)
    db.execute("UPDATE counted SET amount = amount - ? WHERE name = ? AND slot = ?", (taken, name, slot))
    return taken
