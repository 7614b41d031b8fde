# SPDX-License-Identifier: GPL-3.0-or-later
"""The notation of limits, `"100/10m"`, and the options of rules: what is counted, by what, for whom, up to which limit.

Knows neither requests nor the store; ratelimit.py applies the rules.
"""

import re
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, model_validator

from gatekeeper.checks.base.client_network import Prefix4, Prefix6
from gatekeeper.checks.limits.applies_to import SessionPatternList
from gatekeeper.core.units import duration_text, parse_duration

_LIMIT = re.compile(r"(\d{1,9})\s*/\s*(\S+)", re.ASCII)
MAX_WINDOW = 366 * 86400.0
"""Seconds of the longest window."""

BY = ("client", "user", "sender", "sender_domain", "recipient_domain")
RATES = ("messages", "recipients", "logins", "connections")
COUNTED = (*RATES, "simultaneous")
AT_CONNECT = ("connections", "simultaneous")
"""What is counted when a client connects and nothing but the client is known."""


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `count` within any `window` seconds; a window of 0 is the present moment."""

    count: int
    window: float

    def __str__(self) -> str:
        return _limit_text(self.count, self.window)


@cache
def _limit_text(count: int, window: float) -> str:
    return f"{count} in {duration_text(window)}" if window else f"{count} at once"


def parse_limit(value: Any) -> Limit:
    """Parse a limit such as `"100/1h"`. Raises ValueError with what is allowed."""
    if isinstance(value, Limit):
        return value
    match = _LIMIT.fullmatch(value.strip()) if isinstance(value, str) else None
    allowed = 'allowed: COUNT/WINDOW, as "100/1h"'
    if match is None:
        raise ValueError(f"{value!r} is not a limit; {allowed}")
    window = parse_duration(match[2])
    if window <= 0:
        raise ValueError(f"{value!r} has no window; {allowed}")
    if window > MAX_WINDOW:
        raise ValueError(f"{value!r} has too long a window; allowed: up to {duration_text(MAX_WINDOW)}")
    return Limit(int(match[1]), window)


def _split_limits(value: Any) -> Any:
    """Return a list as it is, and one string split at its commas."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value if isinstance(value, list | tuple) else [value]  # parse_limit says what is allowed


def _check_windows_differ(limits: tuple[Limit, ...]) -> tuple[Limit, ...]:
    windows = [limit.window for limit in limits]
    for limit in limits:
        if windows.count(limit.window) > 1:
            raise ValueError(f"has two limits for {duration_text(limit.window)}; allowed: one for each window")
    return limits


def _parse_by(value: Any) -> tuple[str, ...]:
    words = re.split(r"[\s,]+", value.strip(", \t\n")) if isinstance(value, str) else value
    allowed = f'allowed: {", ".join(BY)}, or several as a list, ["user", "recipient_domain"]'
    if not isinstance(words, list | tuple) or not words:
        raise ValueError(f"{value!r} names nothing to count by; {allowed}")
    for word in words:
        if word not in BY:
            raise ValueError(f"{word!r} is not something to count by; {allowed}")
    if len(set(words)) < len(words):
        raise ValueError(f"{value!r} names the same thing twice; {allowed}")
    return tuple(words)


Limits = Annotated[
    tuple[Annotated[Limit, BeforeValidator(parse_limit)], ...],
    BeforeValidator(_split_limits),
    AfterValidator(_check_windows_differ),
]
By = Annotated[tuple[str, ...], BeforeValidator(_parse_by)]
Simultaneous = Annotated[StrictInt, Field(ge=0, le=10**9)]


class LimitRule(BaseModel):
    """One rule, `[checks.ratelimit.rules.NAME]`; an empty list or 0 means that there is no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: By = Field(description=f"what has a counter of its own: {', '.join(BY)}; one or several together")
    applies_to: SessionPatternList = Field(
        default=(), validation_alias="for", description="whom the rule applies to; without it, to all"
    )
    excepted: SessionPatternList = Field(default=(), validation_alias="except", description="whom it does not apply to")
    messages: Limits = Field(default=(), description='messages: limits as "300/1m", all of which apply')
    recipients: Limits = Field(default=(), description="recipients of all messages")
    logins: Limits = Field(default=(), description="connections in which a user authenticated and sent mail")
    connections: Limits = Field(default=(), description="new connections, as the milter sees them; by client only")
    simultaneous: Simultaneous = Field(default=0, description="connections at once; 0: any number")
    ipv4_prefix: Prefix4 | None = Field(default=None, description="bits of an IPv4 address that make one client")
    ipv6_prefix: Prefix6 | None = Field(default=None, description="bits of an IPv6 address that make one client")

    @property
    def limits(self) -> dict[str, tuple[Limit, ...]]:
        """The limits by what they count, without what the rule does not name."""
        named = [what for what in COUNTED if what in self.model_fields_set]
        return {what: self._limits(what) for what in named}

    def _limits(self, what: str) -> tuple[Limit, ...]:
        if what == "simultaneous":
            return (Limit(self.simultaneous, 0.0),) if self.simultaneous else ()
        limits: tuple[Limit, ...] = getattr(self, what)
        return limits

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        named = [what for what in COUNTED if what in self.model_fields_set]
        if not named:
            raise ValueError(f"limits nothing; allowed: one or more of {', '.join(COUNTED)}")
        for prefix in ("ipv4_prefix", "ipv6_prefix"):
            if getattr(self, prefix) is not None and "client" not in self.by:
                raise ValueError(f'{prefix} is of no use without by = "client"')
        for what in AT_CONNECT:
            if what not in named:
                continue
            if self.by != ("client",):
                raise ValueError(f'{what} are counted when a client connects; allowed: by = "client"')
            for pattern in (*self.applies_to, *self.excepted):
                if pattern.kind not in ("client", "table"):
                    raise ValueError(
                        f"{what} are counted before {pattern} is known; allowed: networks and client names"
                    )
        return self
