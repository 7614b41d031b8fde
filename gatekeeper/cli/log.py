# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands that read a relay's log: why, stats, backtest."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gatekeeper.cli.common import (
    FINDING,
    OK,
    USAGE,
    Add,
    add_dns,
    add_json,
    config_path,
    configured_resolver,
    print_json,
    print_lines,
    run_with_app,
)

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from gatekeeper.app.app import App
    from gatekeeper.diagnose.explain import NotingResolver
    from gatekeeper.maillog.mail_log import MailLog
    from gatekeeper.maillog.stories import Story


def add_to(add: Add) -> None:
    """Add the commands of this file."""
    _add_why(add("why", why, "tell the story of one mail from the log: who did what to it, and what became of it"))
    _add_backtest(add("backtest", backtest, "play a log through the configuration: what would be answered otherwise"))
    _add_stats(
        add("stats", stats, "count what became of all mail in a log: refused, delayed, signed, verified, and why")
    )


def _add_backtest(command: argparse.ArgumentParser) -> None:
    add_mail_logs(command)
    dns = command.add_mutually_exclusive_group()
    add_dns(dns)
    dns.add_argument("--no-dns", action="store_true", help="ask the DNS nothing; what depends on it is told as unknown")
    text = "the store whose state the log meets at its beginning, as in store.url (default: an empty one)"
    command.add_argument("--state", metavar="URL", help=text)
    add_json(command)


def add_mail_logs(command: argparse.ArgumentParser) -> None:
    """Add the logs of a relay to read, as positional arguments."""
    text = (
        "a log of Postfix and what is beside it, packed or not, in any order; - for standard input "
        "(default: /var/log/mail.log and its predecessor, else the journal)"
    )
    command.add_argument("logs", metavar="LOG", type=Path, nargs="*", help=text)
    command.add_argument("--journal", action="store_true", help="read the journal, beside the logs that are named")


def _add_why(command: argparse.ArgumentParser) -> None:
    text = "a queue id, a Message-ID, an address, a domain, a client, or the reference in a refusal"
    command.add_argument("what", metavar="WHAT", help=text)
    add_mail_logs(command)
    command.add_argument(
        "--last", metavar="N", type=int, default=20, help="how many stories to tell, the last ones (20)"
    )
    command.add_argument("--now", action="store_true", help="also say what would be answered now")
    add_dns(command)
    add_json(command)


def _add_stats(command: argparse.ArgumentParser) -> None:
    add_mail_logs(command)
    command.add_argument("--rows", metavar="N", type=int, default=15, help="how long a table may be (15)")
    output = command.add_mutually_exclusive_group()
    output.add_argument("--html", metavar="FILE", type=Path, help="write a page with pictures; - for standard output")
    output.add_argument("--mail", action="store_true", help="print a mail with the statistics, for sendmail -t in cron")
    add_json(output)


def why(options: argparse.Namespace) -> int:
    """Tell the stories that a log has of one mail, address or client."""
    from collections import deque

    from gatekeeper.evidence import why

    found: deque[Story] = deque(maxlen=max(1, options.last))
    count = 0
    is_about = why.finder(options.what)
    with open_logs(options) as (log, progress):
        for story in log.stories(progress):
            if is_about(story):
                found.append(story)
                count += 1
    if not tell_what_was_read(log):
        return FINDING
    if not count:
        print(f"gatekeeper: the log says nothing about {options.what!r}", file=sys.stderr)
        return FINDING
    stories = sorted(found, key=lambda story: story.events[0].at)
    if options.json:
        print_json([why.as_json(story) for story in stories])
        return OK
    if count > len(stories):
        print(f"{count} stories; these are the last {len(stories)} (--last N tells more)\n")
    for number, story in enumerate(stories):
        if number:
            print()
        print_lines(why.sentences(story))
    return _now(options, stories[-1]) if options.now else OK


def _now(options: argparse.Namespace, story: "Story") -> int:
    from gatekeeper.diagnose import explain
    from gatekeeper.evidence.again import sessions

    async def work(app: "App", resolver: "NotingResolver") -> int:
        for session in sessions(story):
            print("\nWhat would be answered now")
            print_lines(explain.sentences(await explain.explain(app, resolver, session, probe=options.dns is None)))
        return OK

    return run_with_app(options, work)


@contextmanager
def open_logs(options: argparse.Namespace) -> "Iterator[tuple[MailLog, Callable[[], None]]]":
    """Open the logs that the command line names; yields them with what shows progress while they are read.

    If one cannot be opened, says so and raises SystemExit(USAGE).
    """
    from gatekeeper.maillog.files import LogError
    from gatekeeper.maillog.mail_log import MailLog

    try:
        log = MailLog(options.logs, journal=options.journal)
    except LogError as error:
        print(f"gatekeeper: {error}", file=sys.stderr)
        raise SystemExit(USAGE) from None
    with log, _progress(log) as progress:
        yield log, progress


@contextmanager
def _progress(log: "MailLog") -> "Iterator[Callable[[], None]]":
    """Show on a terminal how much of the logs has been read; yields what to call now and then."""
    size = sum(file.size for file in log.files)
    if not sys.stderr.isatty() or size < 10_000_000:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("reading the log"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=size)
        yield lambda: bar.update(task, completed=sum(file.position for file in log.files))


def tell_what_was_read(log: "MailLog") -> bool:
    """Say on standard error what of the logs is odd or could not be read; False if they tell nothing about mail."""
    tally = log.tally
    said = [f"{name}: the rest cannot be read: {damage}" for name, damage in tally.damaged]
    odd = [
        f"{count} {what}"
        for count, what in (
            (tally.unreadable, "are no lines of a log"),
            (tally.too_long, "are too long"),
            (tally.backwards, "go back in time by more than an hour"),
        )
        if count
    ]
    if odd:
        said.append(f"of {tally.lines} lines {', '.join(odd)}")
    if len(tally.hosts) > 1:
        said.append(f"these are logs of several hosts: {_names(tally.hosts)}")
    if not tally.lines:
        said.append("the log is empty")
    elif not log.heard:
        said.append(f"the log tells nothing about mail; the programs in it: {_names(tally.programs) or 'none'}")
    for sentence in said:
        print(f"gatekeeper: {sentence}", file=sys.stderr)
    return log.heard > 0


def _names(counts: "Counter[str]") -> str:
    from gatekeeper.core.verdict import printable

    shown = [printable(name or "(no name)", 64) for name, _ in counts.most_common(5)]
    return ", ".join([*shown, *(["…"] if len(counts) > 5 else [])])


def stats(options: argparse.Namespace) -> int:
    """Count what became of all mail in a log."""
    from gatekeeper.evidence import page, tables
    from gatekeeper.evidence.statistics import Statistics

    found = Statistics()
    with open_logs(options) as (log, progress):
        for story in log.stories(progress):
            found.add(story)
    if not tell_what_was_read(log):
        return FINDING
    if options.json:
        print_json(tables.as_json(found, log.tally))
    elif options.html:
        return _write_page("".join(page.as_page(found, log.tally, options.rows)), options.html)
    else:
        if options.mail:
            subject = f"Mail, counted: {tables.headline(found, log.tally)}"
            print_lines((f"Subject: {subject}", "Auto-Submitted: auto-generated", "MIME-Version: 1.0"))
            print_lines(("Content-Type: text/plain; charset=utf-8", "Content-Transfer-Encoding: 8bit", ""))
        print_lines(tables.as_text(found, log.tally, options.rows))
    return OK


def _write_page(page: str, path: Path) -> int:
    """Write the page where not everybody can read it: names and addresses stand in it. Returns the exit status."""
    from gatekeeper.core import safe_files

    if str(path) == "-":
        print(page, end="")
        return OK
    try:
        safe_files.write(path, page.encode("utf-8", "replace"), mode=0o640)
    except OSError as error:
        print(f"gatekeeper: {path} cannot be written: {error.strerror}", file=sys.stderr)
        return USAGE
    return OK


def backtest(options: argparse.Namespace) -> int:
    """Play the mail of a log through the configuration, and tell what would have been answered otherwise."""
    import asyncio

    from gatekeeper.app.plan import prepare
    from gatekeeper.config import config_file
    from gatekeeper.dnsclient.caching import CachingResolver
    from gatekeeper.evidence import backtest
    from gatekeeper.stores.state_owner import acting_as_owner
    from gatekeeper.stores.store import Clock, Store
    from gatekeeper.stores.store_url import check_url, open_store

    path = config_path(options)
    plan = prepare(config_file.load(path) if path else config_file.defaults(), lenient=True)
    if options.state:
        try:
            check_url(options.state)
        except ValueError as error:
            print(f"gatekeeper: {error}", file=sys.stderr)
            return USAGE
    wrong = backtest.Wrong()

    async def state(clock: Clock) -> Store:
        with acting_as_owner(options.state, plan.config.user):
            return await open_store(options.state, clock, timeout=10.0, read_only=True)

    async def work(stories: "Iterator[Story]") -> backtest.Backtest:
        resolver = CachingResolver(
            backtest.NoDns() if options.no_dns else configured_resolver(options, plan.config.dns)
        )
        live = not options.no_dns and options.dns is None
        return await backtest.run(plan, stories, resolver, live=live, state=state if options.state else None)

    with open_logs(options) as (log, progress):
        test = asyncio.run(work(wrong.watch(log.stories(progress, received=True, hear=wrong.hear))))
    if not tell_what_was_read(log):
        return FINDING
    config = str(path) if path else ""
    if options.json:
        print_json(backtest.as_json(test, wrong, config))
    else:
        print_lines(backtest.sentences(test, wrong, config))
    return FINDING if test.hurt or wrong.found else OK
