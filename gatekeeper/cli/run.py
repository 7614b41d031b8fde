# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands for the service and its configuration: run, policy, milter, check-config."""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict

from gatekeeper.cli.common import CONFIGURATION, FINDING, OK, Add, add_json, config_path, print_json


def add_to(add: Add) -> None:
    """Add the commands of this file."""
    add("run", run, "run policy daemon and milter under one supervisor, in the foreground")
    add("policy", run_policy, "run the policy daemon alone, in the foreground")
    add("milter", run_milter, "run the milter alone, in the foreground")
    add_json(add("check-config", check_config, "read the configuration with every table and key; print every error"))


def run(options: argparse.Namespace) -> int:
    """Run policy daemon and milter until a signal stops them."""
    return _serve(options, policy=True, milter=True)


def run_policy(options: argparse.Namespace) -> int:
    """Run the policy daemon until a signal stops it."""
    return _serve(options, policy=True, milter=False)


def run_milter(options: argparse.Namespace) -> int:
    """Run the milter until a signal stops it."""
    return _serve(options, policy=False, milter=True)


def _serve(options: argparse.Namespace, *, policy: bool, milter: bool) -> int:
    from gatekeeper.config import config_file
    from gatekeeper.daemon import supervisor
    from gatekeeper.daemon.startup_message import startup_message
    from gatekeeper.daemon.worker import WorkerKind
    from gatekeeper.postfix.listen_address import ListenAddress

    path = config_path(options)

    def announce(addresses: Mapping[WorkerKind, ListenAddress], config: config_file.Config) -> None:
        files = {"--config": path, "--postfix": options.postfix}
        print(startup_message(addresses, files, config.postfix.queue_directory), file=sys.stderr, flush=True)

    return supervisor.run(
        lambda: config_file.load(path) if path else config_file.defaults(), announce, policy=policy, milter=milter
    )


def check_config(options: argparse.Namespace) -> int:
    """Print every error and warning, or a summary of what is fine.

    The findings are the output of this command, so they go to stdout. Exit status: 78 if `run` would not start, 1 if it
    would start without something that was asked for, such as a key, so that mail waits.
    """
    from gatekeeper.app.file_modes import readable_secrets
    from gatekeeper.app.plan import Plan, prepare, summary
    from gatekeeper.config import config_file
    from gatekeeper.config.asked_stages import asked_in_vain
    from gatekeeper.core.problem import ConfigError, Problem
    from gatekeeper.daemon.obstacles import obstacles

    path = config_path(options)
    plan: Plan | None = None
    in_the_way: list[Problem] = []
    try:
        found: list[Problem] = []
        usable, found = config_file.examine(path) if path else (config_file.defaults(), found)
        in_the_way = list(obstacles(usable))
        found = [*found, *usable.drift, *readable_secrets(usable), *asked_in_vain(usable), *in_the_way]
        plan = prepare(usable, thorough=True, lenient=True, found=found)
        problems = plan.warnings
    except ConfigError as error:
        problems = error.problems
    trouble = sum(problem.trouble for problem in problems)
    if options.json:
        told = [asdict(problem) for problem in problems]
        print_json({"ok": plan is not None and not trouble, "starts": plan is not None, "problems": told})
    else:
        for problem in problems:
            print(problem.labelled("trouble: ") if problem.trouble else problem)
        if plan is not None:
            how = "starts; see above what does not work" if trouble or in_the_way else "is fine"
            print(f"{path or 'the default configuration'} {how}: {summary(plan)}")
    return CONFIGURATION if plan is None else FINDING if trouble else OK
