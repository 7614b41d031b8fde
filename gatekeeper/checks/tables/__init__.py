# SPDX-License-Identifier: GPL-3.0-or-later
"""Access tables (access(5)): every table type, lookups in Postfix's order, and what an entry does."""
