# SPDX-License-Identifier: GPL-3.0-or-later
"""The contract of store.py, on every back end."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gatekeeper.stores.memory import MemoryStore
from gatekeeper.stores.readonly import ReadOnlyStore
from gatekeeper.stores.sqlite.store import SqliteStore
from gatekeeper.stores.store import CounterHit, Keys, Lease, Store
from gatekeeper.stores.store_url import check_url, describe, open_store, redis_store
from tests.support.redis_server import RedisServer, redis_cluster, redis_server

MINUTE = 60.0
WORKER = """
import asyncio, sys
from gatekeeper.stores.store import CounterHit as Hit, Lease, StoreError
from gatekeeper.stores.store_url import open_store, redis_store

async def sure(call):
    while True:
        try:
            return await call()
        except StoreError:
            await asyncio.sleep(0.05)

async def main(url, worker):
    store = await open_store(url, timeout=60)
    print("secret", (await store.secret()).hex(), await store.created_at(), store.gone)
    for number in range(60):
        counted = [Hit("a", 600.0), Hit("b", 600.0, 2), Hit("c", 600.0, 1, f"m{number}")]
        print("sum", *await sure(lambda: store.hit(counted)))
        await sure(lambda: store.hit([Hit("limited", 600.0, limit=100), Hit("with it", 600.0)]))
        await sure(lambda: store.lease([Lease("places", f"{worker} {number}", 50)], 600.0))
    await store.close()

asyncio.run(main(*sys.argv[1:]))
"""


class Time:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[RedisServer]]:
    with redis_cluster() as nodes:
        yield nodes


LIMIT = 30.0
"""Seconds: what is tested here is not how long anybody waits."""
REDIS = pytest.mark.integration("redis-server")
CLUSTER = pytest.mark.integration("redis-server", "redis-tools")


@pytest.fixture(
    params=[
        "memory",
        "sqlite",
        pytest.param("redis", marks=REDIS),
        pytest.param("redis-tcp", marks=REDIS),
        pytest.param("redis-cluster", marks=CLUSTER),
        "readonly",
    ]
)
async def store(request: pytest.FixtureRequest, tmp_path: Path, time: Time) -> AsyncIterator[Store]:
    store: Store
    if request.param == "memory":
        store = MemoryStore(time)
    elif request.param == "sqlite":
        store = SqliteStore(tmp_path / "state" / "state.db", time, LIMIT)
    elif request.param == "readonly":
        store = ReadOnlyStore(MemoryStore(time), time)
    elif request.param == "redis-cluster":
        nodes: list[RedisServer] = request.getfixturevalue("cluster")
        for node in nodes:
            node.admin.flushall()
        store = redis_store(f"redis+cluster://127.0.0.1:1,127.0.0.1:{nodes[0].port}", time, LIMIT)
    else:
        server: RedisServer = request.getfixturevalue("server")
        server.admin.flushall()
        store = redis_store(server.url if request.param == "redis" else server.tcp_url, time, LIMIT)
    yield store
    await store.close()


async def test_a_value_is_kept_until_it_expires(store: Store, time: Time) -> None:
    assert await store.get("k") is None
    assert await store.set("k", b"\x00 v\xff", 10)
    time.now += 9.9
    assert b"\x00 v\xff" == await store.get("k")
    time.now += 0.2
    assert await store.get("k") is None


async def test_a_value_is_replaced_unless_only_a_missing_one_is_wanted(store: Store, time: Time) -> None:
    assert await store.set("k", b"1", 10, absent=True)
    assert not await store.set("k", b"2", 10, absent=True)
    assert b"1" == await store.get("k")
    assert await store.set("k", b"3", 20)
    assert b"3" == await store.get("k")
    time.now += 21
    assert await store.set("k", b"4", 10, absent=True)
    assert b"4" == await store.get("k")


async def test_a_deleted_value_is_gone_and_can_be_set_again(store: Store) -> None:
    await store.delete("k")
    await store.set("k", b"1", 10)
    await store.delete("k")
    assert await store.get("k") is None
    assert await store.set("k", b"2", 10, absent=True)
    assert b"2" == await store.get("k")


async def test_hits_are_summed_by_key_and_window(store: Store) -> None:
    assert [1, 5, 1] == await store.hit([CounterHit("a", MINUTE), CounterHit("b", MINUTE, 5), CounterHit("a", 3600)])
    assert [2, 7, 3] == await store.hit([CounterHit("a", MINUTE), CounterHit("b", MINUTE, 2), CounterHit("a", 3600, 2)])
    assert [3, 4] == await store.hit([CounterHit("a", MINUTE), CounterHit("a", MINUTE)])


async def test_values_of_a_kind_are_told_page_by_page(store: Store, time: Time) -> None:
    if isinstance(store, ReadOnlyStore):
        store = store._inner  # what was only pretended to be written does not count
    for number in range(450):
        await store.set(f"kind:{number}", str(number).encode(), 60.0)
    await store.set("kind-b:1", b"also", 60.0)
    await store.set("kinder", b"also", 5.0)
    await store.set("other:1", b"not", 60.0)
    await store.hit([CounterHit("kind:counted", 60.0)])
    time.now += 10
    found, after = await store.page("kind")
    while after:
        page, after = await store.page("kind", after)
        found += page
    assert {f"kind:{number}" for number in range(450)} | {"kind-b:1"} == {kept.key for kept in found}
    assert {(b"449", 50)} == {(kept.value, round(kept.ttl)) for kept in found if kept.key == "kind:449"}


async def test_no_hits_are_no_sums(store: Store) -> None:
    assert [] == await store.hit([])
    await store.unhit([])


async def test_hits_are_counted_and_keys_read_in_one_go(store: Store, time: Time) -> None:
    await store.set("k", b"1", 10)
    await store.set("old", b"2", 1)
    time.now += 5
    hits = [CounterHit("a", MINUTE, 2, "m1"), CounterHit("a", MINUTE, 0)]
    assert ([2, 2], [b"1", None, None, b"1"]) == await store.hit_and_get(hits, ["k", "old", "none", "k"])
    assert ([2, 2], []) == await store.hit_and_get(hits, [])
    assert ([], [b"1"]) == await store.hit_and_get([], ["k"])
    assert ([], []) == await store.hit_and_get([], [])


async def test_an_amount_of_zero_asks_without_counting(store: Store) -> None:
    await store.hit([CounterHit("a", MINUTE, 3)])
    assert [3, 0] == await store.hit([CounterHit("a", MINUTE, 0, "m1"), CounterHit("b", MINUTE, 0)])
    assert [4] == await store.hit([CounterHit("a", MINUTE, 1, "m1")])


@pytest.mark.parametrize("window", [1.0, MINUTE, 86400.0, 1_000_000.5])
async def test_an_event_counts_for_its_window_and_hardly_longer(store: Store, time: Time, window: float) -> None:
    await store.hit([CounterHit("a", window)])
    time.now += window * 0.999
    assert [1] == await store.hit([CounterHit("a", window, 0)])
    time.now += window * (0.001 + 1.01 / 60)
    assert [0] == await store.hit([CounterHit("a", window, 0)])


async def test_the_window_slides(store: Store, time: Time) -> None:
    sums = []
    for _ in range(12):
        sums += await store.hit([CounterHit("a", MINUTE)])
        time.now += 10
    assert [1, 2, 3, 4, 5, 6, 7, 7, 7, 7, 7, 7] == sums


async def test_a_token_counts_a_single_time_while_the_window_lasts(store: Store, time: Time) -> None:
    message = [CounterHit("a", MINUTE, 2, "m1"), CounterHit("a", 3600, 1, "m1")]
    assert [2, 1] == await store.hit(message)
    time.now += 59
    assert [2, 1] == await store.hit(message)
    assert [4] == await store.hit([CounterHit("a", MINUTE, 2, "m2")])
    time.now += 3
    assert [4, 1] == await store.hit(message)


async def test_what_is_given_back_does_not_count(store: Store, time: Time) -> None:
    await store.hit([CounterHit("a", MINUTE, 3), CounterHit("b", MINUTE, 2, "m1")])
    time.now += 5
    await store.hit([CounterHit("a", MINUTE, 1)])
    await store.unhit([CounterHit("a", MINUTE, 2), CounterHit("b", MINUTE, 2, "m1")])
    assert [2, 0] == await store.hit([CounterHit("a", MINUTE, 0), CounterHit("b", MINUTE, 0)])
    assert [2] == await store.hit([CounterHit("b", MINUTE, 2, "m1")])


async def test_never_more_is_given_back_than_was_counted(store: Store) -> None:
    await store.hit([CounterHit("a", MINUTE, 1), CounterHit("b", MINUTE, 1, "m1")])
    await store.unhit([CounterHit("a", MINUTE, 5), CounterHit("b", MINUTE, 1, "m2"), CounterHit("c", MINUTE)])
    await store.unhit([CounterHit("b", MINUTE, 1, "m1"), CounterHit("b", MINUTE, 1, "m1")])
    assert [1, 1, 1] == await store.hit([CounterHit("a", MINUTE), CounterHit("b", MINUTE), CounterHit("c", MINUTE)])


async def test_a_hit_that_would_be_too_much_counts_nothing_of_its_call(store: Store) -> None:
    await store.hit([CounterHit("a", MINUTE, 2)])
    assert [3, 1] == await store.hit([CounterHit("a", MINUTE, limit=3), CounterHit("b", MINUTE, once="m1")])
    assert [4, 2, 1] == await store.hit(
        [CounterHit("a", MINUTE, limit=3), CounterHit("b", MINUTE), CounterHit("c", MINUTE, once="m2")]
    )
    assert [3, 1, 0] == await store.hit(
        [CounterHit("a", MINUTE, 0), CounterHit("b", MINUTE, 0), CounterHit("c", MINUTE, 0)]
    )
    assert [1] == await store.hit([CounterHit("c", MINUTE, once="m2", limit=1)])
    assert [1] == await store.hit([CounterHit("c", MINUTE, once="m2", limit=1)])


async def test_hits_of_one_call_share_their_limit(store: Store) -> None:
    assert [1, 2] == await store.hit([CounterHit("a", MINUTE, limit=1), CounterHit("a", MINUTE, limit=1)])
    assert [0] == await store.hit([CounterHit("a", MINUTE, 0)])
    assert [1, 1] == await store.hit(
        [CounterHit("a", MINUTE, once="m1", limit=1), CounterHit("a", MINUTE, once="m1", limit=1)]
    )


async def test_a_spread_tells_when_amounts_cease_to_count(store: Store, time: Time) -> None:
    assert [] == await store.expirations(CounterHit("a", MINUTE))
    await store.hit([CounterHit("a", MINUTE, 2)])
    time.now += 10
    await store.hit([CounterHit("a", MINUTE, 1), CounterHit("a", 3600, 9)])
    assert [(51.0, 2), (61.0, 1)] == await store.expirations(CounterHit("a", MINUTE))
    time.now += 51
    assert [(10.0, 1)] == await store.expirations(CounterHit("a", MINUTE))


async def test_there_are_no_more_leases_than_places(store: Store) -> None:
    takes = [await store.lease([Lease("k", holder, 2)], 60) for holder in "abbc"]
    assert [[1], [2], [2], [3]] == takes
    await store.release([Lease("k", "a"), Lease("k", "unknown")])
    assert [[2], [3]] == [await store.lease([Lease("k", holder, 2)], 60) for holder in "cd"]


async def test_leases_are_taken_all_or_none(store: Store) -> None:
    await store.lease([Lease("narrow", "a", 1)], 60)
    assert [1, 2] == await store.lease([Lease("wide", "b", 9), Lease("narrow", "b", 1)], 60)
    assert [1, 1] == await store.lease([Lease("wide", "c", 1), Lease("other", "c")], 60)
    assert [] == await store.lease([], 60)
    await store.release([])


async def test_a_lease_ends_unless_it_is_renewed(store: Store, time: Time) -> None:
    await store.lease([Lease("k", "a", 9)], 60)
    await store.lease([Lease("k", "b", 9)], 60)
    time.now += 40
    assert [2] == await store.lease([Lease("k", "a")], 60)
    time.now += 30
    assert [2] == await store.lease([Lease("k", "c", 2)], 60)
    time.now += 61
    assert [1] == await store.lease([Lease("k", "d", 1)], 60)


async def test_what_a_wrong_clock_counted_in_the_future_does_not_count(store: Store, time: Time) -> None:
    time.now += 1e6
    await store.hit([CounterHit("a", MINUTE, 5, "m1")])
    time.now -= 1e6
    assert [1] == await store.hit([CounterHit("a", MINUTE, 1, "m1")])


YEAR = 366 * 86400.0


@pytest.mark.parametrize("full", [False, True])
async def test_what_was_counted_in_the_future_counts_for_one_window_from_now(
    store: Store, time: Time, full: bool
) -> None:
    hit = CounterHit("a", MINUTE, 1, limit=3 if full else None)
    time.now += 50
    await store.hit([hit._replace(amount=3)])
    time.now -= 50
    assert [4] == await store.hit([hit])  # also where that is too much and nothing is counted
    assert [(61.0, 3 if full else 4)] == [
        (round(left) // 1 * 1.0, sum(n for _, n in await store.expirations(hit)))
        for left, _ in (await store.expirations(hit))[:1]
    ]
    time.now += 59
    assert [4 if full else 5] == await store.hit([hit])
    time.now += 3
    assert [1 if full else 2] == await store.hit([hit])


async def test_a_clock_that_was_a_year_ahead_keeps_no_place_for_a_year(store: Store, time: Time) -> None:
    time.now += YEAR
    await store.lease([Lease("k", "dead", 1)], 60)
    time.now -= YEAR
    assert [2] == await store.lease([Lease("k", "a", 1)], 60)
    time.now += 61
    assert [1] == await store.lease([Lease("k", "a", 1)], 60)


async def test_a_store_born_in_the_future_is_born_now(store: Store, time: Time) -> None:
    time.now += YEAR
    await store.created_at()
    time.now -= YEAR
    now = time.now
    assert now == pytest.approx(await store.created_at())
    time.now += 100
    assert now == pytest.approx(await store.created_at())


@pytest.mark.parametrize("years", [-1, 1])
async def test_a_clock_that_is_set_by_a_year_neither_loses_the_secret_nor_breaks_a_call(
    store: Store, time: Time, years: int
) -> None:
    secret = await store.secret()
    await store.set("k", b"1", 600)
    await store.hit([CounterHit("a", MINUTE)])
    await store.tally("b", b"row", 600, 9)
    time.now += years * YEAR
    assert secret == await store.secret()
    await store.set("k", b"2", 600)
    assert b"2" == await store.get("k")
    assert [1] == await store.hit([CounterHit("a", MINUTE)])
    assert await store.tally("b", b"row", 600, 9)
    time.now += 601
    assert await store.get("k") is None
    assert {} == await store.tallies("b")


async def test_the_day_of_birth_and_the_secret_stay(store: Store, time: Time) -> None:
    born, secret = await store.created_at(), await store.secret()
    time.now += 1e8
    assert (born, secret) == (await store.created_at(), await store.secret())
    assert 32 == len(secret)
    assert time.now - 1e8 == pytest.approx(born)


class Model:
    """What a window of 60 seconds means, said with a list of events."""

    def __init__(self) -> None:
        self.events: list[tuple[int, int]] = []

    def hit(self, now: int, amount: int) -> int:
        self.events.append((now, amount))
        return sum(amount for when, amount in self.events if when >= now - 60)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=20))
@pytest.mark.integration("redis-server")
def test_sums_are_those_of_a_list_of_events(server: RedisServer, steps: list[tuple[int, int]]) -> None:
    async def play() -> None:
        time, model = Time(), Model()
        server.admin.flushall()
        with TemporaryDirectory() as folder:
            stores: list[Store] = [
                MemoryStore(time),
                SqliteStore(Path(folder) / "state.db", time, LIMIT),
                redis_store(server.url, time, LIMIT),
            ]
            await compare(stores, time, model)

    async def compare(stores: list[Store], time: Time, model: Model) -> None:
        for wait, amount in steps:
            time.now += wait
            expected = model.hit(int(time.now), amount)
            assert [[expected]] * len(stores) == [
                await store.hit([CounterHit("a", MINUTE, amount)]) for store in stores
            ]
        for store in stores:
            await store.close()

    asyncio.run(play())


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["hit", "hit", "hit", "unhit", "ask"]),
        st.sampled_from(["a", "b"]),
        st.integers(0, 2),  # whose clock: that of the second and third relay is behind or ahead
        st.integers(0, 200),  # tenths of a second until the next
        st.integers(1, 3),
        st.sampled_from(["", "m1", "m2"]),
        st.sampled_from([None, 5]),
    ),
    max_size=40,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=EVENTS, skewed=st.booleans())
@pytest.mark.parametrize("kind", ["sqlite", "redis"])
@pytest.mark.integration("redis-server")
def test_every_store_comes_to_the_same_sums_whatever_the_clocks_of_the_relays(
    server: RedisServer,
    tmp_path: Path,
    kind: str,
    events: list[tuple[str, str, int, int, int, str, int | None]],
    skewed: bool,
) -> None:
    async def play(store: Store, time: Time) -> list[list[int]]:
        start, sums = time.now, []
        elapsed = 0.0
        for what, key, relay, tenths, amount, once, most in events:
            # With clocks that differ, what leaves the window leaves it at other times: that is left out.
            elapsed += tenths / (200 if skewed else 10)
            time.now = start + elapsed + (0.0, -3.0, 2.5)[relay if skewed else 0]
            hit = CounterHit(key, MINUTE, amount, once, most)
            if what == "hit":
                sums.append(await store.hit([hit, CounterHit("both", MINUTE, 1)]))
            elif what == "unhit":
                await store.unhit([CounterHit(key, MINUTE, 1, once)])
            sums.append((await store.hit_and_get([CounterHit(name, MINUTE, 0) for name in ("a", "b", "both")], ()))[0])
        await store.close()
        return sums

    async def compare() -> None:
        time = Time()
        expected = await play(MemoryStore(time), time)
        time = Time()
        if kind == "redis":
            server.admin.flushall()
            assert expected == await play(redis_store(server.url, time, LIMIT), time)
        else:
            with TemporaryDirectory(dir=tmp_path) as folder:
                assert expected == await play(SqliteStore(Path(folder) / "state.db", time, LIMIT), time)

    asyncio.run(compare())


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
@pytest.mark.integration("redis-server")
async def test_processes_that_share_a_store_count_exactly(kind: str, server: RedisServer, tmp_path: Path) -> None:
    server.admin.flushall()
    url = server.url if kind == "redis" else f"sqlite:{tmp_path}/state/state.db"
    workers = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", WORKER, url, str(n), stdout=-1) for n in range(4)
    ]
    lines = [line for worker in workers for line in (await worker.communicate())[0].decode().splitlines()]
    sums = sorted(tuple(map(int, line.split()[1:])) for line in lines if line.startswith("sum"))
    assert [0] * 4 == [worker.returncode for worker in workers]
    assert list(range(1, 241)) == [a for a, _, _ in sums]
    assert list(range(2, 482, 2)) == [b for _, b, _ in sums]
    assert 60 == max(c for _, _, c in sums)
    assert 1 == len({line for line in lines if line.startswith("secret")})
    store = await open_store(url, timeout=LIMIT)
    assert [100, 100] == await store.hit([CounterHit("limited", 600.0, 0), CounterHit("with it", 600.0, 0)])
    assert [51] == await store.lease([Lease("places", "one more", 50)], 600.0)
    await store.close()


async def test_a_read_only_store_answers_as_if_and_leaves_no_trace(time: Time) -> None:
    inner = MemoryStore(time)
    await inner.set("old", b"1", 100)
    await inner.hit([CounterHit("a", MINUTE, 4)])
    store = ReadOnlyStore(inner, time)
    assert not await store.set("old", b"2", 10, absent=True)
    assert await store.set("new", b"2", 10, absent=True)
    await store.delete("old")
    assert [5] == await store.hit([CounterHit("a", MINUTE)])
    assert (None, b"2") == (await store.get("old"), await store.get("new"))
    assert (b"1", None) == (await inner.get("old"), await inner.get("new"))
    assert [4] == await inner.hit([CounterHit("a", MINUTE, 0)])


async def test_a_read_only_store_respects_limits_that_it_does_not_use_up(time: Time) -> None:
    inner = MemoryStore(time)
    await inner.hit([CounterHit("a", MINUTE, 4)])
    await inner.lease([Lease("k", "other")], 60)
    store = ReadOnlyStore(inner, time)
    assert [[5], [6]] == [await store.hit([CounterHit("a", MINUTE, limit=5)]) for _ in range(2)]
    assert [[2], [3]] == [await store.lease([Lease("k", holder, 2)], 60) for holder in "ab"]
    assert ([4], [2]) == (await inner.hit([CounterHit("a", MINUTE, 0)]), await inner.lease([Lease("k", "c")], 60))
    assert [(61.0, 4), (61.0, 1)] == sorted(await store.expirations(CounterHit("a", MINUTE)), reverse=True)


async def test_reading_only_creates_no_file(tmp_path: Path) -> None:
    store = await open_store(f"sqlite:{tmp_path}/state/state.db", read_only=True)
    assert [1] == await store.hit([CounterHit("a", MINUTE)])
    assert await store.created_at()
    await store.close()
    assert [] == os.listdir(tmp_path)


async def test_reading_only_sees_what_a_running_service_wrote(tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path}/state/state.db"
    service = await open_store(url, timeout=LIMIT)
    await service.hit([CounterHit("a", MINUTE, 4)])
    store = await open_store(url, read_only=True)
    assert [5] == await store.hit([CounterHit("a", MINUTE)])
    assert await service.secret() == await store.secret()
    assert [5] == await service.hit([CounterHit("a", MINUTE)])
    for each in (store, service):
        await each.close()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/var/lib/state.db",
        "sqlite:",
        "sqlite:state.db",
        "memory:x",
        "mysql://h/d",
        "redis://h:port/0",
        "redis://h/0?nonsense=1",
        "redis+cluster://h:1/3",
        "redis+sentinel://h:1",
        "redis+sentinel://h:x/s",
    ],
)
async def test_a_url_that_cannot_be_used_is_refused_with_what_is_allowed(url: str) -> None:
    with pytest.raises(ValueError, match="allowed are sqlite:/absolute/path"):
        await open_store(url)
    with pytest.raises(ValueError, match="allowed are sqlite:/absolute/path"):
        check_url(url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://user:hunter2@h:1/0?password=hunter2", "redis://h:1/0"),
        ("redis+sentinel://:hunter2@h:1,i:2/s/0", "redis+sentinel://h:1,i:2/s/0"),
        ("sqlite:/a/b", "sqlite:/a/b"),
        ("unix:///run/r.sock?password=hunter2", "unix:///run/r.sock"),
        ("redis://user:Sec/ret@h/0", "redis:…"),
        ("redis://user:Sec?ret@h/0", "redis:…"),
        ("redis://user:Sec#ret@h/0", "redis:…"),
        ("redis://user:Sec@ret@h/0", "redis:…"),
        ("redis://h/0?password=Sec@ret", "redis:…"),
        ("REDIS:user:hunter2@h", "REDIS:h"),
    ],
)
def test_a_password_is_never_shown(url: str, expected: str) -> None:
    assert expected == describe(url)


@given(st.lists(st.text()), st.lists(st.text()))
def test_different_parts_make_different_keys(one: list[str], other: list[str]) -> None:
    keys = Keys(b"k" * 32)
    assert (one == other) == (keys("kind", *one) == keys("kind", *other))


async def test_rows_of_a_bucket_are_counted_and_forgotten_when_none_has_come_for_long(store: Store, time: Time) -> None:
    assert {} == await store.tallies("day")
    for row in (b"a\x00\xff", b"b", b"a\x00\xff"):
        assert await store.tally("day", row, 100, 10)
    assert await store.tally("other", b"a", 100, 10)
    assert {b"a\x00\xff": 2, b"b": 1} == await store.tallies("day")
    time.now += 99
    assert {b"a\x00\xff": 2, b"b": 1} == await store.tallies("day")
    time.now += 2
    assert {} == await store.tallies("day")
    assert await store.tally("day", b"b", 100, 10)
    assert {b"b": 1} == await store.tallies("day")


async def test_a_full_bucket_still_counts_the_rows_that_it_has(store: Store) -> None:
    for row in (b"a", b"b"):
        assert await store.tally("day", row, 100, 2)
    assert not await store.tally("day", b"c", 100, 2)
    assert await store.tally("day", b"b", 100, 2)
    assert {b"a": 1, b"b": 2} == await store.tallies("day")
