# SPDX-License-Identifier: GPL-3.0-or-later
"""Our own DMARC record (RFC 9989 section 4.7): writing one, and checking it as receivers read it, typos and all."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from gatekeeper.auth.dmarc import TreeWalks, published_policy
from gatekeeper.auth.dmarc_record import DmarcPolicy, find_record
from gatekeeper.auth.domains import normal_domain
from gatekeeper.core.verdict import printable
from gatekeeper.dnsclient.resolver import MX, DNSError, Resolver
from gatekeeper.records.remark import Remark

_POLICIES = ("none", "quarantine", "reject")
_VALUES = {
    "p": _POLICIES,
    "sp": _POLICIES,
    "np": _POLICIES,
    "adkim": ("r", "s"),
    "aspf": ("r", "s"),
    "t": ("y", "n"),
    "psd": ("y", "n", "u"),
}
_KNOWN = ("v", *_VALUES, "rua", "ruf", "fo")
_REMOVED = {
    "pct": "pct was removed by RFC 9989: receivers treat it as pct=100; to test a policy write t=y",
    "rf": "rf was removed by RFC 9989 and is ignored",
    "ri": "ri was removed by RFC 9989 and is ignored: reports come once a day",
}
_FO = re.compile(r"[01ds](:[01ds])*")
_SIZE = re.compile(r"![0-9]+[kmgt]?\Z", re.IGNORECASE)
_MAILTO = re.compile(r"mailto:([^\s,!@]+)@([^\s,!@]+)\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedRecord:
    """The content of a new record. `rua` are mail addresses."""

    policy: DmarcPolicy
    subdomains: DmarcPolicy | None = None
    nonexistent: DmarcPolicy | None = None
    rua: tuple[str, ...] = ()
    strict: bool = False
    testing: bool = False


def write(wanted: WantedRecord) -> str:
    """Return the text of the record."""
    tags = ["v=DMARC1", f"p={wanted.policy}"]
    if wanted.subdomains is not None:
        tags.append(f"sp={wanted.subdomains}")
    if wanted.nonexistent is not None:
        tags.append(f"np={wanted.nonexistent}")
    if wanted.strict:
        tags += ["adkim=s", "aspf=s"]
    if wanted.testing:
        tags.append("t=y")
    if wanted.rua:
        tags.append("rua=" + ",".join(f"mailto:{address}" for address in wanted.rua))
    return "; ".join(tags)


def zone_lines(domain: str, texts: Sequence[str]) -> Iterator[str]:
    """Yield the records as lines of a zone file: no quoted string is longer than 255 bytes."""
    for text in texts:
        data = "".join(character if " " <= character <= "~" else "?" for character in text)
        pieces = [data[start : start + 255] for start in range(0, len(data), 255)]
        strings = " ".join('"' + piece.replace("\\", "\\\\").replace('"', '\\"') + '"' for piece in pieces)
        yield f"_dmarc.{domain}. TXT {strings}"


async def look_up(resolver: Resolver, domain: str) -> list[str]:
    """Return the TXT records at `_dmarc` of the domain, as text. Raises DNSError."""
    answer = await resolver.query(f"_dmarc.{domain}", "TXT")
    return [record.decode("utf-8", "replace") for record in answer.records if isinstance(record, bytes)]


async def examine(
    resolver: Resolver, domain: str, texts: Sequence[str], *, are_published: bool = False
) -> list[Remark]:
    """Return remarks on the records `texts` of `domain`, which are published or judged as if they were."""
    ours = [text for text in texts if re.match(r"\s*v\s*=\s*DMARC1?\b", text, re.IGNORECASE)]
    if not ours and are_published:
        return [await _inherited(resolver, domain)]
    if not ours:
        return [Remark(True, f"there is no DMARC record at _dmarc.{domain}")]
    read = [text for text in ours if find_record([text.encode("utf-8", "surrogateescape")])]
    if len(read) > 1:
        what = "receivers discard them all, and go by the domain above if that has one; leave one"
        return [Remark(True, f"there are {len(read)} DMARC records: {what}")]
    judged = (read or ours)[0]
    remarks = [
        Remark(True, f"there is another record, which receivers ignore; take it out: {_shown(text)}")
        for text in ours
        if text != judged
    ]
    remarks += lint(judged)
    walks = TreeWalks(resolver, {domain: find_record([judged.encode("utf-8", "surrogateescape")])})
    for address, host in destinations(judged):
        remarks += await _check_destination(walks, domain, address, host)
    return remarks


async def _inherited(resolver: Resolver, domain: str) -> Remark:
    """Return what receivers apply to a domain that has no record of its own (RFC 9989 section 4.10.1)."""
    missing = f"there is no DMARC record at _dmarc.{domain}"
    walk = await TreeWalks(resolver).walk(domain)
    found = walk.applicable()
    if walk.failed:
        return Remark(True, f"{missing}, and the DNS does not answer right now for a domain above it")
    if found is None:
        return Remark(True, missing)
    above, record = found
    if record.policy is None:
        return Remark(True, f"{missing}, and that of {above}, which applies, has no valid policy")
    try:
        exists = record.nonexistent is None or (await resolver.query(domain, "A")).exists
    except DNSError:
        return Remark(True, f"{missing}; that of {above} applies, but the DNS of {domain} does not answer right now")
    policy = published_policy(domain, above, record, exists=exists)
    what = f"that of {above} applies, with the policy {policy}; gatekeeper dmarc record {above} checks it"
    return Remark(False, f"{missing}; {what}")


def lint(text: str) -> Iterator[Remark]:
    """Yield remarks on mistakes and risks in a record, without DNS queries."""
    if find_record([text.encode("utf-8", "surrogateescape")]) is None:
        yield Remark(True, "it must begin with exactly v=DMARC1; receivers ignore it as it is")
    if re.search("[\u201c\u201d\u2018\u2019]", text):
        yield Remark(True, "there are typographic quotes in it; take them out")
    elif not text.isascii():
        yield Remark(True, "there are other characters than ASCII in it; write domains as A-labels (xn--…)")
    seen: set[str] = set()
    for number, part in enumerate(text.split(";")):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not part.strip():
            continue
        if not equals:
            yield Remark(True, f"{_shown(part)} is not a tag; a tag is name=value, and a semicolon ends it")
            continue
        tag = name.lower()
        if tag in seen:
            yield Remark(True, f"{_shown(tag)} appears twice")
        seen.add(tag)
        if tag == "v" and number:
            yield Remark(True, "v=DMARC1 must come first")
        yield from _lint_tag(tag, value)
    yield from _lint_whole(text, seen)


def _lint_tag(tag: str, value: str) -> Iterator[Remark]:
    if tag in _REMOVED:
        yield Remark(False, _REMOVED[tag])
    elif tag not in _KNOWN:
        close = get_close_matches(tag, _KNOWN, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        yield Remark(True, f"{_shown(tag)} is unknown and ignored{hint}")
    elif tag in _VALUES and value.lower() not in _VALUES[tag]:
        yield Remark(True, f"{tag}={_shown(value)} is not valid; allowed: {', '.join(_VALUES[tag])}")
    elif tag == "fo" and not _FO.fullmatch(value.lower()):
        yield Remark(True, f"fo={_shown(value)} is not valid; allowed: 0, 1, d and s, with colons between")
    elif tag in ("rua", "ruf"):
        yield from _lint_addresses(tag, value)


def _lint_addresses(tag: str, value: str) -> Iterator[Remark]:
    for uri in (uri.strip() for uri in value.split(",")):
        if not uri:
            yield Remark(True, f"{tag} has one comma too many")
        elif _SIZE.search(uri):
            yield Remark(False, f"{tag}={_shown(uri)}: the size limit after ! was removed by RFC 9989")
        elif re.match("mailto:", uri, re.IGNORECASE):
            if not _MAILTO.match(uri) or not normal_domain(uri.rpartition("@")[2]):
                yield Remark(True, f"{tag}={_shown(uri)} is not a valid mail address")
        elif "@" in uri and ":" not in uri:
            yield Remark(True, f"{tag}={_shown(uri)} lacks mailto: in front, so no reports come")
        elif re.match("https?:|mail:|mailto//|malito:", uri, re.IGNORECASE):
            yield Remark(True, f"{tag}={_shown(uri)}: receivers only send to mailto: addresses")
        else:
            yield Remark(True, f"{tag}={_shown(uri)} is not an address; write mailto:reports@example.com")


def _lint_whole(text: str, seen: set[str]) -> Iterator[Remark]:
    record = find_record([text.encode("utf-8", "surrogateescape")])
    if "p" not in seen:
        yield Remark(True, "p is missing: with a valid rua receivers treat it as p=none, without one as no record")
    if record is not None and record.policy is None and "p" in seen:
        yield Remark(
            True, "a policy in it is not valid and there is no valid rua, so receivers do not apply DMARC at all"
        )
    if "rua" not in seen:
        yield Remark(False, "without rua nobody tells you who sends as you")
    if record is not None and record.policy is not None:
        if record.policy is DmarcPolicy.NONE and not record.testing:
            yield Remark(False, "p=none only asks for reports; nothing is done to forged mail yet")
        if record.subdomains is not None and _stricter(record.policy, record.subdomains):
            yield Remark(False, f"sp={record.subdomains} is milder than p={record.policy}: forgers use subdomains")
        if record.testing:
            yield Remark(False, "t=y asks receivers to do one step less than the policy says")
    if len(text.encode()) > 255:
        yield Remark(False, "it is longer than 255 bytes: in the zone it must be written as several quoted strings")


def destinations(text: str) -> Iterator[tuple[str, str]]:
    """Yield the mail addresses that reports go to, with their domains."""
    for part in text.split(";"):
        name, _, value = part.partition("=")
        if name.strip().lower() in ("rua", "ruf"):
            for uri in value.split(","):
                if match := _MAILTO.match(_SIZE.sub("", uri.strip())):
                    yield f"{match[1]}@{match[2]}", normal_domain(match[2])


async def _check_destination(walks: TreeWalks, domain: str, address: str, host: str) -> list[Remark]:
    """Check that reports can be sent to `address`, which is at `host`.

    `host` must accept mail, and unless it has the same organizational domain as `domain` it must agree to receive the
    reports (RFC 9990 section 4).
    """
    resolver, shown = walks.resolver, printable(address, 100)
    try:
        mail = (await resolver.query(host, "MX")).records or (await resolver.query(host, "A")).records
        mail = mail or (await resolver.query(host, "AAAA")).records
        if all(isinstance(one, MX) and not one.host for one in mail):  # none at all, or a null MX (RFC 7505)
            return [Remark(True, f"{shown}: {host} does not accept mail")]
        ours, theirs = await walks.walk(domain), await walks.walk(host)
        if ours.failed or theirs.failed:
            return [
                Remark(False, f"{shown}: whether {host} has to agree is not known: the DNS does not answer right now")
            ]
        if ours.organizational == theirs.organizational:
            return []
        name = f"{domain}._report._dmarc.{host}"
        agreed = (await resolver.query(name, "TXT")).records
    except DNSError:
        return [Remark(False, f"{shown}: the DNS of {host} does not answer right now")]
    if any(isinstance(text, bytes) and text.startswith(b"v=DMARC1") for text in agreed):
        return []
    return [
        Remark(True, f'{shown}: {host} does not agree to receive your reports; it has to publish {name} TXT "v=DMARC1"')
    ]


def _stricter(one: DmarcPolicy, other: DmarcPolicy) -> bool:
    return _POLICIES.index(one) > _POLICIES.index(other)


def _shown(text: str) -> str:
    return printable(text.strip(), 60) or '""'
