# SPDX-License-Identifier: GPL-3.0-or-later
"""Logs that are none, or odd: each command says so in a line, and no traceback ever comes of one."""

import random
from pathlib import Path

import pytest

from gatekeeper import cli
from gatekeeper.cli.common import FINDING, OK, USAGE
from tests.support.mail_logs import Log

COMMANDS = (["why", "a@x.example"], ["stats"], ["stats", "--json"], ["backtest", "--no-dns"])


def good() -> bytes:
    log = Log()
    log.mail(0)
    return log.text().encode()


def run(capsys: pytest.CaptureFixture[str], command: list[str], folder: Path, content: bytes) -> tuple[int, str]:
    (folder / "mail.log").write_bytes(content)
    (folder / "g.toml").write_text('hostname = "mx.y.example"\nmynetworks = "127.0.0.0/8"\nstore.url = "memory:"\n')
    status = cli.main(["--config", str(folder / "g.toml"), *command, str(folder / "mail.log")])
    said = capsys.readouterr()
    assert all(line.isprintable() for line in (said.out + said.err).splitlines())
    return status, said.err


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "gatekeeper: the log is empty"),
        (random.Random(1).randbytes(100_000), "are no lines of a log"),
        (b"x" * 10_000_000, "of 1 lines 1 are too long"),
        (b"Mar  1 03:04:05 mx kernel: hello\n", "tells nothing about mail; the programs in it: kernel"),
        (b"Mar  1 03:04:05 m\x1bx evil\x1b\x9b: hello\n", "the programs in it: evil??"),
        (b"\x1f\x8b\x08\x00garbage that is no gzip", "the rest cannot be read"),
    ],
    ids=["empty", "random bytes", "one long line", "another log", "control characters", "a broken gzip"],
)
def test_a_log_that_is_none_is_told_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], content: bytes, said: str
) -> None:
    status, error = run(capsys, command, tmp_path, content)
    assert (FINDING, True) == (status, said in error), error


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (b"2020-03-01T03:04:05+00:00 mx postfix/qmgr[1]: 4B1F9A0: removed\n", "1 go back in time by more than an hour"),
        (b"2026-03-01T03:04:05+00:00 other postfix/qmgr[1]: 4B1F9A0: removed\n", "logs of several hosts: mx, other"),
        (b"\x00\x01\x02\n", "1 are no lines of a log"),
    ],
    ids=["dates that jump back", "another host", "a binary line"],
)
def test_a_log_that_is_odd_is_read_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], more: bytes, said: str
) -> None:
    status, error = run(capsys, command, tmp_path, good() + more)
    assert (OK, True) == (status, said in error), error


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_log_that_cannot_be_opened_is_a_mistake_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(SystemExit) as end:
            cli.main([*command, str(path)])
        assert end.value.code == USAGE
    assert 2 == capsys.readouterr().err.count("gatekeeper: ")
