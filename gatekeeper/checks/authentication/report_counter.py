# SPDX-License-Identifier: GPL-3.0-or-later
"""`count`: counts what the milter verified, for aggregate reports (reports/counters.py); never refuses anything.

Off by default: source addresses are personal data in many places, and nothing sends reports yet. It costs one write
for each message from a domain that wants reports, after the reply. If the store fails, the message is not counted, and
nothing else happens.
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
"""Reason code of the check `dmarc` -> why the policy was not applied, as RFC 9990 names it."""


class ReportCounter(ConfiguredCheck):
    """Counts DMARC results; stands before the check `dmarc`, which may end the list."""

    name: ClassVar[str] = "count"

    async def judge(self, request: Request, context: Context) -> Verdict:
        """Register the count, which is written after the decision; always pass."""
        address = request.client.address
        if request.stage is not Stage.END_OF_MESSAGE or address is None:
            return PASS
        found = await context.facts.dmarc()
        if not is_reportable(found):
            return PASS
        spf, dkim = await context.facts.spf(), await context.facts.dkim()

        async def count(decision: Decision) -> None:
            step = next((step for step in decision.steps if step.check == "dmarc"), None)
            judged = step.verdict if step is not None else PASS
            disposition = _disposition(found, judged if step is not None and step.applied else PASS)
            reasons = tuple(_reasons(found, judged, disposition))
            row = counted_row(str(address), found, spf, dkim, disposition=disposition, reasons=reasons)
            # Facts are the same in observe mode, so the keys are those of enforce mode.
            key = bucket_key(Keys(context.keys.secret), context.clock(), row.domain)
            await context.store.tally(key, row.to_bytes(), RETENTION, MAX_BUCKET_ROWS)

        context.after(count)
        return PASS


def _disposition(found: Finding, applied: Verdict) -> str:
    """Return what DMARC did to the message, as RFC 9990 names it."""
    if found.result is DmarcResult.PASS:
        return "none" if found.published is DmarcPolicy.NONE else "pass"
    if applied.reason not in ("dmarc.reject", "dmarc.quarantine"):
        return "none"
    return "reject" if applied.outcome is Outcome.REJECT else "quarantine"


def _reasons(found: Finding, judged: Verdict, disposition: str) -> Iterator[str]:
    if found.result is not DmarcResult.FAIL:
        return
    if found.published is not found.policy:
        yield "policy_test_mode"
    if disposition != found.policy:
        yield _REASONS.get(judged.reason, "local_policy")
