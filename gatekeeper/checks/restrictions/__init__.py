# SPDX-License-Identifier: GPL-3.0-or-later
"""Postfix's own restrictions on client, HELO, sender and recipient (postconf(5)), and `reject_helo_ours`."""
