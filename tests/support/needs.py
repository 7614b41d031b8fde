# SPDX-License-Identifier: GPL-3.0-or-later
"""How a test says what it needs from outside, what happens where that is missing, and where the public suites lie.

    @pytest.mark.integration("postfix", "redis-server")

marks a test that starts a service or a program of others, and names each: by its Debian package, or `gatekeeper` for
gatekeeper as a process of its own. `make check` leaves these out. tests/conftest.py holds the marks to the truth with
what is here: the helpers say what they are about to start (`needs`), and a process that is started without them is
seen too (`watch`).
"""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
REQUIRE_ALL = os.environ.get("GATEKEEPER_REQUIRE_ALL") == "1"

OURSELVES = "gatekeeper"
PACKAGES = frozenset(
    {
        OURSELVES,
        "chromium",
        "db-util",
        "fail2ban",
        "libberkeleydb-perl",
        "libopendmarc2",
        "logrotate",
        "mount",
        "nsd",
        "opendkim",
        "opendkim-tools",
        "openssl",
        "postfix",
        "postfix-pcre",
        "postgrey",
        "redis-server",
        "redis-tools",
        "rsyslog",
        "systemd-journal-remote",
        "unbound",
    }
)
"""What a mark may name."""
PLAIN = frozenset({"bash", "bootstrap", "config", "ldconfig", "make", "postconf", "sh"})
"""Programs that no mark is needed for: our own scripts and what is everywhere. gatekeeper asks postconf where there is
one, and goes on without."""

_allowed: frozenset[str] | None = None
"""What the running test names; None outside of tests, as in a process that a test has started."""
_collecting: list[set[str]] = []
"""Sets to which `needs` adds: one for the test, and one for each fixture that is being made."""


def needs(name: str) -> None:
    """Say that `name` is about to be started. Fails a test that is not marked for it."""
    for names in _collecting:
        names.add(name)
    if _allowed is not None and name not in _allowed:
        pytest.fail(f'this starts {name}, and is not marked: @pytest.mark.integration("{name}")')


@contextmanager
def allowing(names: frozenset[str]) -> Iterator[set[str]]:
    """While a test runs that names these; yields what it has needed so far, without its shared fixtures."""
    global _allowed
    found: set[str] = set()
    _allowed = names
    _collecting.append(found)
    try:
        yield found
    finally:
        _allowed = None
        _collecting.pop()


@contextmanager
def collecting(into: set[str]) -> Iterator[None]:
    """While a fixture is made."""
    _collecting.append(into)
    try:
        yield
    finally:
        _collecting.pop()


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: sees every process that is started by way of subprocess, and what it has to be marked for."""
    if event != "subprocess.Popen" or _allowed is None:
        return
    executable, words, *_ = arguments
    words = [os.fsdecode(word) for word in words] if not isinstance(words, str | bytes) else [os.fsdecode(words)]
    if os.fsdecode(executable) == sys.executable:
        if _starts_gatekeeper(words):
            needs(OURSELVES)
    elif Path(os.fsdecode(executable)).name not in PLAIN and not _allowed:
        pytest.fail(f"this starts {words[0]}, and is not marked as integration")


def _starts_gatekeeper(words: Sequence[str]) -> bool:
    return words[1:3] == ["-m", "gatekeeper"] or any("gatekeeper.cli" in word for word in words)


def missing(reason: str) -> NoReturn:
    """Skip the running test with a reason for a person; where everything is required, fail it instead."""
    if REQUIRE_ALL:
        pytest.fail(f"required here, but {reason}")
    pytest.skip(reason)


def require_program(name: str, package: str) -> str:
    """The path of a program that comes with a Debian package; also looks in /usr/sbin, where users have no path."""
    needs(package)
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/lib/systemd")
    if found is None:
        missing(f"{name} is not installed: apt-get install {package}")
    return found


def require_corpus(name: str) -> Path:
    """A file of the public test suites: below $GATEKEEPER_CORPORA, or ../shared/corpora beside the project."""
    folder = Path(os.environ.get("GATEKEEPER_CORPORA", ROOT.parent / "shared" / "corpora"))
    if not (folder / name).exists():
        missing(f"the public suite {name} is not in {folder}; set GATEKEEPER_CORPORA to where it is")
    return folder / name


def require_case(name: str) -> Path:
    """A small input that went wrong once: below $GATEKEEPER_CASES, or ../shared/cases beside the project."""
    folder = Path(os.environ.get("GATEKEEPER_CASES", ROOT.parent / "shared" / "cases"))
    if not (folder / name).exists():
        missing(f"the case {name} is not in {folder}; set GATEKEEPER_CASES to where it is")
    return folder / name
