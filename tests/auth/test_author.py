# SPDX-License-Identifier: GPL-3.0-or-later
"""From is read in one way by those who judge and those who sign, and what a mail program shows of it is read."""

import asyncio
import ctypes
import email.utils
import re
from collections.abc import Callable, Iterator
from email.headerregistry import HeaderRegistry

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gatekeeper.auth.author import MAX_DOMAINS, Named, author_of, read_mailboxes
from gatekeeper.auth.dkim import DkimFinding, DkimResult
from gatekeeper.auth.dmarc import DmarcFinding, DmarcPolicy, DmarcResult, check_dmarc
from gatekeeper.auth.domains import normal_domain
from gatekeeper.auth.spf import SpfFinding, SpfResult
from gatekeeper.core.message import Header
from gatekeeper.dnsclient.resolver import TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.signing.message_sender import parse_senders
from tests.support.needs import missing

BANK, EVIL = "bank.example", "evil.example"


def domains(*values: bytes) -> tuple[str, ...]:
    return author_of([Header(b"From", value) for value in values]).domains


# --- One domain, however odd the form


@pytest.mark.parametrize(
    "value",
    [
        b" service@bank.example",
        b" Bank <service@Bank.EXAMPLE>",
        b" Customer Service, Bank <service@bank.example>",
        b" Bank <service@bank.example>, Customer Service",
        b" Bank: service@bank.example;",
        b" Bank: Service <service@bank.example>",
        b" Bank; Service <service@bank.example>",
        b" Bank ;-) <service@bank.example>",
        b" Service @ Bank <service@bank.example>",
        b" Service @ St. Mary <service@bank.example>",
        b" Foo\\Bar <service@bank.example>",
        b" Service] [Bank <service@bank.example> ]",
        b" Bank <3 <service@bank.example>",
        b" <<service@bank.example>>",
        b" Bank <service@bank.example",
        b" service@bank.example>",
        b" Bank service@bank.example",
        b" <service@bank.example> Bank",
        b' "Bank <service@bank.example>',
        b" Bank (service <service@bank.example>",
        b" service@bank.example (open",
        b" [Bank <service@bank.example>",
        b" service@bank.example.",
        b" service@bank..example",
        b" service@.bank.example",
        b" service@ba=nk.example",
        b" service@ba\\nk.example",
        b' service@"bank.example"',
        b" service@bank\x00.example",
        b" service@ba\x0bnk.example",
        b" service@bank\n.example",
        b" service @ bank . example",
        b" service@(a (nested\\)) comment)bank(x).example",
        b" service@bank.\r\n\texample",
        " service@bank\u200b.example".encode(),
        " service@bank\u00a0.example".encode(),
        " service@bank。example".encode(),
        b" service@bank.example, service@[192.0.2.1]",
        b" service@" + b"a" * 64 + b".bank.example",
        b" service@" + b"a." * 130 + b"bank.example",
        b" bank.example@bank.example",
        b" =?utf-8?q?service=40bank=2eexample?=",
        b" =?utf-8?b?PHNlcnZpY2VAYmFuay5leGFtcGxlPg?=",  # base64 without its padding
        b" =?utf-8?q?service=40ba?= =?utf-8?q?nk.example?=",
        b" =?utf-16be?q?=00s=00=40=00b=00a=00n=00k=00.=00e=00x=00a=00m=00p=00l=00e?=",
        b" (service@bank.example)",
        b" root, (service@bank.example)",
        b' "service@bank.example"',
        b' "service@bank.example" <root>',
        b" service@bank.example <root>",
        b' "a@b" (c@d) <service@bank.example>',
        b' "x@evil.example" <service@bank.example>',
        b" (x@evil.example) service@bank.example (x@evil.example)",
        b' "x@evil.example,"@bank.example',
        b" =?utf-8?q?x=40evil=2eexample=20?= <service@bank.example>",
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_a_from_of_one_readable_domain_names_that(value: bytes) -> None:
    author = author_of([Header(b"FROM", value)])
    suffix = "a." * ((253 - len(BANK)) // 2) + BANK if value.count(b"a.") > 100 else BANK
    assert (Named.ONE, (suffix,), "") == author


@pytest.mark.parametrize(
    "value",
    [
        # Chen, Paxson, Jiang: Composition Kills (2020), section 5; as espoofer sends them
        b" <service@bank.example>, <x@evil.example>",
        b" =?utf-8?b?PHNlcnZpY2VAYmFuay5leGFtcGxlPg==?=,<x@evil.example>",
        b" <@evil.example:service@bank.example>",
        b" <service@bank.example>\\,<x@evil.example>",
        b" service@bank.example,<x@evil.example>",
        b" <x@evil.example>service@bank.example",
        # their siblings
        b" service@bank.example <x@evil.example>",
        b" service @ bank.example <x@evil.example>",
        b" service@bank.example, Inc <x@evil.example>",
        b" Bank: service@bank.example; x@evil.example",
        b" service@bank.example: x@evil.example;",
        b" <service@bank.example> <x@evil.example>",
        b' "service@bank.example", <x@evil.example>',
        b' "service@bank.example" <root>, x@evil.example',
        b" x@evil.example, (service@bank.example)",
        b" =?utf-8?q?service=40bank.example?= x@evil.example",
        b" =?utf-8?q?<service=40bank.example>?= <x@evil.example>",
        b" service@bank.example\x00 <x@evil.example>",
        b" service@bank.example\r <x@evil.example>",
        b" service@bank.example\n <x@evil.example>",
        b" service@bank.example@evil.example",
        b" service@evil.example@bank.example",
        b" service@bank.example x@evil.example",
        b' "Bank <service@bank.example>, "Ann" <x@evil.example>',
        b' \\" <service@bank.example> " <x@evil.example>',
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_second_author_hides_no_domain(value: bytes) -> None:
    found = author_of([Header(b"From", value)])
    assert (Named.SEVERAL, "From names several domains") == (found.named, found.problem)
    assert {BANK, EVIL} <= set(found.domains)


@pytest.mark.parametrize(
    "value",
    [b"", b" Undisclosed:;", b" joe", b" Joe <joe>", b" <>", b" joe@", b" @", b" joe@[192.0.2.1]", b" joe@[a.example]"],
)  # fmt: skip
def test_a_from_without_a_domain_names_none(value: bytes) -> None:
    assert (Named.NONE, (), "From names no domain") == author_of([Header(b"From", value)])


def test_the_fields_of_a_message_are_read_together() -> None:
    assert (Named.NONE, (), "there is no From field") == author_of([Header(b"To", b"joe@example.com")])
    twice = [Header(b"From", b" service@bank.example"), Header(b"from", b"Bank <service@bank.example>")]
    assert (Named.SEVERAL, (BANK,), "there are 2 From fields") == author_of(twice)
    assert (BANK, EVIL) == domains(b"service@bank.example", b"x@evil.example")


def test_more_domains_than_can_be_asked_about_are_told_and_not_cut_off() -> None:
    many = [b"x@%d.example" % n for n in range(MAX_DOMAINS + 1)]
    assert Named.SEVERAL is author_of([Header(b"From", b",".join(many[1:]))]).named
    for values in ([b",".join(many)], many, [b"x@a.example, " * 200], [b"=?u?q?" + b"=40a.example" * 200 + b"?="]):
        found = author_of([Header(b"From", value) for value in values])
        assert (Named.TOO_MANY, ()) == (found.named, found.domains)


@pytest.mark.parametrize(
    "value",
    [
        b"(" * 50_000 + b"@a.b" + b")" * 50_000,
        b"(" * 100_000,
        b'"' * 100_001,
        b"." * 100_000 + b"@a.b",
        b"a@" + b"." * 100_000,
        b"a@" + b"b " * 50_000,
        b"," * 50_000,
        b"<" * 50_000,
        b"=?u?q?" * 16_000,
        ("@" + "é" * 500).encode() * 90,
        b"a@" + "é.".encode() * 30_000,
    ],
    ids=lambda value: str(value[:10]),
)
def test_a_value_made_to_cost_time_is_read_to_its_end(value: bytes) -> None:
    read_mailboxes(value)


# --- What mail programs show


def _opendkim() -> Callable[[bytes], list[bytes]]:
    try:
        library = ctypes.CDLL("libopendkim.so.11")
    except OSError:
        missing("libopendkim is not installed: apt-get install libopendkim11")

    def read(value: bytes) -> list[bytes]:
        user, domain = ctypes.c_char_p(), ctypes.c_char_p()
        buffer = ctypes.create_string_buffer(value)  # which it changes
        status = library.dkim_mail_parse(buffer, ctypes.byref(user), ctypes.byref(domain))
        return [domain.value] if status == 0 and user.value and domain.value else []

    return read


@pytest.fixture(scope="module")
def opendkim() -> Callable[[bytes], list[bytes]]:
    """The parser that opendkim and opendmarc share: the domain that it finds."""
    return _opendkim()


def shown_by_python(value: bytes) -> Iterator[str]:
    """The domains that two parsers of Python's library show: one is old and lenient, the other is by the grammar."""
    text = value.decode("utf-8", "surrogateescape").replace("\r\n", "")
    for _, address in (*email.utils.getaddresses([text]), email.utils.parseaddr(text)):
        yield address.rpartition("@")[2] if "@" in address else ""
    try:
        yield from (address.domain for address in HeaderRegistry()("From", text.replace("\n", "")).addresses)  # type: ignore[attr-defined]  # of a From field
    except Exception:  # noqa: BLE001 (it has many of its own)
        return


def shown_by_a_pattern(value: bytes) -> Iterator[str]:
    """The domain that a simple program finds in the first angle brackets, where nothing is quoted."""
    match = re.search(rb"<([^<>\s]+)@([^<>@\s,]+)>", value)
    if match and not set(b'"(=') & set(value):
        yield match[2].decode("utf-8", "surrogateescape")


PIECES = [*'@<>".,:;()\\[] \t=/é\x00\x0b', "\r\n ", "\n", "Bank", "joe", BANK, EVIL, "a@bank.example", "x@evil.example"]
PIECES += ["<a@bank.example>", "<x@evil.example>", "=?utf-8?q?a=40bank.example?=", "=?u?b?PGFAYmFuay5leGFtcGxlPg==?="]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=10).map(lambda pieces: "".join(pieces).encode())


@settings(max_examples=500, deadline=None)
@given(TEXTS)
@example(b"a@bank.example]evil.example")
@example(b"a@bank.example)evil.example")
@example(b"a@bank.example/evil.example")
@example(b"a@bank.ex ample")
def test_whatever_a_program_shows_is_read(opendkim: Callable[[bytes], list[bytes]], value: bytes) -> None:
    shown = [domain.decode("utf-8", "surrogateescape") for domain in opendkim(value)]
    shown += [*shown_by_python(value), *shown_by_a_pattern(value)]
    assert {domain for text in shown if "." in (domain := normal_domain(text))} <= set(domains(value))


@settings(max_examples=500, deadline=None)
@given(TEXTS | st.binary(max_size=60))
def test_no_bytes_make_it_raise_and_every_domain_is_in_normal_form(value: bytes) -> None:
    reading = read_mailboxes(value)
    assert all(domain and domain == normal_domain(domain) for domain in reading.domains)
    assert {mailbox.domain for mailbox in reading.mailboxes} - {""} <= set(reading.domains)


# --- Verdicts

ZONE = f"""
_dmarc.{BANK} TXT "v=DMARC1; p=reject"
_dmarc.{EVIL} TXT "v=DMARC1; p=quarantine"
_dmarc.none.example TXT "v=DMARC1; p=none"
"""


def judged(proven: str, *values: bytes) -> DmarcFinding:
    """DMARC for a message with these From fields, which is proven to come from the domain `proven`."""
    spf = SpfFinding(SpfResult.PASS if proven else SpfResult.FAIL, domain=proven or "other.example")
    dkim = [DkimFinding(DkimResult.PASS, domain=proven)] if proven else []
    headers = [Header(b"From", value) for value in values]
    return asyncio.run(check_dmarc(TableResolver(Zone.parse(ZONE)), headers, spf, dkim))


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.sampled_from(["", BANK, EVIL]), st.booleans())
@example(b"Customer Service, Bank <service@bank.example>", EVIL, False)
@example(b"service@bank.example", EVIL, True)
def test_an_odd_from_is_never_judged_more_mildly_than_a_clean_one(value: bytes, proven: str, twice: bool) -> None:
    odd = judged(proven, value, *[value] * twice)
    for text in (*shown_by_python(value), *shown_by_a_pattern(value)):
        if "." not in (domain := normal_domain(text)):
            continue
        clean = judged(proven, b" a@" + domain.encode())
        assert clean.policy.strictness <= odd.policy.strictness
        assert odd.result is not DmarcResult.PASS or clean.result is DmarcResult.PASS


@settings(max_examples=500, deadline=None)
@given(TEXTS)
@example(b"Joe @ Work <joe@bank.example>")
@example(b"Foo\\Bar <joe@bank.example>")
@example(b"Doe, Joe <joe@bank.example>")
@example(b"Team: joe@bank.example;")
def test_what_we_would_sign_passes_our_own_dmarc(value: bytes) -> None:
    try:
        senders = parse_senders(value)
    except ValueError:
        return
    (domain,) = {sender.domain for sender in senders}
    assert (Named.ONE, (domain,), "") == author_of([Header(b"From", value)])
    assert DmarcResult.FAIL is not judged(domain, value).result


@pytest.mark.parametrize(
    ("values", "policy", "domain"),
    [
        ([b"x@none.example, y@evil.example"], DmarcPolicy.QUARANTINE, EVIL),
        ([b"x@evil.example, y@bank.example, z@none.example"], DmarcPolicy.REJECT, BANK),
        ([b"x@bank.example, y@evil.example"], DmarcPolicy.REJECT, BANK),
        ([b"x@evil.example", b"y@bank.example"], DmarcPolicy.REJECT, BANK),
        ([b"x@bank.example", b"x@bank.example"], DmarcPolicy.REJECT, BANK),
    ],
)
def test_of_several_domains_the_strictest_that_fails_counts(
    values: list[bytes], policy: DmarcPolicy, domain: str
) -> None:
    found = judged("", *values)
    assert (DmarcResult.FAIL, policy, domain) == (found.result, found.policy, found.domain)
    assert found.reason.endswith("; there are 2 From fields" if len(values) > 1 else "; From names several domains")
    assert Named.SEVERAL is found.named


@pytest.mark.parametrize("values", [[b"x@bank.example, y@nothing.example"], [b"x@bank.example", b"x@bank.example"]])
def test_where_none_of_several_fails_nothing_passes(values: list[bytes]) -> None:
    assert DmarcResult.PERMERROR is judged(BANK, *values).result
    assert DmarcResult.PASS is judged(BANK, b"x@bank.example").result
