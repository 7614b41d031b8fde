# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: a file for each group of commands, and a thin function for each command.

Each function returns the exit status of its command: 0 fine; 1 a finding; 2 usage; 75 a temporary failure; 78 bad
configuration.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from gatekeeper.cli import (
    access,
    diagnose,
    dkim,
    dkim_rotate,
    dmarc_read,
    greylist,
    log,
    opendkim,
    records,
    replay,
    run,
    state,
)
from gatekeeper.cli.common import CONFIGURATION, OK, TEMPORARY, USAGE
from gatekeeper.core import redaction

FAMILIES = {
    "dkim": "the keys that we sign with: make, publish, test and rotate them",
    "dmarc": "our own DMARC: the record, and the reports that others send",
    "greylist": "greylisting: what it costs, and moving its state",
    "spf": "our own SPF record",
    "state": "what is remembered: the store of greylisting, limits and reports",
}
"""Help for the first word of the commands that have two."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status.

    Neither Ctrl-C, a closed pipe on stdout nor a file that we may not look at leaves a traceback.
    """
    try:
        options = _parse(arguments)
        command: Callable[[argparse.Namespace], int] = options.function
        status = _beside_postfix(command, options) if options.postfix else _run(command, options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever reads our output has had enough of it. Without this, Python complains again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except PermissionError as error:  # from wherever a path was looked at: a user in a folder that is not his, mostly
        what = f"cannot look at {error.filename}: {error.strerror}" if error.filename else str(error)
        print(f"gatekeeper: {what}", file=sys.stderr)
        return TEMPORARY


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    top = parser()
    options, unknown = top.parse_known_args(arguments)
    if unknown:
        shown = redaction.cut_urls(" ".join(unknown))
        print(f"gatekeeper: unrecognized arguments: {shown}", file=sys.stderr)
        raise SystemExit(getattr(options, "usage_status", USAGE))
    return options


def _beside_postfix(command: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    from gatekeeper.postfix import postconf

    try:
        with postconf.instance(options.postfix):
            return _run(command, options)
    except postconf.NoInstance as error:
        print(f"gatekeeper: {error}", file=sys.stderr)
        return USAGE


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
    """A parser whose usage errors end with the status of its own command (`usage_status`): 2 for all but opendkim."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and `message`, and exit."""
        self.print_usage(sys.stderr)
        # argparse quotes what it does not understand: perhaps a url with its password.
        shown = redaction.cut_urls(message)
        self.exit(self.get_default("usage_status") or USAGE, f"{self.prog}: error: {shown}\n")


class _Version(argparse.Action):
    """Prints the version, which takes reading the installed packages, and exits."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"gatekeeper {version('gatekeeper')}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line, which test_docs.py compares with docs/cli.md."""
    top = Parser(prog="gatekeeper", description="Policy daemon and milter for a Postfix relay.")
    top.add_argument("--version", action=_Version, nargs=0, help="show program's version number and exit")
    _add_global(top, default=None)
    families = {"": top.add_subparsers(title="commands", metavar="COMMAND", required=True)}

    def add(name: str, function: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        family, _, word = name.rpartition(" ")
        if family not in families:
            parent = families[""].add_parser(family, help=FAMILIES[family])
            families[family] = parent.add_subparsers(title="commands", metavar="COMMAND", required=True)
        command = families[family].add_parser(word, help=summary, description=summary[0].upper() + summary[1:] + ".")
        command.set_defaults(function=function)
        # What is absent after the command must not undo what stood before it.
        _add_global(command, default=argparse.SUPPRESS)
        return command

    groups = (run, diagnose, log, replay, opendkim, dkim, dkim_rotate, dmarc_read, records, greylist, state, access)
    for group in groups:
        group.add_to(add)
    return top


def _add_global(command: argparse.ArgumentParser, default: str | None) -> None:
    text = "the configuration (default: $GATEKEEPER_CONFIG, then /etc/gatekeeper/gatekeeper.toml)"
    command.add_argument("--config", metavar="FILE", default=default, help=text)
    text = "the folder of the main.cf of the Postfix to go by (default: $MAIL_CONFIG, then postconf's own)"
    command.add_argument("--postfix", metavar="DIR", type=Path, default=default, help=text)
