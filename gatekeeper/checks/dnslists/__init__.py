# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks that ask DNS lists: our weighted `dnsbl`, and Postfix's reject_rbl_client and its kin."""
