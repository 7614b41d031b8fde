# SPDX-License-Identifier: GPL-3.0-or-later
"""Postfix's own notations: restriction lists, listen addresses, host names, and the output of postconf(1)."""
