# SPDX-License-Identifier: GPL-3.0-or-later
"""The DNS lookups that Postfix's restrictions share: one query after another, first answer wins (dns_lookup(3)).

Unlike Postfix's, several that are slow are waited for together (`Lookups`); the answers mean the same.
"""

import asyncio
from functools import partial
from types import TracebackType
from typing import Self

from gatekeeper.core.verdict import printable
from gatekeeper.dnsclient.names import to_name, to_text
from gatekeeper.dnsclient.resolver import MX, Answer, DNSError, known_answer
from gatekeeper.dnsclient.resolver import query_or_error as resolve
from gatekeeper.pipeline.context import Context
from gatekeeper.postfix.hostname_syntax import is_address, is_hostname

Question = tuple[str, str]
"""A name and a type."""
HURRY = 0.1
"""Seconds after which an answer counts as slow."""


async def query_dns(context: Context, name: str, type: str) -> Answer | None:
    """Return the answer and note it; None if DNS did not give one."""
    found = known_answer(context.resolver, name, type) or await resolve(context.resolver, name, type)
    return _noted(context, name, type, found)


def _noted(context: Context, name: str, type: str, found: Answer | DNSError) -> Answer | None:
    if isinstance(found, DNSError):
        context.note(_describe_query(name, type), f"no answer: {str(found) or found.__class__.__name__}")
        return None
    context.note_later(partial(_describe, name, type, found))
    return found


def _describe(name: str, type: str, answer: Answer) -> tuple[str, str]:
    return _describe_query(name, type), _describe_answer(answer)


def _describe_query(name: str, type: str) -> str:
    return f"{type} {printable(name, 255)}"


def _describe_answer(answer: Answer) -> str:
    if answer.records:
        return ", ".join(_describe_record(record) for record in answer.records[:8])
    return "no data" if answer.exists else "no such name"


class Lookups:
    """Questions that belong together, to be used in a `with` block: what is still asked at its end is given up.

    Each is asked when it is needed. But once one has no answer within HURRY seconds, all that are left are asked at
    once: a slow name server costs its time once, and a quick one is asked nothing in vain.
    """

    __slots__ = ("_context", "_noted", "_questions", "_tasks")

    def __init__(self, context: Context, *questions: Question) -> None:
        self._context = context
        self._questions = questions
        self._tasks: dict[Question, asyncio.Task[Answer | DNSError]] = {}
        self._noted: set[Question] = set()

    async def answer(self, name: str, type: str) -> Answer | None:
        """Return one answer, as query_dns does."""
        return self._note(*await self._first((name, type)))

    async def any_exist(self, *questions: Question) -> bool | None:
        """Return whether one of `questions` has records; None if DNS trouble hides it.

        As in Postfix a failing query does not matter once another one brings records; nor does a slow one. A null MX is
        no record.
        """
        trouble = False
        left = [*questions]
        while left:
            question, found = await self._first(*left)
            left.remove(question)
            answer = self._note(question, found)
            if answer is None:
                trouble = True
            elif answer.records and not is_null_mx(answer):
                return True
        return None if trouble else False

    async def _first(self, *questions: Question) -> tuple[Question, Answer | DNSError]:
        """Return one of `questions` with its answer: the one that is known, or else known first."""
        for question in questions:
            found = self._known(question)
            if found is not None:
                return question, found
        await asyncio.wait((self._ask(questions[0]),), timeout=HURRY)
        if not self._tasks[questions[0]].done():
            for question in self._questions:
                self._ask(question)
            await asyncio.wait([self._ask(question) for question in questions], return_when=asyncio.FIRST_COMPLETED)
        return next((question, task.result()) for question in questions if (task := self._ask(question)).done())

    def _known(self, question: Question) -> Answer | DNSError | None:
        task = self._tasks.get(question)
        if task is not None and task.done():
            return task.result()
        return known_answer(self._context.resolver, *question)

    def _ask(self, question: Question) -> asyncio.Task[Answer | DNSError]:
        task = self._tasks.get(question)
        if task is None:
            task = self._tasks[question] = asyncio.create_task(resolve(self._context.resolver, *question))
        return task

    def _note(self, question: Question, found: Answer | DNSError) -> Answer | None:
        if question in self._noted:
            return found if isinstance(found, Answer) else None
        self._noted.add(question)
        return _noted(self._context, *question, found)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for task in self._tasks.values():
            task.cancel()


def can_be_asked(context: Context, name: str) -> bool:
    """Return whether `name` is a host name; anything else (a bare address, say) does not exist and is not looked up."""
    if is_hostname(name):
        return True
    context.note(f"name {printable(name, 255)}", "is not a host name")
    return False


def a_label(domain: str) -> str:
    """Return `domain` as the DNS has it: lower case, U-labels as A-labels; unchanged if it can never be in the DNS."""
    if domain.isascii():
        return domain.lower()
    name = to_name(domain)
    return domain if name is None else to_text(name)


def is_null_mx(answer: Answer) -> bool:
    """Return whether one of the records is the null MX (RFC 7505); as in Postfix, even beside real ones it counts."""
    return any(isinstance(record, MX) and not record.host for record in answer.records)


def server_names(answer: Answer) -> tuple[str, ...]:
    """Return the names in MX or NS records, without those that Postfix drops as malformed (valid_rr_name()).

    An address in place of a name is kept.
    """
    names = [record.host if isinstance(record, MX) else str(record) for record in answer.records]
    return tuple([name for name in names if is_hostname(name) or is_address(name)])


def _describe_record(record: object) -> str:
    if isinstance(record, MX):
        return f"{record.preference} {printable(record.host, 255) or '.'}"
    return printable(record.decode("ascii", "replace") if isinstance(record, bytes) else str(record), 120)
