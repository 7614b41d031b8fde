# SPDX-License-Identifier: GPL-3.0-or-later
"""What [signing] names is read, and what is wrong with it is named; one key that is broken does not stop the others."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from gatekeeper.app.plan import Plan, prepare
from gatekeeper.app.signing_plan import read_keys
from gatekeeper.config import config_file
from gatekeeper.core.message import Header
from gatekeeper.core.problem import ConfigError
from gatekeeper.core.request import Request, Stage
from gatekeeper.signing.policy import DAEMON_NAME, SigningChoice
from tests.support.postconf import no_postfix
from tests.support.signing_world import ec_pem, ed25519_pem, rsa_pem, write_key

TABLES = """\
key_table = ["a example.com:a:./a.pem", "b example.org:b:./b.pem"]
signing_table = ["example.com a", "example.org b"]
"""


def plan(folder: Path, options: str, *, lenient: bool = False, old: Plan | None = None, top: str = "") -> Plan:
    """The plan of a start; with `old`, that of a reload."""
    (folder / "gatekeeper.toml").write_text(f"{top}[signing]\n{options}")
    config = config_file.load(folder / "gatekeeper.toml", no_postfix)
    if old is None:
        return prepare(config, lenient=lenient)
    return prepare(config, lenient=True, keys=read_keys(config, old=old.signing.key_table, prove=True))


def complaints(folder: Path, options: str) -> list[str]:
    with pytest.raises(ConfigError) as wrong:
        plan(folder, options)
    return [str(problem).removeprefix(f"{folder}/") for problem in wrong.value.problems]


def choose(made: Plan, sender: str) -> SigningChoice:
    request = Request(stage=Stage.END_OF_MESSAGE)
    origin = made.signing.origin(request, {DAEMON_NAME: "ORIGINATING"})
    return made.signing.choose(request, [Header(b"From", sender.encode())], origin)


def signers(made: Plan, sender: str) -> list[tuple[str, str, str]]:
    return [(who.domain, who.selector, who.signer) for who in choose(made, sender).identities]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_key(tmp_path / "a.pem")
    write_key(tmp_path / "b.pem", ed25519_pem())
    return tmp_path


def test_one_key_signs_for_domains_and_with_subdomains_by_the_domain_that_is_listed(folder: Path) -> None:
    text = 'domains = "example.com, a.example.org"\nselector = "s"\nkey_file = "a.pem"\n'
    one = plan(folder, text)
    assert [("example.com", "s", "")] == signers(one, "joe@example.com")
    assert [] == signers(one, "joe@sub.example.com")
    below = plan(folder, f"{text}subdomains = true\n")
    assert [("example.com", "s", "")] == signers(below, "joe@example.com")
    assert [("example.com", "s", "@example.com")] == signers(below, "joe@x.sub.example.com")
    assert [("a.example.org", "s", "@a.example.org")] == signers(below, "joe@b.a.example.org")
    assert [] == signers(below, "joe@example.org")


def test_one_key_may_sign_for_every_domain_in_its_own_name(folder: Path) -> None:
    one = plan(folder, 'domains = "*"\nselector = "s"\nkey_file = "a.pem"\nsubdomains = true\n')
    assert [("sub.example.net", "s", "")] == signers(one, "joe@sub.example.net")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('domains = "example.com"\nselector = "s"\n', ":2: signing.domains signs nothing without signing.key_file"),
        ('key_file = "a.pem"\n', ":2: signing.key_file signs nothing without signing.domains"),
        (TABLES + 'sign_headers = ["+X-Mine"]\n', '"*, +X-Mine"'),
        (TABLES + 'macros = ["a b", "a-b"]\n', "gatekeeper.toml:4: signing.macros: a-b is not a milter macro"),
        (TABLES + 'peers = "refile:none"\n', "none: No such file or directory; fix the path, or write the file"),
        (TABLES + 'exempt_domains = "db:exempt.db"\n', "db: tables are not supported, write their contents"),
        (TABLES + 'minimum_key_bits = 512\n', "minimum_key_bits"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place(folder: Path, text: str, said: str) -> None:
    assert said in "\n".join(complaints(folder, text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('domains = "example.com"\n', "signing.domains does nothing beside signing.key_table"),
    ],
)
def test_what_does_nothing_is_a_warning(folder: Path, text: str, said: str) -> None:
    (warning,) = plan(folder, TABLES + text).warnings
    assert (False, said) == (warning.opens, warning.what[: len(said)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("body_length = 100\n", "signing.body_length: with l= anybody can put text behind a signed message"),
        (
            "internal_hosts = ['0.0.0.0/0']\n",
            "signing.internal_hosts: 0.0.0.0/0 is every host of IPv4: these hosts are",
        ),
        (
            "peers = ['.com']\n",
            "signing.peers: .com is every host below com, a top-level domain: these hosts are peers",
        ),
        (
            "daemon_names = ['ORIGINATING', 'relay.example']\n",
            "signing.daemon_names: relay.example is what every service",
        ),
        ("daemon_names = 'refile:star'\n", "signing.daemon_names: * is what every service of Postfix is called"),
        ("macros = ['client_addr']\n", "signing.macros: {client_addr} is set for everybody, whose mail"),
        ("exempt_domains = 'refile:star'\n", "signing.exempt_domains: * is every domain: no mail is signed or judged"),
        ("safe_keys = false\n", "every user can read or write the key; fix it with: chmod go-rwx"),
        ("[verify]\ntrusted_forwarders = ['::/0']\n", "verify.trusted_forwarders: ::/0 is every host of IPv6: these"),
        ("[verify]\ntrusted_lists = ['com']\n", "verify.trusted_lists: com is every domain below com: they are all"),
        ("[verify]\ntrusted_sealers = ['org.']\n", "verify.trusted_sealers: org is every domain below org: they are"),
        ("[verify]\noverrides = {'.com' = 'none'}\n", "verify.overrides: .com is every domain below com: forged mail"),
    ],
)
def test_what_opens_something_is_a_warning_that_says_so(folder: Path, text: str, said: str) -> None:
    (folder / "star").write_text("*\n")
    if "safe_keys" in text:
        (folder / "a.pem").chmod(0o644)
    made = plan(folder, TABLES + text, top='hostname = "relay.example"\n')
    (warning,) = made.warnings
    assert (True, said) == (warning.opens, warning.what[: len(said)])
    assert ": OPENS: " in str(warning)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("'0.0.0.0/0'", "mynetworks: 0.0.0.0/0 is every host of IPv4: permit_mynetworks lets these hosts pass"),
        ("'[::]/0'", "mynetworks: [::]/0 is every host of IPv6: permit_mynetworks"),
        ("'[::ffff:0:0]/96'", "mynetworks: [::ffff:0:0]/96 is every host of IPv4: permit_mynetworks"),
        ("'0.0.0.0/1, 128.0.0.0/1'", "mynetworks: 0.0.0.0/1 with others makes 0.0.0.0/0, which is every host of IPv4"),
        ("'!!0.0.0.0/0'", "mynetworks: !!0.0.0.0/0 is every host of IPv4: permit_mynetworks"),
        ("'com'", "mynetworks: com is every host below it, a top-level domain: permit_mynetworks"),
        ("'/{f}/world'", "mynetworks: 0.0.0.0/0 is every host of IPv4: permit_mynetworks"),
    ],
)
def test_mynetworks_that_are_the_world_are_said_to_be(folder: Path, value: str, said: str) -> None:
    (folder / "world").write_text("127.0.0.1\n0.0.0.0/0\n")
    (warning,) = plan(folder, TABLES, top=f"mynetworks = {value.replace('{f}', str(folder))}\n").warnings
    assert (True, said) == (warning.opens, warning.what[: len(said)])


@pytest.mark.parametrize(
    "value", ["'!0.0.0.0/0, 0.0.0.0/0'", "'!com, 10.0.0.0/8'", "'localhost, [fe80::]/10, 127.0.0.0/8'"]
)
def test_mynetworks_that_are_not_the_world_open_nothing(folder: Path, value: str) -> None:
    assert () == plan(folder, TABLES, top=f"mynetworks = {value}\n").warnings


def test_without_one_key_the_service_starts_and_the_other_signs(folder: Path) -> None:
    (folder / "b.pem").unlink()
    assert ["b.pem: cannot read the private key: No such file or directory"] == complaints(folder, TABLES)
    made = plan(folder, TABLES, lenient=True)
    assert [True] == [warning.warning for warning in made.warnings]
    assert ("sign.ok", "sign.bad_key") == tuple(
        choose(made, f"a@{name}").reason for name in ("example.com", "example.org")
    )


def _flipped(pem: bytes) -> bytes:
    """A key that still parses, with another digit in one of its numbers."""
    lines = pem.splitlines()
    middle = len(lines) // 2
    lines[middle] = lines[middle][:30] + (b"B" if lines[middle][30:31] != b"B" else b"C") + lines[middle][31:]
    return b"\n".join(lines) + b"\n"


BROKEN = {
    "missing": lambda key: key.unlink(),
    "empty": lambda key: write_key(key, b""),
    "garbage": lambda key: write_key(key, b"garbage"),
    "cut off": lambda key: write_key(key, rsa_pem()[:700]),
    "one digit": lambda key: write_key(key, _flipped(rsa_pem())),
    "too small": lambda key: write_key(key, rsa_pem(1024)),
    "of another type": lambda key: write_key(key, ec_pem()),
    "of another algorithm": lambda key: write_key(key, ed25519_pem()),
    "readable for all": lambda key: key.chmod(0o644),
    "a folder": lambda key: (key.unlink(), key.mkdir()),
}


@pytest.mark.parametrize("without_key", ["tempfail", "unsigned", "previous"])
@pytest.mark.parametrize("break_it", BROKEN.values(), ids=BROKEN)
def test_at_a_reload_a_key_that_cannot_sign_leaves_the_old_one_in_force_with_a_warning(
    folder: Path, break_it: Callable[[Path], object], without_key: str
) -> None:
    text = f'{TABLES}without_key = "{without_key}"\nalgorithm = "rsa-sha256"\nminimum_key_bits = 2048\n'
    write_key(folder / "b.pem")
    made = plan(folder, text)
    key = choose(made, "a@example.com").identities[0].key
    break_it(folder / "a.pem")
    for _ in range(3):  # however often tables are read again
        made = plan(folder, text, old=made)
        (warning,) = made.warnings
        assert (True, f"{folder}/a.pem") == (warning.warning, warning.file)
        assert "the key from before signs on" in warning.what
        choice = choose(made, "a@example.com")
        assert ("sign.previous_key", [True]) == (choice.reason, [who.key.same(key) for who in choice.identities])
    assert "sign.ok" == choose(made, "a@example.org").reason
    with suppress(OSError):
        (folder / "a.pem").rmdir()
    write_key(folder / "a.pem")
    (folder / "a.pem").chmod(0o600)
    made = plan(folder, text, old=made)
    assert ("sign.ok", ()) == (choose(made, "a@example.com").reason, made.warnings)


def test_a_key_that_could_never_sign_keeps_no_reload_from_being_done(folder: Path) -> None:
    write_key(folder / "b.pem", b"garbage")
    made = plan(folder, TABLES, lenient=True)
    made = plan(folder, TABLES, old=made)
    (warning,) = made.warnings
    assert "if there was none, mail that it should sign waits" in warning.what
    assert ("sign.ok", "sign.bad_key") == tuple(
        choose(made, f"a@{name}").reason for name in ("example.com", "example.org")
    )


def test_the_key_of_another_domain_never_signs_in_the_place_of_one_that_cannot(folder: Path) -> None:
    made = plan(folder, TABLES)
    write_key(folder / "c.pem", b"garbage")
    changed = TABLES.replace("b example.org:b:./b.pem", "b example.net:b:./c.pem")
    choice = choose(plan(folder, changed, old=made), "a@example.org")
    assert ("sign.bad_key", ()) == (choice.reason, choice.identities)


def test_a_key_of_another_algorithm_than_its_line_names_does_not_sign(folder: Path) -> None:
    text = TABLES.replace("./a.pem", "./a.pem:ed25519-sha256")
    assert "sign.bad_key" == choose(plan(folder, text, lenient=True), "a@example.com").reason


def test_a_key_file_of_each_domain_has_a_previous_one_too(folder: Path) -> None:
    text = 'key_table = ["k %:s:./keys/%.pem"]\nsigning_table = ["* k"]\n'
    (folder / "keys").mkdir(0o755)
    write_key(folder / "keys" / "example.com.pem")
    old = plan(folder, text)
    for content in (b"", b"broken", rsa_pem()[:200]):
        write_key(folder / "keys" / "example.com.pem", content)
        old = plan(folder, text, old=old)
        assert "sign.previous_key" == choose(old, "a@example.com").reason
    assert "sign.bad_key" == choose(old, "a@example.net").reason


def test_keys_that_are_not_as_they_should_be_do_not_sign(folder: Path) -> None:
    for option, reasons in (
        ('algorithm = "rsa-sha256"', ("sign.ok", "sign.bad_key")),
        ('algorithm = "ed25519-sha256"', ("sign.bad_key", "sign.ok")),
        ("minimum_key_bits = 3072", ("sign.bad_key", "sign.ok")),
    ):
        made = plan(folder, f"{TABLES}{option}\n")
        assert reasons == tuple(choose(made, f"a@{name}").reason for name in ("example.com", "example.org")), option


def test_a_key_that_others_may_read_is_refused_or_only_warned_about(folder: Path) -> None:
    (folder / "a.pem").chmod(0o644)
    (said,) = complaints(folder, TABLES)
    assert "every user can read or write the key; fix it with: chmod go-rwx" in said
    (warning,) = plan(folder, f"{TABLES}safe_keys = false\n").warnings
    assert "chmod go-rwx" in warning.what
