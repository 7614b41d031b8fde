# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may sign for whom: closes OpenDKIM's hole, by which any user may have any hosted domain signed.

`login` binds an authenticated user to the addresses that smtpd_sender_login_maps gives to the login, and where the map
says nothing to the domain of the login. `envelope` binds From to the domain of the envelope sender, which Postfix can
check (reject_sender_login_mismatch). Mail of hosts that are internal and do not authenticate has no login: it is bound
by `envelope` alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from gatekeeper.auth.domain import normal
from gatekeeper.problem import Problem
from gatekeeper.request import Request, domain_of
from gatekeeper.signing import dataset
from gatekeeper.signing.sender import Sender


class Bind(StrEnum):
    """What a signature is bound to, besides the SigningTable."""

    NONE = "none"
    """Nothing, as in OpenDKIM."""
    LOGIN = "login"
    ENVELOPE = "envelope"


class Mismatch(StrEnum):
    """What becomes of mail from a domain that is not the user's."""

    UNSIGNED = "unsigned"
    REJECT = "reject"


_POSTFIX_TYPE = re.compile(r"(hash|lmdb|btree|texthash|cdb|dbm):(?=/|\./|\.\./|\w)")


class Logins:
    """The source text of smtpd_sender_login_maps: an address or `@domain`, and the logins that own it."""

    def __init__(self) -> None:
        self._owners: dict[str, frozenset[str]] = {}

    @classmethod
    def read(cls, spec: str | Sequence[str], where: str, *, base: Path = Path()) -> "tuple[Logins, list[Problem]]":
        """Read the map; a Postfix type before the file's name (`hash:`) means its source text."""
        if isinstance(spec, str):
            spec = _POSTFIX_TYPE.sub("file:", spec)
        data, problems = dataset.read(spec, where, base)
        logins = cls()
        for entry in data.entries:
            owners = frozenset(re.split(r"[\s,]+", entry.value.lower())) - {""}
            if "@" not in entry.key or not owners:
                what = f"{entry.key}: expected an address or @domain, and behind it the logins that own it"
                problems.append(data.problem(entry, what))
            else:
                logins._owners.setdefault(entry.key.lower(), owners)
        return logins, problems

    def owners(self, sender: Sender) -> frozenset[str] | None:
        """The logins that own the sender's address; None if the map does not say."""
        found = self._owners.get(str(sender).lower())
        return found if found is not None else self._owners.get(f"@{sender.domain}")


@dataclass(frozen=True, slots=True)
class Binding:
    """Whether this mail may have a signature for its sender, and what becomes of it if it may not."""

    bind: Bind = Bind.NONE
    logins: Logins | None = None
    mismatch: Mismatch = Mismatch.UNSIGNED

    def objection(self, request: Request, sender: Sender) -> str:
        """Why not, in words; empty if it may."""
        if self.bind is Bind.ENVELOPE:
            domain = normal(domain_of(request.sender or ""))
            return "" if domain == sender.domain else f"the envelope sender is in {domain or 'no domain'}"
        if self.bind is Bind.LOGIN and (request.sasl_user or request.sasl_method):
            return self._login(request.sasl_user, sender)
        return ""

    def _login(self, user: str, sender: Sender) -> str:
        owners = self.logins.owners(sender) if self.logins is not None else None
        if owners is not None:
            return "" if user.lower() in owners else f"the login {user} does not own {sender} in sender_logins"
        domain = normal(domain_of(user))
        if domain == sender.domain:
            return ""
        return f"the login {user} is in {domain or 'no domain'}, and sender_logins does not give it {sender}"
