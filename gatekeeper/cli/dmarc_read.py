# SPDX-License-Identifier: GPL-3.0-or-later
"""The command dmarc read: aggregate reports from wherever they are, summed up.

What cannot be read is named on stderr with its place, and keeps nothing else from being read.
"""

import argparse
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from gatekeeper.cli.common import FINDING, OK, USAGE, Add, add_json, print_json, print_lines

if TYPE_CHECKING:
    from gatekeeper.reports.summary import Summaries

_MAX_NAMED = 1000  # lines about what cannot be read
_MAX_SHOWN = 100  # domains that are shown to people


def add_to(add: Add) -> None:
    """Add the command of this file."""
    command = add("dmarc read", dmarc_read, "sum up aggregate reports: who sends as us, is a stricter policy safe")
    text = "reports: XML, gzip, zip, a mail with one, an mbox, a Maildir or another folder; - for standard input"
    command.add_argument("files", metavar="FILE", type=Path, nargs="+", help=text)
    text = "only reports on this domain count; may be repeated"
    command.add_argument("--domain", metavar="DOMAIN", action="append", default=[], type=_domain, help=text)
    text = "an address, or a domain that authenticates, which forges mail from you; may be repeated"
    command.add_argument("--not-ours", metavar="NAME", action="append", default=[], type=_sender_name, help=text)
    add_json(command)


def dmarc_read(options: argparse.Namespace) -> int:
    """Print a summary for each domain.

    The status is 1 if something could not be read as a report, 2 if a file could not be opened.
    """
    from datetime import UTC, datetime

    from gatekeeper.reports.advice import as_json, sentences
    from gatekeeper.reports.summary import Summaries

    summaries = Summaries(datetime.now(UTC), domains=options.domain, not_ours=options.not_ours)
    status = _Reading(options, summaries).read_all()
    found = summaries.all()
    if options.json:
        print_json([as_json(summary) for summary in found])
        return status
    for summary in found[:_MAX_SHOWN]:
        print_lines(sentences(summary))
    if len(found) > _MAX_SHOWN:
        print(f"… and {len(found) - _MAX_SHOWN} more domains: name yours with --domain")
    return status


def _domain(text: str) -> str:
    """Return a domain in the form that reports have. Raises ArgumentTypeError."""
    from gatekeeper.auth.domains import normal_domain

    if domain := normal_domain(text.removesuffix(".")):
        return domain
    raise argparse.ArgumentTypeError(f"{text!a} is not a valid domain")


def _sender_name(text: str) -> str:
    """Return an address or a domain in the form that reports have. Raises ArgumentTypeError."""
    from gatekeeper.core.request import parse_address

    address = parse_address(text)
    return _domain(text) if address is None else str(address)


class _Reading:
    """Reads what the command line names into `summaries`."""

    def __init__(self, options: argparse.Namespace, summaries: "Summaries") -> None:
        self._options = options
        self._summaries = summaries
        self._our_name: str | None = None
        self._status = OK
        self._named = 0
        self._reports = 0

    def read_all(self) -> int:
        """Read everything and return the exit status."""
        for path in self._options.files:
            for file in _files(path):
                self._try(file, is_named=file == path)
        if self._named > _MAX_NAMED:
            print(f"gatekeeper: {self._named - _MAX_NAMED} more lines like these are not shown", file=sys.stderr)
        if self._reports and sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)
        return self._status

    def _try(self, file: Path, *, is_named: bool) -> None:
        try:
            if str(file) == "-":
                self._read("-", sys.stdin.buffer.read)
                return
            with _open(file, is_named=is_named) as opened:
                self._read(str(file), opened.read)
        except OSError as error:
            self._name(f"cannot read {_shown(str(file))}: {error.strerror or error}", USAGE)

    def _read(self, file: str, read: Callable[[int], bytes]) -> None:
        from gatekeeper.reports.aggregate import read_reports
        from gatekeeper.reports.unpack import Unread, documents_of_file

        for found in read_reports(documents_of_file(read), self._sender):
            if isinstance(found, Unread):
                self._name(f"{_shown(file)}: {found}", FINDING)
                continue
            place, report = found
            self._reports += 1
            if self._reports % 100 == 0 and sys.stderr.isatty():
                print(f"\r{self._reports} reports read", end="", file=sys.stderr)
            remark = self._summaries.add(report)
            for what in (*report.remarks, *([remark] if remark else [])):
                self._name(f"{_shown(file)}: {Unread(place, what)}", FINDING)

    def _name(self, line: str, status: int) -> None:
        self._status = max(self._status, status)
        self._named += 1
        if self._named <= _MAX_NAMED:
            print(f"gatekeeper: {line}", file=sys.stderr)

    def _sender(self, header: bytes) -> str | None:
        """Return the domain that is proven to have sent a mail, as in reports/sender.py."""
        from gatekeeper.reports.sender import proven_sender

        if b"authentication-results" not in header.lower():
            return None
        if self._our_name is None:
            self._our_name = self._configured_name()
        return proven_sender(header, self._our_name)

    def _configured_name(self) -> str:
        """Return the name in which our milter writes its results, and nobody else can.

        Empty if there is none, because it does not judge DMARC or lets forged fields in, or if the configuration
        cannot be read.
        """
        from gatekeeper.config import config_file
        from gatekeeper.core.problem import ConfigError

        path = config_file.find(self._options.config)
        try:
            config = config_file.load(path) if path else config_file.defaults()
        except ConfigError as error:
            print(f"{error}\ngatekeeper: so nobody is proven to have sent a report", file=sys.stderr)
            return ""
        verify = config.verify
        judges = config.mode == "enforce" and "v" in config.milter.mode and "dmarc" in verify.methods
        return (config.authserv_id or config.hostname) if judges and verify.remove_results != "none" else ""


def _files(path: Path) -> Iterator[Path]:
    """Yield the files to read: of a Maildir its mails, of another folder all files in and below it.

    What begins with a dot is passed over, and no symbolic link leads into another folder.
    """
    if not os.path.isdir(path):  # unlike Path.is_dir(), it does not fail where we may not look
        yield path
        return
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        try:
            found = sorted(Path(entry) for entry in os.scandir(folder) if entry.name[0] != ".")
        except OSError:
            yield folder  # opening it will say why
            continue
        inner = [one for one in found if os.path.isdir(one) and not one.is_symlink()]
        if {"new", "cur"} <= {one.name for one in inner}:
            waiting += [one for one in inner if one.name in ("new", "cur")]
            continue
        waiting += reversed(inner)
        yield from (one for one in found if os.path.isfile(one))


def _open(file: Path, *, is_named: bool) -> BinaryIO:
    """Open a file. Raises OSError.

    A file that is not named but found in a folder may be anybody's, and must not keep us waiting as a FIFO does.
    """
    opened = open(file, "rb", opener=lambda name, flags: os.open(name, flags | (0 if is_named else os.O_NONBLOCK)))  # noqa: SIM115  # returned
    if not is_named and not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
        opened.close()
        raise OSError("it is not a file")
    return opened


def _shown(name: str) -> str:
    """Return a file's name as it may be shown: in a Maildir, whoever sent a mail has a part in it."""
    return "".join(character if character.isprintable() else "?" for character in name)
