# SPDX-License-Identifier: GPL-3.0-or-later
"""A postmaster who follows the documents word for word meets no line that is not so.

Every command that a document shows, in a block or within a sentence, is run in the order of the page, by root, in one
bash, on a machine that is thrown away (tests/support/machine.py); what a page shows of the output has to come. Between
the commands happens what the page says in words (`MEANWHILE`). A command that is not run stands in `NOT_RUN` with the
reason, and text in blocks that is no command in `NO_COMMANDS`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.support.machine import Done, walk
from tests.support.needs import OURSELVES, ROOT

pytestmark = pytest.mark.integration("mount", "postfix", "opendkim", "opendkim-tools", "postgrey", OURSELVES)


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a page, and the lines that the page shows of its output."""

    page: str
    line: int
    text: str
    shown: list[str] = field(default_factory=list)
    inline: bool = False

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


_INLINE = re.compile(r"`((?:gatekeeper|systemctl|postfix|postconf|make|journalctl|chown|pip|pytest) [^`]*)`")


def commands(page: str) -> list[Command]:
    """The commands in the blocks of a page, in their order, and those within its sentences."""
    found: list[Command] = []
    fenced = ""
    lines = iter(enumerate((ROOT / page).read_text("utf-8").splitlines(), 1))
    console: list[str] | None = None
    for number, line in lines:
        if fence := re.match(r" *```(\w*)", line):
            fenced = "" if fenced else fence[1] or "text"
            continue
        if fenced:
            continue
        if not (
            block := re.match(r"(?: {4}| {7})(\S.*)", line) or (console is not None and re.match(r" {4}(.*)", line))
        ):
            if line.strip():
                console = None
                found += [Command(page, number, text, inline=True) for text in _INLINE.findall(line)]
            continue
        text = block[1]
        while text.endswith("\\"):
            text = text + "\n" + next(lines)[1].strip()
        if text.startswith("$ "):
            console = []
            found.append(Command(page, number, text[2:], console))
        elif console is not None:
            console.append(text.strip())
        else:
            found.append(Command(page, number, text))
    return found


def shown_file(page: str, language: str, number: int = 0) -> str:
    """The text of a fenced block."""
    return str(re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)[number])


NO_COMMANDS = {
    r"\[[a-z.]+\]|[a-z_]+ = .*": "lines of a gatekeeper.toml, read by test_docs.py",
    r"\S+ +(A|PTR|MX|TXT) +\S.*": "lines of a zone",
    r"tests/smtp_fixtures/": "a tree of files",
    r"DNS list .*": "lines of the log",
    r"\S+:\d+: (OPENS|trouble|warning): .*": "what check-config says",
    r"(listening|Put into Postfix's) .*": "what `make run` prints, compared by test_docs.py",
    r"gatekeeper \[--config FILE\] .*": "the form of every command",
}
NOT_RUN = {
    r"git clone … .*": "there is no address yet",
    r"make (run|check|test|demo|attack|lock|release).*": (
        "these install what is missing, and take long; test_setup.py and test_demo.py have what can be tried"
    ),
    r"pip install 'gatekeeper\[milter\]'": "there is no package index with gatekeeper yet",
    r"\.venv/bin/python -m pytest .*": "a test of its own",
    r"pytest -p no:gatekeeper": "a test of its own: tests/replay",
    r"postconf (-xh name|-o|smtp_line_length_limit)": "Postfix's own, named in passing",
}
_NAMED = re.compile(r"(gatekeeper|systemctl|make|postfix)( [a-z-]+){1,2}|.*(…|\b[A-Z]{3,}\b).*")
"""Within a sentence: the name or the form of a command, and no command."""


_MEANT = ("docs/greylisting.md: gatekeeper import-postgrey", "docs/greylisting.md: gatekeeper check-config")
"""What is to be done, all the same."""


def is_run(command: Command) -> bool:
    if command.inline and _NAMED.fullmatch(command.text) and f"{command.page}: {command.text}" not in _MEANT:
        return False
    return not any(re.fullmatch(form, command.text, re.DOTALL) for form in (*NO_COMMANDS, *NOT_RUN))


POSTFIX = """
cat >/etc/postfix/main.cf <<'END'
compatibility_level = 3.6
myhostname = mx.example.com
mydestination = example.com, localhost
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
maillog_file = /var/log/mail.log
END
[ ! -e /usr/share/postfix/master.cf.dist ] || cp /usr/share/postfix/master.cf.dist /etc/postfix/master.cf
postfix start
"""
SEND = """
/usr/bin/python3 - <<'END'
import smtplib
with smtplib.SMTP("127.0.0.1", 25, timeout=30) as smtp:
    mail = "From: joe@example.com\\r\\nSubject: x\\r\\n\\r\\nHello\\r\\n"
    smtp.sendmail("joe@example.com", ["root@example.com"], mail)
END
"""
OPENDKIM = """
systemctl stop opendkim
cp -p /root/main.cf /etc/postfix/main.cf
install -d -o opendkim -g opendkim -m 0750 /run/opendkim /var/spool/postfix/opendkim
adduser --quiet postfix opendkim
opendkim-genkey -d example.com -s mail -D /etc/dkimkeys && chown opendkim: /etc/dkimkeys/mail.private
echo 'mail example.com:mail:/etc/dkimkeys/mail.private' >/etc/opendkim.keys
echo '*@example.com mail' >/etc/opendkim.senders
cat >/etc/opendkim.conf <<'END'
Syslog yes
SyslogSuccess yes
Canonicalization relaxed/simple
OversignHeaders From
KeyTable /etc/opendkim.keys
SigningTable refile:/etc/opendkim.senders
UserID opendkim
UMask 007
{socket}
PidFile /run/opendkim/opendkim.pid
END
{more}
postconf -e smtpd_milters=unix:opendkim/opendkim.sock milter_default_action=tempfail
postfix reload
systemctl start opendkim
printf 'From: joe@example.com\\nTo: a@example.org\\nSubject: x\\n\\nHello\\n' >message.eml
"""
SOCKET = "local:/var/spool/postfix/opendkim/opendkim.sock"
OVERRIDE = f"""
install -d /etc/systemd/system/opendkim.service.d
printf '[Service]\\nExecStart=\\nExecStart=/usr/sbin/opendkim -p {SOCKET}\\n' \\
    >/etc/systemd/system/opendkim.service.d/override.conf
"""


def holds(program: str) -> str:
    """Fails unless Postfix's milter is `program`."""
    return f"""
/usr/bin/python3 - <<'END'
import socket, struct
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect("{SOCKET.removeprefix("local:")}")
    pid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
command = open(f"/proc/{{pid}}/cmdline").read().split("\\0")
assert any(word.endswith("/{program}") for word in command[:2]), command
END
"""


PAGES = (
    "README.md",
    "postfix-snippets/README.md",
    "docs/greylisting.md",
    "docs/cli.md",
    "docs/keys.md",
    "docs/signing.md",
)
AGAIN = """
systemctl disable --now gatekeeper
rm -rf /etc/systemd/system/opendkim.service.d
"""
TAKEN_OVER = """
cp -p /etc/postfix/main.cf /etc/postfix/master.cf /root/
for file in main.cf master.cf; do cat postfix-snippets/$file >>/etc/postfix/$file; done
"""
LOGGED = """
timeout 20 sh -c 'until journalctl -u opendkim | grep -q reasons=; do sleep 0.05; done'
"""
UP = "timeout 20 sh -c 'until [ $(grep -c ^listening /run/stand-in/gatekeeper.journal) -ge 2 ]; do sleep 0.05; done'"
MINE = """cat >mine.toml <<'END'
hostname = "mx.example.org"

[signing]
signing_tabel = "refile:SigningTable"

[policy]
restrictions = "permit_mynetworks, reject_unauth_destination, reject_non_fqdn_sendr"

[checks.greylist]
delay = "ten minutes"
END
"""
POSTGREY = """
install -d -o postgrey -g postgrey /var/lib/postgrey
postgrey --daemonize --pidfile=/run/postgrey.pid --inet=10023
/usr/bin/python3 - <<'END'
import socket
with socket.create_connection(("127.0.0.1", 10023), timeout=20) as sock:
    sock.sendall(
        b"request=smtpd_access_policy\\nprotocol_state=RCPT\\nclient_address=192.0.2.1\\nclient_name=unknown\\n"
        b"sender=a@example.net\\nrecipient=b@example.com\\ninstance=1\\n\\n"
    )
    assert b"action=" in sock.recv(1000)
END
"""
TABLES = """
cat >/etc/gatekeeper/gatekeeper.toml <<'END'
hostname = "mx.example.com"
[dns]
timeout = "1s"
[signing]
key_table = "/etc/opendkim/KeyTable"
signing_table = "refile:/etc/opendkim/SigningTable"
END
echo 'mail._domainkey.example.com example.com:mail:/etc/opendkim/keys/mail.private' >/etc/opendkim/KeyTable
echo '*@example.com mail._domainkey.example.com' >/etc/opendkim/SigningTable
printf 'From: joe@example.com\nTo: a@example.org\nSubject: x\n\nHello\n' >mail.eml
"""
MEANWHILE: dict[str, tuple[str, str]] = {
    "docs/install.md: python3 -m venv /opt/gatekeeper": ("", "cp /root/pip /opt/gatekeeper/bin/pip"),
    "docs/install.md: gatekeeper check-config": ("""grep -q '^mode = "observe"' /etc/gatekeeper/gatekeeper.toml""", ""),
    "docs/install.md: systemctl enable --now gatekeeper": (
        "cat >/etc/systemd/system/gatekeeper.service <<'END'\n" + shown_file("docs/install.md", "ini") + "END",
        UP,
    ),
    "docs/install.md: postfix check && postfix reload": (
        TAKEN_OVER,
        SEND,
    ),
    "docs/install.md: postfix reload": ("cp -p /root/main.cf /root/master.cf /etc/postfix/", ""),
    "README.md: gatekeeper --config mine.toml check-config": (MINE, ""),
    "docs/cli.md: gatekeeper backtest /var/log/mail.log* --config new.toml": (
        "cp /etc/gatekeeper/gatekeeper.toml new.toml",
        "",
    ),
    "docs/greylisting.md: gatekeeper import-postgrey": (POSTGREY, ""),
    "docs/keys.md: gatekeeper dkim genkey -d example.com -s mail -D /etc/opendkim/keys": (
        "install -d -m 0750 /etc/opendkim/keys",
        TABLES,
    ),
    "docs/opendkim.md: journalctl -u opendkim": (holds("gatekeeper") + SEND + LOGGED, ""),
    "docs/opendkim.md: gatekeeper import-opendkim /etc/opendkim.conf -o /etc/gatekeeper/gatekeeper.toml": (
        holds("opendkim"),
        "",
    ),
    "docs/opendkim.md: systemctl enable --now gatekeeper": ("", UP),
}
"""What the reader does before a command, and what is seen to after it, by page and command. Each has to succeed."""

STATUS = {
    "README.md: gatekeeper --config mine.toml check-config": 78,
    "docs/cli.md: gatekeeper why 4B1F2A0": 1,  # it is the queue id of some mail of the reader's
    "docs/keys.md: gatekeeper dkim testkey": 75,  # there is no DNS here, nor below
    "docs/keys.md: gatekeeper dkim rotate example.com": 75,
    "docs/keys.md: gatekeeper dkim rotate": 75,
    "docs/keys.md: gatekeeper dkim rotate --older 180d": 75,
    'docs/cli.md: gatekeeper allow example.com "our supplier" --if dmarc': 1,  # no list asks the table yet
    'docs/cli.md: gatekeeper deny 198.51.100.0/24 "Blocked, write to postmaster"': 1,
}
"""Of the commands that end with another status than 0, that status, as the page says."""
SAYS = {
    "docs/install.md: gatekeeper check-config": r"gatekeeper\.toml is fine: 15 checks",
    "docs/install.md: journalctl -u gatekeeper": r"from=<joe@example\.com> to=<root@example\.com>",
    'docs/opendkim.md: echo "opendkim $options"': r"^opendkim (-p local:\S+)?$",
    "docs/opendkim.md: gatekeeper opendkim -x /etc/opendkim.conf -b s -v -t - <message.eml": "sign.ok",
    "docs/opendkim.md: runuser -u opendkim -- opendkim -x /etc/opendkim.conf -b s -vv -t - <message.eml": (
        "DKIM-Signature"
    ),
    "docs/opendkim.md: journalctl -u opendkim": r"opendkim\[\d+\]: .*reasons=sign\.ok",
    "docs/signing.md: gatekeeper sign mail.eml >/dev/null": "^sign.ok",
    "docs/signing.md: gatekeeper sign --client 192.0.2.7 --from joe@example.com mail.eml >/dev/null": "^sign.external",
}
"""Where a page says in words what is seen."""


@dataclass(frozen=True, slots=True)
class Step:
    """What is run: a command of a page, or what the reader does meanwhile."""

    text: str
    command: Command | None = None


def steps(page: str, first: str = "true", until: str = "") -> Iterator[Step]:
    """The steps of a page, up to the command `until`; `first` is what is there before."""
    yield Step(f"cd {ROOT}\n{first}")
    for command in filter(is_run, commands(page)):
        if command.text == until:
            return
        before, after = MEANWHILE.get(f"{page}: {command.text}", ("", ""))
        if before:
            yield Step(before)
        yield Step(command.text, command)
        if after:
            yield Step(after)


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Step, Done]]:
    """Every step and what came of it: the pages in the order in which a postmaster needs them."""
    wanted = [
        *steps("docs/install.md", POSTFIX),
        *(step for page in PAGES for step in steps(page)),
        *steps("docs/opendkim.md", OPENDKIM.format(socket=f"Socket {SOCKET}", more="")),
        *steps("docs/opendkim.md", AGAIN + OPENDKIM.format(socket="", more=OVERRIDE), until="journalctl -u opendkim"),
        Step(holds("gatekeeper")),
    ]
    done = walk(tmp_path_factory.mktemp("walk"), [step.text for step in wanted])
    return list(zip(wanted, done, strict=True))


def test_every_command_does_what_its_page_says(followed: list[tuple[Step, Done]]) -> None:
    wrong = []
    for step, done in followed:
        name = f"{step.command.page}: {step.command.text}" if step.command else ""
        if done.status != STATUS.get(name, 0):
            wrong.append(f"{step.command or step.text}\n  status {done.status}: {done.output}")
        elif not re.search(SAYS.get(name, ""), done.output, re.MULTILINE):
            wrong.append(f"{step.command}\n  does not say {SAYS[name]}: {done.output}")
    assert not wrong, "\n".join(wrong)


def test_what_a_page_shows_is_what_is_printed(followed: list[tuple[Step, Done]]) -> None:
    shown = [(step.command, done.output) for step, done in followed if step.command and step.command.shown]
    assert 3 <= len(shown)
    for command, output in shown:
        printed = [line.strip() for line in output.splitlines()]
        assert [] == [line for line in command.shown if line not in ("", "…") and line not in printed], command


def test_every_page_is_followed() -> None:
    pages = [str(page.relative_to(ROOT)) for page in (*ROOT.glob("*.md"), *ROOT.glob("[!.]*/*.md"))]
    with_commands = {page for page in pages if any(map(is_run, commands(page)))}
    assert with_commands == {"docs/install.md", "docs/opendkim.md", *PAGES}


def test_nothing_is_left_out_that_no_page_has() -> None:
    pages = ("CONTRIBUTING.md", "docs/install.md", "docs/opendkim.md", *PAGES, *map(str, ROOT.glob("docs/*.md")))
    texts = [command.text for page in pages for command in commands(str(page))]
    forms = [*NO_COMMANDS, *NOT_RUN]
    assert [] == [form for form in forms if not any(re.fullmatch(form, text, re.DOTALL) for text in texts)]
    told = {f"{command.page}: {command.text}" for page in pages for command in commands(str(page))}
    assert set() == {*MEANWHILE, *STATUS, *SAYS} - told
