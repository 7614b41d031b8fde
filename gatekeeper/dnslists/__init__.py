# SPDX-License-Identifier: GPL-3.0-or-later
"""DNS lists: what one is and what its answers mean (list.py), how it is tested (points.py), and all lists of a process,
asked within a budget and watched (watch.py). How a list is written, checks/dnslist.py knows."""

from gatekeeper.dnslists.list import DnsList, Kind
from gatekeeper.dnslists.watch import BUDGET, Asking, Lists, Question, Reply, Use

__all__ = ["BUDGET", "Asking", "DnsList", "Kind", "Lists", "Question", "Reply", "Use"]
