# SPDX-License-Identifier: GPL-3.0-or-later
"""DNS lookups behind one resolver contract, implemented by live, caching and table resolvers."""
