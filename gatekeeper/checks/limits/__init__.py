# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits on messages, recipients, logins and connections in sliding windows, as anvil(8) has them and beyond."""
