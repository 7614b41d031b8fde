# SPDX-License-Identifier: GPL-3.0-or-later
"""Why mail is not signed, counted from the log that the real milter has written."""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper import cli
from gatekeeper.diagnose.unsigned_mail import as_json, read_unsigned_mail, sentences
from tests.support.milter_client import MilterClient
from tests.support.service import Service, need_milter
from tests.support.signing_world import write_key

pytestmark = pytest.mark.integration("gatekeeper")

CONFIG = """
hostname = "mx.example"
mynetworks = ["127.0.0.0/8"]
local_domains = ["ours.example"]
[dns]
nameservers = ["127.0.0.1:9"]
timeout = "100ms"
[store]
url = "memory:"
[milter]
listen = "unix:{folder}/milter.sock"
workers = 1
[signing]
key_table = ["k example.com:mail:{folder}/mail.private", "b broken.example:mail:{folder}/none.private"]
signing_table = ["example.com k", "broken.example b"]
"""
MAIL = (
    ("127.0.0.1", b"ann@example.com"),
    ("127.0.0.1", b"ann@broken.example"),
    ("127.0.0.1", b"bob@broken.example"),
    ("127.0.0.1", b"ann@ours.example"),
    ("127.0.0.1", b"ann@stranger.example"),
    ("192.0.2.1", b"ann@example.com"),
    ("192.0.2.1", b"ann@stranger.example"),
)


@pytest.fixture(scope="module")
def log() -> Iterator[list[str]]:
    """What the milter wrote of MAIL."""
    need_milter()
    with TemporaryDirectory(prefix="gatekeeper-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        write_key(folder / "mail.private")
        (folder / "gatekeeper.toml").write_text(CONFIG.format(folder=folder))
        service = Service(folder / "gatekeeper.toml", "milter")
        service.wait_for("^listening milter")
        for client, sender in MAIL:
            with MilterClient(f"{folder}/milter.sock") as asking:
                asking.open(client=client, name="client.example")
                asking.envelope(sender)
                asking.content(b"From: <" + sender + b">\r\nSubject: x\r\n\r\nHello\r\n")
        service.end()
        yield service.lines


def test_what_looked_ours_and_was_not_signed_is_counted_by_its_cause(log: list[str]) -> None:
    found = read_unsigned_mail(log)
    assert (1, 3) == (found.signed, found.missed)
    expected = {"sign.ok": 1, "sign.bad_key": 2, "sign.no_match": 2, "sign.external": 1}
    assert expected == found.reasons
    (first, count), *_ = found.causes.most_common()
    assert (("sign.bad_key", "broken.example"), 2) == (first[:2], count)
    assert first[2].endswith("none.private could not be used when it was read")
    assert "4AbCdE" == found.example[first]


def test_the_report_is_for_people_and_for_programs(
    log: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log").write_text("\n".join(log))
    assert 1 == cli.main(["dkim", "report", str(tmp_path / "log")])
    first, *rest = capsys.readouterr().out.splitlines()
    assert "signed: 1; looked like ours and not signed: 3" == first
    assert any("2 sign.bad_key from broken.example, last in 4AbCdE: key b: " in line for line in rest)
    assert any("no line for ann@ours.example, though ours.example is a domain of ours" in line for line in rest)
    assert 1 == cli.main(["dkim", "report", "--json", str(tmp_path / "log")])
    assert 3 == json.loads(capsys.readouterr().out)["missed"]


@given(st.lists(st.text()))
def test_any_lines_can_be_a_log(lines: list[str]) -> None:
    found = read_unsigned_mail([*lines, *(f" side=milter reasons=sign.external why={line}" for line in lines)])
    assert all(line.isprintable() for line in sentences(found))
    assert as_json(found)["missed"] == 0
