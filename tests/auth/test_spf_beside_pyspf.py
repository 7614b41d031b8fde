# SPDX-License-Identifier: GPL-3.0-or-later
"""SPF beside pyspf: a second evaluator, written by others, says the same of the same record, client and DNS.

Where pyspf has it otherwise than RFC 7208, it is mended here if a few lines do (`Mended`), let be if it says so itself
(`is_known`), and shown as it is, by a record for each (the last test); each with the section. A difference that is
nowhere here is a mistake of one of the two.
"""

import asyncio
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import product
from typing import Any
from unittest.mock import patch

import pytest
import spf
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.auth.spf import check_mail_from
from gatekeeper.core.verdict import printable
from gatekeeper.dnsclient.resolver import MX, DNSError, TableResolver, run_without_waiting
from gatekeeper.dnsclient.zone import Zone
from tests.support.needs import require_corpus
from tests.support.zones import suite_zone, txt

RECEIVER = "mx.example.org"
TOO_MANY = "Too many DNS lookups"
SELF_INCLUDE = "include has trivial recursion"


@dataclass(frozen=True)
class World:
    """What one evaluation sees."""

    zone: Zone
    client: str = "192.0.2.1"
    sender: str = "user@example.com"
    helo: str = "mail.example.net"


def ours(world: World) -> tuple[str, str]:
    """Result and explanation as gatekeeper has them."""
    found = asyncio.run(
        check_mail_from(
            TableResolver(world.zone),
            address=ip_address(world.client),
            helo=world.helo,
            sender=world.sender,
            receiver=RECEIVER,
        )
    )
    return str(found.result), found.explanation


def theirs(world: World, kind: Callable[..., Any]) -> tuple[str, str, Any]:
    """Result and explanation as pyspf has them, and the query that found them."""
    resolver = TableResolver(world.zone)

    def lookup(name: str, type: str, *_: object) -> list[Any]:
        try:
            records = run_without_waiting(resolver.query(name, type)).records
        except DNSError as error:
            raise spf.TempError(str(error)) from None
        return [((name, type), _as_pyspf(record)) for record in records]

    query = kind(world.client, world.sender, world.helo, receiver=RECEIVER)
    with patch.object(spf, "DNSLookup", lookup):
        result, _, words = query.check()
    of_the_domain = result == "fail" and words != spf.EXPLANATIONS["fail"]
    return result, printable(words) if of_the_domain else "", query


def _as_pyspf(record: object) -> object:
    if isinstance(record, bytes):
        return (record,)
    return tuple(record) if isinstance(record, MX) else record


class Mended(spf.query):  # type: ignore[misc]  # pyspf has no types
    """pyspf with a few lines of it mended."""

    d: str
    address_is_part_of_term = False
    mx_failed = False

    def dns_a(self, domainname: str, A: str = "A") -> list[str]:  # noqa: N803 - its name in pyspf
        """4.6.4: what finds nothing is a term; exchangers and PTR names without an address are none."""
        return self.dns(domainname, A, ignore_void=self.address_is_part_of_term) if domainname else []

    def dns_mx(self, domainname: str) -> list[str]:
        if not self.dns(domainname, "MX"):
            return []
        self.address_is_part_of_term = True
        try:
            found: list[str] = super().dns_mx(domainname)
        except spf.TempError:
            self.mx_failed = True
            raise
        finally:
            self.address_is_part_of_term = False
        return found

    def validated_ptrs(self) -> list[str]:
        """5.5: what cannot be looked up is no name; see `dns_a`, too."""
        try:
            names = self.dns(f"{spf.reverse_dots(self.i)}.{self.v}.arpa", "PTR", ignore_void=True)[: spf.MAX_PTR]
        except spf.TempError:
            return []
        return [name for name in names if self._is_name_of_client(name)]

    def _is_name_of_client(self, name: str) -> bool:
        try:
            return bool(self.cidrmatch(self.dns(name, self.A, ignore_void=True), self.cidrmax))
        except spf.TempError:
            return False

    def getp(self) -> str:
        """7.3: `%{p}` is a name below the domain whose record it stands in; names have no case."""
        self.p, here = None, self.d
        self.d = here.lower()
        try:
            return str(super().getp())
        finally:
            self.d = here

    def expand_domain(self, arg: str) -> str:
        """4.8: a term without a name stands for the domain, which is no macro-string, whatever was in its macros."""
        return arg if arg == self.d else str(super().expand_domain(arg))

    def expand(self, s: str, stripdot: bool = True) -> str:
        """7.1: `%%` at the end is a percent sign. 7.3: parts are joined with dots, whatever parted them."""
        joiners = dict.fromkeys("slodiphvcrt", ".")
        with patch.object(spf, "RE_INVALID_MACRO", _STRAY_PERCENT), patch.object(spf, "JOINERS", joiners):
            return str(super().expand(s, stripdot))

    def check0(self, spf: str, recursion: int) -> tuple[str, int, str]:
        """6: modifiers have their names in any case (RFC 5234 section 2.3), and unknown ones may be repeated."""
        version, *words = (spf or "").split(" ")
        plain = map(_plain_modifier, words, range(len(words)))
        found: tuple[str, int, str] = super().check0(" ".join((version, *plain)), recursion)
        return found


_STRAY_PERCENT = re.compile("(?<!%)(?:%%)*%(?![%{_-])")


def _plain_modifier(word: str, place: int) -> str:
    name, equals, value = word.partition("=")
    if not equals or not re.fullmatch("[a-z][a-z0-9._-]*", name, re.IGNORECASE):
        return word
    return f"{name.lower() if name.lower() in ('exp', 'redirect') else f'unknown{place}'}={value}"


def is_known(query: Any, zone: str) -> bool:
    """Whether pyspf says that it stumbled over one of these."""
    problem = str(getattr(query, "prob", ""))
    return (
        # 4.6.4: a redirect= counts once it is reached, not where it is read
        (problem == TOO_MANY and "redirect=" in zone.lower())
        # 5.2: an include of the record itself is a loop only if it is reached
        or problem == SELF_INCLUDE
        # 5.4: one address that matches is enough, whatever becomes of the exchangers after it
        or query.mx_failed
    )


def test_both_say_the_same_of_every_case_of_the_public_suite() -> None:
    corpus = require_corpus("spf-rfc7208.yml")
    differing = []
    for scenario in filter(None, yaml.safe_load_all(corpus.read_text("utf-8"))):
        zone = suite_zone(scenario["zonedata"])
        for name, test in scenario["tests"].items():
            world = World(zone, test["host"], test["mailfrom"], test["helo"])
            result, words, _ = theirs(world, Mended)
            if ours(world) != (result, words):
                differing.append((name, ours(world), (result, words)))
    assert [] == differing, len(differing)


def _kind(address: str) -> str:
    return "A" if ip_address(address).version == 4 else "AAAA"


ADDRESSES = ("192.0.2.1", "192.0.2.77", "198.51.100.9", "2001:db8::1", "2001:db8:0:ffff::2", "::ffff:192.0.2.1")
RECORDS = ("one.example", "two.one.example", "Three.Example", "four.example")
HOSTS = """
example.com A 192.0.2.1
example.com MX 10 six.example
d.example.com A 192.0.2.77
four.example A 198.51.100.9
four.example A 192.0.2.77
four.example MX 20 slow.example
four.example MX 10 example.com
six.example AAAA 2001:db8::1
six.example MX 10 six.example
six.example MX 10 gone.example
a.six.example A 192.0.2.1
a.six.example AAAA 2001:db8:0:ffff::2
a.six.example MX 0 .
slow.example ANY !TIMEOUT
broken.example A !SERVFAIL
broken.example AAAA !SERVFAIL
broken.example MX 1 broken.example
broken.example TXT "v=spf1 mx"
alias.example CNAME four.example
loop.example CNAME loop.example
two.example TXT "v=spf1 -all"
two.example TXT "v=spf1 +all"
other.example TXT "v=spf10 -all"
*.w.example A 127.0.0.2
*.w.example AAAA 2001:db8::1
*.w.example TXT "v=spf1 a exists:%{ir}.%{v}.w.example -all"
"""
"""What is the same in all worlds: names with and without addresses, of either kind, and what DNS does to people."""
CLIENTS = [f"Mail.{name}" for name in ("example.com", *RECORDS, "a.example")]
"""Names of every client."""
HOSTS += "".join(f"{name} {_kind(one)} {one}\n" for name in CLIENTS for one in ADDRESSES[:-1])
NAMES = sorted({line.split()[0] for line in HOSTS.split("\n") if line and not line.startswith("*")})
SENDERS = (
    ("user@example.com", "mail.example.net"),
    ("strong-bad+tag@Example.com", "Mail-1.four.example"),
    ("a.b=c/d_e@example.com", "example.com"),
    ("", "example.com"),
)

QUALIFIERS = ("", "", "", "+", "-", "~", "?")
DUAL = ("", "", "/0", "/31", "//0", "//64", "/24//127", "/32//128")
PLAIN_NAMES = [*NAMES, "gone.example", "gone2.example", "Four.Example.", "1.w.example", *RECORDS, *RECORDS]
PLAIN_NAMES += ["%{d}", "%{o}", "d.%{d}", "%{d1r}.example", "x.%{o}.w.example"]


def joined(*parts: Iterable[str]) -> list[str]:
    """All that these make, one of each after the other."""
    return ["".join(chosen) for chosen in product(*parts)]


def macros(letters: str) -> list[str]:
    counts, delimiters = ("", "", "1", "2", "3", "02", "128"), ("", "", "-", ".", "+-", "=_/,")
    return [*joined(["%{"], letters + letters.upper(), counts, ["", "r"], delimiters, ["}"]), *["%%", "%_", "%-"] * 50]


by_name = st.sampled_from(
    joined(QUALIFIERS, ["a", "Mx", "PTR", "ptr"] * 80)
    + joined(QUALIFIERS, ["a", "A", "mx", "MX"], ["", *joined([":"], PLAIN_NAMES)], DUAL)
    + joined(QUALIFIERS, ["ptr", "Ptr", "exists", "EXISTS"] * 4 + ["include", "Include"] * 8, [":"], PLAIN_NAMES)
)
by_network = st.sampled_from(
    joined(
        QUALIFIERS, ["ip4:", "IP4:"], ["192.0.2.1", "192.0.2.64", "198.51.100.0", "0.0.0.0"], ["", "/0", "/24", "/32"]
    )
    + joined(QUALIFIERS, ["ip6:"], ["2001:db8::1", "::", "::FFFF:192.0.2.1", "1::192.0.2.1"], ["", "/0", "/32", "/128"])
    + joined(QUALIFIERS, ["all", "ALL"] * 8)
)
macro_names = st.builds(
    "{}{}{}".format,
    st.sampled_from(macros("slodiphppv")),
    st.sampled_from(["", "", ".x", "Y-1", "-%{ir}", ".%{v}", ".%{p}", "%{L}"]),
    st.sampled_from([".w.example", ".w.example.", ".%{d}", ".gone.example"]),
)
by_macro = st.builds(
    "{}:{}".format, st.sampled_from(joined(QUALIFIERS, ["a", "mx", "ptr", "exists", "exists", "include"])), macro_names
)
modifiers = (
    st.sampled_from(joined(["redirect=", "Redirect=", "redirect=", "exp=", "EXP="], PLAIN_NAMES))
    | st.sampled_from(
        joined(["exp=why.example", "Exp=why.example", "x-note=", "X-Note=1", "default=%{d}", "op=x", "a="])
    )
    | st.builds("{}={}".format, st.sampled_from(["redirect", "exp", "x-note", "default", "op"]), macro_names)
)
MISTAKES = """
    a/33 mx//129 ip4:192.0.2.1/33 ip4:192.0.2 ip4:2001:db8::1 ip6:192.0.2.1 ip6:::1/129 ip4 all:a.example include exists
    a: redirect= exp= ptr/24 include:a.example/24 moo a:192.0.2.1 a:example a:a.example, exists:%{x}.example - + =a
    x=%{t} include:%{c}.example redirect=%{r}.x a:%a.example a/024 a:a.example/ *all all. v=spf1
"""
mistakes = st.sampled_from(MISTAKES.split())
terms = st.one_of(by_name, by_name, by_network, by_macro, modifiers)
few = st.integers(0, 19)
records = st.builds(
    lambda version, terms, space, mistake, ending: space.join([version, *terms, *mistake, ending]),
    st.sampled_from(["v=spf1", "v=spf1", "V=Spf1"]),
    st.lists(terms, max_size=6),
    st.sampled_from([" ", " ", "  "]),
    few.flatmap(lambda number: mistakes.map(lambda word: [word]) if number == 19 else st.just([])),
    st.sampled_from(["-all", "exp=why.example -all", "exp=why.example -all", "~all", "?all", ""]),
)
texts = st.lists(
    st.sampled_from(["no", "See ", "https://a.example/?s=", " "] * 20 + ["é", "%{z}", "%"] + macros("slodiphppvcr")),
    max_size=6,
).map("".join)


def quoted(text: str) -> str:
    return " ".join(f'"{text[start : start + 200]}"' for start in range(0, len(text), 200))


@st.composite
def worlds(draw: st.DrawFn) -> tuple[str, World]:
    client = draw(st.sampled_from(ADDRESSES))
    lines = [HOSTS, f"why.example TXT {txt(draw(texts))}"]
    lines += [f"{name} TXT {quoted(draw(records))}" for name in ("example.com", *RECORDS)]
    pointer = ip_address(client.removeprefix("::ffff:")).reverse_pointer
    known_as = st.lists(st.sampled_from([*NAMES, *CLIENTS * 4]), max_size=4, unique=True)
    pointers = known_as.map(lambda names: [f"PTR {name}" for name in names])
    lines += [f"{pointer} {line}" for line in draw(pointers | pointers | pointers | st.just(["PTR !SERVFAIL"]))]
    sender, helo = draw(st.sampled_from(SENDERS))
    text = "\n".join(lines)
    return text, World(Zone.parse(text), client, sender, helo)


@given(worlds())
def test_both_say_the_same_in_every_world(found: tuple[str, World]) -> None:
    text, world = found
    result, words, query = theirs(world, Mended)
    if not is_known(query, text):
        here, explanation = ours(world)
        # names have no case, and a redirect hands on ours in lower case
        assert (result, words.lower()) == (here, explanation.lower()), text


AROUND = f"""
fails.example TXT "v=spf1 -all"
here.example A 192.0.2.99
mixed.example MX 10 near.example
mixed.example MX 20 slow.example
near.example A 192.0.2.1
slow.example A !TIMEOUT
six.example MX 10 six1.example
six.example MX 10 six2.example
six.example MX 10 six3.example
six1.example AAAA 2001:db8::1
six2.example AAAA 2001:db8::1
six3.example AAAA 2001:db8::1
1.2.0.192.in-addr.arpa PTR gone1.example
1.2.0.192.in-addr.arpa PTR gone2.example
1.2.0.192.in-addr.arpa PTR gone3.example
why.example TXT "100%%"
open.example TXT "%{{s"
*.w.example TXT "v=spf1 a ?all"
com.example.r.example A 127.0.0.2
mail.1.example.net.h.example A 127.0.0.2
{".".join(["a" * 40] * 6)}.example A 192.0.2.1
"""
LONG = ".".join(["a" * 40] * 9)
TEN = "a:here.example " * 10


@pytest.mark.parametrize(
    ("section", "record", "expected", "by_pyspf"),
    [
        ("4.6.4", "mx:six.example -all", "fail", "permerror"),
        ("4.6.4", f"{TEN}?all redirect=fails.example", "neutral", "permerror"),
        ("4.8", "include:%%.w.example -all", "fail", "permerror"),
        ("5.2", "ip4:192.0.2.1 include:example.com -all", "pass", "permerror"),
        ("5.4", "mx:mixed.example -all", "pass", "temperror"),
        ("5.5", "ptr -all", "fail", "permerror"),
        ("6", "x-note=1 x-note=2 -all", "fail", "permerror"),
        ("6", "Redirect=fails.example", "fail", "neutral"),
        ("6", "default=%{z} -all", "permerror", "fail"),
        ("6", "op=%{z} -all", "permerror", "fail"),
        ("7.1", "-all exp=why.example", "fail 100%", "fail"),
        ("7.1", "-all exp=open.example", "fail", "fail %{s"),
        ("7.1", "a:%%%a.example -all", "permerror", "fail"),
        ("7.1", "x-note=%{ -all", "permerror", "fail"),
        ("7.1", "exists:%{dx}.example -all", "permerror", "fail"),
        ("7.1", "exists:%{d1r2}.example -all", "permerror", "fail"),
        ("7.1", "a:a\x01b.example -all", "permerror", "fail"),
        ("7.1", "a:a\x7f.example -all", "permerror", "fail"),
        ("7.1", "-all a:\tb.example", "permerror", "fail"),
        ("7.1", "exists:%{dR}.r.example -all", "pass", "fail"),
        ("7.3", "exists:%{d0}.example -all", "permerror", "fail"),
        ("7.3", "exists:%{h-}.h.example -all", "pass", "fail"),
        ("7.3", f"a:{LONG}.example -all", "pass", "fail"),
        ("ours", f"a:{LONG}.{LONG}.example -all", "permerror", "fail"),  # a limit against records that cost time
    ],
)
def test_they_differ_where_pyspf_has_it_otherwise_than_the_rfc(
    section: str, record: str, expected: str, by_pyspf: str
) -> None:
    world = World(Zone.parse(f"example.com TXT {txt(f'v=spf1 {record}')}{AROUND}"), helo="mail-1.example.net")
    found = [" ".join(words).strip() for words in (ours(world), theirs(world, spf.query)[:2])]
    assert [expected, by_pyspf] == found, section
