# SPDX-License-Identifier: GPL-3.0-or-later
"""Entries of access tables: allow, deny."""

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from gatekeeper.cli.common import FINDING, OK, TEMPORARY, USAGE, Add, config_path, print_lines

if TYPE_CHECKING:
    from gatekeeper.config.access_entry import AccessEntry


def add_to(add: Add) -> None:
    """Add the commands of this file."""
    command = add("allow", allow, "let mail of a client, sender or recipient pass the checks after access")
    _add_key(command)
    command.add_argument("reason", metavar="REASON", nargs="?", default="", help="a comment above the entry")
    command.add_argument("--if", metavar="PROOF", dest="condition", default="", help="spf, dkim or dmarc")
    command = add("deny", deny, "refuse mail of a client, sender or recipient")
    _add_key(command)
    command.add_argument("text", metavar="TEXT", nargs="?", default="", help="the text of the refusal")


def _add_key(command: argparse.ArgumentParser) -> None:
    command.add_argument("key", metavar="KEY", help="ADDRESS, NETWORK/LENGTH, example.com, user@example.com, user@, <>")
    kinds = ("client", "helo", "sender", "recipient")
    command.add_argument("--as", dest="kind", choices=kinds, help="what a name or mailbox stands for (default: sender)")


def allow(options: argparse.Namespace) -> int:
    """Add an entry that says OK."""
    from gatekeeper.config import access_entry

    return _add(options, lambda: access_entry.allow(options.key, options.reason, options.condition, options.kind))


def deny(options: argparse.Namespace) -> int:
    """Add an entry that says REJECT."""
    from gatekeeper.config import access_entry

    return _add(options, lambda: access_entry.deny(options.key, options.text, options.kind))


def _add(options: argparse.Namespace, parse_entry: "Callable[[], AccessEntry]") -> int:
    """Write the entry and say what it does.

    Returns 1 if an earlier line keeps it from being found, or if no check uses its table yet.
    """
    from gatekeeper.config import access_entry, config_file
    from gatekeeper.core.safe_path import real_path
    from gatekeeper.core.working_folder import absolute

    try:
        entry = parse_entry()
    except access_entry.EntryRefused as refused:
        print(f"gatekeeper: {refused}", file=sys.stderr)
        return USAGE
    path = config_path(options)
    loaded = config_file.load(path) if path else config_file.defaults()
    file = absolute(path or config_file.DEFAULT_PATH)
    try:
        added = access_entry.add(loaded, entry, real_path(file).parent)
    except access_entry.EntryRefused as refused:
        print(f"gatekeeper: {refused}", file=sys.stderr)
        return FINDING
    except OSError as error:
        print(f"gatekeeper: cannot write {error.filename or file.parent}: {error.strerror}", file=sys.stderr)
        return TEMPORARY
    print_lines(added.lines)
    return OK if added.in_effect else FINDING
