# SPDX-License-Identifier: GPL-3.0-or-later
"""A pytest plugin that plays recorded sessions (docs/fixtures.md) wherever they lie in the tree that pytest collects.

Each folder with a session.toml of our format is one test. Other files of that name are left alone, and nothing of
gatekeeper is imported before the first case is found: the plugin is loaded into every pytest run beside it.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> "CaseFile | None":
    """A case, if `file_path` is one."""
    if file_path.name == "session.toml" and b"[[connection" in file_path.read_bytes():
        return CaseFile.from_parent(parent, path=file_path)
    return None


class CaseFile(pytest.File):
    """The session.toml of a case."""

    def collect(self) -> Iterator["CaseItem"]:
        """The case as the one test of its file."""
        yield CaseItem.from_parent(self, name=self.path.parent.name)


class Differs(Exception):
    """A case came out otherwise than expected; the text says how."""


class CaseItem(pytest.Item):
    """One case, played in process."""

    def runtest(self) -> None:
        """Play the case. Raises Differs, and ConfigError for what cannot be played."""
        from gatekeeper.replay import fixture
        from gatekeeper.replay.compare import differences
        from gatekeeper.replay.in_process import play

        case = fixture.read(self.path.parent)
        found = differences(case, asyncio.run(play(case)))
        if found:
            raise Differs("\n".join(found))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None) -> str:
        """What differs or cannot be played, in sentences; a traceback only for a fault of ours."""
        from gatekeeper.core.problem import ConfigError

        if isinstance(excinfo.value, Differs | ConfigError):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, int, str]:
        """Where the case lies."""
        return self.path, 0, f"case {self.name}"
