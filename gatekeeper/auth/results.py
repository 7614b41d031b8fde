# SPDX-License-Identifier: GPL-3.0-or-later
"""Building the Authentication-Results field that we add (RFC 8601).

authres knows the syntax but sanitises nothing, so everything is made safe before it gets there: of a stranger's words
only domains in normal form, addresses and plain tokens become properties, and what goes into a comment can neither end
it nor look like a result to a reader who only searches for `dkim=pass`. What does not fit is left out. The size is
bounded by the limits on each value and on the number of signatures.
"""

import re
from collections.abc import Collection, Coroutine, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Protocol

from authres.core import AuthenticationResult, AuthenticationResultProperty

from gatekeeper.auth.arc import ArcFinding, ArcResult
from gatekeeper.auth.dkim import NOT_SIGNED, DkimFinding
from gatekeeper.auth.dmarc import DmarcFinding, DmarcResult
from gatekeeper.auth.forged_results import claims_to_be_ours
from gatekeeper.auth.iprev import IprevFinding
from gatekeeper.auth.spf import SpfFinding
from gatekeeper.core.message import Header
from gatekeeper.core.verdict import printable

__all__ = ["AllFindings", "Method", "authentication_results", "claims_to_be_ours", "results_field"]


class Method(StrEnum):
    """The authentication methods that can be reported (RFC 8601 section 2.7)."""

    SPF = "spf"
    IPREV = "iprev"
    DKIM = "dkim"
    DMARC = "dmarc"
    ARC = "arc"


ALL_METHODS = tuple(Method)

_MAX_COMMENT = 160
_MAX_LINE = 78
_FOLD = "\r\n\t"
_UNFIT_FOR_COMMENT = re.compile(r"[^A-Za-z0-9 .,:/_@%+*~'-]")
# in our own reasons, to remove brackets and equals signs: "has expired (x=)", "not valid (RFC 8301)", "the tag b="
_TAG_REMARK = re.compile(r" \(([a-z]{1,2})=(\w?)\)")
_REMARK = re.compile(r" \(([^()]*)\)")
_TAG = re.compile(r"\b([a-z]{1,2})=(?!\w)")
_TOKEN = re.compile(r"[A-Za-z0-9._-]{1,255}\Z")
_ADDRESS = re.compile(r"[0-9A-Fa-f.:]{2,45}\Z")
_LOCAL_PART = re.compile(r"[A-Za-z0-9._+-]{0,64}\Z")
_BASE64 = re.compile(r"[A-Za-z0-9+/=]{1,8}\Z")


class AllFindings(Protocol):
    """Where the findings of one message come from: gatekeeper.pipeline.facts."""

    def iprev(self) -> Coroutine[object, object, IprevFinding]: ...
    def spf(self) -> Coroutine[object, object, SpfFinding]: ...
    def helo_spf(self) -> Coroutine[object, object, SpfFinding]: ...
    def dkim(self) -> Coroutine[object, object, tuple[DkimFinding, ...]]: ...
    def dmarc(self) -> Coroutine[object, object, DmarcFinding]: ...
    def arc(self) -> Coroutine[object, object, ArcFinding]: ...


async def authentication_results(
    authserv_id: str, findings: AllFindings, methods: Collection[Method] = ALL_METHODS
) -> Header:
    """Return our field for one message, with the results of `methods`; waits for those not known yet."""
    iprev = await findings.iprev() if Method.IPREV in methods else None
    spf, helo_spf = (await findings.spf(), await findings.helo_spf()) if Method.SPF in methods else (None, None)
    dkim = await findings.dkim() if Method.DKIM in methods else ()
    dmarc = await findings.dmarc() if Method.DMARC in methods else None
    arc = await findings.arc() if Method.ARC in methods else None
    spf_findings = [found for found in (spf, helo_spf) if found is not None]
    if spf is not None and spf.identity == "helo":
        spf_findings = [spf]
    return results_field(authserv_id, iprev=iprev, spf=spf_findings, dkim=dkim, dmarc=dmarc, arc=arc)


async def is_empty_result(findings: AllFindings, methods: Collection[Method]) -> bool:
    """Return whether DKIM is the only method, and the message is not signed."""
    return tuple(methods) == (Method.DKIM,) and await findings.dkim() == (NOT_SIGNED,)


def results_field(
    authserv_id: str,
    *,
    iprev: IprevFinding | None = None,
    spf: Sequence[SpfFinding] = (),
    dkim: Sequence[DkimFinding] = (),
    dmarc: DmarcFinding | None = None,
    arc: ArcFinding | None = None,
) -> Header:
    """Return one Authentication-Results field with all results: printable ASCII, folded with CRLF and a tab."""
    results = [] if iprev is None else [_iprev(iprev)]
    results += map(_spf, spf)
    results += map(_dkim, dkim)
    if dmarc is not None:
        results.append(_dmarc(dmarc))
    if arc is not None:
        results.append(_arc(arc))
    text = _FOLD.join([f" {_quoted(authserv_id)};", *(results or ["none;"])])
    return Header(b"Authentication-Results", text.removesuffix(";").encode("ascii"))


# The same clients, domains and policies come again and again, and building one result takes 30 µs.
@lru_cache(maxsize=512)
def _iprev(found: IprevFinding) -> str:
    return _result("iprev", found.result, found.reason, ("policy", "iprev", found.address, _ADDRESS))


@lru_cache(maxsize=512)
def _spf(found: SpfFinding) -> str:
    return _result("spf", found.result, found.reason, ("smtp", found.identity, found.domain, _TOKEN))


def _dkim(found: DkimFinding) -> str:
    local, at, domain = found.identity.rpartition("@")
    # the local part is the signer's to choose, and it may look like a result
    identity = (local if _LOCAL_PART.match(local) else "") + at + domain if _TOKEN.match(domain) else ""
    return _result(
        "dkim",
        found.result,
        found.reason + (", the domain is testing" if found.testing else ""),
        ("header", "d", found.domain, _TOKEN),
        ("header", "i", identity, None),
        ("header", "s", found.selector, _TOKEN),
        ("header", "a", found.algorithm, _TOKEN),
        ("header", "b", found.b, _BASE64),
    )


@lru_cache(maxsize=512)
def _dmarc(found: DmarcFinding) -> str:
    """Return the result with the properties that RFC 9989 registers.

    They are `p=` of the record, and its domain if that is not the From domain itself. `policy.dmarc` is the policy to
    be applied after `sp`, `np` and `t`, as other verifiers report it.
    """
    policy = found.policy if found.result is DmarcResult.FAIL else ""
    elsewhere = found.record_domain if found.record_domain != found.domain else ""
    return _result(
        "dmarc",
        found.result,
        found.reason,
        ("header", "from", found.domain, _TOKEN),
        ("polrec", "p", found.record_policy, _TOKEN),
        ("polrec", "domain", elsewhere, _TOKEN),
        ("policy", "dmarc", policy, _TOKEN),
    )


def _arc(found: ArcFinding) -> str:
    """Return the result (RFC 8617 sections 10.2 and 10.3); a sealer after us needs it in our field."""
    oldest = str(found.oldest_pass) if found.result is ArcResult.PASS else ""
    return _result(
        "arc",
        found.result,
        found.reason,
        ("header", "oldest-pass", oldest, _TOKEN),
        ("smtp", "remote-ip", found.remote_ip, _ADDRESS),
    )


def _result(method: str, result: str, reason: str, *properties: tuple[str, str, str, re.Pattern[str] | None]) -> str:
    """Return one result, folded, with its semicolon; property values that do not match their pattern are left out."""
    fit = [
        AuthenticationResultProperty(kind, name, value)
        for kind, name, value, pattern in properties
        if value and (pattern is None or pattern.match(value))
    ]
    text = _TAG.sub(r"\1", _REMARK.sub(r", \1", _TAG_REMARK.sub(r" tag \1 \2", reason))).replace("  ", " ").rstrip()
    comment = _UNFIT_FOR_COMMENT.sub("?", printable(text, _MAX_COMMENT))
    return _folded(f"{AuthenticationResult(method, result=result, result_comment=comment, properties=fit)};")


def _quoted(authserv_id: str) -> str:
    """Return our authserv-id (from the configuration) as a token, or quoted if it is not one."""
    if _TOKEN.match(authserv_id):
        return authserv_id
    return '"' + re.sub(r'(["\\])', r"\\\1", printable(authserv_id, 255)) + '"'


def _folded(result: str) -> str:
    """Fold a long result between words; no quoted string in it contains a space."""
    lines = [""]
    for word in result.split(" "):
        if lines[-1] and len(lines[-1]) + len(word) >= _MAX_LINE - 8:
            lines.append(word)
        else:
            lines[-1] += " " + word if lines[-1] else word
    return _FOLD.join(lines)
