# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands that root runs on a state file of the workers' user leave nothing that he cannot write, and follow nothing
that he has put there."""

import asyncio
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gatekeeper import cli
from gatekeeper.stores.sqlite.store import SqliteStore
from gatekeeper.stores.state_owner import acting_as_owner, make_state_folder
from gatekeeper.stores.store import CounterHit, StoreError
from gatekeeper.stores.store_url import open_store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")

UID = GID = 65534
USER = "nobody"
HIT = [CounterHit("k", 60.0, 10)]


@pytest.fixture
def folder() -> Iterator[Path]:
    # not tmp_path, which is root's alone
    with TemporaryDirectory(prefix="gatekeeper-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "victim").write_bytes(b"root's own")
        (folder / "victim").chmod(0o600)
        (folder / "gatekeeper.toml").write_text(
            f'user = "{USER}"\nmynetworks = []\n[store]\nurl = "sqlite:{folder}/theirs/state.db"\n'
        )
        yield folder
        assert b"root's own" == (folder / "victim").read_bytes()
        assert (0, 0o100600) == ((folder / "victim").stat().st_uid, (folder / "victim").stat().st_mode)


@pytest.fixture
def theirs(folder: Path) -> Path:
    """A folder of the workers' user, with state in it."""
    (folder / "theirs").mkdir()
    os.chown(folder / "theirs", UID, GID)
    fill(folder / "theirs" / "state.db")
    return folder / "theirs"


def fill(path: Path) -> None:
    async def work() -> None:
        store = await open_store(f"sqlite:{path}", timeout=10.0)
        await store.set("greylist:x", b"1", 1000.0)
        await store.close()

    with acting_as_owner(f"sqlite:{path}", USER, create=True):
        asyncio.run(work())


def owners(folder: Path) -> set[int]:
    return {path.lstat().st_uid for path in folder.rglob("*")}


def copy(folder: Path, *arguments: str) -> int:
    return cli.main(["--config", str(folder / "gatekeeper.toml"), "greylist", "copy", *arguments])


def test_root_is_the_owner_meanwhile_and_root_afterwards(theirs: Path) -> None:
    before = os.getgroups()
    with acting_as_owner(f"sqlite:{theirs}/state.db", USER):
        assert (UID, GID) == (os.geteuid(), os.getegid())
        assert 0 not in os.getgroups()
    assert (0, 0, before) == (os.geteuid(), os.getegid(), os.getgroups())
    for url in ("memory:", "redis://127.0.0.1/0", f"sqlite:{theirs.parent}/state.db"):
        with acting_as_owner(url, USER):
            assert 0 == os.geteuid()


def test_what_is_copied_as_root_belongs_to_whom_the_store_belongs(folder: Path, theirs: Path) -> None:
    fill(folder / "mine.db")
    assert 0 == (folder / "mine.db").stat().st_uid
    (theirs / "state.db").unlink()
    assert 0 == copy(folder, f"sqlite:{theirs}/state.db", "--from", f"sqlite:{folder}/mine.db")
    assert {UID} == owners(theirs)
    assert 0 == copy(folder, f"sqlite:{folder}/backup.db")
    assert (0, {UID}) == ((folder / "backup.db").stat().st_uid, owners(theirs))
    with sqlite3.connect(folder / "backup.db") as db:
        assert [("greylist:x",)] == db.execute("SELECT key FROM kept WHERE key LIKE 'greylist:%'").fetchall()


def test_a_store_that_is_not_there_is_made_for_the_user_of_the_configuration(folder: Path) -> None:
    fill(folder / "mine.db")
    assert 0 == copy(folder, f"sqlite:{folder}/a/b/state.db", "--from", f"sqlite:{folder}/mine.db")
    assert (0, UID) == ((folder / "a").stat().st_uid, (folder / "a" / "b").stat().st_uid)
    assert {UID} == owners(folder / "a" / "b")


@pytest.mark.parametrize("name", ["state.db", "state.db-wal", "state.db-shm"])
@pytest.mark.parametrize("kind", ["link", "hard link"])
def test_a_link_beside_or_in_the_place_of_the_state_file_is_not_followed_as_root(
    folder: Path, theirs: Path, name: str, kind: str
) -> None:
    (theirs / name).unlink(missing_ok=True)
    if kind == "link":
        (theirs / name).symlink_to(folder / "victim")
    else:
        os.link(folder / "victim", theirs / name)
    fill(folder / "mine.db")
    copy(folder, f"sqlite:{theirs}/state.db", "--from", f"sqlite:{folder}/mine.db")
    copy(folder, "memory:")
    arguments = ["--client", "192.0.2.1,a.example", "--from", "a@example.com", "--dns", "/dev/null"]
    cli.main(["--config", str(folder / "gatekeeper.toml"), "explain", *arguments])
    (theirs / name).unlink()
    assert owners(theirs) <= {UID}


def test_explaining_as_root_leaves_nothing_of_root_s(folder: Path, theirs: Path) -> None:
    arguments = ["--client", "192.0.2.1,a.example", "--from", "a@example.com", "--dns", "/dev/null"]
    cli.main(["--config", str(folder / "gatekeeper.toml"), "explain", *arguments])
    assert {UID} == owners(theirs)


async def test_root_does_not_open_again_what_it_has_opened_as_its_owner(theirs: Path) -> None:
    store = SqliteStore(theirs / "state.db", timeout=1.0, read_only=True)
    with acting_as_owner(f"sqlite:{theirs}/state.db", USER):
        assert b"1" == await store.get("greylist:x")
    assert b"1" == await store.get("greylist:x")
    store._disconnect()
    with pytest.raises(StoreError, match="it was opened as another user"):
        await store.get("greylist:x")
    await store.close()


def test_a_folder_in_a_folder_of_somebody_else_is_left_to_him(theirs: Path) -> None:
    make_state_folder(f"sqlite:{theirs}/new/state.db", (UID, GID))
    assert not (theirs / "new").exists()
    fill(theirs / "new" / "state.db")
    assert {UID} == owners(theirs)


def test_a_folder_that_is_a_link_of_somebody_else_is_refused(folder: Path, theirs: Path) -> None:
    (theirs / "new").symlink_to(folder)
    with pytest.raises(StoreError, match="there is a symbolic link in"):
        acting_as_owner(f"sqlite:{theirs}/new/state.db", USER).__enter__()
