# SPDX-License-Identifier: GPL-3.0-or-later
"""Replace DKIM keys step by step: dkim rotate."""

import argparse
import sys
from datetime import timedelta
from typing import TYPE_CHECKING

from gatekeeper.cli.common import FINDING, OK, TEMPORARY, Add, add_dns, add_json, print_json, run_with_resolver
from gatekeeper.cli.dkim import add_opendkim, domain_name, load_config, selector_name, usage_error

if TYPE_CHECKING:
    from gatekeeper.dnsclient.resolver import Resolver
    from gatekeeper.rotation.step import StepResult


def add_to(add: Add) -> None:
    """Add the command of this file."""
    command = add("dkim rotate", rotate, "replace old keys with new ones, as far as that is possible now")
    command.add_argument("domain", metavar="DOMAIN", nargs="?", help="rotate the keys of this domain")
    command.add_argument("-s", "--selector", metavar="NAME", help="only the key with this selector")
    text = "rotate every key that is older than this (180d); with DOMAIN, its keys only if they are"
    command.add_argument("--older", metavar="TIME", type=_seconds, help=text)
    text = "how long mail may be in transit before the old key can be retired (7d)"
    command.add_argument("--after", metavar="TIME", type=_seconds, default=7 * 86400.0, help=text)
    command.add_argument(
        "--type", choices=("rsa", "ed25519"), help="the type of the new keys, instead of that of the old ones"
    )
    command.add_argument("-b", "--bits", metavar="N", type=int, help="the size of new RSA keys")
    command.add_argument("--dry-run", action="store_true", help="only say what would be done")
    add_opendkim(command)
    add_dns(command)
    add_json(command)


def rotate(options: argparse.Namespace) -> int:
    """Take each rotation as far as it goes now.

    Returns 0 if nothing is left to do, 75 while there is something to wait for, 1 if it cannot go on.
    """
    from gatekeeper.core.file_lock import Locked
    from gatekeeper.dnsclient.authoritative import Authorities, LiveAuthorities, TableAuthorities
    from gatekeeper.rotation.configured_keys import KeySelection
    from gatekeeper.rotation.due import World
    from gatekeeper.rotation.run import rotate as rotate_due
    from gatekeeper.rotation.state import Busy, RotationRefused

    config = load_config(options)
    domain = domain_name(options.domain) if options.domain else ""
    selector = selector_name(options.selector) if options.selector else ""
    if options.bits is not None and not 1024 <= options.bits <= 4096:
        usage_error("an RSA key must have 1024 to 4096 bits (RFC 8301)")

    async def work(resolver: "Resolver") -> int:
        authorities: Authorities = LiveAuthorities(resolver)
        if options.dns:
            authorities = TableAuthorities(resolver, str(options.dns))
        world = World(
            config=config,
            authorities=authorities,
            in_flight=timedelta(seconds=options.after),
            kind=options.type,
            bits=options.bits,
            dry_run=options.dry_run,
        )
        try:
            run = await rotate_due(world, KeySelection(domain, selector, options.older))
        except RotationRefused as error:
            print(f"gatekeeper: {error}", file=sys.stderr)
            return TEMPORARY if isinstance(error, Busy) else FINDING
        except OSError as error:
            print(f"gatekeeper: {error.filename}: {error.strerror}" if error.filename else error, file=sys.stderr)
            return TEMPORARY if isinstance(error, Locked) else FINDING
        _print_outcomes(run.outcomes, options)
        for refused in run.refused:
            print(f"gatekeeper: {refused}", file=sys.stderr)
        if run.refused:
            return FINDING
        return OK if all(outcome.done for outcome in run.outcomes) else TEMPORARY

    return run_with_resolver(options, config.dns, work)


def _print_outcomes(outcomes: "list[StepResult]", options: argparse.Namespace) -> None:
    if options.json:
        print_json([{**one.state.model_dump(mode="json"), **_json(one)} for one in outcomes])
        return
    for outcome in outcomes:
        state = outcome.state
        print(f"{', '.join(state.domains)}: {state.old.selector} -> {state.new.selector}: {state.stage}")
        for line in outcome.did:
            print(f"  {line}")
        for line in outcome.waits:
            print(f"  waiting: {line}")
        for number, line in enumerate(outcome.next):
            print(f"  next: {line}" if not number else f"    {line}")
    if not outcomes:
        print("nothing to do: no rotation is under way" + (", and no key is that old" if options.older else ""))


def _json(outcome: "StepResult") -> dict[str, object]:
    return {"stage": outcome.state.stage, "did": outcome.did, "waits": outcome.waits, "next": outcome.next}


def _seconds(text: str) -> float:
    from gatekeeper.core.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
