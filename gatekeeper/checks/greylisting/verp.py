# SPDX-License-Identifier: GPL-3.0-or-later
"""Normalization of sender addresses: what differs from message to message is replaced.

Bounce addresses (VERP) contain a number, a hash or the recipient's address; if these were kept, each mail would for
ever be the first of its triplet. What varies becomes `#`:

    prvs=1234abcdef=ann@example.com                    ann@example.com                  BATV
    btv1==1234abcdef==ann@example.com                  ann@example.com                  Barracuda
    msprvs1=18223xyz=bounces-12345@mx.example.com      bounces-#@mx.example.com         SparkPost
    SRS0=Ab1c=XY=example.com=ann@forward.example       srs0=#=#=example.com=ann@…       SRS, SRS1 too
    ann+caf_=me=example.com@gmail.com                  ann@gmail.com                    any +extension
    bounces+1234-a1b2-ann=example.com@em.example.com   bounces@em.example.com           SendGrid, Mailman, Sympa
    list-return-1234-ann=example.com@lists.example     list-return-#@lists.example      ezmlm, bounce-1234-… of others
    0102018f…-000000@eu-west-1.amazonses.com           #@eu-west-1.amazonses.com        Amazon SES

Two people stay two: numbers and long words are replaced only next to a word such as `bounce`, an encoded address, or
what is certainly a hash; `ann.1985@`, `ann.1986@` and `12345@` are left alone. Known limit: a random word without
digits and without such a neighbour is taken for a name.
"""

import re

_MAX_LENGTH = 512
"""Characters; no correct sender comes near (RFC 5321 section 4.5.3.1), and a longer one is left as it is."""

_ORDINARY = re.compile(r"[a-z0-9]{1,15}|[^\W\d_]+(?:\.[^\W\d_]+)*")
"""Too short for a hash and without separators, or of letters and dots only: no pattern below would match."""
_BATV = re.compile(r"prvs=([^=]+)=([^=]+(?:=.*)?)")
_TAG = re.compile(r"[0-9a-z]{10}")
_WRAPPED = re.compile(r"(?:btv1==[^=]+==|msprvs1=[^=]+=)(.+)")
_SRS0 = re.compile(r"srs0[=+-][^=]+=[^=]+=([^=]+)=(.+)")
_SRS1 = re.compile(r"srs1[=+-][^=]+=([^=]+)==?([^=]+=[^=]+=[^=]+=.+)")
_ENCODED = re.compile(r"([^=*]+)[-=*][^-=*]+=[^=*]+\.[^=*]+")
"""`list-1234-ann=example.com`; `ann=example.com` alone is a person at a gateway."""
_LISTSERV = re.compile(r"([^*]+)\*.+\*.+")
"""`owner-list*ann**example*-com`"""
_BOUNCE = re.compile(r"((?:.*[-._])?(?:bounced?|bounces|return|returns|rtn|verp|fbl)\d*)[-._=](.*[0-9#].*)")
_HASH = re.compile(
    r"(?<![0-9a-z])(?:[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|(?=(?:[a-f]*[0-9]){4})(?=(?:[0-9]*[a-f]){2})[0-9a-f]{16,}"
    r"|(?=[0-9a-z]{20})[0-9]*(?:[a-z]+[0-9]+){3,}[a-z]*)(?![0-9a-z])"
)
"""A UUID; sixteen or more hexadecimal digits, figures and letters; or twenty or more characters that alternate.

The last means that letters and digits take turns at least three times.
"""
_NUMBERED = re.compile(r"(?<![^-._=*+#])[0-9a-z#]*[0-9#][0-9a-z#]*(?![^-._=*+#])")
_RUN = re.compile(r"#(?:[-._=*+]*#)+")
_POSTGREY = re.compile(r"\b\d+\b", re.ASCII)


def normal_sender(sender: str) -> str:
    """Return `sender` in lower case, without what differs from message to message. The function is idempotent."""
    sender = sender.lower()
    local, at, domain = sender.rpartition("@")
    if not at or _ORDINARY.fullmatch(local) or local[:1] == '"' or len(sender) > _MAX_LENGTH:
        return sender
    before = ""
    while before != local:
        before, local = local, _unwrap(local)
    return f"{local}@{domain}"


def postgrey_sender(normal: str) -> str:
    """Return an address from normal_sender() as postgrey would have kept it: every number that stands alone is `#`."""
    local, at, domain = normal.rpartition("@")
    return f"{_POSTGREY.sub('#', local)}{at}{domain}" if at else normal


def _unwrap(local: str) -> str:
    if match := _BATV.fullmatch(local):
        tag, user = match[1], match[2]
        # The BATV draft has prvs=TAG=user, some software the other way round.
        return tag if _TAG.fullmatch(user) and not _TAG.fullmatch(tag) else user
    if match := _WRAPPED.fullmatch(local):
        return match[1]
    if match := _SRS0.fullmatch(local):
        return f"srs0=#=#={match[1]}={_unwrap(match[2])}"
    if match := _SRS1.fullmatch(local):
        return f"srs1=#={match[1]}=={_unwrap('srs0=' + match[2]).removeprefix('srs0=')}"
    if (plus := local.find("+", 1)) > 0:
        return local[:plus]
    return _RUN.sub("#", _mask_varying(local))


def _mask_varying(local: str) -> str:
    if match := _BOUNCE.fullmatch(local):
        return f"{_NUMBERED.sub('#', match[1])}-#"
    if match := _LISTSERV.fullmatch(local) or _ENCODED.fullmatch(local):
        return f"{_NUMBERED.sub('#', match[1])}-#"
    if _HASH.search(local):
        return _NUMBERED.sub("#", _HASH.sub("#", local))
    return local
