# SPDX-License-Identifier: GPL-3.0-or-later
"""Times that were written down once and are read later: by another process, another relay, or after a clock was set.

The rule: a stored time is never compared as it is, but as a bounded difference to now. One that lies in the future was
written by a clock that was ahead, and *counts from now*: whoever reads it takes it for now, and writes that down, so
that what waits for it ends after its normal time. So a clock that was a year ahead for a minute delays nothing by a
year. One that lies too far in the past was written by a clock that was behind: what it stood for has expired.

What has a time to live is kept with it, so that nothing lives longer than that from now on
(stores/sliding_window.py, stores/sqlite/rows.py).
"""

TOLERANCE = 1.0
"""Seconds that a time may be ahead of now without counting as future: relays do not agree to the millisecond."""


def age(now: float, then: float) -> float:
    """Return the seconds from `then` to `now`; 0 for a time in the future."""
    return max(0.0, now - then)


def is_future(now: float, then: float) -> bool:
    """Return whether a clock that was ahead must have written `then`: it counts from now, and is to be written anew."""
    return then > now + TOLERANCE
