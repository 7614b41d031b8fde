# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a stricter policy is safe, and the summary in words.

The usual progression is none → quarantine → reject, one step at a time, each after two weeks of reports. What decides
is the share that fails of mail that is ours (summary.py). Forgeries do not count, however many there are: else whoever
forges most would decide.

**Reporters are judged one by one**, because anybody can send a report: one who saw everything pass does not outvote
another who saw our mail fail, however many messages he claims. So no report makes a policy safe that others show to
harm. That two weeks are over, somebody's reports must say; so the advice tells whose, and of how many messages.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from gatekeeper.reports.summary import Seen, SourceKind, Summary

MINIMUM_DAYS = 14
"""Days of reports before a stricter policy is called safe: services that send once a month need even more."""
TOLERATED = 0.01
"""The share of our mail that fails up to which a stricter policy is called safe."""
_ENOUGH_FAILED = 5
"""Failed messages from which on the share that one reporter saw means something."""
_ENOUGH_PASSED = 100
"""Passed messages from which on it means something how many of them one reporter saw signed."""
_MAX_REPORTERS = 8  # that are named

_NEXT = {"none": "quarantine", "": "quarantine", "quarantine": "reject"}


@dataclass(frozen=True, slots=True)
class Advice:
    """Whether `policy`, the next stricter one, is safe. It is empty if the strictest one is published already."""

    policy: str
    safe: bool
    reasons: tuple[str, ...]


def advise(summary: Summary) -> Advice:
    """Recommend what to do next about the domain's policy, with the reasons."""
    reasons = [*_too_little(summary), *_harm(summary)]
    if not summary.complete:
        reasons.append("there are more senders in them than can be remembered: read fewer reports at a time")
    return Advice(_NEXT.get(summary.policy, ""), not reasons, tuple(reasons))


def _too_little(summary: Summary) -> Iterator[str]:
    if not summary.total:
        yield "the reports contain no mail at all"
    elif not summary.together.ours:
        yield "none of the mail in them is yours; if the domain sends none, publish p=reject"
    if len(summary.days) < MINIMUM_DAYS:
        yield f"they show mail of yours on {_plural(len(summary.days), 'day')}; wait for {MINIMUM_DAYS}"


def _harm(summary: Summary) -> Iterator[str]:
    everybody = summary.together
    if everybody.failing > TOLERATED:
        worst = max(summary.by_reporter, key=lambda name: summary.by_reporter[name].wanted)
        yield (
            f"{everybody.failing:.1%} of your mail fails (most of that is reported by {worst}); see above what to fix, "
            f"and aim for {TOLERATED:.0%}"
        )
    else:
        seen = {
            name: one
            for name, one in summary.by_reporter.items()
            if one.wanted >= _ENOUGH_FAILED and one.failing > TOLERATED
        }
        if seen:
            worst = max(seen, key=lambda name: seen[name].wanted)
            yield f"{seen[worst].failing:.1%} of your mail fails as {worst} reports, whatever others do"
    if _mostly_unsigned(everybody, 1):
        yield "most mail passes by SPF alone, which forwarding breaks: sign it with DKIM first"
    elif names := [name for name, one in summary.by_reporter.items() if _mostly_unsigned(one, _ENOUGH_PASSED)]:
        yield f"as {names[0]} reports, most mail passes by SPF alone, which forwarding breaks: sign it with DKIM first"


def _mostly_unsigned(seen: Seen, enough: int) -> bool:
    return seen.passed >= enough and seen.dkim < seen.passed * 0.5


_REMEDIES = {
    SourceKind.SERVICE: "authenticate as somebody else: have them sign with your domain (DKIM), or let them go "
    "on if they forward; if they are not yours but forged, say --not-ours NAME",
    SourceKind.BROKEN: "carry a signature of yours that no longer verifies: mailing lists and forwarders, or a gateway "
    "that changes mail after it is signed",
    SourceKind.OURS: "come from addresses that also send mail that passes, or pass for another name of yours: sign "
    "everything there, with the domain of From",
    SourceKind.FORWARDED: "were forwarded, as the receivers say: nothing to fix",
    SourceKind.STRANGER: "have no authentication: forged, unless you know an address here as one of yours",
}


def sentences(summary: Summary) -> Iterator[str]:
    """Yield the summary as lines for people."""
    begin, end = summary.begin, summary.end
    dates = f"{begin:%Y-%m-%d} to {end:%Y-%m-%d}" if begin and end else "no dates"
    yield f"{summary.domain}: {_plural(summary.total, 'message')}, {dates}, {_published(summary)}"
    yield f"  {_plural(summary.reports, 'report')} by {', '.join(_reporters(summary)[:_MAX_REPORTERS])}"
    if summary.empty_rows or summary.bad_rows:
        empty, bad = _plural(summary.empty_rows, "row"), _plural(summary.bad_rows, "row")
        yield f"  passed over: {empty} without messages, {bad} that cannot be understood"
    if not summary.total:
        return
    for what, count in (("DMARC passed", summary.passed), ("by SPF", summary.spf), ("by DKIM", summary.dkim)):
        yield f"  {what:13} {count:9}  {count / summary.total:6.1%}"
    for kind in SourceKind:
        if count := summary.count(kind):
            yield f"  {_plural(count, 'message')} {_REMEDIES[kind]}"
            for source in summary.sources(kind):
                yield f"    {source.count:9}  {source.name}"
    yield from _advice(summary)


def as_json(summary: Summary) -> dict[str, Any]:
    """Return the summary for programs."""
    advice = advise(summary)
    return {
        "domain": summary.domain,
        "policy": summary.policy,
        "begin": summary.begin,
        "end": summary.end,
        "days": len(summary.days),
        "reports": summary.reports,
        "reporters": sorted(summary.by_reporter),
        "messages": summary.total,
        "passed": summary.passed,
        "spf": summary.spf,
        "dkim": summary.dkim,
        "wanted": summary.wanted,
        "dispositions": dict(summary.dispositions),
        "failed": {
            kind: [asdict(source) for source in summary.sources(kind)] for kind in SourceKind if summary.count(kind)
        },
        "empty_rows": summary.empty_rows,
        "bad_rows": summary.bad_rows,
        "next_policy": advice.policy,
        "safe": advice.safe,
        "reasons": advice.reasons,
    }


def _published(summary: Summary) -> str:
    said, policy = summary.policies.total(), summary.policy
    agree = summary.policies[policy]
    return f"published policy {policy or 'none'}" + (f" (in {agree} of {said} reports)" if agree < said else "")


def _reporters(summary: Summary) -> list[str]:
    """Return the names of the reporters, those who saw most of our mail first."""
    seen = summary.by_reporter
    return sorted(seen, key=lambda name: (-seen[name].ours, name))


def _advice(summary: Summary) -> Iterator[str]:
    advice = advise(summary)
    if not advice.policy:
        yield f"  p={summary.policy} is the strictest policy: keep reading reports"
    elif advice.safe:
        yield f"  p={advice.policy} is safe to publish next: {_grounds(summary)}"
    else:
        yield f"  p={advice.policy} is not safe yet: {'; '.join(advice.reasons)}"


def _grounds(summary: Summary) -> str:
    """Return what makes a policy safe: of what mail, for how many days, and who says so."""
    ours = summary.together
    saw = ", ".join(f"{name} {summary.by_reporter[name].ours / ours.ours:.0%}" for name in _reporters(summary)[:3])
    return (
        f"of {_plural(ours.ours, 'message')} of yours on {_plural(len(summary.days), 'day')} {ours.failing:.1%} failed"
        f" (seen by {saw})"
    )


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
