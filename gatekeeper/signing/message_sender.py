# SPDX-License-Identifier: GPL-3.0-or-later
"""The sender that a signature is for: the first address of a From or Sender field (RFC 5322 section 3.6.2).

From is read as the verifier reads it (auth/author.py), and a signature vouches for one domain. So it takes that all
domains that a mail program could show are one, or the mail would fail our own DMARC; that it is certain what is quoted,
where OpenDKIM signs nothing either; and that all addresses have the form user@domain, without routes and literals.
"""

from dataclasses import dataclass

from gatekeeper.auth.author import read_mailboxes


@dataclass(frozen=True, slots=True)
class MessageSender:
    """A mailbox: `user` as written, quotes included; `domain` as A-labels in lower case."""

    user: str
    domain: str

    def __str__(self) -> str:
        return f"{self.user}@{self.domain}"


def parse_senders(value: bytes) -> list[MessageSender]:
    """Return the mailboxes in a field's value, folded or not: at least one, and all in one domain.

    Raises ValueError with what is wrong, which quotes nothing of `value`.
    """
    reading = read_mailboxes(value)
    if reading.doubt:
        raise ValueError(reading.doubt)
    if len(reading.domains) > 1:
        raise ValueError("its addresses are in several domains")
    if not reading.mailboxes or not all(mailbox.user for mailbox in reading.mailboxes):
        raise ValueError("there is no address of the form user@domain")
    return [MessageSender(*mailbox) for mailbox in reading.mailboxes]
