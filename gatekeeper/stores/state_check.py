# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatekeeper state check`: where the state is, whether it is whole, and what is in it. Changes no state.

For SQLite it reads through a connection of its own that cannot write, as `explain` does: the running service waits for
nothing, and loses no lock, because those belong to its processes (stores/sqlite/files.py). While it reads, `-wal` is
not begun anew, for the second that a hundred megabytes take.

The service does not try a file that it found damaged until a person has done something about it
(stores/circuit_breaker.py). So a file that is found in order here is marked by its time of change: whoever has mended
it in place runs this, and the service uses it again within a second.
"""

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gatekeeper.core.stored_time import is_future
from gatekeeper.stores.shared_values import CREATED_AT
from gatekeeper.stores.sqlite import files
from gatekeeper.stores.store import Clock, StoreError
from gatekeeper.stores.store_url import describe, redis_store

_LIMIT = 5.0
"""Seconds to wait for a lock, or for an answer of Redis."""
_MIN_FREE = 16 * 2**20
"""Bytes that have to be free on the disk: what `-wal` grows to between two checkpoints."""
_MAX_WAL = 256 * 2**20
"""Bytes of `-wal` that say that something holds up the checkpoints."""
_MAX_ERRORS = 10
_HASH = 33  # characters of a key after its kind: a colon, and 128 bits in hexadecimal
_KINDS = f"""SELECT iif(length(key) > {_HASH}, substr(key, 1, length(key) - {_HASH}), ''), count(*) FROM kept
             GROUP BY 1"""  # noqa: S608 (ours)
_COUNTED = {
    "counters": "SELECT count(DISTINCT name) FROM counted",
    "counted messages": "SELECT count(*) FROM token",
    "connections": "SELECT count(*) FROM lease",
    "rows of reports": "SELECT count(*) FROM tally",
}


_LABELS = {
    "bytes": "size",
    "wal_bytes": "size of -wal",
    "free_bytes": "free on its disk",
    "max_bytes": "allowed (0: no limit)",
    "maxmemory_policy": "maxmemory-policy",
    "age": "since it was empty",
    "rows": "what is in it",
}
"""What people read instead of the names that programs do."""


@dataclass(slots=True)
class StateReport:
    """What was found. `facts` are for people and programs, `problems` make the exit status 1."""

    store: str
    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    damaged: bool = False

    def as_json(self) -> dict[str, object]:
        """Return the report for programs."""
        return (
            {"store": self.store, "ok": not self.problems, "damaged": self.damaged}
            | self.facts
            | {"problems": self.problems}
        )


async def check(url: str, clock: Clock) -> StateReport:
    """Check the store at `url`. Raises StoreError if it cannot be looked at."""
    report = StateReport(describe(url))
    scheme, _, rest = url.partition(":")
    if scheme == "sqlite":
        _check_sqlite(Path("/" + rest.lstrip("/")), clock, report)
    elif scheme != "memory":
        await _check_redis(url, clock, report)
    return report


def sentences(report: StateReport, learning: str) -> Iterator[str]:
    """Yield the report for people; `learning` is how long greylisting lets everybody pass on an empty store."""
    yield f"the state is in {report.store}"
    if report.store == "memory:":
        yield "each process keeps its own, and it is lost with the process: there is nothing to check"
        return
    yield from (f"{_LABELS.get(name, name)}: {_shown(name, value)}" for name, value in report.facts.items())
    yield from (f"problem: {problem}" for problem in report.problems)
    if report.damaged:
        path = report.facts["file"]
        yield (
            f"stop gatekeeper, move {path}, {path}-wal and {path}-shm away, and start it: "
            f"limits begin anew, and greylisting lets everybody pass for {learning}, while it learns"
        )
        yield "until then mail goes on without a store; a file that is put in its place is noticed within a second"
    elif not report.problems:
        yield "it is in order"


def _shown(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count} {what}" for what, count in value.items() if count) or "nothing"
    if name.endswith("bytes"):
        return f"{value / 1e6:.1f} MB"
    return f"{value / 86400:.1f} days" if name == "age" else str(value)


def _check_sqlite(path: Path, clock: Clock, report: StateReport) -> None:
    facts = report.facts
    facts["file"] = str(path)
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        facts["integrity"] = "there is no such file yet: gatekeeper makes it when it starts"
        return
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from None
    if not path.is_file():
        report.problems.append(f"{path} is not a file")
        return
    facts["bytes"] = size
    facts["wal_bytes"] = wal = _size(Path(f"{path}-wal"))
    facts["free_bytes"] = free = shutil.disk_usage(path.parent).free
    try:
        with closing(files.connect(path, _LIMIT, read_only=True)) as db:
            _look_into(db, clock, report)
    except (sqlite3.Error, OSError) as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise StoreError(f"{path}: {error}") from None
        _add_damage(report, str(error))
    if free < _MIN_FREE:
        report.problems.append(f"only {free} bytes are free on its disk: what is written next may not fit")
    if wal > _MAX_WAL:
        report.problems.append(
            f"{path}-wal has {wal} bytes: something reads {path} all the time, as a backup that hangs"
        )
    if not report.damaged:
        with suppress(OSError):  # only its owner and root can, and only they mend it
            files.mark_as_checked(Path(os.path.realpath(path)))


def _look_into(db: sqlite3.Connection, clock: Clock, report: StateReport) -> None:
    """Check the whole file, and count what is in it. Raises sqlite3.Error."""
    found = [str(line) for (line,) in db.execute(f"PRAGMA integrity_check({_MAX_ERRORS})")]
    report.facts["integrity"] = "ok" if found == ["ok"] else "damaged"
    for line in found if found != ["ok"] else ():
        _add_damage(report, line)
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        report.facts["rows"] = {}
        return
    if "kept" not in tables:
        report.problems.append("this is a database of another program")
        return
    kinds = {kind or "others": count for kind, count in db.execute(_KINDS)}
    report.facts["rows"] = kinds | {what: db.execute(query).fetchone()[0] for what, query in _COUNTED.items()}
    born = db.execute("SELECT value FROM kept WHERE key = ?", (CREATED_AT,)).fetchone()
    if born is not None:
        _add_age(report, born[0], clock())


def _add_damage(report: StateReport, what: str) -> None:
    report.damaged = True
    report.facts["integrity"] = "damaged"
    report.problems.append(what)


def _add_age(report: StateReport, born: bytes, now: float) -> None:
    try:
        created_at = float(born)
    except ValueError:
        report.problems.append("the date of creation is damaged")
        return
    report.facts["age"] = max(0, int(now - created_at))
    if is_future(now, created_at):
        report.problems.append("it was made in the future: the clock was ahead then, or is behind now")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


async def _check_redis(url: str, clock: Clock, report: StateReport) -> None:
    """Ask the server (of a cluster the one that has slot 0). Raises StoreError."""
    store = redis_store(url, clock, _LIMIT)
    try:
        info = _parse_info(await store.info())
        born = await store.get(CREATED_AT)
    finally:
        await store.close()
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    policy = info.get("maxmemory_policy", "unknown")
    report.facts |= {
        "server": f"{info.get('redis_version', 'unknown')}, {info.get('role', 'unknown')}",
        "bytes": used,
        "max_bytes": most,
        "maxmemory_policy": policy,
        "persistence": "aof" if info.get("aof_enabled") == "1" else "rdb, if `save` is set",
    }
    if born is not None:
        _add_age(report, born, clock())
    if policy.startswith("allkeys-"):
        report.problems.append(
            f"maxmemory-policy {policy} may evict the secret of the keys: use noeviction or volatile-ttl"
        )
    if most and used > 0.95 * most:
        report.problems.append("its memory is nearly full: it refuses what is written, or evicts what is remembered")
    if info.get("role") == "slave":
        report.problems.append("it is a replica, which cannot be written")


def _parse_info(text: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in text.decode("utf-8", "replace").splitlines())
    return {name: value for name, colon, value in lines if colon}
