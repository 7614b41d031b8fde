# SPDX-License-Identifier: GPL-3.0-or-later
"""A folder whose owner does his worst while root works in it, at every moment in turn.

`attacked_at_every_step(work, attack)` lets root do `work` again and again, each time in a new folder of `nobody`, and
has nobody attack one system call later each time, until the work is over before the attack comes. Each time it makes
sure that what is root's is as it was. Hard links to root's files are made for nobody, as if fs.protected_hardlinks
were 0.
"""

import contextlib
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NOBODY = 65534
SECRET = "root's own\n"

_CALLS = (
    *("open", "stat", "lstat", "access", "readlink", "listdir", "scandir", "mkdir", "rmdir", "unlink", "remove"),
    *("link", "symlink", "rename", "replace", "chown", "lchown", "fchown", "chmod", "fchmod"),
)
_SOCKET_CALLS = ("bind", "connect", "listen")


class HostileFolder:
    """`folder` is nobody's, as is the one around it; `victims` is root's, with files of all names that are `names`."""

    def __init__(self, root: Path, names: tuple[str, ...]) -> None:
        self.root = root
        self.folder = root / "nobodys" / "folder"
        self.victims = root / "victims"
        for folder in (self.folder.parent, self.folder):
            folder.mkdir()
            os.chown(folder, NOBODY, NOBODY)
        self.victims.mkdir(mode=0o755)
        for name in {*names, "victim"}:
            (self.victims / name).write_text(SECRET)
            (self.victims / name).chmod(0o600)
        self.before = self.state()

    @property
    def victim(self) -> Path:
        return self.victims / "victim"

    def state(self) -> dict[str, tuple[object, ...]]:
        """All that is root's: names, inodes, modes, owners and content."""
        found: dict[str, tuple[object, ...]] = {}
        for path in [self.root, self.victims, *self.victims.rglob("*")]:
            status = path.lstat()
            content = path.read_text() if path.is_file() else ""
            found[str(path.relative_to(self.root))] = (
                status.st_ino,
                status.st_mode,
                status.st_uid,
                status.st_gid,
                content,
            )
        return found

    @contextlib.contextmanager
    def as_nobody(self) -> Iterator[None]:
        os.setegid(NOBODY)
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)


Attack = Callable[[HostileFolder], None]
Work = Callable[[HostileFolder], object]


def _in_place_of_all(hostile: HostileFolder, put: Callable[[Path], None]) -> None:
    """Move away every name in the folder, hidden ones too, and put something else there."""
    with contextlib.suppress(FileNotFoundError):
        for path in list(hostile.folder.iterdir()):
            with contextlib.suppress(OSError):
                path.rename(path.with_name(f"moved-{path.name}"))
                put(path)


def links(hostile: HostileFolder) -> None:
    """A symbolic link to the victim in the place of every name."""
    with hostile.as_nobody():
        _in_place_of_all(hostile, lambda path: path.symlink_to(hostile.victim))


def links_to_folder(hostile: HostileFolder) -> None:
    """A symbolic link to root's folder in the place of every name."""
    with hostile.as_nobody():
        _in_place_of_all(hostile, lambda path: path.symlink_to(hostile.victims))


def fifos(hostile: HostileFolder) -> None:
    """A FIFO that nobody writes to in the place of every name."""
    with hostile.as_nobody():
        _in_place_of_all(hostile, os.mkfifo)


def hard_links(hostile: HostileFolder) -> None:
    """A further name of the victim in the place of every name."""
    _in_place_of_all(hostile, lambda path: os.link(hostile.victim, path))


def folders(hostile: HostileFolder) -> None:
    """A folder in the place of every name."""
    with hostile.as_nobody():
        _in_place_of_all(hostile, Path.mkdir)


def swapped_folder(hostile: HostileFolder) -> None:
    """The folder itself becomes a link to root's, in which there are files of the same names."""
    with hostile.as_nobody(), contextlib.suppress(OSError):
        hostile.folder.rename(hostile.folder.with_name("moved"))
        hostile.folder.symlink_to(hostile.victims)


ATTACKS: tuple[Attack, ...] = (links, links_to_folder, fifos, hard_links, folders, swapped_folder)


def attacked_at_every_step(work: Work, attack: Attack, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> int:
    """Do as the module says, and return the number of steps."""
    step = 0
    while True:
        step += 1
        root = Path(tempfile.mkdtemp(prefix="gatekeeper-hostile-"))
        root.chmod(0o755)
        try:
            if not _attacked(work, attack, HostileFolder(root, names), step, monkeypatch):
                return step
        finally:
            shutil.rmtree(root)


def _attacked(work: Work, attack: Attack, hostile: HostileFolder, step: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Attack at this step; False if there were fewer."""
    left, inside = step, False

    def struck(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left, inside
            if not inside:
                left -= 1
                if left == 0:
                    inside = True
                    try:
                        attack(hostile)
                    finally:
                        inside = False
            return real(*arguments, **options)

        return call

    with monkeypatch.context() as patch, _at_most(10):
        for name in _CALLS:
            patch.setattr(os, name, struck(getattr(os, name)))
        for name in _SOCKET_CALLS:
            patch.setattr(socket.socket, name, struck(getattr(socket.socket, name)))
        with contextlib.suppress(OSError):  # refused: as good as done elsewhere
            work(hostile)
    assert (os.geteuid(), os.getegid()) == (0, 0)
    now = hostile.state()
    for name, was in hostile.before.items():
        assert was == now.get(name), f"{attack.__name__} at step {step}: {name} has changed"
    assert now.keys() == hostile.before.keys(), f"{attack.__name__} at step {step}: something new is in root's folder"
    return left <= 0


@contextlib.contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    """Raise an error if it takes longer: somebody reads a FIFO."""

    def late(*_: object) -> None:
        raise AssertionError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
