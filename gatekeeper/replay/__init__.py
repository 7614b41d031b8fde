# SPDX-License-Identifier: GPL-3.0-or-later
"""Recorded sessions, played back in process or through a real Postfix, and compared with what is expected."""
