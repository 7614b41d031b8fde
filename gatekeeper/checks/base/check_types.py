# SPDX-License-Identifier: GPL-3.0-or-later
"""The two shapes of a check: a word of Postfix's, and an opinion of our own with a section of options.

Both satisfy `pipeline.Check`. A word is one callable and carries what it was given in its list; an opinion is its
options: a frozen model whose fields are documented here and nowhere else.
"""

from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from gatekeeper.core.problem import Problem
from gatekeeper.core.request import Request
from gatekeeper.core.verdict import Mode, Outcome, Verdict
from gatekeeper.dnslists.monitor import ListUse
from gatekeeper.pipeline.context import Context
from gatekeeper.stores.store import StoreError

Judge = Callable[[Request, Context], Awaitable[Verdict]]
"""What every restriction comes down to."""


class SourceLine(NamedTuple):
    """Where something is written: `line` counts from 1, 0 is the file as a whole."""

    file: str
    line: int = 0

    def problem(self, what: str, *, warning: bool = False) -> Problem:
        """A mistake in this place."""
        return Problem(self.file, self.line, what, warning)


@dataclass(frozen=True, slots=True)
class PostfixCheck:
    """One of Postfix's restrictions, ready to be asked. `name` is as written, with its arguments."""

    name: str
    judge: Judge
    needs: tuple[str, ...] = ()
    mode: Mode = Mode.ENFORCE

    @property
    def check(self) -> Judge:
        """What gives the restriction's verdict."""
        return self.judge


class ConfiguredCheck(BaseModel):
    """A check of our own. Trouble with the store never decides anything: it is noted, and the check abstains."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()

    mode: Mode = Field(
        default=Mode.ENFORCE,
        description="enforce: the verdict counts; observe: it is only written down; off: it is not asked for",
    )

    async def check(self, request: Request, context: Context) -> Verdict:
        """The verdict; PASS with the reason `NAME.store` if the store does not answer."""
        try:
            return await self.judge(request, context)
        except StoreError as error:
            context.note("store", str(error) or type(error).__name__)
            return Verdict(Outcome.PASS, f"{self.name}.store")

    def lists_asked(self) -> Iterable[ListUse]:
        """The DNS lists that it asks, to be watched."""
        return ()

    @abstractmethod
    async def judge(self, request: Request, context: Context) -> Verdict:
        """The opinion itself. May raise StoreError."""
