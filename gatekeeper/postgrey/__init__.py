# SPDX-License-Identifier: GPL-3.0-or-later
"""The migration from postgrey: import of its state and its allow lists (docs/greylisting.md)."""
