# SPDX-License-Identifier: GPL-3.0-or-later
"""Root reads tables and keys for the workers: their user cannot have it read what he could not read himself."""

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gatekeeper.core import watched_files
from gatekeeper.core.safe_path import UnsafePath
from gatekeeper.signing.keys import read_key
from tests.support.signing_world import rsa_pem

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root reads what others may not")

UID = 65534


@pytest.fixture
def folder() -> Iterator[Path]:
    # not tmp_path, which is root's alone
    with TemporaryDirectory(prefix="gatekeeper-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "root").mkdir(mode=0o700)
        (folder / "secret").write_bytes(rsa_pem())
        (folder / "secret").chmod(0o600)
        (folder / "public").write_text("for all")
        (folder / "root" / "public").write_text("for those who may enter")
        (folder / "theirs").mkdir()
        (folder / "theirs" / "own").write_text("their own")
        for path in (folder / "theirs", folder / "theirs" / "own"):
            os.chown(path, UID, UID)
        (folder / "theirs" / "own").chmod(0o600)
        yield folder


def linked(folder: Path, to: str, *, by: int = UID) -> Path:
    path = folder / "theirs" / "table"
    path.symlink_to(to)
    os.chown(path, by, by, follow_symlinks=False)
    return path


@pytest.mark.parametrize("to", ["../secret", "{}/secret", "../root/public", "../root/../secret", "/proc/1/environ"])
def test_a_link_to_what_its_maker_may_not_read_is_refused(folder: Path, to: str) -> None:
    path = linked(folder, to.format(folder))
    with pytest.raises(UnsafePath, match="there is a symbolic link of nobody on the way, who may not read"):
        watched_files.read(path)
    key, problems = read_key(path, owners={0, UID})
    assert (None, True) == (key, "who may not read what it leads to" in str(problems[0]))
    assert (0, 0) == (os.geteuid(), os.getegid())


@pytest.mark.parametrize(("to", "content"), [("own", b"their own"), ("../public", b"for all")])
def test_a_link_to_what_its_maker_may_read_is_followed(folder: Path, to: str, content: bytes) -> None:
    assert content == watched_files.read(linked(folder, to))


def test_a_link_of_root_s_is_followed_wherever_it_is(folder: Path) -> None:
    key, problems = read_key(linked(folder, "../secret", by=0), owners={0, UID})
    assert key is not None
    assert [] == [problem for problem in problems if not problem.warning]


def test_a_folder_that_is_a_link_is_followed_as_its_maker(folder: Path) -> None:
    linked(folder, "../root")
    with pytest.raises(UnsafePath):
        watched_files.read(folder / "theirs" / "table" / "public")


def test_a_further_name_of_root_s_file_is_refused(folder: Path) -> None:
    os.link(folder / "secret", folder / "theirs" / "table")
    with pytest.raises(UnsafePath, match="hard link"):
        watched_files.read(folder / "theirs" / "table")
    os.link(folder / "theirs" / "own", folder / "theirs" / "also")
    assert b"their own" == watched_files.read(folder / "theirs" / "also")


def test_what_is_not_a_file_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "theirs" / "fifo")
    for name in ("fifo", ""):
        with pytest.raises(OSError, match=r"not a regular file|Is a directory"):
            watched_files.read(folder / "theirs" / name)
