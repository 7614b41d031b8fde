# SPDX-License-Identifier: GPL-3.0-or-later
"""What a check may use besides the request: an immutable view of the world, and a journal for what it finds out.

Nothing in a Context is replaced while a request is decided. A check that is to see something else (the store with what
was read ahead, keys of its own in observe mode, `warn_if_reject`) gets a Context made for it by `_replace`; all views
of one request share its Journal.
"""

import logging
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, Self

from gatekeeper.core.gather import gather_in_task
from gatekeeper.core.verdict import Decision, LazyNote, Note
from gatekeeper.dnsclient.resolver import Resolver
from gatekeeper.dnslists.monitor import ListMonitor
from gatekeeper.dnslists.queries import ListQueries
from gatekeeper.pipeline.facts import Facts
from gatekeeper.pipeline.site import Site
from gatekeeper.stores.memory import MemoryStore
from gatekeeper.stores.store import Clock, Keys, Store, StoreError

logger = logging.getLogger(__name__)

Callback = Callable[[Decision], Coroutine[Any, Any, object]]
"""A side effect: what is to be done once the decision is known."""
When = Callable[[Decision], bool]
"""Tells of a decision whether a side effect is wanted, which costs nothing where it is not."""


class Journal:
    """What the checks of one request write down for those that come after them, for people and for after the answer."""

    __slots__ = ("callbacks", "memo", "notes", "suspicions")

    def __init__(self) -> None:
        self.notes: list[Note | LazyNote] = []
        """What was found out since the last step."""
        self.callbacks: list[tuple[Callback, When | None]] = []
        """The side effects, in order."""
        self.suspicions: list[str] = []
        """What speaks against the client without refusing it, for the checks that come after: "is listed on …"."""
        self.memo: dict[object, Any] = {}
        """What a check has computed when it announced what it will read, kept for when it is asked."""

    def take_notes(self) -> tuple[Note | LazyNote, ...]:
        """Return the notes since the last call."""
        if not self.notes:
            return ()
        notes, self.notes = tuple(self.notes), []
        return notes


class Context(NamedTuple):
    """The world as one check sees it.

    `keys` makes store keys; a check in observe mode is given keys of its own, so that its state is kept apart. `alone`
    is what this process remembers by itself, for what must go on while the store is gone. While `warn_only` is set
    (`warn_if_reject`), what is refused is written down and let pass.
    """

    site: Site
    resolver: Resolver
    store: Store
    clock: Clock
    keys: Keys
    facts: Facts
    alone: Store
    lists: ListQueries
    journal: Journal
    warn_only: bool = False

    @classmethod
    def of(
        cls,
        *,
        site: Site,
        resolver: Resolver,
        store: Store,
        clock: Clock,
        keys: Keys,
        facts: Facts,
        alone: Store | None = None,
        lists: ListQueries | None = None,
    ) -> Self:
        """Return the context of a new request; without `alone` and `lists` it has its own."""
        alone = alone if alone is not None else MemoryStore(clock)
        lists = lists if lists is not None else ListQueries(ListMonitor(resolver))
        return cls(site, resolver, store, clock, keys, facts, alone, lists, Journal())

    def note(self, what: str, found: str) -> None:
        """Write down what was found, where it is found out; `explain`, logs and reports read it."""
        self.journal.notes.append(Note(what, found))

    def note_later(self, tell: LazyNote) -> None:
        """Write down what is found out with each request, to be put into words only where somebody reads it."""
        self.journal.notes.append(tell)

    def after(self, callback: Callback, when: When | None = None) -> None:
        """Call `callback` with the decision once it is known, and with `when` only if that agrees.

        This is how a check keeps or gives back what it has counted, or records a triplet. What is only observed has
        state of its own, which goes by what would have been decided: else it would soon judge another world.
        """
        if self.keys.prefix:
            self.journal.callbacks.append(
                (
                    lambda decision: callback(decision.as_judged),
                    None if when is None else lambda decision: when(decision.as_judged),
                )
            )
        else:
            self.journal.callbacks.append((callback, when))

    def has_side_effects(self, decision: Decision) -> bool:
        """Return whether something is to be done about this decision."""
        return any(when is None or when(decision) for _, when in self.journal.callbacks)

    async def settle(self, decision: Decision) -> None:
        """Run the side effects; what they write to the store goes out together.

        One that fails is logged and stops no other. What the store does not take is left undone: the circuit breaker
        has said so already (stores/circuit_breaker.py).
        """
        callbacks, self.journal.callbacks = self.journal.callbacks, []
        wanted = [callback(decision) for callback, when in callbacks if when is None or when(decision)]
        if wanted:
            for error in await gather_in_task(wanted):
                if isinstance(error, Exception) and not isinstance(error, StoreError):
                    logger.error("a side effect failed", exc_info=error)
