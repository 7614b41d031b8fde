# SPDX-License-Identifier: GPL-3.0-or-later
"""DNS lists: the meaning of their answers, their health, and queries to all of them at once for one request.

checks/dnslists/lookup.py parses what a configuration calls a list.
"""
