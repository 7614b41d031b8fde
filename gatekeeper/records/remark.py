# SPDX-License-Identifier: GPL-3.0-or-later
"""A remark on a record that one of our own domains publishes.

It is one sentence for the postmaster; `error` means that the record does not achieve its purpose with receivers.
"""

from typing import NamedTuple


class Remark(NamedTuple):
    """One thing to know about a record."""

    error: bool
    what: str

    def __str__(self) -> str:
        return f"{'error' if self.error else 'note'}: {self.what}"
