# SPDX-License-Identifier: GPL-3.0-or-later
"""DKIM key rotation in steps: generated, published, active, retired.

Every step ends with a file that is renamed into place, and each can be repeated.
"""
