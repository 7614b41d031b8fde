# SPDX-License-Identifier: GPL-3.0-or-later
"""State in a Redis or Valkey that all relays share: single, behind Sentinels, or as a Cluster."""
