# SPDX-License-Identifier: GPL-3.0-or-later
"""Does gatekeeper decide as opendkim does? Both real milters, from one opendkim.conf, on the same messages.

What differs is a fault, unless gatekeeper/opendkim/deviations.py has it. Every signature that gatekeeper makes on the
way is verified by opendkim.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gatekeeper.dnsclient.zone import Zone
from gatekeeper.opendkim.deviations import DEVIATIONS, Topic
from tests.lab.dns import DnsServer
from tests.support.opendkim_cases import CASES, INBOUND, OUTBOUND, SHOWN_BY, VERIFYING, Case, keys, two_pem
from tests.support.opendkim_world import Mail, Nursery, decided, deliver, opendkim, with_fields
from tests.support.service import need_milter
from tests.support.signing_world import ed25519, ed25519_pem, rsa, rsa_pem, write_key

SIGNING_DOMAINS = ("example.com", "example.org", "a.example.com", "b.a.example.com", "lists.example.com")


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    need_milter()
    with Nursery() as running:
        yield running


def text_record(text: str) -> str:
    return " ".join(f'"{text[start : start + 200]}"' for start in range(0, len(text), 200))


@pytest.fixture(scope="module")
def dns() -> Iterator[DnsServer]:
    zone = "".join(f"{name}. TXT {text_record(record)}\n" for name, record in keys().items())
    with DnsServer(Zone.parse(zone)) as server:
        yield server


@pytest.fixture
def folder() -> Iterator[Path]:
    # not tmp_path: the socket's path must be short, and workers that have given up root must reach it
    with TemporaryDirectory(prefix="gatekeeper-") as name:
        made = Path(name)
        made.chmod(0o755)
        for file, pem in (("mail", rsa_pem()), ("two", two_pem()), ("ed", ed25519_pem())):
            write_key(made / f"{file}.private", pem)
        (made / "example.com").mkdir()
        write_key(made / "example.com" / "mail.private")
        (made / "keys").write_text("".join(f"{name} {record}\n" for name, record in keys().items()))
        yield made


@pytest.fixture(scope="module")
def verifier() -> Iterator[str]:
    """opendkim, knowing every key that signs here."""
    from gatekeeper.signing.keys import PrivateKey

    two = PrivateKey(two_pem(), "the second key")
    with TemporaryDirectory(prefix="gatekeeper-") as name:
        records = {"mail": rsa(), "two": two, "org": two, "ed": ed25519()}
        lines = [f"{s}._domainkey.{d} {key.record()}\n" for s, key in records.items() for d in SIGNING_DOMAINS]
        Path(name, "keys").write_text("".join(lines))
        conf, socket = Path(name, "conf"), Path(name, "socket")
        conf.write_text(f"Mode v\nTestPublicKeys {name}/keys\nSocket local:{socket}\nBackground no\nUMask 0\n")
        with opendkim(conf, socket) as path:
            yield path


def inline() -> str:
    return "".join(line for line in rsa_pem().decode().splitlines() if "-----" not in line)


def written(folder: Path, case: Case, dns: DnsServer) -> tuple[Path, Path]:
    """The configuration for opendkim and for gatekeeper: they differ in the socket, and in where keys are found."""
    for name, text in case.files.items():
        (folder / name).write_text(text.replace("{f}", str(folder)).replace("{inline}", inline()))
    text = f"RequireSafeKeys no\n{case.conf.replace('{f}', str(folder))}Background no\nUMask 0\n"
    (folder / "theirs.conf").write_text(f"{text}Socket local:{folder}/theirs\nTestPublicKeys {folder}/keys\n")
    (folder / "ours.conf").write_text(f"{text}Socket local:{folder}/ours\nNameservers {dns.address}\n")
    return folder / "theirs.conf", folder / "ours.conf"


def differences(
    folder: Path, case: Case, messages: Mapping[str, Mail], nursery: Nursery, dns: DnsServer, verifier: str
) -> dict[str, str]:
    """The messages about which the two differ, with what they say; each signature is verified on the way."""
    their_conf, our_conf = written(folder, case, dns)
    found = {}
    with (
        opendkim(their_conf, folder / "theirs") as theirs,
        nursery.gatekeeper(our_conf, folder / "ours") as ours,
    ):
        for name, mail in messages.items():
            outcome = deliver(ours, mail)
            expected, actual = decided(deliver(theirs, mail)), decided(outcome)
            if expected != actual:
                found[name] = f"opendkim: {expected}\ngatekeeper: {actual}"
            for field, value in outcome.fields:
                if field == "DKIM-Signature":
                    signed = with_fields(mail, [(field, value)])
                    told = decided(deliver(verifier, signed)).results
                    assert told is not None
                    assert told[1].startswith("pass "), (name, value, told)
    return found


def compare(case: Case, found: dict[str, str]) -> None:
    """Nothing differs that is not wanted, and what a case is about does."""
    unexpected = {name: said for name, said in found.items() if not (case.wanted.get(name) or SHOWN_BY.get(name))}
    assert {} == unexpected, "\n".join(f"{name}\n{said}" for name, said in unexpected.items())
    assert set(case.wanted) <= set(found), "a deviation that is gone must leave the list"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.integration("gatekeeper", "opendkim")
def test_the_same_mail_is_signed_in_the_same_way(
    name: str, folder: Path, nursery: Nursery, dns: DnsServer, verifier: str
) -> None:
    compare(CASES[name], differences(folder, CASES[name], OUTBOUND, nursery, dns, verifier))


@pytest.mark.parametrize("name", VERIFYING)
@pytest.mark.integration("gatekeeper", "opendkim")
def test_signatures_are_judged_and_told_in_the_same_way(
    name: str, folder: Path, nursery: Nursery, dns: DnsServer, verifier: str
) -> None:
    compare(VERIFYING[name], differences(folder, VERIFYING[name], INBOUND, nursery, dns, verifier))


def test_there_are_enough_configurations() -> None:
    assert len(CASES) + len(VERIFYING) >= 60


def test_every_deviation_is_told_once() -> None:
    assert sorted(Topic) == sorted(deviation.topic for deviation in DEVIATIONS)
