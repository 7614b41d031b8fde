# SPDX-License-Identifier: GPL-3.0-or-later
"""Diagnosis for people: why one session or message is treated as it is, and what a log says about many."""
