# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: what each command prints, and the exit status that it promises."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper import cli
from gatekeeper.cli.common import CONFIGURATION, FINDING, OK, USAGE
from gatekeeper.core.message import Header
from gatekeeper.diagnose.message_report import Mail
from gatekeeper.milter.edits import Edits, Insert, Remove
from gatekeeper.postfix import postconf
from tests.support.needs import ROOT, require_program

ZONE = """
example.com. MX 10 mail.example.com.
example.com. TXT "v=spf1 ip4:192.0.2.9 -all"
_dmarc.example.com. TXT "v=DMARC1; p=reject"
mail.example.com. A 192.0.2.9
9.2.0.192.in-addr.arpa. PTR mail.example.com.
9.2.0.192.zen.spamhaus.org. A 127.0.0.2
example.org. MX 10 mail.example.org.
"""
MESSAGE = b"From: a@example.com\nTo: b@example.org\nSubject: hello\n\nHi\n"
SESSION = ["--client", "192.0.2.9", "--helo", "mail.example.com", "--from", "a@example.com"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a configuration, a zone and a message, in which the commands run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GATEKEEPER_CONFIG", raising=False)
    (tmp_path / "g.toml").write_text(
        'hostname = "mx.example.org"\nmynetworks = "127.0.0.0/8"\n[store]\nurl = "memory:"\n'
    )
    (tmp_path / "dns.zone").write_text(ZONE)
    (tmp_path / "m.eml").write_bytes(MESSAGE)
    return tmp_path


def explained(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert OK == cli.main(["explain", "--config", "g.toml", "--dns", "dns.zone", *arguments])
    return capsys.readouterr().out


def with_key(folder: Path) -> None:
    openssl = require_program("openssl", "openssl")
    subprocess.run([openssl, "genrsa", "-out", folder / "key.pem", "2048"], check=True, capture_output=True)
    (folder / "key.pem").chmod(0o600)
    (folder / "KeyTable").write_text("k example.com:sel:./key.pem\n")
    with (folder / "g.toml").open("a") as file:
        file.write('[signing]\nkey_table = "KeyTable"\nsigning_table = ["example.com k"]\n')


def test_explain_tells_each_step_and_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    out = explained(capsys, *SESSION, "--to", "b@example.org")
    assert out.startswith(
        "192.0.2.9 (mail.example.com), HELO mail.example.com, from <a@example.com>, to <b@example.org>."
    )
    assert "  reject_unknown_sender_domain: has no objection\n      MX example.com: 10 mail.example.com\n" in out
    assert "  dnsbl: refuses with 554 5.7.1" in out
    assert "Verdict: refused for good (dnsbl.listed)." in out
    assert out.splitlines()[-1].startswith("Postfix is answered: action=554 5.7.1 Service unavailable; Client host")


def test_explain_looks_the_client_up_as_postfix_does_unless_it_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "192.0.2.9 (mail.example.com)." in explained(capsys, "--client", "192.0.2.9")
    assert "192.0.2.9 (other.example)." in explained(capsys, "--client", "192.0.2.9,other.example")
    assert "192.0.2.7 (unknown)." in explained(capsys, "--client", "192.0.2.7")


def test_explain_leaves_out_what_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert "reject_non_fqdn_sender" not in explained(capsys, "--client", "192.0.2.9", "--helo", "x.example")


def test_explain_answers_programs_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(explained(capsys, *SESSION, "--to", "b@example.org", "--json"))
    assert ("reject", ["dnsbl.listed"]) == (told["outcome"], told["reasons"])
    assert told["answer"].startswith("action=554 5.7.1 ")


def test_explain_changes_no_state(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "g.toml").write_text(f'[store]\nurl = "sqlite:{folder}/state/state.db"')
    explained(capsys, *SESSION, "--to", "b@example.org")
    assert not (folder / "state").exists()


def test_explain_with_a_message_tells_what_the_milter_does(capsys: pytest.CaptureFixture[str]) -> None:
    out = explained(capsys, *SESSION, "--to", "b@example.org", "--message", "m.eml")
    assert "  SPF    pass      mailfrom example.com" in out
    assert "  DMARC  pass      example.com; published policy reject" in out
    assert "The milter would add: Authentication-Results: mx.example.org; iprev=pass" in out


@pytest.mark.integration("openssl")
def test_explain_with_our_own_message_tells_why_it_is_signed_or_not(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = ["--client", "127.0.0.1", "--helo", "x", "--from", "a@example.com", "--message", "m.eml"]
    assert "signing table: no line for a@example.com" in explained(capsys, *session)
    with_key(folder)
    assert "The milter would add: DKIM-Signature: v=1; a=rsa-sha256; " in explained(capsys, *session)


def test_verify_reports_and_shows_the_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert OK == cli.main(["--config", "g.toml", "verify", "m.eml", *SESSION, "--dns", "dns.zone"])
    out = capsys.readouterr().out
    assert out.startswith("iprev  pass      192.0.2.9; mail.example.com")
    assert "Authentication-Results: mx.example.org;\n    iprev=pass" in out


def test_verify_shows_what_the_dns_said_to_each_method(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["--config", "g.toml", "verify", "m.eml", *SESSION, "--dns", "dns.zone", "--json"])
    records = json.loads(capsys.readouterr().out)["records"]
    assert ["iprev", "spf", "helo_spf", "dkim", "dmarc", "arc"] == list(records)
    assert records["spf"][0]["what"].startswith("TXT ")


@pytest.mark.parametrize(
    ("options", "answer", "adds"),
    [
        ('dmarc = "reject"', "refuse the message: 550 5.7.1", "If it let the message pass, it would add:"),
        ('dmarc = "quarantine"', "hold the message: ", "The milter would add:"),
        ('dmarc = "observe"', "", "The milter would add:"),
        ('dmarc = "reject"\noverrides = { "example.com" = "none" }', "", "The milter would add:"),
    ],
)
def test_verify_tells_the_answer_as_explain_does(
    folder: Path, capsys: pytest.CaptureFixture[str], options: str, answer: str, adds: str
) -> None:
    with (folder / "g.toml").open("a") as file:
        file.write(f'[verify]\nmalformed_from = "accept"\n{options}\n')
    forged = ["--client", "192.0.2.66", "--helo", "x.example", "--from", "a@example.com"]

    def said(*arguments: str) -> str:
        assert OK == cli.main(["--config", "g.toml", *arguments, *forged, "--dns", "dns.zone"])
        return capsys.readouterr().out

    verified = said("verify", "m.eml").splitlines()
    told = [line for line in verified if "The milter would " in line and "add:" not in line]
    explaining = said("explain", "--message", "m.eml").splitlines()
    assert (bool(answer), True) == (bool(told), set(told) <= {*explaining})
    assert answer in "".join(told)
    assert adds in verified
    as_json = json.loads(said("verify", "m.eml", "--json"))
    assert ("refuse" in answer, "hold" in answer) == (bool(as_json["reply"]), bool(as_json["quarantine"]))


def test_verify_takes_the_sender_from_return_path(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "m.eml").write_bytes(b"Return-Path: <a@example.com>\n" + MESSAGE)
    arguments = ["verify", "m.eml", "--json", "--client", "192.0.2.9", "--config", "g.toml", "--dns", "dns.zone"]
    assert OK == cli.main(arguments)
    assert "pass" == json.loads(capsys.readouterr().out)["spf"]["result"]


@pytest.mark.integration("openssl")
def test_what_sign_writes_verifies(folder: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    with_key(folder)
    assert OK == cli.main(["--config", "g.toml", "sign", "m.eml"])
    signed, why = capfdbinary.readouterr()
    assert signed.endswith(MESSAGE)
    assert why.startswith(b"sign.ok; signing: the daemon is ORIGINATING")
    public = subprocess.run(["openssl", "rsa", "-in", "key.pem", "-pubout"], check=True, capture_output=True).stdout
    record = b"".join(public.splitlines()[1:-1]).decode()
    (folder / "dns.zone").write_text(
        f'{ZONE}sel._domainkey.example.com. TXT "v=DKIM1; p={record[:200]}" "{record[200:]}"\n'
    )
    (folder / "signed.eml").write_bytes(signed)
    cli.main(["--config", "g.toml", "verify", "signed.eml", "--dns", "dns.zone"])
    assert b"DKIM   pass      d=example.com s=sel; rsa-sha256, 2048 bits" in capfdbinary.readouterr().out


def test_sign_says_why_it_does_not(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert OK == cli.main(["--config", "g.toml", "sign", "m.eml"])
    signed, why = capfdbinary.readouterr()
    assert MESSAGE == signed
    assert b"sign.no_match; signing: the daemon is ORIGINATING; signing table: no line for a@example.com\n" == why


def test_check_config_says_what_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    assert OK == cli.main(["check-config", "--config", "g.toml"])
    assert "g.toml is fine: 15 checks; 0 keys; " in capsys.readouterr().out


def test_check_config_prints_every_mistake_of_file_and_tables_at_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "g.toml").write_text('polcy = 1\n[policy]\nworkers = 0\nrestrictions = "check_client_access hash:access"')
    (folder / "access").write_text("192.0.2.1 NONSENSE\n")
    assert CONFIGURATION == cli.main(["check-config", "--config", "g.toml"])
    places = [line.partition(": ")[0] for line in capsys.readouterr().out.splitlines()]
    assert [f"{folder}/access:1", "g.toml:1", "g.toml:3"] == sorted(places)


def test_check_config_answers_programs_in_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "g.toml").write_text("[polcy]")
    assert CONFIGURATION == cli.main(["check-config", "--config", "g.toml", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (False, [1]) == (told["ok"], [problem["line"] for problem in told["problems"]])


@pytest.mark.integration("openssl")
def test_a_broken_key_is_found_by_check_config(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_key(folder)
    (folder / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    assert FINDING == cli.main(["check-config", "--config", "g.toml"])
    out = capsys.readouterr().out
    assert "key.pem: trouble: this is not a valid private key" in out
    assert "; mail that it should sign waits (signing.without_key)\n" in out
    assert "g.toml starts; see above what does not work: 15 checks; 1 keys; " in out


@pytest.mark.integration("openssl")
def test_check_config_tells_what_keeps_it_from_starting_from_what_holds_mail(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_key(folder)
    (folder / "key.pem").unlink()
    for what_else, status, starts in (("", FINDING, True), ("\nmultiple_signatures = 5\n", CONFIGURATION, False)):
        with (folder / "g.toml").open("a") as file:
            file.write(what_else)
        assert status == cli.main(["check-config", "--config", "g.toml", "--json"])
        told = json.loads(capsys.readouterr().out)
        assert (False, starts) == (told["ok"], told["starts"])
        assert [True] == [one["trouble"] for one in told["problems"] if "private key" in one["what"]]


def test_of_several_tables_that_are_missing_all_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "g.toml").write_text(
        'store.url = "memory:"\n[policy]\nrestrictions = "access, greylist, check_client_access hash:t7"\n'
        '[checks.access]\nclient = ["hash:t1", "cidr:t2"]\nsender = "hash:t3"\nrecipient = ["pcre:t4"]\n'
        '[checks.greylist]\nallow_clients = ["hash:t5"]\nallow_recipients = ["hash:t6"]\n'
    )
    assert CONFIGURATION == cli.main(["check-config", "--config", "g.toml"])
    out = capsys.readouterr().out
    assert [f"t{number}" for number in range(1, 8)] == sorted(re.findall(r"cannot read \S+/(t\d): No such file", out))


def test_a_postfix_that_is_not_there_is_a_wrong_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert USAGE == cli.main(["--postfix", str(folder), "check-config", "--config", "g.toml"])
    assert f"gatekeeper: there is no main.cf in {folder}\n" == capsys.readouterr().err


@pytest.mark.skipif(postconf._postconf() is None, reason="there is no postconf")
def test_the_postfix_to_go_by_can_be_named(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MAIL_CONFIG", raising=False)
    for name in ("in", "out"):
        (folder / name).mkdir()
        (folder / name / "main.cf").write_text(f"compatibility_level = 3.6\nmynetworks = 192.0.2.{len(name)}/32\n")
    for name in ("in", "out"):
        cli.main(["check-config", "--postfix", name, "--config", "g.toml"])
        assert f"only in Postfix: 192.0.2.{len(name)}/32" in capsys.readouterr().out
    assert "MAIL_CONFIG" not in os.environ


def test_replay_plays_the_recorded_sessions(capsys: pytest.CaptureFixture[str]) -> None:
    assert OK == cli.main(["replay", str(ROOT / "tests" / "smtp_fixtures" / "bad-helo")])
    assert "1 of 1 case as expected" == capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("command", [["check-config"], ["explain"], ["run"], ["sign", "m.eml"]])
def test_a_configuration_that_is_not_there_is_a_sentence(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert CONFIGURATION == cli.main(["--config", "nothing.toml", *command])
    told = capsys.readouterr()
    assert "nothing.toml: cannot be read: No such file or directory\n" == told.out + told.err


def test_the_configuration_may_be_named_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GATEKEEPER_CONFIG", "g.toml")
    assert OK == cli.main(["check-config"])
    assert "g.toml is fine" in capsys.readouterr().out


def test_without_a_configuration_the_defaults_hold_and_that_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gatekeeper.config.config_file.DEFAULT_PATH", folder / "no.toml")
    assert OK == cli.main(["explain", "--dns", "dns.zone", "--helo", "localhost"])
    told = capsys.readouterr()
    assert f"there is no {folder}/no.toml: using the defaults\n" == told.err
    assert "504 5.5.2" in told.out


@pytest.mark.parametrize(
    "arguments",
    ["", "nonsense", "explain --client no-address", "verify", "verify missing.eml", "explain --dns missing.zone"],
)
def test_a_wrong_command_line_is_status_2(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments.split())
    assert USAGE == ended.value.code
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.integration("gatekeeper")
def test_a_reader_that_has_gone_leaves_no_traceback() -> None:
    command = [sys.executable, "-m", "gatekeeper", "explain", "--config", "g.toml", "--dns", "dns.zone", *SESSION]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"" == process.stderr.read()
    assert 0 == process.returncode


def hear_ctrl_c() -> None:
    """A shell that starts the tests in the background has them ignore Ctrl-C, and so all that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.integration("gatekeeper")
def test_ctrl_c_leaves_no_traceback() -> None:
    """A name server that never answers keeps the command busy until it is interrupted."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.settimeout(30)
        port = deaf.getsockname()[1]
        Path("g.toml").write_text(f'[store]\nurl = "memory:"\n[dns]\nnameservers = "127.0.0.1:{port}"\ntimeout = 60')
        command = [sys.executable, "-m", "gatekeeper", "explain", "--config", "g.toml", "--client", "192.0.2.1"]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdout=pipe, stderr=pipe, preexec_fn=hear_ctrl_c) as process:
            deaf.recv(512)
            process.send_signal(signal.SIGINT)
            assert (b"", b"") == process.communicate(timeout=30)
        assert 130 == process.returncode


def test_edits_are_applied_as_postfix_applies_them() -> None:
    mail = Mail([Header(b"A", b" 1"), Header(b"X", b" old"), Header(b"x", b" kept")], b"body\r\n")
    edits = Edits(removals=(Remove("X", 1),), insertions=(Insert("B", " 2"), Insert("C", " 3\n\tfold")))
    assert b"C: 3\r\n\tfold\r\nB: 2\r\nA: 1\r\nx: kept\r\n\r\nbody\r\n" == mail.edited(edits)


@given(
    st.binary(max_size=400)
    | st.from_regex(rb"(From|Return-Path|DKIM-Signature|X): [ -~]{0,40}\r?\n\r?\n?", fullmatch=True)
)
def test_any_file_is_a_message(raw: bytes) -> None:
    mail = Mail.read(raw)
    assert mail.edited(Edits()).endswith(mail.body)
    assert (mail.return_path() or "").find("\n") == -1
