# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: ASYNC110, ASYNC221 (what a test waits for happens in other processes)
"""What happens to a store in real life, done to real ones: decisions go on, and the store comes back by itself."""

import asyncio
import logging
import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import redis

from gatekeeper.stores import circuit_breaker, shared_values
from gatekeeper.stores.circuit_breaker import CircuitBreaker
from gatekeeper.stores.memory import MemoryStore
from gatekeeper.stores.redis.cluster import slot_of
from gatekeeper.stores.sqlite import store as sqlite_module
from gatekeeper.stores.sqlite.store import SqliteStore
from gatekeeper.stores.store import CounterHit, Store, StoreError
from gatekeeper.stores.store_url import open_store, redis_store
from tests.lab.ports import free_port
from tests.support.needs import missing, require_program
from tests.support.redis_server import RedisServer, make_certificates, redis_cluster, redis_server

HIT = [CounterHit("a", 600.0)]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody wants to wait a second for each probe here."""
    monkeypatch.setattr(circuit_breaker, "PAUSE", 0.02)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with redis_server("--enable-debug-command", "yes", "--repl-diskless-sync-delay", "0") as server:
        yield server


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[RedisServer]]:
    with redis_cluster() as nodes:
        yield nodes


@asynccontextmanager
async def opened(url: str, limit: float = 0.5) -> AsyncIterator[CircuitBreaker]:
    store = await open_store(url, timeout=limit)
    try:
        yield store
    finally:
        await store.close()


async def until_back(store: Store) -> list[int]:
    """What the first hit that works again answers."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await store.hit(HIT)
            except StoreError:
                await asyncio.sleep(0.02)


async def assert_gone(store: CircuitBreaker) -> None:
    """Every call fails, and after the first one without asking the store."""
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.hit(HIT),
        lambda: store.get("k"),
        lambda: store.set("k", b"", 10),
        lambda: store.unhit(HIT),
        lambda: store.delete("k"),
        store.created_at,
    ]
    with pytest.raises(StoreError):
        await store.hit(HIT)
    for call in calls:
        with pytest.raises(StoreError, match="is gone"):
            await call()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        "back" if "is back" in record.message else "gone"
        for record in caplog.records
        if "circuit_breaker" in record.name
    ]


@pytest.mark.integration("redis-server")
async def test_a_redis_that_stops_is_missed_and_welcomed_back(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(server.url) as store:
        assert [1] == await store.hit(HIT)
        secret = await store.secret()
        server.stop()
        await assert_gone(store)
        await assert_gone(store)
        assert secret == await store.secret()
        server.start()
        assert [1] == await until_back(store)
    assert ["gone", "back"] == lines(caplog)


@pytest.mark.integration("redis-server")
async def test_a_redis_that_was_not_there_at_the_start_is_found_later(server: RedisServer) -> None:
    server.stop()
    async with opened(server.tcp_url) as store:
        own = await store.secret()
        server.start()
        assert [1] == await until_back(store)
        assert own != await store.secret()


def sleep(server: RedisServer) -> object:
    return server.admin.execute_command("DEBUG", "SLEEP", "2")


@pytest.mark.integration("redis-server")
async def test_a_redis_that_sleeps_costs_one_time_limit(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(server.url) as store:
        await store.hit(HIT)
        sleeping: list[asyncio.Task[object]] = []
        while not store.gone:
            if not sleeping or sleeping[-1].done():
                sleeping.append(asyncio.create_task(asyncio.to_thread(sleep, server)))
            await asyncio.gather(store.get("k"), return_exceptions=True)
        assert "no answer in time" == store.gone
        await assert_gone(store)
        await asyncio.gather(*sleeping)
        await until_back(store)
        await store.set("k", b"right", 10)
        assert b"right" == await store.get("k")  # no answer of a call that was given up comes to another
    assert "gone" == lines(caplog)[0]
    assert "back" == lines(caplog)[-1]


@pytest.mark.integration("redis-server")
async def test_a_cancelled_call_neither_breaks_the_store_nor_mixes_up_answers(server: RedisServer) -> None:
    async with opened(server.url) as store:
        for number in range(50):
            call = asyncio.create_task(store.get("other"))
            await asyncio.sleep(0.0002 * (number % 5))
            call.cancel()
            await store.set("k", str(number).encode(), 10)
            assert str(number).encode() == await store.get("k")
        assert not store.gone


@pytest.mark.integration("redis-server")
async def test_a_replica_that_cannot_be_written_is_gone_until_it_is_promoted(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(server.url) as store:
        await store.hit(HIT)
        server.admin.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))
        server.admin.config_set("replica-serve-stale-data", "yes")
        with pytest.raises(StoreError, match="read only"):
            await store.hit(HIT)
        for _ in range(10):
            await assert_gone(store)
            await asyncio.sleep(0.01)
        server.admin.execute_command("REPLICAOF", "NO", "ONE")
        assert [2] == await until_back(store)
    assert ["gone", "back"] == lines(caplog)


@pytest.mark.integration("redis-server")
async def test_a_redis_out_of_memory_counts_all_hits_or_none(server: RedisServer) -> None:
    async with opened(server.url) as store:
        await store.hit(HIT)
        server.admin.config_set("maxmemory", "1")
        with pytest.raises(StoreError, match="maxmemory"):
            await store.hit([CounterHit("b", 600.0, 1, "m1"), *HIT])
        await assert_gone(store)
        server.admin.config_set("maxmemory", "0")
        assert [2] == await until_back(store)
        assert [1] == await store.hit([CounterHit("b", 600.0, 1, "m1")])


@pytest.mark.integration("redis-server")
async def test_a_full_redis_that_evicts_keeps_the_secret_and_the_day_of_birth(server: RedisServer) -> None:
    server.admin.config_set("maxmemory-policy", "volatile-ttl")
    async with opened(server.url) as store:
        born, secret = await store.created_at(), await store.secret()
        server.admin.config_set("maxmemory", str(server.admin.info("memory")["used_memory"] + 200_000))
        for number in range(2000):
            await asyncio.gather(store.set(f"k{number}", b"x" * 1000, 1000), return_exceptions=True)
        assert server.admin.info("stats")["evicted_keys"] > 0
    async with opened(server.url) as store:
        assert (born, secret) == (await store.created_at(), await store.secret())


@pytest.mark.integration("redis-server")
async def test_an_emptied_redis_learns_again_under_the_same_secret(server: RedisServer) -> None:
    async with opened(server.url) as store:
        born, secret = await store.created_at(), await store.secret()
        server.admin.flushall()
        assert born < await store.created_at()
        async with opened(server.url) as newcomer:
            assert secret == await newcomer.secret()


@pytest.mark.integration("redis-server")
async def test_a_secret_that_a_newcomer_made_in_an_emptied_redis_is_taken_over(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_values, "RECHECK", -1.0)
    old = redis_store(server.url)
    known = await old.secret()
    server.admin.flushall()
    newcomer = redis_store(server.url)
    agreed = await newcomer.secret()
    assert known != agreed
    assert agreed == await old.secret()
    for store in (old, newcomer):
        await store.close()


@pytest.mark.integration("redis-server")
async def test_a_restarted_redis_has_no_scripts_and_does_not_mind(server: RedisServer) -> None:
    async with opened(server.url) as store:
        await store.hit(HIT)
        server.admin.script_flush()
        assert [2] == await store.hit(HIT)


def fails_over(sentinel: RedisServer) -> bool:
    """False while the sentinel does not yet know that the replica is good enough."""
    try:
        return bool(sentinel.admin.execute_command("SENTINEL", "FAILOVER", "relays"))
    except redis.exceptions.ResponseError:
        return False


@pytest.mark.integration("redis-server")
async def test_a_sentinel_tells_where_to_write_also_after_a_failover(server: RedisServer, tmp_path: Path) -> None:
    with redis_server("--replicaof", f"127.0.0.1 {server.port}") as replica:
        while replica.admin.info("replication")["master_link_status"] != "up":
            await asyncio.sleep(0.05)
        config = tmp_path / "sentinel.conf"
        config.write_text(f"sentinel monitor relays 127.0.0.1 {server.port} 1\nsentinel resolve-hostnames no\n")
        with redis_server(mode=(str(config), "--sentinel")) as sentinel:
            while not sentinel.admin.execute_command("SENTINEL", "REPLICAS", "relays"):
                await asyncio.sleep(0.05)
            async with opened(f"redis+sentinel://127.0.0.1:{sentinel.port}/relays/0", 2.0) as store:
                assert [1] == await store.hit(HIT)
                while not fails_over(sentinel):
                    await asyncio.sleep(0.1)
                while replica.admin.info("replication")["role"] != "master":
                    await asyncio.sleep(0.05)
                server.stop()
                await until_back(store)
                assert replica.admin.keys("*a/600.0*")


@pytest.mark.integration("redis-server")
async def test_a_user_with_a_password_is_let_in_and_the_password_is_nowhere(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.admin.execute_command("ACL", "SETUSER", "relay", "on", ">s3cret/@", "~gatekeeper:*", "+@all")
    place = f"127.0.0.1:{server.port}/3"
    async with opened(f"redis://relay:s3cret%2F%40@{place}") as store:
        assert [1] == await store.hit(HIT)
    async with opened(f"redis://relay:wrong-one@{place}") as store:
        await assert_gone(store)
        assert "WRONGPASS" in store.gone
    assert not re.search("s3cret|wrong-one", caplog.text)


@pytest.mark.integration("redis-server")
async def test_a_server_that_does_not_know_auth_and_quotes_it_tells_no_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = free_port()
    with redis_server("--port", str(port), "--rename-command", "AUTH", "LOGIN"):
        async with opened(f"redis://relay:s3cret@127.0.0.1:{port}/3") as store:
            await assert_gone(store)
            assert "ERR in answer to user, password or database" in store.gone
            assert "s3cret" not in store.gone
    assert "s3cret" not in caplog.text


@pytest.mark.integration("redis-server")
async def test_tls_wants_a_certificate_that_our_own_ca_has_signed(tmp_path: Path) -> None:
    ca, certificate, key = make_certificates(tmp_path)
    port = free_port()
    files = ("--tls-ca-cert-file", str(ca), "--tls-cert-file", str(certificate), "--tls-key-file", str(key))
    with redis_server("--tls-port", str(port), *files):
        url = f"rediss://127.0.0.1:{port}/0"
        async with opened(url) as store:
            await assert_gone(store)
            assert "certificate verify failed" in store.gone
        names = f"ssl_ca_certs={ca}&ssl_certfile={certificate}&ssl_keyfile={key}"
        async with opened(f"{url}?{names}", 2.0) as store:
            assert [1] == await store.hit(HIT)
            await store.set("k", bytes(300_000), 10)
            assert bytes(300_000) == await store.get("k")


@pytest.mark.integration("redis-server", "redis-tools")
async def test_a_cluster_of_which_a_node_is_lost_comes_back_with_it(cluster: list[RedisServer]) -> None:
    hits = [CounterHit(name, 600.0) for name in "abcdefgh"]
    async with opened(f"redis+cluster://127.0.0.1:{cluster[1].port}", 2.0) as store:
        assert [1] * 8 == await store.hit(hits)
        cluster[0].stop()
        with pytest.raises(StoreError):
            await store.hit(hits)
        cluster[0].start()
        async with asyncio.timeout(20):
            while await sums_or_nothing(store, hits) is None:
                await asyncio.sleep(0.02)


async def sums_or_nothing(store: Store, hits: list[CounterHit]) -> list[int] | None:
    try:
        return await store.hit(hits)
    except StoreError:
        return None


@pytest.mark.integration("redis-server", "redis-tools")
async def test_a_slot_that_moves_to_another_node_is_followed(cluster: list[RedisServer]) -> None:
    async with opened(f"redis+cluster://127.0.0.1:{cluster[0].port}", 2.0) as store:
        await store.set("k", b"1", 100)
        slot = slot_of("gatekeeper:k")
        ids = [node.admin.execute_command("CLUSTER", "MYID") for node in cluster]
        [here] = [n for n, node in enumerate(cluster) if node.admin.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot)]
        there = (here + 1) % 3
        cluster[there].admin.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[here])
        cluster[here].admin.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[there])
        where = ("127.0.0.1", cluster[there].port)
        cluster[here].admin.execute_command("MIGRATE", *where, "gatekeeper:k", 0, 5000)
        assert b"1" == await store.get("k")  # ASK
        for node in (there, here):
            cluster[node].admin.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[there])
        assert b"1" == await store.get("k")  # MOVED
        assert not store.gone


@contextmanager
def unprivileged() -> Iterator[Path]:
    """A folder of its own, and no more rights than any user has: root may write what is read-only."""
    folder = Path(tempfile.mkdtemp(prefix="gatekeeper-store-"))
    if os.geteuid() != 0:
        yield folder
    else:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(0)
    shutil.rmtree(folder)


async def test_a_file_that_another_process_has_locked_costs_little(tmp_path: Path) -> None:
    async with opened(f"sqlite:{tmp_path}/state.db") as store:
        await store.hit(HIT)
        other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            await store.hit(HIT)
        assert not store.gone  # others were faster once, which says nothing of the file
        while not store.gone:
            await asyncio.gather(store.hit(HIT), return_exceptions=True)
        await assert_gone(store)
        other.execute("ROLLBACK")
        other.close()
        assert [2] == await until_back(store)


async def test_a_call_that_came_too_late_does_not_open_the_circuit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(f"sqlite:{tmp_path}/state.db", 0.05) as store:
        other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
        for _ in range(30):  # longer in all than the store is patient with a lock that nobody gives back
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match="locked"):
                await store.hit(HIT)
            other.execute("ROLLBACK")
            await store.hit(HIT)
        other.close()
        assert not store.gone
    assert [] == lines(caplog)


async def test_a_read_only_file_is_gone_until_it_can_be_written() -> None:
    with unprivileged() as folder:
        path = folder / "state.db"
        async with opened(f"sqlite:{path}") as store:
            await store.hit(HIT)
        path.chmod(0o400)
        async with opened(f"sqlite:{path}") as store:
            await assert_gone(store)
            path.chmod(0o600)
            assert [2] == await until_back(store)


async def test_reading_what_we_may_not_see_is_an_accident_and_no_crash() -> None:
    with unprivileged() as folder:
        folder.chmod(0)
        async with opened(f"sqlite:{folder}/state/state.db") as store:
            await assert_gone(store)
        reading = await open_store(f"sqlite:{folder}/state/state.db", read_only=True)
        assert "unable to open" in reading.gone
        await reading.close()
        folder.chmod(0o700)


async def test_a_folder_that_cannot_be_made_is_gone_until_it_is_there() -> None:
    with unprivileged() as folder:
        folder.chmod(0o500)
        async with opened(f"sqlite:{folder}/new/state.db") as store:
            await assert_gone(store)
            folder.chmod(0o700)
            assert [1] == await until_back(store)


@pytest.mark.integration("mount")
async def test_a_file_system_that_becomes_read_only_is_gone_until_it_can_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if os.geteuid() != 0:
        missing("mounting a small tmpfs needs root")
    mount, umount = (require_program(name, "mount") for name in ("mount", "umount"))
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=4m", "none", tmp_path], check=False).returncode:
        missing("this machine does not let root mount a tmpfs")
    try:
        async with opened(f"sqlite:{tmp_path}/state.db") as store:
            await store.hit(HIT)
            reopen(store)
            subprocess.run([mount, "-o", "remount,ro", tmp_path], check=True)
            for _ in range(10):
                await assert_gone(store)
                await asyncio.sleep(0.01)
            subprocess.run([mount, "-o", "remount,rw", tmp_path], check=True)
            assert [2] == await until_back(store)
        assert ["gone", "back"] == lines(caplog)
    finally:
        subprocess.run([umount, tmp_path], check=True)


async def test_a_folder_that_is_removed_while_we_run_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_module, "MAINTENANCE_INTERVAL", 0.02)
    path = tmp_path / "state" / "state.db"
    async with opened(f"sqlite:{path}") as store:
        secret = await store.secret()
        shutil.rmtree(path.parent)
        while not path.exists():
            await asyncio.gather(store.hit(HIT), return_exceptions=True)
            await asyncio.sleep(0.02)
        await until_back(store)
        assert secret == await store.secret()


async def test_a_reader_that_never_ends_is_said_once_while_the_log_of_writes_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sqlite_module, "CHECKPOINT_WRITES", 50)
    monkeypatch.setattr(sqlite_module, "RESTART_PAGES", 20)
    monkeypatch.setattr(sqlite_module, "STUCK_PAGES", 50)
    async with opened(f"sqlite:{tmp_path}/state.db") as store:
        await store.hit(HIT)
        reader = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM kept").fetchone()
        number = 0
        while "grows without end" not in caplog.text:
            number += 1
            await asyncio.gather(store.set(f"k{number}", bytes(100), 60.0), return_exceptions=True)
            await asyncio.sleep(0.001)
        for _ in range(200):
            number += 1
            await asyncio.gather(store.set(f"k{number}", bytes(100), 60.0), return_exceptions=True)
        reader.close()
        assert not store.gone
    assert 1 == caplog.text.count("grows without end")


@pytest.mark.integration("mount")
async def test_a_full_disk_counts_all_hits_or_none(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        missing("mounting a small tmpfs needs root")
    mount, umount = (require_program(name, "mount") for name in ("mount", "umount"))
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "none", tmp_path], check=False).returncode:
        missing("this machine does not let root mount a tmpfs")
    try:
        async with opened(f"sqlite:{tmp_path}/state.db") as store:
            await store.hit(HIT)
            for number in range(300):
                await asyncio.gather(store.set(f"k{number}", bytes(10_000), 1000), return_exceptions=True)
            assert "full" in store.gone
            await assert_gone(store)
            subprocess.run([mount, "-o", "remount,size=20m", tmp_path], check=True)
            assert [2] == await until_back(store)
    finally:
        subprocess.run([umount, tmp_path], check=True)


async def test_a_damaged_file_is_left_for_a_person_and_replaced_when_moved_away(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"not a database, but somebody may want it " * 100)
    async with opened(f"sqlite:{path}") as store:
        await assert_gone(store)
        assert "not a database" in store.gone
        path.rename(tmp_path / "damaged")
        assert [1] == await until_back(store)


def damage(path: Path) -> None:
    """Overwrite all pages but the first few, as a failing disk does: the file can be opened, and some reads work."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(40_960)
        file.write(b"\xff" * (size - 40_960))


async def with_damaged_pages(path: Path) -> None:
    store = SqliteStore(path)
    for number in range(2500):
        await store.set(f"k{number:04}", bytes(100), 600.0)
    await store.created_at()
    await store.close()
    damage(path)


async def read_all(store: Store) -> None:
    """Until one is damaged, or all are read."""
    try:
        for number in range(0, 2500, 10):
            await store.get(f"k{number:04}")
    except StoreError:
        pass


async def test_a_damaged_page_is_said_once_and_the_file_is_not_touched_until_it_changes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.db"
    await with_damaged_pages(path)
    async with opened(f"sqlite:{path}") as store:
        await read_all(store)
        assert "malformed" in store.gone
        before = path.stat().st_mtime_ns
        for _ in range(50):
            with pytest.raises(StoreError, match="gatekeeper state check"):
                await store.hit(HIT)
            await asyncio.sleep(0.01)
        assert before == path.stat().st_mtime_ns
        assert ["gone"] == lines(caplog)
        for name in os.listdir(tmp_path):
            os.rename(tmp_path / name, tmp_path / f"damaged-{name}")
        assert [1] == await until_back(store)
    assert ["gone", "back"] == lines(caplog)


async def test_a_file_that_becomes_garbage_while_we_run_is_replaced_by_the_one_that_is_put_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, good = tmp_path / "state.db", tmp_path / "good.db"
    await SqliteStore(good).set("k", b"kept", 600.0)
    async with opened(f"sqlite:{path}") as store:
        await store.hit(HIT)
        reopen(store)
        path.write_bytes(b"garbage " * 4096)
        await assert_gone(store)
        with sqlite3.connect(good) as source, sqlite3.connect(tmp_path / "copy") as target:
            source.backup(target)
        os.rename(tmp_path / "copy", path)
        await until_back(store)
        assert b"kept" == await store.get("k")


def reopen(store: CircuitBreaker) -> None:
    """What a process remembers of the pages, and -wal, would hide for a while what became of the file."""
    inner = store._inner
    assert isinstance(inner, SqliteStore)
    inner._disconnect()


async def test_a_folder_in_the_files_place_is_an_accident_too(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.mkdir()
    async with opened(f"sqlite:{path}") as store:
        await assert_gone(store)
        path.rmdir()
        assert [1] == await until_back(store)


async def test_a_truncated_file_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "state.db"
    await with_damaged_pages(path)
    os.truncate(path, 50_000)
    async with opened(f"sqlite:{path}") as store:
        for _ in range(50):
            await read_all(store)
            await asyncio.sleep(0.01)
        assert store.gone
    assert ["gone"] == lines(caplog)


class Flapping(MemoryStore):
    """Comes back, and fails as soon as it is really used: a disk that has room for the probe alone."""

    full = True

    async def get(self, key: str) -> bytes | None:
        if self.full and key == "k":
            raise OSError("no space left")
        return await super().get(key)


async def test_a_store_that_comes_back_only_to_fail_again_is_tried_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(circuit_breaker, "PAUSE", 1.0)
    monkeypatch.setattr(circuit_breaker, "STEADY", 0.2)
    now, pauses = 1000.0, []
    inner = Flapping()
    store = CircuitBreaker(inner, lambda: now, name="full")

    async def ask(seconds: float) -> bool:
        """Use the store after so many seconds, and tell whether it is back then."""
        nonlocal now
        now += seconds
        try:
            await store.get("k")
        except StoreError:
            pass
        for _ in range(5):
            await asyncio.sleep(0)
        return not store.gone

    await ask(0)
    for _ in range(8):
        pauses.append(0.0)
        while not await ask(0.5) and pauses[-1] < 100:
            pauses[-1] += 0.5
        now += 0.1
        if len(pauses) < 8:
            await ask(0)
    assert [0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 59.5, 59.5] == pauses
    assert not store.gone
    assert ["gone", "back", "gone"] == lines(caplog)  # the last says that there will be no more
    inner.full = False
    for _ in range(200):
        if lines(caplog)[-1] == "back":
            break
        await asyncio.sleep(0.01)
    assert "gone 8 times" in caplog.records[-1].getMessage()
    await store.close()


async def test_a_file_deleted_while_we_run_is_begun_anew_with_the_same_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_module, "MAINTENANCE_INTERVAL", 0.02)
    path = tmp_path / "state.db"
    async with opened(f"sqlite:{path}") as store:
        born, secret = await store.created_at(), await store.secret()
        for name in os.listdir(tmp_path):
            os.unlink(tmp_path / name)
        while born == await store.created_at():
            await asyncio.sleep(0.02)
        assert path.exists()
        assert secret == await SqliteStore(path).secret()


async def test_what_has_expired_is_swept_away_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_module, "MAINTENANCE_INTERVAL", 0.02)
    monkeypatch.setattr(sqlite_module, "BATCH_SIZE", 7)
    path, now = tmp_path / "state.db", 1000.0
    store = SqliteStore(path, lambda: now)
    for number in range(50):
        await store.set(f"k{number}", b"", 10)
        await store.hit([CounterHit(f"k{number}", 10.0, 1, "once")])
    await store.set("stays", b"", 1000)
    now += 100
    db = sqlite3.connect(path)
    while db.execute("SELECT count(*) FROM counted").fetchone() != (0,):
        await asyncio.sleep(0.02)
    assert [("stays",)] == db.execute("SELECT key FROM kept WHERE key != 'maintenance'").fetchall()
    assert (0,) == db.execute("SELECT count(*) FROM token").fetchone()
    db.close()
    await store.close()


async def test_the_file_and_those_beside_it_are_for_its_owner_alone(tmp_path: Path) -> None:
    async with opened(f"sqlite:{tmp_path}/state/state.db") as store:
        await store.hit(HIT)
        modes = {entry.name: entry.stat().st_mode & 0o777 for entry in os.scandir(tmp_path / "state")}
    assert {"state.db": 0o600, "state.db-wal": 0o600, "state.db-shm": 0o600} == modes
    assert 0o700 == os.stat(tmp_path / "state").st_mode & 0o777


class Broken(MemoryStore):
    """A back end with a bug."""

    async def get(self, key: str) -> bytes | None:
        raise KeyError("a line\r\nof somebody else")


async def test_whatever_goes_wrong_is_a_store_error_and_one_clean_line(caplog: pytest.LogCaptureFixture) -> None:
    store = CircuitBreaker(Broken(), name="memory:")
    with pytest.raises(StoreError):
        await store.get("k")
    (record,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "\n" not in record.getMessage()
    await store.close()
