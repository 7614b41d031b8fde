# SPDX-License-Identifier: GPL-3.0-or-later
"""The time that one policy request may wait for the DNS, all its questions together.

It begins with the first question that has to wait. Once it is up, every question fails at once, as one that no server
has answered in time: the checks go on, and each does what it does about DNS trouble. So a slow name server costs a
bounded time, and never turns a deferral into a pass, as cutting off the whole decision would.

DNS lists have some time to themselves at the end: a sender whose own name servers are slow must not be able to use up
what the lists need to know him. For the same reason `when_slow` is called once an answer is slow to come: what will be
asked of others later is asked beside it.

What is remembered needs no time. A question that was cut off is not lost where there is a cache: it goes on there, and
who comes again finds its answer.
"""

import asyncio
from collections.abc import Callable

from gatekeeper.core.gather import finish, start
from gatekeeper.core.verdict import printable
from gatekeeper.dnsclient.resolver import Answer, DNSTimeout, Resolver, nothing_known

SECONDS = 5.5
"""For all questions of one request but those to DNS lists."""
SECONDS_WITH_LISTS = 7.5
"""For these, too, from the same beginning."""
SLOW = 0.5
"""After this an answer counts as slow."""


class RequestResolver:
    """Answers as `inner` does, as long as the time of one request lasts. Belongs on the event loop, but for `known`."""

    __slots__ = ("_began", "_inner", "_seconds", "known", "when_slow")

    def __init__(self, inner: Resolver, seconds: float = SECONDS) -> None:
        self._inner = inner
        self._seconds = seconds
        self._began: float | None = None
        self.known = getattr(inner, "known", nothing_known)
        self.when_slow: Callable[[], None] | None = None

    async def query(self, name: str, type: str) -> Answer:
        """Answer as Resolver.query does. Raises DNSTimeout as soon as the time is up."""
        if self._began is not None and self._left(self._seconds) <= 0 and self.known(name, type) is None:
            raise _late(name, type)
        # Without a clock where nothing waits: a table answers at once, however long its reader was asleep.
        question = start(self._inner.query(name, type))
        if question.error is not None:
            try:
                raise question.error
            finally:
                del question  # the error holds this frame, which must not hold the error
        if question.ended:
            answer: Answer = question.value
            return answer
        timer = asyncio.get_running_loop().call_later(SLOW, self._slow)
        try:
            async with asyncio.timeout(self._left(self._seconds)):
                answer = await finish(question)
        except TimeoutError:
            raise _late(name, type) from None
        finally:
            timer.cancel()
        return answer

    def _slow(self) -> None:
        begin, self.when_slow = self.when_slow, None
        if begin is not None:
            begin()

    def left_for_lists(self) -> float:
        """Return the seconds that DNS lists still have; the time begins, if it has not yet."""
        return self._left(self._seconds + SECONDS_WITH_LISTS - SECONDS)

    def _left(self, seconds: float) -> float:
        now = asyncio.get_running_loop().time()
        if self._began is None:
            self._began = now
        return self._began + seconds - now

    async def close(self) -> None:
        """Do nothing: `inner` has another owner."""


def _late(name: str, type: str) -> DNSTimeout:
    return DNSTimeout(f"{type} {printable(name)}: the time of this request is up")
