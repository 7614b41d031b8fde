# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks that act on SPF, DKIM and DMARC results."""
