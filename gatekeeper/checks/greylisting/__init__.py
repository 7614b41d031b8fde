# SPDX-License-Identifier: GPL-3.0-or-later
"""Greylisting (RFC 6647): the check, what the store keeps for it, and which clients look suspicious."""
