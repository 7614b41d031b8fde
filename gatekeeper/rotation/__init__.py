# SPDX-License-Identifier: GPL-3.0-or-later
"""Key rotation: generated, published, active, retired.

Every step is a file that is renamed into place, and each can be repeated.
"""
