# SPDX-License-Identifier: GPL-3.0-or-later
"""The configurations and messages of the differential test: what real relays have, by how often they have it.

In a configuration `{f}` is the folder with the tables and keys. A deviation that is wanted stands behind the messages
in which it shows, by its name in gatekeeper/opendkim/deviations.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache

from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gatekeeper.core.message import parse
from gatekeeper.opendkim.deviations import Topic
from gatekeeper.signing.keys import PrivateKey
from gatekeeper.signing.signer import Signer, SigningIdentity, SignOptions
from tests.support.opendkim_world import Mail
from tests.support.signing_world import rsa, rsa_pem


def mail(author: str, *more: str, body: str = "Hello\r\n", client: str = "127.0.0.1", **kw: object) -> Mail:
    header = [
        f"From: {author}",
        "To: ann@example.net",
        "Subject: Hello",
        "Date: Sun, 22 Nov 2026 10:00:00 +0000",
        *more,
    ]
    name = {"127.0.0.1": "localhost", "192.0.2.1": "mail.client.example", "198.51.100.7": "[198.51.100.7]"}[client]
    raw = "\r\n".join([*header, "", body]).encode("utf-8", "surrogateescape")
    return Mail(raw, client=client, name=name, **kw)  # type: ignore[arg-type]  # the fields of Mail


_LIST = (
    "Sender: list@lists.example.com",
    "Reply-To: list@lists.example.com",
    "Cc: a@example.net",
    "Cc: b@example.net",
    "Resent-From: joe@example.org",
    "List-Id: <list.lists.example.com>",
    "List-Unsubscribe: <mailto:leave@lists.example.com>",
    "List-Unsubscribe-Post: List-Unsubscribe=One-Click",
    "X-Mine: 1",
    "Message-ID: <1@example.com>",
    "MIME-Version: 1.0",
    "Received: from a\r\n\tby b; Sun, 22 Nov 2026 10:00:00 +0000",
)

OUTBOUND: Mapping[str, Mail] = {
    "inside": mail("Joe <joe@example.com>"),
    "subdomain": mail('"Doe, Joe" <joe@a.example.com> (a comment)'),
    "deeper": mail("joe@b.a.example.com"),
    "upper case": mail("Joe@EXAMPLE.Com", client="192.0.2.1", macros={"auth_type": "PLAIN", "auth_authen": "joe"}),
    "outside": mail("joe@example.com", client="192.0.2.1"),
    "submission": mail("joe@example.com", client="192.0.2.1", connect={"daemon_name": "ORIGINATING"}),
    "macro": mail("ann@example.com", client="198.51.100.7", macros={"tls_issuer": "ours", "rcpt_user": "x"}),
    "foreign": mail("joe@example.org"),
    "list": mail("ann@example.com", *_LIST),
    "not to be signed": mail("joe@example.com", recipient=b"auto@nosign.example"),
    "no From": Mail(mail("x@example.com").raw.replace(b"From: x@example.com\r\n", b"")),
    "odd body": mail("joe@example.com", "Subject-X: \r\n\tfolded", body=" a  b \t\r\n\r\nx" * 3000 + "\r\n\r\n\r\n"),
    "empty": mail("joe@example.com", "X-Eight: gr\udcfc\udcdfe", body=""),
    "two authors": mail("a@example.com, b@example.com"),
    "two From": mail("joe@example.com", "From: ann@example.com"),
    "ambiguous": mail("joe@example.com <b@example.com> c@example.net"),
    "odd name": mail("Doe, Joe @ Work <joe@example.com>"),
    "backslash": mail("Foo\\Bar <joe@example.com>"),
    "group": mail("Team: joe@example.com, ann@example.com;"),
    "open quote": mail('"Doe, Joe <joe@example.com>'),
}
"""Unsigned messages."""

NOW = 1_700_000_000  # long ago: opendkim minds the future
SIGNERS = ("remote.example", "example.com", "third.example")
SMALL = PrivateKey(rsa_pem(1024), "the small key of the tests")


def keys() -> Mapping[str, str]:
    """The records of the keys that sign inbound messages, by name."""
    good = rsa().record()
    found = {f"sel._domainkey.{domain}": good for domain in SIGNERS}
    found["revoked._domainkey.remote.example"] = "v=DKIM1; k=rsa; p="
    found["testing._domainkey.remote.example"] = good.replace("k=rsa", "k=rsa; t=y")
    found["small._domainkey.remote.example"] = SMALL.record()
    found["other._domainkey.remote.example"] = PrivateKey(two_pem(), "another key").record()
    return found


@cache
def two_pem() -> bytes:
    """A second RSA key."""
    key = generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def signed(
    raw: bytes, selector: str = "sel", domain: str = "remote.example", *, key: PrivateKey | None = None,
    now: int = NOW, **options: object,
) -> bytes:  # fmt: skip
    headers, body = parse(raw)
    signer = Signer(headers, [SigningIdentity(domain, selector, key or rsa())], SignOptions(**options), now)  # type: ignore[arg-type]  # its fields
    signer.update(body)
    return b"".join(field.line + b"\r\n" for field in signer.signatures()) + raw


REMOTE = mail("bob@remote.example", client="192.0.2.1", sender=b"bob@remote.example", recipient=b"joe@example.com")
RAW = REMOTE.raw
GOOD = signed(RAW)
CHANGED = GOOD.replace(b"\r\nHello\r\n", b"\r\nHallo\r\n")
FORGED = b"Authentication-Results: mx.example.net; dkim=pass header.d=bank.example\r\n"


def inbound(raw: bytes) -> Mail:
    return replace(REMOTE, raw=raw)


INBOUND: Mapping[str, Mail] = {
    "not signed": REMOTE,
    "signed": inbound(GOOD),
    "body changed": inbound(CHANGED),
    "header changed": inbound(GOOD.replace(b"Subject: Hello", b"Subject: Hallo")),
    "key not there": inbound(signed(RAW, "gone")),
    "key revoked": inbound(signed(RAW, "revoked")),
    "another key": inbound(signed(RAW, "other")),
    "key testing, changed": inbound(signed(RAW, "testing").replace(b"\r\nHello\r\n", b"\r\nHallo\r\n")),
    "key testing": inbound(signed(RAW, "testing")),
    "small key": inbound(signed(RAW, "small", key=SMALL)),
    "expired": inbound(signed(RAW, lifetime=60)),
    "of the future": inbound(signed(RAW, now=4_000_000_000)),
    "bad and good": inbound(signed(GOOD, "other")),
    "good and bad": inbound(signed(signed(RAW, "other"))),
    "two bad": inbound(signed(CHANGED, "gone")),
    "third party": inbound(signed(RAW, domain="third.example")),
    "no bh": inbound(GOOD.replace(b"bh=", b"xh=")),
    "no tags": inbound(b"DKIM-Signature: nonsense\r\n" + RAW),
    "length": inbound(signed(RAW, body_length=5)),
    "results forged": inbound(FORGED + GOOD),
    "results forged thrice": inbound(
        FORGED + FORGED.replace(b"bank", b"b2") + b"Authentication-Results: other.example; dkim=pass\r\n" + GOOD
    ),
    "results of others": inbound(
        b"Authentication-Results: mx.example.net; spf=pass smtp.mailfrom=a@b\r\n"
        b"Authentication-Results: other.example; dkim=pass header.d=remote.example\r\n" + GOOD
    ),
    "results forged, malformed": inbound(b"Authentication-Results: mx.example.net dkim=pass\r\n" + GOOD),
    "ours, unsigned domain": replace(REMOTE, raw=GOOD, client="127.0.0.1", name="localhost"),
    "ours, back from a filter": replace(OUTBOUND["inside"], raw=signed(OUTBOUND["inside"].raw, "mail", "example.com")),
    "ours, signed elsewhere": replace(OUTBOUND["inside"], raw=signed(OUTBOUND["inside"].raw, domain="third.example")),
}
"""Messages that are signed, or whose results are told."""

SHOWN_BY: Mapping[str, Topic] = {
    "no From": Topic.MALFORMED,
    "open quote": Topic.MALFORMED,
    "two From": Topic.SEVERAL_FROM,
    "ambiguous": Topic.AMBIGUOUS_FROM,
    **dict.fromkeys(
        ("key not there", "key revoked", "expired", "of the future", "two bad", "no bh", "no tags"), Topic.DETAIL
    ),
    "results forged, malformed": Topic.FORGED_RESULTS,
    "ours, back from a filter": Topic.SIGNED_BEFORE,
}
"""Deviations that a message shows under any configuration, if it comes to that."""


@dataclass(frozen=True)
class Case:
    """`wanted` are the messages in which a deviation shows. `files` are written into the folder."""

    conf: str
    files: Mapping[str, str] = field(default_factory=dict)
    wanted: Mapping[str, Topic] = field(default_factory=dict)


TABLES = "KeyTable file:{f}/KeyTable\nSigningTable refile:{f}/SigningTable\n"
ONE = "Domain example.com\nSelector mail\nKeyFile {f}/mail.private\n"
KEYS = "k example.com:mail:{f}/mail.private\nm example.com:two:{f}/two.private\no example.org:org:{f}/two.private\n"
STAR = {"KeyTable": KEYS, "SigningTable": "*@example.com k\n"}
JOE = ("inside", "upper case", "not to be signed", "odd body", "empty", "odd name", "backslash", "group")
HOSTS = "127.0.0.1\n::1\nlocalhost\n192.0.2.0/24\n"


def tables(signing: str, keys: str = KEYS) -> Mapping[str, str]:
    return {"KeyTable": keys, "SigningTable": signing}


CASES: Mapping[str, Case] = {
    # Debian's own, and the usual single key
    "one key": Case(ONE),
    "one key, relaxed/simple": Case(f"{ONE}Canonicalization relaxed/simple\nOversignHeaders From\nMode sv\n"),
    "one key, relaxed/relaxed": Case(f"{ONE}Canonicalization relaxed/relaxed\n"),
    "one key, simple/relaxed": Case(f"{ONE}Canonicalization simple/relaxed\n"),
    "one key, simple": Case(f"{ONE}Canonicalization simple\n"),
    "one key, relaxed": Case(f"{ONE}Canonicalization relaxed\n"),
    "subdomains": Case(f"{ONE}SubDomains yes\n"),
    "two domains": Case("Domain example.com,example.org\nSelector mail\nKeyFile {f}/mail.private\n"),
    "domains in a file": Case(
        "Domain file:{f}/domains\nSelector mail\nKeyFile {f}/mail.private\n",
        {"domains": "example.org # x\nexample.com\n"},
    ),
    "any domain": Case("Domain *\nSelector mail\nKeyFile {f}/mail.private\n"),
    "any domain, subdomains": Case("Domain *\nSubDomains yes\nSelector mail\nKeyFile {f}/mail.private\n"),
    "subdomains of two": Case(
        "Domain a.example.com,example.com\nSubDomains yes\nSelector mail\nKeyFile {f}/mail.private\n"
    ),
    "ed25519": Case("Domain example.com\nSelector ed\nKeyFile {f}/ed.private\nSignatureAlgorithm ed25519-sha256\n"),
    "rsa-sha256": Case(f"{ONE}SignatureAlgorithm rsa-sha256\n"),
    # tables
    "tables": Case(TABLES, STAR),
    "tables as tutorials have them": Case(
        TABLES + "InternalHosts refile:{f}/TrustedHosts\nExternalIgnoreList refile:{f}/TrustedHosts\n"
        "Canonicalization relaxed/simple\nMode sv\nOversignHeaders From\nSignatureAlgorithm rsa-sha256\n"
        "AutoRestart Yes\nAutoRestartRate 10/1h\nSyslog no\nUMask 002\n",
        {**STAR, "TrustedHosts": HOSTS},
    ),
    "tables without a prefix": Case(
        "KeyTable {f}/KeyTable\nSigningTable {f}/SigningTable\n", tables("example.com k\n")
    ),
    "tables, both refile": Case("KeyTable refile:{f}/KeyTable\nSigningTable refile:{f}/SigningTable\n", STAR),
    "a star in a plain file": Case(
        "KeyTable file:{f}/KeyTable\nSigningTable file:{f}/SigningTable\n",
        STAR,
        dict.fromkeys((*JOE, "list", "two authors"), Topic.STAR_AT_DOMAIN),
    ),
    "tables as lists": Case("KeyTable csl:k=example.com:mail:{f}/mail.private\nSigningTable csl:example.com=k,a=k\n"),
    "a percent domain": Case(TABLES, tables("* k\n", "k %:mail:{f}/mail.private\n")),
    "a percent path": Case(TABLES, tables("* k\n", "k %:mail:{f}/%/mail.private\n")),
    "a percent key": Case(TABLES, tables("* %\n", "example.com example.com:mail:{f}/mail.private\n")),
    "subdomains by pattern": Case(TABLES, tables("*@*.example.com m\n*@example.com k\n")),
    "order of a refile": Case(TABLES, tables("*.com m\njoe@example.com k\n")),
    "order of a plain file": Case(
        "KeyTable file:{f}/KeyTable\nSigningTable file:{f}/SigningTable\n",
        tables("* m\n.com k\njoe@.com m\njoe@example.com k\nann@* o\n"),
    ),
    "a signer": Case(TABLES, tables("*@example.com k:noreply@example.com\n*@*.example.com k:@%\n")),
    "a foreign signer": Case(TABLES, tables("* k:x@elsewhere.example\n")),
    "several signatures": Case(
        f"{TABLES}MultipleSignatures yes\n",
        tables("*@example.com k\n*com m\njoe@* o\n"),
        dict.fromkeys(JOE, Topic.THREE_SIGNATURES),
    ),
    "several signatures of a plain file": Case(
        "KeyTable file:{f}/KeyTable\nSigningTable file:{f}/SigningTable\nMultipleSignatures yes\n",
        tables("* m\nexample.com k\njoe@example.com o\n"),
        dict.fromkeys(JOE, Topic.THREE_SIGNATURES),
    ),
    "two signatures": Case(f"{TABLES}MultipleSignatures yes\n", tables("*@example.com k\n*com m\n")),
    "an inline key": Case(
        TABLES,
        {"KeyTable": "k example.com:mail:{inline}\n", "SigningTable": "*@example.com k\n"},
        dict.fromkeys((*JOE, "list", "two authors"), Topic.INLINE_KEY),
    ),
    "a missing key file": Case(TABLES, tables("joe@* gone\n*@example.com k\n", KEYS + "gone example.com:x:{f}/gone\n")),
    "two domains of tables": Case(TABLES, tables("*@example.com k\n*@example.org o\n")),
    "domain beside tables": Case(TABLES + "Domain example.org\n", STAR),
    # which fields
    "oversigned": Case(f"{ONE}OversignHeaders From,To,Subject,X-None\n"),
    "oversigned in a file": Case(f"{ONE}OversignHeaders file:{{f}}/names\n", {"names": "From\nReply-To\n"}),
    "sign headers": Case(f"{ONE}SignHeaders From,Subject,X-Mine,List-Id\n"),
    "sign headers without From": Case(f"{ONE}SignHeaders Subject\n"),
    "sign headers, more": Case(f"{ONE}SignHeaders *,+X-Mine,-Cc,-Subject\n"),
    "sign headers by pattern": Case(f"{ONE}SignHeaders From,List-*,X-*\n"),
    "omit headers": Case(f"{ONE}OmitHeaders Subject,Date\n"),
    "omit headers, more": Case(f"{ONE}OmitHeaders *,+Subject,-Received\n"),
    "omit nothing": Case(f"{ONE}OmitHeaders .\n"),
    "sign and omit": Case(f"{ONE}SignHeaders From,To,Subject,Received\nOmitHeaders To\n"),
    # how
    "a lifetime": Case(f"{ONE}SignatureTTL 604800\n"),
    "a length": Case(f"{ONE}MaximumSignedBytes 100\n"),
    "reports": Case(f"{ONE}RequestReports yes\n"),
    "old signatures go": Case(f"{ONE}RemoveOldSignatures yes\n"),
    "a safe key below /tmp": Case(
        TABLES + "RequireSafeKeys yes\n", STAR, dict.fromkeys((*JOE, "list", "two authors"), Topic.STICKY_FOLDER)
    ),
    "key bits": Case(f"{ONE}MinimumKeyBits 1024\n"),
    # whose mail
    "internal network": Case(f"{ONE}InternalHosts 192.0.2.0/24, 10.0.0.0/8\n"),
    "internal without localhost": Case(f"{ONE}InternalHosts 10.0.0.0/8\n"),
    "internal file": Case(f"{ONE}InternalHosts file:{{f}}/hosts\n", {"hosts": HOSTS}),
    "internal bare path": Case(f"{ONE}InternalHosts {{f}}/hosts\n", {"hosts": ".client.example\n!192.0.2.9\n"}),
    "internal but for one": Case(f"{ONE}InternalHosts 192.0.2.0/24,!192.0.2.1,127.0.0.1\n"),
    "internal name": Case(f"{ONE}InternalHosts mail.client.example,::1\n"),
    "internal everybody": Case(f"{ONE}InternalHosts 0.0.0.0/0\n"),
    "internal by pattern": Case(
        f"{ONE}InternalHosts refile:{{f}}/hosts\n",
        {"hosts": "*.client.example\n127.0.0.1\n"},
        {"outside": Topic.HOST_PATTERN, "submission": Topic.HOST_PATTERN},
    ),
    "internal with host bits": Case(
        f"{ONE}InternalHosts 192.0.2.1/24\n", {}, {"outside": Topic.HOST_BITS, "submission": Topic.HOST_BITS}
    ),
    "external ignored": Case(f"{ONE}ExternalIgnoreList 192.0.2.0/24\n"),
    "peers": Case(f"{ONE}PeerList 192.0.2.1\nInternalHosts 0.0.0.0/0\n"),
    "exempt": Case(f"{ONE}ExemptDomains example.com\n"),
    "exempt others": Case(f"{ONE}SubDomains yes\nExemptDomains a.example.com,example.org\n"),
    "MTA": Case(f"{ONE}MTA ORIGINATING,MSA\n"),
    "MTA and submission only": Case(f"{ONE}MTA ORIGINATING\nInternalHosts 10.0.0.1\n"),
    "macros": Case(f"{ONE}MacroList tls_issuer\n"),
    "macros with values": Case(f"{ONE}MacroList tls_issuer=theirs|ours,none\n"),
    "macros with other values": Case(f"{ONE}MacroList tls_issuer=theirs\n"),
    "sender headers": Case(
        "Domain lists.example.com,example.com\nSelector mail\nKeyFile {f}/mail.private\nSenderHeaders Sender,From\n"
    ),
    "not to": Case(f"{ONE}DontSignMailTo auto@nosign.example\n"),
    "not to, by pattern": Case(f"{ONE}DontSignMailTo refile:{{f}}/to\n", {"to": "*@nosign.example\n"}),
    "signs only": Case(f"{ONE}Mode s\n"),
    "verifies only, with a key": Case(f"{ONE}Mode v\n"),
    "verifies only": Case("Mode v\nAuthservID mx.example.net\n"),
    "software header": Case(f"{ONE}SoftwareHeader yes\n"),
    "software header by its old name": Case(f"{ONE}X-Header yes\n"),
    "results always": Case(f"{ONE}AlwaysAddARHeader yes\nAuthservID mx.example.net\n"),
    "unsigned refused": Case(f"{ONE}On-NoSignature reject\n"),
    "unsigned discarded": Case(f"{ONE}On-NoSignature d\n"),
    "unsigned held": Case(
        f"{ONE}On-NoSignature quarantine\n",
        {},
        dict.fromkeys(("subdomain", "deeper", "outside", "submission", "macro", "foreign"), Topic.QUARANTINE),
    ),
    "unsigned deferred by default": Case(f"{ONE}On-Default tempfail\nOn-BadSignature a\n"),
    "required headers": Case(f"{ONE}RequiredHeaders yes\n"),
    "long headers": Case(f"{ONE}MaximumHeaders 400\n"),
    "long headers refused": Case(f"{ONE}MaximumHeaders 400\nOn-Security reject\n"),
    "long headers accepted": Case(f"{ONE}MaximumHeaders 400\nOn-Security a\n"),
    "no long headers": Case(f"{ONE}On-Security discard\n"),
    "headers of any length": Case(f"{ONE}MaximumHeaders 0\n"),
    "unsigned refused but told": Case(
        f"{ONE}On-NoSignature reject\nAlwaysAddARHeader yes\nAuthservID mx.example.net\n"
    ),
}

VERIFIER = "AuthservID mx.example.net\n"
VERIFYING: Mapping[str, Case] = {
    "verifier": Case(f"{VERIFIER}Mode v\n"),
    "both": Case(f"{VERIFIER}{ONE}"),
    "both, always": Case(f"{VERIFIER}{ONE}AlwaysAddARHeader yes\n"),
    "verifier, all removed": Case(f"{VERIFIER}Mode v\nRemoveARAll yes\n"),
    "verifier, others removed": Case(f"{VERIFIER}Mode v\nRemoveARFrom other.example,mx.example.net\n"),
    "verifier, kept": Case(f"{VERIFIER}Mode v\nKeepAuthResults yes\n"),
    "verifier, with the queue id": Case(f"{VERIFIER}Mode v\nAuthservIDWithJobID yes\n"),
    "verifier, long keys": Case(f"{VERIFIER}Mode v\nMinimumKeyBits 2048\n"),
    "bad refused": Case(f"{VERIFIER}Mode v\nOn-BadSignature reject\n"),
    "bad and small refused": Case(f"{VERIFIER}Mode v\nOn-BadSignature reject\nMinimumKeyBits 2048\n"),
    "bad deferred": Case(f"{VERIFIER}Mode v\nOn-BadSignature tempfail\n"),
    "bad discarded": Case(f"{VERIFIER}Mode v\nOn-BadSignature discard\n"),
    "key not there refused": Case(f"{VERIFIER}Mode v\nOn-KeyNotFound r\n"),
    "all refused": Case(f"{VERIFIER}Mode v\nOn-Default reject\n"),
    "unsigned refused": Case(f"{VERIFIER}Mode v\nOn-NoSignature reject\n"),
    "old signatures go": Case(f"{VERIFIER}{ONE}RemoveOldSignatures yes\n"),
    "signs only": Case(f"{VERIFIER}{ONE}Mode s\n"),
    "exempt": Case(f"{VERIFIER}{ONE}ExemptDomains remote.example\n"),
    "peers": Case(f"{VERIFIER}{ONE}PeerList 192.0.2.0/24\n"),
    "clocks apart": Case(f"{VERIFIER}Mode v\nClockDrift 500000000\n"),
    "clocks as usual": Case(f"{VERIFIER}Mode v\nClockDrift 0\n"),
    "one signature verified": Case(
        f"{VERIFIER}Mode v\nMaximumSignaturesToVerify 1\nOn-BadSignature reject\n", {}, {"good and bad": Topic.DETAIL}
    ),
    "all signatures verified": Case(
        f"{VERIFIER}Mode v\nMaximumSignaturesToVerify 0\n",
        {},
        dict.fromkeys(("third party", "ours, signed elsewhere"), Topic.DETAIL),
    ),
    "required headers": Case(f"{VERIFIER}{ONE}RequiredHeaders yes\n"),
    "long headers": Case(f"{VERIFIER}{ONE}MaximumHeaders 500\n"),
    "the MTA's name": Case(
        "Mode v\n", {}, {name: Topic.AUTHSERV_ID for name in INBOUND if name != "not signed" and name not in SHOWN_BY}
    ),
}
