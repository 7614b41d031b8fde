# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands for the store as a whole: state check."""

import argparse

from gatekeeper.cli.common import FINDING, OK, Add, add_json, config_path, print_json, print_lines


def add_to(add: Add) -> None:
    """Add the commands of this file."""
    add_json(add("state check", check, "say where the state is, whether it is whole, and what is in it"))


def check(options: argparse.Namespace) -> int:
    """Look at the store of the configuration, change nothing in it, and report. Raises ConfigError, StoreError."""
    import asyncio
    import time

    from gatekeeper.config import config_file
    from gatekeeper.core.units import duration_text
    from gatekeeper.stores import state_check

    path = config_path(options)
    config = config_file.load(path) if path else config_file.defaults()
    report = asyncio.run(state_check.check(config.store.url, time.time))
    if options.json:
        print_json(report.as_json())
    else:
        print_lines(state_check.sentences(report, duration_text(config.checks.greylist.learning)))
    return FINDING if report.problems else OK
