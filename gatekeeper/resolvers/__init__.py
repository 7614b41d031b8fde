# SPDX-License-Identifier: GPL-3.0-or-later
"""The resolvers that ask somebody (live.py) and that remember (caching.py); the contract is in resolver.py."""

from gatekeeper.resolvers.authoritative import Authorities, LiveAuthorities, TableAuthorities, Voice
from gatekeeper.resolvers.caching import CachingResolver
from gatekeeper.resolvers.live import LiveResolver, parse_nameserver, preload

__all__ = [
    "Authorities",
    "CachingResolver",
    "LiveAuthorities",
    "LiveResolver",
    "TableAuthorities",
    "Voice",
    "parse_nameserver",
    "preload",
]
