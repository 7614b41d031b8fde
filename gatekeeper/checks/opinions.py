# SPDX-License-Identifier: GPL-3.0-or-later
"""The opinions of our own: the word that names each in a restriction list, and the model of its section."""

from collections.abc import Mapping

from pydantic import BaseModel

from gatekeeper.checks.access import AccessOptions
from gatekeeper.checks.dnsbl import Dnsbl
from gatekeeper.checks.greylist import Greylist
from gatekeeper.checks.opinion import Opinion
from gatekeeper.checks.ratelimit import RateLimit
from gatekeeper.checks.spf import Spf

OPINIONS: Mapping[str, type[Opinion]] = {
    "dnsbl": Dnsbl,
    "spf": Spf,
    "greylist": Greylist,
}
SECTIONS: Mapping[str, type[BaseModel]] = {"access": AccessOptions, "ratelimit": RateLimit, **OPINIONS}
"""The models of the `[checks.NAME]` sections. `dmarc` has none: it is `verify.dmarc`."""
