# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands for what our domains publish: dmarc record, spf check."""

import argparse
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from gatekeeper.cli.common import (
    FINDING,
    OK,
    TEMPORARY,
    USAGE,
    Add,
    add_dns,
    add_json,
    print_json,
    print_lines,
    run_with_configured_resolver,
)

if TYPE_CHECKING:
    from gatekeeper.dnsclient.resolver import Resolver

_POLICIES = ("none", "quarantine", "reject")


def add_to(add: Add) -> None:
    """Add the commands of this file."""
    _add_record(add("dmarc record", dmarc_record, "check the DMARC record of a domain, or write one"))
    _add_spf(add("spf check", spf_check, "walk the SPF record of a domain: look-ups used of ten, and what is wrong"))


def _add_record(command: argparse.ArgumentParser) -> None:
    command.add_argument("domain", metavar="DOMAIN")
    command.add_argument("--record", metavar="TEXT", help="check this text instead of what is published")
    command.add_argument("--policy", choices=_POLICIES, help="write a record with this policy, and check it")
    command.add_argument("--subdomains", choices=_POLICIES, help="with --policy: another one for subdomains (sp)")
    command.add_argument("--nonexistent", choices=_POLICIES, help="with --policy: for names that do not exist (np)")
    text = "with --policy: where aggregate reports go; may be repeated"
    command.add_argument("--rua", metavar="ADDRESS", action="append", default=[], help=text)
    command.add_argument("--strict", action="store_true", help="with --policy: strict alignment")
    command.add_argument("--testing", action="store_true", help="with --policy: ask for one policy level less (t=y)")
    add_dns(command)
    add_json(command)


def _add_spf(command: argparse.ArgumentParser) -> None:
    command.add_argument("domain", metavar="DOMAIN")
    command.add_argument("--record", metavar="TEXT", help="check this text instead of what is published")
    add_dns(command)
    add_json(command)


def _domain(options: argparse.Namespace) -> str:
    """Return the domain of the command line in normal form. If it is not valid, say so and raise SystemExit."""
    from gatekeeper.auth.domains import normal_domain

    domain = normal_domain(options.domain.removesuffix("."))
    if not domain:
        print(f"gatekeeper: {options.domain!a} is not a valid domain", file=sys.stderr)
        raise SystemExit(USAGE)
    return domain


def dmarc_record(options: argparse.Namespace) -> int:
    """Check the record of a domain, or with --policy write a new one and check that."""
    from gatekeeper.auth.dmarc_record import DmarcPolicy
    from gatekeeper.dnsclient.resolver import DNSError
    from gatekeeper.records import dmarc

    domain = _domain(options)
    of_a_new_one = options.subdomains or options.nonexistent or options.rua or options.strict or options.testing
    if options.policy is None and of_a_new_one:
        print("gatekeeper: these options are for a new record: say its --policy too", file=sys.stderr)
        return USAGE
    if options.policy is not None and options.record is not None:
        print("gatekeeper: --record checks a text, --policy writes a new one: say one of them", file=sys.stderr)
        return USAGE

    def policy(text: str | None) -> DmarcPolicy | None:
        return DmarcPolicy(text) if text else None

    async def work(resolver: "Resolver") -> int:
        texts = None if options.record is None else [options.record]
        if wanted := policy(options.policy):
            wanted_record = dmarc.WantedRecord(
                policy=wanted,
                subdomains=policy(options.subdomains),
                nonexistent=policy(options.nonexistent),
                rua=tuple(address.removeprefix("mailto:") for address in options.rua),
                strict=options.strict,
                testing=options.testing,
            )
            texts = [dmarc.write(wanted_record)]
        are_published = texts is None
        try:
            texts = await dmarc.look_up(resolver, domain) if texts is None else texts
        except DNSError as error:
            print(f"gatekeeper: _dmarc.{domain} cannot be looked up right now: {error}", file=sys.stderr)
            return TEMPORARY
        remarks = await dmarc.examine(resolver, domain, texts, are_published=are_published)
        if options.json:
            records = [{"error": remark.error, "what": remark.what} for remark in remarks]
            print_json({"domain": domain, "records": texts, "remarks": records})
        else:
            print_lines(f"{name}" for name in dmarc.zone_lines(domain, texts))
            print_lines(f"  {remark}" for remark in remarks)
        return FINDING if any(remark.error for remark in remarks) else OK

    return run_with_configured_resolver(options, work)


def spf_check(options: argparse.Namespace) -> int:
    """Print the tree of the SPF record, the look-ups that it takes, and what is wrong with it."""
    from gatekeeper.records import spf

    domain = _domain(options)

    async def work(resolver: "Resolver") -> int:
        walk = await spf.examine(resolver, domain, options.record)
        if options.json:
            print_json(asdict(walk) | {"remarks": [remark._asdict() for remark in walk.remarks]})
        else:
            print_lines(spf.sentences(walk))
        return FINDING if any(remark.error for remark in walk.remarks) else OK

    return run_with_configured_resolver(options, work)
