# SPDX-License-Identifier: GPL-3.0-or-later
"""How the zone of a DNS list is shown to people: without the customer's key. The one place that knows.

Operators of paid lists give each customer a zone of his own, `KEY.zen.dq.spamhaus.net`, and who knows the key asks on
his account. So a key stands in DNS questions and nowhere else: what leaves in a reply, a note, a log line or a message
about the configuration goes through `shown` (the name of a zone) or `hide` (text that may hold one).

Known limit: the key of an operator that is not listed here is recognised by its looks, 20 letters and digits or more.
"""

import re
from functools import lru_cache

# All repetitions are bounded, by the length of a label: what is searched may be 60 kB of somebody's TXT record.
_SERVICES = r"[a-z0-9_-]{1,63}\.(?:dq\.spamhaus\.net|mail\.abusix\.zone)(?![a-z0-9_-])"
_LOOKS = r"(?=[a-z]{0,62}[0-9])(?=[0-9]{0,62}[a-z])[a-z0-9]{20,63}"
_IN_ZONE = re.compile(rf"(?:[^.\s]{{1,63}}(?=\.{_SERVICES})|{_LOOKS}(?=\.|$))", re.IGNORECASE)
_BEFORE_SERVICE = rf"[^\s.,;'\"=<>()\[\]]{{1,63}}\.(?={_SERVICES})"
_INSIDE_NAME = rf"(?<=[a-z0-9]\.){_LOOKS}\.(?=[a-z0-9-]{{1,63}}\.[a-z])"
_IN_TEXT = re.compile(f"{_BEFORE_SERVICE}|{_INSIDE_NAME}", re.IGNORECASE)
_ALONE = re.compile(rf"(?<![a-z0-9]){_LOOKS}(?![a-z0-9])", re.IGNORECASE)
_TELL_TALE = ("dq.spamhaus.net", "abusix.zone")


@lru_cache(1024)
def zone_key(zone: str) -> str:
    """The label of `zone`, its first, that is a key; empty if it has none."""
    match = _IN_ZONE.match(zone)
    return match[0] if match else ""


@lru_cache(1024)
def without_key(zone: str) -> str:
    """`zone` as people may see it: `zen.dq.spamhaus.net`."""
    key = zone_key(zone)
    return zone[len(key) :].removeprefix(".") or "(a key)" if key else zone


def hide_keys(text: str) -> str:
    """`text` without the keys of zones or of questions about them that stand in it."""
    return _IN_TEXT.sub("", text)


def quote_without_keys(written: str) -> str:
    """What somebody wrote where a list is to stand, in quotes, for a message about what is wrong with it."""
    return repr(_ALONE.sub("(a key)", hide_keys(written)))


def hide_known_keys(text: str) -> str:
    """`text` without keys of known operators: where a stranger's name may look like a key and must stay as it is."""
    lower = text.lower()
    return hide_keys(text) if any(told in lower for told in _TELL_TALE) else text
