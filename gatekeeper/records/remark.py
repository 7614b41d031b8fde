# SPDX-License-Identifier: GPL-3.0-or-later
"""The records that our own domains publish, judged as others will: DMARC and SPF.

One finding is one sentence for the postmaster; `error` means that receivers will not do what the record is for.
"""

from typing import NamedTuple


class Remark(NamedTuple):
    """One thing to know about a record."""

    error: bool
    what: str

    def __str__(self) -> str:
        return f"{'error' if self.error else 'note'}: {self.what}"
