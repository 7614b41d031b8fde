# SPDX-License-Identifier: GPL-3.0-or-later
"""The records of our keys: written as opendkim-genkey does, read as receivers do, and published wrong in all the ways
that people have found."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper import cli
from gatekeeper.auth.dkim_key import PublicKey, parse_key
from gatekeeper.auth.tags import parse_tags
from gatekeeper.dnsclient.resolver import TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.records.dkim import examine, judge
from gatekeeper.records.key_record import KeyRecord, RecordOptions
from gatekeeper.signing.keys import PrivateKey
from tests.lab.dns import DnsServer
from tests.support.needs import require_program
from tests.support.signing_world import ed25519, ed25519_pem, rsa, rsa_pem, write_key
from tests.support.zones import txt


def gatekeeper(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit status, what was said on stdout and stderr; in this process."""
    try:
        status = cli.main([str(argument) for argument in arguments])
    except SystemExit as end:
        status = int(end.code or 0)
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "gatekeeper.toml"
    path.write_text('hostname = "mx.example"\nmynetworks = ["127.0.0.0/8"]\n')
    monkeypatch.setenv("GATEKEEPER_CONFIG", str(path))
    return path


@pytest.mark.parametrize(
    "options",
    [
        ["-d", "example.com", "-s", "mail"],
        ["-a", "-d", "example.com", "-s", "mail", "-b", "1024"],
        ["-d", "example.com", "-b", "4096"],
        ["-r", "-t", "-d", "example.com"],
        ["-r", "-S", "-d", "example.com"],
        ["-t", "--nosubdomains", "-n", "ask the postmaster", "-a", "-d", "a.example.com", "-s", "x.y"],
        ["-h", "sha1:sha256"],
        ["--subdomains", "--append-domain", "--domain=example.com", "--selector=mail", "--restrict", "--testmode"],
    ],
    ids=" ".join,
)
@pytest.mark.integration("opendkim-tools")
def test_a_zone_file_is_what_opendkim_genkey_writes(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    theirs.mkdir()
    ours.mkdir()
    subprocess.run([require_program("opendkim-genkey", "opendkim-tools"), *options, "-D", str(theirs)], check=True)
    assert 0 == gatekeeper(capsys, "dkim", "genkey", *options, "-D", ours)[0]
    assert sorted(os.listdir(theirs)) == sorted(os.listdir(ours))
    (their_text,), (our_text,) = theirs.glob("*.txt"), ours.glob("*.txt")

    def shape(text: str) -> str:
        """The text with every character of the key made the same."""
        return re.sub(r"[A-Za-z0-9+/=]{20,}", lambda match: "k" * len(match[0]), text)

    assert shape(their_text.read_text()) == shape(our_text.read_text())


@pytest.mark.integration("opendkim-tools")
def test_a_key_of_opendkim_genkey_gets_the_very_record_that_it_wrote(tmp_path: Path) -> None:
    program = require_program("opendkim-genkey", "opendkim-tools")
    subprocess.run([program, "-D", str(tmp_path), "-d", "example.com", "-s", "mail", "-a"], check=True)
    key = PrivateKey((tmp_path / "mail.private").read_bytes(), "a test")
    assert (tmp_path / "mail.txt").read_text() == KeyRecord.of("mail", "example.com", key).zone()


def test_a_new_key_is_for_its_owner_alone_and_never_takes_the_place_of_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["dkim", "genkey", "-s", "mail", "-d", "example.com", "-D", tmp_path, "-b", 1024]
    status, said, _ = gatekeeper(capsys, *command)
    before = (tmp_path / "mail.private").read_bytes()
    assert (0, 0o600) == (status, (tmp_path / "mail.private").stat().st_mode & 0o777)
    assert f"KeyTable:     mail._domainkey.example.com example.com:mail:{tmp_path}/mail.private\n" in said
    status, _, error = gatekeeper(capsys, *command)
    assert (2, True) == (status, "already exists" in error)
    assert before == (tmp_path / "mail.private").read_bytes()
    assert 0 == gatekeeper(capsys, *command, "--overwrite")[0]
    assert before != (tmp_path / "mail.private").read_bytes()


def test_a_new_key_that_would_be_refused_is_named_with_what_mends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    _, _, error = gatekeeper(capsys, "dkim", "genkey", "-D", folder, "--type", "ed25519")
    assert f"fix it with: chmod o-w {folder}" in error


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-b", "512"], "1024 to 4096 bits"),
        (["-h", "sha1"], "SHA-1 alone"),
        (["-h", "md5"], "'md5' is not a known hash"),
        (["-s", "../etc/x"], "is not a valid selector"),
        (["-s", "x; rm -rf"], "is not a valid selector"),
        (["-d", "no domain"], "is not a valid domain"),
        (["-D", "/nonexistent"], "No such file"),
        (["-n", "x" * 101], "at most 100"),
    ],
)
def test_what_cannot_be_a_key_is_refused(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, error = gatekeeper(capsys, "dkim", "genkey", *options)
    assert (2, True) == (status, said in error)


KEYS = {"rsa": rsa, "ed25519": ed25519}


@given(
    kind=st.sampled_from(["rsa", "ed25519"]),
    note=st.text(max_size=25),
    email=st.booleans(),
    testing=st.booleans(),
    subdomains=st.booleans(),
    hashes=st.sampled_from(["", "sha256", "sha256:sha1"]),
)
def test_a_record_says_to_receivers_what_it_was_made_from(
    kind: str, note: str, email: bool, testing: bool, subdomains: bool, hashes: str
) -> None:
    terms = RecordOptions(hashes=hashes, note=note, email_only=email, testing=testing, subdomains=subdomains)
    record = KeyRecord.of("s", "example.com", KEYS[kind](), terms)
    zone = Zone.parse(record.zone())
    (rrset,) = zone.lookup(record.name, "TXT").rrsets
    read = b"".join(rrset[0].strings)
    assert (record.text.encode(), record.strings) == (read, tuple(part.decode() for part in rrset[0].strings))
    key = parse_key(read)
    assert isinstance(key, PublicKey)
    assert (kind, testing, not subdomains) == (key.kind, key.testing, key.strict)
    assert b"DKIM1" == parse_tags(read)[b"v"]
    assert all(len(part) <= 255 for part in record.strings)
    assert not any(remark.error for remark in judge([read], KEYS[kind]()))


@given(st.binary(max_size=600))
def test_any_bytes_can_be_judged(record: bytes) -> None:
    assert all(remark.what.isprintable() for remark in judge([record], rsa()))


@given(st.data())
def test_a_record_with_a_piece_cut_out_never_passes(data: st.DataObject) -> None:
    text = KeyRecord.of("s", "example.com", rsa()).text
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    rest = (text[:start] + text[end:]).encode()
    # h=sha256 may go as a whole, and so may v=DKIM1: they are optional
    harmless = rest.endswith(rsa().public().encode()) and b"p=" + rsa().public().encode() in rest
    assert harmless or any(remark.error for remark in judge([rest], rsa()))


TEXT = KeyRecord.of("s", "example.com", rsa()).text
CHUNKS = KeyRecord.of("s", "example.com", rsa()).strings
OTHER = "v=DKIM1; k=rsa; p=" + PrivateKey(rsa_pem(1024), "another").public()


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([], "there is no record"),
        ([TEXT, TEXT], "2 TXT records"),
        ([TEXT, OTHER, "v=spf1 -all"], "2 TXT records"),
        (["v=DKIM1; p=", TEXT], "2 TXT records"),
        (["v=spf1 -all", OTHER], "not that of the private key"),
        (["v=spf1 -all", "hello"], "not a DKIM key"),
        ([OTHER], "not that of the private key"),
        ([ed25519().record()], "the record has an ed25519 key"),
        (["v=DKIM1; p="], "revoked"),
        (["v=spf1 -all"], "not a DKIM key"),
        (["hello"], "malformed"),
        (["v=DKIM1; k=rsa"], "no key in it"),
        ([TEXT.replace("sha256", "sha1")], "not for SHA-256"),
        ([TEXT.replace("k=rsa", "k=rsa; s=tlsrpt")], "not for mail"),
        (["k=rsa; v=DKIM1; p=" + rsa().public()], "v=DKIM1 must come first"),
        (["".join(CHUNKS[:-1])], "142 characters of the key are missing after the first 250"),
        ([CHUNKS[0] + "p=" + CHUNKS[2]], "250 characters of the key are missing after the first 0"),
        ([CHUNKS[0] + CHUNKS[1] + '" "' + CHUNKS[2]], "quote marks"),
        ([TEXT.replace(";", "\\;")], "backslashes"),
        ([TEXT.replace("p=", "p= ")], ""),
        ([TEXT + ";"], ""),
        ([TEXT.replace("k=rsa", "t=y; k=rsa")], "t=y"),
        ([TEXT.replace("k=rsa", "t=s; k=rsa")], "t=s"),
    ],
)
def test_a_key_published_wrong_is_named_with_its_cause(records: list[str], said: str) -> None:
    remarks = list(judge([record.encode() for record in records], rsa()))
    assert said in " | ".join(remark.what for remark in remarks)
    assert said or not remarks


OF_OTHERS = ("v=spf1 -all", "google-site-verification=abc", "hello", "v=DMARC1; p=none", "")


@pytest.mark.parametrize("others", [*((other,) for other in OF_OTHERS), OF_OTHERS])
@pytest.mark.parametrize("first", [True, False])
async def test_records_that_are_no_keys_are_warned_of_and_skipped_as_by_verification(
    others: tuple[str, ...], first: bool
) -> None:
    records = [TEXT, *others] if first else [*others, TEXT]
    zone = Zone.parse("\n".join(f"s._domainkey.example.com. TXT {txt(record)}" for record in records))
    found = await examine(TableResolver(zone), "example.com", "s", rsa())
    assert (True, len(others)) == (found.good, len(found.remarks))
    assert all(remark.what.startswith("there is another TXT record, which is no key") for remark in found.remarks)
    assert found.key is not None
    assert found.key.kind == "rsa"


async def test_a_record_under_a_wrong_name_is_found() -> None:
    for name, why in (("s._domainkey.example.com.example.com", "appears twice"), ("s.example.com", "is missing")):
        zone = Zone.parse(KeyRecord.of("s", "example.com", rsa()).zone().replace("s._domainkey.example.com", name))
        found = await examine(TableResolver(zone), "example.com", "s", rsa())
        assert (False, True) == (found.good, any(why in remark.what for remark in found.remarks))


WRONG = "v=DKIM1; k=rsa; p=MIIB"
WORLD = f"""
{KeyRecord.of("good", "example.com", rsa()).zone()}
{KeyRecord.of("test", "example.com", rsa(), RecordOptions(testing=True, email_only=True)).zone()}
{KeyRecord.of("other", "example.com", PrivateKey(rsa_pem(1024), "another")).zone()}
gone._domainkey.example.com. TXT "v=DKIM1; p="
broken._domainkey.example.com. TXT "{WRONG}"
nonsense._domainkey.example.com. TXT "hello"
"""


@pytest.fixture(scope="module")
def libunbound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An opendkim.conf by which opendkim's tools ask the name server that has WORLD."""
    folder = tmp_path_factory.mktemp("libunbound")
    with DnsServer(Zone.parse(WORLD)) as server:
        ask = "server:\n  do-not-query-localhost: no\n  module-config: iterator\nforward-zone:\n  name: .\n"
        (folder / "unbound.conf").write_text(f"{ask}  forward-addr: {server.address.replace(':', '@')}\n")
        (folder / "opendkim.conf").write_text(f"ResolverConfiguration {folder}/unbound.conf\n")
        yield folder / "opendkim.conf"


@pytest.mark.parametrize("selector", ["good", "test", "other", "gone", "broken", "nonsense", "missing"])
@pytest.mark.integration("opendkim-tools")
def test_a_key_is_good_where_opendkim_testkey_says_so(
    selector: str, libunbound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = write_key(tmp_path / "mail.private")
    (tmp_path / "dns.zone").write_text(WORLD)
    options = ["-d", "example.com", "-s", selector, "-k", str(key)]
    program = require_program("opendkim-testkey", "opendkim-tools")
    theirs = subprocess.run([program, "-x", str(libunbound), *options], timeout=60, capture_output=True)
    status, said, _ = gatekeeper(capsys, "dkim", "testkey", *options, "--dns", tmp_path / "dns.zone")
    assert (theirs.returncode == 0) == (status == 0), theirs.stderr + said.encode()


@pytest.fixture
def tables(config: Path) -> Path:
    """A configuration with three keys, and its DNS."""
    folder = config.parent
    write_key(folder / "one.private")
    write_key(folder / "two.private", ed25519_pem())
    lines = ["a example.com:good:./one.private", "b example.org:ed:./two.private", "c example.net:gone:./none.private"]
    (folder / "KeyTable").write_text("\n".join(lines) + "\n")
    with config.open("a") as file:
        file.write('[signing]\nkey_table = "KeyTable"\nsigning_table = ["*@example.com a"]\n')
    (folder / "dns.zone").write_text(f"{WORLD}\n{KeyRecord.of('ed', 'example.org', ed25519()).zone()}")
    return folder


def test_all_keys_of_the_table_are_tested_when_none_is_named(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said, error = gatekeeper(capsys, "dkim", "testkey", "--dns", tables / "dns.zone")
    first, second, third = (line for line in said.splitlines() if not line.startswith(" "))
    assert f"good._domainkey.example.com: OK (rsa, 2048 bits; belongs to {tables}/one.private; not secure" in first
    assert "ed._domainkey.example.org: OK (ed25519, 256 bits; belongs to" in second
    assert (1, "gone._domainkey.example.net: WRONG") == (status, third)
    assert "3 keys: 2 good" in error


def test_a_private_key_that_cannot_be_read_is_a_finding(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tables / "one.private").unlink()
    status, said, _ = gatekeeper(capsys, "dkim", "testkey", "-d", "example.com", "--dns", tables / "dns.zone")
    assert (1, True) == (status, "the private key cannot be read" in said)


def test_dns_that_does_not_answer_is_no_finding(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tables / "dns.zone").write_text("good._domainkey.example.com TXT !TIMEOUT")
    status, said, _ = gatekeeper(capsys, "dkim", "testkey", "-d", "example.com", "--dns", tables / "dns.zone")
    assert (75, "good._domainkey.example.com: cannot tell") == (status, said.splitlines()[0])


def test_a_key_is_found_for_each_domain_of_a_path_with_a_percent(
    tables: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for domain in ("example.com", "example.org"):
        write_key(tables / f"{domain}.pem")
    (tables / "KeyTable").write_text("all %:sel:./%.pem\n")
    status, said, _ = gatekeeper(capsys, "dkim", "dns", "--json")
    names = [record["name"] for record in json.loads(said)]
    assert (0, ["sel._domainkey.example.com", "sel._domainkey.example.org"]) == (status, sorted(names))


def test_every_form_of_a_record_says_the_same(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["dkim", "dns", "-d", "example.com"]
    (record,) = json.loads(gatekeeper(capsys, *command, "--json")[1])
    zone = Zone.parse(gatekeeper(capsys, *command)[1])
    line = gatekeeper(capsys, *command, "--line")[1]
    update = gatekeeper(capsys, *command, "-u")[1].splitlines()[0].removeprefix("update add ")
    assert f"Value: {record['text']}\n" in line
    for form in (zone, Zone.parse(update)):
        strings = form.lookup(record["name"], "TXT").rrsets[0][0].strings
        assert record["strings"] == [part.decode() for part in strings]


def test_opendkims_own_configuration_will_do(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tables / "opendkim.conf").write_text(
        f"Domain example.com\nSelector good\nKeyFile {tables}/one.private\n", encoding="utf-8"
    )
    status, said, _ = gatekeeper(
        capsys, "dkim", "testkey", "-x", tables / "opendkim.conf", "--dns", tables / "dns.zone"
    )
    assert (0, True) == (status, "good._domainkey.example.com: OK" in said)


def test_no_key_material_is_ever_shown(tables: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = (tables / "one.private").read_text()
    secret = [line for line in key.splitlines() if len(line) == 64][8:]  # behind the modulus, which is public
    (tables / "two.private").write_text(key.replace(secret[0], secret[0][:-9]))  # a broken one
    (tables / "KeyTable").write_text(
        "a example.com:good:./one.private\nb example.com:bad:./two.private\n"
        f"c example.com:inline:{''.join(key.splitlines()[1:-1])}\nd example.com:{''.join(key.splitlines()[1:-1])}\n"
    )
    said = ""
    for command in (
        ["dkim", "testkey", "-vv", "--dns", tables / "dns.zone"],
        ["dkim", "testkey", "--json", "--dns", tables / "dns.zone"],
        ["dkim", "dns"],
        ["dkim", "dns", "--json"],
        ["dkim", "genkey", "-v", "-D", tables],
        ["check-config"],
        ["check-config", "--json"],
    ):
        said += "".join(gatekeeper(capsys, *command)[1:])
    (tables / "KeyTable").write_text(
        f"a example.com:bad:./two.private\nb example.com:inline:{''.join(key.splitlines()[1:-1])}\n"
    )
    (tables / "mail.eml").write_text("From: ann@example.com\nSubject: x\n\nHello\n")
    for command in (
        ["sign", tables / "mail.eml"],
        ["explain", "--client", "127.0.0.1", "--message", tables / "mail.eml"],
        ["explain", "--client", "127.0.0.1", "--message", tables / "mail.eml", "--json"],
    ):
        status, out, error = gatekeeper(capsys, *command)
        assert (0, True) == (status, "sign.bad_key" in out + error or "451" in out + error)
        said += out + error
    assert [] == [line for line in secret if line[:20] in said]
