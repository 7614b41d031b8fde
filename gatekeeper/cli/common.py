# SPDX-License-Identifier: GPL-3.0-or-later
"""What the commands share: exit statuses, options, input files, an app that changes no state, and output.

Imports are deferred into functions: a command loads what it needs when it runs, so that `--version`, a usage error and
every other command need not wait for DNS, cryptography and the like (tests/cli/test_imports.py says which must not
load what). At the top stand only the standard library's small modules and this file.
"""

import argparse
import json
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from gatekeeper.app.app import App
    from gatekeeper.config.schema import DnsSection
    from gatekeeper.diagnose.explain import AskedSession, NotingResolver
    from gatekeeper.dnsclient.resolver import Resolver
    from gatekeeper.dnsclient.zone import Zone

OK, FINDING, USAGE, TEMPORARY, CONFIGURATION = 0, 1, 2, 75, 78


class Add(Protocol):
    """Adds a command and returns its parser.

    `name` has two words for a command of a family, `function` runs the command and returns its exit status, `summary`
    says in a phrase what it does.
    """

    def __call__(
        self, name: str, function: Callable[[argparse.Namespace], int], summary: str
    ) -> argparse.ArgumentParser: ...


def add_json(command: argparse._ActionsContainer) -> None:
    """Add --json."""
    command.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_dns(command: argparse._ActionsContainer) -> None:
    """Add --dns, a zone file that answers every DNS query."""
    command.add_argument("--dns", metavar="FILE", type=Path, help="a zone file to use instead of the real DNS")


def add_logs(command: argparse.ArgumentParser) -> None:
    """Add the logs to read, as positional arguments."""
    text = "a log with gatekeeper's lines, .gz too; - for standard input (journalctl -u gatekeeper -o cat | …)"
    command.add_argument("logs", metavar="LOG", type=Path, nargs="+", help=text)


def add_session(command: argparse.ArgumentParser) -> None:
    """Add the options that describe an SMTP session (see session_from_options)."""
    command.add_argument("--client", metavar="ADDR[,NAME]", type=client_address, help="the client's address and name")
    command.add_argument("--helo", metavar="NAME", help="what the client says in HELO or EHLO")
    command.add_argument("--from", metavar="ADDR", dest="sender", help="the envelope sender; <> for none")
    add_dns(command)


def client_address(text: str) -> tuple[str, str]:
    """Split `ADDR[,NAME]` into address and name. Raises ArgumentTypeError unless the address is valid."""
    from gatekeeper.core.request import parse_address

    address, _, name = text.partition(",")
    if parse_address(address) is None:
        raise argparse.ArgumentTypeError(f"{address!r} is not an IP address")
    return address, name


def config_path(options: argparse.Namespace) -> Path | None:
    """Return the path of the configuration to use.

    None if there is none: then the defaults apply, and a line on stderr says so.
    """
    from gatekeeper.config import config_file

    path = config_file.find(options.config)
    if path is None:
        print(f"there is no {config_file.DEFAULT_PATH}: using the defaults", file=sys.stderr)
    return path


def run_with_configured_resolver(
    options: argparse.Namespace, work: "Callable[[Resolver], Coroutine[Any, Any, int]]"
) -> int:
    """Run `work` with the resolver that the configuration or `--dns` names, and return its exit status.

    Raises ConfigError.
    """
    from gatekeeper.config import config_file

    path = config_file.find(options.config)
    return run_with_resolver(options, (config_file.load(path) if path else config_file.defaults()).dns, work)


def run_with_resolver(
    options: argparse.Namespace, dns: "DnsSection", work: "Callable[[Resolver], Coroutine[Any, Any, int]]"
) -> int:
    """Run `work` with the resolver that the section `dns` or `--dns` names, and return its exit status."""
    import asyncio

    from gatekeeper.dnsclient.caching import CachingResolver

    inner = configured_resolver(options, dns)

    async def run() -> int:
        resolver = CachingResolver(inner)
        try:
            return await work(resolver)
        finally:
            await resolver.close()

    return asyncio.run(run())


def configured_resolver(options: argparse.Namespace, dns: "DnsSection") -> "Resolver":
    """Return the resolver that the section `dns` or `--dns` names."""
    from gatekeeper.dnsclient.live import LiveResolver
    from gatekeeper.dnsclient.resolver import TableResolver

    file = getattr(options, "dns", None)
    return TableResolver(_zone(file)) if file else LiveResolver(dns.nameservers, dns.timeout)


def run_with_app(options: argparse.Namespace, work: "Callable[[App, NotingResolver], Coroutine[Any, Any, int]]") -> int:
    """Run `work` on an app that changes no state, and return its exit status. Raises ConfigError."""
    import asyncio

    from gatekeeper.app.app import open_app
    from gatekeeper.app.plan import prepare
    from gatekeeper.config import config_file
    from gatekeeper.diagnose.explain import NotingResolver
    from gatekeeper.dnsclient.caching import CachingResolver
    from gatekeeper.stores.state_owner import acting_as_owner
    from gatekeeper.stores.store_url import open_store

    path = config_path(options)
    plan = prepare(config_file.load(path) if path else config_file.defaults(), lenient=True)
    for warning in plan.warnings:
        print(warning, file=sys.stderr)
    inner = configured_resolver(options, plan.config.dns)

    async def run() -> int:
        section = plan.config.store
        with acting_as_owner(section.url, plan.config.user):
            store = await open_store(section.url, timeout=section.timeout, read_only=True)
        resolver = NotingResolver(CachingResolver(inner))
        opened = await open_app(plan, resolver=resolver, store=store)
        try:
            return await work(opened, resolver)
        finally:
            await opened.close()

    return asyncio.run(run())


def session_from_options(options: argparse.Namespace) -> "AskedSession":
    """Return the session that the command line describes."""
    from gatekeeper.core.request import parse_address
    from gatekeeper.diagnose.explain import AskedSession

    address, name = options.client or ("", "")
    return AskedSession(
        address=parse_address(address),
        name=name,
        helo=options.helo,
        sender=None if options.sender is None else options.sender.removeprefix("<").removesuffix(">"),
        recipient=getattr(options, "recipient", None),
        sasl_user=getattr(options, "sasl_user", ""),
        context=getattr(options, "context", ""),
    )


def read(path: Path) -> bytes:
    """Read a file that the command line names, `-` for stdin. If that fails, say so and raise SystemExit(USAGE)."""
    try:
        return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        print(f"gatekeeper: cannot read {path}: {error.strerror}", file=sys.stderr)
        raise SystemExit(USAGE) from error


def _zone(file: Path) -> "Zone":
    """Read a zone file. If it has mistakes, print them and raise SystemExit(USAGE)."""
    from gatekeeper.core.problem import ConfigError
    from gatekeeper.dnsclient.zone import Zone

    try:
        return Zone.read(file)
    except ConfigError as error:
        print(error, file=sys.stderr)
        raise SystemExit(USAGE) from error


def print_json(value: object) -> None:
    """Print `value` as JSON; what JSON has no type for becomes a string."""
    print(json.dumps(value, indent=2, default=str))


def print_lines(lines: Iterable[str]) -> None:
    """Print each line as soon as it is there."""
    for line in lines:
        print(line)


def log_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a log, which may be too large for memory; `-` is stdin.

    If it cannot be read, say so and raise SystemExit(USAGE).
    """
    import gzip

    try:
        if str(path) == "-":
            yield from sys.stdin
            return
        with gzip.open(path, "rt", errors="replace") if path.suffix == ".gz" else path.open(errors="replace") as log:
            yield from log
    except OSError as error:
        print(f"gatekeeper: cannot read {path}: {error.strerror or error}", file=sys.stderr)
        raise SystemExit(USAGE) from None
