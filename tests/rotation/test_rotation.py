# SPDX-License-Identifier: GPL-3.0-or-later
"""Rotation of keys: each stage, an interruption at every point, real authoritative servers of which one lags, and
what people have in their tables."""

import json
import os
import re
import socketserver
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper import cli
from gatekeeper.app.signing_plan import key_table
from gatekeeper.config import config_file
from gatekeeper.core import file_lock
from gatekeeper.dnsclient.authoritative import LiveAuthorities, ServerAnswer
from gatekeeper.dnsclient.resolver import TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.records.key_record import KeyRecord
from gatekeeper.rotation.configured_keys import KeySelection, switched, with_options
from gatekeeper.rotation.due import World
from gatekeeper.rotation.run import Run, rotate
from gatekeeper.rotation.state import KeyReference, RotationState, locked
from gatekeeper.signing.keys import PrivateKey
from tests.support.authoritative_servers import Nsd, servers
from tests.support.milter_client import MilterClient
from tests.support.service import Service, need_milter, until
from tests.support.signing_world import ed25519_pem, rsa_pem, write_key

NEW = f"{datetime.now(UTC):%Y%m}r"


class Relay:
    """A relay with one key, its tables and its DNS, and `rotate` for it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], signing: str, table: str) -> None:
        self.folder = folder
        self._capsys = capsys
        (folder / "keys").mkdir()
        write_key(folder / "keys" / "mail.private")
        self.config = folder / "gatekeeper.toml"
        self.config.write_text(f'hostname = "mx.example"\nmynetworks = ["127.0.0.0/8"]\n[signing]\n{signing}\n')
        self.table = folder / "KeyTable"
        self.table.write_text(table.format(keys=folder / "keys"))
        (folder / "SigningTable").write_text("*@example.com k\n")
        self.dns = folder / "dns.zone"
        self.dns.write_text("")

    def rotate(self, *arguments: str) -> tuple[int, str]:
        """Exit status and all that was said."""
        status = cli.main(
            ["--config", str(self.config), "dkim", "rotate", *arguments, "--dns", str(self.dns)],
        )
        said = self._capsys.readouterr()
        return status, said.out + said.err

    def publish(self) -> None:
        """Every record that has been written."""
        self.dns.write_text("".join(path.read_text() for path in sorted((self.folder / "keys").glob("*.txt"))))

    @property
    def new(self) -> Path:
        return self.folder / "keys" / f"{NEW}.private"

    @property
    def states(self) -> list[RotationState]:
        paths = sorted((self.folder / "keys").glob("*.rotation.json"))
        return [RotationState.model_validate_json(path.read_bytes()) for path in paths]


TABLES = 'key_table = "KeyTable"\nsigning_table = "refile:SigningTable"'
LINE = "# ours\r\nk \t example.com:mail:{keys}/mail.private  # the first\r\n\n"


@pytest.fixture
def relay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Relay:
    return Relay(tmp_path, capsys, TABLES, LINE)


def test_a_key_is_rotated_stage_by_stage(relay: Relay) -> None:
    status, said = relay.rotate("example.com")
    assert (75, "generated") == (status, relay.states[0].stage)
    assert f"waiting: {relay.dns} does not have {NEW}._domainkey.example.com yet" in said
    relay.publish()
    status, said = relay.rotate()
    assert (75, "active") == (status, relay.states[0].stage)
    assert "leave the record of mail as it is" in said
    expected = f"# ours\r\nk \t example.com:{NEW}:{relay.new}  # the first\r\n\n"
    assert expected == relay.table.read_bytes().decode()
    status, said = relay.rotate("--after", "0s")
    assert (0, "retired") == (status, relay.states[0].stage)
    assert 'mail._domainkey.example.com.\tIN\tTXT\t"v=DKIM1; p="' in said
    assert f"the old private key was left in {relay.folder}/keys/mail.private" in said
    assert (0, f"example.com: mail -> {NEW}: retired\n") == relay.rotate("example.com")
    assert (relay.folder / "keys" / "mail.private").exists()


def test_a_key_that_is_active_since_tomorrow_is_active_from_now_on(relay: Relay) -> None:
    relay.rotate("example.com")
    relay.publish()
    assert 75 == relay.rotate()[0]
    [path] = relay.folder.rglob("*.rotation.json")
    state = json.loads(path.read_text())
    path.write_text(json.dumps(state | {"active": "2099-01-01T00:00:00Z"}))
    status, said = relay.rotate()
    assert (75, True) == (status, "7 days from now" in said)
    assert "2099" not in path.read_text()
    assert 0 == relay.rotate("--after", "0s")[0]


def test_a_dry_run_changes_nothing(relay: Relay) -> None:
    def files() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in relay.folder.rglob("*") if path.is_file()}

    for step in (lambda: None, lambda: relay.rotate("example.com"), relay.publish, relay.rotate):
        step()
        before = files()
        assert 75 == relay.rotate("example.com", "--dry-run", "--after", "0s")[0]
        assert before == files()


def test_the_new_key_and_the_table_keep_owner_and_mode(relay: Relay) -> None:
    relay.table.chmod(0o640)
    relay.rotate("example.com")
    relay.publish()
    relay.rotate()
    old = (relay.folder / "keys" / "mail.private").stat()
    assert (0o640, 0o600) == (relay.table.stat().st_mode & 0o777, relay.new.stat().st_mode & 0o777)
    assert (old.st_uid, old.st_gid) == (relay.new.stat().st_uid, relay.new.stat().st_gid)


def test_a_key_is_rotated_when_it_is_old_enough(relay: Relay) -> None:
    assert (0, True) == (relay.rotate("--older", "180d")[0], relay.states == [])
    past = (datetime.now(UTC) - timedelta(days=181)).timestamp()
    os.utime(relay.folder / "keys" / "mail.private", (past, past))
    assert (75, 1) == (relay.rotate("--older", "180d")[0], len(relay.states))
    relay.publish()
    relay.rotate()
    assert 0 == relay.rotate("--older", "180d", "--after", "0s")[0]
    assert (0, 1) == (relay.rotate("--older", "180d")[0], len(relay.states))
    relay.rotate("--older", "0s")
    assert f"{NEW}2" == relay.states[0].new.selector


def test_a_record_that_is_wrong_keeps_the_old_key_signing(relay: Relay) -> None:
    relay.rotate("example.com")
    for wrong, said in (
        (KeyRecord.of(NEW, "example.com", PrivateKey(rsa_pem(1024), "another")).zone(), "not that of the private key"),
        (
            re.sub(r'\n\t  "[^"]*" \)', " )", relay.new.with_suffix(".txt").read_text()),
            "characters of the key are missing",
        ),
    ):
        relay.dns.write_text(wrong)
        status, told = relay.rotate()
        assert (75, True) == (status, said in told)
        assert ":mail:" in relay.table.read_text()


@pytest.mark.parametrize(
    ("signing", "table", "instead"),
    [
        ('key_table = "csl:k=example.com:mail:{keys}/mail.private"\nsigning_table = ["*@example.com k"]', "", "4"),
        ('key_table = ["k example.com:mail:{keys}/mail.private"]\nsigning_table = ["*@example.com k"]', "", "4"),
    ],
)
def test_a_list_in_the_configuration_is_left_to_people(
    signing: str, table: str, instead: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    relay = Relay(tmp_path, capsys, signing.replace("{keys}", str(tmp_path / "keys")), table)
    relay.rotate("example.com")
    relay.publish()
    status, said = relay.rotate()
    assert 75 == status
    assert f"waiting: {relay.config}:{instead}: this list is not edited; write example.com:{NEW}:{relay.new}" in said
    text = relay.config.read_text()
    relay.config.write_text(text.replace(f"mail:{tmp_path}/keys/mail.private", f"{NEW}:{relay.new}"))
    assert (75, "active") == (relay.rotate()[0], relay.states[0].stage)
    assert 0 == relay.rotate("--after", "0s")[0]


def test_one_key_without_tables_changes_in_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signing = 'domains = ["example.com", "example.org"]\nselector = "mail"  # s=\nkey_file = "keys/mail.private"'
    relay = Relay(tmp_path, capsys, signing, "")
    relay.rotate("example.com")
    relay.dns.write_text(relay.new.with_suffix(".txt").read_text().partition(f"{NEW}._domainkey.example.org")[0])
    status, said = relay.rotate()
    assert (75, True) == (status, f"does not have {NEW}._domainkey.example.org yet" in said)
    relay.publish()
    before = relay.config.read_text()
    _, said = relay.rotate()
    assert "this file is read at a reload: systemctl reload gatekeeper" in said
    expected = before.replace('"mail"', f'"{NEW}"').replace('"keys/mail.private"', f'"{relay.new}"')
    assert expected == relay.config.read_text()
    assert 0 == relay.rotate("--after", "0s")[0]


@pytest.mark.parametrize(
    "text",
    [
        "# a\n[signing]\n  selector = OLD # s=\n\n\tkey_file=FILE\t#f\n[checks]\n",
        "[signing]\r\nselector = OLD # s=\r\nkey_file = FILE\r\n\r\n[checks.spf] # c\r\nmode='off'",
        "signing.selector = OLD\nsigning . key_file = FILE\nx = 'é'\n",
        'mode = "x"\nsigning = { domains = [ "a" ,"b"], selector = OLD,  key_file = FILE } # all\n',
        "['signing']\n\"selector\" = OLD\n'key_file' = FILE\n[x]\nselector = 'old'\n",
        "[signing.x]\n[checks]\nn = '''\nselector = 'old'\n'''\n[signing]\nkey_file = FILE\nselector = OLD\n",
        "[checks.x]\na = [\n 1, # one\n]\n[signing]\nselector = OLD\nkey_file = FILE\n[checks.y]\n[signing.z]\na = 1\n",
    ],
)
@pytest.mark.parametrize("quote", ["'", '"'])
def test_of_the_configuration_nothing_changes_but_selector_and_file(text: str, quote: str) -> None:
    old = text.replace("OLD", f"{quote}old{quote}").replace("FILE", f"{quote}keys/old{quote}")
    new = text.replace("OLD", '"new"').replace("FILE", '"/k/\\"é\\".pem"')
    assert new == with_options(old, {"selector": "new", "key_file": '/k/"é".pem'})


@pytest.mark.parametrize(
    "text",
    ['[signing]\nselector = "old"\n', "x = 1\n", '[signing]\nselector = """\nold"""\nkey_file = "k"\n'],
)
def test_a_configuration_where_more_would_change_is_left_to_people(text: str) -> None:
    assert with_options(text, {"selector": "new", "key_file": "/k"}) is None


def test_domains_that_share_key_and_folder_go_their_own_ways(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = "k example.com:mail:{keys}/mail.private\nl example.org:mail:{keys}/mail.private\n"
    relay = Relay(tmp_path, capsys, TABLES, table)
    relay.rotate("--older", "0s")
    first, second = relay.states
    assert (NEW, NEW) == (first.new.selector, second.new.selector)
    assert [str(relay.new), f"{tmp_path}/keys/example.org.{NEW}.private"] == [first.new.path, second.new.path]
    relay.publish()
    relay.rotate()
    expected = f"k example.com:{NEW}:{first.new.path}\nl example.org:{NEW}:{second.new.path}\n"
    assert expected == relay.table.read_text()


def test_a_key_that_stands_in_the_table_itself_gets_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = "".join(ed25519_pem().decode().split("-----")[2].split())
    relay = Relay(tmp_path, capsys, TABLES, f"k example.com:mail:{seed}:ed25519-sha256 # here\n")
    relay.rotate("example.com")
    path = tmp_path / f"example.com.{NEW[:-1]}e.private"
    relay.dns.write_text(path.with_suffix(".txt").read_text())
    relay.rotate()
    assert f"k example.com:{NEW[:-1]}e:{path}:ed25519-sha256 # here\n" == relay.table.read_text()


@pytest.mark.parametrize(
    ("table", "arguments", "said"),
    [
        ("k %:mail:{keys}/mail.private\n", ["--older", "0s"], "signs for any domain (%)"),
        ("k %:mail:{keys}/%.private\n", ["--older", "0s"], "give this one its own"),
        ("k example.com:mail:{keys}/none.private\n", ["example.com"], "cannot be read"),
        (LINE, ["example.org"], "have no key example.org"),
        (LINE, ["example.com", "-s", "other"], "have no key example.com with selector other"),
    ],
)
def test_what_cannot_be_rotated_is_named(
    table: str, arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    relay = Relay(tmp_path, capsys, TABLES, table)
    write_key(tmp_path / "keys" / "example.com.private")
    status, told = relay.rotate(*arguments)
    assert (1, True, []) == (status, said in told, relay.states)


def test_a_key_that_is_in_use_again_is_not_taken_for_retired(relay: Relay) -> None:
    relay.rotate("-s", "mail")
    relay.publish()
    relay.rotate()
    relay.table.write_text(LINE.format(keys=relay.folder / "keys"))
    status, said = relay.rotate("--after", "0s")
    assert (75, "active", True) == (status, relay.states[0].stage, "the tables name selector mail again" in said)
    write_key(relay.folder / "keys" / "other.private")
    relay.table.write_text(f"k example.com:other:{relay.folder}/keys/other.private\n")
    _, said = relay.rotate("--after", "0s")
    assert f"the tables do not name selector {NEW} any more; fix them, or remove {relay.folder}/keys/" in said


def test_only_one_rotates_at_a_time(relay: Relay) -> None:
    with locked([relay.folder / "keys"]):
        status, said = relay.rotate("example.com")
    assert (75, True) == (status, "another gatekeeper dkim rotate is at work" in said)


def test_a_state_that_is_no_state_is_named_and_nothing_is_done(relay: Relay) -> None:
    (relay.folder / "keys" / "x.rotation.json").write_text("{")
    status, said = relay.rotate("example.com")
    assert (1, True) == (status, "x.rotation.json is not the state of a rotation" in said)


@pytest.mark.parametrize(
    "changes",
    [
        {"new": {"selector": "x", "path": "{folder}/elsewhere/x.private"}},
        {"new": {"selector": "x", "path": "{folder}/keys/../elsewhere/x.private"}},
        {"new": {"selector": "x\n*", "path": "{folder}/keys/x.private"}},
        {"old": {"selector": "mail", "path": "{folder}/elsewhere/other.private"}},
        {"domains": ["../elsewhere/x"]},
    ],
)
def test_the_owner_of_a_folder_of_keys_cannot_send_us_elsewhere(relay: Relay, changes: dict[str, Any]) -> None:
    (relay.folder / "elsewhere").mkdir()
    keys = {name: {"selector": name, "path": f"{relay.folder}/keys/{name}.private"} for name in ("mail", "x")}
    state = {"domains": ["example.com"], "old": keys["mail"], "new": keys["x"]} | changes
    (relay.folder / "keys" / "example.com.mail.rotation.json").write_text(
        json.dumps(state).replace("{folder}", str(relay.folder))
    )
    before = relay.table.read_bytes()
    status, said = relay.rotate("example.com")
    assert (1, True) == (status, "example.com.mail.rotation.json" in said)
    assert ([], before) == (list((relay.folder / "elsewhere").iterdir()), relay.table.read_bytes())


def test_a_table_that_another_changes_meanwhile_is_not_touched(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    relay.rotate("example.com")
    relay.publish()
    monkeypatch.setattr(file_lock, "WAIT", 0.1)
    with file_lock.locked(relay.table):
        status, said = relay.rotate()
    assert (75, True) == (status, "is changing it and holds" in said)
    assert (75, "active") == (relay.rotate()[0], relay.states[0].stage)


def ended_at(rename: int, arguments: list[str]) -> int:
    """The exit status of gatekeeper in a process that dies, with status 99, before its first rename where `rename` is
    1, after it where it is 2, and so on."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = rename

    def die(*_: object) -> None:
        nonlocal left
        left -= 1
        if not left:
            os._exit(99)

    def deadly(real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any, **options: Any) -> None:
            die()
            real(*arguments, **options)
            die()

        return call

    os.replace, os.link = deadly(os.replace), deadly(os.link)  # in this process alone
    try:
        os._exit(cli.main(arguments))
    except BaseException:  # noqa: BLE001 (a forked child must not go on in pytest)
        os._exit(98)


def test_a_rotation_survives_an_end_before_and_after_every_rename(relay: Relay) -> None:
    deaths = 0
    for expected in (75, 75, 0):
        arguments = ["--config", str(relay.config), "dkim", "rotate", "example.com", "--dns", str(relay.dns)]
        arguments += [] if expected else ["--after", "0s"]
        for rename in range(1, 20):
            status = ended_at(rename, arguments)
            keys, problems = key_table(config_file.load(relay.config))
            assert [] == problems  # whatever happened, the service has a key that it can use
            assert all(key.usable for key in keys)
            if status != 99:
                break
            deaths += 1
        assert expected == status
        relay.publish()
    assert deaths > 8
    assert ["retired"] == [state.stage for state in relay.states]
    assert [f"{NEW}.private", f"{NEW}.txt", "example.com.mail.rotation.json", "mail.private"] == sorted(
        path.name for path in (relay.folder / "keys").iterdir() if not path.name.startswith(".")
    )


@pytest.mark.parametrize("domain", ["bücher.example", "BÜCHER.example.", "xn--bcher-kva.example"])
def test_a_line_of_a_table_is_found_however_its_domain_is_written(domain: str) -> None:
    state = RotationState(
        domains=("xn--bcher-kva.example",),
        old=KeyReference(selector="mail", path="/k.pem"),
        new=KeyReference(selector="new", path="/n.pem"),
    )
    assert (f"k {domain}:new:/n.pem", [1]) == switched(f"k {domain}:mail:/k.pem", state, Path("/"))


@given(
    st.lists(
        st.one_of(
            st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=30),
            st.sampled_from(
                ["a example.com:mail:/k.pem", "\tb  Example.COM:mail:/%.pem #x:y", "c example.com:mail:./k"],
            ),
        )
    )
)
def test_a_table_changes_in_the_lines_of_the_old_key_alone(lines: list[str]) -> None:
    state = RotationState(
        domains=("example.com",),
        old=KeyReference(selector="mail", path="/k.pem"),
        new=KeyReference(selector="new", path="/n.pem"),
    )
    lines = lines or [""]
    text, changed = switched("\n".join(lines), state, Path("/"))
    after = text.split("\n")
    assert changed == [number for number, line in enumerate(lines, 1) if "example.com:mail:/k.pem" in line]
    for number, (old, new) in enumerate(zip(lines, after, strict=True), 1):
        assert number in changed or old == new
        assert new == (old.replace("mail:/k.pem", "new:/n.pem") if number in changed else old)


def test_no_key_material_is_shown_or_kept_elsewhere(relay: Relay) -> None:
    said = ""
    for arguments in (["example.com"], ["--json"], ["--dry-run"], ["--after", "0s"]):
        said += relay.rotate(*arguments)[1]
        relay.publish()
    for path in (relay.new, relay.folder / "keys" / "mail.private"):
        secret = [line for line in path.read_text().splitlines() if len(line) == 64][8:]
        texts = [
            other.read_text() for other in relay.folder.rglob("*") if other.is_file() and other.suffix != ".private"
        ]
        assert len(secret) > 5
        assert [] == [line for line in secret for text in (said, *texts) if line[:20] in text]


HELD = "@ NS ns1\n@ NS ns2\nns1 A 127.0.0.2\nns2 A 127.0.0.3\n"
WORLD = """
example.com. NS ns1.example.com.
example.com. NS ns2.example.com.
ns1.example.com. A 127.0.0.2
ns2.example.com. A 127.0.0.3
provider.example. NS ns.provider.example.
ns.provider.example. A 127.0.0.4
dead.example. NS ns1.dead.example.
dead.example. NS ns2.dead.example.
ns1.dead.example. A 127.0.0.5
"""
BELOW = "@ NS ns.provider.example.\ns._domainkey TXT below\n"


@pytest.fixture(scope="module")
def nsd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Nsd]]:
    """Two servers of example.com, one of provider.example and of below.example.com."""
    zones = {
        "127.0.0.2": {"example.com": HELD},
        "127.0.0.3": {"example.com": HELD},
        "127.0.0.4": {"provider.example": "@ NS ns\nns A 127.0.0.4\nkey TXT here\n", "below.example.com": BELOW},
    }
    with servers(tmp_path_factory.mktemp("nsd"), zones) as started:
        yield started


def asking(nsd: dict[str, Nsd], world: str = WORLD) -> LiveAuthorities:
    return LiveAuthorities(TableResolver(Zone.parse(world)), port=nsd["127.0.0.2"].port, timeout=1.0)


@pytest.mark.integration("nsd")
async def test_a_rotation_waits_for_the_last_authoritative_server_and_names_it(
    nsd: dict[str, Nsd], relay: Relay
) -> None:
    world = World(config=config_file.load(relay.config), authorities=asking(nsd))

    async def run() -> Run:
        return await rotate(world, KeySelection("example.com"))

    def waits(run: Run) -> list[str]:
        return run.outcomes[0].waits

    both = [f"ns{number}.example.com (127.0.0.{number + 1})" for number in (1, 2)]
    there = f"does not have {NEW}._domainkey.example.com yet"
    assert [f"{server} {there}" for server in both] == waits(await run())
    record = relay.new.with_suffix(".txt").read_text()
    nsd["127.0.0.2"].serve("example.com", HELD + record)
    assert [f"{both[1]} {there}"] == waits(await run())
    nsd["127.0.0.3"].serve("example.com", HELD + record.replace("p=MIIB", "p=MIIC"))
    assert [f"{both[1]} has a wrong record at {NEW}._domainkey.example.com: the key is malformed"] == waits(await run())
    assert ":mail:" in relay.table.read_text()
    nsd["127.0.0.3"].serve("example.com", HELD + record)
    outcome = (await run()).outcomes[0]
    assert f"published: all 2 authoritative servers have {NEW}._domainkey.example.com" in outcome.did
    assert f":{NEW}:" in relay.table.read_text()


@pytest.mark.integration("nsd")
async def test_delegations_and_cnames_are_followed_to_their_servers(nsd: dict[str, Nsd]) -> None:
    held = f"{HELD}x._domainkey CNAME key.provider.example.\nbelow NS ns.provider.example.\n"
    nsd["127.0.0.2"].serve("example.com", held)
    nsd["127.0.0.3"].serve("example.com", held)
    voice = ServerAnswer("ns.provider.example", "127.0.0.4", (b"here",))
    assert (voice,) == await asking(nsd).texts("x._domainkey.example.com")
    assert ((b"below",),) == tuple(voice.records for voice in await asking(nsd).texts("s._domainkey.below.example.com"))
    nsd["127.0.0.3"].serve("example.com", HELD)
    assert (ServerAnswer("ns2.example.com", "127.0.0.3"), voice) == await asking(nsd).texts("x._domainkey.example.com")


@pytest.mark.integration("nsd")
async def test_servers_that_are_gone_lame_or_without_address_are_told_apart(nsd: dict[str, Nsd]) -> None:
    first, second = await asking(nsd).texts("s._domainkey.dead.example")
    assert ("does not answer", "has no address") == (first.trouble, second.trouble)
    lame = WORLD.replace("dead.example. A 127.0.0.5", "dead.example. A 127.0.0.4")
    assert "says REFUSED" == (await asking(nsd, lame).texts("s._domainkey.dead.example"))[0].trouble


@pytest.mark.parametrize("said", [b"", b"\0", b"\xff" * 12, b"echo", bytes(600)])
async def test_a_server_that_answers_nonsense_is_named(said: bytes) -> None:
    class Nonsense(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            question, socket = self.request
            socket.sendto(question if said == b"echo" else question[:2] + said, self.client_address)

    with socketserver.UDPServer(("127.0.0.5", 0), Nonsense) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        resolver = TableResolver(Zone.parse("dead.example. NS ns.dead.example.\nns.dead.example. A 127.0.0.5"))
        authorities = LiveAuthorities(resolver, port=server.server_address[1], timeout=0.3)
        (voice,) = await authorities.texts("s._domainkey.dead.example")
        server.shutdown()
    assert ((), True) == (voice.records, bool(voice.trouble))


@pytest.mark.integration("nsd")
async def test_a_host_without_ipv6_is_content_with_ipv4(nsd: dict[str, Nsd]) -> None:
    both = WORLD + "ns.provider.example. AAAA 2001:db8::3\n"
    (voice,) = await asking(nsd, both).texts("key.provider.example")
    assert ("127.0.0.4", (b"here",)) == (voice.address, voice.records)


def test_the_outcome_for_programs_has_the_stage_and_what_is_waited_for(relay: Relay) -> None:
    (outcome,) = json.loads(relay.rotate("example.com", "--json")[1])
    assert ("generated", 1, NEW) == (outcome["stage"], len(outcome["waits"]), outcome["new"]["selector"])


@pytest.mark.integration("gatekeeper")
def test_the_running_service_signs_with_the_new_key_as_soon_as_the_table_names_it(relay: Relay) -> None:
    need_milter()
    for folder in (relay.folder, relay.folder / "keys"):
        folder.chmod(0o755)
    socket = relay.folder / "milter.sock"
    with relay.config.open("a") as file:
        file.write(f'[milter]\nlisten = "unix:{socket}"\nworkers = 1\n[store]\nurl = "memory:"\n')
    service = Service(relay.config, "milter")

    def selector() -> str:
        with MilterClient(str(socket)) as client:
            client.open(client="127.0.0.1", name="localhost")
            client.envelope(b"ann@example.com")
            fields = client.content(b"From: ann@example.com\r\nSubject: x\r\n\r\nHello\r\n").fields
        signature = next(value for name, value in fields if name == "DKIM-Signature")
        return str(re.findall(r"\bs=([^;]*);", signature)[0])

    try:
        service.wait_for("^listening milter")
        relay.rotate("example.com")
        relay.publish()
        assert "mail" == selector()
        assert 75 == relay.rotate()[0]
        until(lambda: selector() == NEW, "the new key signs")
        assert not any("Traceback" in line for line in service.lines)
    finally:
        service.end()


def test_an_opendkim_conf_without_tables_is_left_to_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    relay = Relay(tmp_path, capsys, "", "")
    conf = tmp_path / "opendkim.conf"
    conf.write_text(f"Domain example.com\nSelector mail\nKeyFile {tmp_path}/keys/mail.private\n")
    relay.rotate("example.com", "-x", str(conf))
    relay.publish()
    status, said = relay.rotate("-x", str(conf))
    assert (75, True) == (status, f"{conf}:2: not edited; write Selector {NEW} and KeyFile {relay.new}" in said)


def test_new_keys_can_be_of_another_kind(relay: Relay) -> None:
    relay.rotate("example.com", "--type", "ed25519")
    (state,) = relay.states
    assert ("ed25519", f"{NEW[:-1]}e") == (state.kind, state.new.selector)
    assert "ed25519" == PrivateKey(Path(state.new.path).read_bytes(), "the new key").kind
