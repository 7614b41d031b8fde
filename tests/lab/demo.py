# SPDX-License-Identifier: GPL-3.0-or-later
"""`make demo`: the recorded sessions through a real Postfix, for a person to watch.

Starts a lab, plays each session by SMTP and prints what the client was told and why: the reasons are those in
gatekeeper's own log, the header changes those of the mail that arrived. Takes some 15 s; then everything is gone
again. Exit status 69 (EX_UNAVAILABLE) where it cannot run, with what to do about it.
"""

import itertools
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import NamedTuple

from gatekeeper.dnsclient.resolver import TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.replay import fixture
from gatekeeper.replay.compare import MessageOutcome
from gatekeeper.replay.fixture import Case
from gatekeeper.replay.smtp import Servers, SmtpError, play
from tests.lab import Lab, LabError, why_not
from tests.lab.evidence import is_complete, outcomes
from tests.lab.service import PROJECT

UNAVAILABLE = 69
CASES = PROJECT / "tests" / "smtp_fixtures"
SESSIONS = (
    "clean-signed-mail",
    "forged-from",
    "forged-results",
    "bounce",
    "listed-client",
    "bad-helo",
    "first-time-sender",
    "sender-dns-broken",
    "authenticated-submission",
    "flood",
)

WHY = {
    "dmarc.pass": "it comes from the domain in its From",
    "dmarc.fail": "neither SPF nor DKIM speaks for the From domain; as shipped, DMARC is only written down",
    "dnsbl.listed": "the client is on a DNS list, and the reply says on which",
    "always_reachable": "the same client may write to postmaster, so that it can ask why",
    "greylist.early": "nobody has seen this client, which has no confirmed name, send such mail: it has to come back",
    "greylist.passed": "it came back after the delay, as real mail servers do",
    "helo.invalid": "what it calls itself cannot be a host name",
    "helo.non_fqdn": "it calls itself by a name that is not fully qualified",
    "ratelimit.messages": "that was more than five messages a minute from one client",
    "sender.unknown_domain": "the domain of its sender does not exist, so nobody could answer",
    "sender.unknown_domain_temporary": "the sender's DNS is broken: nobody is refused for good over that",
    "sign.ok": "it is from one of our users, so it leaves with our signature",
}
"""Reason codes in sentences; a code that stands alone in a decision and not here is shown as it is."""


_WORDS = {"2": "accepted", "4": "come back later", "5": "refused"}


class Row(NamedTuple):
    """One line of the table."""

    session: str
    happened: str
    why: str


def main() -> int:
    """Run the demo; the exit status."""
    if reason := why_not() or ("" if CASES.is_dir() else f"{CASES} is missing: run this from a clone"):
        print(f"make demo cannot run here: {reason}", file=sys.stderr)
        return UNAVAILABLE
    begun = time.monotonic()
    try:
        _show()
    except KeyboardInterrupt:
        print("\nstopped; nothing is left behind", file=sys.stderr)
        return 130
    except (LabError, SmtpError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"\n{time.monotonic() - begun:.0f} s; Postfix, DNS and gatekeeper are stopped, their files removed.")
    return 0


def _show() -> None:
    cases = [fixture.read(CASES / name) for name in SESSIONS]
    zone = Zone.parse("\n".join(case.zone for case in cases))
    print("Starting a private Postfix, DNS for made-up domains, and gatekeeper between them ...", flush=True)
    with Lab(zone=zone, hostname="mx.example.org", relay_domains=["example.org"]) as lab:
        lab.run(CASES / fixture.CONFIG)
        print(f"Postfix listens on 127.0.0.1:{lab.postfix.ports.smtp}; {len(cases)} sessions follow.\n", flush=True)
        _print(Row("session", "what happened", "why"))
        for case in cases:
            for row in _rows(lab, case):
                _print(row)


def _rows(lab: Lab, case: Case) -> Iterator[Row]:
    """What came of each message of a case; equal things that follow each other are one row."""
    ports = lab.postfix.ports
    heard = play(case, Servers("127.0.0.1", ports.smtp, ports.submission), TableResolver(lab.dns.zone))
    deadline = time.monotonic() + 2.0
    while not is_complete(case, heard, lab.service.log) and time.monotonic() < deadline:
        time.sleep(0.05)
    title = case.name.replace("-", " ")
    played = outcomes(case, heard, lab.service.log, lab.delivered)
    sentences = [(_happened(message), _why(message)) for connection in played for message in connection.messages]
    for (happened, why), same in itertools.groupby(sentences):
        count = len(list(same))
        yield Row(title, f"{happened}, {count} times" if count > 1 else happened, why)
        title = ""


def _happened(outcome: MessageOutcome) -> str:
    """The code of the last reply, and what it means."""
    code = outcome.replies[-1][:3]
    return f"{code} {_WORDS.get(code[:1], '')}"


def _why(outcome: MessageOutcome) -> str:
    """A sentence from the reasons, and what was done to the header if the message arrived."""
    parts = [WHY[code] for code in outcome.reasons if code in WHY]
    if outcome.headers_removed:
        parts.append(f"{len(outcome.headers_removed)} fields that claimed to be our results were removed")
    parts += [_results(field.value) for field in outcome.headers_added if field.name == b"Authentication-Results"]
    sentence = "; ".join(parts) or "nothing speaks against it"
    return sentence[0].upper() + sentence[1:] + "."


def _results(value: bytes) -> str:
    """What an Authentication-Results field says of SPF, DKIM and DMARC."""
    found = dict(reversed(re.findall(r"[;\s](spf|dkim|dmarc)=(\w+)", value.decode("ascii", "replace"))))
    return ", ".join(f"{method.upper()} {found[method]}" for method in ("spf", "dkim", "dmarc") if method in found)


def _print(row: Row) -> None:
    """A row of the table, its columns wrapped to the terminal's width."""
    whole = min(max(shutil.get_terminal_size().columns, 80), 140)
    widths = (24, 21, whole - 24 - 21 - 4)
    columns = [textwrap.wrap(text, width) for text, width in zip(row, widths, strict=True)]
    for cells in itertools.zip_longest(*columns, fillvalue=""):
        print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip(), flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
