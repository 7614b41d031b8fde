# SPDX-License-Identifier: GPL-3.0-or-later
"""DNS lists: what one is and what its answers mean (list.py), how it is tested (points.py) and does (health.py), all
lists of a process, watched (watch.py), and asked (asking.py). How a list is written, checks/dnslist.py knows."""

from gatekeeper.dnslists.asking import Asking, Question, Reply
from gatekeeper.dnslists.list import DnsList, Kind
from gatekeeper.dnslists.watch import BUDGET, Lists, Use

__all__ = ["BUDGET", "Asking", "DnsList", "Kind", "Lists", "Question", "Reply", "Use"]
