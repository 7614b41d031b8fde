# SPDX-License-Identifier: GPL-3.0-or-later
"""Private keys: read as bytes by a privileged process, parsed by the one that signs at first use, never shown.

The rule: no repr, log line or exception contains key material; an error message says in words what is wrong, and names
the key's origin (a path, or `file:line` of an inline key). A key leaves its process by key_transfer.py alone. Parsing
skips OpenSSL's validation, which takes 37 ms per key; `check()` does it, for check-config. `fault` finds, at a
hundredth of that, what no longer belongs together, as after one flipped byte.
"""

import binascii
import grp
import os
import pwd
import re
import stat
from base64 import b64decode, b64encode
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key

from gatekeeper.core import watched_files
from gatekeeper.core.problem import Problem
from gatekeeper.core.safe_reading import open_to_read

ALGORITHMS = {"rsa-sha256": "rsa", "ed25519-sha256": "ed25519"}
"""The signature algorithms (`a=`), and the key type (`k=`) that each needs. rsa-sha1 is never valid (RFC 8301)."""

MINIMUM_BITS = 1024
RECOMMENDED_BITS = 2048
_MAXIMUM_SIZE = 65536
_PEM = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.DOTALL)
_SPACE = re.compile(rb"\s+")
_PADDING = PKCS1v15()
_PREHASHED = Prehashed(SHA256())


class BadKey(Exception):
    """A private key cannot be used. The message says why and how to fix it, and contains nothing of the key."""


@dataclass(frozen=True, slots=True)
class KeyRequirements:
    """What a key must meet to be used: the bits of an RSA key, and the `a=` that it is for (empty: any)."""

    minimum_bits: int = MINIMUM_BITS
    algorithm: str = ""


class PrivateKey:
    """An RSA or Ed25519 private key: PEM (PKCS#1 or PKCS#8), or base64 of DER, or of an Ed25519 seed of 32 bytes.

    `origin` says where it was read: a path, or `file:line`. It is parsed when a property is first used; that raises
    BadKey, each time.
    """

    __slots__ = ("_bits", "_data", "_fault", "_key", "_requirements", "origin")

    def __init__(self, data: bytes, origin: str, requirements: KeyRequirements = KeyRequirements()) -> None:
        self.origin = origin
        self._data = data
        self._requirements = requirements
        self._key: RSAPrivateKey | Ed25519PrivateKey | None = None
        self._bits = 0
        self._fault: str | None = None

    def __repr__(self) -> str:
        return f"<PrivateKey from {self.origin}>"

    def __reduce__(self) -> str:
        raise TypeError("a private key is not pickled")

    @property
    def parts(self) -> tuple[bytes, str, KeyRequirements]:
        """What it is made of, for key_transfer.py."""
        return self._data, self.origin, self._requirements

    @property
    def fault(self) -> str:
        """Why it cannot sign, as BadKey would say it; empty if it can. Parses the key."""
        if self._fault is None:
            try:
                key = self._parsed()
                self._fault = "" if _fits_together(key) else _INCONSISTENT
            except BadKey as bad:
                self._fault = str(bad)
        return self._fault

    @property
    def usable(self) -> bool:
        """Whether it can sign; parses the key."""
        return not self.fault

    def same(self, other: "PrivateKey") -> bool:
        """Return whether both have the same text."""
        return self._data == other._data

    @property
    def kind(self) -> str:
        """`rsa` or `ed25519`: the `k=` of the key record."""
        return "rsa" if isinstance(self._parsed(), RSAPrivateKey) else "ed25519"

    @property
    def algorithm(self) -> str:
        """The `a=` of signatures made with this key."""
        return f"{self.kind}-sha256"

    @property
    def bits(self) -> int:
        """The size of the key in bits."""
        self._parsed()
        return self._bits

    def sign(self, digest: bytes) -> bytes:
        """Sign a SHA-256 `digest`. Raises BadKey.

        RSA signs with PKCS#1 v1.5 (RFC 6376 section 3.3), Ed25519 signs the digest as its message (RFC 8463 section 3).
        """
        key = self._parsed()
        if isinstance(key, RSAPrivateKey):
            return key.sign(digest, _PADDING, _PREHASHED)
        return key.sign(digest)

    def public(self) -> str:
        """Return the public key as in the `p=` of a record (RFC 6376 section 3.6.1, RFC 8463 section 4.2)."""
        key = self._parsed()
        if isinstance(key, RSAPrivateKey):
            public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        else:
            public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return b64encode(public).decode()

    def record(self) -> str:
        """Return the shortest TXT record with which others can verify."""
        return f"v=DKIM1; k={self.kind}; p={self.public()}"

    def check(self) -> list[Problem]:
        """Validate the key fully (37 ms for RSA-2048) and return everything that is wrong with it."""
        try:
            _load(self._data, validate=True)
            bits = self.bits
        except BadKey as bad:
            return [Problem(self.origin, 0, str(bad))]
        if self.kind == "rsa" and bits < RECOMMENDED_BITS:
            what = f"an RSA key of {bits} bits is weak; make one of {RECOMMENDED_BITS} under a new selector"
            return [Problem(self.origin, 0, what, warning=True)]
        return []

    def _parsed(self) -> RSAPrivateKey | Ed25519PrivateKey:
        if self._key is None:
            key = _load(self._data, validate=False)
            self._bits = key.key_size if isinstance(key, RSAPrivateKey) else 256
            _require(self._requirements, key)
            self._key = key
        return self._key


_INCONSISTENT = "the numbers of this key do not belong together, so that nobody could verify what it signs; restore it"


def _fits_together(key: RSAPrivateKey | Ed25519PrivateKey) -> bool:
    """Return whether an RSA key is consistent, but for its primes being prime (RFC 8017 section 3.2)."""
    if not isinstance(key, RSAPrivateKey):
        return True
    numbers = key.private_numbers()
    p, q, d, public = numbers.p, numbers.q, numbers.d, numbers.public_numbers
    if min(p, q) < 3 or p * q != public.n:
        return False
    exponents = (d % (p - 1), d % (q - 1)) == (numbers.dmp1, numbers.dmq1)
    inverse = public.e * numbers.dmp1 % (p - 1) == 1 == public.e * numbers.dmq1 % (q - 1)
    return exponents and inverse and numbers.iqmp * q % p == 1


def _load(data: bytes, *, validate: bool) -> RSAPrivateKey | Ed25519PrivateKey:
    der = _der(data)
    if len(der) == 32:
        return Ed25519PrivateKey.from_private_bytes(der)
    try:
        key = load_der_private_key(der, None, unsafe_skip_rsa_key_validation=not validate)
    except TypeError:
        raise BadKey("the key is encrypted; write it without a passphrase with openssl pkey -in OLD -out NEW") from None
    except (ValueError, UnsupportedAlgorithm):
        # The library's message may quote what it read, so it is not passed on.
        raise BadKey("this is not a valid private key; allowed are RSA and Ed25519, in PEM or base64 of DER") from None
    if isinstance(key, Ed25519PrivateKey):
        return key
    if not isinstance(key, RSAPrivateKey):
        raise BadKey("DKIM supports RSA and Ed25519 keys only; make one with openssl genpkey -algorithm RSA")
    if key.key_size < MINIMUM_BITS:
        raise BadKey(f"an RSA key of {key.key_size} bits is never valid (RFC 8301); make one of {RECOMMENDED_BITS}")
    return key


def _require(requirements: KeyRequirements, key: RSAPrivateKey | Ed25519PrivateKey) -> None:
    kind = "rsa" if isinstance(key, RSAPrivateKey) else "ed25519"
    if requirements.algorithm and ALGORITHMS[requirements.algorithm] != kind:
        raise BadKey(f"it is an {kind} key, and signing.algorithm wants {requirements.algorithm}")
    if isinstance(key, RSAPrivateKey) and key.key_size < requirements.minimum_bits:
        raise BadKey(f"it has {key.key_size} bits, and signing.minimum_key_bits wants {requirements.minimum_bits}")


def _der(data: bytes) -> bytes:
    """Decode PEM, even on one line as in a KeyTable, or bare base64. Raises BadKey."""
    match = _PEM.search(data)
    if match is not None:
        if b"PRIVATE KEY" not in match[1]:
            raise BadKey(f"this is a {match[1].decode()}, not a private key")
        if b"ENCRYPTED" in match[1] or b"ENCRYPTED" in match[2]:
            raise BadKey("the key is encrypted; write it without a passphrase with openssl pkey -in OLD -out NEW")
        data = match[2]
    try:
        return b64decode(_SPACE.sub(b"", data), validate=True)
    except binascii.Error:
        raise BadKey("this is neither PEM nor base64") from None


class KeyFiles:
    """Reads key files and checks their permissions: each file, folder and problem only once.

    `owners` are the user ids that may own keys besides root (default: the effective one). Permissions that
    OpenDKIM's RequireSafeKeys refuses make a key unusable; without `require_safe` they are a warning.
    """

    def __init__(
        self,
        owners: Collection[int] | None = None,
        *,
        require_safe: bool = True,
        requirements: KeyRequirements = KeyRequirements(),
    ) -> None:
        self.requirements = requirements
        self._owners = frozenset({os.geteuid()} if owners is None else owners)
        self._warn = not require_safe
        self._keys: dict[str, PrivateKey | None] = {}
        self._folders: dict[str, list[Problem]] = {}
        self._problems: dict[Problem, None] = {}

    @property
    def problems(self) -> list[Problem]:
        """Everything found so far, in order."""
        return list(self._problems)

    def read(self, path: str | Path, *, named_in: str = "") -> PrivateKey | None:
        """Return the key in the file at `path`; None if it cannot be used, and `problems` says why.

        `named_in` is where the path comes from (`file:line`), for the message.
        """
        name = str(path)
        if name not in self._keys:
            self._keys[name], problems = self._read(name, f", named in {named_in}" if named_in else "")
            self._problems.update(dict.fromkeys(problems))
        return self._keys[name]

    def _read(self, name: str, named: str) -> tuple[PrivateKey | None, list[Problem]]:
        watched_files.record(name)
        try:
            descriptor = open_to_read(name)
            try:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    return None, [Problem(name, 0, "a private key must be a regular file")]
                data = os.read(descriptor, _MAXIMUM_SIZE)
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = error.strerror if isinstance(error, OSError) else "not a path"
            return None, [Problem(name, 0, f"cannot read the private key{named}: {reason}")]
        problems = self._unsafe_file(name, status) + self._unsafe_folders(os.path.dirname(name))
        return (None if problems and not self._warn else PrivateKey(data, name, self.requirements)), problems

    def _unsafe_file(self, name: str, status: os.stat_result) -> list[Problem]:
        found = []
        if status.st_uid not in self._owners | {0}:
            owner = _user(min(self._owners, default=0))
            found.append(f"the key belongs to {_user(status.st_uid)}; fix it with: chown {owner} {quote(name)}")
        if status.st_mode & (stat.S_IROTH | stat.S_IWOTH):
            found.append(f"every user can read or write the key; fix it with: chmod go-rwx {quote(name)}")
        elif status.st_mode & (stat.S_IRGRP | stat.S_IWGRP) and (other := _other_user(status.st_gid, self._owners)):
            found.append(f"{other} can read or write the key by its group; fix it with: chmod g-rw {quote(name)}")
        return [self._unsafe(name, what) for what in found]

    def _unsafe_folders(self, folder: str) -> list[Problem]:
        """Check all folders above a key: whoever can replace the file can replace the key."""
        if folder not in self._folders:
            real = Path(folder).resolve()
            self._folders[folder] = [problem for each in (real, *real.parents) for problem in self._unsafe_folder(each)]
        return self._folders[folder]

    def _unsafe_folder(self, folder: Path) -> list[Problem]:
        found = []
        name = quote(str(folder))
        status = folder.stat()
        if status.st_uid not in self._owners | {0}:
            found.append(f"this folder of keys belongs to {_user(status.st_uid)}; fix it with: chown root {name}")
        # OpenDKIM also refuses sticky folders such as /tmp; but in those nobody can replace the files of others.
        if not status.st_mode & stat.S_ISVTX:
            if status.st_mode & stat.S_IWOTH:
                found.append(f"every user can write to this folder of keys; fix it with: chmod o-w {name}")
            elif status.st_mode & stat.S_IWGRP and (other := _other_user(status.st_gid, self._owners)):
                found.append(f"{other} can write to this folder of keys; fix it with: chmod g-w {name}")
        return [self._unsafe(str(folder), what) for what in found]

    def _unsafe(self, name: str, what: str) -> Problem:
        problem = Problem(name, 0, what)
        return problem.opening() if self._warn else problem


def read_key(
    path: str | Path, *, owners: Collection[int] | None = None, require_safe: bool = True
) -> tuple[PrivateKey | None, list[Problem]]:
    """Read one key file; return the key, or None, and everything that is wrong with it. See KeyFiles."""
    files = KeyFiles(owners, require_safe=require_safe)
    return files.read(path), files.problems


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _other_user(gid: int, owners: frozenset[int]) -> str:
    """Return a user in the group `gid` who is neither root nor one of `owners`; empty if there is none."""
    try:
        members = set(grp.getgrgid(gid).gr_mem)
    except KeyError:
        members = set()
    trusted = owners | {0}
    for user in pwd.getpwall():
        if user.pw_uid not in trusted and (user.pw_gid == gid or user.pw_name in members):
            return user.pw_name
    return ""
