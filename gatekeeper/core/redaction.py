# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep the customer's key out of every DNS list zone that people see. The one module that knows these keys.

Operators of paid lists give each customer a zone of their own, `KEY.zen.dq.spamhaus.net`, and whoever knows the key
queries on that account. So a key appears in DNS queries and nowhere else: what goes out in a reply, a note, a log line
or a message about the configuration goes through `without_key` (the name of a zone) or `hide_keys` (text that may hold
one).

Known limit: the key of an operator that is not listed here is recognised by its form, 20 letters and digits or more.
"""

import re
from functools import lru_cache

# All repetitions are bounded by the length of a label: the text searched may be 60 kB of somebody's TXT record.
_SERVICES = r"[a-z0-9_-]{1,63}\.(?:dq\.spamhaus\.net|mail\.abusix\.zone)(?![a-z0-9_-])"
_KEY_LIKE = r"(?=[a-z]{0,62}[0-9])(?=[0-9]{0,62}[a-z])[a-z0-9]{20,63}"
_IN_ZONE = re.compile(rf"(?:[^.\s]{{1,63}}(?=\.{_SERVICES})|{_KEY_LIKE}(?=\.|$))", re.IGNORECASE)
_BEFORE_SERVICE = rf"[^\s.,;'\"=<>()\[\]]{{1,63}}\.(?={_SERVICES})"
_INSIDE_NAME = rf"(?<=[a-z0-9]\.){_KEY_LIKE}\.(?=[a-z0-9-]{{1,63}}\.[a-z])"
_IN_TEXT = re.compile(f"{_BEFORE_SERVICE}|{_INSIDE_NAME}", re.IGNORECASE)
_ALONE = re.compile(rf"(?<![a-z0-9]){_KEY_LIKE}(?![a-z0-9])", re.IGNORECASE)
_KEYED_SERVICES = ("dq.spamhaus.net", "abusix.zone")


@lru_cache(1024)
def zone_key(zone: str) -> str:
    """Return the first label of `zone` if it is a key; empty if not."""
    match = _IN_ZONE.match(zone)
    return match[0] if match else ""


@lru_cache(1024)
def without_key(zone: str) -> str:
    """Return `zone` as people may see it: `zen.dq.spamhaus.net`."""
    key = zone_key(zone)
    return zone[len(key) :].removeprefix(".") or "(a key)" if key else zone


def hide_keys(text: str) -> str:
    """Return `text` without the keys in any names of zones, or of queries to them, that it contains."""
    return _IN_TEXT.sub("", text)


def quote_without_keys(written: str) -> str:
    """Return what somebody wrote as the name of a list, quoted for an error message about it, without keys."""
    return repr(_ALONE.sub("(a key)", hide_keys(written)))


def hide_known_keys(text: str) -> str:
    """Return `text` without the keys of known operators.

    For text in which a stranger's name may look like a key and must stay as it is.
    """
    lower = text.lower()
    return hide_keys(text) if any(domain in lower for domain in _KEYED_SERVICES) else text
