# SPDX-License-Identifier: GPL-3.0-or-later
"""What every check stands on: the two types of check, nesting, and the DNS look-ups that Postfix's own words share."""
