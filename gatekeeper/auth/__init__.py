# SPDX-License-Identifier: GPL-3.0-or-later
"""Findings about who sent a message: SPF, iprev, DKIM, DMARC, and the field that reports them.

Knows answers and bytes; neither sockets nor libmilter. Whether a finding refuses a mail is decided in `checks`.
"""
