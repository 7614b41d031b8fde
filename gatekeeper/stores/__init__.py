# SPDX-License-Identifier: GPL-3.0-or-later
"""State that outlives a request: one contract (store.py), implemented by memory, SQLite and Redis."""
