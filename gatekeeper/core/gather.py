# SPDX-License-Identifier: GPL-3.0-or-later
"""Run several coroutines in one task: all take their first step, then each is awaited in turn.

What they send in their first steps goes out together, as with asyncio.gather, but without a task for each (10 µs), and
those that need not wait have finished by then. What follows their first wait runs one after the other.
"""

import types
from collections.abc import Callable, Coroutine, Generator, Iterable
from functools import partial
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class Started(NamedTuple):
    """A coroutine that has taken its first step: `waiting` is what it waits for, `error` what ended it."""

    coroutine: Coroutine[Any, Any, Any]
    ended: bool = False
    value: Any = None
    error: Exception | None = None
    waiting: Any = None


def start(coroutine: Coroutine[Any, Any, Any]) -> Started:
    """Run `coroutine` until it has to wait, or to its end."""
    try:
        return Started(coroutine, waiting=coroutine.send(None))
    except StopIteration as end:
        return Started(coroutine, ended=True, value=end.value)
    except Exception as error:  # noqa: BLE001 (kept for the caller, as asyncio.gather does)
        return Started(coroutine, ended=True, error=_without_our_frame(error))


def _without_our_frame(error: Exception) -> Exception:
    """Take the frame that caught `error` out of its traceback.

    It, or the one that called it, holds the results: the error would hold itself until the garbage is collected.
    """
    return error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)


async def finish(started: Started) -> Any:
    """Await the rest of a coroutine that was started and has not ended, and return its value."""
    return await _rest(started.coroutine, started.waiting)


async def gather_in_task(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T | Exception]:
    """Run `coroutines` and return what each came to, in order: its value or its exception."""
    started = [start(coroutine) for coroutine in coroutines]
    results: list[T | Exception] = []
    try:
        for item in started:
            if item.ended:
                results.append(item.value if item.error is None else item.error)
                continue
            try:
                results.append(await _rest(item.coroutine, item.waiting))
            except Exception as error:  # noqa: BLE001 (returned, as asyncio.gather does)
                results.append(_without_our_frame(error))
    finally:
        for item in started[len(results) :]:  # we are cancelled
            item.coroutine.close()
    return results


@types.coroutine
def _rest(coroutine: Coroutine[Any, Any, T], waiting: Any) -> Generator[Any, Any, T]:
    """Run the rest of a coroutine that waits for `waiting`: what `await` does (PEP 380), without the first step."""
    resume: Callable[[], Any]
    while True:
        try:
            sent = yield waiting
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:  # noqa: BLE001 (thrown into the coroutine, as await does)
            resume = partial(coroutine.throw, error)
        else:
            resume = partial(coroutine.send, sent)
        try:
            waiting = resume()
        except StopIteration as end:
            value: T = end.value
            return value
