# SPDX-License-Identifier: GPL-3.0-or-later
"""What a check may use besides the request: the world, passed in, and a place for what it finds out."""

import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

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
When = Callable[[Decision], bool]


@dataclass(slots=True, kw_only=True)
class Context:
    """What a check may use besides the request: the world, passed in, and a place for what it finds out.

    `keys` makes store keys; a check in observe mode is given keys of its own, so that its state is kept apart. `alone`
    is what this process remembers by itself, for what must go on while the store is gone.
    """

    site: Site
    resolver: Resolver
    store: Store
    clock: Clock
    keys: Keys
    facts: Facts
    alone: Store = field(default_factory=MemoryStore)
    lists: ListQueries = None  # type: ignore[assignment]  # __post_init__ makes one where none is given
    warn_only: bool = False
    """True while `warn_if_reject` asks: what is refused is written down and let pass."""
    doubts: list[str] = field(default_factory=list)
    """What speaks against the client without refusing it, for the checks that come after: "is listed on …"."""
    _notes: list[Note | LazyNote] = field(default_factory=list)
    _callbacks: list[tuple[Callback, When | None]] = field(default_factory=list)
    worked_out: dict[object, Any] = field(default_factory=dict)
    """What a check has worked out when it announced, for when it is asked."""

    def __post_init__(self) -> None:
        if self.lists is None:
            self.lists = ListQueries(ListMonitor(self.resolver))

    def note(self, what: str, found: str) -> None:
        """Write down what was found, where it is found out; explain, logs and reports read it."""
        self._notes.append(Note(what, found))

    def note_later(self, tell: LazyNote) -> None:
        """The same, for what is found out with each request: put into words only where somebody reads it."""
        self._notes.append(tell)

    def after(self, callback: Callback, when: When | None = None) -> None:
        """Call `callback` with the decision once it is known: keep or give back a reservation, record a triplet. With
        `when` only if that says so, which costs nothing where it does not.
        """
        self._callbacks.append((callback, when))

    def has_side_effects(self, decision: Decision) -> bool:
        """Whether something is to be done about this decision."""
        return any(when is None or when(decision) for _, when in self._callbacks)

    def take_notes(self) -> tuple[Note | LazyNote, ...]:
        """The notes since the last call."""
        if not self._notes:
            return ()
        notes, self._notes = tuple(self._notes), []
        return notes

    async def settle(self, decision: Decision) -> None:
        """Run the side effects: what they write goes out together. One that fails is logged and stops no other; what
        the store does not take is left undone, and the guard has said so already (stores/circuit_breaker.py).
        """
        callbacks, self._callbacks = self._callbacks, []
        wanted = [callback(decision) for callback, when in callbacks if when is None or when(decision)]
        if wanted:
            for error in await gather_in_task(wanted):
                if isinstance(error, Exception) and not isinstance(error, StoreError):
                    logger.error("a side effect failed", exc_info=error)
