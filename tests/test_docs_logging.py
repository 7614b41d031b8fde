# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/logging.md names every pair of a decision line and every reason code, and nothing that does not exist."""

import re
from ipaddress import ip_address

import pytest

from gatekeeper.auth.dkim import DkimFinding, DkimResult
from gatekeeper.core import log
from gatekeeper.core.request import Client, Request, Stage
from gatekeeper.core.verdict import Decision, Note, Step, defer_if_permit, reject
from gatekeeper.dnsclient.resolver import TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.pipeline import facts
from gatekeeper.pipeline.facts import Facts
from gatekeeper.policy.protocol import action
from tests.support.needs import ROOT

PAGE = (ROOT / "docs" / "logging.md").read_text("utf-8")
PAIRS, CODES = PAGE.split("## Reason codes")
SOURCES = [
    path for part in ("checks", "milter", "signing", "pipeline") for path in (ROOT / "gatekeeper" / part).rglob("*.py")
]
CODE = re.compile(r"[a-z_]+\.[a-z_]+")


def first_cells(text: str) -> list[str]:
    return [word for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for word in re.findall(r"`([^`]+)`", row)]


def full_line() -> str:
    """A line in which every pair has a value."""
    client = Client(address=ip_address("192.0.2.1"), name="a.example", reverse_name="b.example", port=1)
    request = Request(
        stage=Stage.RCPT, client=client, helo="h", sender="a@x", recipient="b@y", recipient_count=1, size=1,
        queue_id="Q", sasl_user="u", encryption_protocol="TLSv1.3", policy_context="c",
    )  # fmt: skip
    early = defer_if_permit("greylist.early", "4.7.1", "wait")
    steps = (
        Step("recipient", "greylist", early, (Note(log.WAITED, "1s"),)),
        Step("end", "sign", reject("sign.no_key", "451", "4.7.0", "x"), (Note("key", "gone"),), applied=False),
    )
    return log.decision_line(
        Decision(request, early, steps, reject("sign.no_key", "451", "4.7.0", "x")), "milter", action
    )


def test_every_pair_of_a_line_is_explained_and_no_other() -> None:
    written = set(re.findall(r"(?:^| )([a-z_]+)=", re.sub(r'"[^"]*"', '""', full_line())))
    told = {name for name, _ in facts._WORDS}
    assert written | told | {"signed", "took"} == set(first_cells(PAIRS))


def codes_in_the_source() -> tuple[set[str], set[str]]:
    """Codes that stand there whole, and beginnings of those that are put together."""
    text = "\n".join(path.read_text("utf-8") for path in SOURCES)
    whole = {code.removesuffix("_temporary") for code in re.findall(rf'(?<![\w{{])"({CODE.pattern})"', text)}
    return whole, set(re.findall(r'f"([a-z_]+)\.\{', text))


DOCUMENTED = {cell for cell in first_cells(CODES) if CODE.fullmatch(cell)}
FAMILIES = {cell.partition(".")[0] for cell in first_cells(CODES) if "." in cell}


def test_every_reason_code_is_explained() -> None:
    whole, beginnings = codes_in_the_source()
    ours = {code for code in whole if code.partition(".")[0] in FAMILIES}
    assert set() == {
        code
        for code in ours
        if code not in DOCUMENTED and not any(f"{code.partition('.')[0]}.…" == cell for cell in first_cells(CODES))
    }
    assert beginnings <= FAMILIES


@pytest.mark.parametrize("code", sorted(DOCUMENTED))
def test_no_reason_code_is_explained_that_does_not_exist(code: str) -> None:
    whole, beginnings = codes_in_the_source()
    put_together = {"rbl", "rhsbl", "spf", "sender", "recipient"}
    assert code in whole or code.partition(".")[0] in beginnings | put_together


def test_what_is_known_of_a_mail_is_told_and_nothing_is_asked_for_it() -> None:
    known = Facts(TableResolver(Zone.parse("")), client=Client(), helo="h", sender="a@x", receiver="mx.example")
    assert [] == list(known.told())
    known._known["dkim"] = (DkimFinding(DkimResult.PASS, domain="x", selector="s"), DkimFinding(DkimResult.NONE))
    assert [("dkim", "pass:x:s,none")] == list(known.told())
