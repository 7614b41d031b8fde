# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: a file for each group of commands, a thin function for each command, and the exit status that it
promises.

0 fine; 1 a finding; 2 usage; 75 a temporary failure; 78 bad configuration.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import NoReturn

from gatekeeper.cli import access, diagnose, dkim, dkim_rotate, greylist, opendkim, records, replay, run
from gatekeeper.cli.common import CONFIGURATION, OK, TEMPORARY, USAGE

FAMILIES = {
    "dkim": "the keys that we sign with: make, publish, test and change them",
    "dmarc": "our own DMARC: reports that others send, and the record",
    "greylist": "greylisting: what it cost, and moving its state",
    "spf": "our own SPF record",
}
"""Commands of two words, by the first."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. Ctrl-C and a reader that has gone leave no traceback."""
    try:
        options = _parse(arguments)
        command: Callable[[argparse.Namespace], int] = options.function
        status = _run(command, options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has enough of it; Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    top = parser()
    options, unknown = top.parse_known_args(arguments)
    if unknown:
        print(f"gatekeeper: unrecognized arguments: {' '.join(unknown)}", file=sys.stderr)
        raise SystemExit(getattr(options, "usage_status", USAGE))
    return options


def _run(command: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    from gatekeeper.core.problem import ConfigError
    from gatekeeper.stores.store import StoreError

    try:
        return command(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return CONFIGURATION
    except StoreError as error:
        print(f"gatekeeper: the store cannot be used: {error}", file=sys.stderr)
        return TEMPORARY


class Parser(argparse.ArgumentParser):
    """A command whose usage errors end with its own status (`usage_status`), which is 2 for all but opendkim."""

    def error(self, message: str) -> NoReturn:
        """Say it and end."""
        self.print_usage(sys.stderr)
        self.exit(self.get_default("usage_status") or USAGE, f"{self.prog}: error: {message}\n")


def parser() -> argparse.ArgumentParser:
    """The whole command line; test_docs.py compares it with docs/cli.md."""
    top = Parser(prog="gatekeeper", description="Policy daemon and milter for a Postfix relay.")
    top.add_argument("--version", action="version", version=f"gatekeeper {version('gatekeeper')}")
    _add_config(top, default=None)
    families = {"": top.add_subparsers(title="commands", metavar="COMMAND", required=True)}

    def add(name: str, function: Callable[[argparse.Namespace], int], does: str) -> argparse.ArgumentParser:
        family, _, own = name.rpartition(" ")
        if family not in families:
            parent = families[""].add_parser(family, help=FAMILIES[family])
            families[family] = parent.add_subparsers(title="commands", metavar="COMMAND", required=True)
        command = families[family].add_parser(own, help=does, description=does[0].upper() + does[1:] + ".")
        command.set_defaults(function=function)
        # Absent after the command, it must not undo what stood before it.
        _add_config(command, default=argparse.SUPPRESS)
        return command

    for group in (run, diagnose, replay, opendkim, dkim, dkim_rotate, records, greylist, access):
        group.add_to(add)
    return top


def _add_config(command: argparse.ArgumentParser, default: str | None) -> None:
    text = "the configuration (default: $GATEKEEPER_CONFIG, then /etc/gatekeeper/gatekeeper.toml)"
    command.add_argument("--config", metavar="FILE", default=default, help=text)
