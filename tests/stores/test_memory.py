# SPDX-License-Identifier: GPL-3.0-or-later
"""What a process keeps in its own memory is bounded, however many addresses a stranger has, and nobody gains by it."""

import pytest

from gatekeeper.stores.memory import MemoryStore
from gatekeeper.stores.shared_values import CREATED_AT, SECRET
from gatekeeper.stores.store import CounterHit

MOST = 200
MINUTE = 60.0


class Subject:
    def __init__(self) -> None:
        self.now = 1e9
        self.store = MemoryStore(lambda: self.now, most=MOST)

    async def hit(self, key: str, once: str = "") -> int:
        return (await self.store.hit([CounterHit(key, MINUTE, once=once)]))[0]

    def entries(self) -> int:
        store = self.store
        parts = (store._values, store._sums, store._tokens, store._expiry, store._tallies, store._leases)
        return sum(len(part) for part in parts)


async def test_however_many_addresses_there_are_no_more_are_kept_than_fit() -> None:
    subject = Subject()
    for number in range(50 * MOST):
        subject.now += 0.001
        await subject.hit(f"client {number}", f"message {number}")
        await subject.store.set(f"triplet {number}", b"first 1", 600.0)
        await subject.store.tally(f"bucket {number % 7}", str(number).encode(), 600.0, MOST)
        assert len(subject.store._sums) <= MOST
    assert len(subject.store._tokens) <= MOST
    assert len(subject.store._values) <= MOST
    assert sum(map(len, subject.store._tallies.values())) <= MOST
    assert subject.entries() < 7 * MOST


async def test_who_sends_much_stays_counted_whatever_comes_from_other_addresses() -> None:
    subject = Subject()
    for _ in range(5):
        await subject.hit("heavy")
    for number in range(20 * MOST):
        await subject.hit(f"other {number}")
    assert 6 == await subject.hit("heavy")


async def test_who_begins_when_it_is_full_is_counted_too() -> None:
    subject = Subject()
    for number in range(MOST):
        for _ in range(3):
            await subject.hit(f"other {number}")
    for number in range(4 * MOST):
        await subject.hit("new")
        await subject.hit(f"another {number}")
    assert 4 * MOST + 1 == await subject.hit("new")


async def test_of_equal_ones_the_one_that_was_hit_last_stays() -> None:
    subject = Subject()
    for number in range(MOST):
        await subject.hit(f"{number}")
    await subject.store.hit([CounterHit("0", MINUTE), CounterHit("1", MINUTE)])
    await subject.store.unhit([CounterHit("0", MINUTE), CounterHit("1", MINUTE)])
    await subject.hit("one too many")
    assert [2, 1] == [await subject.hit("0"), await subject.hit("2")]


async def test_what_has_expired_goes_first() -> None:
    subject = Subject()
    for number in range(MOST):
        for _ in range(9):
            await subject.hit(f"old {number}", f"{number}")
    subject.now += 2 * MINUTE
    for number in range(MOST):
        await subject.hit(f"new {number}")
    assert [2] * MOST == [await subject.hit(f"new {number}") for number in range(MOST)]


async def test_of_values_those_go_that_would_expire_soonest_and_never_the_secret() -> None:
    subject = Subject()
    secret, born = await subject.store.secret(), await subject.store.created_at()
    await subject.store.set("known", b"known 1", 86400.0)
    for number in range(9 * MOST):
        await subject.store.set(f"waits {number}", b"first 1", 600.0)
    assert b"known 1" == await subject.store.get("known")
    subject.store._values |= {SECRET: (secret, 0.0, 1.0), CREATED_AT: (b"1", 0.0, 1.0)}  # as if they were the oldest
    for number in range(MOST):
        subject.store._values[f"more {number}"] = (b"", 1e10, 1.0)
    subject.store._make_room()
    assert {SECRET, CREATED_AT} <= subject.store._values.keys()
    assert secret
    assert born


async def test_a_clock_that_was_ahead_keeps_nothing_for_longer() -> None:
    subject = Subject()
    subject.now += 1e8
    await subject.store.set("k", b"1", 600.0)
    await subject.hit("a", "m1")
    subject.now -= 1e8
    subject.store._sweep(subject.now)
    subject.now += 601
    subject.store._sweep(subject.now)
    assert 0 == subject.entries()


@pytest.mark.parametrize("amount", [0, 1])
async def test_only_asking_adds_nothing(amount: int) -> None:
    subject = Subject()
    await subject.store.hit([CounterHit("a", MINUTE, amount)])
    assert amount == len(subject.store._sums)
