# SPDX-License-Identifier: GPL-3.0-or-later
"""What the log proves: the story of one mail, and what became of all of it."""
