# SPDX-License-Identifier: GPL-3.0-or-later
"""Taking postgrey's place: its state and its allow lists, in gatekeeper's words. docs/greylisting.md tells how to."""
