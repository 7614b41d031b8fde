# SPDX-License-Identifier: GPL-3.0-or-later
"""DMARC aggregate reports (RFC 9990, RFC 7489): reading and summarising those of others, and counting for our own."""
