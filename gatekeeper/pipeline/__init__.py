# SPDX-License-Identifier: GPL-3.0-or-later
"""The seam: what is known about a mail (facts), and the one place that decides (pipeline)."""
