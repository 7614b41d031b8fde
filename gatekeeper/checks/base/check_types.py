# SPDX-License-Identifier: GPL-3.0-or-later
"""The two types of check: a restriction of Postfix's, and a check of our own with a section of options.

Both satisfy `pipeline.check.Check`. A Postfix restriction is one callable that carries the arguments it was given in
its list; a check of our own is its options: a frozen model, each option documented where its field is declared and
nowhere else.
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
from gatekeeper.pipeline.check import asks_spf
from gatekeeper.pipeline.context import Context
from gatekeeper.stores.store import StoreError

Judge = Callable[[Request, Context], Awaitable[Verdict]]
"""The function that gives a restriction's verdict."""


class SourceLine(NamedTuple):
    """The place where something is written; `line` counts from 1, and 0 means the file as a whole."""

    file: str
    line: int = 0

    def problem(self, what: str, *, warning: bool = False) -> Problem:
        """Return a Problem at this place."""
        return Problem(self.file, self.line, what, warning)


@dataclass(frozen=True, slots=True)
class PostfixCheck:
    """One of Postfix's restrictions, ready to run; `name` is as written, with its arguments."""

    name: str
    judge: Judge
    needs: tuple[str, ...] = ()
    mode: Mode = Mode.ENFORCE

    @property
    def check(self) -> Judge:
        """The function that gives the restriction's verdict, under the name that the pipeline expects."""
        return self.judge

    @property
    def asks_spf(self) -> bool:
        """Whether the restriction may ask for SPF of the sender."""
        return asks_spf(self.judge)


class ConfiguredCheck(BaseModel):
    """A check of our own.

    Trouble with the store never decides anything: it is noted, and the check abstains.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    asks_spf: ClassVar[bool] = False

    mode: Mode = Field(
        default=Mode.ENFORCE,
        description="enforce: the verdict counts; observe: it is only logged; off: the check is not run",
    )

    async def check(self, request: Request, context: Context) -> Verdict:
        """Return the verdict; PASS with the reason `NAME.store` if the store does not answer."""
        try:
            return await self.judge(request, context)
        except StoreError as error:
            context.note("store", str(error) or type(error).__name__)
            return Verdict(Outcome.PASS, f"{self.name}.store")

    def queried_lists(self) -> Iterable[ListUse]:
        """Return the DNS lists that this check queries, so that they can be monitored."""
        return ()

    @abstractmethod
    async def judge(self, request: Request, context: Context) -> Verdict:
        """Return the verdict on `request`. May raise StoreError."""
