# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks that query DNS lists: our weighted `dnsbl`, and Postfix's reject_rbl_client and its relatives."""
