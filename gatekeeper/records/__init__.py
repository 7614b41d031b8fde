# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of the DNS records that our own domains publish (SPF, DKIM, DMARC), as receivers evaluate them."""
