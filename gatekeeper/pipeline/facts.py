# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known about one message or session: each fact is computed once, at the first question or ahead of it.

Facts are not opinions: SPF's `fail` is a fact, whether it refuses a mail is a check's business. A fact that DNS
trouble keeps from being known is a finding (`temperror`), not an exception. Knows neither libmilter nor sockets.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from gatekeeper.auth.arc import ArcFinding, ArcResult, ArcVerifier
from gatekeeper.auth.dkim import DkimFinding, DkimResult, DkimVerifier
from gatekeeper.auth.dmarc import DmarcFinding, DmarcResult, check_dmarc, discover, so_far
from gatekeeper.auth.domains import normal_domain
from gatekeeper.auth.iprev import IprevFinding, IprevResult, check_iprev
from gatekeeper.auth.results import ALL_METHODS, Method
from gatekeeper.auth.spf import SpfFinding, SpfResult, check_helo, check_mail_from
from gatekeeper.core.message import Header
from gatekeeper.core.request import Client, plain_address
from gatekeeper.dnsclient.resolver import RememberedOnly, Resolver, WouldWait, run_without_waiting

T = TypeVar("T")
Compute = Callable[[Resolver], Coroutine[Any, Any, T]]

GRACE = 2.0
"""Seconds that DMARC has longer than what it is made of: its records are mostly known by then."""
_LATE = "DNS took too long"


class Facts:
    """The facts about one message, each computed once, however many ask.

    What the resolver remembers completely is computed on the spot, in any thread and without an event loop (a task and
    a hop between threads cost as much as the fact). For the rest there is a task, which lives on when an asker gives
    up; `close` cancels what is not needed. Nobody waits for longer than `patience`: what is not known by then is
    `temperror`; what is known by then is told.

    Ahead of any question only what `methods` take is found out (DMARC takes SPF and DKIM): what is off asks nothing.

    `helo` and `sender` are None where they are not known yet; `receiver` is our host name, as SPF macros want it.
    Without an event loop a coroutine that would have to wait raises WouldWait; `start_*` and `close` belong on the
    loop.
    """

    def __init__(
        self,
        resolver: Resolver,
        *,
        client: Client,
        helo: str | None,
        sender: str | None,
        receiver: str,
        methods: Collection[Method] = ALL_METHODS,
        headers: Sequence[Header] | None = None,
        dkim: DkimVerifier | None = None,
    ) -> None:
        self.resolver = resolver
        self._client = client
        self._helo = helo
        self._sender = sender
        self._receiver = receiver
        self._methods = methods
        self._headers: Sequence[Header] | None = None
        self._verifier: DkimVerifier | None = None
        self._arc_verifier: ArcVerifier | None = None
        self._dmarc_so_far: dict[str, DmarcFinding] = {}
        self._remembered = RememberedOnly(resolver)
        self._known: dict[str, Any] = {}
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._deadline_future: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        if headers is not None and dkim is not None:
            self.add_message(headers, dkim)

    def add_message(self, headers: Sequence[Header], verifier: DkimVerifier) -> None:
        """Add the header, and the verifier that is fed with the body: known after the envelope, before the body."""
        self._headers, self._verifier = headers, verifier
        self._arc_verifier = ArcVerifier(headers, verifier.digests, now=verifier.now)

    async def iprev(self) -> IprevFinding:
        """Return whether the client's address has a name that leads back to it (RFC 8601 section 3)."""
        return await self._once("iprev", self._check_iprev, lambda: IprevFinding(IprevResult.TEMPERROR, reason=_LATE))

    async def spf(self) -> SpfFinding:
        """Return SPF of MAIL FROM; of HELO for the null sender."""
        return await self._once("spf", self._check_spf, self._late_spf)

    async def helo_spf(self) -> SpfFinding:
        """Return SPF of HELO."""
        if self._sender == "":
            return await self.spf()
        return await self._once("helo_spf", self._check_helo, lambda: replace(self._late_spf(), identity="helo"))

    async def dkim(self) -> tuple[DkimFinding, ...]:
        """Return the findings about the signatures; to be asked once the whole body has been fed."""
        return await self._once("dkim", self._check_dkim, self._dkim_so_far)

    async def arc(self) -> ArcFinding:
        """Return the finding about the ARC chain; to be asked once the whole body has been fed."""
        return await self._once(
            "arc", self._check_arc, lambda: ArcFinding(ArcResult.TEMPERROR, _LATE, remote_ip=self._remote_ip())
        )

    async def dmarc(self) -> DmarcFinding:
        """Return DMARC, from SPF and DKIM; to be asked once the whole body has been fed."""
        return await self._once("dmarc", self._check_dmarc, self._late_dmarc, GRACE)

    async def prefetch(self) -> None:
        """Ask the DNS for the keys of the signatures and the DMARC records of the author, while the body comes."""
        await self._once("prefetch", self._prefetch, lambda: None)

    def recall_envelope(self) -> bool:
        """Compute SPF and iprev if the resolver remembers all that they take; return whether it did. In any thread."""
        return all(self._recall(name, compute) for name, compute in self._of_envelope())

    def recall_message(self) -> bool:
        """Return whether the resolver remembers all that `prefetch` asks. In any thread."""
        return self._recall("prefetch", self._prefetch)

    def start_spf(self) -> None:
        """Begin with SPF, without waiting."""
        self._begin("spf", self._check_spf)

    def start_envelope(self) -> None:
        """Begin with what client and sender tell, SPF and iprev, without waiting."""
        for name, compute in self._of_envelope():
            self._begin(name, compute)

    def start_prefetch(self) -> None:
        """Begin `prefetch`, without waiting."""
        self._begin("prefetch", self._prefetch)

    def start_all(self) -> None:
        """Begin with all facts, without waiting; to be called once the whole body has been fed."""
        self.start_envelope()
        if self._sender and self._needs(Method.SPF):
            self._begin("helo_spf", self._check_helo)
        if self._needs(Method.DKIM, Method.DMARC):
            self._begin("dkim", self._check_dkim)
        if self._needs(Method.ARC):
            self._begin("arc", self._check_arc)

    def told(self) -> Iterator[tuple[str, str]]:
        """Yield what is known by now, as the log tells it; asks nothing. Several signatures stand behind each other."""
        for name, words in _WORDS:
            found = self._known.get(name)
            if found is None and (task := self._tasks.get(name)) and task.done() and not task.cancelled():
                found = None if task.exception() else task.result()
            if found is not None:
                yield name, words(found)

    def patience(self, seconds: float) -> None:
        """Wait from now on for at most `seconds`, for everything together."""
        self._timer = asyncio.get_running_loop().call_later(seconds, self._give_up)

    def close(self) -> None:
        """Cancel what is still being computed: nobody will ask."""
        if self._timer is not None:
            self._timer.cancel()
        tasks, self._tasks = self._tasks, {}
        for task in tasks.values():
            task.cancel()

    def _needs(self, *methods: Method) -> bool:
        """Return whether one of these is to be told."""
        return any(method in self._methods for method in methods)

    def _of_envelope(self) -> Iterator[tuple[str, Compute[Any]]]:
        """Yield the facts about client and sender that will be needed."""
        if self._needs(Method.SPF, Method.DMARC):
            yield "spf", self._check_spf
        if self._needs(Method.IPREV):
            yield "iprev", self._check_iprev

    def _recall(self, name: str, compute: Compute[T]) -> bool:
        """Compute the fact if the resolver remembers all that it takes; return whether it is known now."""
        if name in self._known:
            return True
        if name in self._tasks:
            return False
        try:
            self._known[name] = run_without_waiting(compute(self._remembered))
        except WouldWait:
            return False
        return True

    def _begin(self, name: str, compute: Compute[T]) -> None:
        if not self._recall(name, compute) and name not in self._tasks:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:
                raise WouldWait from None
            self._tasks[name] = loop.create_task(compute(self.resolver), name=f"fact {name}")

    async def _once(self, name: str, compute: Compute[T], late: Callable[[], T], grace: float = 0.0) -> T:
        """Return the fact, or what `late` says if there is none `grace` seconds after the time is up."""
        self._begin(name, compute)
        if name in self._known:
            known: T = self._known[name]
            return known
        task: asyncio.Task[T] = self._tasks[name]
        if task.done():
            return task.result()
        # one asker that gives up must not take the answer from the others, so nothing here cancels the task
        await asyncio.wait((task, self._deadline()), return_when=asyncio.FIRST_COMPLETED)
        if not task.done() and grace:
            await asyncio.wait((task,), timeout=grace)
        if not task.done():
            # Told once, told for good: the checks, the header and the log are about the same finding.
            self._known.setdefault(name, late())
            found: T = self._known[name]
            return found
        return task.result()

    def _deadline(self) -> asyncio.Future[None]:
        if self._deadline_future is None:
            self._deadline_future = asyncio.get_running_loop().create_future()
        return self._deadline_future

    def _give_up(self) -> None:
        if not self._deadline().done():
            self._deadline().set_result(None)

    def _late_spf(self) -> SpfFinding:
        return SpfFinding(
            SpfResult.TEMPERROR, domain=normal_domain((self._sender or "").rpartition("@")[2]), reason=_LATE
        )

    def _dkim_so_far(self) -> tuple[DkimFinding, ...]:
        assert self._verifier is not None
        return self._verifier.results_so_far()

    def _late_dmarc(self) -> DmarcFinding:
        return so_far(self._headers or (), self._dmarc_so_far, _LATE)

    async def _check_iprev(self, resolver: Resolver) -> IprevFinding:
        return await check_iprev(resolver, self._client.address)

    async def _check_spf(self, resolver: Resolver) -> SpfFinding:
        if self._sender is None:
            return SpfFinding(SpfResult.NONE, reason="the sender is not known yet")
        return await check_mail_from(
            resolver,
            address=self._client.address,
            helo=self._helo or "",
            sender=self._sender,
            receiver=self._receiver,
        )

    async def _check_helo(self, resolver: Resolver) -> SpfFinding:
        return await check_helo(resolver, address=self._client.address, helo=self._helo or "", receiver=self._receiver)

    async def _check_dkim(self, resolver: Resolver) -> tuple[DkimFinding, ...]:
        if self._verifier is None:
            return (DkimFinding(DkimResult.NONE, reason="the message is not known yet"),)
        return await self._verifier.results(resolver)

    async def _check_arc(self, resolver: Resolver) -> ArcFinding:
        if self._arc_verifier is None:
            return ArcFinding(ArcResult.NONE, "the message is not known yet")
        return replace(await self._arc_verifier.result(resolver), remote_ip=self._remote_ip())

    def _remote_ip(self) -> str:
        return "" if self._client.address is None else str(plain_address(self._client.address))

    async def _check_dmarc(self, resolver: Resolver) -> DmarcFinding:
        if self._headers is None:
            return DmarcFinding(DmarcResult.NONE, reason="the message is not known yet")
        self.start_spf()
        dkim, spf = await self.dkim(), await self.spf()
        return await check_dmarc(resolver, self._headers, spf, dkim, self._dmarc_so_far)

    async def _prefetch(self, resolver: Resolver) -> None:
        if self._headers is None or self._verifier is None or self._arc_verifier is None:
            return
        asking: list[Compute[None]] = []
        if self._needs(Method.DKIM, Method.DMARC):
            asking.append(self._verifier.fetch)
        if self._needs(Method.ARC):
            asking.append(self._arc_verifier.fetch)
        if self._needs(Method.DMARC):
            asking.append(partial(discover, headers=self._headers))
        if resolver is not self._remembered:
            await asyncio.gather(*(ask(resolver) for ask in asking))
            return
        for ask in asking:
            await ask(resolver)


def _iprev_words(found: IprevFinding) -> str:
    return str(found.result)


def _spf_words(found: SpfFinding) -> str:
    return f"{found.result}:{found.domain}" if found.domain else str(found.result)


def _dkim_words(found: Sequence[DkimFinding]) -> str:
    return ",".join(f"{one.result}:{one.domain}:{one.selector}" if one.domain else str(one.result) for one in found)


def _dmarc_words(found: DmarcFinding) -> str:
    if not found.domain:
        return str(found.result)
    return f"{found.result}:{found.domain}" + (f":{found.policy}" if found.result is DmarcResult.FAIL else "")


def _arc_words(found: ArcFinding) -> str:
    return f"{found.result}:{len(found.hops)}" if found.hops else str(found.result)


_WORDS: tuple[tuple[str, Callable[[Any], str]], ...] = (
    ("iprev", _iprev_words),
    ("spf", _spf_words),
    ("helo_spf", _spf_words),
    ("dkim", _dkim_words),
    ("dmarc", _dmarc_words),
    ("arc", _arc_words),
)
"""How the log tells each fact: the result, and behind colons whose it is."""
