# SPDX-License-Identifier: GPL-3.0-or-later
"""Joins everything: a Config becomes a Plan (all files read, nothing opened), and a Plan becomes an App (at work)."""
