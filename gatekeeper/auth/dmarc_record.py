# SPDX-License-Identifier: GPL-3.0-or-later
"""Parsing DMARC policy records (RFC 9989 sections 4.7 and 4.8): TXT bytes become a DmarcRecord, or nothing.

Unknown and malformed tags are ignored, among them those of RFC 7489 that RFC 9989 removed (`pct`, `rf`, `ri`). Knows no
DNS.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

_MAX_CACHED = 4096
"""Bytes of the longest record that is kept: one may have 64 kB, and strangers publish them."""
_VERSION = re.compile(rb"v[ \t]*=[ \t]*DMARC1[ \t]*(?:;|\Z)")
_URI = re.compile(r"(?!mailto:)[a-z][a-z0-9+.-]*:[^\s,!]+|mailto:[^\s,!@]+@[^\s,!@]+", re.IGNORECASE)


class DmarcPolicy(StrEnum):
    """What a domain asks receivers to do with mail that fails."""

    NONE = "none"
    QUARANTINE = "quarantine"
    REJECT = "reject"

    @property
    def strictness(self) -> int:
        """A number that is greater the stricter the policy is."""
        return list(DmarcPolicy).index(self)

    def lowered(self) -> "DmarcPolicy":
        """Return the policy one step milder, as for a domain that is testing (`t=y`)."""
        return DmarcPolicy.QUARANTINE if self is DmarcPolicy.REJECT else DmarcPolicy.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class DmarcRecord:
    """The tags of a record.

    `policy` is None if there is neither a valid `p` nor a `rua`: then DMARC does not apply. `subdomains` is `sp`,
    `nonexistent` is `np`, None if absent. `psd` is y, n or u.
    """

    policy: DmarcPolicy | None
    subdomains: DmarcPolicy | None = None
    nonexistent: DmarcPolicy | None = None
    strict_dkim: bool = False
    strict_spf: bool = False
    testing: bool = False
    psd: str = "u"
    rua: tuple[str, ...] = ()


def find_record(texts: Iterable[object]) -> DmarcRecord | None:
    """Return the DMARC record among the TXT records of a name; None if there is not exactly one (section 4.10)."""
    found = [text for text in texts if isinstance(text, bytes) and _VERSION.match(text)]
    if len(found) != 1:
        return None
    return _known(found[0]) if len(found[0]) <= _MAX_CACHED else _parse(found[0])


def _parse(text: bytes) -> DmarcRecord:
    tags: dict[str, str] = {}
    for part in text.decode("ascii", "replace").split(";")[1:]:
        name, equals, value = part.partition("=")
        if equals:
            tags.setdefault(name.strip().lower(), value.strip())
    rua = tuple(uri for uri in (part.strip() for part in tags.get("rua", "").split(",")) if _URI.match(uri))
    policies = {name: _policy(tags[name]) for name in ("p", "sp", "np") if name in tags}
    if "p" not in policies or None in policies.values():
        # section 4.10.1: with a rua, act as if it said only p=none; without one, do not apply DMARC
        policies = {"p": DmarcPolicy.NONE if rua else None}
    psd = tags.get("psd", "").lower()
    return DmarcRecord(
        policy=policies["p"],
        subdomains=policies.get("sp"),
        nonexistent=policies.get("np"),
        strict_dkim=tags.get("adkim", "").lower() == "s",
        strict_spf=tags.get("aspf", "").lower() == "s",
        testing=tags.get("t", "").lower() == "y",
        psd=psd if psd in ("y", "n") else "u",
        rua=rua,
    )


_known = lru_cache(maxsize=256)(_parse)


def _policy(value: str) -> DmarcPolicy | None:
    try:
        return DmarcPolicy(value.lower())
    except ValueError:
        return None
