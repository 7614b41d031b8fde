# SPDX-License-Identifier: GPL-3.0-or-later
"""The running service: parent, workers, listening sockets, reload and hand-over."""
