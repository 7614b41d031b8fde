# SPDX-License-Identifier: GPL-3.0-or-later
r"""Mailboxes in the forms that Postfix gives them: as SMTP writes them, as a table is asked, as they are delivered.

Internally Postfix knows a mailbox without quotes, and tells it so to a policy service: `"a b"@example.com` is
`a b@example.com`. Tables are asked in external form, with quotes where the local part needs them; only if no table has
that, in internal form (mail_addr_find(3), MA_FORM_EXTERNAL_FIRST; seen on Postfix 3.7). So the internal form, which is
whatever a stranger wrote, never is a key that stands before the quoted one.

What stands in the local part of a domain of its own, Postfix takes for an address: `a%example.com`, `example.com!a` and
`a@example.com` are all `a@example.com` (trivial-rewrite(8): `allow_percent_hack`, `swap_bangpath`,
`resolve_dequoted_address`, all on by default).
"""

import re
from collections.abc import Callable, Iterator

_DOT_STRING = re.compile(r"[^\x00-\x20\x7f()<>\[\]:;@\\,\".]+(?:\.[^\x00-\x20\x7f()<>\[\]:;@\\,\".]+)*")
"""A local part that needs no quotes (quote_822_local(3)); 8-bit characters are left alone."""
_QUOTED = re.compile(r'"((?:\\.|[^"\\])*)"(?=@|\Z)', re.DOTALL)
_ROUTE = re.compile(r"@[^:]*:")


def external(mailbox: str) -> str:
    """Return a mailbox in internal form, or a local part with an `@` behind it, with the quotes that it needs."""
    local, at, domain = mailbox.rpartition("@")
    return f"{external_local(local)}{at}{domain}" if at else external_local(domain)


def external_local(local: str) -> str:
    """Return a local part in internal form with the quotes that it needs."""
    if _DOT_STRING.fullmatch(local):
        return local
    return '"' + re.sub(r'["\\\r]', r"\\\g<0>", local) + '"'


def internal(mailbox: str) -> str:
    """Return a mailbox as SMTP or a header field writes it, `"a b"@example.com`, without the quotes."""
    quoted = _QUOTED.match(mailbox)
    return re.sub(r"\\(.)", r"\1", quoted[1], flags=re.DOTALL) + mailbox[quoted.end() :] if quoted else mailbox


def forms(key: str) -> Iterator[str]:
    """Yield a key in internal form as tables are asked: in external form, then as it is if that is another."""
    quoted = external(key)
    yield quoted
    if quoted != key:
        yield key


def normal(mailbox: str) -> str:
    """Return a mailbox in internal form as Postfix looks it up: lower case, no route, no dot behind the domain."""
    route = _ROUTE.match(mailbox)
    bare = mailbox[route.end() :] if route and "@" in mailbox[route.end() :] else mailbox
    return bare.lower().removesuffix(".") if "@" in bare else bare.lower()


def resolved(mailbox: str, is_local: Callable[[str], bool]) -> str:
    """Return where a mailbox in internal form leads: `a@example.com` for `a%example.com@ours.example`.

    `is_local` tells the domains that Postfix delivers itself; a mailbox without a domain is in one.
    """
    local, at, domain = mailbox.rpartition("@")
    if not at:
        local, domain = mailbox, ""
    last = mailbox
    while not domain or is_local(domain):
        if "@" in local:
            local, _, domain = local.rpartition("@")
        elif "!" in local:
            domain, _, local = local.partition("!")
        elif "%" in local:
            local, _, domain = local.rpartition("%")
        else:
            break
        if local and domain:
            last = f"{local}@{domain}"
    return last
