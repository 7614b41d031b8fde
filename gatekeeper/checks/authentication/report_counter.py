# SPDX-License-Identifier: GPL-3.0-or-later
"""Counts what the milter verified, for aggregate reports (reports/counters.py); no opinion of its own.

Off by default: source addresses are personal data in many places, and nothing sends reports yet. It costs one write
for each message of a domain that wants reports, after the answer. A store that fails costs the count and no more.
"""

from collections.abc import Iterator
from typing import ClassVar

from gatekeeper.auth.dmarc import DmarcFinding as Finding
from gatekeeper.auth.dmarc import DmarcResult
from gatekeeper.auth.dmarc_record import DmarcPolicy
from gatekeeper.checks.base.check_types import ConfiguredCheck
from gatekeeper.core.request import Request, Stage
from gatekeeper.core.verdict import PASS, Decision, Outcome, Verdict
from gatekeeper.pipeline.context import Context
from gatekeeper.reports.counters import MAX_BUCKET_ROWS, RETENTION, bucket_key, counted_row, is_reportable
from gatekeeper.stores.store import Keys

_REASONS = {
    "dmarc.forwarder": "trusted_forwarder",
    "dmarc.list": "mailing_list",
    "dmarc.sealer": "local_policy",
    "dmarc.override": "local_policy",
    "dmarc.fail": "local_policy",
}
"""Reason code of the check `dmarc` -> why the policy was not applied, in the words of RFC 9990."""


class ReportCounter(ConfiguredCheck):
    """Counts; stands before the check `dmarc`, which may end the list."""

    name: ClassVar[str] = "count"

    async def judge(self, request: Request, context: Context) -> Verdict:
        """Always PASS."""
        address = request.client.address
        if request.stage is not Stage.END_OF_MESSAGE or address is None:
            return PASS
        found = await context.facts.dmarc()
        if not is_reportable(found):
            return PASS
        spf, dkim = await context.facts.spf(), await context.facts.dkim()

        async def count(decision: Decision) -> None:
            said = next((step.verdict for step in decision.steps if step.check == "dmarc"), PASS)
            applied = said if decision.verdict is decision.judged else PASS
            disposition = _disposition(found, applied)
            reasons = tuple(_reasons(found, said, disposition))
            row = counted_row(str(address), found, spf, dkim, disposition=disposition, reasons=reasons)
            # Facts are the same in observe mode, so they are not kept apart.
            key = bucket_key(Keys(context.keys.secret), context.clock(), row.domain)
            await context.store.tally(key, row.to_bytes(), RETENTION, MAX_BUCKET_ROWS)

        context.after(count)
        return PASS


def _disposition(found: Finding, said: Verdict) -> str:
    """What DMARC did to the message, in the words of RFC 9990."""
    if found.result is DmarcResult.PASS:
        return "none" if found.published is DmarcPolicy.NONE else "pass"
    if said.reason not in ("dmarc.reject", "dmarc.quarantine"):
        return "none"
    return "reject" if said.outcome is Outcome.REJECT else "quarantine"


def _reasons(found: Finding, said: Verdict, disposition: str) -> Iterator[str]:
    if found.result is not DmarcResult.FAIL:
        return
    if found.published is not found.policy:
        yield "policy_test_mode"
    if disposition != found.policy:
        yield _REASONS.get(said.reason, "local_policy")
