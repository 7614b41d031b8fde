# SPDX-License-Identifier: GPL-3.0-or-later
"""Creates DKIM-Signature fields (RFC 6376 section 5, RFC 8463) while the body streams through.

The field is hashed exactly as it is added: with the space after the colon and folded with CRLF TAB, `b=` last and still
empty. So it verifies under `simple` too, provided that the milter adds it with its leading space (SMFIP_HDR_LEADSPC).
Lines have at most 78 characters, unless a single tag that cannot be folded is longer.

Does not know what may be signed: policy.py decides that. By default there is no `l=`: anybody can replace the part of
the body that it leaves unsigned.
"""

import re
from base64 import b64encode
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

from gatekeeper.auth import canonicalization as canonical
from gatekeeper.auth.domains import is_within
from gatekeeper.core.message import Header
from gatekeeper.signing.keys import PrivateKey
from gatekeeper.signing.line_length import LineLimit, break_field

OPENDKIM_HEADERS = (
    "From",
    "Reply-To",
    "Subject",
    "Date",
    "To",
    "Cc",
    "Resent-Date",
    "Resent-From",
    "Resent-Sender",
    "Resent-To",
    "Resent-Cc",
    "In-Reply-To",
    "References",
    "List-Id",
    "List-Help",
    "List-Unsubscribe",
    "List-Subscribe",
    "List-Post",
    "List-Owner",
    "List-Archive",
)
"""What OpenDKIM 2.11 signs unless told otherwise (RFC 6376 section 5.4.1)."""

ONE_CLICK = ("List-Unsubscribe", "List-Unsubscribe-Post")
"""One-click unsubscription must be signed (RFC 8058 section 4)."""

OMITTED = ("Return-Path", "Received", "Comments", "Keywords", "Bcc", "Resent-Bcc", "DKIM-Signature")
"""What OpenDKIM does not sign unless told otherwise: relays change these fields."""

SIGNED = (*OPENDKIM_HEADERS, "List-Unsubscribe-Post")
"""What is signed by default."""

_WIDTH = 78
_UNSAFE = re.compile(rb"[^!-:<>-~]")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignOptions:
    """How to sign. Canonicalizations are `relaxed` or `simple`; the default is that of Debian's opendkim.conf.

    `oversign_headers` are named in `h=` once more than they occur, so that nobody can add one.
    `oversign_present` likewise, but only where the message has them: a mailing list may add its own. `*` in a list of
    names is the default list, to which `+name` adds and from which `-name` takes; in any other name it is any text.
    `lifetime` is how many seconds a signature is valid (`x=`), None for ever; `body_length` how many bytes of the
    canonical body are signed at most (`l=`), None for all. `line_length_limit` is how long a line leaves
    (line_length.py). `remove_old`: signatures from before are taken out.
    """

    header_canonicalization: str = "relaxed"
    body_canonicalization: str = "simple"
    sign_headers: tuple[str, ...] = SIGNED
    omit_headers: tuple[str, ...] = OMITTED
    oversign_headers: tuple[str, ...] = ("From",)
    oversign_present: tuple[str, ...] = ONE_CLICK
    lifetime: int | None = None
    body_length: int | None = None
    line_length_limit: int = 998
    request_reports: bool = False
    remove_old: bool = False

    @property
    def canonicalization(self) -> str:
        """The `c=` tag."""
        return f"{self.header_canonicalization}/{self.body_canonicalization}"


@dataclass(frozen=True, slots=True)
class SigningIdentity:
    """Who signs: `d=`, `s=`, the key, and `i=` (`signer`), which is left out unless it is within the domain.

    `previous`: the key is one that the last reload was meant to replace.
    """

    domain: str
    selector: str
    key: PrivateKey
    signer: str = ""
    previous: bool = False


class Signer:
    """Creates the signatures of one message: feed the body to `update`, then call `signatures` once.

    `now` is seconds since the epoch, `names` the content of `h=`. However many identities sign, the header and the body
    are hashed only once.
    """

    def __init__(
        self, headers: Sequence[Header], identities: Sequence[SigningIdentity], options: SignOptions, now: float
    ) -> None:
        self._identities = identities
        self._options = options
        self._now = int(now)
        self._relaxed = options.header_canonicalization == "relaxed"
        self._lines = LineLimit(options.line_length_limit)
        self._body = canonical.BodyHash(options.body_canonicalization == "relaxed", options.body_length)
        self.names, chosen = _select(headers, options)
        sent = (break_field(field, options.line_length_limit) for field in chosen)
        self._hash = sha256(b"".join([canonical.header(field, self._relaxed) + b"\r\n" for field in sent]))

    def update(self, chunk: bytes) -> None:
        """Take the next bytes of the body."""
        self._body.update(self._lines.feed(chunk))

    def signatures(self, without: Collection[SigningIdentity] = ()) -> list[Header]:
        """Return the DKIM-Signature fields of all identities but `without`, in order. Raises BadKey."""
        self._body.update(self._lines.end())
        body_hash = b64encode(self._body.digest(self._options.body_length)).decode()
        return [self._signature(identity, body_hash) for identity in self._identities if identity not in without]

    def _signature(self, identity: SigningIdentity, body_hash: str) -> Header:
        tags = [
            "v=1",
            f"a={identity.key.algorithm}",
            f"c={self._options.canonicalization}",
            f"d={identity.domain}",
            f"s={identity.selector}",
            f"t={self._now}",
        ]
        if self._options.lifetime is not None:
            tags.append(f"x={self._now + self._options.lifetime}")
        if self._options.request_reports:
            tags.append("r=y")
        _, at, host = identity.signer.rpartition("@")
        if at and is_within(host.lower(), identity.domain):  # RFC 6376 section 3.5
            tags.append(f"i={_quoted(identity.signer)}")
        if self._options.body_length is not None:
            tags.append(f"l={min(self._options.body_length, self._body.length)}")
        tags += [f"bh={body_hash}", "h=" + ":".join(self.names)]
        value = _folded(tags) + b"\r\n\tb="
        total = self._hash.copy()
        total.update(canonical.header(Header(b"DKIM-Signature", value), self._relaxed))
        signature = b64encode(identity.key.sign(total.digest()))
        lines = [signature[start : start + 72] for start in range(0, len(signature), 72)]
        return Header(b"DKIM-Signature", value + b"\r\n\t ".join(lines))


@lru_cache(maxsize=16)
def _signed_names(sign: tuple[str, ...], omit: tuple[str, ...], oversign: tuple[str, ...]) -> re.Pattern[bytes]:
    """Return a pattern for the names, in lower case, of the fields that are signed if they are present.

    From is always among them (RFC 6376 section 5.4), and so are those that are oversigned.
    """
    names = (("From", *oversign), _with_changes(omit, OMITTED), _with_changes(sign, SIGNED))
    always, omitted, signed = map(_pattern, names)
    return re.compile(f"{always}|(?!{omitted}\\Z){signed}".encode())


def _with_changes(names: tuple[str, ...], default: tuple[str, ...]) -> tuple[str, ...]:
    """Return `names`, or if `*` is among them `default` with the changes `+name` and `-name`."""
    if "*" not in names:
        return names
    removed = {name[1:].lower() for name in names if name.startswith("-")}
    added = [name.removeprefix("+") for name in names if name != "*" and not name.startswith("-")]
    return tuple(name for name in (*default, *added) if name.lower() not in removed)


def _pattern(names: tuple[str, ...]) -> str:
    """Return a regular expression for these names in lower case; `*` is any text. No names match nothing."""
    parts = (re.escape(name.lower()).replace(r"\*", "[!-9<-~]*") for name in names)
    return f"(?:{'|'.join(parts) or '(?!)'})"


def _select(headers: Sequence[Header], options: SignOptions) -> tuple[list[str], list[Header]]:
    """Return the names for `h=`, and the fields in the order in which they are hashed.

    All instances of a field are signed, and hashed from the bottom up, as verifiers do (section 5.4.2).
    """
    signed = _signed_names(options.sign_headers, options.omit_headers, options.oversign_headers)
    present = [field for field in headers if signed.fullmatch(field.name.lower())]
    names = [field.name.decode("ascii") for field in present]
    from_bottom: dict[str, list[Header]] = {}
    for name, field in zip(names, present, strict=True):
        from_bottom.setdefault(name.lower(), []).append(field)
    chosen = [from_bottom[name.lower()].pop() for name in names]
    oversigned = dict.fromkeys(options.oversign_headers)
    oversigned.update((name, None) for name in options.oversign_present if name.lower() in from_bottom)
    return [*names, *oversigned], chosen


def _folded(tags: Sequence[str]) -> bytes:
    """Return the field's value: `tag; tag; ...;`, folded between tags.

    `h=` begins a line of its own, for those who read it, and is folded behind its colons where one line is too short.
    """
    lines = ["DKIM-Signature:"]
    for tag in tags:
        if tag.startswith("h="):
            lines += _folded_names(f"{tag};")
        elif len(lines[-1]) + len(tag) + 2 <= _WIDTH:
            lines[-1] += f" {tag};"
        else:
            lines.append(f"\t{tag};")
    return "\r\n".join(lines).removeprefix("DKIM-Signature:").encode("ascii")


def _folded_names(tag: str) -> Iterator[str]:
    """Yield the lines of `h=`."""
    line = "\t"
    for name in re.findall(r"[^:]+:?", tag):
        if len(line) + len(name) > _WIDTH and line != "\t":
            yield line
            line = "\t"
        line += name
    yield line


def _quoted(text: str) -> str:
    """Encode `text` as dkim-quoted-printable (RFC 6376 section 2.11)."""
    return _UNSAFE.sub(lambda match: b"=%02X" % ord(match[0]), text.encode("utf-8", "surrogateescape")).decode("ascii")
