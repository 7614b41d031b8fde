# SPDX-License-Identifier: GPL-3.0-or-later
"""DNS lists: what their answers mean, which of them are well, and how one request asks them all at once.

A list is written as checks/dnslists/lookup.py reads it.
"""
