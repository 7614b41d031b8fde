# SPDX-License-Identifier: GPL-3.0-or-later
"""Several coroutines in one task: all begin, then each is waited for.

What they send in their first steps goes out together, as with asyncio.gather, but without a task for each (10 µs), and
those that need not wait have ended by then. What follows their first wait runs one after the other.
"""

import types
from collections.abc import Callable, Coroutine, Generator, Iterable
from functools import partial
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class Started(NamedTuple):
    """A coroutine that has taken its first step. `waiting` is what it waits for, `error` what it ended with."""

    coroutine: Coroutine[Any, Any, Any]
    ended: bool = False
    value: Any = None
    error: Exception | None = None
    waiting: Any = None


def start(coroutine: Coroutine[Any, Any, Any]) -> Started:
    """Run it until it has to wait, or to its end."""
    try:
        return Started(coroutine, waiting=coroutine.send(None))
    except StopIteration as end:
        return Started(coroutine, ended=True, value=end.value)
    except Exception as error:
        return Started(coroutine, ended=True, error=error)


async def finish(begun: Started) -> Any:
    """What a coroutine comes to that has begun and not ended."""
    return await _rest(begun.coroutine, begun.waiting)


async def gather_in_task(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T | Exception]:
    """What each comes to, in order: its value or its exception."""
    begun = [start(coroutine) for coroutine in coroutines]
    found: list[T | Exception] = []
    try:
        for one in begun:
            if one.ended:
                found.append(one.value if one.error is None else one.error)
                continue
            try:
                found.append(await _rest(one.coroutine, one.waiting))
            except Exception as error:
                found.append(error)
    finally:
        for one in begun[len(found) :]:  # we are cancelled
            one.coroutine.close()
    return found


@types.coroutine
def _rest(coroutine: Coroutine[Any, Any, T], waiting: Any) -> Generator[Any, Any, T]:
    """The rest of a coroutine that waits for `waiting`: what `await` does (PEP 380), but for the first step."""
    resume: Callable[[], Any]
    while True:
        try:
            sent = yield waiting
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:
            resume = partial(coroutine.throw, error)
        else:
            resume = partial(coroutine.send, sent)
        try:
            waiting = resume()
        except StopIteration as end:
            value: T = end.value
            return value
