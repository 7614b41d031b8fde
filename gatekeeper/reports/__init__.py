# SPDX-License-Identifier: GPL-3.0-or-later
"""Aggregate reports of DMARC that others send us (RFC 9990, RFC 7489): read, and summed up for a decision."""
