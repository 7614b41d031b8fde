# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration file: its schema, the types of its values, loading, and the line of each mistake."""
