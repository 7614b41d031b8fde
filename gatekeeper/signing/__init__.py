# SPDX-License-Identifier: GPL-3.0-or-later
"""DKIM signing: private keys, OpenDKIM's KeyTable, SigningTable and host lists, whom to sign for, and the signer.

Everything is read from files by the privileged parent and used by workers that could no longer read them. Knows
neither libmilter nor sockets nor the configuration's syntax.
"""
