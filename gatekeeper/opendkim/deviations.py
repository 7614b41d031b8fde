# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs from OpenDKIM on purpose: one list for the import report, docs/opendkim.md and the differential test.

A difference that is not listed here is a bug.
"""

from dataclasses import dataclass
from enum import StrEnum


class Topic(StrEnum):
    """What a deviation is about; tests and reports name deviations by it."""

    HOST_PATTERN = "host-pattern"
    HOST_ANYBODY = "host-anybody"
    HOST_ADDRESSES = "host-addresses"
    HOST_BITS = "host-bits"
    HOST_BRACKETS = "host-brackets"
    DOMAIN_SPELLING = "domain-spelling"
    SIGNING_DOMAIN = "signing-domain"
    STAR_AT_DOMAIN = "star-at-domain"
    KEY_SPACES = "key-spaces"
    SEVERAL_FROM = "several-from"
    AMBIGUOUS_FROM = "ambiguous-from"
    SIGNED_BEFORE = "signed-before"
    THREE_SIGNATURES = "three-signatures"
    INLINE_KEY = "inline-key"
    QUARANTINE = "quarantine"
    SIGNER_WITHOUT_AT = "signer-without-at"
    WEAK = "weak"
    CANONICALIZATION_HEADER = "canonicalization-header"
    FORGED_RESULTS = "forged-results"
    NO_ATPS = "no-atps"
    MALFORMED = "malformed"
    LONG_HEADER = "long-header"
    LONG_LINES = "long-lines"
    LAST_LINE = "last-line"
    SAME_KEY_TWICE = "same-key-twice"
    SIGNATURE_ERROR = "signature-error"
    DETAIL = "detail"
    SIGNALS = "signals"
    LOG = "log"
    STRICT_CONFIGURATION = "strict-configuration"
    REPLIES = "replies"
    KEY_OWNER = "key-owner"
    STICKY_FOLDER = "sticky-folder"
    AUTHSERV_ID = "authserv-id"


@dataclass(frozen=True, slots=True)
class Deviation:
    """What OpenDKIM does, what we do, and why, in whole sentences.

    It shows only with one of `options` set, or always if there are none.
    """

    topic: Topic
    theirs: str
    ours: str
    why: str
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.theirs} {self.ours} {self.why}"


_HOSTS = ("InternalHosts", "PeerList", "ExternalIgnoreList")

DEVIATIONS = (
    Deviation(
        Topic.HOST_PATTERN,
        "OpenDKIM takes a line `*.example.com` of a `refile:` host list as negated, so that it never matches.",
        "Here it matches what is below example.com; others that begin with `*`, and `*.com`, stay negated.",
        "It is what everybody who writes it means; a line with OPENS names it.",
        _HOSTS,
    ),
    Deviation(
        Topic.HOST_ANYBODY,
        "OpenDKIM takes a line `*` of a `refile:` host list as negated, so that no host is in the list.",
        "Here it is an error, and so is every other pattern that matches any name and any address.",
        "Nobody means that strangers' mail is signed.",
        _HOSTS,
    ),
    Deviation(
        Topic.HOST_ADDRESSES,
        "OpenDKIM compares a pattern of a `refile:` host list with every network of a host too, so that `10.0.0.*` "
        "matches all of 10.0.0.0/8.",
        "Here it matches 10.0.0.0/24; only a pattern with a `/` is compared with networks.",
        "It is what everybody who writes it means.",
        _HOSTS,
    ),
    Deviation(
        Topic.HOST_BITS,
        "OpenDKIM never matches a network with bits set after its prefix, such as `192.168.0.1/24`, or with a netmask, "
        "nor an IPv6 address that is not in its shortest form.",
        "Here it counts as its network, `192.168.0.0/24`, and is an error if that is more than one organization has.",
        "It is what everybody who writes it means; a line with OPENS names it.",
        _HOSTS,
    ),
    Deviation(
        Topic.HOST_BRACKETS,
        "In a `refile:` host list OpenDKIM takes `[2001:db8::1]` for a set of characters, which matches no host.",
        "Here it is the address, and with `/32` the network.",
        "It is what everybody who writes it means; a line with OPENS names it.",
        _HOSTS,
    ),
    Deviation(
        Topic.DOMAIN_SPELLING,
        "OpenDKIM compares domains as they are written, so that `bücher.example` in a table is not "
        "`xn--bcher-kva.example` in mail, nor `BÜCHER.example` there, nor `example.com.` the same as `example.com`.",
        "Here all spellings of a domain are one, except that mail whose From has the final dot is not signed.",
        "Mail programs write umlauts or A-labels; a final dot is no part of a mailbox (RFC 5321).",
    ),
    Deviation(
        Topic.SIGNING_DOMAIN,
        "OpenDKIM writes `d=` as the KeyTable has the domain, and signs nothing if that, or with `%` the one in From, "
        "has umlauts.",
        "Here `d=` is in lower case and in A-labels.",
        "It is what verifiers look up (RFC 6376 section 3.5).",
    ),
    Deviation(
        Topic.STAR_AT_DOMAIN,
        "In OpenDKIM, `*@example.com` in a SigningTable that is not a `refile:` matches nothing: no mail is signed.",
        "Here it matches all of that domain.",
        "Many tutorials show it this way; a warning names the line.",
        ("SigningTable",),
    ),
    Deviation(
        Topic.KEY_SPACES,
        "OpenDKIM keeps white space around the fields of a KeyTable, so that no such key works.",
        "Here it is dropped.",
        "A warning names the line.",
        ("KeyTable",),
    ),
    Deviation(
        Topic.SEVERAL_FROM,
        "OpenDKIM signs for the first of several From fields.",
        "Here such mail is never signed.",
        "A signature would vouch for an author whom no reader may see.",
    ),
    Deviation(
        Topic.AMBIGUOUS_FROM,
        "OpenDKIM signs for the first address that it finds in From.",
        "Here a From in which a mail program could find several domains (`eve@example.org <joe@example.com>`), or of "
        "which it is not certain what is an address, is not signed.",
        "Two readers would see two authors under one signature, and DMARC as judged here would fail.",
    ),
    Deviation(
        Topic.SIGNED_BEFORE,
        "OpenDKIM signs again what a content filter hands back.",
        "Here mail that has a signature of the same domain and key that still verifies is not signed twice.",
        "The first signature says all that the second would.",
    ),
    Deviation(
        Topic.THREE_SIGNATURES,
        "With MultipleSignatures and three lines or more that match, OpenDKIM loses all but the first and the last.",
        "Here all of them sign.",
        "It is what MultipleSignatures means.",
        ("MultipleSignatures",),
    ),
    Deviation(
        Topic.INLINE_KEY,
        "OpenDKIM truncates keys in a KeyTable to 1024 characters, and mail with an RSA-2048 key is deferred.",
        "Here such keys sign.",
        "It is what its manual promises.",
        ("KeyTable",),
    ),
    Deviation(
        Topic.QUARANTINE,
        "The action quarantine does nothing in OpenDKIM unless CaptureUnknownErrors is set.",
        "Here the message is held.",
        "It is what the configuration says.",
        ("On-NoSignature", "On-BadSignature", "On-KeyNotFound", "On-DNSError", "On-Default"),
    ),
    Deviation(
        Topic.SIGNER_WITHOUT_AT,
        "A signer without an @ in a SigningTable keeps OpenDKIM from signing.",
        "Here the signature has no i=.",
        "A warning names the line.",
        ("SigningTable",),
    ),
    Deviation(
        Topic.WEAK,
        "OpenDKIM can be made to use rsa-sha1 and keys below 1024 bits.",
        "Here neither is ever made or accepted.",
        "RFC 8301 forbids both, and no large receiver accepts them.",
        ("SignatureAlgorithm", "MinimumKeyBits", "KeyTable", "KeyFile"),
    ),
    Deviation(
        Topic.CANONICALIZATION_HEADER,
        "With OpenDKIM a sender chooses the canonicalization with a field X-Canonicalization.",
        "Here Canonicalization applies to all.",
        "It is the relay's choice.",
    ),
    Deviation(
        Topic.FORGED_RESULTS,
        "OpenDKIM leaves forged Authentication-Results that it cannot parse, miscounts when it removes several, and "
        "leaves them all in mail that it signs.",
        "Here every field that a reader may take for ours is removed, from authenticated users too.",
        "Readers who trust our name must be able to.",
        ("RemoveARAll", "RemoveARFrom"),
    ),
    Deviation(
        Topic.NO_ATPS,
        "Debian's OpenDKIM adds `dkim-atps=neutral` to each Authentication-Results field.",
        "Here it is not added.",
        "ATPS (RFC 6541) is an experiment that nobody took up.",
    ),
    Deviation(
        Topic.MALFORMED,
        "OpenDKIM reports `dkim=permerror` for a message without a From that it can read.",
        "Here its signatures are verified and reported like those of any other message.",
        "What is wrong with From does not change what a signature proves.",
    ),
    Deviation(
        Topic.LONG_HEADER,
        "OpenDKIM defers messages with more than 64 KiB of header, unless told otherwise.",
        "Here they are signed and verified like all others, unless MaximumHeaders or On-Security is set.",
        "Postfix has limits of its own (header_size_limit).",
    ),
    Deviation(
        Topic.LONG_LINES,
        "OpenDKIM signs lines of more than 998 bytes as they come in, though Postfix breaks them when it sends them: "
        "such signatures never verify.",
        "Here they are signed as Postfix will send them (signing.line_length_limit).",
        "Newsletters and programs write such lines.",
    ),
    Deviation(
        Topic.LAST_LINE,
        "With the relaxed body canonicalization OpenDKIM neither signs nor judges a message whose last line has no "
        "line end.",
        "Here the line end is added first, as RFC 6376 section 3.4.4 asks.",
        "Postfix sends no such line; other programs may.",
        ("Canonicalization",),
    ),
    Deviation(
        Topic.SAME_KEY_TWICE,
        "With MultipleSignatures OpenDKIM signs twice with one key that two lines name.",
        "Here each key signs once.",
        "The second signature says nothing more.",
        ("MultipleSignatures",),
    ),
    Deviation(
        Topic.SIGNATURE_ERROR,
        "OpenDKIM rejects mail whose signature it fails to make (On-SignatureError).",
        "Here it is deferred.",
        "It can still leave signed once the key is fixed.",
        ("On-SignatureError",),
    ),
    Deviation(
        Topic.DETAIL,
        "OpenDKIM reports `dkim=fail` where a key is missing or revoked, `dkim=permerror` where a signature has "
        "expired or is from the future, nothing where it cannot be parsed at all, and verifies three signatures "
        "(unless MaximumSignaturesToVerify says otherwise).",
        "Here it is permerror, fail, permerror, and eight; the field has the reason in words, header.s and header.a.",
        "RFC 8601 section 2.7.1 has these words.",
    ),
    Deviation(
        Topic.SIGNALS,
        "SIGHUP ends OpenDKIM; SIGUSR1 makes it read its configuration again, without the command line's options.",
        "Here both make it read again with these options, and one with mistakes leaves the old one in force.",
        "A typo must not stop a relay.",
    ),
    Deviation(
        Topic.LOG,
        "OpenDKIM logs sentences.",
        "Here each message has one line of `name=value` pairs, with the reason and what was decided.",
        "`grep queue_id=` finds everything about one message.",
        ("Syslog", "SyslogSuccess", "LogWhy", "LogResults"),
    ),
    Deviation(
        Topic.STRICT_CONFIGURATION,
        "OpenDKIM treats an unknown On-… value as if there were none, and reports only the first mistake.",
        "Here every mistake is an error with its file and line.",
        "Silence is how settings get lost.",
    ),
    Deviation(
        Topic.REPLIES,
        "OpenDKIM refuses with 550 5.7.0 or 451 4.7.0.",
        "Here the codes are those of RFC 7372, 5.7.20 and 4.7.5, and the text says what is wrong.",
        "The sender's postmaster can act on them.",
        ("On-BadSignature", "On-NoSignature", "On-KeyNotFound", "On-DNSError", "On-Security", "RequiredHeaders"),
    ),
    Deviation(
        Topic.KEY_OWNER,
        "OpenDKIM considers a key safe if it and its folders belong to root or to the user that it runs as.",
        "Here they may also belong to the user `opendkim`, whoever runs gatekeeper.",
        "Debian's keys do, and stay as they are when gatekeeper takes over.",
        ("KeyTable", "KeyFile"),
    ),
    Deviation(
        Topic.STICKY_FOLDER,
        "OpenDKIM considers no key safe below a folder that others may write to, not even below /tmp.",
        "Here such a folder is fine if it is sticky.",
        "There, nobody can replace another user's files.",
        ("KeyTable", "KeyFile"),
    ),
    Deviation(
        Topic.AUTHSERV_ID,
        "Without AuthservID OpenDKIM uses the name of the MTA that connects in Authentication-Results.",
        "Here it is the myhostname of this host's Postfix, or without one the name of the host.",
        "One relay has one name: set AuthservID if the MTA is on another host.",
    ),
)
