# SPDX-License-Identifier: GPL-3.0-or-later
"""Store in a Redis or Valkey that all relays share: a single server, one behind Sentinels, or a Cluster."""
