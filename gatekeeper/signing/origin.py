# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose mail is it? What signing.policy answers, once for a message, and why.

Everything that follows depends on it: ours is signed if a key is found for it, and not judged; a stranger's is judged,
and not signed; a peer's and an exempt domain's is left alone.
"""

from enum import StrEnum
from typing import NamedTuple

from gatekeeper.core.verdict import Note


class Owner(StrEnum):
    """Whose mail it is."""

    OURS = "ours"
    """Handed in by a submission service, an authenticated user or an internal host."""
    STRANGER = "stranger"
    PEER = "peer"
    """From a host that has done already what we would do (OpenDKIM's PeerList)."""
    EXEMPT = "exempt"
    """From an address in a domain that is not our business (OpenDKIM's ExemptDomains)."""


class Origin(NamedTuple):
    """Where a message comes from: whose it is, and the condition that says so (of a stranger's, that none does)."""

    owner: Owner
    why: Note

    @property
    def is_ours(self) -> bool:
        """Whether the message is ours."""
        return self.owner is Owner.OURS

    @property
    def is_left_alone(self) -> bool:
        """Whether the message is neither signed nor judged, whoever's it is."""
        return self.owner is Owner.PEER or self.owner is Owner.EXEMPT
