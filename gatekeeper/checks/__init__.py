# SPDX-License-Identifier: GPL-3.0-or-later
"""A file for each opinion about mail, and what makes checks of the words that name them: reader.py."""

from gatekeeper.checks.connections import Connections
from gatekeeper.checks.count import Count
from gatekeeper.checks.dmarc import Dmarc
from gatekeeper.checks.opinion import Place
from gatekeeper.checks.opinions import OPINIONS, SECTIONS
from gatekeeper.checks.proof import Remember
from gatekeeper.checks.ratelimit import Limiter
from gatekeeper.checks.rbl import ask_ahead
from gatekeeper.checks.reader import Reader

__all__ = [
    "OPINIONS",
    "SECTIONS",
    "Connections",
    "Count",
    "Dmarc",
    "Limiter",
    "Place",
    "Reader",
    "Remember",
    "ask_ahead",
]
