# SPDX-License-Identifier: GPL-3.0-or-later
"""The words that everything else is said in: request, verdict, message, problem, log line. Knows no configuration."""
