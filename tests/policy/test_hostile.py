# SPDX-License-Identifier: GPL-3.0-or-later
"""Nothing that a stranger writes can end a reply line early: whole decisions, an attacker's bytes in every place."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatekeeper.app.app import App, open_app
from gatekeeper.app.plan import Plan, prepare
from gatekeeper.config import config_file
from gatekeeper.dnsclient.resolver import MX, Answer, DNSFailure, Record
from gatekeeper.policy.protocol import MAX_REPLY, RequestParser, action, encode_answer, to_request
from gatekeeper.stores.memory import MemoryStore

LISTS = (
    "check_client_access texthash:table",
    "check_helo_access pcre:patterns",
    "check_sender_access pcre:patterns",
    "check_recipient_access pcre:patterns",
    "check_sender_mx_access pcre:patterns",
    "check_sasl_access pcre:patterns",
    "check_ccert_access pcre:patterns",
    "reject_rbl_client bl.example",
    "reject_rhsbl_sender bl.example",
    "reject_rhsbl_helo bl.example",
    "reject_unknown_sender_domain",
    "reject_unknown_recipient_domain",
    "reject_unknown_helo_hostname, reject_invalid_helo_hostname",
    "reject_unknown_client_hostname",
    "reject_helo_ours",
    "reject_sender_login_mismatch",
    "dnsbl",
    "spf",
    "defer_if_permit, defer_if_reject, reject",
)
TABLE = b"client.example REJECT caf\xc3\xa9 \xff\x1b[31m \x01\n\xff\xfe REJECT\n"
PATTERNS = "/(.*)/s REJECT you said $1\n"
HOSTILE = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from(
        [
            b"a\raction=OK\r\r@bad.example",
            b"a\x0baction=OK@good.example",
            b"a\xc2\x85action=OK\xe2\x80\xa8@x.example",
            b"%s%n@x.example",
            b"client.example",
            b"x" * 1500,
        ]
    ),
).map(lambda value: value.replace(b"\n", b"").replace(b"\0", b""))
NAMES = (
    *("client_name", "reverse_client_name", "helo_name", "sender", "recipient", "queue_id", "instance"),
    *("sasl_method", "sasl_username", "sasl_sender", "ccert_subject", "ccert_fingerprint", "client_address", "size"),
)


class HostileResolver:
    """Answers every question with an attacker's text, in each form that has any."""

    def __init__(self, text: bytes) -> None:
        self._text = text

    async def query(self, name: str, type: str) -> Answer:
        host = self._text.decode("ascii", "replace")
        records: dict[str, tuple[Record, ...]] = {
            "A": ("127.0.0.2",),
            "TXT": (self._text, b"v=spf1 -all exp=why.example"),
            "MX": (MX(10, host),),
            "PTR": (host,),
            "NS": (host,),
        }
        if type not in records:
            raise DNSFailure(host)
        return Answer(name, type, records[type])

    async def close(self) -> None:
        pass


def no_postfix(names: object) -> dict[str, str]:
    return {}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "table").write_bytes(TABLE)
    (folder / "patterns").write_text(PATTERNS)
    contexts = [f"[policy.contexts.c{n}]\nrestrictions = {text!r}" for n, text in enumerate(LISTS)]
    path: Path = folder / "gatekeeper.toml"
    path.write_text(
        "\n".join(
            [
                'hostname = "mx.example.org"\n[policy]\nsender_login_maps = "inline:{ a@b.example=a }"',
                '[checks.spf]\nmode = "enforce"\n[checks.dnsbl]\nlists = ["bl.example"]',
                *contexts,
            ]
        )
    )
    return prepare(config_file.load(path, no_postfix))


@settings(max_examples=200)
@given(
    st.integers(0, len(LISTS) - 1),
    st.sampled_from(["RCPT", "DATA", "MAIL", "CONNECT", "ETRN"]),
    st.dictionaries(st.sampled_from(NAMES), HOSTILE),
    HOSTILE,
)
async def test_whatever_is_said_is_answered_with_one_line(
    plan: Plan, context: int, state: str, said: dict[str, bytes], dns_text: bytes
) -> None:
    usual = {"client_address": b"192.0.2.1", "client_name": b"unknown", "sender": b"a@b.example", "recipient": b"c@d"}
    values = {"request": b"smtpd_access_policy", "protocol_state": state.encode(), **usual, **said}
    values["policy_context"] = b"c%d" % context
    parser = RequestParser()
    parser.feed(b"".join(b"%b=%b\n" % (name.encode(), value) for name, value in values.items()) + b"\n")
    attributes = parser.next()
    assert attributes is not None
    request = to_request(attributes)
    app: App = await open_app(
        plan, resolver=HostileResolver(dns_text), store=MemoryStore(lambda: 1e9), clock=lambda: 1e9
    )
    decision, _ = await app.decide(request)
    answer = encode_answer(decision.verdict, request)
    line = answer[len(b"action=") : -2].decode()
    assert answer == b"action=%b\n\n" % line.encode()
    assert line.isascii()
    assert line.isprintable()
    assert len(line) <= MAX_REPLY
    code, _, rest = action(decision.verdict, request).partition(" ")
    assert not code.isdigit() or (len(code) == 3 and len(rest.split(" ", 1)) == 2), "a code never goes without a text"
