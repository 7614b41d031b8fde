# SPDX-License-Identifier: GPL-3.0-or-later
"""`ratelimit`: messages and recipients in sliding windows, by client network and by login name, as anvil(8) and beyond.

A message counts once, by Postfix's `instance`, however often it is asked about; a recipient once for its message. What
is refused, by whichever check, is given back. The limits of a login name hold for authenticated clients, those of the
network for all others; mynetworks has none (`smtpd_client_event_limit_exceptions`).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from gatekeeper.checks.opinion import Opinion, always_reachable, unless_store_fails
from gatekeeper.checks.prefix import Prefix4, Prefix6, network_of
from gatekeeper.pipeline import Context
from gatekeeper.request import Request, Stage
from gatekeeper.store import Hit
from gatekeeper.units import duration_text, seconds
from gatekeeper.verdict import PASS, Decision, Verdict, printable, reject

_LIMIT = re.compile(r"(\d{1,9})\s*/\s*(\S+)", re.ASCII)
_ASKED_AT = (Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.END_OF_MESSAGE)
_ERRORS = {"messages": "too much mail", "recipients": "too many recipients"}
"""anvil's words."""


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `count` within any `window` seconds."""

    count: int
    window: float

    def __str__(self) -> str:
        return f"{self.count} in {duration_text(self.window)}"


def parse_limit(value: Any) -> Limit:
    """The limit that `"100/1h"` names. Raises ValueError with what is allowed."""
    if isinstance(value, Limit):
        return value
    match = _LIMIT.fullmatch(value.strip()) if isinstance(value, str) else None
    allowed = 'allowed: COUNT/WINDOW, as "100/1h"'
    if match is None:
        raise ValueError(f"{value!r} is no limit; {allowed}")
    window = seconds(match[2])
    if window <= 0:
        raise ValueError(f"{value!r} has no window; {allowed}")
    return Limit(int(match[1]), window)


Limits = tuple[Annotated[Limit, BeforeValidator(parse_limit)], ...]


@dataclass(frozen=True, slots=True)
class _Count:
    """One hit and what it is measured by."""

    hit: Hit
    limit: Limit
    what: str
    whose: str


class RateLimit(Opinion):
    """450 4.7.1 when more than a limit has come within its window."""

    name: ClassVar[str] = "ratelimit"

    client_messages: Limits = Field(
        default=(Limit(300, 60.0),), description='messages of one client network: limits as "300/1m", all of which hold'
    )
    client_recipients: Limits = Field(
        default=(Limit(1500, 60.0),), description="recipients of all messages of one client network"
    )
    user_messages: Limits = Field(
        default=(Limit(100, 600.0), Limit(2000, 86400.0)), description="messages of one authenticated user"
    )
    user_recipients: Limits = Field(
        default=(Limit(500, 600.0), Limit(5000, 86400.0)), description="recipients of all messages of one such user"
    )
    ipv4_prefix: Prefix4 = Field(default=32, description="bits of an IPv4 address that make one client, as in anvil(8)")
    ipv6_prefix: Prefix6 = Field(default=84, description="bits of an IPv6 address that make one client, as in anvil(8)")

    async def judge(self, request: Request, context: Context) -> Verdict:
        """Count this request, and refuse it if that is too much."""
        if request.stage not in _ASKED_AT or always_reachable(request.recipient, context.site):
            return PASS
        counts = list(self._counts(request, context))
        if not counts:
            return PASS
        sums = await context.store.hit([count.hit for count in counts])
        _give_back_if_refused(request, context, counts)
        for count, sum_ in zip(counts, sums, strict=True):
            if sum_ > count.limit.count:
                context.note(f"{count.what} of {printable(count.whose, 80)}", f"{sum_}; the limit is {count.limit}")
                text = f"Error: {_ERRORS[count.what]} from {printable(count.whose, 80)}: the limit is {count.limit}"
                return reject(f"ratelimit.{count.what}", "450", "4.7.1", f"{text}; try again later")
        return PASS

    def _counts(self, request: Request, context: Context) -> Iterator[_Count]:
        if request.sasl_user:
            whose, kind = request.sasl_user.lower(), "user"
            messages, recipients = self.user_messages, self.user_recipients
        elif request.client.address is not None and not context.site.is_internal(request.client.address):
            whose, kind = network_of(request.client.address, self.ipv4_prefix, self.ipv6_prefix), "client"
            messages, recipients = self.client_messages, self.client_recipients
        else:
            return
        for what, limits, once in (
            ("messages", messages, request.instance),
            ("recipients", recipients, f"{request.instance} {request.recipient}" if request.instance else ""),
        ):
            if what == "recipients" and request.stage is not Stage.RCPT:
                continue
            for limit in limits:
                key = context.keys("ratelimit", kind, what, f"{limit.window:g}", whose)
                yield _Count(Hit(key, limit.window, once=once), limit, what, whose)


def _give_back_if_refused(request: Request, context: Context, counts: list[_Count]) -> None:
    """What is refused does not count. A message of which a recipient was accepted before (it has a queue id) does."""
    hits = [count.hit for count in counts if count.what == "recipients" or not request.queue_id]
    store = context.store

    async def settle(decision: Decision) -> None:
        if hits and decision.verdict.refuses:
            await store.unhit(hits)

    context.after(unless_store_fails(settle))
