# SPDX-License-Identifier: GPL-3.0-or-later
"""What the parent learns of a configuration with keys in it, and what those get who sign; work in a child."""

import errno
import os
import pickle
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from gatekeeper.config import config_file
from gatekeeper.config.config_file import Config
from gatekeeper.core.message import Header
from gatekeeper.core.problem import ConfigError, Problem
from gatekeeper.core.request import Request, Stage
from gatekeeper.daemon import short_lived
from gatekeeper.daemon.loading import KeyMemory, load_plan
from gatekeeper.daemon.short_lived import run_in_child
from gatekeeper.signing.policy import DAEMON_NAME, SigningPolicy
from tests.support.postconf import no_postfix
from tests.support.signing_world import rsa_pem, write_key

TABLES = """\
[signing]
key_table = ["a example.com:a:./a.pem", "b example.org:b:%s"]
signing_table = ["example.com a", "example.org b"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_key(tmp_path / "a.pem")
    inline = "".join(rsa_pem(1024).decode().splitlines()[1:-1])
    (tmp_path / "gatekeeper.toml").write_text(TABLES % inline)
    return tmp_path


def loader(folder: Path) -> Callable[[], Config]:
    return lambda: config_file.load(folder / "gatekeeper.toml", no_postfix)


def reasons(signing: SigningPolicy) -> list[str]:
    request = Request(stage=Stage.END_OF_MESSAGE)
    origin = signing.origin(request, {DAEMON_NAME: "ORIGINATING"})
    senders = ("a@example.com", "a@example.org")
    return [signing.choose(request, [Header(b"From", sender.encode())], origin).reason for sender in senders]


def test_the_plan_has_no_key_and_who_signs_gets_them_though_a_file_has_vanished(folder: Path) -> None:
    states: dict[str, tuple[int, ...]] = {}
    plan, keys = load_plan(loader(folder), lambda: None, states)
    assert str(folder / "a.pem") in states
    assert (2, ["sign.bad_key"] * 2, ()) == (len(plan.signing.key_table), reasons(plan.signing), plan.warnings)
    assert b"MII" not in pickle.dumps(plan.config)
    (folder / "a.pem").unlink()
    assert ["sign.ok"] * 2 == reasons(keys.plan_with_keys(plan).signing)


def test_at_a_start_a_key_that_cannot_sign_is_a_warning(folder: Path) -> None:
    write_key(folder / "a.pem", b"garbage")
    plan, keys = load_plan(loader(folder), lambda: None, {})
    (warning,) = plan.warnings
    assert (True, f"{folder}/a.pem") == (warning.warning, warning.file)
    assert "mail that it should sign waits" in warning.what
    assert "from before" not in warning.what
    assert ["sign.bad_key", "sign.ok"] == reasons(keys.plan_with_keys(plan).signing)


def test_at_a_reload_the_old_key_comes_from_the_memory_of_the_plan_before(folder: Path) -> None:
    _, keys = load_plan(loader(folder), lambda: None, {})
    for again in (False, True):
        write_key(folder / "a.pem", b"garbage")
        new_plan, new_keys = load_plan(loader(folder), lambda: None, {}, keys, again=again)
        assert "the key from before signs on" in new_plan.warnings[0].what
        keys.close()
        keys = new_keys
    assert ["sign.previous_key", "sign.ok"] == reasons(keys.plan_with_keys(new_plan).signing)


def test_when_tables_have_changed_the_configuration_is_not_read_again(folder: Path) -> None:
    plan, keys = load_plan(loader(folder), lambda: None, {})
    (folder / "gatekeeper.toml").write_text("half an edit")
    plan, more = load_plan(loader(folder), lambda: None, {}, keys, again=True)
    assert ["sign.ok"] * 2 == reasons(more.plan_with_keys(plan).signing)
    keys.close()


def test_every_mistake_is_told_with_the_files_that_were_read(folder: Path) -> None:
    (folder / "gatekeeper.toml").write_text("[signing]\nkey_table = 'none'\nsigning_table = 'nothing'\n")
    before = os.listdir("/proc/self/fd")
    states: dict[str, tuple[int, ...]] = {}
    with pytest.raises(ConfigError) as wrong:
        load_plan(loader(folder), lambda: None, states)
    assert 2 == len(wrong.value.problems)
    assert {str(folder / "none"), str(folder / "nothing")} <= states.keys()
    (folder / "gatekeeper.toml").write_text("polcy = 1\n")
    with pytest.raises(ConfigError, match="polcy"):
        load_plan(loader(folder), lambda: None, states)
    assert before == os.listdir("/proc/self/fd")


def test_nobody_can_change_the_keys_that_were_written(folder: Path) -> None:
    memory = KeyMemory()
    config = loader(folder)()
    from gatekeeper.app.signing_plan import read_keys

    memory.write(config, read_keys(config).table)
    for change in (lambda fd: os.write(fd, b"x"), lambda fd: os.ftruncate(fd, 1), lambda fd: os.pwrite(fd, b"x", 0)):
        with pytest.raises(PermissionError):
            change(memory._descriptor)
    memory.close()


@pytest.mark.parametrize(
    ("text", "path", "below"),
    [
        (
            'hostname = "a.example"\n\n[policy]\nrestrictions = """\nreject_x,\nreject_y"""\n',
            ("policy", "restrictions"),
            1,
        ),
        ("[signing]\nkey_table = [\n  'a b:c:d',\n  'e f:g:h',\n]\n", ("signing", "key_table", 1), None),
    ],
)
def test_without_its_keys_a_configuration_still_knows_its_lines(
    tmp_path: Path, text: str, path: tuple[str | int, ...], below: int | None
) -> None:
    (tmp_path / "gatekeeper.toml").write_text(text)
    config, _ = config_file.examine(tmp_path / "gatekeeper.toml", no_postfix)
    bare = pickle.loads(pickle.dumps(config.without_keys()))
    assert config.problem(path, "x", below=below) == bare.problem(path, "x", below=below)
    assert config.problem(path, "x", below=below).line > 2


# -- work in a child -----------------------------------------------------------------------------------------------


def _raise(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def test_what_a_child_finds_comes_back_however_long_it_is() -> None:
    mine = os.getpid()
    value, pid = run_in_child(lambda: (b"x" * 10_000_000, os.getpid()))
    assert (10_000_000, True) == (len(value), pid != mine)


def test_what_goes_wrong_in_a_child_is_raised_here() -> None:
    problems = [Problem("a", 1, "b"), Problem("c", 2, "d", warning=True)]
    with pytest.raises(ConfigError) as wrong:
        run_in_child(_raise(ConfigError(problems)))
    assert tuple(problems) == wrong.value.problems
    with pytest.raises(OSError, match="there: ") as denied:
        run_in_child(_raise(OSError(errno.EACCES, "there: denied", "file")))
    assert (errno.EACCES, "file") == (denied.value.errno, denied.value.filename)


@pytest.mark.parametrize(
    "work",
    [
        _raise(ValueError()),
        _raise(SystemExit(0)),
        _raise(KeyboardInterrupt()),
        lambda: lambda: None,  # not to be pickled
        lambda: os.kill(os.getpid(), signal.SIGKILL),
    ],
)
def test_a_child_ends_whatever_happens_to_it_and_leaves_nothing_open(work: Callable[[], object]) -> None:
    mine, before = os.getpid(), os.listdir("/proc/self/fd")
    try:
        with pytest.raises(OSError, match=r"ended with status (70|-9)"):
            run_in_child(work)
    finally:
        if mine != os.getpid():
            os._exit(99)
    assert before == os.listdir("/proc/self/fd")


def test_a_child_that_does_not_come_to_an_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short_lived, "PATIENCE", 0.2)
    with pytest.raises(OSError, match=r"more than 0\.2 seconds"):
        run_in_child(signal.pause)


def test_a_child_closes_what_it_must_not_hold_before_it_begins() -> None:
    read, write = os.pipe()
    try:
        with pytest.raises(OSError, match="Bad file descriptor"):
            run_in_child(lambda: os.write(write, b"x"), lambda: os.close(write))
    finally:
        os.close(read)
        os.close(write)
