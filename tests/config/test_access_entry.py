# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatekeeper allow` and `deny`: what is written where, what is refused, and that the service then does it."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.checks.tables.reader import READERS
from gatekeeper.checks.tables.table import Actions
from gatekeeper.config import config_file
from gatekeeper.config.access_entry import ENTRY_KINDS, EntryKind, EntryRefused, add, allow, deny
from gatekeeper.core import file_lock
from gatekeeper.pipeline.check import Check
from tests.support.needs import ROOT
from tests.support.postconf import no_postfix

pytestmark = pytest.mark.integration("gatekeeper")

CONFIG = """\
hostname = "mx.example"
mynetworks = ["127.0.0.0/8"]
[store]
url = "memory:"
[checks.access]
client = ["cidr:clients"]
sender = ["pcre:patterns", "hash:senders"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "gatekeeper.toml").write_text(CONFIG)
    (tmp_path / "clients").write_text("192.0.2.0/24 REJECT no\n")
    (tmp_path / "patterns").write_text("")
    (tmp_path / "senders").write_text("# ours\nfoo.example REJECT")
    return tmp_path


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    """Exit status, and what was said."""
    command = [sys.executable, "-m", "gatekeeper", "--config", str(folder / "gatekeeper.toml"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_an_entry_is_written_and_said_with_its_line_and_what_it_does(folder: Path) -> None:
    status, said = run(folder, "allow", "Example.com", "our supplier", "--if", "dmarc")
    assert (0, f"{folder}/senders:4: example.com\tOK if=dmarc") == (status, said.splitlines()[0])
    assert "skips what comes after access in the recipient list: reject_unknown_sender_domain, " in said
    assert "It does not skip what comes earlier: ratelimit, " in said
    expected = "# ours\nfoo.example REJECT\n# our supplier\nexample.com\tOK if=dmarc\n"
    assert expected == (folder / "senders").read_text()
    asked = run(folder, "explain", "--client", "192.0.3.1,a.example", "--helo", "a.example", "--from", "a@example.com")
    assert "if=dmarc" in asked[1]


def test_what_is_there_already_is_left_alone(folder: Path) -> None:
    assert 0 == run(folder, "deny", "bad.example", "go away")[0]
    before = (folder / "senders").read_bytes()
    status, said = run(folder, "deny", "bad.example", "go away")
    assert (0, True, before) == (status, "already has it" in said, (folder / "senders").read_bytes())


@pytest.mark.parametrize(("key", "place"), [("foo.example", "senders:2"), ("192.0.2.7", "clients:1")])
def test_an_entry_that_would_never_count_is_not_written(folder: Path, key: str, place: str) -> None:
    if key[0].isdigit():
        (folder / "gatekeeper.toml").write_text(CONFIG)
    before = [(folder / name).read_bytes() for name in ("senders", "clients")]
    status, said = run(folder, "allow", key)
    assert (1, True) == (status, f"{folder}/{place} comes first" in said)
    assert before == [(folder / name).read_bytes() for name in ("senders", "clients")]


def test_an_unproven_sender_is_warned_of(folder: Path) -> None:
    assert "can forge this sender" in run(folder, "allow", "user@example.com")[1]


def test_without_a_table_one_is_made_and_the_line_to_add_is_said(folder: Path) -> None:
    status, said = run(folder, "deny", "list@ours.example", "--as", "recipient")
    assert (1, "list@ours.example\tREJECT\n") == (status, (folder / "access_recipient").read_text())
    assert f'Add: recipient = ["hash:{folder}/access_recipient"]' in said


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("hostname", 'mode = "observe"\nhostname', 'mode is "observe"'),
        ("[checks.access]", '[checks.access]\nmode = "observe"', 'checks.access.mode is "observe"'),
        ("[checks.access]", '[checks.access]\nmode = "off"', 'checks.access.mode is "off"'),
        ("[store]", '[policy]\nrestrictions = ["spf"]\n[store]', "no list of [policy] contains access"),
    ],
)
def test_what_keeps_an_entry_from_having_an_effect_is_said_by_its_own_name(
    folder: Path, old: str, new: str, why: str
) -> None:
    (folder / "gatekeeper.toml").write_text(CONFIG.replace(old, new, 1))
    config = config_file.load(folder / "gatekeeper.toml", no_postfix)
    added = add(config, deny("bad.example"), folder)
    assert (f"It has no effect now: {why}.", False) == (added.lines[1], added.in_effect)


def test_owner_and_mode_stay(folder: Path) -> None:
    (folder / "senders").chmod(0o640)
    if os.geteuid() == 0:
        os.chown(folder / "senders", 12, 34)
    before = (folder / "senders").stat()
    run(folder, "deny", "bad.example")
    after = (folder / "senders").stat()
    assert (before.st_mode, before.st_uid, before.st_gid) == (after.st_mode, after.st_uid, after.st_gid)
    assert before.st_ino != after.st_ino
    assert sorted(["gatekeeper.toml", "clients", "patterns", "senders"]) == sorted(p.name for p in folder.iterdir())


def test_of_twelve_that_are_added_at_once_twelve_are_kept(folder: Path) -> None:
    names = [f"d{number}.example" for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        done = list(pool.map(lambda name: run(folder, "deny", name), names))
        assert [0] * 12 == [status for status, _ in done]
        # each knows the line that it became
        lines = (folder / "senders").read_text().splitlines()
        for name, (_, said) in zip(names, done, strict=True):
            number = int(said.split(":")[1])
            assert f"{name}\tREJECT" == lines[number - 1]
        # and where there is no table yet
        assert [1] * 12 == [status for status, _ in pool.map(lambda n: run(folder, "deny", n, "--as", "helo"), names)]
    assert sorted(f"{name}\tREJECT" for name in names) == sorted((folder / "access_helo").read_text().splitlines())
    assert [] == [path for path in folder.iterdir() if path.name.startswith(".")]


def test_who_has_to_wait_too_long_is_told_for_whom(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, config = deny("bad.example"), config_file.load(folder / "gatekeeper.toml")
    monkeypatch.setattr(file_lock, "WAIT", 0.1)
    with file_lock.locked(folder / "senders"), pytest.raises(file_lock.Locked, match="is changing it and holds"):
        add(config, entry, folder)
    assert "bad.example" not in (folder / "senders").read_text()
    add(config, entry, folder)
    assert "bad.example" in (folder / "senders").read_text()


@pytest.mark.parametrize("key", ["", "a b", "a@b@c", "10.0.0.1/8", "1.2.3.4.5", "a@", "..", "a@b/c", "x\nb OK", "@"])
def test_nonsense_is_refused(key: str) -> None:
    if key == "a@":
        assert "a@" == allow(key).key
        return
    with pytest.raises(EntryRefused):
        allow(key)


def no_restrictions(text: str) -> tuple[Check, ...]:
    raise ValueError(text)


@given(
    st.text(max_size=30) | st.from_regex(r"[a-z0-9.@/:<>\\[\\]-]{1,30}", fullmatch=True),
    st.text(max_size=60),
    st.sampled_from([None, *ENTRY_KINDS]),
)
def test_whatever_is_accepted_is_one_line_that_reads_back(key: str, text: str, kind: EntryKind | None) -> None:
    for make in (allow, deny):
        try:
            entry = make(key, text, kind=kind)
        except EntryRefused:
            continue
        line = f"{entry.key}\t{entry.action}"
        assert re.fullmatch(r"[ -~\t]+", line)
        assert "\n" not in entry.remark
        actions = Actions("t", no_restrictions)
        type = "cidr" if entry.network else "hash"
        assert READERS[type](f"{line}\n".encode(), actions) is not None
        assert [] == [problem for problem in actions.finish() if not problem.warning]
