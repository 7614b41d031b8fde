# SPDX-License-Identifier: GPL-3.0-or-later
"""What a newcomer meets first: the Makefile, the scripts behind it, and the lock."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.needs import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = [requirement for extra in PROJECT["optional-dependencies"].values() for requirement in extra]


def locked() -> dict[str, str]:
    """Name and version of every entry of requirements.lock."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", text, re.MULTILINE))


def script(name: str, *arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a copy of `.ci/NAME`, so that nothing happens to this checkout."""
    (folder / ".ci").mkdir()
    copy = shutil.copy(ROOT / ".ci" / name, folder / ".ci")
    return subprocess.run(
        [copy, *arguments], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("line", [*PROJECT["dependencies"], *EXTRAS])
def test_the_lock_holds_what_the_project_asks_for(line: str) -> None:
    wanted = Requirement(line)
    assert wanted.specifier.contains(locked()[wanted.name.lower()])


def test_the_project_asks_for_nothing_that_it_does_not_use() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "gatekeeper").rglob("*.py"))
    found = packages_distributions()
    used = {
        name
        for module in re.findall(r"^ *(?:import|from) (\w+)", source, re.MULTILINE)
        for name in found.get(module, ())
    }
    assert set() == {Requirement(line).name for line in PROJECT["dependencies"]} - used


def test_every_locked_version_has_a_hash() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert [] == re.findall(r"^[a-z0-9-]+==[^\\]*$", text, re.MULTILINE)


def test_make_help_names_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split()
    shown = subprocess.run(["make", "-C", ROOT, "help"], capture_output=True, text=True, check=True).stdout
    assert phony == re.findall(r"^  make (\w+)", shown, re.MULTILINE)


def test_without_a_suitable_python_one_sentence_says_so(tmp_path: Path) -> None:
    done = script("bootstrap", folder=tmp_path, PYTHON=str(tmp_path / "python3.9"))
    assert (1, "gatekeeper: no Python 3.11 to 3.14 found; name one with make PYTHON=/path/to/python3.12\n") == (
        done.returncode,
        done.stderr,
    )


def test_a_word_that_bootstrap_does_not_know_is_refused(tmp_path: Path) -> None:
    done = script("bootstrap", "pstfix", folder=tmp_path)
    assert (1, True) == (done.returncode, "usage:" in done.stderr)


def readme_examples() -> list[tuple[str, list[str]]]:
    """The commands of README.md that run on a recorded session, and the lines that it shows of their output."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", "")
    blocks = re.findall(r"^    \$ gatekeeper (.*--dns.*)\n((?:    .*\n|\n(?=    ))*)", text, re.MULTILINE)
    return [
        (command, [line.strip() for line in shown.splitlines() if line.strip() not in ("", "…")])
        for command, shown in blocks
    ]


def test_the_readme_has_examples() -> None:
    assert ["explain", "verify"] == [command.split()[2] for command, _ in readme_examples()]


@pytest.mark.parametrize(("command", "shown"), readme_examples())
@pytest.mark.integration("gatekeeper")
def test_what_the_readme_shows_is_what_is_printed(command: str, shown: list[str]) -> None:
    folder = ROOT / "tests" / "smtp_fixtures"
    program = [sys.executable, "-m", "gatekeeper", *command.split()]
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=True)
    assert [] == [line for line in shown if line not in map(str.strip, done.stdout.splitlines())]
