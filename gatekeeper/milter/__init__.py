# SPDX-License-Identifier: GPL-3.0-or-later
"""The milter: signs outbound mail, verifies inbound mail, tells what it found in Authentication-Results."""
