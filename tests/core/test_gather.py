# SPDX-License-Identifier: GPL-3.0-or-later
"""Several coroutines in one task: all begin before any is waited for, and each ends as it would by itself."""

import asyncio
from collections.abc import Coroutine

import pytest

from gatekeeper.core.gather import gather_in_task
from tests.support.raised_errors import left_behind


class Script:
    """Coroutines that write down what they do."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.go = asyncio.Event()

    async def at_once(self, name: str) -> str:
        self.done.append(name)
        return name

    async def after_a_wait(self, name: str) -> str:
        self.done.append(f"{name} begins")
        await self.go.wait()
        await asyncio.sleep(0)
        self.done.append(f"{name} goes on")
        return name

    async def fails(self, wait: bool) -> str:
        if wait:
            await asyncio.sleep(0)
        raise KeyError("a bug")

    async def opens(self) -> str:
        self.go.set()
        return "open"


async def test_all_begin_before_one_is_waited_for() -> None:
    script = Script()
    calls = [script.after_a_wait("a"), script.at_once("b"), script.after_a_wait("c"), script.opens()]
    assert ["a", "b", "c", "open"] == await gather_in_task(calls)
    assert ["a begins", "b", "c begins", "a goes on", "c goes on"] == script.done


@pytest.mark.parametrize("wait", [True, False])
async def test_what_fails_stops_no_other(wait: bool) -> None:
    script = Script()
    first, second = await gather_in_task([script.fails(wait), script.at_once("b")])
    assert (KeyError, "b") == (type(first), second)


@pytest.mark.parametrize("wait", [True, False])
async def test_what_failed_leaves_nothing_behind(wait: bool) -> None:
    script = Script()
    with left_behind() as left:
        assert 2 == len(await gather_in_task([script.fails(wait), script.at_once("b")]))
    assert [] == left


async def test_an_error_that_comes_while_it_waits_is_heard_where_it_waits() -> None:
    async def waits() -> str:
        try:
            await failing
        except ValueError as error:
            return str(error)
        return "nothing"

    failing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(failing.set_exception, ValueError("no"))
    assert ["no"] == await gather_in_task([waits()])


async def test_who_is_cancelled_takes_all_along() -> None:
    ended: list[str] = []

    async def waits(name: str) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(name)

    calls: list[Coroutine[object, object, None]] = [waits("a"), waits("b")]
    task = asyncio.create_task(gather_in_task(calls))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ["a", "b"] == ended


async def test_a_time_limit_inside_holds() -> None:
    async def limited() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        except TimeoutError:
            return "late"
        return "in time"

    async def at_once() -> str:
        return "b"

    assert ["late", "b"] == await gather_in_task([limited(), at_once()])
