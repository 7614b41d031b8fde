# SPDX-License-Identifier: GPL-3.0-or-later
"""A replacement for OpenDKIM: `opendkim`, with the options of opendkim(8), and `import-opendkim`."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gatekeeper.cli.common import CONFIGURATION, FINDING, OK, TEMPORARY, Add, print_lines

if TYPE_CHECKING:
    from gatekeeper.config.config_file import Config
    from gatekeeper.core.problem import Problem
    from gatekeeper.opendkim.conf import ConfSetting
    from gatekeeper.opendkim.mapping import ImportedConfig

EX_USAGE, EX_DATA, EX_NO_INPUT, EX_UNAVAILABLE, EX_SOFTWARE = 64, 65, 66, 69, 70  # sysexits(3)

_VALUES = {
    "b": ("Mode", "MODE", "s (sign), v (verify), sv"),
    "c": ("Canonicalization", "CANON", "HEADER/BODY, each relaxed or simple"),
    "d": ("Domain", "DOMAINS", "domains to sign for"),
    "k": ("KeyFile", "FILE", "the private key"),
    "L": ("Minimum", "LIMIT", "how much of a body must be signed: no effect"),
    "o": ("OmitHeaders", "HEADERS", "header fields that are not signed"),
    "p": ("Socket", "SOCKET", "where to listen: local:PATH, inet:PORT@HOST"),
    "P": ("PidFile", "FILE", "where to write the process id"),
    "s": ("Selector", "SELECTOR", "the name of the key in the DNS"),
    "S": ("SignatureAlgorithm", "ALGORITHM", "rsa-sha256 or ed25519-sha256"),
    "T": ("DNSTimeout", "SECONDS", "how long one DNS query may take"),
    "u": ("UserID", "USER[:GROUP]", "the user that the workers run as"),
}
_FLAGS = {
    "A": ("AutoRestart", "yes", "replace workers that die: always so"),
    "D": ("SubDomains", "yes", "sign for subdomains of -d too"),
    "f": ("Background", "no", "stay in the foreground"),
    "l": ("Syslog", "yes", "log to syslog"),
    "q": ("Quarantine", "yes", "no effect, as in OpenDKIM 2.11"),
    "r": ("RequiredHeaders", "yes", "refuse mail in which fields are missing or repeated"),
    "W": ("LogWhy", "yes", "log why a message is signed or not"),
}


def add_to(add: Add) -> None:
    """Add the commands of this file."""
    _add_opendkim(add("opendkim", opendkim, "run as opendkim(8) does, straight from an opendkim.conf"))
    _add_import(
        add("import-opendkim", import_opendkim, "convert an opendkim.conf to a gatekeeper.toml; say what differs")
    )


def _add_opendkim(command: argparse.ArgumentParser) -> None:
    for letter, (name, value, text) in sorted(_VALUES.items()):
        command.add_argument(f"-{letter}", metavar=value, dest=name, help=f"{text} ({name})")
    for letter, (name, _, text) in sorted(_FLAGS.items()):
        command.add_argument(f"-{letter}", action="store_true", dest=name, help=f"{text} ({name})")
    command.add_argument("-x", metavar="FILE", dest="conf", type=Path, help="the configuration (/etc/opendkim.conf)")
    command.add_argument("-e", metavar="NAME", dest="extract", help="print the value of one option and exit")
    command.add_argument("-n", action="store_true", dest="check", help="check the configuration and exit")
    command.add_argument("-Q", action="store_true", dest="query", help="query a data set: its name, then lines KEY/N")
    command.add_argument("-t", metavar="FILES", dest="test", help="say what would be done with these messages")
    command.add_argument("-v", action="count", default=0, dest="verbose", help="with -t: say more")
    command.add_argument("-F", metavar="TIME", type=int, dest="time", help="with -t: sign as of this time")
    command.add_argument("-V", action="store_true", dest="show_version", help="print the version and exit")
    command.add_argument(
        "-X", action="store_true", dest="deprecated", help="no effect: old options are accepted anyway"
    )
    command.set_defaults(usage_status=EX_USAGE)


def _add_import(command: argparse.ArgumentParser) -> None:
    command.add_argument("file", metavar="FILE", type=Path, help="the opendkim.conf")
    command.add_argument("-o", metavar="OUT", dest="out", type=Path, help="where to write the TOML (stdout)")
    text = "tell every difference from OpenDKIM, not only those that this configuration can meet"
    command.add_argument("--all", action="store_true", help=text)


def opendkim(options: argparse.Namespace) -> int:
    """Run the milter alone as opendkim would, or answer one of opendkim's query options."""
    from gatekeeper.opendkim.mapping import DEFAULT_PATH, load

    if options.show_version:
        return _version()
    if options.query:
        return _query()
    path: Path | None = options.conf or (DEFAULT_PATH if DEFAULT_PATH.exists() else None)
    overrides, wrong = _overrides(options)
    if wrong:
        print(*wrong, sep="\n", file=sys.stderr)
        return EX_USAGE
    if options.extract:
        return _extract(path, options.extract)

    def load_conf() -> "ImportedConfig":
        return load(path, overrides, need_socket=not options.test, testing=bool(options.test))

    if options.check:
        return _check(load_conf())
    if options.test:
        return _test(load_conf(), options)
    return _serve(load_conf)


def _overrides(options: argparse.Namespace) -> "tuple[list[ConfSetting], list[Problem]]":
    """Return the options of the command line as settings, and what is wrong with them."""
    from gatekeeper.core.problem import Problem
    from gatekeeper.opendkim.conf import command_line_setting

    pairs = [(name, getattr(options, name)) for name, _, _ in _VALUES.values() if getattr(options, name) is not None]
    pairs += [(name, value) for name, value, _ in _FLAGS.values() if getattr(options, name)]
    found = [command_line_setting(name, value) for name, value in pairs]
    return [one for one in found if not isinstance(one, Problem)], [one for one in found if isinstance(one, Problem)]


def _version() -> int:
    from importlib.metadata import version

    print(f"gatekeeper {version('gatekeeper')}, as a replacement for OpenDKIM Filter v2.11.0")
    print("\tSupported signing algorithms:\n\t\trsa-sha256\n\t\ted25519-sha256")
    print("\tSupported canonicalization algorithms:\n\t\trelaxed\n\t\tsimple")
    return OK


def _extract(path: Path | None, name: str) -> int:
    from gatekeeper.core.problem import ConfigError
    from gatekeeper.opendkim.conf import read
    from gatekeeper.opendkim.options import OPTIONS, suggestion

    if name.lower() not in OPTIONS:
        print(f"unknown option {name!r}; {suggestion(name)}", file=sys.stderr)
        return EX_DATA
    settings, problems = read(path) if path else ([], [])
    if problems:
        raise ConfigError(problems)
    values = [setting.value for setting in settings if setting.option.name.lower() == name.lower()]
    print_lines(reversed(values))
    return OK if values else CONFIGURATION


def _check(imported: "ImportedConfig") -> int:
    """Print every warning to stderr.

    What would keep it from starting raises ConfigError, so that the exit status is 78, as in OpenDKIM; but not an
    address that is held, by the opendkim that is to be replaced. So does a key that cannot sign, as there.
    """
    from gatekeeper.app.plan import prepare
    from gatekeeper.daemon.obstacles import of_addresses

    config = imported.config
    in_the_way = [problem for problem in of_addresses(config, ("milter",)) if not problem.warning]
    for problem in prepare(config, thorough=True, found=in_the_way).warnings:
        print(problem, file=sys.stderr)
    if imported.pid_file is not None and not imported.pid_file.parent.is_dir():
        what = "the folder of PidFile is missing; a unit of Type=forking waits for the file"
        print(f"{imported.pid_file}: warning: {what}", file=sys.stderr)
    return OK


def _query() -> int:
    from gatekeeper.opendkim import query

    terminal = sys.stdin.isatty()
    try:
        if terminal:
            print(query.PROMPT, end="", flush=True)
        data = query.open_set(sys.stdin.readline())
        while line := _ask(query.NEXT if terminal else ""):
            print_lines(query.answers(data, [line]))
    except query.BadQuery as error:
        print(f"opendkim: {error}", file=sys.stderr)
        return EX_USAGE if str(error).startswith("invalid query") else EX_SOFTWARE
    print()
    return OK


def _ask(prompt: str) -> str:
    print(prompt, end="", flush=True)
    return sys.stdin.readline()


def _test(imported: "ImportedConfig", options: argparse.Namespace) -> int:
    """Print what would be done with each message if it came from 127.0.0.1."""
    import asyncio

    from gatekeeper.app import app
    from gatekeeper.app.plan import prepare
    from gatekeeper.core.request import Client, Request, Stage, parse_address
    from gatekeeper.diagnose import message_report

    mails = {}
    for name in filter(None, options.test.split(",")):
        try:
            mails[name] = message_report.Mail.read(sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes())
        except OSError as error:
            print(f"opendkim: {name}: {error.strerror}", file=sys.stderr)
            return EX_NO_INPUT
    client = Client(address=parse_address("127.0.0.1"), name="localhost")
    request = Request(stage=Stage.END_OF_MESSAGE, client=client)
    plan = prepare(imported.config)

    async def work() -> None:
        clock = time.time if options.time is None else lambda: float(options.time)
        opened = await app.open_app(plan, clock=clock)
        try:
            for name, mail in mails.items():
                report = await message_report.sign_or_verify(opened, request, mail)
                print(f"{name}:")
                if options.verbose:
                    print_lines(message_report.report_sentences(report))
                else:
                    print_lines(message_report.edit_sentences(report.edits))
        finally:
            await opened.close()

    asyncio.run(work())
    return OK


def _serve(load: "Callable[[], ImportedConfig]") -> int:
    from gatekeeper.daemon import supervisor
    from gatekeeper.daemon.background import in_background, write_pid_file
    from gatekeeper.daemon.short_lived import run_in_child

    def load_config() -> "Config":
        return load().config

    def how_to_run() -> tuple[Path | None, bool]:
        imported = load()
        return imported.pid_file, imported.background

    # In a child, since the file may hold keys, which are not for the process that serves (daemon/loading.py).
    pid_file, background = run_in_child(how_to_run)

    def serve(ready: Callable[[], None]) -> int:
        with write_pid_file(pid_file) as write:

            def serving(*_: object) -> None:
                write()
                ready()

            status = supervisor.run(load_config, serving, policy=False, detached=background)
        return EX_UNAVAILABLE if status == TEMPORARY else status

    return in_background(serve) if background else serve(lambda: None)


def import_opendkim(options: argparse.Namespace) -> int:
    """Write the TOML to OUT or stdout, and the report to stdout or, if the TOML goes there, to stderr.

    Returns 1 if anything is lost.
    """
    from gatekeeper.app.plan import prepare
    from gatekeeper.core.file_lock import changing
    from gatekeeper.opendkim import import_report, toml

    if str(options.out) in ("-", "/dev/stdout"):
        options.out = None
    imported = import_report.read(options.file)
    text = toml.write(imported)
    if options.out is None:
        sys.stdout.write(text)
    else:
        try:
            with changing(options.out) as file:
                file.replace(text.encode())
        except OSError as error:
            print(f"gatekeeper: cannot write {options.out}: {error.strerror}", file=sys.stderr)
            return TEMPORARY
    for line in import_report.lines(imported, prepare(imported.config), everything=options.all):
        print(line, file=sys.stdout if options.out else sys.stderr)
    return FINDING if import_report.unsupported(imported) else OK
