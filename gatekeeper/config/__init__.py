# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration file: its schema, its values, how it is loaded, and where in it each mistake stands."""
