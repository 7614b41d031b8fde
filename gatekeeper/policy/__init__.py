# SPDX-License-Identifier: GPL-3.0-or-later
"""The policy daemon: Postfix's policy delegation protocol (protocol.py) on asyncio sockets (server.py)."""
