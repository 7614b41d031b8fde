# SPDX-License-Identifier: GPL-3.0-or-later
"""Temporary DNS trouble defers and never rejects: every word that asks the DNS, with any of its questions failing."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.dnsclient.resolver import Answer, DNSFailure, DNSTimeout, TableResolver
from gatekeeper.dnsclient.zone import Zone
from tests.support.checking import SITE, World, rcpt

TYPES = ("A", "AAAA", "MX", "NS", "PTR", "TXT")
WORDS = (
    "reject_unknown_client_hostname",
    "reject_unknown_reverse_client_hostname",
    "reject_unknown_helo_hostname",
    "reject_unknown_sender_domain",
    "reject_unknown_recipient_domain",
    "reject_helo_ours",
    *(f"reject_rhsbl_{what} bl.example" for what in ("client", "reverse_client", "helo", "sender", "recipient")),
    "reject_rbl_client bl.example",
    *(
        f"check_{whose}_{type}_access static:REJECT"
        for whose in ("client", "reverse_client_hostname", "helo", "sender", "recipient")
        for type in ("mx", "ns")
    ),
    *(
        f"check_{whose}_a_access inline:{{ 192.0.2.1=REJECT }}"
        for whose in ("client", "reverse_client_hostname", "helo", "sender", "recipient")
    ),
)
STRANGER = rcpt(
    name="client.example", helo="mx.example.com", sender="a@sender.example", recipient="b@recipient.example"
)
UNKNOWN = rcpt(name="unknown", helo="helo.example", sender="a@sender.example", recipient="b@recipient.example")


class Failing:
    """Fails what it is told to fail, and knows nothing of anything else."""

    def __init__(self, types: frozenset[str], error: type[Exception]) -> None:
        self._types, self._error = types, error
        self._rest = TableResolver(Zone.parse(""))

    async def query(self, name: str, type: str) -> Answer:
        if type in self._types:
            raise self._error(name)
        return await self._rest.query(name, type)

    async def close(self) -> None:
        pass


async def judged(word: str, unknown: bool, types: frozenset[str], error: type[Exception]) -> str:
    # with codes that make a permanent answer permanent
    site = replace(
        SITE, unknown_client_reject_code="550", unknown_hostname_reject_code="550", unknown_address_reject_code="550"
    )
    world = World(word, site=site)
    world.resolver = Failing(types, error)
    return (await world.verdict(UNKNOWN if unknown else STRANGER)).code


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("error", [DNSTimeout, DNSFailure])
async def test_when_nothing_is_answered_nobody_is_rejected(word: str, error: type[Exception]) -> None:
    for unknown in (False, True):
        assert (await judged(word, unknown, frozenset(TYPES), error))[:1] in ("", "4")


@given(st.sampled_from(WORDS[:5]), st.frozensets(st.sampled_from(TYPES), min_size=1), st.booleans())
async def test_one_question_that_fails_is_enough(word: str, types: frozenset[str], unknown: bool) -> None:
    """As long as its answer could have changed the verdict: an address answers for a name, a PTR for a client."""
    asked = {"A", "AAAA", "MX"} if "client" not in word else {"PTR"}
    if types & asked:
        assert "5" != (await judged(word, unknown, types, DNSTimeout))[:1]
