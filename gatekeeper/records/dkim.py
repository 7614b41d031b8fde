# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of our own published DKIM keys: whether the record that receivers find matches the key that we sign with.

If the cause of a mistake can be seen, it is named: a string that a web panel lost, quotes or backslashes that became
part of the record, the domain twice in the name.
"""

import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

from gatekeeper.auth.dkim_key import PublicKey, key_records, may_be_key, parse_key
from gatekeeper.auth.tags import parse_list, parse_tags
from gatekeeper.core.verdict import printable
from gatekeeper.dnsclient.resolver import Answer, DNSError, Resolver
from gatekeeper.records.key_record import key_record_name
from gatekeeper.records.remark import Remark
from gatekeeper.signing.keys import RECOMMENDED_BITS, BadKey, PrivateKey

_REVOKED = "the key has been revoked"
_KEY_TAG = re.compile(rb"\bp\s*=\s*([^;]*)")


@dataclass(slots=True)
class PublishedKey:
    """What was found for one key.

    `records` are the TXT records at `name`; `secure` means that they were validated with DNSSEC; `trouble` is why the
    DNS did not answer.
    """

    domain: str
    selector: str
    records: tuple[bytes, ...] = ()
    remarks: list[Remark] = field(default_factory=list)
    secure: bool = False
    trouble: str = ""

    @property
    def name(self) -> str:
        """The name of the record in the DNS."""
        return key_record_name(self.selector, self.domain)

    @property
    def key(self) -> PublicKey | None:
        """The published key, if it can be used."""
        meant = _meant_as_keys(self.records)
        found = parse_key(meant[0]) if len(meant) == 1 else None
        return found if isinstance(found, PublicKey) else None

    @property
    def good(self) -> bool:
        """Whether receivers can verify what we sign."""
        return not self.trouble and not any(remark.error for remark in self.remarks)


async def examine(resolver: Resolver, domain: str, selector: str, private: PrivateKey | None = None) -> PublishedKey:
    """Look up the record and check it, against `private` if given. Never raises."""
    found = PublishedKey(domain, selector)
    try:
        answer = await resolver.query(found.name, "TXT")
        found.records, found.secure = _texts(answer), answer.secure
        found.remarks = list(judge(found.records, private))
        if not found.records:
            found.remarks += [remark async for remark in _misplaced(resolver, domain, selector)]
    except DNSError as error:
        found.trouble = str(error)
    return found


def judge(records: Sequence[bytes], private: PrivateKey | None) -> Iterator[Remark]:
    """Yield remarks on the TXT records at a key's name. `private` is the key that should be there.

    What is surely no key is skipped, as verification does (auth/dkim_key.py); of several keys receivers take any.
    """
    meant = _meant_as_keys(records)
    if not meant:
        yield Remark(True, "there is no record")
    elif len(meant) > 1:
        yield Remark(True, f"there are {len(meant)} TXT records with a key: receivers take any of them; leave one")
    else:
        yield from _judge_record(meant[0], private)
    for other in records:
        if other not in meant:
            what = "there is another TXT record, which is no key; some receivers may take it for one, so take it out"
            yield Remark(False, f"{what}: {printable(other.decode('utf-8', 'replace'), 60)}")


def _meant_as_keys(records: Sequence[bytes]) -> list[bytes]:
    """Return the records that are meant as keys; where none is, the one that receivers try first."""
    tried = key_records(records)
    return [record for record in records if may_be_key(record)] or tried[:1]


def _judge_record(record: bytes, private: PrivateKey | None) -> Iterator[Remark]:
    found = parse_key(record)
    if isinstance(found, str):
        yield Remark(True, found + ("; signatures with it fail" if found == _REVOKED else ""))
        yield from _causes(record, private)
        return
    yield from _conditions(record, found)
    if private is None:
        return
    try:
        expected = private.public()
    except BadKey as bad:
        yield Remark(True, f"the private key cannot be used: {private.origin}: {bad}")
        return
    if found.kind != private.kind:
        yield Remark(True, f"the record has an {found.kind} key (k=), but the private key is {private.kind}")
    elif parse_key(f"k={private.kind}; p={expected}".encode()) != PublicKey(found.key):
        yield Remark(True, "the published key is not that of the private key")


def _conditions(record: bytes, found: PublicKey) -> Iterator[Remark]:
    """Yield remarks on the other tags of a key that can be used."""
    tags = parse_tags(record)
    if found.too_short:
        yield Remark(True, f"an RSA key of {found.bits} bits never counts (RFC 8301)")
    elif found.kind == "rsa" and found.bits < RECOMMENDED_BITS:
        yield Remark(False, f"an RSA key of {found.bits} bits is weak; {RECOMMENDED_BITS} are usual")
    if found.testing:
        yield Remark(False, "t=y: strict receivers treat the mail as unsigned; remove it once signing works")
    if found.strict:
        yield Remark(False, "t=s: signatures whose i= lies in a subdomain fail")
    if b"h" in tags and b"sha1" in parse_list(tags[b"h"]):
        yield Remark(False, "h= allows sha1, which receivers ignore (RFC 8301)")
    if tags.get(b"g", b"*") != b"*":
        yield Remark(False, "g= was removed by RFC 6376; some receivers still honour it: take it out")


def _causes(record: bytes, private: PrivateKey | None) -> Iterator[Remark]:
    """Yield the likely causes why a record is malformed, judging by its content."""
    if b"\\" in record:
        yield Remark(True, "there are backslashes in it: they belong in a zone file, not in a web panel")
    match = _KEY_TAG.search(record)
    value = match[1] if match else b""
    if b'"' in value:
        yield Remark(True, "there are quote marks in the key: enter it without quotes, on one line (dkim dns --line)")
    if private is None or not value:
        return
    try:
        expected = private.public()
    except BadKey:
        return
    there = re.sub(rb"[^A-Za-z0-9+/=]", b"", value).decode()
    if len(there) >= len(expected):
        return
    start = next((at for at, (one, other) in enumerate(zip(expected, there, strict=False)) if one != other), len(there))
    missing = len(expected) - len(there)
    if expected[start + missing :] == there[start:]:
        what = f"{missing} characters of the key are missing after the first {start}"
        yield Remark(True, f"{what}: a string was lost; a record over 255 bytes has several strings")


async def _misplaced(resolver: Resolver, domain: str, selector: str) -> AsyncIterator[Remark]:
    """Yield a remark for each wrong name at which there is a key record."""
    for name, why in (
        (
            f"{key_record_name(selector, domain)}.{domain}",
            "the domain appears twice: a zone file needs a dot at its end",
        ),
        (f"{selector}.{domain}", "._domainkey is missing in its name"),
    ):
        if any(b"p=" in record for record in _texts(await resolver.query(name, "TXT"))):
            yield Remark(True, f"there is one at {name}: {why}")


def _texts(answer: Answer) -> tuple[bytes, ...]:
    return tuple(record for record in answer.records if isinstance(record, bytes))
