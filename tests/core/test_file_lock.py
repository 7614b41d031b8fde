# SPDX-License-Identifier: GPL-3.0-or-later
"""One at a time: nothing is lost, nobody waits for the dead, and who waits too long is told for whom."""

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from gatekeeper.core.file_lock import Locked, changing, locked
from gatekeeper.core.safe_path import UnsafePath


def add_line(path: Path, number: int) -> None:
    with changing(path) as file:
        time.sleep(0.002)
        file.replace((file.data or b"") + f"{number}\n".encode())


def test_of_many_changes_at_once_none_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "table"
    (tmp_path / "link").symlink_to("table")
    with ThreadPoolExecutor(12) as pool:
        # by two names of one file; and by another file
        for done in [pool.submit(add_line, tmp_path / ("link", "table", "other")[n % 3], n) for n in range(60)]:
            done.result()
    assert sorted(n for n in range(60) if n % 3 < 2) == sorted(map(int, path.read_text().split()))
    assert 20 == len((tmp_path / "other").read_text().split())
    assert {"table", "other", "link"} == {found.name for found in tmp_path.iterdir()}


def test_a_change_of_another_file_does_not_wait(tmp_path: Path) -> None:
    with locked(tmp_path / "a"), changing(tmp_path / "b", wait=0) as file:
        file.replace(b"x")
    assert b"x" == (tmp_path / "b").read_bytes()


def holder(path: Path) -> int:
    """A process that holds the lock until it is killed."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with locked(path):
            os.write(write, b"x")
            time.sleep(60)
        os._exit(1)
    os.read(read, 1)
    os.close(read)
    os.close(write)
    return child


def test_who_waits_too_long_is_told_for_whom_and_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "table"
    child = holder(path)
    try:
        before = time.monotonic()
        with pytest.raises(Locked, match=rf"\(pid {child}\) is changing it and holds .*/\.table\.lock; try") as refused:
            changing(path, wait=0.2).__enter__()
        assert 0.2 <= time.monotonic() - before < 5
        assert str(path) == refused.value.filename
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert (tmp_path / ".table.lock").exists()
    with changing(path, wait=0) as file:
        file.replace(b"x")
    assert [path] == list(tmp_path.iterdir())


@pytest.mark.parametrize("put", [lambda path: path.symlink_to("precious"), os.mkfifo, Path.mkdir])
def test_what_is_not_a_lock_is_named(tmp_path: Path, put: Callable[[Path], None]) -> None:
    lock = tmp_path / ".table.lock"
    put(lock)
    with pytest.raises(UnsafePath, match=rf"its lock {lock} cannot be used: "), locked(tmp_path / "table"):
        pass
    assert not (tmp_path / "precious").exists()


@contextmanager
def unprivileged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In this folder, with no more rights than any user has."""
    monkeypatch.chdir(folder)  # those above it may be root's alone
    if os.geteuid() != 0:
        yield
        return
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def test_a_lock_that_cannot_be_read_is_named_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o777)
    (tmp_path / ".table.lock").touch()
    (tmp_path / ".table.lock").chmod(0o000)
    with unprivileged(tmp_path, monkeypatch), pytest.raises(Locked, match=r"its lock .table.lock cannot be opened: "):
        locked(Path("table"), wait=0.1).__enter__()


def test_where_one_may_not_write_nobody_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o555)
    with unprivileged(tmp_path, monkeypatch), pytest.raises(PermissionError):
        locked(Path("table"), wait=60).__enter__()
