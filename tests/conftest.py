# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests share: how a test says that it needs something from outside, and where the public suites lie."""

import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
REQUIRE_ALL = os.environ.get("GATEKEEPER_REQUIRE_ALL") == "1"

# No deadline, because a machine that others share is slow at times. In CI the examples are the same each time, so that
# what passed for one change does not fail for the next by chance; everybody else's runs look for new ones.
settings.register_profile("gatekeeper", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("gatekeeper")


def missing(reason: str) -> NoReturn:
    """Skip the running test with a reason for a person; where everything is required, fail it instead."""
    if REQUIRE_ALL:
        pytest.fail(f"required here, but {reason}")
    pytest.skip(reason)


def require_program(name: str, package: str) -> str:
    """The path of a program that comes with a Debian package; also looks in /usr/sbin, where users have no path."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        missing(f"{name} is not installed: apt-get install {package}")
    return found


def require_corpus(name: str) -> Path:
    """A file of the public test suites: below $GATEKEEPER_CORPORA, or ../shared/corpora beside the project."""
    folder = Path(os.environ.get("GATEKEEPER_CORPORA", ROOT.parent / "shared" / "corpora"))
    if not (folder / name).exists():
        missing(f"the public suite {name} is not in {folder}; set GATEKEEPER_CORPORA to where it is")
    return folder / name
