# SPDX-License-Identifier: GPL-3.0-or-later
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.core.problem import ConfigError, Problem
from gatekeeper.dnsclient.names import to_name, to_text, with_u_labels
from gatekeeper.dnsclient.zone import Fault, Zone, ZoneAnswer

WORLD = r"""
; what this world is for
$TTL 60
example.com.  600 IN MX 10 mx.example.com. ; (
              TXT "v=spf1 -all" "; ( not a comment"
a.b.example.net A 192.0.2.1
              AAAA ( 2001:db8::1
              ) ; closed
KEY._domainkey.example.com TXT ( "v=DKIM1; "
   "p=abc" )
alias CNAME middle
middle CNAME example.com.
loop CNAME pool
pool CNAME loop
dangling CNAME nowhere.example
bad A !SERVFAIL
bad ANY !TIMEOUT
bad MX 10 example.com
half A !NODATA
gone A !NXDOMAIN
*.wild.example A 127.0.0.2
deep.er.wild.example TXT "blocks the wildcard for er"
hole.wild.example ANY !NXDOMAIN
bücher.example A 192.0.2.7
"""


@pytest.fixture(scope="module")
def zone() -> Zone:
    return Zone.parse(WORLD)


def data(found: ZoneAnswer) -> list[str]:
    return [str(item) for rrset in found.rrsets for item in rrset]


@pytest.mark.parametrize(
    ("name", "type", "expected"),
    [
        ("example.com", "MX", ["10 mx.example.com."]),
        ("EXAMPLE.com.", "MX", ["10 mx.example.com."]),
        ("example.com", "TXT", ['"v=spf1 -all" "; ( not a comment"']),
        ("a.b.example.net", "AAAA", ["2001:db8::1"]),
        ("key._domainkey.example.com", "TXT", ['"v=DKIM1; " "p=abc"']),
        ("alias", "MX", ["middle.", "example.com.", "10 mx.example.com."]),
        ("alias", "CNAME", ["middle."]),
        ("bad", "MX", ["10 example.com."]),
        ("any.wild.example", "A", ["127.0.0.2"]),
        ("any.thing.wild.example", "A", ["127.0.0.2"]),
        ("BÜCHER.example", "A", ["192.0.2.7"]),
        ("xn--bcher-kva.example", "A", ["192.0.2.7"]),
    ],
)
def test_a_listed_name_has_its_records(zone: Zone, name: str, type: str, expected: list[str]) -> None:
    found = zone.lookup(name, type)
    assert expected == data(found)
    assert found.fault is None


@pytest.mark.parametrize(
    ("name", "type", "expected"),
    [
        ("nowhere.example", "A", Fault.NXDOMAIN),
        ("dangling", "A", Fault.NXDOMAIN),
        ("example.com", "A", Fault.NODATA),
        ("b.example.net", "A", Fault.NODATA),
        ("net", "A", Fault.NODATA),
        ("loop", "A", Fault.SERVFAIL),
        ("bad", "A", Fault.SERVFAIL),
        ("bad", "TXT", Fault.TIMEOUT),
        ("half", "A", Fault.NODATA),
        ("gone", "A", Fault.NXDOMAIN),
        ("gone", "MX", Fault.NXDOMAIN),
        ("any.wild.example", "MX", Fault.NODATA),
        ("wild.example", "A", Fault.NODATA),
        ("er.wild.example", "A", Fault.NODATA),
        ("under.er.wild.example", "A", Fault.NXDOMAIN),
        ("hole.wild.example", "A", Fault.NXDOMAIN),
        ("two..dots", "A", Fault.NXDOMAIN),
        ("", "A", Fault.NXDOMAIN),
    ],
)
def test_what_is_missing_is_told_apart(zone: Zone, name: str, type: str, expected: Fault) -> None:
    assert expected is zone.lookup(name, type).fault


def test_a_chain_that_ends_nowhere_is_still_in_the_answer(zone: Zone) -> None:
    assert ["nowhere.example."] == data(zone.lookup("dangling", "A"))


def test_a_time_to_live_is_its_own_or_the_default_before_it(zone: Zone) -> None:
    assert [600, 60] == [zone.lookup("example.com", type).rrsets[0].ttl for type in ("MX", "TXT")]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a A 192.0.2", "not the data of a record of type A"),
        ("a A 192.0.2.1 junk", "junk"),
        ("a FOO x", "'FOO' is not a record type"),
        ("a A !BAD", "allowed are !SERVFAIL, !TIMEOUT, !NXDOMAIN, !NODATA"),
        ("a A !NODATA\na A 192.0.2.1", "already has another answer further up"),
        ("a A 192.0.2.1\na A !NODATA", "already has another answer further up"),
        ("a CNAME b\na A 192.0.2.1", "a name with a CNAME has no other records"),
        ("a CNAME b\na CNAME c", "a name has one CNAME"),
        ("a ANY 192.0.2.1", "ANY is a query type"),
        ("$ORIGIN example.com.", "write absolute names"),
        ("  A 192.0.2.1", "needs a name in a line before it"),
        ('a TXT ( "never closed"', "unbalanced parentheses"),
        (f"{'a' * 64} A 192.0.2.1", "63"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_what_is_allowed(line: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Zone.parse("\n" + line, "case/dns.zone")
    (problem,) = caught.value.problems
    assert ("case/dns.zone", 1 + len(line.split("\n"))) == (problem.file, problem.line)
    assert expected in problem.what


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Zone.parse("a A x\nb A 192.0.2.1\nc A (\ny )\nd MX")
    assert [1, 3, 5] == [problem.line for problem in caught.value.problems]


def test_a_file_that_cannot_be_read_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "dns.zone"
    with pytest.raises(ConfigError) as caught:
        Zone.read(path)
    assert (Problem(str(path), 0, "cannot be read: No such file or directory"),) == caught.value.problems


@given(st.text(alphabet=st.sampled_from('ab. \t\n\r"\\();$!*0123ANYTXTMX\x00é\udcff')))
def test_any_text_is_a_zone_or_has_problems(text: str) -> None:
    with suppress(ConfigError):
        Zone.parse(text).lookup("a", "A")


def test_every_beginning_of_a_file_is_a_zone_or_has_problems() -> None:
    for end in range(len(WORLD)):
        with suppress(ConfigError):
            Zone.parse(WORLD[:end])


@given(st.text() | st.text(alphabet=st.sampled_from("a.-_\\ \x00é。ß\udc80\ud800\U0001f600")))
def test_any_text_is_a_name_or_is_none(text: str) -> None:
    name = to_name(text)
    if name is not None:
        assert to_text(name).isascii()
        assert to_text(name).isprintable()
        assert len(name.to_wire() or b"") <= 255


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Example.COM.", "example.com"),
        ("_dmarc.example.com", "_dmarc.example.com"),
        ("a b.example", r"a\032b.example"),
        (r"a\b.example", r"a\\b.example"),
        ("caf\udce9.example", r"caf\233.example"),
        ("Bücher.Example", "xn--bcher-kva.example"),
        ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
        ("\U0001f600.example", "xn--e28h.example"),
        ("a" * 63, "a" * 63),
    ],
)
def test_odd_names_are_asked_as_they_stand(text: str, expected: str) -> None:
    name = to_name(text)
    assert name is not None
    assert expected == to_text(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("joe@xn--bcher-kva.example", "joe@bücher.example"),
        ("XN--BCHER-KVA.XN--ZCKZAH", "bücher.テスト"),
        ("xn--e28h.example", "\U0001f600.example"),
        ("my-xn--bcher-kva.example", "my-xn--bcher-kva.example"),
        ("xn--.example", "xn--.example"),
        ("xn--99999999999.example", "xn--99999999999.example"),
    ],
)
def test_a_labels_are_shown_as_people_write_them_and_what_is_none_stays(text: str, expected: str) -> None:
    assert expected == with_u_labels(text)


@given(st.text() | st.text(alphabet=st.sampled_from("xn-.@a0é")).map(lambda text: f"xn--{text}"))
def test_no_text_upsets_the_way_back_from_a_labels(text: str) -> None:
    assert text == with_u_labels(text) or "xn--" in text.lower()


@pytest.mark.parametrize("text", ["", ".", "a..b", ".a", "a..", "a" * 64, "é" * 64, "a." * 127 + "aa", "\ud800"])
def test_a_name_that_cannot_be_in_the_dns_is_none(text: str) -> None:
    assert to_name(text) is None
