# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that were read are watched: every kind of change is seen, and only once it has come to rest."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gatekeeper.core import watched_files
from gatekeeper.core.watched_files import FileWatch


class World:
    """A watch on files below a folder, and a clock that is set by hand."""

    def __init__(self, *paths: Path) -> None:
        self.now = 100.0
        with watched_files.recording() as noted:
            for path in paths:
                watched_files.record(path)
        self.watch = FileWatch(noted, lambda: self.now)

    def look(self) -> list[str]:
        """What the next look tells."""
        self.now = self.watch.due
        return self.watch.changed()


def _write(path: Path) -> None:
    path.write_text("longer than before")


def _replace(path: Path) -> None:
    new = path.with_suffix(".new")
    new.write_text("same")
    new.replace(path)


CHANGES: list[Callable[[Path], object]] = [_write, _replace, Path.unlink, lambda path: path.chmod(0o600)]


@pytest.mark.parametrize("change", CHANGES, ids=["written", "replaced", "removed", "chmod"])
def test_a_change_is_told_once_and_after_it_has_settled(tmp_path: Path, change: Callable[[Path], object]) -> None:
    path = tmp_path / "table"
    path.write_text("same")
    world = World(path)
    assert [] == world.look()
    change(path)
    assert [[], [str(path)], []] == [world.look(), world.look(), world.look()]


def test_a_file_that_is_still_being_written_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_text("")
    world = World(path)
    for size in range(1, 5):
        path.write_text("x" * size)
        assert [] == world.look()
    assert [str(path)] == world.look()


def test_a_file_that_comes_is_a_change(tmp_path: Path) -> None:
    world = World(tmp_path / "table")
    assert [] == world.look()
    (tmp_path / "table").write_text("")
    assert [[], [str(tmp_path / "table")]] == [world.look(), world.look()]


def test_nothing_is_looked_at_before_it_is_time(tmp_path: Path) -> None:
    path = tmp_path / "table"
    world = World(path)
    path.write_text("")
    world.now = world.watch.due - 0.1
    assert [[], []] == [world.watch.changed(), world.watch.changed()]


def test_a_change_while_it_is_read_is_not_missed(tmp_path: Path) -> None:
    path = tmp_path / "table"
    path.write_text("old")
    with watched_files.recording() as noted:
        watched_files.record(path)
        path.write_text("newer")
        watched_files.record(path)
    assert noted[str(path)] != watched_files.file_state(str(path))


def test_outside_of_a_reading_nothing_is_noted() -> None:
    watched_files.record("/etc/passwd")
    assert () == watched_files.file_state("/no\0path")
    assert len(watched_files.file_state(os.devnull)) == 5
