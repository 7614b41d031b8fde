# SPDX-License-Identifier: GPL-3.0-or-later
"""State in one SQLite file that all processes of one machine share: the embedded default."""
