# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks of our own: the word that names each in a restriction list, and the model of its section."""

from collections.abc import Mapping

from pydantic import BaseModel

from gatekeeper.checks.authentication.spf import SpfCheck
from gatekeeper.checks.base.check_types import ConfiguredCheck
from gatekeeper.checks.dnslists.dnsbl import Dnsbl
from gatekeeper.checks.greylisting.greylist import Greylist
from gatekeeper.checks.limits.ratelimit import RateLimit
from gatekeeper.checks.tables.access import AccessOptions

OWN_CHECKS: Mapping[str, type[ConfiguredCheck]] = {
    "dnsbl": Dnsbl,
    "spf": SpfCheck,
    "greylist": Greylist,
}
SECTIONS: Mapping[str, type[BaseModel]] = {"access": AccessOptions, "ratelimit": RateLimit, **OWN_CHECKS}
"""The models of the `[checks.NAME]` sections. `dmarc` has none: its options are in `[verify]`."""
