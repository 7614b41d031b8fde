# SPDX-License-Identifier: GPL-3.0-or-later
"""Greylisting's state moves: who was known, waited or was let through by itself is so in the new store too."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gatekeeper import cli
from gatekeeper.checks.greylisting.greylist import Greylist
from gatekeeper.stores.migration import StoreOccupied, migrate
from gatekeeper.stores.sqlite.store import SqliteStore
from gatekeeper.stores.store import Clock, Store
from gatekeeper.stores.store_url import redis_store
from tests.support.checking import World, rcpt
from tests.support.redis_server import RedisServer, redis_cluster, redis_server


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def world(now: float = 1_000_000.0) -> World:
    return World("greylist", "", {"greylist": Greylist(learning=0, auto_allow=2)}, now=now, real_keys=True)


async def reason(subject: World, sender: str, address: str = "192.0.2.1") -> str:
    decision = await subject.decide(rcpt(sender=sender, address=address, name="unknown"))
    return ", ".join(decision.reasons)


async def learn(subject: World) -> None:
    """known@ is known, waits@ waits, and the network 198.51.100.0/24 is known as a whole."""
    await reason(subject, "known@example.net")
    for sender in ("a@example.net", "b@example.net"):
        await reason(subject, sender, "198.51.100.1")
    subject.now += 300
    await reason(subject, "known@example.net")
    for sender in ("a@example.net", "b@example.net"):
        await reason(subject, sender, "198.51.100.1")
    await reason(subject, "waits@example.net")


async def told(subject: World) -> list[str]:
    subject.now += 250
    first = [await reason(subject, sender) for sender in ("known@example.net", "waits@example.net")]
    first.append(await reason(subject, "c@example.net", "198.51.100.9"))
    subject.now += 50
    return [*first, await reason(subject, "waits@example.net")]


@pytest.mark.integration("redis-server", "redis-tools")
@pytest.mark.parametrize("to", ["redis", "redis-cluster", "sqlite"])
async def test_what_was_known_in_sqlite_is_known_elsewhere(to: str, tmp_path: Path, server: RedisServer) -> None:
    server.admin.flushall()
    if to == "redis-cluster":
        with redis_cluster() as nodes:
            await _moves(tmp_path, lambda clock: redis_store(f"redis+cluster://127.0.0.1:{nodes[0].port}", clock, 30.0))
    elif to == "redis":
        await _moves(tmp_path, lambda clock: redis_store(server.url, clock, 30.0))
    else:
        await _moves(tmp_path, lambda clock: SqliteStore(tmp_path / "new.db", clock, 30.0))


async def _moves(folder: Path, open_new: Callable[[Clock], Store]) -> None:
    old = world()
    old.store = SqliteStore(folder / "old.db", lambda: old.now)
    await learn(old)
    new = world(old.now)
    target = open_new(lambda: new.now)
    await target.created_at()  # as a gatekeeper that runs there already would
    assert [5, 5] == [await migrate(old.store, target) for _ in range(2)]  # once more does no harm
    new.store = open_new(lambda: new.now)  # a new process: others believe their old secret for ten seconds more
    assert ["greylist.known", "greylist.early", "greylist.known_network", "greylist.passed"] == await told(new)
    assert await old.store.created_at() == await new.store.created_at()
    for store in (old.store, target, new.store):
        await store.close()


async def test_a_store_with_state_of_its_own_is_left_alone(tmp_path: Path) -> None:
    worlds = [world(), world()]
    for number, subject in enumerate(worlds):
        subject.store = SqliteStore(tmp_path / f"{number}.db", lambda: 1_000_000.0, 30.0)
        await learn(subject)
    with pytest.raises(StoreOccupied):
        await migrate(worlds[0].store, worlds[1].store)
    for subject in worlds:
        await subject.store.close()


def test_the_command_copies_and_says_how_much(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = ["greylist", "copy", "--from", f"sqlite:{tmp_path}/old.db", f"sqlite:{tmp_path}/new.db"]
    assert 0 == cli.main(copy)
    assert f"0 entries copied to sqlite:{tmp_path}/new.db" in capsys.readouterr().out
    assert not (tmp_path / "old.db").exists()


def test_the_command_names_a_url_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert 2 == cli.main(["greylist", "copy", "--from", "memory:", "mysql:x"])
    assert "is not a store" in capsys.readouterr().err
