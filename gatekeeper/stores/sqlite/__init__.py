# SPDX-License-Identifier: GPL-3.0-or-later
"""Store in one SQLite file that all processes of a machine share: the embedded default."""
