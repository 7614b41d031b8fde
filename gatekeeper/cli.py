# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: one thin function for each command, and the exit status that it promises.

0 fine; 1 a finding; 2 usage; 75 a temporary failure; 78 bad configuration. Imports are late: `--version` and a usage
error need not load DNS, cryptography and the like.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gatekeeper.app import App
    from gatekeeper.explain import Asked, NotingResolver
    from gatekeeper.zone import Zone

OK, FINDING, USAGE, TEMPORARY, CONFIGURATION = 0, 1, 2, 75, 78


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status. Ctrl-C and a reader that has gone leave no traceback."""
    try:
        options = parser().parse_args(arguments)
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


def _run(command: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    from gatekeeper.problem import ConfigError
    from gatekeeper.store import StoreError

    try:
        return command(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return CONFIGURATION
    except StoreError as error:
        print(f"gatekeeper: the store cannot be used: {error}", file=sys.stderr)
        return TEMPORARY


def parser() -> argparse.ArgumentParser:
    """The whole command line; test_docs.py compares it with docs/cli.md."""
    top = argparse.ArgumentParser(prog="gatekeeper", description="Policy daemon and milter for a Postfix relay.")
    top.add_argument("--version", action="version", version=f"gatekeeper {version('gatekeeper')}")
    _add_config(top, default=None)
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, function: Callable[[argparse.Namespace], int], does: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=does, description=does[0].upper() + does[1:] + ".")
        command.set_defaults(function=function)
        # Absent after the command, it must not undo what stood before it.
        _add_config(command, default=argparse.SUPPRESS)
        return command

    add("run", run, "policy daemon and milter under one supervisor, in the foreground")
    add("policy", run_policy, "the policy daemon alone, in the foreground")
    add("milter", run_milter, "the milter alone, in the foreground")
    _add_json(add("check-config", check_config, "read the configuration with every table and key; print every error"))
    _add_explain(add("explain", explain, "what would be answered to one session, and why; changes no state"))
    _add_verify(add("verify", verify, "SPF, iprev, DKIM and DMARC of a message, as a report"))
    _add_sign(add("sign", sign, "write a message signed as the milter would"))
    _add_replay(add("replay", replay, "play recorded sessions in process and compare with what is expected"))
    return top


def _add_config(command: argparse.ArgumentParser, default: str | None) -> None:
    text = "the configuration (default: $GATEKEEPER_CONFIG, then /etc/gatekeeper/gatekeeper.toml)"
    command.add_argument("--config", metavar="FILE", default=default, help=text)


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="for a program to read")


def _add_session(command: argparse.ArgumentParser) -> None:
    command.add_argument("--client", metavar="ADDR[,NAME]", type=_client, help="the client's address and name")
    command.add_argument("--helo", metavar="NAME", help="what the client says in HELO or EHLO")
    command.add_argument("--from", metavar="ADDR", dest="sender", help="the envelope sender; <> for none")
    command.add_argument("--dns", metavar="FILE", type=Path, help="the only DNS there is, instead of the real one")


def _add_explain(command: argparse.ArgumentParser) -> None:
    _add_session(command)
    command.add_argument("--to", metavar="ADDR", dest="recipient", help="the recipient")
    command.add_argument("--sasl-user", metavar="USER", default="", help="who authenticated")
    command.add_argument("--message", metavar="FILE", type=Path, help="the message: what the milter does with it")
    command.add_argument("--context", metavar="NAME", default="", help="the policy_context that Postfix sends")
    _add_json(command)


def _add_verify(command: argparse.ArgumentParser) -> None:
    command.add_argument("message", metavar="FILE.eml", type=Path)
    _add_session(command)
    _add_json(command)


def _add_sign(command: argparse.ArgumentParser) -> None:
    command.add_argument("message", metavar="FILE.eml", type=Path)


def _add_replay(command: argparse.ArgumentParser) -> None:
    text = "a recorded session, or a folder of them"
    command.add_argument("paths", metavar="PATH", type=Path, nargs="+", help=text)
    command.add_argument("--update", action="store_true", help="what differs becomes the expectation")


def _client(text: str) -> tuple[str, str]:
    """`ADDR[,NAME]` in its parts; the address as the request has it."""
    from gatekeeper.request import parse_address

    address, _, name = text.partition(",")
    if parse_address(address) is None:
        raise argparse.ArgumentTypeError(f"{address!r} is no IP address")
    return address, name


def _path(options: argparse.Namespace) -> Path | None:
    """The configuration that the command line means, with a word if there is none."""
    from gatekeeper import config

    path = config.find(options.config)
    if path is None:
        print(f"there is no {config.DEFAULT_PATH}: going by the defaults", file=sys.stderr)
    return path


def run(options: argparse.Namespace) -> int:
    """Policy daemon and milter, until a signal."""
    return _serve(options, policy=True, milter=True)


def run_policy(options: argparse.Namespace) -> int:
    """The policy daemon, until a signal."""
    return _serve(options, policy=True, milter=False)


def run_milter(options: argparse.Namespace) -> int:
    """The milter, until a signal."""
    return _serve(options, policy=False, milter=True)


def _serve(options: argparse.Namespace, *, policy: bool, milter: bool) -> int:
    from gatekeeper import supervisor

    return supervisor.run(_path(options), policy=policy, milter=milter)


def check_config(options: argparse.Namespace) -> int:
    """Every mistake and warning, or a word on what is fine. The findings are the output, so they go to stdout."""
    from gatekeeper import app, config
    from gatekeeper.problem import ConfigError, Problem

    path = _path(options)
    plan: app.Plan | None = None
    try:
        found: list[Problem] = []
        usable, found = config.examine(path) if path else (config.defaults(), found)
        plan = app.prepare(usable, thorough=True, found=found)
        problems = plan.warnings
    except ConfigError as error:
        problems = error.problems
    if options.json:
        _print_json({"ok": plan is not None, "problems": [asdict(problem) for problem in problems]})
    else:
        for problem in problems:
            print(problem)
        if plan is not None:
            print(f"{path or 'the default configuration'} is fine: {app.summary(plan)}")
    return OK if plan is not None else CONFIGURATION


def explain(options: argparse.Namespace) -> int:
    """The policy daemon's answer to one session, and with --message the milter's."""
    from gatekeeper import explain, report

    mail = report.Mail.read(_read(options.message)) if options.message else None
    asked = _asked(options)

    async def work(app: "App", resolver: "NotingResolver") -> int:
        explanation = await explain.explain(app, resolver, asked)
        told = await report.explain(app, explanation.decision.request, mail) if mail else None
        if options.json:
            _print_json(explain.as_json(explanation) | ({"message": report.told_json(told)} if told else {}))
        else:
            _print_lines(explain.sentences(explanation))
            _print_lines(report.told_sentences(told) if told else ())
        return OK

    return _with_app(options, work)


def verify(options: argparse.Namespace) -> int:
    """What authentication finds out about a message."""
    from dataclasses import replace

    from gatekeeper import explain, report

    mail = report.Mail.read(_read(options.message))
    asked = _asked(options)
    if asked.sender is None:
        asked = replace(asked, sender=mail.return_path())

    async def work(app: "App", resolver: "NotingResolver") -> int:
        findings = await report.verify(app, await explain.request(resolver, asked), mail)
        if options.json:
            _print_json(report.as_json(findings))
        else:
            _print_lines(report.sentences(findings))
        return OK

    return _with_app(options, work)


def sign(options: argparse.Namespace) -> int:
    """The message on stdout as it would leave, and on stderr why it is not signed if it is not."""
    from gatekeeper import report

    mail = report.Mail.read(_read(options.message))

    async def work(app: "App", resolver: "NotingResolver") -> int:
        signed, why = await report.sign(app, mail)
        print(why, file=sys.stderr)
        sys.stdout.buffer.write(signed)
        return OK

    return _with_app(options, work)


def replay(options: argparse.Namespace) -> int:
    """Recorded sessions, each with the configuration beside it; --config is for those that have none."""
    from gatekeeper import config
    from gatekeeper.replay import command

    return command.main(options.paths, config.find(options.config), update=options.update)


def _with_app(options: argparse.Namespace, work: "Callable[[App, NotingResolver], Coroutine[Any, Any, int]]") -> int:
    """Run `work` on an app that changes no state. Raises ConfigError."""
    from gatekeeper import app, config
    from gatekeeper.explain import NotingResolver
    from gatekeeper.resolver import Resolver, TableResolver
    from gatekeeper.resolvers import CachingResolver, LiveResolver
    from gatekeeper.stores import open_store

    path = _path(options)
    plan = app.prepare(config.load(path) if path else config.defaults())
    for warning in plan.warnings:
        print(warning, file=sys.stderr)
    dns, file = plan.config.dns, getattr(options, "dns", None)
    inner: Resolver = TableResolver(_zone(file)) if file else LiveResolver(dns.nameservers, dns.timeout)

    async def run() -> int:
        store = await open_store(plan.config.store.url, timeout=plan.config.store.timeout, read_only=True)
        resolver = NotingResolver(CachingResolver(inner))
        opened = await app.open_app(plan, resolver=resolver, store=store)
        try:
            return await work(opened, resolver)
        finally:
            await opened.close()

    return asyncio.run(run())


def _asked(options: argparse.Namespace) -> "Asked":
    """The session that the command line describes."""
    from gatekeeper.explain import Asked
    from gatekeeper.request import parse_address

    address, name = options.client or ("", "")
    return Asked(
        address=parse_address(address),
        name=name,
        helo=options.helo,
        sender=None if options.sender is None else options.sender.removeprefix("<").removesuffix(">"),
        recipient=getattr(options, "recipient", None),
        sasl_user=getattr(options, "sasl_user", ""),
        context=getattr(options, "context", ""),
    )


def _read(path: Path) -> bytes:
    """A file that the command line names. Raises SystemExit with a sentence and the status of a usage error."""
    try:
        return path.read_bytes() if str(path) != "-" else sys.stdin.buffer.read()
    except OSError as error:
        print(f"gatekeeper: cannot read {path}: {error.strerror}", file=sys.stderr)
        raise SystemExit(USAGE) from error


def _zone(file: Path) -> "Zone":
    """The DNS that a file holds. Raises SystemExit with its mistakes."""
    from gatekeeper.problem import ConfigError
    from gatekeeper.zone import Zone

    try:
        return Zone.read(file)
    except ConfigError as error:
        print(error, file=sys.stderr)
        raise SystemExit(USAGE) from error


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2, default=str))


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        print(line)
