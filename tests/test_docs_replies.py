# SPDX-License-Identifier: GPL-3.0-or-later
"""The reply codes that the documents name are those that a client hears through Postfix."""

import re
from pathlib import Path

import pytest

from gatekeeper.checks.authentication.spf import SpfCheck
from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.builder.builder import CheckBuilder
from gatekeeper.checks.greylisting.greylist import Greylist
from gatekeeper.checks.limits.ratelimit import RateLimit
from gatekeeper.core.request import Request
from gatekeeper.core.verdict import Mode
from gatekeeper.policy.protocol import action
from gatekeeper.replay.postfix_model import Restrictions, refusal
from tests.support.checking import World, rcpt
from tests.support.needs import ROOT

ZONE = """
fail.example TXT "v=spf1 -all"
wrong.example TXT "v=spf1 bogus:x -all"
fail.example A 192.0.2.1
trouble.example TXT !SERVFAIL
trouble.example A !SERVFAIL
trouble.example MX !SERVFAIL
"""
SPF = SpfCheck.model_validate({"mode": Mode.ENFORCE, "temperror": "defer", "permerror": "reject"})
SECTIONS = {
    "spf": SPF,
    "greylist": Greylist.model_validate({"learning": "0s", "allow_shipped": False}),
    "ratelimit": RateLimit.model_validate({"client_messages": ["0/1m"]}),
}
SAID: list[tuple[str, str, str, Request]] = [
    # document, the words with the codes, and the session that hears them
    ("dnslists.md", "not send it: `550 5.7.23`", "spf", rcpt(sender="u@fail.example")),
    ("dnslists.md", "defers with `450 4.7.24` if `temperror", "spf", rcpt(sender="u@trouble.example")),
    ("dnslists.md", "is refused with\n`550 5.7.24` if `permerror", "spf", rcpt(sender="u@wrong.example")),
    ("greylisting.md", "is answered `450 4.7.1 Greylisted", "greylist", rcpt(name="unknown")),
    ("limits.md", "how long to wait: `450 4.7.1 Error: too much mail", "ratelimit", rcpt(instance="a", queue_id="b")),
    (
        "restrictions.md",
        "Refuses (554 5.7.1) a stranger who says in HELO",
        "reject_helo_ours",
        rcpt(helo="example.com"),
    ),
    ("restrictions.md", "then refuses (553 5.7.1) users", "reject_sender_login_mismatch", rcpt(sasl_user="eve")),
    (
        "restrictions.md",
        "an OK is answered `451 4.3.5`",
        "check_sender_a_access static:OK",
        rcpt(sender="u@fail.example"),
    ),
    (
        "restrictions.md",
        "makes more than one argument is answered 451\n  4.3.5",
        "check_sender_access pcre:patterns",
        rcpt(sender="a b@fail.example"),
    ),
    ("access.md", "is answered 451 4.3.5: write `DUNNO`", "check_reverse_client_hostname_access static:OK", rcpt()),
    ("access.md", "the entry answers 451 4.3.5 (Server", "check_client_access hash:bad", rcpt()),
    (
        "reliability.md",
        "`reject_helo_ours` | 450, unless",
        "reject_unknown_sender_domain",
        rcpt(sender="u@trouble.example"),
    ),
]


@pytest.mark.parametrize(("document", "words", "restrictions", "request_"), SAID, ids=[one[1] for one in SAID])
async def test_a_client_hears_the_code_that_a_document_names(
    tmp_path: Path, document: str, words: str, restrictions: str, request_: Request
) -> None:
    assert words in (ROOT / "docs" / document).read_text()
    (tmp_path / "bad").write_text("192.0.2.1 NONSENSE\n")
    (tmp_path / "patterns").write_text("/(.*)@fail/ REDIRECT $1@a.example\n")
    world = World("permit", ZONE, folder=tmp_path)
    maps = {"sender_login_maps": (["static:joe"], SourceLine("g.toml"))}
    builder = CheckBuilder(SECTIONS, tmp_path, maps=maps)
    check = builder.check(restrictions.split(None, 1), SourceLine("g.toml"))
    assert check is not None, builder.problems
    world.checks = (check,)
    verdict = await world.verdict(request_)
    heard = refusal(action(verdict, request_), Restrictions.RECIPIENT, "x")
    codes = re.search(r"[45]\d\d(?:\s+[45]\.\d+\.\d+)?", words)
    assert codes is not None
    assert heard.startswith(" ".join(codes[0].split())), heard
