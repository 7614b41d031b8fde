# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits on messages, recipients, logins and connections in sliding windows: those of anvil(8) and more."""
