# SPDX-License-Identifier: GPL-3.0-or-later
"""One round trip a request: what checks announced is read with the first question, whoever asks it."""

from collections.abc import Sequence

import pytest

from gatekeeper.checks.greylisting.greylist import Greylist
from gatekeeper.core.verdict import Mode
from gatekeeper.stores.memory import MemoryStore
from gatekeeper.stores.read_ahead import ReadAheadStore
from gatekeeper.stores.store import CounterHit, ReadAhead, StoreError
from tests.support.checking import World, rcpt

PEEK = CounterHit("p", 60.0, 0)
COUNT = CounterHit("p", 60.0)
WANTS = ReadAhead(("k", "none"), (PEEK, COUNT), created_at=True)


class Trips(MemoryStore):
    """Writes down each call that would be a round trip."""

    def __init__(self) -> None:
        super().__init__(lambda: 1_000_000.0)
        self.trips: list[str] = []

    async def hit_and_get(
        self, hits: Sequence[CounterHit], gets: Sequence[str]
    ) -> tuple[list[int], list[bytes | None]]:
        self.trips.append("hit_and_get")
        return await super().hit(hits), [await MemoryStore.get(self, key) for key in gets]

    async def get(self, key: str) -> bytes | None:
        self.trips.append("get")
        return await super().get(key)

    async def hit(self, hits: Sequence[CounterHit]) -> list[int]:
        self.trips.append("hit")
        return await super().hit(hits)


@pytest.fixture
async def store() -> Trips:
    store = Trips()
    await store.set("k", b"1", 10)
    await store.created_at()
    store.trips.clear()
    return store


async def test_what_was_announced_is_answered_from_the_first_round_trip(store: Trips) -> None:
    view = ReadAheadStore(store, lambda: [WANTS], lambda: 1e9)
    assert [1] == await view.hit([CounterHit("a", 60.0)])
    assert (b"1", None) == (await view.get("k"), await view.get("none"))
    assert [0] == await view.hit([PEEK])
    assert ([], [b"1", None]) == await view.hit_and_get((), ["k", "none"])
    assert 1_000_000.0 == await view.created_at()
    assert ["hit_and_get"] == store.trips


@pytest.mark.parametrize("first", ["get", "hit", "created_at", "hit_and_get"])
async def test_any_question_may_be_the_first(store: Trips, first: str) -> None:
    view = ReadAheadStore(store, lambda: [WANTS], lambda: 1e9)
    question = {"get": lambda: view.get("k"), "hit": lambda: view.hit([PEEK]), "created_at": view.created_at}
    await question.get(first, lambda: view.hit_and_get((), ()))()
    assert (b"1", [0]) == (await view.get("k"), await view.hit([PEEK]))
    assert ["hit_and_get"] == store.trips


async def test_nothing_is_counted_before_its_check_has_its_turn(store: Trips) -> None:
    view = ReadAheadStore(store, lambda: [WANTS], lambda: 1e9)
    await view.get("k")
    assert [1] == await view.hit([COUNT])
    assert [1] == await view.hit([PEEK])


async def test_what_was_not_announced_is_asked(store: Trips) -> None:
    view = ReadAheadStore(store, lambda: [WANTS], lambda: 1e9)
    await view.set("other", b"2", 10)
    await view.get("k")
    assert b"2" == await view.get("other")
    assert [5] == await view.hit([CounterHit("b", 60.0, 5)])


async def test_what_is_written_meanwhile_is_seen(store: Trips) -> None:
    view = ReadAheadStore(store, lambda: [WANTS], lambda: 1e9)
    await view.get("k")
    await view.set("k", b"2", 10)
    await view.delete("none")
    assert (b"2", None) == (await view.get("k"), await view.get("none"))


async def test_after_the_decision_the_store_itself_is_asked(store: Trips) -> None:
    view = ReadAheadStore(store, lambda: [WANTS], lambda: 1e9)
    await view.get("k")
    view.end()
    await store.set("k", b"2", 10)
    assert b"2" == await view.get("k")


async def test_a_store_that_fails_is_not_asked_ahead_again(store: Trips) -> None:
    class Down(Trips):
        async def hit_and_get(
            self, hits: Sequence[CounterHit], gets: Sequence[str]
        ) -> tuple[list[int], list[bytes | None]]:
            raise StoreError("down")

    view = ReadAheadStore(Down(), lambda: [WANTS], lambda: 1e9)
    with pytest.raises(StoreError):
        await view.hit([COUNT])
    assert await view.get("k") is None


@pytest.mark.parametrize("mode", [Mode.ENFORCE, Mode.OBSERVE])
@pytest.mark.parametrize("words", ["ratelimit, greylist", "greylist, ratelimit", "ratelimit, warn_if_reject greylist"])
async def test_limits_and_greylisting_take_one_round_trip_where_limits_come_first(words: str, mode: Mode) -> None:
    subject = World(words, sections={"greylist": Greylist(mode=mode)})
    subject.store = store = Trips()
    await store.created_at()
    store.trips.clear()
    decision = await subject.decide(rcpt(name="unknown"))
    assert "greylist.learning" in str(decision.reasons)
    # the last one counts the triplet for its network, after the answer
    assert ["hit_and_get", *(["hit"] if words.startswith("greylist") else [])] == store.trips[:-1]
