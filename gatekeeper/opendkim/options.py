# SPDX-License-Identifier: GPL-3.0-or-later
"""Every option that an opendkim.conf can have, and what becomes of it here.

The names are those of OpenDKIM 2.11 with all its build options, of 2.10 and before, and of what has been added since
(`opendkim-config.h`). An unsupported option that would change which mail is signed or refused is an error: a warning
would go unnoticed in the logs of a relay. The others are left out, with a comment.
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class OptionKind(StrEnum):
    """How OpenDKIM reads the value."""

    BOOLEAN = "boolean"
    INTEGER = "integer"
    STRING = "string"
    INCLUDE = "include"


class Fate(StrEnum):
    """What becomes of an option."""

    WORKS = "works"
    NEEDLESS = "needless"
    """Accepted; there is nothing for it to do."""
    IGNORED = "ignored"
    """Accepted with a warning: it has no effect, and this changes neither which mail is signed nor which is refused."""
    REFUSED = "refused"
    """An error: without it, other mail would be signed or refused."""


@dataclass(frozen=True, slots=True)
class ConfOption:
    """An option of opendkim.conf.

    `comment` says what is done instead or what to use instead; for an option that works, what is different, if
    anything.
    """

    name: str
    kind: OptionKind
    fate: Fate
    comment: str = ""


_WORKS = {
    OptionKind.BOOLEAN: {
        "AlwaysAddARHeader": "",
        "AuthservIDWithJobID": "",
        "Background": "the command ends once the workers serve, and with an error if they do not",
        "KeepAuthResults": "",
        "LogResults": "each line about a message has its result",
        "LogWhy": "each condition gets a line, without Syslog on standard error (-f)",
        "MultipleSignatures": "",
        "RemoveARAll": "",
        "RemoveOldSignatures": "",
        "RequestReports": "",
        "RequiredHeaders": "",
        "RequireSafeKeys": "",
        "SoftwareHeader": "the field is called DKIM-Filter and names gatekeeper",
        "SubDomains": "",
        "Syslog": "where there is no /dev/log, the lines go to standard error",
        "SyslogSuccess": "",
        "X-Header": "the same as SoftwareHeader",
    },
    OptionKind.INTEGER: {
        "ClockDrift": "",
        "DNSTimeout": "0 (no limit) means 60 s",
        "MaximumHeaders": "without it, and without On-Security, there is no limit but Postfix's header_size_limit",
        "MaximumSignaturesToVerify": "8 by default; 0 means 100, with third parties', which OpenDKIM then leaves out",
        "MaximumSignedBytes": "",
        "MinimumKeyBits": "RSA keys below 1024 bits are never accepted (RFC 8301)",
        "SignatureTTL": "",
        "UMask": "",
    },
    OptionKind.STRING: {
        "AuthservID": "",
        "BaseDirectory": "",
        "Canonicalization": "",
        "Domain": "",
        "DontSignMailTo": "",
        "ExemptDomains": "",
        "ExternalIgnoreList": "",
        "InternalHosts": "",
        "KeyFile": "it is read before root privileges are dropped",
        "KeyTable": "keys are read before root privileges are dropped, so no worker can read a key file",
        "MacroList": "",
        "Mode": "",
        "MTA": "",
        "Nameservers": "",
        "OmitHeaders": "",
        "On-BadSignature": "",
        "On-Default": "",
        "On-DNSError": "",
        "On-InternalError": "",
        "On-KeyNotFound": "",
        "On-NoSignature": "",
        "On-Security": "it applies to headers larger than MaximumHeaders",
        "OverSignHeaders": "",
        "PeerList": "",
        "PidFile": "",
        "RemoveARFrom": "",
        "Selector": "",
        "SenderHeaders": "",
        "SignatureAlgorithm": "rsa-sha1 is never valid (RFC 8301): rsa-sha256 is used",
        "SignHeaders": "",
        "SigningTable": "",
        "Socket": "",
        "SyslogFacility": "",
        "SyslogName": "",
        "UserID": "without it workers run as gatekeeper or nobody; OpenDKIM stays root",
    },
    OptionKind.INCLUDE: {"Include": ""},
}

_LDAP = "there are no LDAP tables; write their contents to a text file"
_REPUTATION = "there is no reputation service; gatekeeper's policy daemon has DNS lists and rate limits"
_ADSP = "ADSP is historic (RFC 5617 was withdrawn in 2013); DMARC took its place: verify.dmarc in gatekeeper.toml"
_REPORTS = "no failure reports are sent (RFC 6651); DMARC's aggregate reports tell domains what fails"
_STATISTICS = "no statistics file is written; each line in the log has the result"
_VBR = "Vouch By Reference (RFC 5518) has no users left"
_ATPS = "Authorized Third-Party Signatures (RFC 6541) were never taken up"
_LUA = "there is no Lua; look for an option that does what the script does"
_DEBUGGING = "for debugging OpenDKIM; `gatekeeper explain --message FILE` says why a message is signed or not"
_RESIGN = "mail is signed or verified, never both; sign as the mailing list with a SigningTable line for it"

_NEEDLESS = {
    OptionKind.BOOLEAN: {
        "AllowSHA1Only": "SHA-256 is always available",
        "AutoRestart": "a worker that dies is always replaced",
        "CheckSigningTable": "the tables are always checked",
        "DisableCryptoInit": "there is only one library",
        "DNSConnect": "TCP is used where UDP is not enough",
        "DomainKeysCompat": "DomainKeys (RFC 4870) keys are like DKIM keys, except the granularity, which is ignored",
        "EnableCoredumps": "the service manager decides",
        "KeepTemporaryFiles": _DEBUGGING,
        "LDAPDisableCache": _LDAP,
        "LDAPSoftStart": _LDAP,
        "LDAPUseTLS": _LDAP,
        "Quarantine": "OpenDKIM 2.11 reads it and does nothing; use On-BadSignature quarantine",
        "QueryCache": "answers are always cached for their time to live",
        "ResolverTracing": _DEBUGGING,
        "SoftStart": _LDAP,
        "StdoutLog": "without Syslog the log goes to standard error",
        "StrictTestMode": "files are read as Postfix would send them",
        "WeakSyntaxChecks": "a malformed From never keeps signatures from being verified",
    },
    OptionKind.INTEGER: {
        "AutoRestartCount": "a worker that dies is always replaced",
        "MilterDebug": _DEBUGGING,
    },
    OptionKind.STRING: {
        "AutoRestartRate": "a worker that keeps dying waits up to 30 s before it is started again",
        "TemporaryDirectory": "no temporary files are written",
        "TrustAnchorFile": "DNSSEC is validated by the resolver that is asked; name one of yours in Nameservers",
        **dict.fromkeys(
            (
                "LDAPAuthMechanism",
                "LDAPAuthName",
                "LDAPAuthRealm",
                "LDAPAuthUser",
                "LDAPBindPassword",
                "LDAPBindUser",
                "LDAPKeepaliveIdle",
                "LDAPKeepaliveInterval",
                "LDAPKeepaliveProbes",
                "LDAPTimeout",
            ),
            _LDAP,
        ),
    },
}

_IGNORED = {
    OptionKind.BOOLEAN: {
        "AddAllSignatureResults": "the result of every signature is always reported",
        "ADSPNoSuchDomain": _ADSP,
        "CaptureUnknownErrors": "a message that we fail to process is passed on; On-InternalError quarantine holds it",
        "Diagnostics": "no z= is written: it copies the header into the signature",
        "DisableADSP": _ADSP,
        "FixCRLF": "Postfix sends no bare CR or LF: it ends lines with them before a milter sees the message",
        "IdentityHeaderRemove": "identities come from the SigningTable's second field",
        "IgnoreMalformedMail": "a malformed message gets no field that says so, unless it has a signature",
        "NoHeaderB": "header.b is always reported: it distinguishes signatures (RFC 6008)",
        "ReputationTest": _REPUTATION,
        "ReputationVerbose": _REPUTATION,
        "SendADSPReports": _ADSP,
        "SendReports": _REPORTS,
        "StrictHeaders": "mail with several From fields is never signed; other fields may occur twice",
        "VBR-PurgeFields": _VBR,
        "VBR-TrustedCertifiersOnly": _VBR,
    },
    OptionKind.INTEGER: {
        "DKIMReputationFail": _REPUTATION,
        "DKIMReputationPass": _REPUTATION,
        "DKIMReputationReject": _REPUTATION,
        "FlowDataFactor": _REPUTATION,
        "FlowDataTTL": _REPUTATION,
        "ReputationCacheTTL": _REPUTATION,
        "ReputationMinimum": _REPUTATION,
        "ReputationRRDHashDepth": _REPUTATION,
        "ReputationTimeFactor": _REPUTATION,
        "ReputationTimeout": _REPUTATION,
    },
    OptionKind.STRING: {
        "ADSPAction": _ADSP,
        "AddCanonicalizedData": _DEBUGGING,
        "ATPSDomains": _ATPS,
        "ATPSHashAlgorithm": _ATPS,
        "BodyLengthDB": "no l= is written for single recipients: it lets anybody add to the message; "
        "MaximumSignedBytes writes it for all",
        "BogusKey": "a validating resolver does not hand out bogus keys; such a signature is a temperror",
        "DiagnosticDirectory": _DEBUGGING,
        "DKIMReputationRoot": _REPUTATION,
        "FlowData": _REPUTATION,
        "LocalADSP": _ADSP,
        "Minimum": "l= is accepted, and the field says how much of the body is unsigned; l=0 never counts",
        "MTACommand": _REPORTS,
        "MustBeSigned": "a signature must cover From; which other fields it covers is not checked",
        "NoDiscardableMailTo": _ADSP,
        "On-PolicyError": _ADSP,
        "On-ReputationError": _REPUTATION,
        "On-SignatureError": "mail whose signature cannot be made is deferred until the key is fixed",
        "RateLimits": _REPUTATION,
        "ReportAddress": _REPORTS,
        "ReportBccAddress": _REPORTS,
        **dict.fromkeys(
            (
                "ReputationCache",
                "ReputationDuplicates",
                "ReputationLimitModifiers",
                "ReputationLimits",
                "ReputationLowTime",
                "ReputationRatios",
                "ReputationRRDRoot",
                "ReputationSpamCheck",
            ),
            _REPUTATION,
        ),
        "ResolverConfiguration": "there is no libunbound here; name a resolver in Nameservers",
        "SelectCanonicalizationHeader": "a sender does not choose how we sign; Canonicalization applies to all",
        "SMTPURI": _REPORTS,
        "Statistics": _STATISTICS,
        "StatisticsName": _STATISTICS,
        "StatisticsPolicyScript": _STATISTICS,
        "StatisticsPrefix": _STATISTICS,
        "TrustSignaturesFrom": "signatures of other domains are always verified",
        "UnprotectedKey": "whether a key was protected by DNSSEC is not reported",
        "VBR-Certifiers": _VBR,
        "VBR-TrustedCertifiers": _VBR,
        "VBR-Type": _VBR,
    },
}

_TESTING = "for tests of OpenDKIM; use `gatekeeper verify --dns FILE`, or name a test resolver in Nameservers"
_REFUSED = {
    OptionKind.BOOLEAN: {"LuaOnlySigning": _LUA, "ResignAll": _RESIGN},
    OptionKind.INTEGER: {},
    OptionKind.STRING: {
        "ChangeRootDirectory": "remove it and give Socket its full path: workers have no privileges and read no files",
        "ConditionalSignatures": "conditional signatures never became a standard; remove it",
        "DefaultSender": "mail without a readable From is not signed; remove it",
        "FinalPolicyScript": _LUA,
        "IdentityHeader": "write i= into the second field of the SigningTable",
        "POPDBFile": "POP before SMTP is not supported; let users authenticate, or list them in InternalHosts",
        "RedirectFailuresTo": "mail is not redirected; use On-BadSignature quarantine and read Postfix's hold queue",
        "ReplaceHeaders": "the milter sees what Postfix sends; let smtpd rewrite before the milter, and remove it",
        "ReplaceRules": "the milter sees what Postfix sends; let smtpd rewrite before the milter, and remove it",
        "ResignMailTo": _RESIGN,
        "ScreenPolicyScript": _LUA,
        "SenderMacro": "the sender is the one in From or in SenderHeaders; remove it",
        "SetupPolicyScript": _LUA,
        "TestDNSData": _TESTING,
        "TestPublicKeys": _TESTING,
    },
}


def _options() -> Iterator[ConfOption]:
    for fate, kinds in (
        (Fate.WORKS, _WORKS),
        (Fate.NEEDLESS, _NEEDLESS),
        (Fate.IGNORED, _IGNORED),
        (Fate.REFUSED, _REFUSED),
    ):
        for kind, options in kinds.items():
            for name, comment in options.items():
                yield ConfOption(name, kind, fate, comment)


OPTIONS = {option.name.lower(): option for option in _options()}
"""Every option by its name in lower case: OpenDKIM's names are case-insensitive."""


def suggestion(name: str) -> str:
    """Say what to do about the name of an option that OpenDKIM never had."""
    near = difflib.get_close_matches(name.lower(), OPTIONS, n=1, cutoff=0.7)
    if near:
        return f"did you mean {OPTIONS[near[0]].name}?"
    return "OpenDKIM never had it either; opendkim.conf(5) lists all options"
