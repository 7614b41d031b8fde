# SPDX-License-Identifier: GPL-3.0-or-later
"""Private keys: every spelling that relays have, the permissions that OpenDKIM asks for, and nothing ever shown."""

import os
import pickle
import pwd
from base64 import b64decode, b64encode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.signing.keys import BadKey, KeyFiles, PrivateKey, read_key
from tests.support.needs import missing
from tests.support.signing_world import ed25519, ed25519_pem, rsa, rsa_pem, write_key


def loaded_rsa() -> RSAPrivateKey:
    key = load_pem_private_key(rsa_pem(), None)
    assert isinstance(key, RSAPrivateKey)
    return key


def rsa_spellings() -> dict[str, bytes]:
    key = loaded_rsa()
    der = key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    pkcs8 = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return {
        "PKCS#1": rsa_pem(),
        "PKCS#8": pkcs8,
        "CRLF": rsa_pem().replace(b"\n", b"\r\n"),
        "on one line": rsa_pem().replace(b"\n", b""),
        "with words before it": b"Bag Attributes\n" + pkcs8,
        "base64 of DER": b64encode(der),
        "folded base64 of DER": b"\n".join([b64encode(der)[:76], b64encode(der)[76:]]),
    }


@pytest.mark.parametrize("spelling", rsa_spellings())
def test_an_rsa_key_is_the_same_in_every_spelling(spelling: str) -> None:
    key = PrivateKey(rsa_spellings()[spelling], "a test")
    assert ("rsa", 2048, rsa().record()) == (key.kind, key.bits, key.record())


def test_an_ed25519_key_is_the_same_in_every_spelling() -> None:
    key = load_pem_private_key(ed25519_pem(), None)
    assert isinstance(key, Ed25519PrivateKey)
    seed = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    spelled = [PrivateKey(text, "a test") for text in (ed25519_pem(), b64encode(seed) + b"\n", b64encode(der))]
    assert {ed25519().record()} == {key.record() for key in spelled}
    assert {("ed25519-sha256", 256)} == {(key.algorithm, key.bits) for key in spelled}


def encrypted(form: PrivateFormat) -> bytes:
    return loaded_rsa().private_bytes(Encoding.PEM, form, BestAvailableEncryption(b"secret"))


def public() -> bytes:
    return loaded_rsa().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def elliptic() -> bytes:
    return generate_ec(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (encrypted(PrivateFormat.PKCS8), "openssl pkey -in OLD -out NEW"),
        (encrypted(PrivateFormat.TraditionalOpenSSL), "openssl pkey -in OLD -out NEW"),
        (public(), "PUBLIC KEY, not a private key"),
        (elliptic(), "RSA and Ed25519 keys only"),
        (rsa_pem(1024)[:400], "neither PEM nor base64"),
        (b64encode(b"nothing of the kind"), "not a valid private key"),
        (b"", "not a valid private key"),
    ],
)
def test_what_is_no_usable_key_is_named(data: bytes, said: str) -> None:
    with pytest.raises(BadKey, match=said):
        PrivateKey(data, "a test").sign(bytes(32))


def test_an_rsa_key_under_1024_bits_never_signs() -> None:
    # cryptography no longer makes such keys: this one is OpenSSL's, 512 bits
    small = (
        b"MIIBOgIBAAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf9Cnzj4p4WGeKLs1Pt8QuKUpRKfFLfRYC9AIKjbJTWit+CqvjWYzvQwECAwEAAQJA"
        b"IJLixBy2qpFoS4DSmoEmo3qGy0t6z09AIJtH+5OeRV1be+N4cDYJKffGzDa88vQENZiRm0GRq6a+HPGQMd2kTQIhAKMSvzIBnni7ot/OSie2"
        b"TmJLY4SwTQAevXysE2RbFDYdAiEBCUEaRQnMnbp79mxDXDf6AU0cN/RPBjb9qSHDcWZHGzUCIG2Es59z8ugGrDY+pxLQnwfotadxd+Uyv/Ow"
        b"5T0q5gIJAiEAyS4RaI9YG8EWx/2w0T67ZUVAw8eOMB6BIUg0Xcu+3okCIBOs/5OiPgoTdSy7bcF9IGpSE8ZgGKzgYQVZeN97YE00"
    )
    with pytest.raises(BadKey, match="512 bits is never valid"):
        PrivateKey(small, "a test").sign(bytes(32))


def test_a_weak_key_signs_with_a_warning() -> None:
    key = PrivateKey(rsa_pem(1024), "weak.private")
    assert 128 == len(key.sign(bytes(32)))
    assert ["weak.private: warning: an RSA key of 1024 bits is weak; make one of 2048 under a new selector"] == [
        str(problem) for problem in key.check()
    ]


def test_check_finds_what_parsing_does_not_look_for() -> None:
    numbers = loaded_rsa().private_numbers()
    der = loaded_rsa().private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    prime = numbers.p.to_bytes(128, "big")
    key = PrivateKey(b64encode(der.replace(prime, (numbers.p ^ 2).to_bytes(128, "big"))), "broken.private")
    assert 2048 == key.bits
    assert ["broken.private"] == [problem.file for problem in key.check()]
    assert [] == rsa().check()


def test_a_key_shows_nothing_of_itself() -> None:
    key = PrivateKey(rsa_pem(), "mail.private")
    assert "<PrivateKey from mail.private>" == repr(key) == str(key)
    assert not hasattr(key, "__dict__")
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(key)


@given(st.binary(max_size=200) | st.text(alphabet="ABCabc+/= \n-", max_size=120).map(str.encode))
def test_bytes_that_are_no_key_raise_bad_key_without_quoting_them(data: bytes) -> None:
    said = set()
    try:
        PrivateKey(data, "x").sign(bytes(32))
    except BadKey as bad:
        said = {str(bad), bad.__cause__}
    assert said <= WORDS | {None}


WORDS = {
    "this is neither PEM nor base64",
    "this is not a valid private key; allowed are RSA and Ed25519, in PEM or base64 of DER",
}


def test_a_safe_key_file_is_read_without_a_word(tmp_path: Path) -> None:
    key, problems = read_key(write_key(tmp_path / "mail.private"))
    assert [] == problems
    assert key is not None
    assert rsa().record() == key.record()


@pytest.mark.parametrize(("mode", "mend"), [(0o644, "chmod go-rwx"), (0o602, "chmod go-rwx")])
def test_a_key_that_others_can_read_or_write_is_refused_with_the_command_that_mends_it(
    tmp_path: Path, mode: int, mend: str
) -> None:
    path = write_key(tmp_path / "mail key")
    path.chmod(mode)
    key, (problem,) = read_key(path)
    assert key is None
    assert str(problem) == f"{path}: every user can read or write the key; fix it with: {mend} '{path}'"


def test_without_require_safe_unsafe_permissions_are_a_warning(tmp_path: Path) -> None:
    path = write_key(tmp_path / "mail.private")
    path.chmod(0o644)
    key, (problem,) = read_key(path, require_safe=False)
    assert key is not None
    assert problem.warning


def test_a_key_of_another_user_is_refused(tmp_path: Path) -> None:
    path = write_key(tmp_path / "mail.private")
    if os.geteuid() == 0:
        os.chown(path, 4321, 4321)
    key, problems = read_key(path, owners=[1234])
    assert key is None
    assert f"fix it with: chown 1234 {path}" in problems[0].what


def test_a_group_that_holds_nobody_else_may_read_the_key(tmp_path: Path) -> None:
    path = write_key(tmp_path / "mail.private")
    path.chmod(0o640)
    everybody = [user.pw_uid for user in pwd.getpwall()]
    key, problems = read_key(path, owners=everybody)
    assert (True, []) == (key is not None, problems)


def test_a_group_that_holds_somebody_else_may_not_read_the_key(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        missing("only root can give a file to another group")
    daemon = pwd.getpwnam("daemon")
    path = write_key(tmp_path / "mail.private")
    os.chown(path, 0, daemon.pw_gid)
    path.chmod(0o640)
    key, (problem,) = read_key(path)
    assert key is None
    assert f"daemon can read or write the key by its group; fix it with: chmod g-rw {path}" == problem.what


def test_a_key_in_a_folder_that_others_can_write_to_is_refused_and_the_folder_named_once(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir()
    folder.chmod(0o777)
    files = KeyFiles()
    assert [None, None] == [files.read(write_key(folder / name)) for name in ("a", "b")]
    assert [f"{folder}: every user can write to this folder of keys; fix it with: chmod o-w {folder}"] == [
        str(problem) for problem in files.problems
    ]


def test_a_file_that_is_missing_or_no_file_is_named_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    files = KeyFiles()
    assert [None] * 4 == [files.read(tmp_path / name) for name in ("missing", "", "fifo", "a\0b")]
    assert [
        "cannot read the private key: No such file or directory",
        "a private key must be a regular file",
        "a private key must be a regular file",
        "cannot read the private key: not a path",
    ] == [problem.what for problem in files.problems]


def test_no_byte_of_an_rsa_key_can_change_and_leave_it_usable() -> None:
    der = b64decode(b"".join(rsa_pem(1024).splitlines()[1:-1]))
    assert "" == PrivateKey(b64encode(der), "x").fault
    for place, byte in enumerate(der):
        changed = bytes([*der[:place], byte ^ 1, *der[place + 1 :]])
        assert "" != PrivateKey(b64encode(changed), "x").fault, place
