# SPDX-License-Identifier: GPL-3.0-or-later
"""postgrey's place is taken: a real postgrey is fed, read while it runs, and what it knew holds here."""

import grp
import json
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from gatekeeper import cli
from gatekeeper.checks.greylisting.greylist import Greylist
from gatekeeper.core.request import parse_address
from gatekeeper.postgrey import database, lists
from gatekeeper.postgrey.database import DatabaseError, parse_dump
from gatekeeper.postgrey.options import Options, parse_options, read_options
from gatekeeper.postgrey.state import Triplet, UnusableEntry, parse_client, parse_triplet
from gatekeeper.postgrey.state_import import ImportedState, Target, import_lists, read_entries
from gatekeeper.stores.sqlite.store import SqliteStore
from gatekeeper.stores.store import Keys
from tests.lab.ports import free_port
from tests.support.checking import World, rcpt
from tests.support.needs import missing, needs, require_program
from tests.support.service import until

NOW = 1_800_000_000
DAY = 86400


@dataclass
class Postgrey:
    """A running postgrey, asked with times of our own (its test attribute `policy_test_time`)."""

    port: int
    folder: Path

    def ask(self, at: int, address: str, sender: str, recipient: str = "user@example.com") -> str:
        """`DUNNO`, `DEFER_IF_PERMIT` or `PREPEND`."""
        attributes = {
            "request": "smtpd_access_policy",
            "client_address": address,
            "client_name": "unknown",
            "sender": sender,
            "recipient": recipient,
            "instance": f"{at}.{sender}",
            "policy_test_time": str(at),
        }
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            frame = "".join(f"{name}={value}\n" for name, value in attributes.items()) + "\n"
            connection.sendall(frame.encode())
            return connection.makefile().readline().partition("=")[2].split()[0]


@contextmanager
def running(folder: Path, *options: str) -> Iterator[Postgrey]:
    program = require_program("postgrey", "postgrey")
    port, user, group = free_port(), pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
    where = (f"--inet=127.0.0.1:{port}", f"--dbdir={folder}", f"--user={user}", f"--group={group}")
    process = subprocess.Popen([program, *where, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        postgrey = Postgrey(port, folder)
        until(lambda: process.poll() is not None or _answers(port), "postgrey answers")
        assert process.poll() is None, "postgrey has ended"
        yield postgrey
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def fed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """postgrey's folder while postgrey runs: it knows some triplets, waits for others, and lets a client pass."""
    folder = tmp_path_factory.mktemp("postgrey")
    with running(folder) as postgrey:
        for sender in ("known@example.net", "bounce-1-user=example.com@lists.example.net", "ann.1985@example.net"):
            assert "DEFER_IF_PERMIT" == postgrey.ask(NOW - 5000, "192.0.2.1", sender)
            assert "PREPEND" == postgrey.ask(NOW - 4000, "192.0.2.9", sender)
        postgrey.ask(NOW - 5000, "2001:db8:1:2::1", "six@example.net")
        assert "PREPEND" == postgrey.ask(NOW - 4000, "2001:db8:1:2::2", "six@example.net")
        assert "DEFER_IF_PERMIT" == postgrey.ask(NOW - 100, "192.0.2.1", "waits@example.net")
        assert "DEFER_IF_PERMIT" == postgrey.ask(NOW - 100, "192.0.2.1", "", "bounced@example.com")
        postgrey.ask(NOW - 5 * DAY, "192.0.2.1", "gave-up@example.net")
        postgrey.ask(NOW - 40 * DAY, "192.0.2.1", "old@example.net")
        postgrey.ask(NOW - 40 * DAY + 600, "192.0.2.1", "old@example.net")
        for number in range(6):
            postgrey.ask(NOW - 2 * DAY + 7200 * number, "203.0.113.7", f"{'abcdef'[number]}@busy.example")
            postgrey.ask(NOW - 2 * DAY + 7200 * number + 400, "203.0.113.7", f"{'abcdef'[number]}@busy.example")
        assert "DUNNO" == postgrey.ask(NOW - DAY, "203.0.113.7", "new@busy.example")
        yield folder


@pytest.mark.parametrize("ahead", [0, 366 * DAY])
async def test_what_postgrey_saw_in_the_future_counts_from_now(ahead: int, tmp_path: Path) -> None:
    world = World("greylist", "", {"greylist": greylist()}, now=NOW)
    world.store = SqliteStore(tmp_path / "state.db", lambda: world.now)
    target = Target(store=world.store, keys=Keys(b"secret"), greylist=greylist(), options=Options(), now=world.now)
    address = parse_address("192.0.2.0")
    assert address is not None
    for sender, first in (("waits@example.net", NOW + ahead), ("known@example.net", NOW + ahead - 4000)):
        entry = Triplet(address, sender, "user@example.com", first, NOW + ahead)
        await target._triplet(target._in_the_past(entry))
    assert "greylist.early in 5 minutes" == await reasons(world, "192.0.2.1", "waits@example.net")
    assert "greylist.known" == await reasons(world, "192.0.2.1", "known@example.net")
    world.now += 301
    assert "greylist.passed" == await reasons(world, "192.0.2.1", "waits@example.net")
    world.now += 40 * DAY
    assert "greylist.early in 5 minutes" == await reasons(world, "192.0.2.1", "known@example.net")
    await world.store.close()


@pytest.fixture(
    params=[
        pytest.param("db_dump", marks=pytest.mark.integration("db-util")),
        pytest.param("perl", marks=pytest.mark.integration("libberkeleydb-perl")),
    ]
)
def means(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both programs that can read Berkeley DB, one at a time."""
    means: str = request.param
    if means == "db_dump":
        require_program("db_dump", "db-util")
        require_program("db_recover", "db-util")
    else:
        needs("libberkeleydb-perl")
        if subprocess.run(["perl", "-MBerkeleyDB", "-e", "1"], capture_output=True, check=False).returncode:
            missing("Perl's BerkeleyDB is not installed: apt-get install libberkeleydb-perl")
    which = shutil.which
    hidden = "perl" if means == "db_dump" else "db_dump"
    monkeypatch.setattr(shutil, "which", lambda name: None if name == hidden else which(name))
    return means


def greylist(**options: object) -> Greylist:
    return Greylist.model_validate({"clients": "all", "learning": 0} | options)


async def imported(folder: Path, path: Path, times: int = 1, **options: object) -> tuple[World, ImportedState]:
    """A world that goes by what was imported, and what the last import said."""
    world = World("greylist", "", {"greylist": greylist(**options)}, now=NOW)
    world.store = SqliteStore(path / "state.db", lambda: world.now)
    brought = ImportedState()
    for _ in range(times):
        brought = ImportedState()
        target = Target(
            store=world.store, keys=Keys(b"secret"), greylist=greylist(**options), options=Options(), now=world.now
        )
        await target.import_state(read_entries(folder), brought)
    return world, brought


async def reasons(world: World, address: str, sender: str, recipient: str = "user@example.com") -> str:
    decision = await world.decide(rcpt(address=address, sender=sender, recipient=recipient))
    return f"{', '.join(decision.reasons)} {decision.verdict.text.partition('again ')[2]}".strip()


@pytest.mark.integration("postgrey")
async def test_what_postgrey_knew_is_known_here(fed: Path, means: str, tmp_path: Path) -> None:
    world, brought = await imported(fed, tmp_path, auto_allow=20)
    known = [
        await reasons(world, "192.0.2.200", "known@example.net"),
        await reasons(world, "192.0.2.200", "bounce-77-user=example.com@lists.example.net"),
        await reasons(world, "192.0.2.200", "ann.1985@example.net"),
        await reasons(world, "2001:db8:1:2::77", "six@example.net"),
    ]
    assert ["greylist.known"] * 4 == known
    assert "greylist.early in 5 minutes" == await reasons(world, "192.0.2.200", "other@example.net")
    expected = {"triplets that have passed": 9, "triplets that wait": 2, "clients that are known": 1}
    assert expected == brought.imported
    assert 2 == brought.skipped["older than what is still worth anything"]
    await world.store.close()


@pytest.mark.integration("postgrey")
async def test_who_waited_waits_only_the_rest(fed: Path, tmp_path: Path) -> None:
    world, _ = await imported(fed, tmp_path)
    waiting = [("192.0.2.77", "waits@example.net"), ("192.0.2.77", "", "bounced@example.com")]
    assert ["greylist.early in 4 minutes"] * 2 == [await reasons(world, *one) for one in waiting]
    world.now += 200
    assert ["greylist.passed"] * 2 == [await reasons(world, *one) for one in waiting]
    await world.store.close()


@pytest.mark.integration("postgrey")
async def test_whom_postgrey_let_pass_by_itself_passes(fed: Path, tmp_path: Path) -> None:
    world, _ = await imported(fed, tmp_path, auto_allow=20)
    assert "greylist.known_network" == await reasons(world, "203.0.113.7", "never-seen@busy.example")
    await world.store.close()


@pytest.mark.integration("postgrey")
async def test_a_second_import_changes_nothing_and_loses_nothing(fed: Path, tmp_path: Path) -> None:
    world, brought = await imported(fed, tmp_path, times=2)
    assert (Counter(), 12) == (brought.imported, brought.skipped["already there"])
    world.now += 100
    assert "greylist.early" in await reasons(world, "192.0.2.1", "waits@example.net")
    await world.store.close()


@pytest.mark.integration("postgrey")
async def test_what_was_hashed_for_privacy_is_counted_and_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "postgrey"
    folder.mkdir()
    with running(folder, "--privacy") as postgrey:
        postgrey.ask(NOW - 100, "192.0.2.1", "a@example.net")
        world, brought = await imported(folder, tmp_path)
    assert ({}, 1) == (brought.imported, sum(brought.skipped.values()))
    assert "--privacy" in next(iter(brought.skipped))
    await world.store.close()


@pytest.mark.integration("postgrey")
def test_without_a_program_that_reads_it_the_error_says_what_to_install(
    fed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DatabaseError, match=r"apt-get install libberkeleydb-perl.*db-util"):
        database.read(fed, database.TRIPLETS)


def test_a_folder_without_databases_is_empty(tmp_path: Path) -> None:
    assert [] == database.read(tmp_path, database.TRIPLETS)


def test_a_file_that_is_no_database_is_named(means: str, tmp_path: Path) -> None:
    (tmp_path / "postgrey.db").write_bytes(b"nothing" * 1000)
    with pytest.raises(DatabaseError):
        database.read(tmp_path, database.TRIPLETS)


@pytest.mark.integration("postgrey")
def test_the_command_writes_tables_and_tells_what_to_configure(
    fed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clients").write_text("# a reason\nexample.net\n/^mx\\d+\\.pool\\.example$/\n192.0.2\nno good\n")
    (tmp_path / "recipients").write_text("postmaster@\nopen.example\n")
    (tmp_path / "default").write_text(
        f'POSTGREY_OPTS="--inet=10023 --delay=60 --whitelist-clients={tmp_path}/clients '
        f'--whitelist-recipients={tmp_path}/recipients"\n'
    )
    (tmp_path / "gatekeeper.toml").write_text(f'store.url = "sqlite:{tmp_path}/state.db"\n')
    monkeypatch.setattr(time, "time", lambda: float(NOW))
    command = ["--config", f"{tmp_path}/gatekeeper.toml", "import-postgrey", str(fed), "--options"]
    assert 0 == cli.main([*command, f"{tmp_path}/default"])
    said = capsys.readouterr().out
    for line in (
        "2 triplets that wait: imported",
        'delay = "60s"',
        "clients:5: warning: 'no good' is not a host name",
    ):
        assert line in said
    allow = '["hash:postgrey_clients", "cidr:postgrey_clients.cidr", "pcre:postgrey_clients.pcre"]'
    assert f"allow_clients = {allow}" in said
    with (tmp_path / "gatekeeper.toml").open("a") as config:
        config.write(said.partition("as with postgrey:\n")[2])
    assert 0 == cli.main(["--config", f"{tmp_path}/gatekeeper.toml", "check-config"])
    capsys.readouterr()
    assert 0 == cli.main([*command, f"{tmp_path}/default", "--json"])
    again = json.loads(capsys.readouterr().out)
    assert ([], 12) == (again["files"], again["stayed"]["already there"])


LINES = {
    "debian.org": ("hash", "debian.org"),
    "Mixed.Example": ("hash", "mixed.example"),
    "192.0.2.7": ("cidr", "192.0.2.7/32"),
    "192.0.2.7/24": ("cidr", "192.0.2.0/24"),
    "195.235.39": ("cidr", "195.235.39.0/24"),
    "195.235": ("cidr", "195.235.0.0/16"),
    "2a01:4180:4051:0800::/64": ("cidr", "2a01:4180:4051:800::/64"),
    r"/^ms-smtp.*\.rr\.com$/": ("pcre", r"/^ms-smtp.*\.rr\.com$/"),
    "/a/b/": ("pcre", r"/a\/b/"),
    r"/a\/b/": ("pcre", r"/a\/b/"),
    "/(/": None,
    "300.1.2.3": None,
    ".example.com": None,
    "two words": None,
}


@pytest.mark.parametrize("line", LINES)
def test_each_line_of_a_client_list_becomes_an_entry_or_a_reason(line: str) -> None:
    expected = LINES[line]
    if expected is None:
        with pytest.raises(ValueError, match=r"\w"):
            lists.convert_client(line)
    else:
        assert expected == lists.convert_client(line)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("postmaster@", ("hash", "postmaster@")),
        ("User@Example.com", ("hash", "user@example.com")),
        ("example.com", ("hash", "example.com")),
        ("/^bulk-/", ("pcre", "/^bulk-/")),
    ],
)
def test_each_line_of_a_recipient_list_becomes_an_entry(line: str, expected: tuple[str, str]) -> None:
    assert expected == lists.convert_recipient(line)


@pytest.mark.integration("postgrey")
async def test_debians_own_lists_come_over_whole_and_hold(tmp_path: Path) -> None:
    clients, recipients = Path("/etc/postgrey/whitelist_clients"), Path("/etc/postgrey/whitelist_recipients")
    require_program("postgrey", "postgrey")
    brought = ImportedState()
    import_lists(Options(clients=(clients,), recipients=(recipients,)), tmp_path, brought)
    assert ([], 0) == (brought.remarks, brought.skipped["lines of allow lists"])
    allow = {"allow_clients": ["hash:postgrey_clients", "cidr:postgrey_clients.cidr", "pcre:postgrey_clients.pcre"]}
    section: dict[str, BaseModel] = {"greylist": greylist(allow_shipped=False, **allow)}
    world = World("greylist", "", section, folder=tmp_path)
    passed = [
        rcpt(name="mx1.debian.org"),
        rcpt(name="mail12.telekom.de"),
        rcpt(address="195.235.39.20"),
        rcpt(address="2a01:4180:4051:800::25"),
    ]
    assert [("greylist.allowed",)] * 4 == [(await world.decide(one)).reasons for one in passed]
    assert ("greylist.early",) == (await world.decide(rcpt(name="mail.telekom.de"))).reasons


def test_a_table_that_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("example.net\n")
    (tmp_path / "postgrey_clients").write_text("mine OK\n")
    brought = ImportedState()
    import_lists(Options(clients=(tmp_path / "list",), recipients=()), tmp_path, brought)
    assert ("mine OK\n", [], []) == ((tmp_path / "postgrey_clients").read_text(), brought.files, brought.toml)
    assert "not ours" in brought.remarks[0]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (b"192.0.2.0/a@b.example/c@d.example", ("a@b.example", "c@d.example")),
        (b"192.0.2.1/32/a@b.example/c@d.example", ("a@b.example", "c@d.example")),
        (b"192.0.2.0//c@d.example", ("", "c@d.example")),
        (b"192.0.2.0/a/x@b.example/c/y@d.example", ("a/x@b.example", "c/y@d.example")),
        (b"192.0.2.0/root/c@d.example", ("root", "c@d.example")),
        (b"2001:db8:0:0:0:0:0:0/a@b.example/c@d.example", ("a@b.example", "c@d.example")),
    ],
)
def test_a_triplet_is_taken_apart(key: bytes, expected: tuple[str, str]) -> None:
    found = parse_triplet(key, b"1,2")
    assert expected == (found.sender, found.recipient)


@pytest.mark.parametrize(
    ("key", "value"),
    [(b"", b"1,2"), (b"192.0.2.0", b"1,2"), (b"x/a@b/c@d", b"1,2"), (b"192.0.2.0/a@b/c@d", b"1"), (b"1" * 40, b"1,2")],
)
def test_an_entry_that_says_nothing_is_unusable(key: bytes, value: bytes) -> None:
    with pytest.raises(UnusableEntry):
        parse_triplet(key, value)


@given(st.binary(max_size=80), st.binary(max_size=30))
def test_any_entry_is_an_entry_or_unusable(key: bytes, value: bytes) -> None:
    for parse in (parse_triplet, parse_client):
        try:
            parse(key, value)
        except UnusableEntry:
            pass


MAILBOX = st.from_regex(r"[a-z/]{1,6}@[a-z.]{1,8}", fullmatch=True)


@given(MAILBOX, MAILBOX)
def test_sender_and_recipient_are_told_apart(sender: str, recipient: str) -> None:
    address = parse_address("192.0.2.0")
    assert address is not None
    if sender.startswith("/"):
        return  # reads like the null sender; no postgrey has ever told the two apart
    found = parse_triplet(f"192.0.2.0/{sender}/{recipient}".encode(), b"3,4")
    assert Triplet(address, sender, recipient, 3, 4) == found


def dumped(pairs: list[tuple[bytes, bytes]], escaped: bool) -> bytes:
    def line(data: bytes) -> bytes:
        if not escaped:
            return b" " + data.hex().encode()
        shown = (b"\\\\" if byte == 92 else bytes([byte]) if 32 <= byte < 127 else b"\\%02x" % byte for byte in data)
        return b" " + b"".join(shown)

    head = [b"VERSION=3", b"format=print" if escaped else b"format=bytevalue", b"type=btree", b"HEADER=END"]
    return b"\n".join([*head, *(line(part) for pair in pairs for part in pair), b"DATA=END", b""])


@given(st.lists(st.tuples(st.binary(), st.binary())), st.booleans())
def test_what_was_dumped_comes_back(pairs: list[tuple[bytes, bytes]], escaped: bool) -> None:
    assert pairs == list(parse_dump(dumped(pairs, escaped)))


@given(st.one_of(st.binary(), st.binary().map(lambda data: b"VERSION=3\nformat=print\nHEADER=END\n " + data)))
def test_any_other_text_is_no_dump(text: bytes) -> None:
    with pytest.raises(ValueError, match="dump"):
        list(parse_dump(text))


@pytest.mark.parametrize("end", range(0, 60, 7))
def test_half_a_dump_is_no_dump(end: int) -> None:
    with pytest.raises(ValueError, match="dump"):
        list(parse_dump(dumped([(b"key", b"value")], True)[:end]))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--inet=10023", Options()),
        ("--delay=60 --max-age 10 --auto-whitelist-clients", Options(delay=60, max_age=10 * DAY)),
        ("--retry-window=6h --auto-whitelist-clients=0", Options(retry_window=6 * 3600, auto_allow=0)),
        ("--ipv4cidr=32 --ipv6cidr=56 --greylist-text=x", Options(ipv4_prefix=32, ipv6_prefix=56)),
        ("--dbdir=/srv/p", Options(folder=Path("/srv/p"))),
    ],
)
def test_the_options_that_matter_are_read(words: str, expected: Options) -> None:
    assert expected == parse_options(words.split())


def test_a_number_that_is_none_is_named() -> None:
    with pytest.raises(ValueError, match="--delay=soon"):
        parse_options(["--delay=soon"])


def test_debians_file_of_options_is_read(tmp_path: Path) -> None:
    (tmp_path / "default").write_text('# no\nPOSTGREY_OPTS="--inet=10023 --delay=600"  # yes\n#POSTGREY_TEXT="x"\n')
    assert Options(delay=600) == read_options(tmp_path / "default")
    assert Options() == read_options(tmp_path / "nothing")


def bring(folder: Path, *arguments: str) -> int:
    config = folder / "gatekeeper.toml"
    if not config.exists():
        config.write_text(f'store.url = "sqlite:{folder}/state.db"\n')
        (folder / "default").write_text(f'POSTGREY_OPTS="--whitelist-clients={folder}/clients --dbdir={folder}/none"\n')
        (folder / "clients").write_text("example.net\n192.0.2\n")
    return cli.main(["--config", str(config), "import-postgrey", *arguments])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{f}/typo"], "there is no folder {f}/typo"),
        (["--options", "{f}/default"], "there is no folder {f}/none"),  # the one that --dbdir names
        (["{f}/clients", "--options", "{f}/default"], "there is no folder {f}/clients"),
        (["{f}", "--options", "{f}/typo"], "{f}/typo: No such file or directory"),
        (["{f}", "--options", "{f}/default", "--tables", "{f}/typo"], "there is no folder {f}/typo"),
    ],
)
def test_what_is_named_and_is_not_there_is_a_wrong_command_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 2 == bring(tmp_path, *(word.replace("{f}", str(tmp_path)) for word in arguments))
    assert said.replace("{f}", str(tmp_path)) in capsys.readouterr().err
    assert not (tmp_path / "state.db").exists()
    assert [] == list(tmp_path.glob("postgrey*"))


def test_a_folder_without_postgreys_databases_is_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 1 == bring(tmp_path, str(tmp_path), "--options", f"{tmp_path}/default")
    told = capsys.readouterr()
    assert f"there is no database of postgrey's in {tmp_path}" in told.err
    assert 'allow_clients = ["hash:postgrey_clients", "cidr:postgrey_clients.cidr"]' in told.out


def test_tables_in_another_folder_are_named_where_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tables").mkdir()
    monkeypatch.chdir(tmp_path)
    bring(tmp_path, str(tmp_path), "--options", f"{tmp_path}/default", "--tables", "tables")
    out = capsys.readouterr().out
    assert (
        f'allow_clients = ["hash:{tmp_path}/tables/postgrey_clients", "cidr:{tmp_path}/tables/postgrey_clients.c' in out
    )
    with (tmp_path / "gatekeeper.toml").open("a") as config:
        config.write(out.partition("as with postgrey:\n")[2])
    assert 0 == cli.main(["--config", f"{tmp_path}/gatekeeper.toml", "check-config"])


def test_a_list_that_the_options_name_and_is_not_there_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bring(tmp_path, str(tmp_path), "--options", f"{tmp_path}/default")
    (tmp_path / "clients").unlink()
    bring(tmp_path, str(tmp_path), "--options", f"{tmp_path}/default")
    assert f"{tmp_path}/clients is not there, which postgrey's options name" in capsys.readouterr().out
