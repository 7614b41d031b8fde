# SPDX-License-Identifier: GPL-3.0-or-later
"""The TXT record of one of our keys (RFC 6376 section 3.6.1), in the forms in which people publish it.

The zone file form is, byte for byte, what opendkim-genkey writes. Every string has at most 255 bytes. Known difference:
characters that could end a note are written as =XX (qp-section); opendkim-genkey copies them, which breaks the record.
"""

from dataclasses import dataclass
from typing import Self

from gatekeeper.signing.keys import PrivateKey

_CHUNK = 250
_SAFE = frozenset(map(chr, range(32, 127))) - set('";=\\')
HASHES = ("sha256", "sha1")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordOptions:
    """What a record says besides the key. Raises ValueError.

    `hashes` is h=, separated by colons (empty: any), `note` is n=, `email_only` is s=email, `testing` is t=y. Without
    `subdomains` it has t=s: the domain of i= must equal d=.
    """

    hashes: str = "sha256"
    note: str = ""
    email_only: bool = False
    testing: bool = False
    subdomains: bool = True

    def __post_init__(self) -> None:
        hashes = self.hashes.split(":") if self.hashes else []
        if unknown := [name for name in hashes if name not in HASHES]:
            raise ValueError(f"{unknown[0]!a} is not a known hash; allowed: sha256, sha256:sha1")
        if hashes and "sha256" not in hashes:
            raise ValueError("signatures with SHA-1 alone never count (RFC 8301); allowed: sha256, sha256:sha1")
        if len(self.note.encode()) > 100:
            raise ValueError("a note has at most 100 bytes: the record must stay small")


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """The record of `selector` in `domain`: `tags` is the text before the key, `public` the key in base64."""

    selector: str
    domain: str
    tags: str
    public: str

    @classmethod
    def of(cls, selector: str, domain: str, key: PrivateKey, options: RecordOptions | None = None) -> Self:
        """Return the record that publishes `key`. Raises BadKey."""
        options = options or RecordOptions()
        tags = "v=DKIM1;"
        if options.note:
            tags += f' n="{_quoted_printable(options.note)}";'
        if options.hashes:
            tags += f" h={options.hashes};"
        tags += f" k={key.kind}; "
        flags = [flag for flag, is_set in (("y", options.testing), ("s", not options.subdomains)) if is_set]
        tags += f"t={':'.join(flags)}; " if flags else ""
        tags += "s=email; " if options.email_only else ""
        return cls(selector, domain, tags, key.public())

    @property
    def name(self) -> str:
        """The name of the record in the DNS."""
        return key_record_name(self.selector, self.domain)

    @property
    def text(self) -> str:
        """The record on one line, for web panels: without quotes, however long."""
        return f"{self.tags}p={self.public}"

    @property
    def strings(self) -> tuple[str, ...]:
        """The strings of the record in the DNS."""
        first, *more = (self.public[at : at + _CHUNK] for at in range(0, len(self.public), _CHUNK))
        return (self.tags, f"p={first}", *more)

    def zone(self, *, absolute: bool = True) -> str:
        """Return the record for a zone file; its name is without the domain unless `absolute`."""
        name = f"{self.name}." if absolute else f"{self.selector}._domainkey"
        strings = "\n\t  ".join(map(_quoted, self.strings))
        comment = f" ; ----- DKIM key {self.selector} for {self.domain}" if self.domain else ""
        return f"{name}\tIN\tTXT\t( {strings} ) {comment}\n"

    def nsupdate(self, ttl: int) -> str:
        """Return the nsupdate command that adds the record (RFC 2136)."""
        return f"update add {self.name}. {ttl} TXT {' '.join(map(_quoted, self.strings))}"


def key_record_name(selector: str, domain: str) -> str:
    """Return the name of a key's record in the DNS."""
    return f"{selector}._domainkey.{domain}"


def revoked_zone_line(selector: str, domain: str) -> str:
    """Return the line of a zone file that revokes a key with an empty p= (RFC 6376 section 3.6.1)."""
    return f'{key_record_name(selector, domain)}.\tIN\tTXT\t"v=DKIM1; p="'


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _quoted_printable(note: str) -> str:
    """Encode what could end a note, a semicolon or a quote, and what is not ASCII (RFC 6376 section 2.11)."""
    return "".join(chr(byte) if chr(byte) in _SAFE else f"={byte:02X}" for byte in note.encode())
