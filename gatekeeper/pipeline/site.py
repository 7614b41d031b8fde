# SPDX-License-Identifier: GPL-3.0-or-later
"""What this relay is: the top level of the configuration, in the form that checks use."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from gatekeeper.auth.domains import normal_domain
from gatekeeper.core.request import Client
from gatekeeper.postfix.client_list import ClientList


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What this relay is: the top level of the configuration, in the form that checks use.

    Domains are lower-case A-labels; `local_domains` and `relay_domains` entries that start with a dot also hold for
    everything below. The codes are Postfix's parameters of the same names (postconf(5)).
    """

    hostname: str
    authserv_id: str
    mynetworks: ClientList = field(default_factory=ClientList)
    local_domains: tuple[str, ...] = ()
    relay_domains: tuple[str, ...] = ()
    recipient_delimiter: str = ""
    unknown_client_reject_code: str = "450"
    unknown_hostname_reject_code: str = "450"
    unknown_address_reject_code: str = "450"

    def is_internal(self, client: Client) -> bool:
        """Return True if `client` is in mynetworks."""
        return client.address is not None and self.mynetworks.decide(client)[0]

    def is_local(self, domain: str) -> bool:
        """Return True if mail for `domain` may end here."""
        return _covers(self.local_domains, domain)

    def is_ours(self, domain: str) -> bool:
        """Return True if `domain` is one that this relay takes mail for."""
        return _covers((*self.local_domains, *self.relay_domains), domain)


def _covers(domains: Iterable[str], domain: str) -> bool:
    domain = domain.lower().removesuffix(".") if domain.isascii() else normal_domain(domain)
    return any(domain == ours or (ours.startswith(".") and domain.endswith(ours)) for ours in domains)
