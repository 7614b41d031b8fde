# SPDX-License-Identifier: GPL-3.0-or-later
"""Domain names as SPF, DKIM and DMARC compare them: lower-case A-labels without a final dot (RFC 8616).

Anything that cannot be the domain of a mailbox or of a signature becomes the empty string, so that what a stranger made
up is never compared, looked up or printed.
"""

import re

from gatekeeper.dnsclient.names import to_name, to_text

_DOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\Z")


def normal_domain(text: str) -> str:
    """Return `text` as lower-case A-labels; empty unless it consists of letters, digits, hyphens and underscores."""
    if not text.isascii():
        name = to_name(text)
        text = "" if name is None else to_text(name)
    text = text.lower()
    return text if _DOMAIN.match(text) else ""


def configured_domain(text: str) -> str:
    """Return a domain as people write it in a configuration or table in the form in which mail is compared with it.

    White space around it and a final dot are dropped; a dot before it, for what is below it, stays. Empty if it cannot
    be a domain. All options and tables that hold domains use this, so that none of them misses what another matches.
    """
    bare = text.strip()
    dot = "." if bare.startswith(".") else ""
    name = normal_domain(bare.removeprefix(".").removesuffix("."))
    return dot + name if name else ""


def configured_mailbox(text: str) -> str:
    """Return `user@domain`, `@domain` or a domain with the domain in that form; as it is if that is no domain."""
    local, at, domain = text.strip().rpartition("@")
    name = configured_domain(domain)
    return f"{local}{at}{name}" if name else text.strip()


def is_within(name: str, domain: str) -> bool:
    """Return whether `name` is `domain` or lies below it; both in normal form."""
    return name == domain or name.endswith("." + domain)
