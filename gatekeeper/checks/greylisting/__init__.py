# SPDX-License-Identifier: GPL-3.0-or-later
"""Greylisting (RFC 6647): the check, the state it keeps in the store, and which clients look suspicious."""
