# SPDX-License-Identifier: GPL-3.0-or-later
"""gatekeeper: the anti-spam and authentication layer of a Postfix relay."""

__version__ = "0.1.0"
