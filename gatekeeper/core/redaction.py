# SPDX-License-Identifier: GPL-3.0-or-later
"""Keep keys of DNS lists and passwords of urls out of all that people see. The one module that knows them.

Operators of paid lists give each customer a zone of their own, `KEY.zen.dq.spamhaus.net`, and whoever knows the key
queries on that account. So a key appears in DNS queries and nowhere else: what goes out in a reply, a note, a log line
or a message about the configuration goes through `without_key` (the name of a zone) or `hide_keys` (text that may hold
one).

A url of a store may hold a user and a password before its last `@`, with any character in them if somebody forgot to
percent-encode it. So nothing parses it first: the raw text is cut at its last `@`, and what a library says about a url
is not passed on, because it may quote a part of it.

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


STORE_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
"""Schemes of urls that may hold a password."""
_SCHEME = r"(?:rediss?(?:\+[a-z]+)?:|unix://)"
_STORE_URL = re.compile(rf"({_SCHEME}(?://)?).*@[^\s'\",;]*", re.IGNORECASE | re.DOTALL)
_QUOTED_URL = re.compile(rf"(['\"])({_SCHEME}).*\1", re.IGNORECASE | re.DOTALL)
_TO_THE_END = re.compile(rf"({_SCHEME}).*", re.IGNORECASE | re.DOTALL)
_LOGIN = re.compile(r"([a-z][a-z0-9+.-]{1,20}://)[^\s/'\"]*@", re.IGNORECASE)
_PASSWORD = re.compile(r"(password\W{0,3}=)[^&\s'\"]+", re.IGNORECASE)


def url_without_secrets(url: str) -> str:
    """Return the url of a store as people may see it: without what stands before its last `@` and after a `?`."""
    scheme, colon, rest = url.partition(":")
    if scheme.lower() not in STORE_SCHEMES:
        return url
    slashes = "//" if rest.startswith("//") else ""
    login, _, shown = rest[len(slashes) :].rpartition("@")
    if set(login) & set("/?#@"):  # what comes after the @ may be the end of a password
        return f"{scheme}:…"
    return scheme + colon + slashes + re.split("[?#]", shown, maxsplit=1)[0]


def url_scheme(url: str) -> str:
    """Return what may be shown of a url that is not understood: its scheme, if that is one, else nothing."""
    scheme, colon, _ = url.partition(":")
    return f"{scheme}:…" if colon and scheme.lower() in (*STORE_SCHEMES, "sqlite", "memory") else ""


def hide_passwords(text: str) -> str:
    """Return `text`, a sentence about a configuration, without the passwords of the urls in it.

    A quoted url of a store is cut behind its scheme, one that is not quoted up to the last `@` of the text.
    """
    if ":" in text:
        text = _QUOTED_URL.sub(r"\1\2…\1", text)
        text = _LOGIN.sub(r"\1", _STORE_URL.sub(r"\1…", text)) if "@" in text else text
    return _PASSWORD.sub(r"\1(hidden)", text) if "assword" in text.lower() else text


def cut_urls(text: str) -> str:
    """Return `text`, which may quote what somebody wrote on the command line, up to the first url of a store."""
    return _TO_THE_END.sub(r"\1…", hide_known_keys(text))


_SECRET = re.compile(rf"{_SCHEME}.*@|[?&]password=|{_LOGIN.pattern}", re.IGNORECASE)
_LONGEST_LINE = 100_000


def holds_secret(text: str) -> bool:
    """Return whether `text`, a configuration, holds a password, the key of a DNS list, or a private key."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return "PRIVATE KEY-" in text or any(
        len(line) < _LONGEST_LINE and (_SECRET.search(line) is not None or hide_known_keys(line) != line)
        for line in lines
    )
