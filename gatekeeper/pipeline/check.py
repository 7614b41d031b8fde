# SPDX-License-Identifier: GPL-3.0-or-later
"""What the pipeline asks of a check."""

from collections.abc import Awaitable
from typing import Protocol, runtime_checkable

from gatekeeper.core.request import Request
from gatekeeper.core.verdict import Mode, Verdict
from gatekeeper.pipeline.context import Context
from gatekeeper.stores.store import ReadAhead


@runtime_checkable
class Check(Protocol):
    """One opinion. `name` is the word of the restriction list; options are fields of the implementing model.

    `needs` names the Request attributes (`helo`, `sender`, `recipient`) without which the check abstains.
    """

    @property
    def name(self) -> str: ...
    @property
    def mode(self) -> Mode: ...
    @property
    def needs(self) -> tuple[str, ...]: ...

    def check(self, request: Request, context: Context, /) -> Awaitable[Verdict]:
        """Return the opinion. May raise; the pipeline then takes it as PASS."""
        ...


@runtime_checkable
class Announcing(Check, Protocol):
    """A check that can announce what it will read from the store, for one round trip a request."""

    def announce(self, request: Request, context: Context) -> ReadAhead | None:
        """Return what `check` will read, as far as that is known without waiting; None for nothing."""
        ...


def asks_spf(asking: object) -> bool:
    """Return whether a check, or what it is made of, may ask for SPF of the sender: it says so as `asks_spf`.

    Where the DNS is slow, SPF is begun ahead of the check, and for no other (App.hurried_facts).
    """
    return bool(getattr(asking, "asks_spf", False))
