# SPDX-License-Identifier: GPL-3.0-or-later
"""DNS as everything else sees it: one resolver contract, kept by live, caching and table resolvers."""
