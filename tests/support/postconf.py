# SPDX-License-Identifier: GPL-3.0-or-later
"""postconf on a machine without a Postfix."""

from collections.abc import Mapping, Sequence


def no_postfix(names: Sequence[str]) -> Mapping[str, str]:
    return {}
