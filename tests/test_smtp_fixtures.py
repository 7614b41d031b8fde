# SPDX-License-Identifier: GPL-3.0-or-later
"""Every recorded session of this project comes out as expected, played in process. behind_postfix/ plays the same ones
through a real Postfix."""

from pathlib import Path

import pytest

from gatekeeper.replay import fixture
from gatekeeper.replay.compare import differences
from gatekeeper.replay.in_process import play
from tests.support.needs import ROOT

FOLDERS = fixture.find(ROOT / "tests" / "smtp_fixtures")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
async def test_a_recorded_session_comes_out_as_expected(folder: Path) -> None:
    case = fixture.read(folder)
    assert [] == differences(case, await play(case))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_recorded_session_says_why_it_exists_and_what_is_expected(folder: Path) -> None:
    case = fixture.read(folder)
    assert case.readme.strip()
    expected = [message.reply is not None for connection in case.expected for message in connection.messages]
    assert [True] * sum(len(connection.messages) for connection in case.connections) == expected
