# SPDX-License-Identifier: GPL-3.0-or-later
"""Building checks from the words of a restriction list and their arguments, collecting every mistake in them."""
