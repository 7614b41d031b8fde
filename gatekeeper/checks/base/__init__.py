# SPDX-License-Identifier: GPL-3.0-or-later
"""What all checks build on: the two types of check, nesting, and the DNS lookups that Postfix's restrictions share."""
