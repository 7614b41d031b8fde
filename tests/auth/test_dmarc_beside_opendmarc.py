# SPDX-License-Identifier: GPL-3.0-or-later
"""DMARC beside Debian's libopendmarc, where RFC 7489 and 9989 say the same: records, alignment, subdomains.

Left out is what RFC 9989 changed (np, psd, t, pct, the tree walk across several records), and how From is read. The
library is asked by ctypes, with records of its own instead of the DNS and a list of public suffixes.

Where alignment is strict (adkim=s, aspf=s) this library lets the whole organization pass; with us it is equality. It
also takes a public suffix that passes for aligned with all below it.
"""

import asyncio
import ctypes
from itertools import product
from pathlib import Path

import pytest

from gatekeeper.auth.dkim import DkimFinding, DkimResult
from gatekeeper.auth.dmarc import DmarcResult, check_dmarc
from gatekeeper.auth.spf import SpfFinding, SpfResult
from gatekeeper.core.message import Header
from gatekeeper.dnsclient.resolver import TableResolver
from gatekeeper.dnsclient.zone import Zone
from tests.support.needs import missing
from tests.support.zones import txt

PASS = 1
_SAYS = {14: "none", 15: "pass", 16: "reject", 17: "quarantine", 18: "fail"}
"""libopendmarc's DMARC_POLICY_…; `fail` is a policy of none."""
RECORDS = [
    "v=DMARC1; p=none",
    "v=DMARC1; p=quarantine",
    "v=DMARC1; p=reject; adkim=r; aspf=r",
    "v=DMARC1; p=reject; sp=none",
    "v=DMARC1;p=none;sp=reject;",
    "v=DMARC1; p=reject; adkim=s",
    "v=DMARC1; p=reject; aspf=s; rua=mailto:a@b.example,mailto:c@d.example!10m; fo=1:d:s",
    "v=DMARC1 ; p = reject ; adkim = s ; aspf = s",
    "v=DMARC1; p=reject; unknown=tag",
    "v=spf1 -all",
    "v=DMARC2; p=reject",
]
AUTHORS = ["{}", "a.{}", "a.b.{}"]
IDENTIFIERS = ["", "{}", "a.{}", "b.{}", "x.a.b.{}", "not{}", "other.com"]


class _Library(ctypes.Structure):
    """OPENDMARC_LIB_T, with room behind for what a newer one adds."""

    _fields_ = [("kind", ctypes.c_int), ("suffixes", ctypes.c_char * 4096), ("rest", ctypes.c_char * 8192)]


@pytest.fixture(scope="module")
def opendmarc(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libopendmarc.so.2")
    except OSError:
        missing("libopendmarc is not installed: apt-get install libopendmarc2")
    suffixes: Path = tmp_path_factory.mktemp("opendmarc") / "suffixes"
    suffixes.write_text("com\nuk\nco.uk\n")
    assert 0 == library.opendmarc_policy_library_init(ctypes.byref(_Library(1, str(suffixes).encode())))
    library.opendmarc_policy_connect_init.restype = ctypes.c_void_p
    return library


def its_opinion(library: ctypes.CDLL, author: str, spf: str, dkim: str) -> str:
    context = ctypes.c_void_p(library.opendmarc_policy_connect_init(b"192.0.2.1", 0))
    try:
        library.opendmarc_policy_store_from_domain(context, author.encode())
        library.opendmarc_policy_query_dmarc(context, author.encode())
        if spf:
            library.opendmarc_policy_store_spf(context, spf.encode(), PASS, 1, None)
        if dkim:
            library.opendmarc_policy_store_dkim(context, dkim.encode(), b"s", PASS, None)
        return _SAYS[library.opendmarc_get_policy_to_enforce(context)]
    finally:
        library.opendmarc_policy_connect_shutdown(context)


def our_opinion(resolver: TableResolver, author: str, spf: str, dkim: str) -> str:
    found = asyncio.run(
        check_dmarc(
            resolver,
            [Header(b"From", f" a@{author}".encode())],
            SpfFinding(SpfResult.PASS if spf else SpfResult.NONE, domain=spf),
            [DkimFinding(DkimResult.PASS, domain=dkim)] if dkim else [],
        )
    )
    if found.result is not DmarcResult.FAIL:
        return str(found.result)
    return "fail" if found.policy == "none" else str(found.policy)


@pytest.mark.parametrize("number", range(len(RECORDS)), ids=RECORDS.__getitem__)
@pytest.mark.parametrize("suffix", ["com", "co.uk"])
def test_both_say_the_same_of_a_domain(opendmarc: ctypes.CDLL, number: int, suffix: str) -> None:
    domain = f"d{number}.{suffix}"
    opendmarc.opendmarc_dns_fake_record(f"_dmarc.{domain}".encode(), RECORDS[number].encode())
    resolver = TableResolver(Zone.parse(f"_dmarc.{domain} TXT {txt(RECORDS[number])}"))
    strict = "=s" in RECORDS[number].replace(" ", "")
    wrong = []
    for names in product(AUTHORS, IDENTIFIERS, ["", *IDENTIFIERS[1:3]]):
        author, spf, dkim = (name.format(domain) for name in names)
        both = its_opinion(opendmarc, author, spf, dkim), our_opinion(resolver, author, spf, dkim)
        if both[0] != both[1] and not (strict and both[0] == "pass"):
            wrong.append((author, spf, dkim, *both))
    assert [] == wrong, "\n".join(map(str, wrong))
