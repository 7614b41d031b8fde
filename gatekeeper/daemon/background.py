# SPDX-License-Identifier: GPL-3.0-or-later
"""A service that leaves the foreground once it serves, and its pid file, as units of type `forking` want it.

Unlike with OpenDKIM, whoever waits for the foreground knows what came of the start: status 0 means that every worker
serves, and what went wrong before has been said on standard error.
"""

import logging
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gatekeeper.core import safe_files

logger = logging.getLogger(__name__)

_EX_SOFTWARE = 70

Serve = Callable[[Callable[[], None]], int]
"""Serves until a signal; calls what it is given once everything works. The exit status."""


def in_background(serve: Serve) -> int:
    """Run `serve` in a process of its own; the status of the start."""
    read = write = -1
    try:
        read, write = os.pipe()
        child = os.fork()
    except OSError as error:
        for descriptor in {read, write} - {-1}:
            os.close(descriptor)
        print(f"cannot leave the foreground: {error.strerror}", file=sys.stderr)
        return 75  # EX_TEMPFAIL (sysexits(3))
    if child == 0:
        status = _EX_SOFTWARE
        try:
            os.close(read)
            status = _detached(serve, write)
        finally:  # never back into what the foreground does
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as told:
        if told.read(1):
            return 0
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def leave_terminal() -> None:
    """Let go of standard input, output and error: whoever waits for their end has waited long enough."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _detached(serve: Serve, tell: int) -> int:
    def up() -> None:
        with suppress(OSError):  # no descriptor left: it serves all the same
            leave_terminal()
        with suppress(OSError):  # who waited has gone
            os.write(tell, b"\n")
        os.close(tell)

    try:
        os.setsid()
        return serve(up)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        logger.exception("the service failed")
        return _EX_SOFTWARE


@contextmanager
def write_pid_file(path: Path | None) -> Any:
    """Yield what writes this process's number into the file at `path`, and remove the file in the end.

    A file that cannot be written is logged, as OpenDKIM does, and keeps nothing from serving. One that is another file
    in the end, of a service that was started meanwhile, is left alone.
    """
    written: os.stat_result | None = None

    def write() -> None:
        nonlocal written
        if path is None:
            return
        try:
            written = safe_files.write(path, f"{os.getpid()}\n".encode())
        except OSError as error:
            logger.error("cannot write the pid file %s: %s", path, error.strerror)  # noqa: TRY400 (the sentence says it)

    try:
        yield write
    finally:
        if written is not None and path is not None:
            with suppress(OSError):
                safe_files.remove(path, only=written)
