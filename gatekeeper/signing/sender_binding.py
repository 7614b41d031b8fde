# SPDX-License-Identifier: GPL-3.0-or-later
"""Which users may have which senders signed: in OpenDKIM any user can have mail from any hosted domain signed.

`login` binds an authenticated user to the addresses that sender_login_maps assigns to the login, or to the domain of
the login if the map has no entry. `envelope` binds From to the domain of the envelope sender, which Postfix can check
(reject_sender_login_mismatch). Mail from internal hosts that do not authenticate has no login: only `envelope` binds
it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from gatekeeper.auth.domains import normal_domain
from gatekeeper.core.request import Request, domain_of
from gatekeeper.signing.message_sender import MessageSender


class BindTo(StrEnum):
    """What a signature is bound to, besides the SigningTable."""

    NONE = "none"
    """Nothing, as in OpenDKIM."""
    LOGIN = "login"
    ENVELOPE = "envelope"


class Mismatch(StrEnum):
    """What happens to mail from a domain that is not the user's."""

    UNSIGNED = "unsigned"
    REJECT = "reject"


Owners = Callable[[str], frozenset[str] | None]
"""Returns the logins, in lower case, that own an address; None if nothing is known about it."""


@dataclass(frozen=True, slots=True)
class SenderBinding:
    """Decides whether mail may be signed for its sender, and what happens to it if not."""

    bind: BindTo = BindTo.NONE
    owners: Owners = lambda _mailbox: None
    mismatch: Mismatch = Mismatch.UNSIGNED

    def objection(self, request: Request, sender: MessageSender) -> str:
        """Return why the mail may not be signed for `sender`, in words; empty if it may."""
        if self.bind is BindTo.ENVELOPE:
            domain = normal_domain(domain_of(request.sender or ""))
            return "" if domain == sender.domain else f"the envelope sender is in {domain or 'no domain'}"
        if self.bind is BindTo.LOGIN and (request.sasl_user or request.sasl_method):
            return self._login(request.sasl_user, sender)
        return ""

    def _login(self, user: str, sender: MessageSender) -> str:
        if (owners := self.owners(str(sender))) is not None:
            return "" if user.lower() in owners else f"by sender_login_maps the login {user} does not own {sender}"
        domain = normal_domain(domain_of(user))
        if domain == sender.domain:
            return ""
        return f"the login {user} is in {domain or 'no domain'}, and sender_login_maps does not give it {sender}"
