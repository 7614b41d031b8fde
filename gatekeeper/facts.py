# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known about one message or session: each fact is computed once, at the first question or ahead of it.

Facts are not opinions: SPF's `fail` is a fact, whether it refuses a mail is a check's business. A fact that DNS
trouble keeps from being known is a finding (`temperror`), not an exception. Knows neither libmilter nor sockets.
"""

from typing import TypeVar

T = TypeVar("T")


class Facts:
    """The memo. Each question is answered by one task, however many ask; `close` cancels what is not needed."""
