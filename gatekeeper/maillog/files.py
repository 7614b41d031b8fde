# SPDX-License-Identifier: GPL-3.0-or-later
"""The files in which people keep logs, opened: plain or packed, `-` for standard input, or the journal itself.

Packed may mean gzip, bzip2, xz or zstd.
What packs a file is told from its first bytes, not from its name. A packed file that ends early gives what it held.
Nothing is read before it is wanted, and never more than a line at a time.
"""

import bz2
import gzip
import io
import lzma
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

import zstandard

from gatekeeper.maillog import journal

STDIN = Path("-")
MAX_LINE = 64 * 1024
"""Bytes of the longest line that is read: rsyslog writes 8 KiB at most unless told otherwise."""
_DAMAGED = (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


class LogError(Exception):
    """A log cannot be read: the text says which, why, and what to do."""


class LogFile:
    """A log that is open. `damage` says what is wrong with the rest of it, once that has been met."""

    def __init__(self, name: str, raw: BinaryIO, *, newest: float, size: int = 0) -> None:
        self.name = name
        self.newest = newest
        self.size = size
        """Bytes of the file, packed as it is; 0 if unknown."""
        self.damage = ""
        self._raw = raw
        buffered = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, raw))
        head = buffered.peek(8)[:8]
        unpack = next((unpack for magic, unpack in _PACKED if head.startswith(magic)), None)
        self.stream = (
            buffered if unpack is None else io.BufferedReader(cast(io.RawIOBase, unpack(buffered)), 128 * 1024)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._raw.close()

    @property
    def position(self) -> int:
        """How many bytes of the file have been read; 0 if that is unknown."""
        try:
            return self._raw.tell() if self.size else 0
        except (OSError, ValueError):
            return self.size

    def head(self) -> bytes:
        """Return some of what comes next, a few kilobytes as a rule, without reading it."""
        try:
            return self.stream.peek()
        except _DAMAGED as error:
            self.damage = _why(error)
            return b""

    def lines(self) -> Iterator[str | None]:
        """Yield the lines without their breaks; None for each that is longer than MAX_LINE."""
        readline = self.stream.readline
        while True:
            try:
                data = readline(MAX_LINE + 1)
            except _DAMAGED as error:
                self.damage = _why(error)
                return
            if not data:
                return
            if len(data) > MAX_LINE and not data.endswith(b"\n"):
                self._pass_over()
                yield None
            else:
                yield data.rstrip(b"\r\n").decode("utf-8", "surrogateescape")

    def _pass_over(self) -> None:
        try:
            while (data := self.stream.readline(MAX_LINE)) and not data.endswith(b"\n"):
                pass
        except _DAMAGED as error:
            self.damage = _why(error)


def _gzip(packed: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, gzip.GzipFile(fileobj=packed))


def _bzip2(packed: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, bz2.BZ2File(packed))


def _xz(packed: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, lzma.LZMAFile(packed))


def _zstd(packed: BinaryIO) -> BinaryIO:
    return zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(packed, read_across_frames=True)


_PACKED = ((b"\x1f\x8b", _gzip), (b"BZh", _bzip2), (b"\xfd7zXZ\x00", _xz), (b"\x28\xb5\x2f\xfd", _zstd))
"""What a packed file begins with, and what unpacks it."""


def open_log(path: Path) -> LogFile:
    """Open a log; `-` is standard input. Raises LogError."""
    if path == STDIN:
        return LogFile("standard input", sys.stdin.buffer, newest=time.time())
    try:
        raw = path.open("rb")
        status = os.fstat(raw.fileno())
        return LogFile(str(path), raw, newest=status.st_mtime, size=status.st_size)
    except IsADirectoryError:
        raise LogError(f"{path} is a folder: name the logs in it, as {path}/mail.log*") from None
    except _DAMAGED as error:
        raise LogError(f"{path} cannot be read: {_why(error)}") from None


def open_journal() -> LogFile:
    """Run journalctl(1) and return what it prints. Raises LogError where there is no journal."""
    try:
        process = subprocess.Popen(  # noqa: S603 (a fixed program with fixed arguments)
            journal.COMMAND, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise LogError(f"journalctl cannot be run: {_why(error)}; name a log file instead") from None
    return LogFile("the journal", cast(BinaryIO, process.stdout), newest=time.time())


def _why(error: BaseException) -> str:
    if isinstance(error, EOFError):
        return "it ends early"
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
