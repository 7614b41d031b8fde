# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of the SQLite store, and what is done to them within one transaction (sqlite.py has the file).

No index on `expires`: to keep one takes as long as all else that a request writes. What has expired is not seen, and
`expired` finds it in the order of the keys.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache

from gatekeeper.store import Lease
from gatekeeper.stores.window import Place

SCHEMA = """
CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value BLOB NOT NULL, expires REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counted (name TEXT, slot INTEGER, amount INTEGER NOT NULL, expires REAL NOT NULL,
                                    PRIMARY KEY (name, slot)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS token (token TEXT PRIMARY KEY, slot INTEGER NOT NULL, expires REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lease (key TEXT, holder TEXT, expires REAL NOT NULL,
                                  PRIMARY KEY (key, holder)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tally (bucket TEXT, row BLOB, amount INTEGER NOT NULL, expires REAL NOT NULL,
                                  PRIMARY KEY (bucket, row)) WITHOUT ROWID;
"""
_KEYS = {"kept": ("key",), "counted": ("name", "slot"), "token": ("token",), "lease": ("key", "holder")} | {
    "tally": ("bucket", "row")
}
"""The tables and their primary keys."""

_PAGE = """SELECT key, value, expires FROM kept
           WHERE expires > ? AND key > ? AND key < ? || '~' ORDER BY key LIMIT ?"""
_SET = """INSERT INTO kept VALUES (?, ?, ?)
          ON CONFLICT DO UPDATE SET value = excluded.value, expires = excluded.expires WHERE expires <= ?"""
_DELETE = "DELETE FROM kept WHERE key = ?"
_SUM = """SELECT coalesce(sum(amount), 0), (SELECT slot FROM token WHERE token = ?)
          FROM counted WHERE name = ? AND slot BETWEEN ? AND ?"""
_ADD = """INSERT INTO counted VALUES (?, ?, ?, ?)
          ON CONFLICT DO UPDATE SET amount = amount + excluded.amount, expires = excluded.expires"""
_ONCE = "INSERT OR REPLACE INTO token VALUES (?, ?, ?)"
_FORGET_TOKEN = "DELETE FROM token WHERE token = ? RETURNING slot"
_SLOTS = "SELECT slot FROM counted WHERE name = ? AND amount > 0 ORDER BY slot DESC"
_SPREAD = "SELECT slot, amount FROM counted WHERE name = ?"
_AMOUNT = "SELECT amount FROM counted WHERE name = ? AND slot = ?"
_TAKE = "UPDATE counted SET amount = amount - ? WHERE name = ? AND slot = ?"
_HOLDERS = "SELECT count(*) FROM lease WHERE key = ? AND holder != ? AND expires > ?"
_HOLD = "INSERT INTO lease VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET expires = excluded.expires"
_RELEASE = "DELETE FROM lease WHERE key = ? AND holder = ?"
_TALLY = """INSERT INTO tally SELECT ?1, ?2, 1, ?4
            WHERE EXISTS (SELECT 1 FROM tally WHERE bucket = ?1 AND row = ?2 AND expires > ?3)
               OR (SELECT count(*) FROM tally WHERE bucket = ?1 AND expires > ?3) < ?5
            ON CONFLICT DO UPDATE SET amount = iif(expires > ?3, amount, 0) + 1, expires = excluded.expires"""
_TALLIES = "SELECT row, amount FROM tally WHERE bucket = ? AND expires > ?"

Db = sqlite3.Connection


def ask(db: Db, places: Sequence[Place], keys: Sequence[str], now: float) -> tuple[list[int], list[bytes | None]]:
    """Store.ask. What does not fit is seen before anything is written."""
    sums: list[int] = []
    added: defaultdict[str, int] = defaultdict(int)
    counting: dict[str | int, Place] = {}  # by token, so that each comes once
    for number, at in enumerate(places):
        sum_, seen = db.execute(_SUM, (at.token, at.name, at.first, at.last)).fetchone()
        if at.amount and at.token not in counting and not (seen is not None and at.first <= seen <= at.last):
            counting[at.token or number] = at
            added[at.name] += at.amount
        sums.append(sum_ + added[at.name])
    if counting and all(sum_ <= at.most for sum_, at in zip(sums, places, strict=True)):
        for at in counting.values():
            if at.token:
                db.execute(_ONCE, (at.token, at.slot, now + at.ttl))
            db.execute(_ADD, (at.name, at.slot, at.amount, now + at.ttl))
    return sums, get(db, keys, now) if keys else []


def get(db: Db, keys: Sequence[str], now: float) -> list[bytes | None]:
    """The values, in order; None for those that have none or have expired."""
    found = dict(db.execute(_get(len(keys)), (*keys, now)).fetchall())
    return [found.get(key) for key in keys]


@lru_cache
def _get(count: int) -> str:
    return f"SELECT key, value FROM kept WHERE key IN ({', '.join('?' * count)}) AND expires > ?"  # noqa: S608 (?s)


def set_(db: Db, key: str, value: bytes, ttl: float, now: float, *, absent: bool) -> bool:
    """Store.set."""
    return db.execute(_SET, (key, value, now + ttl, now if absent else float("inf"))).rowcount == 1


def delete(db: Db, key: str) -> None:
    """Store.delete."""
    db.execute(_DELETE, (key,))


def unhit(db: Db, places: Sequence[Place]) -> None:
    """Store.unhit."""
    for at in places:
        statement, subject = (_FORGET_TOKEN, at.token) if at.token else (_SLOTS, at.name)
        left = at.amount
        for (slot,) in db.execute(statement, (subject,)).fetchall():
            (amount,) = db.execute(_AMOUNT, (at.name, slot)).fetchone() or (0,)
            taken = min(left, amount)
            db.execute(_TAKE, (taken, at.name, slot))
            left -= taken
            if not left:
                break


def spread(db: Db, name: str) -> dict[int, int]:
    """The sums by slot."""
    return dict(db.execute(_SPREAD, (name,)).fetchall())


def lease(db: Db, leases: Sequence[Lease], now: float, expires: float) -> list[int]:
    """Store.lease."""
    counts = [int(db.execute(_HOLDERS, (lease.key, lease.holder, now)).fetchone()[0]) + 1 for lease in leases]
    if all(lease.most is None or count <= lease.most for count, lease in zip(counts, leases, strict=True)):
        db.executemany(_HOLD, [(lease.key, lease.holder, expires) for lease in leases])
    return counts


def release(db: Db, leases: Sequence[Lease]) -> None:
    """Store.release."""
    db.executemany(_RELEASE, [(lease.key, lease.holder) for lease in leases])


def page(db: Db, kind: str, after: str, now: float, count: int) -> list[tuple[str, bytes, float]]:
    """Keys of a kind with their values and expiries, the next `count` after one."""
    return db.execute(_PAGE, (now, after or kind, kind, count)).fetchall()


def tally(db: Db, bucket: str, row: bytes, ttl: float, now: float, most: int) -> bool:
    """Store.tally."""
    return db.execute(_TALLY, (bucket, row, now, now + ttl, most)).rowcount == 1


def tallies(db: Db, bucket: str, now: float) -> dict[bytes, int]:
    """Store.tallies."""
    return {bytes(row): amount for row, amount in db.execute(_TALLIES, (bucket, now)).fetchall()}


def expired(db: Db, now: float, count: int) -> Iterator[tuple[str, list[tuple[str | int | float, ...]]]]:
    """A statement that deletes, and for which rows: what has expired, at most `count` rows at a time. Locks nothing;
    looks at each row once, a million of them in a third of a second."""
    for table, columns in _KEYS.items():
        key, marks = ", ".join(columns), ", ".join("?" * len(columns))
        find = f"SELECT {key} FROM {table} WHERE ({key}) > ({marks}) AND expires <= ? ORDER BY {key} LIMIT ?"  # noqa: S608 (ours)
        statement = f"DELETE FROM {table} WHERE ({key}) = ({marks}) AND expires <= ?"  # noqa: S608 (ours)
        after: tuple[str | int, ...] = ("", -1)[: len(columns)] if table == "counted" else ("",) * len(columns)
        while rows := db.execute(find, (*after, now, count)).fetchall():
            yield statement, [(*row, now) for row in rows]
            after = rows[-1]
