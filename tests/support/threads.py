# SPDX-License-Identifier: GPL-3.0-or-later
"""Threads that get in each other's way on purpose: at one chosen instruction, or as often as the interpreter lets them.

By `at_each_step` one thread is stopped before an instruction of the modules that are looked at, another does all it has
to do, and the first goes on; and so for each instruction in turn. That finds what is wrong with one preemption, always,
however seldom it happens. It stops at some places where CPython would not; what stands these stands more than it must.
By `storm` threads run for real, switched after every microsecond and made to give way at many calls, because a busy
machine switches seldom by itself: that also finds what takes two preemptions.
"""

import asyncio
import random
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, ModuleType, TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")

LONGEST = 60.0
"""Seconds after which a thread counts as hanging."""


class Loop:
    """An event loop in a thread of its own, as a milter worker has it in its main thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.errors: list[object] = []
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """What `coroutine` comes to on the loop; not to be called there."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(LONGEST)

    def call(self, function: Callable[[], T]) -> T:
        """The same for a function."""

        async def called() -> T:
            return function()

        return self.run(called())

    def close(self) -> None:
        """End it and what runs on it; what went wrong in a callback is raised here."""
        self.run(_cancelled())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(LONGEST)
        self.loop.close()
        assert [] == self.errors


async def _cancelled() -> None:
    """Cancel all tasks but this one, and wait for their end."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Preempted:
    """While this is entered, the thread that has entered it is stopped before its `at`-th instruction in `files`, until
    `intruder` has run in another thread, or for `patience` seconds. `found` is what the intruder came to."""

    def __init__(self, at: int, files: frozenset[str], patience: float) -> None:
        self.intruder: Callable[[], Any] = lambda: None
        self.found: Any = None
        self.done = False
        self._at = at
        self._files = files
        self._passed = 0
        self._patience = patience
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._before: Any = None

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        sys.settrace(self._before)
        if self._thread is not None:
            self._thread.join(LONGEST)
            assert not self._thread.is_alive(), "the intruder hangs"
        if self._error is not None:
            raise self._error

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        if self.done or frame.f_code.co_filename not in self._files:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._step

    def _step(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode" and not self.done:
            if self._passed == self._at:
                self.done = True
                self._thread = threading.Thread(target=self._intrude, daemon=True)
                self._thread.start()
                self._thread.join(self._patience)
            self._passed += 1
        return self._step

    def _intrude(self) -> None:
        try:
            self.found = self.intruder()
        except BaseException as error:  # noqa: BLE001 (told to the test that waits)
            self._error = error


def at_each_step(
    scene: Callable[[Preempted], None], *modules: ModuleType, every: int = 1, patience: float = LONGEST
) -> int:
    """Play `scene` once for each instruction of `modules` that it comes to while it has entered what it is given, or
    for each `every`-th; how many times it was preempted. Where an intruder may have to wait for a lock of who is
    stopped, that one goes on after `patience` seconds."""
    files = frozenset(str(module.__file__) for module in modules)
    at = 0
    while True:
        preempted = Preempted(at, files, patience)
        scene(preempted)
        if not preempted.done:
            return at // every
        at += every


@contextmanager
def switching() -> Iterator[None]:
    """Threads take turns as often as the interpreter lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


_installing = threading.Lock()
"""One thread at a time: where there is an audit hook, another thread may run within setprofile, which then raises."""


class Jostled:
    """While it is entered, this thread gives way before and after every so many calls, C's included."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._left = 0

    def __enter__(self) -> Self:
        with _installing:
            sys.setprofile(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        with _installing:
            sys.setprofile(None)

    def _called(self, frame: FrameType, event: str, argument: Any) -> None:
        self._left -= 1
        if self._left < 0:
            self._left = self._random.randrange(200)
            time.sleep(1e-6)


def storm(workers: Sequence[Callable[[], object]], loop: Loop | None = None) -> None:
    """Run all at once, each in a thread, and jostle them and the loop; raises what any of them raises."""
    errors: list[BaseException] = []
    ready, begin = threading.Semaphore(0), threading.Event()

    def guarded(number: int, work: Callable[[], object]) -> None:
        try:
            with Jostled(number):
                ready.release()
                begin.wait(LONGEST)
                work()
        except BaseException as error:  # noqa: BLE001 (told to the test that waits)
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=one, daemon=True) for one in enumerate(workers)]
    of_the_loop = Jostled(len(workers))
    if loop is not None:
        loop.call(of_the_loop.__enter__)
    for thread in threads:
        thread.start()
        ready.acquire(timeout=LONGEST)  # until it is past its start, where coverage installs what traces it
    with switching():
        begin.set()
        for thread in threads:
            thread.join(LONGEST)
    if loop is not None:
        loop.call(of_the_loop.__exit__)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]
