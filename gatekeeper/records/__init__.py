# SPDX-License-Identifier: GPL-3.0-or-later
"""The records that our own domains publish (SPF, DKIM, DMARC), judged as other receivers judge them."""
