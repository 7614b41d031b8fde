# SPDX-License-Identifier: GPL-3.0-or-later
"""The types that everything else is built on: request, verdict, message, problem, log line. Knows no configuration."""
