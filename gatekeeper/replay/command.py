# SPDX-License-Identifier: GPL-3.0-or-later
"""`gatekeeper replay`: plays every case at and below some paths in process, and reports what differs."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

from gatekeeper.core.problem import ConfigError
from gatekeeper.replay import fixture
from gatekeeper.replay.compare import findings, updated
from gatekeeper.replay.in_process import play

OK, MISMATCH, NO_CASE, CONFIGURATION = 0, 1, 2, 78


def main(paths: Iterable[Path], config: Path | None = None, *, update: bool = False) -> int:
    """Play the cases and print a line for each, and each finding. Returns the exit status.

    `config` is for cases that have no gatekeeper.toml in them or above them. With `update`, what differs becomes the
    new expectation.
    """
    folders = [(path, fixture.find(path)) for path in paths]
    for path, found in folders:
        if not found:
            print(f"no case at or below {path}: a case is a folder with a {fixture.SESSION}")
            return NO_CASE
    results = [_play_case(folder, config, update) for folder in dict.fromkeys(f for _, found in folders for f in found)]
    passed = results.count(OK)
    print(f"{passed} of {len(results)} {'case' if len(results) == 1 else 'cases'} as expected")
    return max(results)


def _play_case(folder: Path, config: Path | None, update: bool) -> int:
    try:
        case = fixture.read(folder)
        outcomes = asyncio.run(play(case, case.config or config))
    except ConfigError as error:
        print(f"cannot be played: {folder}")
        for problem in error.problems:
            print(f"    {problem}")
        return CONFIGURATION
    found = findings(case, outcomes)
    if update:
        new = updated(case, outcomes)
        if new.expected != case.expected:
            fixture.write_expected(new)
            print(f"updated: {folder}")
            return OK
    said = "as expected" if not found else "expects nothing" if case.expects_nothing else "differs"
    print(f"{said}: {folder}")
    for text in found:
        print(f"    {text}")
    return MISMATCH if found else OK
