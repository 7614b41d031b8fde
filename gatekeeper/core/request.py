# SPDX-License-Identifier: GPL-3.0-or-later
"""The request: one immutable value that the policy daemon, the milter, replay and explain all ask about.

Knows no wire format and no configuration. A field without a value is None (not known at this stage) or empty (known to
be empty), because the two mean different things: `sender=""` is the null sender.
"""

from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

Address = IPv4Address | IPv6Address

UNKNOWN = "unknown"
"""Postfix's word for a client name that is missing or not confirmed (postconf(5), `smtpd_client_*`)."""


class Stage(StrEnum):
    """The SMTP stage, by Postfix's `protocol_state` (SMTPD_POLICY_README); EHLO counts as HELO, BDAT as DATA."""

    CONNECT = "CONNECT"
    HELO = "HELO"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    END_OF_MESSAGE = "END-OF-MESSAGE"
    VRFY = "VRFY"
    ETRN = "ETRN"


class Client(NamedTuple):
    """The SMTP client. `name` is forward-confirmed, `reverse_name` is the bare PTR; both may be `unknown`."""

    address: Address | None = None
    name: str = UNKNOWN
    reverse_name: str = UNKNOWN
    port: int | None = None


class Request(NamedTuple):
    """One SMTP command or message to decide on. Sizes are in bytes.

    `instance` is Postfix's identifier of one message at one smtpd. A tuple, because a frozen dataclass with this many
    fields takes 2.5 times as long to create; pass every field by name.
    """

    stage: Stage
    client: Client = Client()
    helo: str | None = None
    sender: str | None = None
    recipient: str | None = None
    recipient_count: int = 0
    size: int = 0
    queue_id: str = ""
    instance: str = ""
    sasl_user: str = ""
    sasl_method: str = ""
    encryption_protocol: str = ""
    policy_context: str = ""
    etrn_domain: str = ""
    server_address: Address | None = None
    """The local address that the client has connected to."""
    ccert_subject: str = ""
    ccert_issuer: str = ""
    """The names in the client's certificate, known only if Postfix trusts it."""
    ccert_fingerprint: str = ""
    ccert_pubkey_fingerprint: str = ""


class _CachedHash:
    """An address with its hash and text precomputed: each request looks up its client a dozen times."""

    __slots__ = ()
    _hash: int
    _text: str

    def __hash__(self) -> int:
        return self._hash

    def __str__(self) -> str:
        return self._text


class _IPv4(_CachedHash, IPv4Address):
    __slots__ = ("_hash", "_text")

    def __init__(self, address: int | str) -> None:
        IPv4Address.__init__(self, address)
        self._hash, self._text = IPv4Address.__hash__(self), IPv4Address.__str__(self)


class _IPv6(_CachedHash, IPv6Address):
    __slots__ = ("_hash", "_text")

    def __init__(self, address: int | str) -> None:
        IPv6Address.__init__(self, address)
        self._hash, self._text = IPv6Address.__hash__(self), IPv6Address.__str__(self)


def plain_address(address: Address) -> Address:
    """Return the address without a zone index, and the IPv4 address of one that is mapped into IPv6."""
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or (IPv6Address(int(address)) if address.scope_id else address)
    return address


def parse_address(text: str) -> Address | None:
    """Return the address in `text`, or None for `unknown`, nothing, or anything else that is not an address.

    An IPv4-mapped IPv6 address becomes the IPv4 address that it stands for; a zone index (`fe80::1%eth0`) is dropped.
    """
    return _parse_address(text) if len(text) < 100 else None


@lru_cache(maxsize=4096)  # several requests in a row are about one client, and parsing takes 10 µs
def _parse_address(text: str) -> Address | None:
    try:
        address = ip_address(text.partition("%")[0].removeprefix("IPv6:"))
    except ValueError:
        return None
    if isinstance(address, IPv4Address):
        return _IPv4(int(address))
    mapped = address.ipv4_mapped
    return _IPv6(int(address)) if mapped is None else _IPv4(int(mapped))


def domain_of(mailbox: str) -> str:
    """Return the domain of `local@domain` in lower case, without a trailing dot; empty if there is none."""
    return mailbox.rpartition("@")[2].lower().removesuffix(".") if "@" in mailbox else ""
