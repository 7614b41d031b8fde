# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are written, replaced and removed: what is kept, which links are followed, what is refused and how.

What the owner of a folder can do meanwhile: test_hostile_folder.py.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from gatekeeper.core import safe_files
from gatekeeper.core.file_lock import changing
from gatekeeper.core.safe_path import UnsafePath, real_path

OTHER = 65534


def given_away(path: Path) -> Path:
    """`path`, now a thing of somebody else."""
    if os.geteuid() != 0:
        pytest.skip("only root can give something away")
    os.chown(path, OTHER, OTHER, follow_symlinks=False)
    return path


def replaced(path: Path) -> None:
    with changing(path) as file:
        file.replace(b"new")


def test_a_file_is_replaced_as_a_whole_with_its_mode_and_owner(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 12, 34)
    before = path.stat()
    with path.open() as reader:
        replaced(path)
        assert "old" == reader.read()
    after = path.stat()
    assert (b"new", before.st_mode) == (path.read_bytes(), after.st_mode)
    assert (before.st_uid, before.st_gid) == (after.st_uid, after.st_gid)
    assert [path] == list(tmp_path.iterdir())


def test_a_set_uid_bit_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o6755)
    replaced(path)
    assert 0o755 == stat.S_IMODE(path.stat().st_mode)


def test_a_file_that_must_not_exist_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    safe_files.create(path, b"one", mode=0o600)
    with pytest.raises(FileExistsError) as refused:
        safe_files.create(path, b"two")
    assert (b"one", str(path)) == (path.read_bytes(), refused.value.filename)
    assert [path] == list(tmp_path.iterdir())


@pytest.mark.parametrize("absolute", [True, False])
def test_an_administrator_s_link_is_followed(tmp_path: Path, absolute: bool) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "srv").mkdir()
    target = tmp_path / "srv" / "senders"
    target.write_text("old")
    link = tmp_path / "etc" / "senders"
    link.symlink_to(target if absolute else "../srv/senders")
    replaced(link)
    assert (True, b"new") == (link.is_symlink(), target.read_bytes())
    assert target == real_path(link)
    (tmp_path / "folder").symlink_to("etc")
    replaced(tmp_path / "folder" / "senders")
    assert target == real_path(tmp_path / "folder" / "senders")


@pytest.mark.parametrize("use", [safe_files.read, replaced, real_path])
def test_a_link_in_a_folder_of_somebody_else_is_refused_with_a_sentence(
    tmp_path: Path, use: Callable[[Path], object]
) -> None:
    (tmp_path / "precious").write_text("precious")
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "file").symlink_to(tmp_path / "precious")
    given_away(folder)
    with pytest.raises(UnsafePath, match=f"there is a symbolic link in {folder}, a folder that is not only root's"):
        use(folder / "file")
    assert "precious" == (tmp_path / "precious").read_text()


def test_a_link_in_a_folder_of_somebody_else_can_be_replaced_and_removed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    folder = tmp_path / "theirs"
    folder.mkdir()
    given_away(folder)
    for use in (lambda path: safe_files.write(path, b"new"), safe_files.remove):
        (folder / "file").symlink_to(tmp_path / "precious")
        use(folder / "file")
        assert not (folder / "file").is_symlink()
        (folder / "file").unlink(missing_ok=True)
        (folder / "folder").symlink_to(tmp_path)
        with pytest.raises(UnsafePath):
            use(folder / "folder" / "precious")
        (folder / "folder").unlink()
    assert "precious" == (tmp_path / "precious").read_text()


def test_a_link_where_a_group_may_write_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("a user trusts his own group")
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o770)
    (folder / "file").symlink_to(tmp_path / "precious")
    with pytest.raises(UnsafePath):
        replaced(folder / "file")


def test_in_a_folder_for_all_one_s_own_link_is_followed_and_no_other(tmp_path: Path) -> None:
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    (folder / "link").symlink_to(tmp_path / "target")
    replaced(folder / "link")
    assert b"new" == (tmp_path / "target").read_bytes()
    given_away(folder / "link")
    with pytest.raises(UnsafePath):
        replaced(folder / "link")


def test_links_in_a_circle_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        safe_files.read(tmp_path / "a")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_not_a_file_is_neither_read_nor_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "odd")
    before = (tmp_path / "odd").lstat().st_ino
    for use in (safe_files.read, replaced, lambda path: safe_files.write(path, b"new")):
        with pytest.raises(OSError, match=r"not a file|Is a directory"):
            use(tmp_path / "odd")
    assert before == (tmp_path / "odd").lstat().st_ino


def test_dev_null_stays(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/null")
    with pytest.raises(OSError, match=r"it is a device, not a file|Permission denied"):
        safe_files.write(tmp_path / "link", b"x")
    assert stat.S_ISCHR(os.lstat("/dev/null").st_mode)


def test_only_the_file_that_is_meant_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    written = safe_files.write(path, b"1")
    safe_files.write(path, b"2")
    safe_files.remove(path, only=written)
    assert b"2" == path.read_bytes()
    safe_files.remove(path)
    safe_files.remove(path)
    assert not path.exists()


def test_folders_are_made_with_owner_and_mode_or_not_at_all(tmp_path: Path) -> None:
    mine = (os.geteuid(), os.getegid())
    assert safe_files.make_folders(tmp_path / "a" / "b" / "c", 0o750, mine)
    assert 0o750 == stat.S_IMODE((tmp_path / "a" / "b" / "c").stat().st_mode)
    assert not safe_files.make_folders(tmp_path / "a" / "b" / "c", 0o750, mine)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        safe_files.make_folders(tmp_path / "file" / "x", 0o750, mine)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    given_away(theirs)
    with pytest.raises(UnsafePath):
        safe_files.make_folders(theirs / "x" / "y", 0o750, mine)
    assert [] == list(theirs.iterdir())
