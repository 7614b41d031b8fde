# SPDX-License-Identifier: GPL-3.0-or-later
"""The command that plays recorded sessions: replay."""

import argparse
from pathlib import Path

from gatekeeper.cli.common import Add


def add_to(add: Add) -> None:
    """Add the commands of this file."""
    _add_replay(add("replay", replay, "play recorded sessions in process and compare with what is expected"))


def _add_replay(command: argparse.ArgumentParser) -> None:
    text = "a recorded session, or a folder of them"
    command.add_argument("paths", metavar="PATH", type=Path, nargs="+", help=text)
    command.add_argument("--update", action="store_true", help="make what differs the new expectation")


def replay(options: argparse.Namespace) -> int:
    """Play recorded sessions, each with the configuration beside it; --config is for those that have none."""
    from gatekeeper.config import config_file
    from gatekeeper.replay import command

    return command.main(options.paths, config_file.find(options.config), update=options.update)
