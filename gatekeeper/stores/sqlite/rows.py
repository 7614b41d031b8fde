# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of the SQLite store, and what is done to them within one transaction (store.py has the file).

A statement costs more than a row of it, so that what one call asks is one SELECT, and what it counts two INSERTs,
however many hits it has. Tokens, the most rows by far, are kept as 64 bits of their hash: half the file. Two of a
million that are the same, and so a message that is not counted, are to be expected once in thirty million such windows.
No index on `expires`: to keep one takes as long as all else that a request writes. What has expired is not seen, and
`expired` finds it in the order of the keys.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from gatekeeper.stores.sliding_window import SlotPosition
from gatekeeper.stores.store import Lease

SCHEMA = """
CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value BLOB NOT NULL, expires REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counted (name TEXT, slot INTEGER, amount INTEGER NOT NULL, expires REAL NOT NULL,
                                    PRIMARY KEY (name, slot)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS token (token INTEGER PRIMARY KEY, slot INTEGER NOT NULL, expires REAL NOT NULL);
CREATE TABLE IF NOT EXISTS lease (key TEXT, holder TEXT, expires REAL NOT NULL,
                                  PRIMARY KEY (key, holder)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tally (bucket TEXT, row BLOB, amount INTEGER NOT NULL, expires REAL NOT NULL,
                                  PRIMARY KEY (bucket, row)) WITHOUT ROWID;
"""
_KEYS: dict[str, dict[str, str | bytes | int]] = {
    "kept": {"key": ""},
    "lease": {"key": "", "holder": ""},
    "tally": {"bucket": "", "row": b""},
    "token": {"token": -(2**63)},
    "counted": {"name": "", "slot": -1},
}
"""The tables and their primary keys, with what comes before all that these can be."""

_SUM = """(SELECT coalesce(sum(amount), 0) FROM counted WHERE name = ? AND slot BETWEEN ? AND ?),
          (SELECT slot FROM token WHERE token = ?)"""
_VALUE = "(SELECT value FROM kept WHERE key = ? AND expires > ?)"
_ONCE = ("INSERT OR REPLACE INTO token VALUES ", "(?, ?, ?)", "")
_ADD = (
    "INSERT INTO counted VALUES ",
    "(?, ?, ?, ?)",
    " ON CONFLICT DO UPDATE SET amount = amount + excluded.amount, expires = excluded.expires",
)
_MOST = 100
"""Questions in one SELECT, rows in one INSERT; no request has as many."""

_PAGE = """SELECT key, value, expires FROM kept
           WHERE expires > ? AND key > ? AND key < ? || '~' ORDER BY key LIMIT ?"""
_SET = """INSERT INTO kept VALUES (?, ?, ?)
          ON CONFLICT DO UPDATE SET value = excluded.value, expires = excluded.expires WHERE expires <= ?"""
_DELETE = "DELETE FROM kept WHERE key = ?"
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


def ask(
    db: Db, places: Sequence[SlotPosition], keys: Sequence[str], now: float
) -> tuple[list[int], list[bytes | None]]:
    """Store.ask. What does not fit is seen before anything is written."""
    found = _look_up(db, places, keys, now)
    asked = 2 * len(places)
    values = found[asked:]
    sums: list[int] = []
    added: defaultdict[str, int] = defaultdict(int)
    counting: dict[str | int, SlotPosition] = {}  # by token, so that each comes once
    fits = True
    for number, at in enumerate(places):
        name, token, _, amount, _, most = at
        sum_, seen = found[2 * number], found[2 * number + 1]
        if amount and token not in counting and not (seen is not None and at.first <= seen <= at.last):
            counting[token or number] = at
            added[name] += amount
        sum_ += added[name]
        fits = fits and sum_ <= most
        sums.append(sum_)
    if counting and fits:
        _count(db, list(counting.values()), now)
    return sums, values


def _look_up(db: Db, places: Sequence[SlotPosition], keys: Sequence[str], now: float) -> list[Any]:
    """For each place its sum and the slot in which its token was counted, or None; then the values."""
    if len(places) + len(keys) > _MOST:
        if len(places) > 1:
            half = len(places) // 2
            return _look_up(db, places[:half], (), now) + _look_up(db, places[half:], keys, now)
        half = len(keys) // 2
        return _look_up(db, places, keys[:half], now) + _look_up(db, (), keys[half:], now)
    parameters: list[str | int | float | None] = []
    for at in places:
        parameters += (at.name, at.first, at.last, _hash(at.token))
    for key in keys:
        parameters += (key, now)
    return list(db.execute(_questions(len(places), len(keys)), parameters).fetchone()) if parameters else []


@lru_cache(maxsize=256)  # asked for twice: when it is looked up and when it is counted
def _hash(token: str) -> int | None:
    """None, which is the token of no row, without a token."""
    return int.from_bytes(blake2b(token.encode(), digest_size=8).digest(), signed=True) if token else None


@lru_cache
def _questions(sums: int, values: int) -> str:
    return "SELECT " + ", ".join([_SUM] * sums + [_VALUE] * values)


def _count(db: Db, places: Sequence[SlotPosition], now: float) -> None:
    once: list[str | int | float | None] = []
    add: list[str | int | float] = []
    for at in places[:_MOST]:
        expires = now + at.ttl
        if at.token:
            once += (_hash(at.token), at.slot, expires)
        add += (at.name, at.slot, at.amount, expires)
    if once:
        db.execute(_rows(_ONCE, len(once) // 3), once)
    db.execute(_rows(_ADD, len(add) // 4), add)
    if len(places) > _MOST:
        _count(db, places[_MOST:], now)


@lru_cache
def _rows(statement: tuple[str, str, str], count: int) -> str:
    start, row, end = statement
    return start + ", ".join([row] * count) + end


def get(db: Db, key: str, now: float) -> bytes | None:
    """Store.get."""
    value: bytes | None = db.execute(_questions(0, 1), (key, now)).fetchone()[0]
    return value


def set_(db: Db, key: str, value: bytes, expires: float, now: float, *, absent: bool) -> bool:
    """Store.set."""
    return db.execute(_SET, (key, value, expires, now if absent else float("inf"))).rowcount == 1


def delete(db: Db, key: str) -> None:
    """Store.delete."""
    db.execute(_DELETE, (key,))


def unhit(db: Db, places: Sequence[SlotPosition]) -> None:
    """Store.unhit."""
    for at in places:
        statement, subject = (_FORGET_TOKEN, _hash(at.token)) if at.token else (_SLOTS, at.name)
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


def tally(db: Db, bucket: str, row: bytes, expires: float, now: float, most: int) -> bool:
    """Store.tally."""
    return db.execute(_TALLY, (bucket, row, now, expires, most)).rowcount == 1


def tallies(db: Db, bucket: str, now: float) -> dict[bytes, int]:
    """Store.tallies."""
    return {bytes(row): amount for row, amount in db.execute(_TALLIES, (bucket, now)).fetchall()}


def expired(db: Db, now: float, count: int) -> Iterator[tuple[str, list[tuple[str | bytes | int | float, ...]]]]:
    """A statement that deletes, and for which rows: what has expired, at most `count` rows at a time. Locks nothing;
    looks at each row once, a million of them in a third of a second.
    """
    for table, columns in _KEYS.items():
        key, marks = ", ".join(columns), ", ".join("?" * len(columns))
        find = f"SELECT {key} FROM {table} WHERE ({key}) > ({marks}) AND expires <= ? ORDER BY {key} LIMIT ?"  # noqa: S608 (ours)
        statement = f"DELETE FROM {table} WHERE ({key}) = ({marks}) AND expires <= ?"  # noqa: S608 (ours)
        after = tuple(columns.values())
        while rows := db.execute(find, (*after, now, count)).fetchall():
            yield statement, [(*row, now) for row in rows]
            after = rows[-1]
