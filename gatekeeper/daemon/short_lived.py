# SPDX-License-Identifier: GPL-3.0-or-later
"""Work that is done in a process of its own, which then ends: what it has read is in nobody else's memory afterwards.

The result comes back through a pipe, so it must be picklable. The child ends by os._exit whatever happens to it.
"""

import io
import logging
import os
import pickle
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

from gatekeeper.core.problem import ConfigError
from gatekeeper.daemon import wakeup
from gatekeeper.daemon.wakeup import SIGNALS

logger = logging.getLogger(__name__)

_EX_SOFTWARE = 70
PATIENCE = 300.0
"""Seconds that the work may take: a file system that hangs must not keep the parent from its other work for ever."""

T = TypeVar("T")


def run_in_child(work: Callable[[], T], let_go: Callable[[], None] = lambda: None) -> T:
    """Return what `work` returns in a child that first calls `let_go`, to close what it must not hold.

    Raises ConfigError or OSError as `work` does, and OSError if the child fails in another way.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # who read it has gone, or the disk is full
            stream.flush()
    read, write = os.pipe()
    try:
        # Signals wait until the child has undone our handling: what is meant for it would be told to us.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            child = os.fork()
            if child == 0:
                _be_child(work, let_go, read, write, before)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    except OSError:
        os.close(read)
        raise
    finally:
        os.close(write)
    with os.fdopen(read, "rb", 0) as told:
        answer = _read_all(told)
    if answer is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise OSError(f"it took more than {PATIENCE:g} seconds")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise OSError(f"the process that was to do it ended with status {status}")
    kind, value = pickle.loads(answer)  # noqa: S301 (our own child's)
    if kind == "problems":
        raise ConfigError(value)
    if kind == "error":
        raise OSError(*value)
    result: T = value
    return result


def _read_all(told: io.FileIO) -> bytes | None:
    """Return what is told up to its end; None if that does not come in time."""
    deadline = time.monotonic() + PATIENCE
    found = b""
    while select.select([told], [], [], max(0.0, deadline - time.monotonic()))[0]:
        if not (piece := told.read(1 << 20)):
            return found
        found += piece
    return None


def _be_child(
    work: Callable[[], object], let_go: Callable[[], None], read: int, write: int, mask: set[int]
) -> NoReturn:
    def work_alone() -> object:
        os.close(read)
        wakeup.reset()
        os.setpgid(0, 0)  # Ctrl-C reaches only the parent
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        let_go()
        return work()

    status = _EX_SOFTWARE
    try:
        answer = pickle.dumps(_outcome(work_alone), pickle.HIGHEST_PROTOCOL)
        with os.fdopen(write, "wb") as tell:
            tell.write(answer)
        status = 0
    except BrokenPipeError:  # nobody waits for it any more
        pass
    except BaseException:
        logger.exception("a process that was to do something for us failed")
    finally:
        os._exit(status)


def _outcome(work: Callable[[], object]) -> tuple[str, Any]:
    try:
        return "value", work()
    except ConfigError as error:
        return "problems", error.problems
    except OSError as error:
        return "error", error.args if error.filename is None else (*error.args, error.filename)
