# SPDX-License-Identifier: GPL-3.0-or-later
"""Where log lines go, standard error and syslog, written without ever waiting for whoever reads them.

The rule: no answer waits for a log. A line that cannot be taken now is dropped and counted; how many they were is
written before the next line that is taken. Lines keep their order, and one that has begun is finished before another
begins.

Standard error is shared with whoever started us, and O_NONBLOCK belongs to the open file, which all share: to set it
there would break their programs. So a pipe or terminal is opened once more for ourselves, in the place of the
descriptor that we were given, and a socket is told with each line not to wait. A file is left as it is: it has a
position that others share, and its disk answers. What is left (a pipe of another user, which we may write to and not
open) is asked to take each line at once (RWF_NOWAIT).

`never_wait` also takes the place of Python's sys.stderr and sys.stdout, so that what others print (warnings, the
traceback of a thread, the lines of the start) does not wait either.

Known limit: where standard error is a pipe of another user and Linux is older than 6.5, it is asked whether it has
room, and if several processes fill the last of it in the same moment, one waits.
"""

import errno
import io
import os
import select
import socket
import stat
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TextIO

PIPE_BUF = select.PIPE_BUF
"""Bytes that a pipe takes at once or not at all."""
_RECONNECT = 1.0
"""Seconds between two attempts to find another reader of syslog's socket while the one there does not read."""

Send = Callable[[bytes], int]
"""Writes bytes without waiting, and returns how many were taken. Raises OSError, above all BlockingIOError."""
Tell = Callable[[str], str]
"""Makes a line of the log of a sentence."""


class Output(Protocol):
    """What takes the lines of the log, or drops and counts them. It raises nothing, and waits for nobody."""

    def catch_up(self) -> None:
        """Write what is owed: the end of a line that has begun, and how many were dropped."""
        ...


class Stream:
    """A descriptor, or rather what `send` reaches by it: bytes that follow each other."""

    def __init__(self, send: Send, tell: Tell) -> None:
        self._send = send
        self._tell = tell
        self._lock = threading.Lock()  # held for a system call, and never while anybody waits
        self._rest = b""  # of a line that has begun
        self._dropped = 0
        self._why = ""
        _all.add(self)

    def write(self, data: bytes) -> None:
        """Write `data`, whole lines."""
        with self._lock:
            if ((self._dropped or self._rest) and not self._catch_up()) or not self._put(data):
                self._dropped += 1

    def catch_up(self) -> None:
        """Write what is owed."""
        if self._dropped or self._rest:
            with self._lock:
                self._catch_up()

    def _catch_up(self) -> bool:
        """Return whether nothing is owed any more."""
        rest, self._rest = self._rest, b""
        if rest and not self._put(rest):
            self._rest = rest
        if self._rest:
            return False
        if self._dropped:
            if not self._put(self._tell(dropped(self._dropped, self._why)).encode()):
                return False
            self._dropped = 0
        return not self._rest

    def _put(self, data: bytes) -> bool:
        """Write `data`, and keep for later what is not taken of it; return False if nothing was taken."""
        start = 0
        while start < len(data):
            end = start + PIPE_BUF
            if end < len(data):  # more than is taken at once: between two lines, if there is an end of one
                end = data.rfind(b"\n", start, end) + 1 or end
            try:
                start += self._send(data[start:end] if start or end < len(data) else data)
            except OSError as error:
                self._why = _reason(error)
                break
        if start:
            self._rest = data[start:]
        return bool(start)

    def begin_anew(self) -> None:
        """Owe nothing, in a process that was just forked: its parent does."""
        self._lock = threading.Lock()
        self._rest, self._dropped = b"", 0


class Datagrams:
    """The socket of syslog at `path`, for one datagram a line."""

    def __init__(self, path: Path, tell: Tell) -> None:
        self._path = path
        self._tell = tell
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._next_attempt = 0.0
        self._dropped = 0
        _all.add(self)

    def send(self, data: bytes) -> bool:
        """Send `data`, one line. Return False if there is nobody to take it."""
        with self._lock:
            taken = False if self._dropped and not self._catch_up() else self._put(data)
            if taken is False:
                self._dropped += 1
        return taken is not None

    def close(self) -> None:
        """Close the socket."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def catch_up(self) -> None:
        """Send how many were dropped."""
        if self._dropped:
            with self._lock:
                self._catch_up()

    def _catch_up(self) -> bool:
        if self._put(self._tell(dropped(self._dropped, _UNREAD)).encode()) is False:
            return False
        self._dropped = 0  # also where nobody listens any more: what follows goes elsewhere
        return True

    def _put(self, data: bytes) -> bool | None:
        """Send `data`; return False if the reader does not read, None if there is none who takes it."""
        if self._socket is None and not self._connect():
            return None
        for last in (False, True):
            assert self._socket is not None
            try:
                self._socket.send(data)
            except BlockingIOError:
                # It may be a daemon that hangs, and in its place there is another one by now.
                now = time.monotonic()
                if last or now < self._next_attempt:
                    return False
                self._next_attempt = now + _RECONNECT
                if not self._connect():
                    return False
            except OSError as error:
                # Syslog was restarted and has a new socket, or it is down; or the line is longer than it takes.
                if last or error.errno == errno.EMSGSIZE or not self._connect():
                    return None
            else:
                return True
        raise AssertionError

    def _connect(self) -> bool:
        """Connect to who listens now; if there is nobody, what we had stays."""
        new = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            new.connect(str(self._path))
        except OSError:
            new.close()
            return False
        if self._socket is not None:
            self._socket.close()
        self._socket = new
        return True

    def begin_anew(self) -> None:
        """Owe nothing, and have a socket of one's own, in a process that was just forked."""
        self._lock = threading.Lock()
        self._dropped = 0
        self.close()


class Given:
    """A stream that the caller brought along, for tests."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, data: bytes) -> None:
        """Write `data`."""
        self._stream.write(data.decode())
        self._stream.flush()

    def catch_up(self) -> None:
        """Owe nothing."""


_all: "weakref.WeakSet[Stream | Datagrams]" = weakref.WeakSet()


def _begin_anew() -> None:
    for output in tuple(_all):
        output.begin_anew()


os.register_at_fork(after_in_child=_begin_anew)


def dropped(count: int, why: str) -> str:
    """Say that `count` lines were dropped."""
    return f"{count} log {'line was' if count == 1 else 'lines were'} dropped: {why}"


_UNREAD = "nobody read them"


def _reason(error: OSError) -> str:
    return _UNREAD if isinstance(error, BlockingIOError | BrokenPipeError) else error.strerror or type(error).__name__


class _Text(io.TextIOBase):
    """What takes the place of sys.stderr or sys.stdout: text, of which whole lines are written to `output`."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, descriptor: int, output: Stream) -> None:
        self._descriptor = descriptor
        self._output = output
        self._begun = threading.local()  # lines of two threads do not run into each other

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, text: str) -> int:
        lines, end, rest = (getattr(self._begun, "text", "") + text).rpartition("\n")
        self._begun.text = rest
        if end:
            self._output.write(f"{lines}\n".encode(self.encoding, self.errors))
        return len(text)

    def flush(self) -> None:
        """Write what is there of a line."""
        begun = getattr(self._begun, "text", "")
        if begun:
            self._begun.text = ""
            self._output.write(begun.encode(self.encoding, self.errors))


_outputs: dict[int, Stream] = {}
"""What this process, and all that it forks, writes its standard descriptors by."""
_replaced: list[object] = []
"""What sys.stdout and sys.stderr were: forgotten, it might close the descriptors."""


def never_wait(tell: Tell) -> Stream:
    """Return standard error, and let nobody wait for it or standard output from now on: whoever prints, and Python.

    `tell` makes a line of the log of a sentence.
    """
    if 2 not in _outputs:
        _outputs[1], _outputs[2] = (Stream(_sender(descriptor), tell) for descriptor in (1, 2))
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # None if it was closed when we were started
                stream.flush()
                _replaced.append(stream)
        sys.stdout, sys.stderr = _Text(1, _outputs[1]), _Text(2, _outputs[2])
    return _outputs[2]


def _sender(descriptor: int) -> Send:
    """Return what writes to a descriptor without waiting."""
    try:
        kind = os.fstat(descriptor).st_mode
    except OSError:  # closed
        return lambda data: len(data)
    if stat.S_ISREG(kind):
        return lambda data: os.write(descriptor, data)
    if stat.S_ISSOCK(kind):
        shared = socket.socket(fileno=descriptor)
        return lambda data: shared.send(data, socket.MSG_DONTWAIT)
    if _open_again(descriptor):
        return lambda data: os.write(descriptor, data)
    return lambda data: _write_at_once(descriptor, data)


def _open_again(descriptor: int) -> bool:
    """Put an open file of our own in the place of a descriptor, one that never waits; return whether that went."""
    try:
        own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:  # it is another user's; or nobody reads any more
        return False
    os.dup2(own, descriptor)
    os.close(own)
    return True


def _write_at_once(descriptor: int, data: bytes) -> int:
    """Write to a descriptor whose open file others share. Raises OSError."""
    try:
        return os.pwritev(descriptor, [data], -1, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ESPIPE, errno.ENOSYS):
            raise
    if not select.select([], [descriptor], [], 0)[1]:
        raise BlockingIOError(errno.EAGAIN, "no room")
    return os.write(descriptor, data)
