# SPDX-License-Identifier: GPL-3.0-or-later
"""`spf check` and the evaluation of mail judge alike: by the words of a record, and by every way through it."""

import asyncio
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper.auth.spf import SpfResult, check_mail_from
from gatekeeper.auth.spf_evaluation import Evaluation, PermError
from gatekeeper.dnsclient.resolver import TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.records import spf
from tests.support.zones import txt

DNS = """
example.com MX 10 mail.example.com
mail.example.com A 192.0.2.1
four.example A 192.0.2.4
six.example AAAA 2001:db8::6
both.example A 192.0.2.5
both.example AAAA 2001:db8::5
mx.example MX 10 four.example
mx.example MX 20 both.example
*.wild.example A 127.0.0.2
crowd.example MX 1 a.x
crowd.example MX 2 b.x
crowd.example MX 3 c.x
crowd.example MX 4 d.x
crowd.example MX 5 e.x
crowd.example MX 6 f.x
crowd.example MX 7 g.x
crowd.example MX 8 h.x
crowd.example MX 9 i.x
crowd.example MX 10 j.x
crowd.example MX 11 k.x
two.example TXT "v=spf1 ~all"
two.example TXT "v=spf1 -all"
"""


def resolver(records: dict[str, str]) -> TableResolver:
    return TableResolver(Zone.parse(DNS + "".join(f"{name} TXT {txt(text)}\n" for name, text in records.items())))


async def result(world: TableResolver, client: str) -> SpfResult:
    found = await check_mail_from(
        world, address=ip_address(client), helo="h.example", sender="user@example.com", receiver=""
    )
    return found.result


@pytest.mark.parametrize(
    ("record", "says", "expected"),
    [
        ("v=spf1 include=mail.example.com -all", "write include:mail.example.com, not include=", SpfResult.FAIL),
        ("v=spf1 ip4=192.0.2.9 -all", "write ip4:192.0.2.9, not ip4=", SpfResult.FAIL),
        ("v=spf1 IP4=192.0.2.9 -all", "write ip4:192.0.2.9, not ip4=", SpfResult.FAIL),
        ("v=spf1 mx= -all", "write mx, not mx=", SpfResult.FAIL),
        ("v=spf1 redirct=mail.example.com -all", "did you mean redirect?", SpfResult.FAIL),
        ("v=spf1 redirect:mail.example.com", "did you mean redirect=?", SpfResult.PERMERROR),
        ("spf1 mx -all", "it must begin with v=spf1", SpfResult.NONE),
        ("v=spf1; mx -all", "it must begin with v=spf1", SpfResult.NONE),
        ("v=spf1\tmx -all", "it must begin with v=spf1", SpfResult.NONE),
        ("v = spf1 mx -all", "it must begin with v=spf1", SpfResult.NONE),
        ('"v=spf1 mx -all"', "it must begin with v=spf1", SpfResult.NONE),
        ("v=spf1 mx\t-all", "is not a mechanism", SpfResult.PERMERROR),
        ("v=spf1 mx,-all", "is not a mechanism", SpfResult.PERMERROR),
        ("v=spf1 mx-all", "is not a mechanism", SpfResult.PERMERROR),
        ("v=spf1 a:mail.example.com, -all", "malformed domain", SpfResult.PERMERROR),
        ("v=spf1 exists:%{x}.example.com -all", "macro in it is malformed", SpfResult.PERMERROR),
        ("v=spf1 exists:%{d0}.example.com -all", "macro in it is malformed", SpfResult.PERMERROR),
        ("v=spf1 exists:%(i).example.com -all", "macro in it is malformed", SpfResult.PERMERROR),
        ("v=spf1 exists:%{c}.example.com -all", "macro in it is malformed", SpfResult.PERMERROR),
        ("v=spf1 -all exp=%{r}.example.com", "macro in it is malformed", SpfResult.PERMERROR),
        ("v=spf1 note=%{x} -all", "malformed macro", SpfResult.PERMERROR),
        ("v=spf1 a:192.0.2.1 -all", "did you mean ip4:192.0.2.1?", SpfResult.PERMERROR),
        ("v=spf1 mx:192.0.2.1/24 -all", "did you mean ip4:192.0.2.1?", SpfResult.PERMERROR),
        ("v=spf1 a:foo -all", "two labels", SpfResult.PERMERROR),
        ("v=spf1 include:foo -all", "two labels", SpfResult.PERMERROR),
        ("v=spf1 a: -all", "the domain is missing", SpfResult.PERMERROR),
        ("v=spf1 a:/24 -all", "the domain is missing", SpfResult.PERMERROR),
        ("v=spf1 a/24/64 -all", "what comes after a is malformed", SpfResult.PERMERROR),
        ("v=spf1 ip4:192.0.2.0/024 -all", "malformed", SpfResult.PERMERROR),
        ("v=spf1 ip4:192.0.2.0/255.255.255.0 -all", "malformed", SpfResult.PERMERROR),
        ("v=spf1 ip4:192.0.2.0//24 -all", "malformed", SpfResult.PERMERROR),
        ("v=spf1 ip6:fe80::1%eth0 -all", "malformed", SpfResult.PERMERROR),
        ("v=spf1 ip4 -all", "malformed", SpfResult.PERMERROR),
        ("v=spf1 ptr/24 -all", "prefix length", SpfResult.PERMERROR),
        ("v=spf1 include:two.example -all", "has 2 SPF records", SpfResult.PERMERROR),
        ("v=spf1 mx:crowd.example -all", "more than 10 exchangers", SpfResult.PERMERROR),
        ("v=spf1 Redirect=x.example redirect=y.example", "redirect= appears twice", SpfResult.PERMERROR),
        ("v=spf1 -all \u00e4=1", "is not a mechanism", SpfResult.PERMERROR),
        (f"v=spf1 {'ip4:192.0.2.1 ' * 700}-all", "longer than 8192 bytes", SpfResult.PERMERROR),
    ],
)
async def test_what_receivers_do_not_take_as_it_was_meant_is_an_error(
    record: str, says: str, expected: SpfResult
) -> None:
    world = resolver({"example.com": record})
    walk = await spf.examine(world, "example.com")
    assert says in " | ".join(remark.what for remark in walk.remarks if remark.error)
    assert (expected is SpfResult.PERMERROR) == walk.permerror
    assert expected == await result(world, "203.0.113.1")
    assert walk.remarks == (await spf.examine(resolver({}), "example.com", record)).remarks


@pytest.mark.parametrize(
    "record",
    [
        "v=spf1 a:mail.example.com. -all",
        "v=spf1 include:%{d}.inc.example -all",
        "V=SPF1 MX -ALL",
        "v=spf1  mx  -all ",
        "v=spf1 a:foo_bar.both.example//64 a/24//64 -all",
        "v=spf1 ip6:::ffff:192.0.2.1/96 exists:%{ir}.%{v}.wild.example ~all",
        "v=spf1 -all exp=%{o}.x.example",
    ],
)
async def test_what_receivers_take_is_no_permerror(record: str) -> None:
    world = resolver({"example.com": record, "example.com.inc.example": "v=spf1 mx:mx.example -all"})
    walk = await spf.examine(world, "example.com")
    assert not [remark for remark in walk.remarks if remark.error]
    assert SpfResult.PERMERROR not in [await result(world, client) for client in ("203.0.113.1", "2001:db8::9")]


async def test_a_client_with_ipv6_finds_nothing_at_names_that_have_only_ipv4() -> None:
    world = resolver({"example.com": "v=spf1 a:four.example a:mail.example.com a:four.example -all"})
    walk = await spf.examine(world, "example.com")
    assert ["for a client with IPv6, 3 look-ups find nothing, but only 2 are allowed: receivers answer permerror"] == [
        remark.what for remark in walk.remarks
    ]
    assert SpfResult.PERMERROR == await result(world, "2001:db8::1")


@pytest.mark.parametrize(
    "record", [f"v=spf1 {'a:both.example ' * 8}redirect=mx.example -all", "v=spf1 mx:mx.example -all mx:mx.example"]
)
async def test_what_is_never_reached_is_not_counted(record: str) -> None:
    walk = await spf.examine(resolver({"example.com": record}), "example.com")
    assert (record.count(":both") or 1) == walk.lookups
    assert not walk.permerror


TERMS = [
    *("a:four.example", "a:six.example", "a:both.example", "a:gone.example", "mx:gone.example"),
    *("mx:mx.example", "mx:gone.example", "mx:crowd.example", "exists:x.wild.example", "exists:gone.example"),
    *("ip4:192.0.2.4", "ip4:0.0.0.0/0", "ip6:2001:db8::6", "ip6:::/0", "all", "ptr:both.example", "a:both.example/0"),
    *("include:one.example", "include:other.example", "include:third.example", "include:none.example"),
]
RECORD = st.lists(
    st.tuples(st.sampled_from("+-~?"), st.sampled_from(TERMS)).map("".join), min_size=1, max_size=4
).flatmap(
    lambda terms: st.sampled_from(
        ["", "-all", "+all", "redirect=third.example", "Redirect=one.example", "a=b", "-x"]
    ).map(lambda last: f"v=spf1 {' '.join(terms)} {last}")
)
WORLD = st.fixed_dictionaries(dict.fromkeys(("example.com", "one.example", "other.example", "third.example"), RECORD))


class Undecided(Evaluation):
    """An evaluation in which whatever may match does so at the word of an oracle; it says no once it has no more."""

    def __init__(self, world: TableResolver, client: str, oracle: tuple[bool, ...]) -> None:
        super().__init__(world, address=ip_address(client), local="x", domain="example.com", helo="h", receiver="")
        self._oracle = oracle
        self.said: tuple[bool, ...] = ()

    def _say(self) -> bool:
        self.said += (self._oracle[len(self.said)] if len(self.said) < len(self._oracle) else False,)
        return self.said[-1]

    def is_among(self, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
        lengths = [network.prefixlen for network in networks if network.version == self.address.version]
        return 0 in lengths or (bool(lengths) and self._say())

    async def _validated_names(self) -> list[str]:
        return ["both.example"] if self._say() else []


async def some_way_is_a_permerror(world: TableResolver) -> bool:
    """Whether there is one, found by going every way."""
    for client in ("192.0.2.200", "2001:db8::200"):
        ways: list[tuple[bool, ...]] = [()]
        while ways:
            begun = ways.pop()
            evaluation = Undecided(world, client, begun)
            try:
                await evaluation.run()
            except PermError:
                return True
            ways += [(*evaluation.said[:at], True) for at in range(len(begun), len(evaluation.said))]
    return False


@pytest.mark.parametrize(
    ("outer", "inner", "other", "expected"),
    [
        # who is refused by the include goes on behind it, with what was counted until then
        ("include:one.example {void} {void} {void} -all", "-ip4:192.0.2.4 -ip6:2001:db8::6 +all", "-all", True),
        ("include:one.example {void} -all", "-a:both.example {void} {void} +all", "-all", False),
        ("include:one.example {void} {void} {void} -all", "?all", "-all", True),
        ("include:one.example {void} {void} {void} -all", "all", "-all", False),
        # the longest way is through a pass that counts for nothing
        (
            "include:one.example {void} -all",
            "?include:other.example -a:both.example -all",
            "-a:both.example {void} {void} +all",
            True,
        ),
        ("redirect=one.example", "include:other.example {void} -all", "{void} {void} -all", True),
        ("redirect=one.example", "{void} -all", "{void} {void} -all", False),
    ],
)
async def test_every_way_through_an_include_is_counted_by_itself(
    outer: str, inner: str, other: str, expected: bool
) -> None:
    written = zip(("example.com", "one.example", "other.example"), (outer, inner, other), strict=True)
    world = resolver({name: f"v=spf1 {text.format(void='a:gone.example')}" for name, text in written})
    assert expected is await some_way_is_a_permerror(world)
    assert expected is (await spf.examine(world, "example.com")).permerror


@settings(max_examples=300, deadline=None)
@given(records=WORLD)
def test_a_permerror_is_said_if_and_only_if_some_way_through_the_record_ends_so(records: dict[str, str]) -> None:
    async def work() -> None:
        world = resolver(records)
        walk = await spf.examine(world, "example.com")
        assert await some_way_is_a_permerror(world) == walk.permerror
        assert walk.permerror == any("permerror" in remark.what for remark in walk.remarks)

    asyncio.run(work())


@settings(max_examples=200, deadline=None)
@given(
    records=WORLD,
    client=st.sampled_from(["192.0.2.4", "192.0.2.5", "203.0.113.1", "2001:db8::5", "2001:db8::6", "2a00::1"]),
)
def test_a_record_without_permerror_gives_no_client_one(records: dict[str, str], client: str) -> None:
    async def work() -> None:
        world = resolver(records)
        if SpfResult.PERMERROR == await result(world, client):
            assert (await spf.examine(world, "example.com")).permerror

    asyncio.run(work())
