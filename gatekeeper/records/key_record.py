# SPDX-License-Identifier: GPL-3.0-or-later
"""The TXT record of one of our keys (RFC 6376 section 3.6.1), in the forms that people need to publish it.

The zone file form is, byte for byte, what opendkim-genkey writes. Every string is of at most 255 bytes. Known
difference: what could end a note is written as =XX (qp-section), where opendkim-genkey passes it on and breaks.
"""

from dataclasses import dataclass
from typing import Self

from gatekeeper.signing.keys import PrivateKey

_CHUNK = 250
_SAFE = frozenset(map(chr, range(32, 127))) - set('";=\\')
HASHES = ("sha256", "sha1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a record says besides the key. `hashes` are h=, with a colon between them (empty: any), `note` is n=;
    `email_only` is s=email, `testing` t=y; without `subdomains` t=s: i= must be in the very domain. Raises ValueError.
    """

    hashes: str = "sha256"
    note: str = ""
    email_only: bool = False
    testing: bool = False
    subdomains: bool = True

    def __post_init__(self) -> None:
        hashes = self.hashes.split(":") if self.hashes else []
        if unknown := [name for name in hashes if name not in HASHES]:
            raise ValueError(f"there is no hash {unknown[0]!a}; allowed: sha256, sha256:sha1")
        if hashes and "sha256" not in hashes:
            raise ValueError("signatures with SHA-1 alone never count (RFC 8301); allowed: sha256, sha256:sha1")
        if len(self.note.encode()) > 100:
            raise ValueError("a note has at most 100 bytes: the record must stay small")


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """The record of `selector` in `domain`: `tags` are what stands before the key, `public` is the key in base64."""

    selector: str
    domain: str
    tags: str
    public: str

    @classmethod
    def of(cls, selector: str, domain: str, key: PrivateKey, terms: Terms | None = None) -> Self:
        """The record that publishes `key`. Raises BadKey."""
        terms = terms or Terms()
        tags = "v=DKIM1;"
        if terms.note:
            tags += f' n="{_quoted_printable(terms.note)}";'
        if terms.hashes:
            tags += f" h={terms.hashes};"
        tags += f" k={key.kind}; "
        flags = [flag for flag, there in (("y", terms.testing), ("s", not terms.subdomains)) if there]
        tags += f"t={':'.join(flags)}; " if flags else ""
        tags += "s=email; " if terms.email_only else ""
        return cls(selector, domain, tags, key.public())

    @property
    def name(self) -> str:
        """Where it stands."""
        return name_of(self.selector, self.domain)

    @property
    def text(self) -> str:
        """The record on one line, as web panels want it: without quotes, however long."""
        return f"{self.tags}p={self.public}"

    @property
    def strings(self) -> tuple[str, ...]:
        """The record as the DNS has it, in strings."""
        first, *more = (self.public[at : at + _CHUNK] for at in range(0, len(self.public), _CHUNK))
        return (self.tags, f"p={first}", *more)

    def zone(self, *, absolute: bool = True) -> str:
        """The lines of a zone file; without the domain unless `absolute`."""
        name = f"{self.name}." if absolute else f"{self.selector}._domainkey"
        strings = "\n\t  ".join(map(_quoted, self.strings))
        comment = f" ; ----- DKIM key {self.selector} for {self.domain}" if self.domain else ""
        return f"{name}\tIN\tTXT\t( {strings} ) {comment}\n"

    def nsupdate(self, ttl: int) -> str:
        """The command for nsupdate(8) that adds it."""
        return f"update add {self.name}. {ttl} TXT {' '.join(map(_quoted, self.strings))}"


def name_of(selector: str, domain: str) -> str:
    """Where the record of a key stands."""
    return f"{selector}._domainkey.{domain}"


def revoked(selector: str, domain: str) -> str:
    """The line of a zone file that says that a key has been withdrawn (RFC 6376 section 3.6.1: an empty p=)."""
    return f'{name_of(selector, domain)}.\tIN\tTXT\t"v=DKIM1; p="'


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _quoted_printable(note: str) -> str:
    """`note` with nothing that could end it: a semicolon, a quote, what is not ASCII (RFC 6376 section 2.11)."""
    return "".join(chr(byte) if chr(byte) in _SAFE else f"={byte:02X}" for byte in note.encode())
