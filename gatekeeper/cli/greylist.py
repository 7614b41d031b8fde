# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands for greylisting: greylist report, greylist copy, import-postgrey."""

import argparse
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gatekeeper.cli.common import (
    FINDING,
    OK,
    TEMPORARY,
    USAGE,
    Add,
    add_json,
    add_logs,
    config_path,
    log_lines,
    print_json,
    print_lines,
)

if TYPE_CHECKING:
    from gatekeeper.config.config_file import Config

T = TypeVar("T")


def add_to(add: Add) -> None:
    """Add the commands of this file."""
    _add_report(
        add("greylist report", report, "what greylisting cost, from the log: which wanted mail waited, how long")
    )
    _add_copy(add("greylist copy", copy, "copy the greylisting state to another store, with the secret of its keys"))
    _add_import(add("import-postgrey", import_postgrey, "import postgrey's state and allow lists"))


def _add_report(command: argparse.ArgumentParser) -> None:
    add_logs(command)
    add_json(command)


def _add_copy(command: argparse.ArgumentParser) -> None:
    command.add_argument("to", metavar="URL", help="the store to copy to, as in store.url; - reads it from stdin")
    text = "the store to copy from (default: the one in the configuration)"
    command.add_argument("--from", metavar="URL", dest="source", help=text)


def _add_import(command: argparse.ArgumentParser) -> None:
    text = "postgrey's directory (default: the one in its options, else /var/lib/postgrey)"
    command.add_argument("folder", metavar="FOLDER", type=Path, nargs="?", help=text)
    text = "the file with postgrey's options (default: /etc/default/postgrey)"
    command.add_argument("--options", metavar="FILE", type=Path, help=text)
    text = "where to write its allow lists as tables (default: the folder of the configuration)"
    command.add_argument("--tables", metavar="FOLDER", type=Path, help=text)
    add_json(command)


def report(options: argparse.Namespace) -> int:
    """Sum up all logs, which must be given in chronological order."""
    from gatekeeper.diagnose import greylisting_cost

    found = greylisting_cost.read_greylisting_cost(line for path in options.logs for line in log_lines(path))
    if options.json:
        print_json(greylisting_cost.as_json(found))
    else:
        print_lines(greylisting_cost.sentences(found))
    return OK


def copy(options: argparse.Namespace) -> int:
    """Copy the state from one store to another. Returns 1 if the other has state of its own."""
    from gatekeeper.stores.migration import StoreOccupied, migrate
    from gatekeeper.stores.state_owner import acting_as_owner
    from gatekeeper.stores.store import StoreError
    from gatekeeper.stores.store_url import check_url, describe, open_store

    config = _config(options)
    source = options.source or config.store.url
    if options.to == "-":  # a url on the command line, password and all, is seen by every user with ps
        options.to = sys.stdin.readline().strip()
    for url in (source, options.to):
        try:
            check_url(url)
        except ValueError as error:
            print(f"gatekeeper: {error}", file=sys.stderr)
            return USAGE

    async def work() -> int:
        with acting_as_owner(source, config.user):
            source_store = await open_store(source, timeout=10.0, read_only=True)
        with acting_as_owner(options.to, config.user, create=True):
            target_store = await open_store(options.to, timeout=10.0)
            try:
                if target_store.gone:
                    raise StoreError(target_store.gone)
                return await migrate(source_store, target_store)
            finally:
                await source_store.close()
                await target_store.close()

    try:
        count = _run(work())
    except StoreOccupied:
        print(f"gatekeeper: {describe(options.to)} has state of its own; empty it, or copy from it", file=sys.stderr)
        return FINDING
    print(f"{count} entries copied to {describe(options.to)}; name it in store.url and restart")
    return OK


def import_postgrey(options: argparse.Namespace) -> int:
    """Import state into the store and lists into tables, and report what was imported and what was not.

    Returns 1 if there was no state, 2 if a folder or file that was named is not there.
    """
    import time

    from gatekeeper.postgrey import state_import
    from gatekeeper.postgrey.database import DatabaseError
    from gatekeeper.postgrey.options import DEFAULT_FILE, read_options
    from gatekeeper.stores.state_owner import acting_as_owner
    from gatekeeper.stores.store import Keys, StoreError
    from gatekeeper.stores.store_url import open_store

    config = _config(options)
    greylist = config.checks.greylist
    try:
        postgrey_options = read_options(options.options or DEFAULT_FILE, must_exist=options.options is not None)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        print(f"gatekeeper: {options.options or DEFAULT_FILE}: {why}", file=sys.stderr)
        return USAGE if isinstance(error, OSError) else FINDING
    folder = options.folder or postgrey_options.folder or Path("/var/lib/postgrey")
    tables = options.tables or config.folder
    for one, what in ((folder, "name the folder with postgrey's databases"), (tables, "name another with --tables")):
        if not one.is_dir():
            print(f"gatekeeper: there is no folder {one}; {what}. Nothing was imported", file=sys.stderr)
            return USAGE
    imported = state_import.ImportedState(
        toml=list(postgrey_options.as_toml()), remarks=list(state_import.remarks(postgrey_options, greylist))
    )
    observed = config.mode == "observe" or greylist.mode == "observe"

    async def work(entries: state_import.Entries) -> None:
        store = await open_store(config.store.url, timeout=10.0)
        try:
            if store.gone:
                raise StoreError(store.gone)
            for prefix in ("", "observe:") if observed else ("",):
                keys = Keys(await store.secret(), prefix)
                target = state_import.Target(
                    store=store, keys=keys, greylist=greylist, options=postgrey_options, now=time.time()
                )
                await target.import_state(entries, state_import.ImportedState() if prefix else imported)
        finally:
            await store.close()

    try:
        entries = state_import.read_entries(folder)  # as root, because it is postgrey's
        with acting_as_owner(config.store.url, config.user, create=True):
            _run(work(entries))
        state_import.import_lists(postgrey_options, tables, imported, config.folder)
    except (DatabaseError, OSError) as error:
        print(f"gatekeeper: {error}", file=sys.stderr)
        return TEMPORARY
    if options.json:
        print_json(state_import.as_json(imported))
    else:
        print_lines(state_import.sentences(imported))
    if not state_import.has_databases(folder):
        print(f"gatekeeper: there is no database of postgrey's in {folder}", file=sys.stderr)
        return FINDING
    return OK


def _config(options: argparse.Namespace) -> "Config":
    from gatekeeper.config import config_file

    path = config_path(options)
    return config_file.load(path) if path else config_file.defaults()


def _run(work: Coroutine[Any, Any, T]) -> T:
    import asyncio

    return asyncio.run(work)
