# SPDX-License-Identifier: GPL-3.0-or-later
"""Beside Debian's opendkim, on the same messages and tables.

As a milter it verifies what we sign, and decides whose mail is to be signed. In its test mode (`opendkim -t`, which
eats the space behind a header's colon and takes every client for internal) it signs with the same tables, so that
who signs and what is signed can be compared.
"""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from gatekeeper.core.message import Header, parse
from gatekeeper.core.request import Client, Request, Stage
from gatekeeper.signing import data_set
from gatekeeper.signing.host_list import HostList
from gatekeeper.signing.key_table import KeyTable
from gatekeeper.signing.policy import SigningChoice, SigningPolicy
from gatekeeper.signing.signer import OPENDKIM_HEADERS, Signer, SigningIdentity, SignOptions
from gatekeeper.signing.signing_table import SigningTable
from tests.support.milter_client import MilterClient, Outcome
from tests.support.needs import require_program
from tests.support.opendkim_world import serves
from tests.support.service import until
from tests.support.signed_messages import FORMS, MESSAGES, identity, signed
from tests.support.signing_world import ed25519, rsa, write_key

pytestmark = pytest.mark.integration("opendkim")

NOW = 1_700_000_000


@contextmanager
def milter(folder: Path, config: str) -> Iterator[str]:
    """A running opendkim; gives the path of its socket."""
    path = folder / "socket"
    (folder / "opendkim.conf").write_text(f"{config}\nSocket local:{path}\nBackground no\nUMask 0\n")
    command = [require_program("opendkim", "opendkim"), "-x", str(folder / "opendkim.conf"), "-f"]
    daemon = subprocess.Popen(command)
    try:
        until(lambda: serves(path) or daemon.poll() is not None, "opendkim serves")
        assert daemon.poll() is None, "opendkim does not start"
        yield str(path)
    finally:
        daemon.kill()
        daemon.wait()


def milter_says(socket: str, message: bytes, *, client: str = "192.0.2.1", name: str = "a.example.net") -> Outcome:
    with MilterClient(socket) as connection:
        connection.open(client=client, name=name)
        connection.envelope()
        return connection.content(message)


# It verifies what we sign


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("verifier")
    records = f"mail._domainkey.example.com {rsa().record()}\ned._domainkey.example.com {ed25519().record()}\n"
    (folder / "keys").write_text(records)
    with milter(folder, f"Mode v\nTestPublicKeys {folder}/keys\n") as socket:
        yield socket


# Under relaxed, opendkim says nothing of a message without the final line end (RFC 6376 section 3.4.4); SMTP cannot
# send such a body, and dkimpy agrees with us.
FORMS_OF_MESSAGES = [
    pytest.param(name, options, id=f"{name}-{options.canonicalization}")
    for name in MESSAGES
    for options in FORMS
    if (name, options.body_canonicalization) != ("no final line end", "relaxed")
]


@pytest.mark.parametrize(("name", "options"), FORMS_OF_MESSAGES)
def test_opendkim_verifies_what_we_sign(verifier: str, name: str, options: SignOptions) -> None:
    for key in (identity(rsa()), SigningIdentity("example.com", "ed", ed25519(), "@lists.example.com")):
        (result,) = milter_says(verifier, signed(MESSAGES[name], options, [key])).fields
        assert f"header.s={key.selector} " in result[1]
        assert "dkim=pass" in result[1]


def test_a_last_line_without_a_line_end_is_the_deviation_that_is_wanted(verifier: str) -> None:
    relaxed = signed(MESSAGES["no final line end"], SignOptions(body_canonicalization="relaxed"))
    assert [] == milter_says(verifier, relaxed).fields
    assert "dkim=pass" in milter_says(verifier, relaxed + b"\r\n").fields[0][1]


def test_opendkim_does_not_verify_what_was_changed(verifier: str) -> None:
    (result,) = milter_says(verifier, signed(MESSAGES["plain"]).replace(b"\r\nHello\r\n", b"\r\nHallo\r\n")).fields
    assert "dkim=fail" in result[1]


# It signs with the same tables


class Relay:
    """One set of tables, for opendkim and for us."""

    def __init__(self, folder: Path, signing: str, keys: str, *, prefix: str = "refile:", options: str = "") -> None:
        self.folder = folder
        write_key(folder / "mail.private")
        (folder / "KeyTable").write_text(keys.replace("KEY", str(folder / "mail.private")))
        (folder / "SigningTable").write_text(signing)
        self.signing = f"{prefix}{folder / 'SigningTable'}"
        self.options = options

    def config(self) -> str:
        return (
            f"KeyTable file:{self.folder}/KeyTable\nSigningTable {self.signing}\n"
            f"RequireSafeKeys no\nCanonicalization relaxed/simple\nOversignHeaders From\n{self.options}\n"
        )

    def opendkim(self, message: bytes) -> list[tuple[str, ...]] | str:
        """The signatures that opendkim makes, or `tempfail`."""
        (self.folder / "opendkim.conf").write_text(self.config())
        (self.folder / "message.eml").write_bytes(message.replace(b"\r\n", b"\n"))
        command = [require_program("opendkim", "opendkim"), "-b", "s", "-vvvv"]
        command += ["-x", str(self.folder / "opendkim.conf"), "-t", str(self.folder / "message.eml")]
        run = subprocess.run(command, capture_output=True, timeout=30, check=False)
        said = (run.stdout + run.stderr).decode()
        if "SMFIS_TEMPFAIL" in said:
            return "tempfail"
        return [tags(value) for value in re.findall(r"hname='DKIM-Signature' hvalue='(.*?)'", said, re.DOTALL)]

    def policy(self, hosts: str = "127.0.0.1", *, multiple: bool = False) -> SigningPolicy:
        keys, _ = KeyTable.read(f"file:{self.folder}/KeyTable", base=self.folder)
        table, _ = SigningTable.read(self.signing, keys)
        internal, _ = HostList.read(hosts)
        return SigningPolicy(signing_table=table, key_table=keys, internal_hosts=internal, multiple=multiple)

    def gatekeeper(self, message: bytes, *, multiple: bool = False) -> list[tuple[str, ...]] | str:
        headers, body = parse(message)
        choice = choose(self.policy(multiple=multiple), headers)
        if choice.defer:
            return "tempfail"
        options = SignOptions(sign_headers=OPENDKIM_HEADERS, oversign_present=())
        signer = Signer(headers, choice.identities, options, NOW)
        signer.update(body)
        return [tags(field.value.decode()) for field in signer.signatures()]


def choose(
    policy: SigningPolicy, headers: list[Header], *, address: str = "127.0.0.1", name: str = "localhost"
) -> SigningChoice:
    client = Client(address=ip_address(address), name=name)
    request = Request(stage=Stage.END_OF_MESSAGE, client=client)
    return policy.choose(request, headers, policy.origin(request))


def tags(value: str) -> tuple[str, ...]:
    pairs = (tag.split("=", 1) for tag in re.sub(r"\s", "", value).split(";") if tag)
    found = dict(pairs)
    return tuple(f"{name}={found.get(name, '')}" for name in ("a", "c", "d", "s", "i", "bh", "h"))


def values(tag: str, signatures: list[tuple[str, ...]] | str) -> list[str]:
    """What each of the signatures has for a tag."""
    return [one.removeprefix(f"{tag}=") for signature in signatures for one in signature if one.startswith(f"{tag}=")]


def message(sender: str, header: str = "") -> bytes:
    return f"From: {sender}\r\nTo: ann@example.net\r\nSubject: Hello\r\n{header}\r\nHello\r\n".encode()


ONE = "k example.com:mail:KEY\n"
TWO = "k example.com:mail:KEY\nm example.com:two:KEY\n"
ANY = "k %:mail:KEY\n"
PLAIN = ["example.com k", ".example.com k", ".com k", "joe@example.com k", "joe@.com k", "joe@* k", "* k", "com k"]
PATTERNS = ["*@example.com k", "*@*.example.com k", "*example.com k", "j?oe@example.com k", "(joe|ann)@*.com k", "* k"]
SENDERS = ["joe@example.com", "ann@a.example.com", "joe@a.b.Example.COM", "Joe <joe@example.org>", "a.joe@xexample.com"]


@pytest.mark.parametrize("line", PLAIN)
def test_a_plain_table_signs_for_whom_opendkim_signs(tmp_path: Path, line: str) -> None:
    relay = Relay(tmp_path, f"{line}\n", ONE, prefix="file:")
    for sender in SENDERS:
        assert relay.opendkim(message(sender)) == relay.gatekeeper(message(sender)), sender


@pytest.mark.parametrize("line", PATTERNS)
def test_a_refile_signs_for_whom_opendkim_signs(tmp_path: Path, line: str) -> None:
    relay = Relay(tmp_path, f"{line}\n", ONE)
    for sender in SENDERS:
        assert relay.opendkim(message(sender)) == relay.gatekeeper(message(sender)), sender


@pytest.mark.parametrize(
    ("signing", "keys", "prefix"),
    [
        ("* m\n.com k\njoe@* m\n", TWO, "file:"),
        ("joe@.com m\n.example.com k\na.example.com k\n", TWO, "file:"),
        ("*@*.com m\n*@example.com k\n", TWO, "refile:"),
        (" *@example.com m\n* k\n", TWO, "refile:"),
        ("* gone\n", ONE, "refile:"),
        ("* k\n", "k example.com:mail:/nonexistent/key\n", "refile:"),
        ("* k\n", "K example.com:mail:KEY\n", "refile:"),
        ("* k\n", "k example.com:mail\n", "refile:"),
        ("* k\n", ANY, "refile:"),
        ("* %\n", "example.com example.com:mail:KEY\n", "refile:"),
        ("* k:joe@%\n", ANY, "refile:"),
        ("* k:joe@lists.%\n", ANY, "refile:"),
        ("* k:joe@%\n", ONE, "refile:"),
        ("* k:@example.com\n", ONE, "refile:"),
        ("*\tk # comment\n#* m\n", TWO, "refile:"),
    ],
)
def test_keys_signers_and_orders_come_out_as_opendkims(tmp_path: Path, signing: str, keys: str, prefix: str) -> None:
    relay = Relay(tmp_path, signing, keys, prefix=prefix)
    for sender in SENDERS[:3]:
        assert relay.opendkim(message(sender)) == relay.gatekeeper(message(sender)), sender


@pytest.mark.parametrize(("signing", "prefix"), [("*@*.com m\n* k\n", "refile:"), (".com m\njoe@.com k\n", "file:")])
def test_multiple_signatures_are_opendkims(tmp_path: Path, signing: str, prefix: str) -> None:
    relay = Relay(tmp_path, signing, TWO, prefix=prefix, options="MultipleSignatures yes")
    for sender in SENDERS[:3]:
        expected = relay.opendkim(message(sender))
        assert sorted(expected) == sorted(relay.gatekeeper(message(sender), multiple=True)), sender


def test_the_same_fields_are_signed_in_the_same_order(tmp_path: Path) -> None:
    relay = Relay(tmp_path, "* k\n", ONE)
    names = [*OPENDKIM_HEADERS[1:], "Sender", "Message-ID", "MIME-Version", "Content-Type", "Received", "to", "CC"]
    header = "".join(f"{name}: x@example.com\r\n" for name in names)
    sent = message("joe@example.com", header)
    assert relay.opendkim(sent) == relay.gatekeeper(sent)


def test_a_star_at_domain_in_a_plain_file_is_the_deviation_that_is_wanted(tmp_path: Path) -> None:
    relay = Relay(tmp_path, "*@example.com k\n", ONE, prefix="file:")
    assert [] == relay.opendkim(message("joe@example.com"))
    assert 1 == len(relay.gatekeeper(message("joe@example.com")))


UMLAUTS, A_LABELS = "bücher.example", "xn--bcher-kva.example"


@pytest.mark.parametrize("line", ["*@{} k", "*@*.{} k", "*{} k", "joe@*{} k", "(joe|ann)@{} k"])
@pytest.mark.parametrize("domain", [UMLAUTS, A_LABELS])
def test_a_domain_with_umlauts_in_a_table_signs_for_whom_opendkim_signs(tmp_path: Path, line: str, domain: str) -> None:
    relay = Relay(tmp_path, f"{line.format(domain)}\n", f"k {A_LABELS}:mail:KEY\n")
    for sender in (f"joe@{domain}", f"joe@a.{domain}"):
        assert relay.opendkim(message(sender)) == relay.gatekeeper(message(sender)), sender


@pytest.mark.parametrize(
    ("signing", "keys", "sender"),
    [
        (f"*@{UMLAUTS} k\n", f"k {A_LABELS}:mail:KEY\n", f"joe@{A_LABELS}"),
        (f"*@{A_LABELS} k\n", f"k {A_LABELS}:mail:KEY\n", f"joe@{UMLAUTS}"),
        (f"*@{UMLAUTS} k\n", f"k {A_LABELS}:mail:KEY\n", f"joe@{UMLAUTS.upper()}"),
        (f"*@{UMLAUTS}. k\n", f"k {A_LABELS}:mail:KEY\n", f"joe@{UMLAUTS}"),
        (f"*@{UMLAUTS} k\n", f"k {UMLAUTS}:mail:KEY\n", f"joe@{UMLAUTS}"),
        ("* k\n", ANY, f"joe@{UMLAUTS}"),
        ("* %\n", f"{UMLAUTS} {UMLAUTS}:mail:KEY\n", f"joe@{UMLAUTS}"),
    ],
)
def test_every_spelling_of_a_domain_signs_in_a_labels_which_is_a_deviation_that_is_wanted(
    tmp_path: Path, signing: str, keys: str, sender: str
) -> None:
    relay = Relay(tmp_path, signing, keys)
    assert [] == relay.opendkim(message(sender))
    assert [A_LABELS] == values("d", relay.gatekeeper(message(sender)))


@pytest.mark.parametrize("domain", ["Example.COM", "example.com."])
def test_d_is_in_lower_case_without_a_final_dot_which_is_a_deviation_that_is_wanted(
    tmp_path: Path, domain: str
) -> None:
    relay = Relay(tmp_path, "* k\n", f"k {domain}:mail:KEY\n")
    assert [domain] == values("d", relay.opendkim(message("joe@example.com")))
    assert ["example.com"] == values("d", relay.gatekeeper(message("joe@example.com")))


def test_a_signer_in_umlauts_is_named_in_a_labels(tmp_path: Path) -> None:
    relay = Relay(tmp_path, f"* k:news@{UMLAUTS}\n", f"k {UMLAUTS}:mail:KEY\n")
    assert [f"news@{A_LABELS}"] == values("i", relay.gatekeeper(message("joe@example.com")))


@pytest.mark.parametrize("value", ["a@example.com, b@example.org", "<a@example.com> b@example.org", "a b@example.com"])
def test_opendkim_signs_for_an_ambiguous_from_and_we_do_not(tmp_path: Path, value: str) -> None:
    relay = Relay(tmp_path, "* k\n", ONE)
    assert 1 == len(relay.opendkim(message(value)))
    assert [] == relay.gatekeeper(message(value))


# It has the same hosts for internal

CLIENTS = [
    ("192.0.2.1", "mail.example.com"),
    ("192.0.2.2", "a.mail.example.com"),
    ("198.51.100.1", "MAIL.Example.com"),
    ("198.51.100.2", "example.org"),
    ("2001:db8::1", "[2001:db8::1]"),
    ("2001:db8:1::1", "example.com"),
]


def signed_by_both(folder: Path, hosts: str) -> list[tuple[bool, bool]]:
    """For each of CLIENTS, whether opendkim signs for it, and whether we do."""
    relay = Relay(folder, "* k\n", ONE, options=f"InternalHosts {hosts}\n")
    policy = relay.policy(hosts)
    sent = message("joe@example.com").removesuffix(b"Hello\r\n")  # opendkim skips a body that it does not need
    found = []
    with milter(folder, relay.config()) as socket:
        for address, name in CLIENTS:
            theirs = milter_says(socket, sent, client=address, name=name).fields
            ours = choose(policy, parse(sent)[0], address=address, name=name)
            found.append((any(field == "DKIM-Signature" for field, _ in theirs), bool(ours.identities)))
    return found


@pytest.mark.parametrize(
    "hosts",
    [
        "192.0.2.1",
        "192.0.2.0/24,!192.0.2.1",
        "!192.0.2.0/24,192.0.2.1",
        "192.0.2.1,!192.0.2.1/32",
        "0.0.0.0/0",
        # not [192.0.2.1] alone: opendkim does not end the text that it compares, so it is luck whether it matches
        "[192.0.2.1]/32,[198.51.100.0]/24",
        "192.0.2.9,2001:db8::1",
        "192.0.2.9,2001:db8::/33,!2001:db8:1::/48",
        "mail.example.com",
        ".example.com",
        ".com,!mail.example.com",
        "!.mail.example.com,.example.com",
        "!mail.example.com,192.0.2.0/24",
        "MAIL.EXAMPLE.COM",
    ],
)
def test_the_same_hosts_are_internal(tmp_path: Path, hosts: str) -> None:
    for theirs, ours in signed_by_both(tmp_path, hosts):
        assert theirs == ours


def test_the_same_hosts_of_a_refile_are_internal_but_for_the_deviation_that_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("*.example.com\n198.51.*\n2001:db8:1::/48\n")
    wanted = (False, True)
    assert [wanted, wanted, (True, True), (True, True), (False, False), (True, True)] == signed_by_both(
        tmp_path, f"refile:{tmp_path}/hosts"
    )


@pytest.mark.parametrize(
    "hosts",
    [
        "*.com",
        "*example.com",
        "*1",
        "*:*",
        "*/24|x\n192.0.2.0/24",
        ".*",
        "*5\n192.0.2.0/24",
        "192.0.2.0/*",
        "192.0.2.*\n!192.0.2.0/24",
        "!192.0.2.1\n192.0.2.*",
        "!*.example.com\n.com",
        "(mail|a.mail).*.com",
        "0.0.0.0/0",
        "0.0.0.0/1\n128.0.0.0/1\n::/0",
    ],
)
def test_a_pattern_of_hosts_matches_whom_it_matches_in_opendkim(tmp_path: Path, hosts: str) -> None:
    (tmp_path / "hosts").write_text(f"{hosts}\n")
    for theirs, ours in signed_by_both(tmp_path, f"refile:{tmp_path}/hosts"):
        assert theirs == ours


def test_a_pattern_of_addresses_is_one_of_networks_to_opendkim_alone(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("192.0.0.*\n")
    (theirs, ours), *_ = signed_by_both(tmp_path, f"refile:{tmp_path}/hosts")  # 192.0.2.1
    assert (True, False) == (theirs, ours)


@pytest.mark.parametrize("pattern", ["*", "*.*", "|"])
def test_opendkim_takes_nobody_for_internal_where_we_refuse_a_pattern_for_anybody(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "hosts").write_text(f"192.0.2.1\n{pattern}\n")
    theirs, ours = zip(*signed_by_both(tmp_path, f"refile:{tmp_path}/hosts"), strict=True)
    assert not any(theirs)
    assert (True, *(False,) * 5) == ours  # as long as nobody reads the mistake
    _, problems = HostList.read(f"refile:{tmp_path}/hosts")
    assert [False] == [problem.warning for problem in problems]


@pytest.mark.parametrize(
    ("hosts", "wanted"),
    [
        ("[2001:db8::1]", [False, False, False, False, True, False]),
        ("[2001:db8::]/32", [False, False, False, False, True, True]),
        ("192.0.2.0/255.255.255.0", [True, True, False, False, False, False]),
        ("mail.example.com.", [True, False, True, False, False, False]),
    ],
)
def test_what_people_mean_for_hosts_is_the_deviation_that_is_wanted(
    tmp_path: Path, hosts: str, wanted: list[bool]
) -> None:
    (tmp_path / "hosts").write_text(f"{hosts}\n")
    assert [(False, ours) for ours in wanted] == signed_by_both(tmp_path, f"refile:{tmp_path}/hosts")


def test_networks_with_host_bits_are_the_deviation_that_is_wanted(tmp_path: Path) -> None:
    assert [(False, True)] * 2 == signed_by_both(tmp_path, "192.0.2.1/24")[:2]


# It matches the same patterns


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "*.x",
        "a.x",
        "a+x",
        "[a-c]x",
        "[^a]x",
        "a|x",
        "(a|b)x",
        "a?x",
        "[[:digit:]]x",
        "a{2}x",
        r"a\.x",
        "[]a]x",
        "^a$",
    ],
)
def test_a_pattern_matches_what_it_matches_in_opendkim(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "table").write_text(f"{pattern} yes\n")
    compiled = data_set.pattern(pattern, ignore_case=False)
    texts = ("a.x", "a+x", "ax", "aax", "x", "a", "b", "bx", "0x", r"a\yx", "]x", "ab.x")
    run = subprocess.run(
        [require_program("opendkim", "opendkim"), "-Q"],
        input=f"refile:{tmp_path}/table\n" + "".join(f"{text}/1\n" for text in texts),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    answers = re.findall(r"'yes'|record not found", run.stdout)
    assert [bool(compiled.search(text)) for text in texts] == [answer == "'yes'" for answer in answers]
