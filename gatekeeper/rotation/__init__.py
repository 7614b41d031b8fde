# SPDX-License-Identifier: GPL-3.0-or-later
"""One key follows another: generated, published, active, retired.

state.py is what is remembered between two runs, tables.py where keys are configured and how a line changes, step.py
goes as far as can be gone. Every step is a file that is renamed into place, and each can be repeated.
"""

from gatekeeper.rotation.state import Refused
from gatekeeper.rotation.step import Outcome, Run, World, rotate
from gatekeeper.rotation.tables import Wanted

__all__ = ["Outcome", "Refused", "Run", "Wanted", "World", "rotate"]
