# SPDX-License-Identifier: GPL-3.0-or-later
"""A pytest plugin that plays recorded sessions (docs/fixtures.md) wherever pytest collects them.

Each folder with a session.toml in our format is one test. Other files of that name are left alone, and nothing else of
gatekeeper is imported before the first case is found: wherever gatekeeper is installed, every pytest run loads this.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> "CaseFile | None":
    """Return a collector for `file_path` if it is the session of a case."""
    if file_path.name == "session.toml" and b"[[connection" in file_path.read_bytes():
        return CaseFile.from_parent(parent, path=file_path)
    return None


class CaseFile(pytest.File):
    """The session.toml of a case."""

    def collect(self) -> Iterator["CaseItem"]:
        """Yield the case, the only test of its file."""
        yield CaseItem.from_parent(self, name=self.path.parent.name)


class CaseFailed(Exception):
    """A case did not come out as expected; the text says how it differs."""


class CaseItem(pytest.Item):
    """One case, played in process."""

    def runtest(self) -> None:
        """Play the case. Raises CaseFailed, and ConfigError for what cannot be played."""
        from gatekeeper.replay import fixture
        from gatekeeper.replay.compare import findings
        from gatekeeper.replay.in_process import play

        case = fixture.read(self.path.parent)
        found = findings(case, asyncio.run(play(case)))
        if found:
            raise CaseFailed("\n".join(found))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None) -> str:
        """Say what differs or cannot be played; only a bug in gatekeeper gets a traceback."""
        del style  # pytest passes it by name or position; our sentences have one style
        from gatekeeper.core.problem import ConfigError

        if isinstance(excinfo.value, CaseFailed | ConfigError):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, int, str]:
        """Return file, line and heading of the case."""
        return self.path, 0, f"case {self.name}"
