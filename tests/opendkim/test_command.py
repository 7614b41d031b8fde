# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatekeeper opendkim` and `import-opendkim` as a postmaster meets them."""

import grp
import io
import os
import pwd
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.app.plan import prepare
from gatekeeper.cli import main
from gatekeeper.config import config_file
from gatekeeper.core.problem import ConfigError
from gatekeeper.daemon import listening_sockets
from gatekeeper.opendkim import query, toml
from gatekeeper.opendkim.deviations import DEVIATIONS
from gatekeeper.opendkim.mapping import load
from gatekeeper.opendkim.options import OPTIONS, Fate
from tests.lab.ports import free_port
from tests.support.milter_client import MilterClient
from tests.support.needs import ROOT, require_program
from tests.support.opendkim_cases import CASES, VERIFYING
from tests.support.opendkim_world import serves
from tests.support.postconf import no_postfix
from tests.support.service import need_milter, until
from tests.support.signing_world import rsa_pem, write_key

ME = pwd.getpwuid(os.geteuid()).pw_name
MY_GROUP = grp.getgrgid(os.getegid()).gr_name
SAMPLES = sorted((ROOT / "tests" / "opendkim_conf").glob("*.conf"))
MAIL = b"From: joe@example.com\r\nTo: ann@example.net\r\nSubject: Hello\r\n\r\nHello\r\n"


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="gatekeeper-") as name:
        made = Path(name)
        made.chmod(0o755)
        write_key(made / "mail.private")
        (made / "KeyTable").write_text(f"k example.com:mail:{made}/mail.private\n")
        (made / "SigningTable").write_text("*@example.com k\n")
        (made / "SigningTable.plain").write_text("example.com k\n")
        (made / "TrustedHosts").write_text("127.0.0.1\nlocalhost\n*.example.com\n")
        (made / "more.conf").write_text("ClockDrift 300\nSyslog yes\n")
        (made / "message.eml").write_bytes(MAIL)
        yield made


def written(folder: Path, text: str) -> Path:
    path = folder / "opendkim.conf"
    path.write_text(text.replace("{f}", str(folder)).replace("{user}", ME).replace("{group}", MY_GROUP))
    return path


def started(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What becomes of a process of its own."""
    command = [sys.executable, "-m", "gatekeeper", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """What a command says, called in this process: a new one costs a second."""
    out, err = io.StringIO(), io.StringIO()
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        try:
            status: object = main(arguments)
        except SystemExit as end:
            status = end.code
    assert isinstance(status, int)
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


ONE = "Domain example.com\nSelector mail\nKeyFile {f}/mail.private\nSocket local:{f}/sock\nRequireSafeKeys no\n"


# Real configurations


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_configurations_as_they_are_found_are_fine(folder: Path, sample: Path) -> None:
    path = written(folder, sample.read_text())
    done = run("opendkim", "-n", "-x", str(path))
    assert [] == [line for line in done.stderr.splitlines() if "warning:" not in line and "OPENS:" not in line]
    assert 0 == done.returncode


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
@pytest.mark.integration("opendkim")
def test_opendkim_takes_them_too(folder: Path, sample: Path) -> None:
    path = written(folder, sample.read_text())
    command = [require_program("opendkim", "opendkim"), "-n", "-x", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    # opendkim finds keys below /tmp unsafe
    assert "is not secure" in done.stderr or "can be read or written" in done.stderr or 0 == done.returncode


def test_what_is_set_comes_out_in_our_words(folder: Path) -> None:
    relay = load(written(folder, SAMPLES[0].with_name("debian.conf").read_text()), ask=no_postfix)
    built = relay.config
    assert (f"unix:{folder}/opendkim.sock", 0o770) == (str(built.milter.listen[0]), built.milter.socket_mode)
    assert ("relaxed", "simple") == built.signing.canonicalization
    assert ("From",) == built.signing.oversign_headers
    assert ("csl:example.com", "2020") == (built.signing.domains, built.signing.selector)
    assert ("info", "mail", "opendkim") == (built.log.level, built.log.syslog, built.log.syslog_name)
    assert (folder / "opendkim.pid", True) == (relay.pid_file, relay.background)


@pytest.mark.parametrize(
    ("text", "level", "syslog"),
    [
        ("", "error", ""),
        ("LogWhy yes\n", "debug", ""),
        ("Syslog no\nLogWhy yes\n", "debug", ""),
        ("Syslog no\nSyslogSuccess yes\nLogWhy no\n", "info", ""),
        ("LogResults yes\n", "info", ""),
        ("Syslog yes\n", "warning", "mail"),
        ("Syslog yes\nLogWhy no\n", "warning", "mail"),
        ("Syslog yes\nSyslogSuccess yes\n", "info", "mail"),
        ("Syslog yes\nLogWhy yes\n", "debug", "mail"),
        ("Syslog yes\nSyslogSuccess yes\nLogWhy yes\n", "debug", "mail"),
    ],
)
def test_what_is_asked_for_is_logged_with_syslog_and_without(folder: Path, text: str, level: str, syslog: str) -> None:
    log = load(written(folder, ONE + text), ask=no_postfix).config.log
    assert (level, syslog) == (log.level, log.syslog)


@pytest.mark.parametrize(("options", "told"), [((), False), (("-W",), True)])
@pytest.mark.integration("gatekeeper")
def test_in_the_foreground_each_condition_is_told_on_standard_error(
    folder: Path, options: tuple[str, ...], told: bool
) -> None:
    need_milter()
    command = [sys.executable, "-m", "gatekeeper", "opendkim", "-f", *options, "-x", str(written(folder, ONE))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            until(lambda: serves(folder / "sock"), "it serves")
            assert signs(folder / "sock")
        finally:
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=30)
    assert told is ("reasons=sign.ok" in said)
    assert told is ("sign: key" in said) is (": sign: signing: the client is internal by 127.0.0.1" in said)


# Mistakes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mode x", "Mode: 'x' is not a valid mode; allowed: s (sign), v (verify), sv"),
        ("Selector x", "Selector: it needs a KeyFile"),
        ("Socket 8891", "Socket: '8891' is a path to OpenDKIM; for a port write inet:8891@localhost"),
        ("PeerList {f}/gone", "PeerList: cannot read the table {f}/gone: No such file or directory; fix the path"),
        ("SigningTable {f}/SigningTable", "SigningTable: it names keys in a KeyTable, and there is none"),
        ("KeyTable {f}/KeyTable", "KeyTable: nothing says who signs with these keys; write a SigningTable too"),
        ("On-BadSignature maybe", ("On-BadSignature: 'maybe' is not a valid action; allowed: accept (a), discard (d), "
         "quarantine (q), reject (r), tempfail (t)")),
        ("Canonicalization strict", ("Canonicalization: 'strict' is not a canonicalization; "
         'allowed: HEADER/BODY, each "relaxed" or "simple"')),
        ("Socket inet:many@localhost", ("Socket: 'inet:many@localhost': 'many' is not a port; allowed: 0 to 65535, in "
         "inet:HOST:PORT, unix:/PATH, or as OpenDKIM and Postfix write it: inet:PORT@HOST, local:/PATH, HOST:PORT")),
        ("FinalPolicyScript /x.lua", ("FinalPolicyScript: not supported: there is no Lua; "
         "look for an option that does what the script does")),
        ("ChangeRootDirectory /x", ("ChangeRootDirectory: not supported: remove it and give Socket its full path: "
         "workers have no privileges and read no files")),
        ("SyslogFacility post\nSyslog yes", "SyslogFacility: 'post' is not a syslog facility; allowed: auth, "),
        ("Nameservers ns.example.com", "Nameservers: 'ns.example.com' is not a name server: "),
        ("AuthservID a b", "AuthservID: 'a b' is not a host name; allowed: "),
    ],
)  # fmt: skip
def test_a_mistake_is_said_of_opendkim_conf(folder: Path, text: str, expected: str) -> None:
    path = written(folder, f"\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        prepare(load(path, ask=no_postfix, need_socket=False).config)
    said = f"{path}:2: {expected.replace('{f}', str(folder))}"
    assert [said] == [str(problem)[: len(said)] for problem in caught.value.problems]


ONE_KEY = "KeyFile {f}/mail.private\nSelector s\n"


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        (
            "Domain exa_mple..com",
            3,
            "Domain: 'exa_mple..com' is not a domain; allowed: example.com, several with commas",
        ),
        ("Domain example.com example.org", 3, "Domain: 'example.com example.org' is not a domain; allowed: "),
        ('Domain "example.com"', 3, "Domain: '\"example.com\"' is not a domain; allowed: "),
        ("Domain joe@example.com", 3, "Domain: 'joe@example.com' is not a domain; allowed: "),
        ("Domain .example.com", 3, "Domain: '.example.com' is not a domain; allowed: "),
        ("Selector a b\nDomain example.com", 3, "Selector: 'a b' is not a valid selector; allowed: letters, digits"),
    ],
)
def test_a_mistake_about_one_key_is_said_at_its_own_line(folder: Path, text: str, line: int, expected: str) -> None:
    path = written(folder, f"{ONE_KEY}{text}\n")
    with pytest.raises(ConfigError) as caught:
        prepare(load(path, ask=no_postfix, need_socket=False).config)
    (problem,) = [problem for problem in caught.value.problems if not problem.warning]
    assert f"{path}:{line}: {expected}" == str(problem)[: len(f"{path}:{line}: {expected}")]


def test_a_mistake_in_a_file_of_domains_is_said_at_its_line_there(folder: Path) -> None:
    (folder / "domains").write_text("example.com # ours\nexample.net, example.org\n")
    path = written(folder, f"{ONE_KEY}Domain file:{{f}}/domains\n")
    with pytest.raises(ConfigError) as caught:
        prepare(load(path, ask=no_postfix, need_socket=False).config)
    (said,) = map(str, caught.value.problems)
    assert said.startswith(f"{folder}/domains:2: 'example.net, example.org' is not a domain; allowed: ")


@pytest.mark.parametrize("setting", ['SignHeaders "From,Subject"', "OmitHeaders 'Bcc'", 'AuthservID "mx.example.com"'])
def test_quotes_around_a_value_are_said_to_be_part_of_it(folder: Path, setting: str) -> None:
    done = run("opendkim", "-n", "-x", str(written(folder, f"{ONE}{setting}\n")))
    name = setting.partition(" ")[0]
    said = f"opendkim.conf:6: warning: {name}: the quotes are part of the value, as in OpenDKIM, and what they touch is"
    assert 1 == done.stderr.count(said), done.stderr


def test_the_report_has_the_warnings_about_the_file_too(folder: Path) -> None:
    done = run("import-opendkim", str(written(folder, ONE + 'SignHeaders "From,Subject"\nSendReports yes\n')))
    assert 1 == done.stderr.count("opendkim.conf:6: warning: SignHeaders: the quotes are part of the value")
    assert 0 == done.stderr.count("opendkim.conf:7: warning: ")


@pytest.mark.parametrize("command", ["-n", "import"])
def test_a_list_of_hosts_that_is_open_to_the_world_is_said_to_be(folder: Path, command: str) -> None:
    (folder / "TrustedHosts").write_text("127.0.0.1\nlocalhost\n0.0.0.0/0\n*.example.com\n")
    path = str(written(folder, ONE + "InternalHosts refile:{f}/TrustedHosts\n"))
    done = run("opendkim", "-n", "-x", path) if command == "-n" else run("import-opendkim", path)
    opened = [line.strip() for line in done.stderr.splitlines() if " OPENS: " in line]
    assert ["3", "4"] == [line.split(":")[1] for line in opened]
    assert f"{folder}/TrustedHosts:3: OPENS: 0.0.0.0/0 is every host of IPv4: these hosts are internal" in opened[0]


@pytest.mark.parametrize("command", ["-n", "import"])
def test_a_list_of_hosts_that_would_open_to_the_world_here_alone_is_refused(folder: Path, command: str) -> None:
    (folder / "TrustedHosts").write_text("127.0.0.1\nlocalhost\n*\n")
    path = str(written(folder, ONE + "InternalHosts refile:{f}/TrustedHosts\n"))
    done = run("opendkim", "-n", "-x", path) if command == "-n" else run("import-opendkim", path)
    assert 78 == done.returncode
    assert (
        f"{folder}/TrustedHosts:3: * matches any name and any address, and OpenDKIM takes it as negated" in done.stderr
    )


def test_of_one_key_that_cannot_be_used_only_the_key_is_named(folder: Path) -> None:
    (folder / "mail.private").unlink()
    done = run("opendkim", "-n", "-x", str(written(folder, ONE)))
    assert (78, [f"{folder}/mail.private: cannot read the private key: No such file or directory"]) == (
        done.returncode,
        done.stderr.splitlines(),
    )


def test_a_mistake_in_a_table_ends_with_78_and_its_place(folder: Path) -> None:
    (folder / "SigningTable").write_text("*@example.com gone\n")
    path = written(folder, "KeyTable {f}/KeyTable\nSigningTable refile:{f}/SigningTable\nSocket local:{f}/s\n")
    done = run("opendkim", "-n", "-x", str(path))
    assert (78, f"{folder}/SigningTable:1:") == (done.returncode, done.stderr[: len(f"{folder}/SigningTable:1:")])


def test_without_a_socket_it_does_not_start(folder: Path) -> None:
    done = run("opendkim", "-x", str(written(folder, "Mode v\n")))
    assert 78 == done.returncode
    assert "there is no Socket" in done.stderr


def test_the_check_says_that_it_does_not_start_without_a_socket(folder: Path) -> None:
    path = str(written(folder, "Mode v\n"))
    done = run("opendkim", "-n", "-x", path)
    assert (78, True) == (done.returncode, "there is no Socket, and without one it does not start" in done.stderr)
    assert (0, "") == ((named := run("opendkim", "-n", "-x", path, "-p", f"local:{folder}/s")).returncode, named.stderr)


@pytest.mark.parametrize(
    ("socket", "said"),
    [
        ("local:{f}/none/s", "its folder is missing; make it: install -d -g "),
        ("inet:8891@192.0.2.1", "this machine does not have it"),
        ("local:{f}/mail.private", "a file that is not a socket is in the way"),
    ],
)
def test_the_check_finds_a_socket_that_cannot_be_opened(folder: Path, socket: str, said: str) -> None:
    path = written(folder, f"Mode v\n\nSocket {socket}\n")
    done = run("opendkim", "-n", "-x", str(path))
    assert (78, f"{path}:3: Socket: ") == (done.returncode, done.stderr[: len(f"{path}:3: Socket: ")])
    assert said in done.stderr


def test_the_check_does_not_mind_the_opendkim_that_is_to_be_replaced(folder: Path) -> None:
    path = written(folder, "Mode v\nSocket local:{f}/s\n")
    with socket.socket(socket.AF_UNIX) as theirs:
        theirs.bind(f"{folder}/s")
        theirs.listen()
        assert 0 == run("opendkim", "-n", "-x", str(path)).returncode


def test_a_pid_file_that_could_not_be_written_is_a_warning(folder: Path) -> None:
    path = written(folder, "Mode v\nSocket local:{f}/s\nPidFile {f}/none/opendkim.pid\n")
    done = run("opendkim", "-n", "-x", str(path))
    assert (0, True) == (done.returncode, "warning: the folder of PidFile is missing" in done.stderr)


@pytest.mark.parametrize("arguments", [["-Z"], ["-x"], ["-F", "x"], ["stray"], ["-p", ""]])
def test_a_wrong_command_line_ends_with_64(arguments: list[str]) -> None:
    assert 64 == run("opendkim", *arguments).returncode


# Questions


def test_the_command_line_counts_more_than_the_file(folder: Path) -> None:
    path = written(folder, "Mode x\n" + ONE)
    assert 0 == run("opendkim", "-n", "-x", str(path), "-b", "v").returncode


def test_it_tells_what_one_option_is(folder: Path) -> None:
    path = written(folder, ONE)
    answers = [run("opendkim", "-x", str(path), "-e", name) for name in ("selector", "Mode", "Nonsense")]
    assert [(0, "mail\n"), (78, ""), (65, "")] == [(answer.returncode, answer.stdout) for answer in answers]


def test_messages_are_tried(folder: Path) -> None:
    path, message = str(written(folder, ONE)), str(folder / "message.eml")
    signed = run("opendkim", "-x", path, "-b", "s", "-t", message, "-F", "1700000000")
    assert "The milter would add: DKIM-Signature: v=1;" in signed.stdout
    assert "t=1700000000;" in signed.stdout
    assert "would leave the message as it is" in run("opendkim", "-x", path, "-t", message).stdout
    assert 66 == run("opendkim", "-x", path, "-t", f"{folder}/gone").returncode


QUERIES = [
    ("file:{f}/KeyTable", "k/3\nk/1\nk/2\nK/1\n\ngone/0\nk/0\n"),
    ("refile:{f}/SigningTable", "joe@example.com/1\njoe@a.example.com/1\n"),
    ("csl:a=b:c,d", "a/1\na/2\nd/1\nd/2\ne/1\n"),
    ("csl:a", "no slash\n"),
    ("file:/nonexistent", "a/1\n"),
    ("{f}/KeyTable", "k/2\n"),
]


@pytest.mark.parametrize(("name", "lines"), QUERIES)
@pytest.mark.integration("opendkim")
def test_a_data_set_answers_as_opendkims(folder: Path, name: str, lines: str) -> None:
    asked = f"{name.replace('{f}', str(folder))}\n{lines}"
    command = [require_program("opendkim", "opendkim"), "-Q", "-x", "/dev/null"]
    theirs = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=30)
    ours = run("opendkim", "-Q", stdin=asked)
    assert (theirs.returncode, theirs.stdout) == (ours.returncode, ours.stdout)


@given(st.text(max_size=30))
def test_no_question_upsets_a_data_set(text: str) -> None:
    data = query.open_set("csl:a=b:c,[x=1")
    with suppress(query.BadQuery):
        assert all(isinstance(answer, str) for answer in query.answers(data, [text]))


# The service


@pytest.mark.integration("gatekeeper")
def test_it_goes_into_the_background_reloads_and_ends_as_debians_unit_wants_it(folder: Path) -> None:
    need_milter()
    path = written(folder, ONE + "Syslog no\nPidFile {f}/pid\nUMask 007\n")
    done = started("opendkim", "-x", str(path))
    assert 0 == done.returncode, done.stderr
    pid = int((folder / "pid").read_text())
    try:
        assert serves(folder / "sock")
        assert 0o770 == (folder / "sock").stat().st_mode & 0o777
        path.write_text(path.read_text().replace("example.com", "example.org"))
        os.kill(pid, signal.SIGUSR1)
        until(lambda: not signs(folder / "sock"), "the new configuration is in force")
    finally:
        os.kill(pid, signal.SIGTERM)
    until(lambda: not (folder / "pid").exists(), "the pid file is gone")


@pytest.mark.integration("gatekeeper")
def test_a_reload_over_a_mistake_is_refused_in_the_log_and_the_old_configuration_signs_on(folder: Path) -> None:
    need_milter()
    path, log = written(folder, ONE), folder / "log"
    good, place = path.read_text(), f"{path}:{ONE.count(chr(10)) + 1}: "
    command = [sys.executable, "-m", "gatekeeper", "opendkim", "-f", "-x", str(path)]
    with log.open("wb") as writes, subprocess.Popen(command, stderr=writes, cwd=ROOT) as process:
        try:
            until(lambda: serves(folder / "sock"), "it serves")
            for number, mistake in ((signal.SIGHUP, "Mood sv"), (signal.SIGUSR1, "KeyTable /gone")):
                path.write_text(f"{good}{mistake}\n")
                process.send_signal(number)
                until(lambda: place in log.read_text(), "it is in the log")
                assert signs(folder / "sock")
                log.write_text("")
        finally:
            process.send_signal(signal.SIGTERM)


def holder(where: str) -> str:
    return listening_sockets.holder(int(where) if where.isdigit() else where)


def signs(socket: Path) -> bool:
    with MilterClient(str(socket)) as client:
        client.open(client="127.0.0.1", name="localhost")
        client.envelope()
        return any(name == "DKIM-Signature" for name, _ in client.content(MAIL).fields)


@pytest.mark.integration("gatekeeper")
def test_an_error_at_the_start_reaches_whoever_waits_for_the_background(folder: Path) -> None:
    need_milter()
    (folder / "in the way").write_text("")
    done = started("opendkim", "-x", str(written(folder, "Mode v\n")), "-p", f"local:{folder}/in the way")
    assert 69 == done.returncode
    assert "a file that is not a socket is in the way" in done.stderr


@pytest.mark.parametrize("where", ["local:{f}/sock", "inet:{port}@127.0.0.1"])
@pytest.mark.integration("gatekeeper", "opendkim")
def test_who_holds_the_socket_is_named(folder: Path, where: str) -> None:
    need_milter()
    address = where.replace("{f}", str(folder)).replace("{port}", str(free_port()))
    conf = folder / "theirs.conf"
    conf.write_text(f"Mode v\nSocket {address}\n")
    with subprocess.Popen([require_program("opendkim", "opendkim"), "-f", "-x", str(conf)]) as theirs:
        try:
            until(lambda: holder(address.split("@")[0].split(":")[1]), "opendkim listens")
            done = started("opendkim", "-f", "-x", str(written(folder, f"Mode v\nSocket {address}\n")))
        finally:
            theirs.kill()
    assert 69 == done.returncode
    assert f"is taken by opendkim, pid {theirs.pid}" in done.stderr


# The import


@pytest.mark.parametrize("name", [*CASES, *VERIFYING])
def test_what_is_imported_is_the_same_configuration(folder: Path, name: str) -> None:
    case = {**VERIFYING, **CASES}[name]
    for file, text in case.files.items():
        (folder / file).write_text(text.replace("{f}", str(folder)))
    (folder / "ed.private").write_bytes(rsa_pem())
    relay = load(written(folder, f"{case.conf}Socket local:{{f}}/s\nSyslog yes\nUserID {{user}}\n"), ask=no_postfix)
    (folder / "gatekeeper.toml").write_text(toml.write(relay))
    imported = config_file.load(folder / "gatekeeper.toml", no_postfix)
    assert dict(relay.config) | {"store": None} == dict(imported) | {"store": None}


def test_the_report_goes_through_every_line(folder: Path) -> None:
    path = written(folder, ONE + "Statistics /x\nResignAll yes\nAutoRestart yes\nSendReports no\n")
    done = run("import-opendkim", str(path), "-o", f"{folder}/out.toml")
    assert 1 == done.returncode
    said = [
        line.split(": ", 2)[2].partition(":")[0] for line in done.stdout.splitlines() if line.startswith(f"{path}:")
    ]
    assert ["the same"] * 2 + ["works; it is read before root privileges are dropped", "the same", "the same"] == said[
        :5
    ]
    assert ["WITHOUT EFFECT", "NOT SUPPORTED", "nothing to do", "off, and off here too"] == said[5:]
    assert 0 == run("check-config", "--config", f"{folder}/out.toml").returncode


def test_the_report_names_the_lines_of_tables_that_mean_something_else_here(folder: Path) -> None:
    done = run("import-opendkim", str(written(folder, ONE + "InternalHosts refile:{f}/TrustedHosts\n")))
    assert f"{folder}/TrustedHosts:3: OPENS: *.example.com is every host below" in done.stderr
    assert "  host-pattern: OpenDKIM takes a line" in done.stderr


DIFFERENT = {
    "host-pattern": "InternalHosts refile:{f}/TrustedHosts\n",
    "host-bits": "PeerList 192.168.0.1/24\n",
    "replies": "On-NoSignature reject\n",
    "quarantine": "On-BadSignature quarantine\n",
    "weak": "SignatureAlgorithm rsa-sha1\n",
}
"""What of a file meets a difference."""


def told(folder: Path, text: str, *arguments: str) -> tuple[list[str], list[str]]:
    """The differences that the report explains, and those that it only names."""
    done = run("import-opendkim", str(written(folder, text)), *arguments)
    rest = done.stderr.partition("on purpose")[2] or done.stderr
    named = re.findall(r"^Different with some mail.*: (.*)$", done.stderr, re.MULTILINE)
    return re.findall(r"^  ([a-z-]+): ", rest, re.MULTILINE), [word for line in named for word in line.split(", ")]


@pytest.mark.parametrize("topic", DIFFERENT)
def test_only_the_difference_that_a_file_meets_is_explained(folder: Path, topic: str) -> None:
    ours = {"sticky-folder"} if str(folder).startswith("/tmp") else set()
    assert {topic} == {*told(folder, ONE + DIFFERENT[topic])[0]} - ours
    assert set() == {*told(folder, ONE)[0]} - ours


def test_a_difference_by_mail_is_named_to_whom_it_concerns(folder: Path) -> None:
    signing, verifying = (set(told(folder, ONE + f"Mode {mode}\n")[1]) for mode in "sv")
    assert {"several-from", "long-lines", "long-header"} <= signing
    assert {"detail", "malformed", "long-header"} <= verifying
    assert not signing & {"detail", "malformed"}
    assert not verifying & {"several-from", "long-lines"}
    assert "long-header" not in told(folder, ONE + "MaximumHeaders 1000\n")[1]


def test_every_difference_is_explained_if_all_are_asked_for(folder: Path) -> None:
    assert [deviation.topic for deviation in DEVIATIONS] == told(folder, ONE, "--all")[0]


# The documents

_WORDS = {
    Fate.WORKS: "works",
    Fate.NEEDLESS: "accepted, nothing to do",
    Fate.IGNORED: "accepted with a warning, without effect",
    Fate.REFUSED: "an error",
}


def test_the_documents_tell_every_option_and_every_deviation() -> None:
    told = (ROOT / "docs" / "opendkim.md").read_text()
    rows = [
        f"| {one.name} | {_WORDS[one.fate]}{f': {one.comment}' if one.comment else ''} |" for one in OPTIONS.values()
    ]
    assert [] == [row for row in rows if row not in told]
    flat = " ".join(told.split())
    assert [] == [one.topic for one in DEVIATIONS if " ".join(f"**{one.topic}**: {one}".split()) not in flat]
