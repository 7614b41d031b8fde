# SPDX-License-Identifier: GPL-3.0-or-later
"""Turns a Plan into an App: one process's resolver, store and pipelines at work. Every front door asks an App.

`open_app` runs in a worker after it has dropped its privileges, and opens what a process has for itself.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import lru_cache

from gatekeeper.app.plan import Plan
from gatekeeper.auth.dkim import DkimVerifier
from gatekeeper.checks.authentication.report_counter import ReportCounter
from gatekeeper.checks.limits.connections import Connections
from gatekeeper.checks.tables.sender_proof import ProofRecorder
from gatekeeper.core.message import Header
from gatekeeper.core.request import Request, Stage
from gatekeeper.core.verdict import Decision
from gatekeeper.dnsclient.caching import CachingResolver
from gatekeeper.dnsclient.live import LiveResolver
from gatekeeper.dnsclient.resolver import Resolver
from gatekeeper.dnsclient.time_limit import RequestResolver
from gatekeeper.dnslists.monitor import ListMonitor
from gatekeeper.dnslists.queries import ListQueries
from gatekeeper.pipeline.context import Context
from gatekeeper.pipeline.facts import Facts
from gatekeeper.pipeline.pipeline import CLIENT, OBSERVED, Pipeline
from gatekeeper.pipeline.site import Site
from gatekeeper.stores.memory import MemoryStore
from gatekeeper.stores.store import Clock, Keys, Store
from gatekeeper.stores.store_url import open_store

logger = logging.getLogger(__name__)

ALONE = 10_000
"""Counters, and tokens of messages, that a process keeps for itself while the store is gone: 12 MB."""


_LATE = {Stage.DATA: "data_restrictions", Stage.END_OF_MESSAGE: "end_of_data_restrictions"}
"""The lists that are empty unless somebody writes them."""


class App:
    """One process's world: who answers DNS, where state is, and what was planned."""

    def __init__(
        self, plan: Plan, resolver: Resolver, store: Store, clock: Clock = time.time, lists: ListMonitor | None = None
    ) -> None:
        self.plan = plan
        self.resolver = resolver
        self.store = store
        self.clock = clock
        self._alone = MemoryStore(clock, most=ALONE)
        self._keys = lru_cache(maxsize=4)(Keys)
        self.connections = Connections(plan.limiter, store, self._alone)
        self._connect = Pipeline({CLIENT: (self.connections,)}, plan.config.mode == "observe")
        self.lists = lists or ListMonitor(resolver, timeout=plan.config.dns.list_timeout, uses=plan.lists)
        self._watching: asyncio.Task[None] | None = None
        self._asked_in_vain: set[tuple[str, Stage]] = set()
        checks = (check for of_list in plan.milter_pipeline.lists.values() for check in of_list)
        self.keeps_proofs = any(isinstance(check, ProofRecorder | ReportCounter) for check in checks)
        """Whether judging a message writes to the store. If not, judging never waits for the store."""

    @property
    def site(self) -> Site:
        """What this relay is."""
        return self.plan.site

    def facts(self, request: Request, resolver: Resolver | None = None) -> Facts:
        """Return what can be known about `request`, nothing of it asked yet."""
        return Facts(
            resolver or self.resolver,
            client=request.client,
            helo=request.helo,
            sender=request.sender,
            receiver=self.site.hostname,
            methods=self.plan.config.verify.methods,
        )

    def hurried_facts(self, request: Request) -> Facts:
        """Return the facts for the policy daemon, whose client waits: they and all checks share one time for DNS.

        Where an answer is slow, SPF is begun ahead if a check of this stage may ask for it: what is off asks nothing.
        """
        resolver = RequestResolver(self.resolver)
        facts = self.facts(request, resolver)
        if self.pipeline(request).asks_spf_at(request.stage):
            resolver.when_slow = facts.start_spf
        return facts

    def verifier(self, headers: Sequence[Header]) -> DkimVerifier:
        """Return the verifier of the signatures in `headers`, to be fed with the body."""
        verify = self.plan.config.verify
        return DkimVerifier(
            headers,
            now=self.clock(),
            max_signatures=verify.max_signatures,
            minimum_bits=verify.minimum_key_bits,
            clock_skew=verify.clock_drift,
        )

    def pipeline(self, request: Request) -> Pipeline:
        """Return the lists for the request's policy_context; those of [policy] for one that has none of its own."""
        return self.plan.pipelines.get(request.policy_context) or self.plan.pipelines[""]

    async def context(self, facts: Facts, *, observe: bool = False) -> Context:
        """Return what checks may use for one request. In observe mode state is kept apart."""
        # Asked each time: a store that was emptied has a new secret (stores/shared_values.py).
        return self._context(facts, await self.store.secret(), observe)

    def _context(self, facts: Facts, secret: bytes, observe: bool) -> Context:
        prefix = OBSERVED if observe else ""
        resolver = facts.resolver
        left = resolver.left_for_lists if isinstance(resolver, RequestResolver) else None
        return Context.of(
            site=self.site,
            resolver=resolver,
            store=self.store,
            clock=self.clock,
            keys=self._keys(secret, prefix),
            facts=facts,
            alone=self._alone,
            lists=ListQueries(self.lists, left),
        )

    def watch_lists(self) -> None:
        """Probe the DNS lists from now on: for a process that lives on."""
        self._watching = self.lists.start()

    async def decide(self, request: Request, facts: Facts | None = None) -> tuple[Decision, Context]:
        """Decide for the policy daemon. The context's side effects are the caller's to settle, after the answer."""
        pipeline = self.pipeline(request)
        if request.stage in _LATE and not pipeline.checks_at(request.stage):
            self._warn_of_empty_list(request)
        return await self._decide(pipeline, request, facts)

    def _warn_of_empty_list(self, request: Request) -> None:
        """Say once that Postfix asks where nothing is checked: limits that somebody means to have are not kept."""
        context = request.policy_context if request.policy_context in self.plan.pipelines else ""
        if (context, request.stage) in self._asked_in_vain:
            return
        self._asked_in_vain.add((context, request.stage))
        option = f"policy{f'.contexts.{context}' if context else ''}.{_LATE[request.stage]}"
        logger.warning(
            "Postfix asks at %s, but %s is empty, so nothing is checked or counted there: limits on recipients need "
            '%s = ["ratelimit"] (docs/limits.md)',
            request.stage,
            option,
            option,
        )

    async def decide_connection(self, request: Request) -> tuple[Decision, Context]:
        """Decide for the milter when a client connects; `request.instance` is a name that `connections` gave it."""
        return await self._decide(self._connect, request, None)

    async def decide_message(self, request: Request, facts: Facts | None = None) -> tuple[Decision, Context]:
        """Decide for the milter at the end of a message, on facts that know it; to be settled likewise."""
        pipeline = self.plan.milter_pipeline
        if facts is not None and not self.keeps_proofs:
            context = self._context(facts, b"", pipeline.observe)
            return await pipeline.decide(request, context), context
        return await self._decide(pipeline, request, facts)

    async def _decide(self, pipeline: Pipeline, request: Request, facts: Facts | None) -> tuple[Decision, Context]:
        known = facts or self.hurried_facts(request)
        try:
            context = await self.context(known, observe=pipeline.observe)
            return await pipeline.decide(request, context), context
        finally:
            if facts is None:
                known.close()

    async def close(self) -> None:
        """Let go of the resolver and the store, and watch no lists any more."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self.connections.close()
        await self.resolver.close()
        await self.store.close()


async def open_app(
    plan: Plan, *, resolver: Resolver | None = None, store: Store | None = None, clock: Clock = time.time
) -> App:
    """Open the app of this process, on `resolver` and `store` or those that the configuration names.

    A store that does not answer is not an error: decisions go on without it.
    """
    config = plan.config
    probe = resolver
    if resolver is None:
        probe = LiveResolver(config.dns.nameservers, config.dns.timeout)
        resolver = CachingResolver(probe, clock)
    lists = ListMonitor(resolver, probe=probe, timeout=config.dns.list_timeout, uses=plan.lists)
    if store is None:
        store = await open_store(config.store.url, clock, config.store.timeout)
    return App(plan, resolver, store, clock, lists)
