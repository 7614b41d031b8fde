# SPDX-License-Identifier: GPL-3.0-or-later
"""What exceptions leave behind in memory, once they were caught.

One that was raised holds the frames that it went through, and by `__context__` those of what it was raised for. Whoever
keeps it, keeps all that was in them; a frame that holds its own exception holds itself.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType, TracebackType


@contextmanager
def left_behind() -> Iterator[list[BaseException]]:
    """A list, in which at the end stand the exceptions that were raised inside and that something still holds.

    There is no garbage collection inside: it would hide what holds itself, until it comes.
    """
    left: list[BaseException] = []
    gc.collect()
    gc.disable()
    try:
        before = _raised()
        yield left
        left += [error for error in _raised() if error not in before]
    finally:
        gc.enable()


def _raised() -> list[BaseException]:
    return [
        item
        for item in gc.get_objects()
        if isinstance(item, BaseException) and (item.__traceback__ is not None or item.__context__ is not None)
    ]


def size_of(held: object) -> int:
    """The bytes of an object and of all that it holds, classes and modules apart; no frame may be among it."""
    seen: set[int] = set()
    left = [held]
    size = 0
    while left:
        item = left.pop()
        if id(item) in seen or isinstance(item, type | ModuleType):
            continue
        assert not isinstance(item, FrameType | TracebackType), item
        seen.add(id(item))
        size += sys.getsizeof(item)
        left += gc.get_referents(item)
    return size
