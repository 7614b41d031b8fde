# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines are whole, in order, and every one is written or counted, however little is taken of them."""

import errno
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.core import log_output
from gatekeeper.core.log_output import PIPE_BUF, Stream


class Sink:
    """Takes as many bytes with each call as `room` says, and without end once that is used up."""

    def __init__(self, room: list[int]) -> None:
        self.room = room
        self.taken = b""

    def send(self, data: bytes) -> int:
        most = self.room.pop(0) if self.room else len(data)
        if not most:
            raise BlockingIOError(errno.EAGAIN, "no room")
        self.taken += data[:most]
        return min(most, len(data))


LINES = st.lists(st.integers(1, 2 * PIPE_BUF), min_size=1, max_size=20)


@given(LINES, st.lists(st.integers(0, 3000), max_size=60))
def test_every_line_is_written_whole_and_in_order_or_counted(lengths: list[int], room: list[int]) -> None:
    sink = Sink(room)
    stream = Stream(sink.send, lambda text: f"NOTE {text}\n")
    lines = [f"{number:03}{'x' * length}" for number, length in enumerate(lengths)]
    for line in lines:
        stream.write(f"{line}\n".encode())
    sink.room.clear()
    stream.catch_up()
    found = sink.taken.decode().splitlines()
    written = [line for line in found if not line.startswith("NOTE")]
    dropped = sum(int(match[1]) for line in found if (match := re.match(r"NOTE (\d+) log lines? w", line)))
    assert written == [line for line in lines if line in written]
    assert len(lines) == len(written) + dropped


def test_a_record_longer_than_a_pipe_takes_at_once_is_cut_between_its_lines() -> None:
    sizes: list[int] = []

    def send(data: bytes) -> int:
        assert data.endswith(b"\n")
        sizes.append(len(data))
        return len(data)

    Stream(send, str).write(b"a line of a traceback\n" * 1000)
    assert 22_000 == sum(sizes)
    assert max(sizes) <= PIPE_BUF


def test_why_lines_were_dropped_is_told() -> None:
    taken: list[bytes] = []

    def full(data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def taking(data: bytes) -> int:
        taken.append(data)
        return len(data)

    stream = Stream(full, lambda text: f"{text}\n")
    stream.write(b"lost\n")
    stream._send = taking
    stream.write(b"there\n")
    assert [b"1 log line was dropped: No space left on device\n", b"there\n"] == taken


def test_a_child_does_not_tell_what_its_parent_owes() -> None:
    sink = Sink([0, 0])
    stream = Stream(sink.send, lambda text: f"NOTE {text}\n")
    stream.write(b"lost\n")
    stream.begin_anew()
    sink.room.clear()
    stream.write(b"ours\n")
    assert b"ours\n" == sink.taken


def fill(pipe: int) -> None:
    while True:
        assert 1000 == log_output._write_at_once(pipe, 1000 * b"x")


@pytest.mark.parametrize("nowait", [True, False], ids=["RWF_NOWAIT", "an older kernel"])
def test_a_pipe_that_cannot_be_opened_again_is_asked_whether_it_has_room(
    monkeypatch: pytest.MonkeyPatch, nowait: bool
) -> None:
    def unknown(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    if not nowait:
        monkeypatch.setattr("gatekeeper.core.log_output.os.pwritev", unknown)
    read, write = os.pipe()
    with pytest.raises(BlockingIOError):
        fill(write)
    assert os.get_blocking(write)
    os.close(read)
    os.close(write)
