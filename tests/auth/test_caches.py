# SPDX-License-Identifier: GPL-3.0-or-later
"""What strangers publish and write is kept in memory only as far as it is short."""

from gatekeeper.auth import dkim_key, dmarc_record, spf_record
from gatekeeper.checks.limits import counters
from gatekeeper.stores.store import Keys


def test_a_long_record_is_understood_and_not_kept() -> None:
    kept = (dmarc_record._known, dkim_key._known_key, spf_record._known_record)
    before = [one.cache_info().currsize for one in kept]
    for number in range(3):
        padding = f"n={number}" + "x" * 60_000
        found = dmarc_record.find_record([f"v=DMARC1; p=reject; {padding}".encode()])
        assert found is not None
        assert found.policy == "reject"
        assert isinstance(dkim_key.parse_key(f"v=DKIM1; p=; {padding}".encode()), str)
        assert spf_record.parse(f"v=spf1 {'mx ' * 200}n={number}".encode()).terms
    assert before == [one.cache_info().currsize for one in kept]


def test_the_counter_of_a_long_sender_has_a_key_that_is_not_kept() -> None:
    keys, before = Keys(b"secret"), counters._known_key.cache_info().currsize
    long = "x" * 60_000
    assert keys("ratelimit", "id", long) == counters._key(keys, "id", (long,))
    assert before == counters._known_key.cache_info().currsize
    assert counters._key(keys, "id", ("short",)) == counters._known_key(keys, "id", ("short",))
