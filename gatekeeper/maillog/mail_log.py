# SPDX-License-Identifier: GPL-3.0-or-later
"""A relay's log as its commands see it: named files or what this machine has, opened, read and joined."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from gatekeeper.maillog.events import Event
from gatekeeper.maillog.files import LogError, LogFile, open_journal, open_log
from gatekeeper.maillog.programs import read_events
from gatekeeper.maillog.reader import Tally, read_lines
from gatekeeper.maillog.stories import Story, join

USUAL = (Path("/var/log/mail.log"), Path("/var/log/maillog"))
"""Where Debian's and Red Hat's syslog write about mail."""


class MailLog:
    """Some logs, read once: either by events() or by stories(). `tally` and `foreign` are right after that.

    `paths` may be empty: then the usual file is read, with what was rotated out of it yesterday, else the journal.
    Raises LogError if one of them cannot be opened.
    """

    def __init__(self, paths: Sequence[Path] = (), *, journal: bool = False) -> None:
        self.tally = Tally()
        self.foreign: Counter[str] = Counter()
        """Lines of programs that say nothing about mail, by tag."""
        self.heard = 0
        """How many lines told something about mail."""
        self._open = ExitStack()
        with ExitStack() as failed:
            failed.callback(self._open.close)
            self.files = [self._open.enter_context(log) for log in self._logs(paths, journal=journal)]
            failed.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def events(self, progress: Callable[[], None] = lambda: None) -> Iterator[Event]:
        """Yield what happened, in order of time; `progress` is called now and then."""
        for event in read_events(read_lines(self.files, self.tally, progress), self.foreign):
            self.heard += 1
            yield event

    def stories(
        self,
        progress: Callable[[], None] = lambda: None,
        *,
        received: bool = False,
        hear: Callable[[Event], None] | None = None,
    ) -> Iterator[Story]:
        """Yield the story of each mail, and of each session without one; `progress` is called now and then.

        With `received` a mail's story ends when it is in the queue, as in stories.join. `hear` is called with every
        event, also with those that belong to no story.
        """
        events = self.events(progress)
        return join(events if hear is None else _heard(events, hear), received=received)

    def _logs(self, paths: Sequence[Path], *, journal: bool) -> Iterator[LogFile]:
        for path in dict.fromkeys(paths):
            yield open_log(path)
        if journal:
            yield open_journal()
        elif not paths:
            usual = next((path for path in USUAL if path.exists()), None)
            if usual is None:
                try:
                    yield open_journal()
                except LogError:
                    names = " nor ".join(map(str, USUAL))
                    raise LogError(f"there is neither {names}, nor a journal here: name the log") from None
            else:
                yesterday = usual.with_name(f"{usual.name}.1")
                yield from (open_log(path) for path in (yesterday, usual) if path.exists())


def _heard(events: Iterator[Event], hear: Callable[[Event], None]) -> Iterator[Event]:
    for event in events:
        hear(event)
        yield event
