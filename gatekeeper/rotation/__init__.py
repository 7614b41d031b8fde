# SPDX-License-Identifier: GPL-3.0-or-later
"""One key follows another: generated, published, active, retired.

state.py is what is remembered between two runs, tables.py where keys are configured and how a line changes, plan.py
which rotations are due, step.py goes as far with one as can be gone, run.py with all. Every step is a file that is
renamed into place, and each can be repeated.
"""

from gatekeeper.rotation.plan import World
from gatekeeper.rotation.run import Run, rotate
from gatekeeper.rotation.state import Refused
from gatekeeper.rotation.step import Outcome
from gatekeeper.rotation.tables import Wanted

__all__ = ["Outcome", "Refused", "Run", "Wanted", "World", "rotate"]
