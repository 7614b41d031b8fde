# SPDX-License-Identifier: GPL-3.0-or-later
"""How the tests are run, and that what they start is what they are marked for. What they share is in tests/support/."""

import os
import sys
from collections.abc import Generator

import pytest
from hypothesis import settings

pytest.register_assert_rewrite("tests.support")

from tests.support import needs, service  # noqa: E402 - its assertions are to be rewritten, too

# No deadline, because a machine that others share is slow at times. In CI the examples are the same each time, so that
# what passed for one change does not fail for the next by chance; everybody else's runs look for new ones.
settings.register_profile("gatekeeper", deadline=None, derandomize="CI" in os.environ)
settings.register_profile("few", settings.get_profile("gatekeeper"), max_examples=20)
settings.register_profile("thorough", settings.get_profile("gatekeeper"), max_examples=20_000)
settings.load_profile("gatekeeper")

sys.addaudithook(needs.watch)

_needed_by_fixture: dict[tuple[str, str, int], set[str]] = {}
"""What was started while a fixture was made, by where it is, its name and parameter: tests that share it need it."""


def named(item: pytest.Item) -> frozenset[str]:
    """What a test says that it needs. Raises UsageError if a mark names nothing, or what is not known."""
    names: set[str] = set()
    for mark in item.iter_markers("integration"):
        if not mark.args or not needs.PACKAGES.issuperset(mark.args):
            raise pytest.UsageError(f"{item.nodeid}: integration{mark.args} names none of {sorted(needs.PACKAGES)}")
        names.update(mark.args)
    return frozenset(names)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        named(item)


def pytest_sessionfinish() -> None:
    service.end_all()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
) -> Generator[None, object, object]:
    made = (fixturedef.baseid, fixturedef.argname, getattr(request, "param_index", 0))
    with needs.collecting(_needed_by_fixture.setdefault(made, set())):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool, bool]:
    with needs.allowing(named(item)) as needed:
        item.stash[_needed] = needed
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """A mark that says too little or too much fails the test: too much would hide it from `make check`. A module may
    be marked for most of its tests."""
    names, needed = named(item), item.stash[_needed]
    assert isinstance(item, pytest.Function)
    indices = item.callspec.indices if hasattr(item, "callspec") else {}
    asked_for: set[str] = set()
    for (place, name, index), found in _needed_by_fixture.items():
        if item.nodeid.startswith(place):
            if name in item.fixturenames and index == indices.get(name, 0):
                needed |= found
            asked_for |= found  # perhaps by getfixturevalue
    for name in needed - names:
        needs.needs(name)
    yield
    if not names & (needed | asked_for) and any(mark.name == "integration" for mark in item.own_markers):
        pytest.fail(f"this is marked integration{tuple(sorted(names))}, and starts nothing of it")


_needed = pytest.StashKey[set[str]]()
