# SPDX-License-Identifier: GPL-3.0-or-later
"""tests/same_as_postfix/: sessions, each with the restriction lists that judge it and what a real Postfix answers.

`sessions.toml` is a table of `[[list]]`: the lists by name (`client`, `helo`, `sender`, `recipient`, `etrn`, `data`) as
main.cf has them, and `sessions`, each a line of `key=value` words and the answer: code and enhanced code, or nothing
where the restrictions refuse nothing. A third string is gatekeeper's answer where it differs, with the reason in
`differs`. What a session does not say, DEFAULTS say; `-` is what was not said at all. `%20` is a
space, and so on: addresses are written as SMTP has them, with the quotes that Postfix takes off for a policy service.
`peer=ADDRESS` connects from that loopback address, so that Postfix looks its name up; all others become their client by
XCLIENT.
"""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import unquote

from gatekeeper.auth.iprev import IprevFinding, check_iprev
from gatekeeper.core.request import UNKNOWN, parse_address
from gatekeeper.dnsclient.resolver import TableResolver
from gatekeeper.dnsclient.zone import Zone
from tests.support.needs import ROOT

FOLDER = ROOT / "tests" / "same_as_postfix"
ZONE = FOLDER / "dns.zone"
SITE = {
    "hostname": "mx.example.org",
    "mynetworks": ["10.0.0.0/8"],
    "local_domains": ["local.example"],
    "relay_domains": ["example.org"],
    "recipient_delimiter": "+",
}
LOGINS = "texthash:logins.txt, pcre:logins.pcre"
DEFAULTS = {
    "client": "203.0.113.1",
    "name": "client.example",
    "helo": "mail.good.example",
    "from": "alice@good.example",
    "to": "bob@example.org",
    "user": "-",
    "stage": "RCPT",
    "etrn": "",
    "first": "",
    "peer": "",
}
_DOCUMENT = tomllib.loads((FOLDER / "sessions.toml").read_text(encoding="utf-8"))
CLASSES: Mapping[str, str] = _DOCUMENT["classes"]


@dataclass(frozen=True)
class Session:
    """One line of the table. `number` tells sessions apart, `judged_by` its lists, by their place in the table."""

    number: int
    judged_by: int
    line: str
    postfix: str
    gatekeeper: str

    def __str__(self) -> str:
        lists = {name: LISTS[self.judged_by][name] for name in list_names(LISTS[self.judged_by])}
        return f"{'; '.join(lists.values())} <- {self.line}"

    @cached_property
    def words(self) -> dict[str, str]:
        """What is said in it, defaults filled in."""
        said = {key: unquote(value) for key, value in (word.split("=", 1) for word in self.line.split())}
        assert said.keys() <= {*DEFAULTS, "reverse"}, said
        words = {**DEFAULTS, **said}
        return {"reverse": words["name"], **words}

    async def attributes(self) -> dict[str, str]:
        """What Postfix asks a policy service about it, as far as restrictions look."""
        words = self.words
        name, reverse = (UNKNOWN if words[key].startswith("[") else words[key] for key in ("name", "reverse"))
        if words["peer"]:
            found: IprevFinding = await check_iprev(TableResolver(Zone.read(ZONE)), parse_address(words["peer"]))
            name, reverse = found.name or UNKNOWN, found.reverse or UNKNOWN
        mail = words["stage"] in ("RCPT", "DATA")
        return {
            "request": "smtpd_access_policy",
            "protocol_state": words["stage"],
            "client_address": words["peer"] or words["client"].removeprefix("::ffff:"),
            "server_address": "127.0.0.1",
            "client_name": name,
            "reverse_client_name": reverse,
            "helo_name": "" if words["helo"] == "-" else words["helo"],
            "sender": _unquoted(words["from"]) if mail else "",
            "recipient": ""
            if words["stage"] == "ETRN" or (words["first"] and not self.at_rcpt)
            else _unquoted(words["to"]),
            "queue_id": "4ABC" if words["first"] else "",  # from the first accepted recipient on
            "recipient_count": str(0 if self.at_rcpt else 1 + bool(words["first"])),
            "sasl_username": "" if words["user"] == "-" else words["user"],
            "etrn_domain": words["etrn"],
        }

    @property
    def at_rcpt(self) -> bool:
        """True if the recipients are not counted yet."""
        return self.words["stage"] != "DATA"


def _unquoted(address: str) -> str:
    """An address of SMTP as Postfix knows it inside, and tells it: without a route, and without quotes."""
    address = re.sub(r"^@[^:]*:", "", address)
    quoted = re.match(r'"((?:\\.|[^"\\])*)"(?=@|$)', address)
    return re.sub(r"\\(.)", r"\1", quoted[1]) + address[quoted.end() :] if quoted else address


def list_names(table: Mapping[str, object]) -> list[str]:
    """The names of the lists in one `[[list]]`, in the order in which they run."""
    return [name for name in ("client", "helo", "sender", "recipient", "etrn", "data") if name in table]


LISTS: list[dict[str, str]] = [
    {name: table[name] for name in [*list_names(table), "differs"] if name in table} for table in _DOCUMENT["list"]
]


def _sessions() -> Iterator[Session]:
    number = 0
    for index, table in enumerate(_DOCUMENT["list"]):
        for line, postfix, *ours in table["sessions"]:
            assert bool(ours) <= ("differs" in table), f"{line}: say why gatekeeper differs"
            yield Session(number, index, line, postfix, ours[0] if ours else postfix)
            number += 1


SESSIONS = list(_sessions())


def gatekeeper_config() -> str:
    """A gatekeeper.toml with a context for each of LISTS."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in SITE.items()]
    lines += ["[policy]", "restrictions = []", f"sender_login_maps = {json.dumps(LOGINS)}"]
    lines += ['relay_clientcerts = "texthash:logins.txt"', "[policy.classes]"]
    lines += [f"{name} = {json.dumps(text)}" for name, text in CLASSES.items()]
    for index, table in enumerate(LISTS):
        lines.append(f"[policy.contexts.c{index}]")
        lines += [f"{name}_restrictions = {json.dumps(table[name])}" for name in list_names(table)]
    return "\n".join(lines)


def with_folder(restrictions: str) -> str:
    """`restrictions` for Postfix, which wants whole paths of tables."""
    return re.sub(r"\b(texthash|cidr|regexp|pcre):(?=\w)", rf"\1:{FOLDER}/", restrictions)
