# SPDX-License-Identifier: GPL-3.0-or-later
"""Senders who do everything right, or as right as correct senders do: who they are, what they say, how they retry.

The names, sender addresses and habits are those of the real ones; addresses are their own where the name holds them,
else from the networks for documentation and for benchmarks (each small one has a /24 of its own). Each sends MESSAGES
messages over six weeks, one every ten hours, to our users in turn, from its clients in turn; a retry comes from the
next client of the pool.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from gatekeeper.core.request import UNKNOWN

MESSAGES = 100
POSTFIX = (300, 600, 1200, 2400, 4000, 4000, 4000, 4000)
"""Seconds between tries: minimal_backoff_time doubled up to maximal_backoff_time."""
EXCHANGE = (900,) * 8
EXIM = (900,) * 8
QMAIL = (400, 1200, 2000, 2800, 3600, 4400, 5200)
GMAIL = (420, 900, 1800, 3600, 7200, 7200)
SLOW = (1800, 3600, 7200, 14400, 14400)
OURS = ("ann@example.org", "bob@example.org", "info@example.org")


def token(number: int, length: int = 10) -> str:
    """What software puts into an address so that no two are the same."""
    return sha256(str(number).encode()).hexdigest()[:length]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """`clients` are addresses with their confirmed names. `sender` tells the envelope sender of the n-th message to a
    recipient; without it mail comes from a few people at `domain`. `probe` only asks for a recipient and leaves."""

    name: str
    clients: Sequence[tuple[str, str]]
    domain: str = ""
    sender: Callable[[int, str], str] | None = None
    helo: str = ""
    """What the client's name says, if empty."""
    zone: str = ""
    retries: Sequence[float] = POSTFIX
    recipients: Sequence[str] = OURS
    sasl_user: str = ""
    dual_stack: bool = False
    """Tries its other addresses at once, before it waits, as Postfix does when a mail exchanger has several."""
    probe: bool = False

    def envelope(self, number: int, recipient: str) -> str:
        """The envelope sender of a message."""
        if self.sender is not None:
            return self.sender(number, recipient)
        return ("anna", "bernd.meier", "c.roth")[number // 3 % 3] + f"@{self.domain}"


def mx(domain: str, *spf: str) -> str:
    """The zone of a domain with a mail exchanger and, if it is told, an SPF record."""
    record = f'\n{domain} TXT "v=spf1 {" ".join(spf)} -all"' if spf else ""
    return f"{domain} MX 10 mx.{domain}\nmx.{domain} A 203.0.113.200{record}\n"


def encoded(recipient: str) -> str:
    """A recipient in a sender's local part."""
    return recipient.replace("@", "=")


GOOGLE = [
    ("209.85.208.41", "mail-ed1-f41.google.com"),
    ("209.85.218.54", "mail-ej1-f54.google.com"),
    ("2a00:1450:4864:20::42b", "mail-wr1-x42b.google.com"),
    ("209.85.128.49", "mail-wm1-f49.google.com"),
]
MICROSOFT = [
    ("40.107.22.47", "mail-am6eur05on2047.outbound.protection.outlook.com"),
    ("40.107.8.101", "mail-vi1eur04on0101.outbound.protection.outlook.com"),
    ("2a01:111:f403:2e0d::701", "mail-dbaeur03on20701.outbound.protection.outlook.com"),
    ("52.101.65.3", "mail-db8eur05on2103.outbound.protection.outlook.com"),
]
_GOOGLE_SPF = ("ip4:209.85.128.0/17", "ip6:2a00:1450:4000::/36")
_MICROSOFT_SPF = ("ip4:40.92.0.0/15", "ip4:40.107.0.0/16", "ip4:52.100.0.0/14", "ip6:2a01:111:f403::/48")

POOLS = [
    Sender(
        name="Gmail, retries from anywhere",
        clients=GOOGLE,
        domain="gmail.com",
        retries=GMAIL,
        zone=mx("gmail.com", *_GOOGLE_SPF),
    ),
    Sender(
        name="a company at Google Workspace",
        clients=GOOGLE,
        domain="workspace.example",
        retries=GMAIL,
        zone=mx("workspace.example", *_GOOGLE_SPF),
    ),
    Sender(
        name="Gmail forwarding for its user",
        clients=GOOGLE,
        retries=GMAIL,
        sender=lambda number, to: f"carla+caf_={encoded(to)}@gmail.com",
    ),
    Sender(
        name="a company at Microsoft 365",
        clients=MICROSOFT,
        domain="contoso.example",
        retries=EXCHANGE,
        zone=mx("contoso.example", *_MICROSOFT_SPF),
    ),
    Sender(
        name="bounces of Microsoft 365",
        clients=MICROSOFT,
        sender=lambda number, to: "",
        retries=EXCHANGE,
    ),
    Sender(
        name="Hotmail",
        clients=[("40.92.89.104", "mail-am6eur05olkn2104.outbound.protection.outlook.com")],
        domain="hotmail.com",
        retries=EXCHANGE,
        zone=mx("hotmail.com", *_MICROSOFT_SPF),
    ),
    Sender(
        name="Yahoo",
        clients=[
            ("77.238.177.33", "sonic306-20.consmr.mail.ir2.yahoo.com"),
            ("87.248.110.82", "sonic315-5.x.yahoo.com"),
        ],
        domain="yahoo.com",
        zone=mx("yahoo.com"),
        retries=SLOW,
    ),
    Sender(
        name="iCloud",
        clients=[("17.57.155.9", "qs51p00im-qukt01072301.me.com"), ("17.58.63.1", "st43p00im-ztbu10063601.me.com")],
        domain="icloud.com",
        zone=mx("icloud.com"),
    ),
    Sender(
        name="Amazon SES for a shop",
        clients=[
            ("54.240.8.31", "a8-31.smtp-out.amazonses.com"),
            ("54.240.48.91", "a48-91.smtp-out.amazonses.com"),
            ("76.223.180.12", "c180-12.smtp-out.amazonses.com"),
        ],
        sender=lambda number, to: (
            f"01000{token(number, 11)}-{token(number, 8)}-1a2b-3c4d-5e6f-{token(number, 12)}-000000@amazonses.com"
        ),
        zone=mx("amazonses.com", "ip4:54.240.0.0/18", "ip4:76.223.180.0/23"),
    ),
    Sender(
        name="OVH's shared relays",
        clients=[("188.165.33.197", "5.mo529.mail-out.ovh.net"), ("46.105.45.28", "17.mo550.mail-out.ovh.net")],
        domain="kleinefirma.example",
        zone=mx("kleinefirma.example"),
        retries=SLOW,
    ),
    Sender(
        name="Gandi",
        clients=[("217.70.183.193", "relay1-d.mail.gandi.net"), ("217.70.178.240", "relay10.mail.gandi.net")],
        domain="atelier.example",
        zone=mx("atelier.example", "ip4:217.70.176.0/20"),
    ),
    Sender(
        name="Facebook, whose names hold the whole address",
        clients=[("69.171.232.140", "69-171-232-140.mail-mail.facebook.com")],
        sender=lambda number, to: f"notification+{token(number)}@facebookmail.com",
        zone=mx("facebookmail.com"),
    ),
    Sender(
        name="GitHub",
        clients=[("192.30.252.203", "out-20.smtp.github.com"), ("192.30.252.208", "out-25.smtp.github.com")],
        sender=lambda number, to: "noreply@github.com",
        zone=mx("github.com"),
    ),
    Sender(
        name="a provider whose smarthosts retry in turn after half an hour",
        clients=[(f"203.0.{n}.25", f"smtp-out-{n}.isp.example") for n in (1, 2, 3, 4)],
        domain="isp.example",
        zone=mx("isp.example"),
        retries=SLOW,
    ),
]

BULK = [
    Sender(
        name="Mailchimp",
        clients=[("198.2.134.201", "mail201.atl281.mcsv.net"), ("148.105.8.12", "mail12.wdc02.mcdlv.net")],
        sender=lambda number, to: f"bounce-mc.us12_12345678.{7000000 + number}-{token(number)}@mail201.atl281.mcsv.net",
        zone="mail201.atl281.mcsv.net A 198.2.134.201\n",
    ),
    Sender(
        name="SendGrid under a customer's name",
        clients=[("167.89.100.12", "o1.ptr1234.shop.example"), ("149.72.40.1", "o2.ptr1234.shop.example")],
        sender=lambda number, to: f"bounces+1234567-{token(number, 4)}-{encoded(to)}@em1234.shop.example",
        zone=mx("em1234.shop.example", "ip4:167.89.0.0/17", "ip4:149.72.0.0/16"),
    ),
    Sender(
        name="Mailgun",
        clients=[("159.135.228.10", "m228-10.mailgun.net")],
        sender=lambda number, to: f"bounce+{token(number, 6)}.{token(number + 1, 6)}-{encoded(to)}@mg.app.example",
        zone=mx("mg.app.example"),
    ),
    Sender(
        name="SparkPost",
        clients=[("147.253.210.118", "mta-210-118.sparkpostmail.com")],
        sender=lambda number, to: f"msprvs1=18{token(number)}=bounces-12345-{number}@mail.news.example",
        zone=mx("mail.news.example"),
    ),
    Sender(
        name="Postmark",
        clients=[("50.31.156.12", "mta12-bc.mtasv.net")],
        sender=lambda number, to: f"pm_bounces+{token(number)}@pm.mtasv.net",
        zone=mx("pm.mtasv.net"),
        retries=SLOW,
    ),
    Sender(
        name="Salesforce Marketing Cloud under a customer's name",
        clients=[("13.111.4.231", "mta4.email.brand.example")],
        sender=lambda number, to: f"bounce-{number}_HTML-45{number}-901-2345-0@bounce.email.brand.example",
        zone=mx("bounce.email.brand.example"),
    ),
]

LISTS = [
    Sender(
        name="Mailman 2 with VERP",
        clients=[("192.0.2.11", "lists.club.example")],
        sender=lambda number, to: f"members-bounces+{encoded(to)}@lists.club.example",
        zone=mx("lists.club.example"),
    ),
    Sender(
        name="Mailman 3",
        clients=[("192.0.2.12", "mail.python.example")],
        sender=lambda number, to: f"dev-bounces+{token(number, 16)}-{encoded(to)}@python.example",
        zone=mx("python.example", "a:mail.python.example"),
    ),
    Sender(
        name="ezmlm on qmail",
        clients=[("192.0.2.13", "a.mx.ezmlm.example")],
        sender=lambda number, to: f"announce-return-{1000 + number}-{encoded(to)}@lists.ezmlm.example",
        zone=mx("lists.ezmlm.example"),
        retries=QMAIL,
    ),
    Sender(
        name="Sympa",
        clients=[("192.0.2.14", "sympa.uni.example")],
        sender=lambda number, to: f"bounce+{number}=={to.replace('@', '==a==')}@sympa.uni.example",
        zone=mx("sympa.uni.example"),
    ),
    Sender(
        name="LISTSERV",
        clients=[("192.0.2.15", "listserv.society.example")],
        sender=lambda number, to: (
            f"owner-news-{number}*{to.replace('@', '**').replace('.', '*-')}@listserv.society.example"
        ),
        zone=mx("listserv.society.example"),
    ),
    Sender(
        name="the kernel's lists",
        clients=[("139.178.88.99", "sv.mirrors.kernel.org")],
        sender=lambda number, to: f"linux-kernel+bounces-{20000 + number}-{encoded(to)}@vger.kernel.org",
        zone=mx("vger.kernel.org"),
    ),
]

FORWARDERS = [
    Sender(
        name="a forwarder that keeps the sender, whose SPF then fails",
        clients=[("192.0.2.21", "alumni.uni.example")],
        sender=lambda number, to: f"friend{number % 20}@strict{number % 5}.example",
        zone="".join(mx(f"strict{n}.example", "ip4:203.0.113.1") for n in range(5)),
    ),
    Sender(
        name="a forwarder with SRS",
        clients=[("192.0.2.22", "mx.forward.example")],
        sender=lambda number, to: (
            f"SRS0={token(number, 4)}={token(number + 1, 2)}=far{number % 5}.example=jo@forward.example"
        ),
        zone=mx("forward.example", "mx:forward.example", "a:mx.forward.example"),
    ),
    Sender(
        name="a forwarder of forwarded mail, SRS1",
        clients=[("192.0.2.23", "mx.second.example")],
        sender=lambda number, to: (
            f"SRS1={token(number, 4)}=forward.example=={token(number + 1, 4)}=XY=far.example=jo@second.example"
        ),
        zone=mx("second.example"),
    ),
    Sender(
        name="the backup MX of ours, with everybody's mail",
        clients=[("192.0.2.24", "mx2.backup.example")],
        sender=lambda number, to: f"person{number % 30}@strict{number % 5}.example",
    ),
    Sender(
        name="BATV",
        clients=[("192.0.2.25", "mail.batv.example")],
        sender=lambda number, to: f"prvs={token(number)}=jo@batv.example",
        zone=mx("batv.example"),
    ),
]

SMALL = [
    Sender(
        name="a home server without PTR, with SPF",
        clients=[("198.18.1.31", UNKNOWN)],
        helo="mail.home.example",
        domain="home.example",
        zone=mx("home.example", "ip4:198.18.1.31"),
    ),
    Sender(
        name="a home server without PTR and without SPF",
        clients=[("198.18.2.161", UNKNOWN)],
        helo="box.cellar.example",
        domain="cellar.example",
        zone=mx("cellar.example"),
        retries=EXIM,
    ),
    Sender(
        name="a dynamic-looking PTR with the right SPF",
        clients=[("198.19.3.40", "p198-19-3-40.dsl.telco.example")],
        helo="mail.tinkerer.example",
        domain="tinkerer.example",
        zone=mx("tinkerer.example", "ip4:198.19.3.40"),
    ),
    Sender(
        name="a rented server with the hoster's name",
        clients=[("88.198.7.12", "static.12.7.198.88.clients.your-server.de")],
        helo="mail.startup.example",
        domain="startup.example",
        zone=mx("startup.example", "ip4:88.198.7.12"),
    ),
    Sender(
        name="a virtual machine with the cloud's name",
        clients=[("18.196.5.77", "ec2-18-196-5-77.eu-central-1.compute.amazonaws.com")],
        helo="mail.cloudy.example",
        domain="cloudy.example",
        zone=mx("cloudy.example", "a:mail.cloudy.example") + "mail.cloudy.example A 18.196.5.77\n",
    ),
    Sender(
        name="IPv6 without PTR",
        clients=[("2001:db8:6::25", UNKNOWN)],
        helo="mail.six.example",
        domain="six.example",
        zone=mx("six.example", "ip6:2001:db8:6::/48"),
    ),
    Sender(
        name="IPv6 only, with a name",
        clients=[("2001:db8:7::25", "mail.sixonly.example")],
        domain="sixonly.example",
        zone="sixonly.example MX 10 mail.sixonly.example\nmail.sixonly.example AAAA 2001:db8:7::25\n",
    ),
    Sender(
        name="dual stack without any PTR",
        clients=[("2001:db8:8::25", UNKNOWN), ("198.18.4.201", UNKNOWN)],
        helo="mail.dual.example",
        domain="dual.example",
        zone=mx("dual.example"),
        dual_stack=True,
    ),
    Sender(
        name="several PTR records, another one first each time",
        clients=[("192.0.2.41", name) for name in ("mail.many.example", "www.many.example", "ftp.many.example")],
        helo="mail.many.example",
        domain="many.example",
        zone=mx("many.example"),
    ),
    Sender(
        name="a server with several addresses",
        clients=[(f"192.0.2.{n}", "mail.multi.example") for n in (42, 142, 242)],
        domain="multi.example",
        zone=mx("multi.example"),
    ),
    Sender(
        name="a classless delegation at a university (RFC 2317)",
        clients=[("192.0.2.43", "mailhub.physics.uni.example")],
        domain="physics.uni.example",
        zone=mx("physics.uni.example"),
    ),
    Sender(
        name="Exchange with a HELO from inside",
        clients=[("192.0.2.44", "mail.plant.example")],
        helo="EXCH01.corp.plant.local",
        domain="plant.example",
        zone=mx("plant.example"),
        retries=EXCHANGE,
    ),
    Sender(
        name="HELO with an address literal",
        clients=[("192.0.2.45", "appliance.literal.example")],
        helo="[192.0.2.45]",
        domain="literal.example",
        zone=mx("literal.example"),
    ),
    Sender(
        name="HELO with an IPv6 address literal",
        clients=[("2001:db8:9::25", "appliance6.literal.example")],
        helo="[IPv6:2001:db8:9::25]",
        domain="literal.example",
    ),
    Sender(
        name="HELO with an underscore",
        clients=[("192.0.2.46", "mail-1.under.example")],
        helo="mail_1.under.example",
        domain="under.example",
        zone=mx("under.example"),
    ),
    Sender(
        name="HELO with a final dot",
        clients=[("192.0.2.47", "mail.dot.example")],
        helo="mail.dot.example.",
        domain="dot.example",
        zone=mx("dot.example"),
        retries=QMAIL,
    ),
]

ODD = [
    Sender(
        name="a new top-level domain",
        clients=[("192.0.2.51", "mail.schmidt.photography")],
        domain="schmidt.photography",
        zone=mx("schmidt.photography"),
    ),
    Sender(
        name="an internationalised domain",
        clients=[("192.0.2.52", "mail.xn--mller-kva.example")],
        domain="xn--mller-kva.example",
        zone=mx("xn--mller-kva.example"),
    ),
    Sender(
        name="internationalised addresses (EAI)",
        clients=[("192.0.2.53", "mail.xn--exmple-cua.example")],
        sender=lambda number, to: "jörg@exämple.example",
        zone=mx("xn--exmple-cua.example", "a:mail.xn--exmple-cua.example"),
    ),
    Sender(
        name="quoted local parts",
        clients=[("192.0.2.54", "mail.quoted.example")],
        sender=lambda number, to: '"jo doe"@quoted.example',
        zone=mx("quoted.example"),
        recipients=('"ann b"@example.org', "ann@example.org"),
    ),
    Sender(
        name="long local parts",
        clients=[("192.0.2.55", "mail.long.example")],
        sender=lambda number, to: f"{'x' * 60}{number % 4}@long.example",
        zone=mx("long.example"),
    ),
    Sender(
        name="subaddresses at both ends",
        clients=[("192.0.2.56", "mail.plus.example")],
        sender=lambda number, to: f"jo+order{number}@plus.example",
        zone=mx("plus.example"),
        recipients=tuple(f"ann+shop{n}@example.org" for n in range(9)),
    ),
    Sender(
        name="a domain with an address and no MX",
        clients=[("192.0.2.57", "web.aonly.example")],
        sender=lambda number, to: "www-data@web.aonly.example",
        zone="web.aonly.example A 192.0.2.57\n",
    ),
    Sender(
        name="a domain with an IPv6 address alone",
        clients=[("2001:db8:a::25", "web.aaaa.example")],
        domain="web.aaaa.example",
        zone="web.aaaa.example AAAA 2001:db8:a::25\n",
    ),
    Sender(
        name="a domain whose MX leads through an alias",
        clients=[("192.0.2.58", "mail.alias.example")],
        domain="alias.example",
        zone="alias.example CNAME real.example\nreal.example MX 10 mail.alias.example\n",
    ),
    Sender(
        name="a domain whose DNS fails for a minute",
        clients=[("192.0.2.59", "mail.wobbly.example")],
        domain="wobbly.example",
        zone=mx("wobbly.example", "a:mail.wobbly.example"),
    ),
    Sender(
        name="bounces",
        clients=[("192.0.2.60", "mail.bouncing.example")],
        sender=lambda number, to: "",
    ),
    Sender(
        name="call-outs that verify our senders",
        clients=[("192.0.2.61", "mx.careful.example")],
        sender=lambda number, to: "",
        probe=True,
    ),
    Sender(
        name="monitoring that asks for a recipient and leaves",
        clients=[("192.0.2.62", "probe3.watch.example")],
        sender=lambda number, to: "check@watch.example",
        zone=mx("watch.example"),
        recipients=("ann@example.org",),
        probe=True,
    ),
    Sender(
        name="who asks postmaster why he is listed",
        clients=[("203.0.113.66", UNKNOWN)],
        helo="mail.listed.example",
        domain="listed.example",
        zone=mx("listed.example") + "66.113.0.203.zen.spamhaus.org A 127.0.0.2\n",
        recipients=("postmaster@example.org", "abuse@example.org", "Postmaster@example.org"),
    ),
    Sender(
        name="our user on the road, from a listed address",
        clients=[("203.0.113.67", "ip-203-0-113-67.pool.mobile.example"), ("203.0.113.68", UNKNOWN)],
        helo="iPhone",
        sender=lambda number, to: "ann@example.org",
        zone="67.113.0.203.zen.spamhaus.org A 127.0.0.10\n68.113.0.203.zen.spamhaus.org A 127.0.0.11\n"
        + mx("far.example"),
        recipients=("jo@far.example", "info@example.org"),
        sasl_user="ann",
    ),
    Sender(
        name="our printers",
        clients=[("10.1.2.3", UNKNOWN), ("10.1.2.4", UNKNOWN)],
        helo="KM_C3350 scanner",
        sender=lambda number, to: "scanner@localhost",
    ),
]

SENDERS = [*POOLS, *BULK, *LISTS, *FORWARDERS, *SMALL, *ODD]
