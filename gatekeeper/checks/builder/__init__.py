# SPDX-License-Identifier: GPL-3.0-or-later
"""Turns the words of a restriction list, with their arguments, into checks, and collects every mistake in them."""
