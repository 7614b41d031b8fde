# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands for our DKIM keys and what they sign: dkim genkey, dkim testkey, dkim dns, dkim report."""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from gatekeeper.cli.common import (
    FINDING,
    OK,
    TEMPORARY,
    USAGE,
    Add,
    add_dns,
    add_json,
    add_logs,
    log_lines,
    print_json,
    print_lines,
    run_with_resolver,
)

if TYPE_CHECKING:
    from gatekeeper.config.config_file import Config
    from gatekeeper.dnsclient.resolver import Resolver
    from gatekeeper.records.dkim import PublishedKey
    from gatekeeper.records.key_record import KeyRecord
    from gatekeeper.signing.key_table import TableKey
    from gatekeeper.signing.keys import PrivateKey


class _Key(NamedTuple):
    """A key that the command line selects. One in our own tables (`ours`) must have a private key."""

    domain: str
    selector: str
    private: "PrivateKey | None"
    ours: bool = True


_MAX_CONCURRENT = 20
"""The number of keys that are looked up at the same time."""
_SELECTOR = re.compile(
    r"(?=.{1,200}$)[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?)*"
)


def add_to(add: Add) -> None:
    """Add the commands of this file."""
    _add_genkey(add("dkim genkey", genkey, "make a key and its DNS record"))
    _add_testkey(add("dkim testkey", testkey, "compare the published keys with those that we sign with"))
    _add_report(add("dkim report", report, "count in the log what was signed, what was not, and why"))
    _add_dns(add("dkim dns", dns, "write the DNS records of the keys that we sign with"))


def _add_genkey(command: argparse.ArgumentParser) -> None:
    # -h is an option of opendkim-genkey; --help stays.
    group = command.add_argument_group("as opendkim-genkey", conflict_handler="resolve")
    group.add_argument("-a", "--append-domain", action="store_true", help="write the full name into the zone file")
    group.add_argument("-r", "--restrict", action="store_true", help="the key is for email only (s=email)")
    group.add_argument("-t", "--testmode", action="store_true", help="the key is being tested (t=y)")
    group.add_argument("-v", "--verbose", action="store_true", help="print each step")
    group.add_argument("-b", "--bits", metavar="N", type=int, default=2048, help="the size of an RSA key (2048)")
    group.add_argument("-d", "--domain", metavar="NAME", default="localhost", help="the domain that will sign")
    group.add_argument(
        "-D", "--directory", metavar="PATH", type=Path, default=Path(), help="the directory for the files"
    )
    group.add_argument("-h", "--hash-algorithms", metavar="LIST", default="sha256", help="h= of the record")
    group.add_argument("-n", "--note", metavar="TEXT", default="", help="n= of the record: a note for people")
    group.add_argument("-s", "--selector", metavar="NAME", default="default", help="the selector (default)")
    group.add_argument("-S", dest="subdomains", action="store_false", help="as --no-subdomains")
    text = "whether signatures may be for an address in a subdomain"
    group.add_argument("--subdomains", action=argparse.BooleanOptionalAction, default=True, help=text)
    group.add_argument("--nosubdomains", dest="subdomains", action="store_false", help="as --no-subdomains")
    command.add_argument("--type", choices=("rsa", "ed25519"), default="rsa", help="the kind of key")
    command.add_argument("--overwrite", action="store_true", help="replace an existing key, which is then lost")


def _add_testkey(command: argparse.ArgumentParser) -> None:
    _add_key_selection(command)
    command.add_argument("-v", "--verbose", action="count", default=0, help="show the records too")
    add_dns(command)
    add_json(command)


def _add_dns(command: argparse.ArgumentParser) -> None:
    _add_key_selection(command)
    form = command.add_mutually_exclusive_group()
    form.add_argument("--zone", action="store_true", help="lines for a zone file (this is the default)")
    form.add_argument("--line", action="store_true", help="name and value on one line each, for a web panel")
    form.add_argument("-u", "--nsupdate", action="store_true", help="commands for nsupdate(8)")
    add_json(form)
    command.add_argument("--ttl", metavar="SECONDS", type=int, default=3600, help="for nsupdate (3600)")


def _add_report(command: argparse.ArgumentParser) -> None:
    add_logs(command)
    add_json(command)


def _add_key_selection(command: argparse.ArgumentParser) -> None:
    command.add_argument("-d", "--domain", metavar="NAME", help="the keys of this domain")
    command.add_argument("-s", "--selector", metavar="NAME", help="the keys with this selector")
    command.add_argument("-k", "--key", metavar="FILE", type=Path, help="this private key, whatever the tables say")
    add_opendkim(command)


def add_opendkim(command: argparse.ArgumentParser) -> None:
    """Add -x, an opendkim.conf to use instead of gatekeeper.toml."""
    command.add_argument("-x", "--opendkim", metavar="FILE", type=Path, help="use this opendkim.conf")


def genkey(options: argparse.Namespace) -> int:
    """Write the two files of opendkim-genkey(8), and print the lines for the tables."""
    from gatekeeper.app.signing_plan import key_owners
    from gatekeeper.config import config_file
    from gatekeeper.records import new_key
    from gatekeeper.records.key_record import RecordOptions

    domain, selector = domain_name(options.domain), selector_name(options.selector)

    def log_step(what: str) -> None:
        if options.verbose:
            print(f"gatekeeper: {what}", file=sys.stderr)

    path = config_file.find(options.config)
    log_step(f"making an {options.type} key")
    try:
        made = new_key.write(
            options.directory,
            selector,
            domain,
            kind=options.type,
            bits=options.bits,
            record_options=RecordOptions(
                hashes=options.hash_algorithms,
                note=options.note,
                email_only=options.restrict,
                testing=options.testmode,
                subdomains=options.subdomains,
            ),
            absolute=options.append_domain,
            owners=key_owners(config_file.load(path) if path else config_file.defaults()),
            replace=options.overwrite,
        )
    except FileExistsError as error:
        hint = "choose another selector, or give --overwrite: then that key is lost"
        print(f"gatekeeper: {error.filename} already exists; {hint}", file=sys.stderr)
        return USAGE
    except OSError as error:
        print(f"gatekeeper: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
        return USAGE
    except ValueError as error:
        print(f"gatekeeper: {error}", file=sys.stderr)
        return USAGE
    log_step(f"private key written to {made.path}")
    log_step(f"DNS record written to {made.text_path}")
    for line in made.table_lines():
        print(line)
    for remark in made.remarks:
        print(f"warning: {remark}", file=sys.stderr)
    return OK


def testkey(options: argparse.Namespace) -> int:
    """Print a line for each key, and what is to be said about it."""
    import asyncio

    from gatekeeper.records.dkim import examine
    from gatekeeper.records.remark import Remark

    config, keys = _selected_keys(options)

    async def work(resolver: "Resolver") -> int:
        limit = asyncio.Semaphore(_MAX_CONCURRENT)

        async def examine_key(key: _Key) -> "PublishedKey":
            async with limit:
                return await examine(resolver, key.domain, key.selector, key.private)

        found = await asyncio.gather(*map(examine_key, keys))
        for one, key in zip(found, keys, strict=True):
            if key.ours and key.private is None:
                one.remarks.append(Remark(True, "the private key cannot be read, so nothing is signed with it"))
        if options.json:
            print_json([_as_json(one) for one in found])
        else:
            for one, key in zip(found, keys, strict=True):
                _print_key(one, key.private, options.verbose)
            if len(found) != 1:
                print(f"{len(found)} keys: {sum(one.good for one in found)} good", file=sys.stderr)
        if all(one.good for one in found):
            return OK
        return FINDING if any(remark.error for one in found for remark in one.remarks) else TEMPORARY

    return run_with_resolver(options, config.dns, work)


def _print_key(found: "PublishedKey", private: "PrivateKey | None", verbose: int) -> None:
    from gatekeeper.core.verdict import printable

    word = "cannot tell" if found.trouble else "OK" if found.good else "WRONG"
    about = [f"{found.key.kind}, {found.key.bits} bits"] if found.key else []
    if found.good:
        about.append(f"belongs to {private.origin}" if private else "not compared with a private key")
        about.append("secure (DNSSEC)" if found.secure else "not secure (no DNSSEC)")
    print(f"{found.name}: {word}" + (f" ({'; '.join(about)})" if about else ""))
    for remark in found.remarks:
        print(f"  {remark}")
    if found.trouble:
        print(f"  the DNS did not answer: {found.trouble}")
    if verbose:
        for record in found.records:
            print(f"  TXT {printable(record.decode('utf-8', 'replace'), 2000)}")


def _as_json(found: "PublishedKey") -> dict[str, object]:
    return {
        "name": found.name,
        "domain": found.domain,
        "selector": found.selector,
        "good": found.good,
        "kind": found.key and found.key.kind,
        "bits": found.key and found.key.bits,
        "secure": found.secure,
        "trouble": found.trouble,
        "records": [record.decode("utf-8", "replace") for record in found.records],
        "remarks": [{"error": remark.error, "what": remark.what} for remark in found.remarks],
    }


def dns(options: argparse.Namespace) -> int:
    """Write the DNS records of the keys, in one of four forms."""
    from gatekeeper.records.key_record import KeyRecord
    from gatekeeper.signing.keys import BadKey

    status, records = OK, []
    for domain, selector, private, _ in _selected_keys(options)[1]:
        what = "no private key can be read; name one with -k"
        try:
            if private is not None:
                records.append(KeyRecord.of(selector, domain, private))
                continue
        except BadKey as bad:
            what = str(bad)
        print(f"gatekeeper: {selector}._domainkey.{domain}: {what}", file=sys.stderr)
        status = FINDING
    if options.json:
        fields = ("name", "domain", "selector", "text", "strings")
        print_json([{field: getattr(record, field) for field in fields} for record in records])
        return status
    for line in _record_lines(records, options):
        print(line)
    return status


def _record_lines(records: "list[KeyRecord]", options: argparse.Namespace) -> Iterator[str]:
    for record in records:
        if options.line:
            yield f"Name:  {record.name}"
            yield "Type:  TXT"
            yield f"Value: {record.text}"
        elif options.nsupdate:
            yield record.nsupdate(options.ttl)
            yield "send"  # one at a time: they may be in different zones
        else:
            yield record.zone().rstrip("\n")


def report(options: argparse.Namespace) -> int:
    """Sum up all logs. Returns 1 if mail that looked like ours was not signed."""
    from gatekeeper.diagnose import unsigned_mail

    found = unsigned_mail.read_unsigned_mail(line for path in options.logs for line in log_lines(path))
    if options.json:
        print_json(unsigned_mail.as_json(found))
    else:
        print_lines(unsigned_mail.sentences(found))
    return FINDING if found.missed else OK


def _selected_keys(options: argparse.Namespace) -> "tuple[Config, list[_Key]]":
    """Return the configuration, and each key that the command line selects. If none, say so and raise SystemExit."""
    config = load_config(options)
    domain = options.domain and domain_name(options.domain)
    selector = options.selector and selector_name(options.selector)
    if options.key and not (domain and selector):
        usage_error("-k needs -d and -s: a key file does not say under which name its record is published")
    if options.key:
        from gatekeeper.app.signing_plan import key_owners
        from gatekeeper.core.working_folder import absolute
        from gatekeeper.signing.keys import read_key

        private, problems = read_key(absolute(options.key), owners=key_owners(config), require_safe=False)
        for problem in problems:
            print(problem, file=sys.stderr)
        if private is None:
            raise SystemExit(USAGE)
        return config, [_Key(domain, selector, private)]
    keys = table_keys(config)
    found = [key for key in keys if domain in (None, key.domain) and selector in (None, key.selector)]
    for key in found:
        if key.domain == "%":
            what = "serves any domain; choose one with -d, -s and -k"
            print(f"gatekeeper: the key {key.name} (selector {key.selector}) {what}", file=sys.stderr)
    chosen = {(key.domain, key.selector): key.private for key in found if key.domain != "%"}
    if not chosen and domain and selector:
        # A key that others sign with in our name has a record, too.
        return config, [_Key(domain, selector, None, ours=False)]
    if not chosen:
        which = " ".join(filter(None, (domain and f"of {domain}", selector and f"with selector {selector}")))
        usage_error(f"there is no key {which}".rstrip() + " in the tables of [signing]; name one with -d, -s and -k")
    return config, [_Key(domain, selector, private) for (domain, selector), private in chosen.items()]


def table_keys(config: "Config") -> "list[TableKey]":
    """Return the keys of the configured tables; print what is wrong with them to stderr."""
    from gatekeeper.app.signing_plan import key_table

    keys, problems = key_table(config)
    for problem in problems:
        print(problem, file=sys.stderr)
    return list(keys)


def load_config(options: argparse.Namespace) -> "Config":
    """Load the configuration that -x or --config names. Raises ConfigError."""
    from gatekeeper.cli.common import config_path
    from gatekeeper.config import config_file

    if options.opendkim:
        from gatekeeper.opendkim import mapping

        return mapping.load(options.opendkim, need_socket=False, tolerant=True).config
    path = config_path(options)
    return config_file.load(path) if path else config_file.defaults()


def domain_name(text: str) -> str:
    """Return a domain in normal form. If it is not valid, say so and raise SystemExit."""
    from gatekeeper.auth.domains import normal_domain

    return normal_domain(text.removesuffix(".")) or usage_error(f"{text!a} is not a valid domain")


def selector_name(text: str) -> str:
    """Return a valid selector (RFC 6376 section 3.1). If it is not valid, say so and raise SystemExit."""
    if not _SELECTOR.fullmatch(text):
        usage_error(f"{text!a} is not a valid selector; allowed: letters, digits, hyphens and dots")
    return text


def usage_error(what: str) -> NoReturn:
    """Say what is wrong with the command line, and raise SystemExit."""
    print(f"gatekeeper: {what}", file=sys.stderr)
    raise SystemExit(USAGE)
