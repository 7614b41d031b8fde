# SPDX-License-Identifier: GPL-3.0-or-later
"""State that outlives a request: one contract (store.py), kept by memory, SQLite and Redis."""
