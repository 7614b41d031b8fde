# SPDX-License-Identifier: GPL-3.0-or-later
"""What a reload was refused for is told again each hour until one is made."""

from gatekeeper.daemon.refused_reload import RefusedReload


def test_a_refusal_is_told_again_each_hour_until_a_reload_is_made() -> None:
    refused = RefusedReload()
    assert [] == list(refused.reminders(1e9))
    refused.refuse(["access:2: no"], 100.0)
    assert [] == list(refused.reminders(100.0 + 3599))
    assert ["a reload is still refused, after 1h: access:2: no"] == list(refused.reminders(100.0 + 3600))
    assert [] == list(refused.reminders(100.0 + 3601))
    assert ["a reload is still refused, after 2h: access:2: no"] == list(refused.reminders(100.0 + 7201))
    refused.made()
    assert [] == list(refused.reminders(100.0 + 20_000))


def test_another_refusal_tells_its_own_mistakes_and_since_when_it_is_so() -> None:
    refused = RefusedReload()
    refused.refuse(["one"], 0.0)
    refused.refuse(["two"], 3000.0)
    assert [] == list(refused.reminders(3600.0))
    assert ["a reload is still refused, after 1h: two"] == list(refused.reminders(6600.0))


def test_what_is_told_again_is_bounded() -> None:
    refused = RefusedReload()
    refused.refuse([str(n) for n in range(1000)], 0.0)
    lines = list(refused.reminders(3600.0))
    assert (21, "and 980 more") == (len(lines), lines[-1])
