# SPDX-License-Identifier: GPL-3.0-or-later
"""DKIM signing: private keys, OpenDKIM's KeyTable, SigningTable and host lists, the signing policy, and the signer.

The privileged parent reads everything from files; the workers that use it can no longer read them. Knows neither
libmilter nor sockets nor the configuration's syntax.
"""
