# SPDX-License-Identifier: GPL-3.0-or-later
"""What has been heard of a message for certain, and what becomes of it when the code that judges it has failed.

The rule: a message counts as heard only if every callback of it has come back. A callback takes that away while it
runs and gives it back at its end, so that whatever ends it early (an exception, the want of memory, one that nobody
has thought of) leaves the message unheard. No handler has to run for that.

A message that was not heard goes on unjudged, and `milter.on_error` says how. Fields that speak in our name never go
on with it, because what comes after us believes them: they are removed, found in what is kept here, whatever became of
the session; where not all fields of the header were heard, or their removal fails, the message has to wait.

Knows no libmilter, and nothing that can fail but what it is here for.
"""

from collections.abc import Collection

from gatekeeper.config.config_file import Config
from gatekeeper.core.message import Header
from gatekeeper.core.verdict import reject
from gatekeeper.milter.edits import Edits, forged_results

_RESULTS = "authentication-results"
_TRY_AGAIN = reject("milter.unjudged", "451", "4.3.0", "This message could not be checked here; please try again later")


class Stretch:
    """A stretch of callbacks, and which of them has not come back: the one that runs or the first that failed."""

    __slots__ = ("unfinished",)

    def __init__(self, first: str) -> None:
        self.unfinished = first


class Heard:
    """What has been heard on one connection.

    `client` is the stretch before the messages, `message` that of the message under way; the first callback of a
    stretch says at its end `unfinished = ""`. `ended` tells whether the end of the header was heard, `fields` whether
    all fields before it were; `results` are its Authentication-Results fields.
    """

    __slots__ = ("client", "ended", "fields", "message", "queue_id", "results")

    def __init__(self) -> None:
        self.client = Stretch("connect")
        self.begin()

    def begin(self) -> None:
        """Forget the message before."""
        self.message = Stretch("mail")
        self.fields = True
        self.ended = False
        self.results: list[Header] = []
        self.queue_id = ""

    def field(self, name: str, value: bytes) -> None:
        """Keep a field of the header if it is one that may have to go."""
        if name.lower() == _RESULTS:
            self.results.append(Header(b"Authentication-Results", value))

    @property
    def missing(self) -> str:
        """The callback for want of which the session does not know all of the message; empty if it does."""
        if not self.fields:
            return "header"
        return self.client.unfinished or self.message.unfinished or ("" if self.ended else "end_of_header")


class Unjudged:
    """What becomes of the messages that are not judged, as `config` wants it; `authserv_id` is our name."""

    def __init__(self, config: Config, authserv_id: str) -> None:
        verify = config.verify
        self._observing = config.mode != "enforce"
        self._accepting = config.milter.on_error == "accept"
        self._removing = verify.remove_results != "none"
        self._names = (authserv_id, *verify.remove_results_of)
        self._methods: Collection[str] | None = verify.methods if verify.remove_results == "told" else None

    def edits(self, heard: Heard | None) -> Edits:
        """Return what is to be done with a message of which no edit has been made yet."""
        if self._observing:
            return Edits()
        if not self._accepting or heard is None or not heard.fields:
            return Edits(reply=_TRY_AGAIN)
        return Edits(removals=forged_results(heard.results, self._names, self._methods) if self._removing else ())

    def edits_half_made(self, *, removed: bool) -> Edits:
        """Return what is to be done with a message whose edits have failed; `removed` if all removals were made."""
        return Edits() if self._observing or (self._accepting and removed) else Edits(reply=_TRY_AGAIN)
