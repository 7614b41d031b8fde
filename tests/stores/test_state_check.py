# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: ASYNC240 (what an operator runs is another process, and what it looks at is a file)
"""`gatekeeper state check`: what it says of real stores, whole and damaged, and that the service hears of a repair."""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from gatekeeper.stores import circuit_breaker
from gatekeeper.stores.sqlite.store import SqliteStore
from gatekeeper.stores.store import CounterHit, Keys, StoreError
from gatekeeper.stores.store_url import redis_store
from tests.lab.ports import free_port
from tests.stores.test_accidents import HIT, opened, until_back, with_damaged_pages
from tests.support.redis_server import redis_server

pytestmark = pytest.mark.integration("gatekeeper")


def check(folder: Path, url: str, *options: str) -> tuple[int, str]:
    """Exit status and output of the command on the store at `url`."""
    config = folder / "gatekeeper.toml"
    config.write_text(f'[store]\nurl = "{url}"\n')
    command = [sys.executable, "-m", "gatekeeper", "--config", str(config), "state", "check", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "state.db"


async def filled(path: Path) -> SqliteStore:
    store = SqliteStore(path)
    keys = Keys(await store.secret())
    await store.created_at()
    for number in range(30):
        await store.set(keys("greylist", str(number)), b"first 1", 600.0)
        await store.set(keys("proof", str(number % 7)), b"1", 600.0)
        await store.hit([CounterHit(keys("ratelimit", str(number % 5)), 600.0, once=str(number))])
    return store


async def test_it_says_what_is_there_while_the_service_writes(path: Path, tmp_path: Path) -> None:
    store = await filled(path)
    status, said = check(tmp_path, f"sqlite:{path}", "--json")
    found = json.loads(said)
    assert (0, True, "ok", str(path)) == (status, found["ok"], found["integrity"], found["file"])
    rows = found["rows"]
    assert (30, 7, 5, 30) == tuple(rows[kind] for kind in ("greylist", "proof", "counters", "counted messages"))
    assert await store.set("still", b"1", 60.0)  # its locks are still its own
    newcomer = SqliteStore(path)
    assert b"1" == await newcomer.get("still")
    for each in (store, newcomer):
        await each.close()
    assert check(tmp_path, f"sqlite:{path}")[1].endswith("it is in order\n")


def test_where_there_is_no_state_yet_nothing_is_made(path: Path, tmp_path: Path) -> None:
    status, said = check(tmp_path, f"sqlite:{path}")
    assert (0, True) == (status, "there is no such file yet" in said)
    assert not path.parent.exists()


@pytest.mark.parametrize("how", ["pages", "garbage", "truncated"])
async def test_a_damaged_file_is_a_finding_with_what_to_do(path: Path, tmp_path: Path, how: str) -> None:
    path.parent.mkdir()
    await with_damaged_pages(path)
    if how == "garbage":
        path.write_bytes(b"garbage " * 4096)
    elif how == "truncated":
        os.truncate(path, 50_000)
    before = path.stat().st_mtime_ns, path.read_bytes()
    status, said = check(tmp_path, f"sqlite:{path}")
    assert (1, True) == (status, f"move {path}, {path}-wal and {path}-shm away" in said)
    assert "greylisting lets everybody pass for 1d" in said
    assert before == (path.stat().st_mtime_ns, path.read_bytes())
    assert json.loads(check(tmp_path, f"sqlite:{path}", "--json")[1])["damaged"]


async def test_what_may_not_be_looked_at_is_a_temporary_failure(tmp_path: Path, path: Path) -> None:
    await (await filled(path)).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    status, said = await asyncio.to_thread(check, tmp_path, f"sqlite:{path}")
    other.close()
    assert (75, True) == (status, "locked" in said)
    assert 75 == check(tmp_path, f"redis://127.0.0.1:{free_port()}/0")[0]


def test_a_file_of_another_program_and_a_folder_are_findings(tmp_path: Path, path: Path) -> None:
    path.parent.mkdir()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE letters (text)")
    db.close()
    assert "another program" in check(tmp_path, f"sqlite:{path}")[1]
    assert (1, True) == ((said := check(tmp_path, f"sqlite:{tmp_path}"))[0], "is not a file" in said[1])
    assert (0, True) == ((said := check(tmp_path, "memory:"))[0], "nothing to check" in said[1])


@pytest.mark.integration("redis-server")
async def test_of_redis_it_says_what_it_does_when_its_memory_is_full(tmp_path: Path) -> None:
    with redis_server() as server:
        store = redis_store(server.url)
        await store.created_at()
        await store.close()
        status, said = check(tmp_path, server.url, "--json")
        found = json.loads(said)
        assert (0, "noeviction", True) == (status, found["maxmemory_policy"], found["age"] >= 0)
        server.admin.config_set("maxmemory-policy", "allkeys-lru")
        server.admin.config_set("maxmemory", "1mb")
        status, said = check(tmp_path, server.url)
        assert (1, 2) == (status, said.count("problem: "))


async def test_a_damaged_file_is_tried_again_once_the_check_finds_nothing(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circuit_breaker, "PAUSE", 0.02)
    await (await filled(path)).close()
    good = path.read_bytes()
    damage_all(path)
    async with opened(f"sqlite:{path}") as store:
        path.write_bytes(good)  # as another worker does at a checkpoint, too
        for _ in range(20):
            with pytest.raises(StoreError):
                await store.hit(HIT)
            await asyncio.sleep(0.01)
        assert 0 == check(tmp_path, f"sqlite:{path}")[0]
        assert [1] == await until_back(store)


def damage_all(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)
