# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab with its private Postfix, for tests: or why there is none here."""

from gatekeeper.dnsclient.zone import Zone
from tests.lab import Lab, why_not
from tests.support.needs import missing, require_program


def need_postfix() -> None:
    """For tests that start a Postfix."""
    require_program("postconf", "postfix")
    if reason := why_not():
        missing(reason)


def new_lab(zone: str = "", *, hostname: str = "mx.example.org", relay_domain: str = "example.org") -> Lab:
    """A lab with the DNS of `zone`, still to be entered."""
    need_postfix()
    return Lab(zone=Zone.parse(zone), hostname=hostname, relay_domains=[relay_domain])
