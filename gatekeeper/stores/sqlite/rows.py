# SPDX-License-Identifier: GPL-3.0-or-later
"""The tables of the SQLite store, and the statements within one transaction (store.py opens the file).

A statement costs more than its rows, so one call reads with a single SELECT and counts with two INSERTs, however many
hits it has. Tokens, by far the most rows, are stored as 64 bits of their hash: half the file. A collision among a
million of them, and so a message that is not counted, is to be expected once in thirty million such windows. There is
no index on `expires`: maintaining one takes as long as everything else that a request writes. What has expired is
ignored by all reads, and `expired` finds it in the order of the keys.

Each row has its time to live beside its expiry, in whole seconds, so that one which a clock that was ahead has written
is known by it, and brought back to what it would have been (core/stored_time.py).
"""

import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from gatekeeper.core.stored_time import TOLERANCE
from gatekeeper.stores.sliding_window import SlotPosition
from gatekeeper.stores.store import Lease

SCHEMA = """
CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value BLOB NOT NULL, expires REAL NOT NULL,
                                 ttl INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counted (name TEXT, slot INTEGER, amount INTEGER NOT NULL, expires REAL NOT NULL,
                                    ttl INTEGER, PRIMARY KEY (name, slot)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS token (token INTEGER PRIMARY KEY, slot INTEGER NOT NULL, expires REAL NOT NULL, ttl INTEGER);
CREATE TABLE IF NOT EXISTS lease (key TEXT, holder TEXT, expires REAL NOT NULL, ttl INTEGER,
                                  PRIMARY KEY (key, holder)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tally (bucket TEXT, row BLOB, amount INTEGER NOT NULL, expires REAL NOT NULL,
                                  ttl INTEGER, PRIMARY KEY (bucket, row)) WITHOUT ROWID;
"""
_KEYS: dict[str, dict[str, str | bytes | int]] = {
    "kept": {"key": ""},
    "lease": {"key": "", "holder": ""},
    "tally": {"bucket": "", "row": b""},
    "token": {"token": -(2**63)},
    "counted": {"name": "", "slot": -1},
}
"""The tables and their primary keys, each with a value that sorts before all others."""

_SUM = """(SELECT coalesce(sum(amount), 0) FROM counted WHERE name = ? AND slot BETWEEN ? AND ?),
          (SELECT slot FROM token WHERE token = ?), (SELECT max(slot) FROM counted WHERE name = ?)"""
_COLUMNS = 3  # of _SUM
_VALUE = "(SELECT value FROM kept WHERE key = ? AND expires > ?)"
_INSERT_TOKENS = ("INSERT OR REPLACE INTO token VALUES ", "(?, ?, ?, ?)", "")
_ADD_AMOUNTS = (
    "INSERT INTO counted VALUES ",
    "(?, ?, ?, ?, ?)",
    " ON CONFLICT DO UPDATE SET amount = amount + excluded.amount, expires = excluded.expires, ttl = excluded.ttl",
)
_MAX_PER_STATEMENT = 100
"""Subqueries in one SELECT, rows in one INSERT; no request has as many."""

_PAGE = """SELECT key, value, min(expires, coalesce(?1 + ttl, expires)) FROM kept
           WHERE expires > ?1 AND key > ?2 AND key < ?3 || '~' ORDER BY key LIMIT ?4"""
_SET = """INSERT INTO kept VALUES (?, ?, ?, ?)
          ON CONFLICT DO UPDATE SET value = excluded.value, expires = excluded.expires, ttl = excluded.ttl
          WHERE expires <= ?"""
_DELETE = "DELETE FROM kept WHERE key = ?"
_FORGET_TOKEN = "DELETE FROM token WHERE token = ? RETURNING slot"
_SLOTS = "SELECT slot FROM counted WHERE name = ? AND amount > 0 ORDER BY slot DESC"
_SUMS_BY_SLOT = "SELECT slot, amount FROM counted WHERE name = ?"
_AMOUNT = "SELECT amount FROM counted WHERE name = ? AND slot = ?"
_FUTURE = "DELETE FROM counted WHERE name = ? AND slot > ? RETURNING slot, amount"
_SUBTRACT = "UPDATE counted SET amount = amount - ? WHERE name = ? AND slot = ?"
_HOLDERS = "SELECT count(*) FROM lease WHERE key = ? AND holder != ? AND expires > ?"
_SHORTEN = "UPDATE lease SET expires = ?1 WHERE key = ?2 AND expires > ?1 + ?3"
_HOLD = """INSERT INTO lease VALUES (?, ?, ?, ?)
           ON CONFLICT DO UPDATE SET expires = excluded.expires, ttl = excluded.ttl"""
_RELEASE = "DELETE FROM lease WHERE key = ? AND holder = ?"
_TALLY = """INSERT INTO tally SELECT ?1, ?2, 1, ?4, ?6
            WHERE EXISTS (SELECT 1 FROM tally WHERE bucket = ?1 AND row = ?2 AND expires > ?3)
               OR (SELECT count(*) FROM tally WHERE bucket = ?1 AND expires > ?3) < ?5
            ON CONFLICT DO UPDATE SET amount = iif(expires > ?3, amount, 0) + 1, expires = excluded.expires,
                                      ttl = excluded.ttl"""
_TALLIES = "SELECT row, amount FROM tally WHERE bucket = ? AND expires > ?"

Db = sqlite3.Connection


def hit_and_get(
    db: Db, positions: Sequence[SlotPosition], keys: Sequence[str], now: float
) -> tuple[list[int], list[bytes | None]]:
    """Do Store.hit_and_get. What does not fit is found before anything is written."""
    row = _select_all(db, positions, keys, now)
    sums_end = _COLUMNS * len(positions)
    values = row[sums_end:]
    sums: list[int] = []
    added: defaultdict[str, int] = defaultdict(int)
    counting: dict[str | int, SlotPosition] = {}  # by token, so that each counts once
    fits = True
    for number, position in enumerate(positions):
        name, token, _, amount, _, limit = position
        total, seen, newest = row[_COLUMNS * number : _COLUMNS * (number + 1)]
        if amount and newest is not None and newest > position.newest:
            _bring_back(db, position, now)
        if amount and token not in counting and not (seen is not None and position.first <= seen <= position.last):
            counting[token or number] = position
            added[name] += amount
        total += added[name]
        fits = fits and total <= limit
        sums.append(total)
    if counting and fits:
        _count(db, list(counting.values()), now)
    return sums, values


def _select_all(db: Db, positions: Sequence[SlotPosition], keys: Sequence[str], now: float) -> list[Any]:
    """Return for each position its sum and the slot in which its token was counted, or None; then the values."""
    if len(positions) + len(keys) > _MAX_PER_STATEMENT:
        if len(positions) > 1:
            half = len(positions) // 2
            return _select_all(db, positions[:half], (), now) + _select_all(db, positions[half:], keys, now)
        half = len(keys) // 2
        return _select_all(db, positions, keys[:half], now) + _select_all(db, (), keys[half:], now)
    parameters: list[str | int | float | None] = []
    for position in positions:
        parameters += (position.name, position.first, position.last, _token_hash(position.token), position.name)
    for key in keys:
        parameters += (key, now)
    return list(db.execute(_select(len(positions), len(keys)), parameters).fetchone()) if parameters else []


@lru_cache(maxsize=256)  # needed twice: when it is looked up and when it is counted
def _token_hash(token: str) -> int | None:
    """Hash a token; without one, return None, which matches no row."""
    return int.from_bytes(blake2b(token.encode(), digest_size=8).digest(), signed=True) if token else None


@lru_cache
def _select(sums: int, values: int) -> str:
    return "SELECT " + ", ".join([_SUM] * sums + [_VALUE] * values)


def _count(db: Db, positions: Sequence[SlotPosition], now: float) -> None:
    tokens: list[str | int | float | None] = []
    amounts: list[str | int | float] = []
    for position in positions[:_MAX_PER_STATEMENT]:
        expires = now + position.ttl
        if position.token:
            tokens += (_token_hash(position.token), position.slot, expires, _whole(position.ttl))
        amounts += (position.name, position.slot, position.amount, expires, _whole(position.ttl))
    if tokens:
        db.execute(_insert(_INSERT_TOKENS, len(tokens) // 4), tokens)
    db.execute(_insert(_ADD_AMOUNTS, len(amounts) // 5), amounts)
    if len(positions) > _MAX_PER_STATEMENT:
        _count(db, positions[_MAX_PER_STATEMENT:], now)


def _bring_back(db: Db, position: SlotPosition, now: float) -> None:
    """Move what is in the future into the present slot, as far as it counts."""
    ahead = db.execute(_FUTURE, (position.name, position.newest)).fetchall()
    if amount := sum(amount for slot, amount in ahead if slot <= position.last):
        row = (position.name, position.slot, amount, now + position.ttl, _whole(position.ttl))
        db.execute(_insert(_ADD_AMOUNTS, 1), row)


def _whole(ttl: float) -> int:
    """Return a time to live as it is stored: rounded up."""
    return int(ttl) + 1


@lru_cache
def _insert(statement: tuple[str, str, str], count: int) -> str:
    start, row, end = statement
    return start + ", ".join([row] * count) + end


def get(db: Db, key: str, now: float) -> bytes | None:
    """Do Store.get."""
    value: bytes | None = db.execute(_select(0, 1), (key, now)).fetchone()[0]
    return value


def set_(db: Db, key: str, value: bytes, ttl: float, now: float, *, absent: bool) -> bool:
    """Do Store.set."""
    until = now if absent else float("inf")
    return db.execute(_SET, (key, value, now + ttl, _whole(ttl), until)).rowcount == 1


def delete(db: Db, key: str) -> None:
    """Do Store.delete."""
    db.execute(_DELETE, (key,))


def unhit(db: Db, positions: Sequence[SlotPosition]) -> None:
    """Do Store.unhit."""
    for position in positions:
        statement, subject = (_FORGET_TOKEN, _token_hash(position.token)) if position.token else (_SLOTS, position.name)
        remaining = position.amount
        for (slot,) in db.execute(statement, (subject,)).fetchall():
            (amount,) = db.execute(_AMOUNT, (position.name, slot)).fetchone() or (0,)
            taken = min(remaining, amount)
            db.execute(_SUBTRACT, (taken, position.name, slot))
            remaining -= taken
            if not remaining:
                break


def sums_by_slot(db: Db, name: str) -> dict[int, int]:
    """Return the sums stored under `name`, by slot."""
    return dict(db.execute(_SUMS_BY_SLOT, (name,)).fetchall())


def lease(db: Db, leases: Sequence[Lease], now: float, ttl: float) -> list[int]:
    """Do Store.lease; with a `ttl` of 0 only count, and write nothing."""
    expires = now + ttl
    if ttl:
        db.executemany(_SHORTEN, [(expires, lease.key, TOLERANCE) for lease in leases])
    counts = [int(db.execute(_HOLDERS, (lease.key, lease.holder, now)).fetchone()[0]) + 1 for lease in leases]
    fits = all(lease.limit is None or count <= lease.limit for count, lease in zip(counts, leases, strict=True))
    if ttl and fits:
        db.executemany(_HOLD, [(lease.key, lease.holder, expires, _whole(ttl)) for lease in leases])
    return counts


def release(db: Db, leases: Sequence[Lease]) -> None:
    """Do Store.release."""
    db.executemany(_RELEASE, [(lease.key, lease.holder) for lease in leases])


def page(db: Db, kind: str, after: str, now: float, count: int) -> list[tuple[str, bytes, float]]:
    """Return the next `count` keys of a kind after `after`, with their values and expiries."""
    return db.execute(_PAGE, (now, after or kind, kind, count)).fetchall()


def tally(db: Db, bucket: str, row: bytes, ttl: float, now: float, limit: int) -> bool:
    """Do Store.tally."""
    return db.execute(_TALLY, (bucket, row, now, now + ttl, limit, _whole(ttl))).rowcount == 1


def tallies(db: Db, bucket: str, now: float) -> dict[bytes, int]:
    """Do Store.tallies."""
    return {bytes(row): amount for row, amount in db.execute(_TALLIES, (bucket, now)).fetchall()}


def prepare(db: Db) -> None:
    """Make the tables, and complete those of a file from before rows had a time to live."""
    for line in SCHEMA.split(";"):
        db.execute(line)
    for table in _KEYS:
        columns = [name for _, name, *_ in db.execute(f"PRAGMA table_info({table})")]
        if "ttl" not in columns:
            db.execute(f"ALTER TABLE {table} ADD COLUMN ttl INTEGER")


def expired(db: Db, now: float, count: int) -> Iterator[tuple[str, list[tuple[str | bytes | int | float, ...]]]]:
    """Yield statements with parameters that delete what has expired, and shorten what a clock that was ahead wrote.

    At most `count` rows at a time. Locks nothing; reads each row once, a million of them in a third of a second.
    """
    for table, columns in _KEYS.items():
        key, placeholders = ", ".join(columns), ", ".join("?" * len(columns))
        late = f"expires > ? + ttl + {TOLERANCE}"
        find = f"""SELECT {key}, expires > ? FROM {table}
                   WHERE ({key}) > ({placeholders}) AND (expires <= ? OR {late}) ORDER BY {key} LIMIT ?"""  # noqa: S608 (ours)
        delete = f"DELETE FROM {table} WHERE ({key}) = ({placeholders}) AND expires <= ?"  # noqa: S608 (ours)
        shorten = f"UPDATE {table} SET expires = ? + ttl WHERE ({key}) = ({placeholders}) AND {late}"  # noqa: S608 (ours)
        after = tuple(columns.values())
        while rows := db.execute(find, (now, *after, now, now, count)).fetchall():
            if gone := [(*row, now) for *row, is_late in rows if not is_late]:
                yield delete, gone
            if late_rows := [(now, *row, now) for *row, is_late in rows if is_late]:
                yield shorten, late_rows
            after = tuple(rows[-1][:-1])
