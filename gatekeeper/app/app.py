# SPDX-License-Identifier: GPL-3.0-or-later
"""The only wiring: Config -> Plan (everything read, nothing opened) -> App (resolver, store, pipelines at work).

`prepare` runs in the privileged parent and reads every table and key as bytes; `open_app` runs in a worker after it
has dropped its privileges, and opens what a process has for itself. Every front door asks an App.
"""

import asyncio
import grp
import os
import pwd
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from gatekeeper.app.signing_plan import data_set, placed, sign_options, signing_policy
from gatekeeper.auth.dkim import DkimVerifier
from gatekeeper.auth.dmarc_record import DmarcPolicy
from gatekeeper.auth.results import Method
from gatekeeper.checks.authentication.dmarc import DmarcCheck
from gatekeeper.checks.authentication.report_counter import ReportCounter
from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.builder.builder import CheckBuilder
from gatekeeper.checks.dnslists.rbl import ask_ahead
from gatekeeper.checks.limits.connections import Connections
from gatekeeper.checks.limits.ratelimit import Limiter
from gatekeeper.checks.tables.sender_proof import ProofRecorder
from gatekeeper.config.config_file import Config
from gatekeeper.config.locations import KeyPath
from gatekeeper.config.schema import ChecksSection, RestrictionLists
from gatekeeper.core.message import Header
from gatekeeper.core.problem import ConfigError, Problem
from gatekeeper.core.request import Request
from gatekeeper.core.verdict import Decision
from gatekeeper.dnsclient.caching import CachingResolver
from gatekeeper.dnsclient.live import LiveResolver
from gatekeeper.dnsclient.resolver import Resolver
from gatekeeper.dnslists.monitor import ListMonitor, ListUse
from gatekeeper.dnslists.queries import ListQueries
from gatekeeper.pipeline.facts import Facts
from gatekeeper.pipeline.pipeline import CLIENT, END_OF_DATA, Check, Context, Pipeline, Site
from gatekeeper.postfix.restriction_list import Restriction
from gatekeeper.signing.host_list import HostList
from gatekeeper.signing.policy import SigningPolicy
from gatekeeper.signing.signer import SignOptions
from gatekeeper.stores.memory import MemoryStore
from gatekeeper.stores.store import Clock, Keys, Store
from gatekeeper.stores.store_url import check_url, open_store

_OBSERVE = "observe:"
"""The prefix of what is remembered in observe mode, as of what one observed check remembers (pipeline/pipeline.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that files can tell: what a worker needs and could no longer read. `pipelines` are by policy_context."""

    config: Config
    site: Site
    pipelines: Mapping[str, Pipeline]
    milter_pipeline: Pipeline
    limiter: Limiter
    signing: SigningPolicy
    sign_options: SignOptions
    lists: tuple[ListUse, ...] = ()
    warnings: tuple[Problem, ...] = ()


def prepare(
    config: Config,
    *,
    thorough: bool = False,
    found: Sequence[Problem] = (),
    lenient: bool = False,
    old: Plan | None = None,
) -> Plan:
    """Read everything that `config` names. Raises ConfigError with every problem, those `found` before included;
    `thorough` validates each key (37 ms for an RSA key), for check-config. `lenient` goes on without keys that cannot
    be used; `old` is the plan that is at work until this one is."""
    observe = config.mode == "observe"
    reader = _reader(config)
    pipelines = {"": _pipeline(config, reader, config.policy, ("policy",))}
    for name, lists in config.policy.contexts.items():
        pipelines[name] = _pipeline(config, reader, lists, ("policy", "contexts", name))
    reader.check_classes()
    limiter = reader.limiter()
    signing, problems = signing_policy(
        config,
        reader.owners(config.hostname, config.recipient_delimiter),
        thorough=thorough,
        lenient=lenient,
        old=old.signing if old else None,
    )
    of_messages, found_there = _of_messages(config, reader.conditions)
    problems = sorted({*found, *config.warnings, *_others(config), *reader.problems, *problems, *found_there})
    if any(not problem.warning for problem in problems):
        raise ConfigError(problems)
    return Plan(
        config=config,
        site=config.site,
        pipelines=pipelines,
        milter_pipeline=Pipeline({END_OF_DATA: of_messages}, observe),
        limiter=limiter,
        signing=signing,
        sign_options=sign_options(config),
        lists=reader.lists,
        warnings=tuple(problems),
    )


def summary(plan: Plan) -> str:
    """What a plan holds, in half a sentence."""
    checks = {name: sum(map(len, pipeline.lists.values())) for name, pipeline in plan.pipelines.items()}
    contexts = [f"{count} in context {name}" for name, count in checks.items() if name]
    listen = [*plan.config.policy.listen, *plan.config.milter.listen]
    signing = plan.signing
    parts = [", ".join([f"{checks['']} checks", *contexts]), f"{len(signing.key_table)} keys"]
    parts += [f"{len(signing.signing_table)} lines in the signing table", f"listening on {', '.join(map(str, listen))}"]
    return "; ".join(parts)


def _reader(config: Config) -> CheckBuilder:
    """What makes checks of words, with all that they may name."""
    policy = config.policy
    return CheckBuilder(
        {name: getattr(config.checks, name) for name in ChecksSection.model_fields},
        config.folder,
        classes={
            name: [(found.words, _place(config, ("policy", "classes", name), found)) for found in restrictions]
            for name, restrictions in policy.classes.items()
        },
        maps={
            option: (getattr(policy, option), _at(config.problem(("policy", option), "")))
            for option in ("sender_login_maps", "relay_clientcerts")
        },
        where=lambda section, option, index: _at(config.problem(("checks", section, option, index), "")),
    )


def _pipeline(config: Config, reader: CheckBuilder, lists: RestrictionLists, at: KeyPath) -> Pipeline:
    checks: dict[str, tuple[Check, ...]] = {}
    for name, key, restrictions in lists.lists():
        reader.warn_behind([(one.words, _place(config, (*at, key), one)) for one in restrictions])
        found = [reader.check(one.words, _place(config, (*at, key), one), name) for one in restrictions]
        checks[name] = ask_ahead([check for check in found if check is not None])
    return Pipeline(checks, config.mode == "observe")


def _of_messages(config: Config, conditions: tuple[str, ...]) -> tuple[tuple[Check, ...], list[Problem]]:
    """The milter's checks, of the methods that are asked."""
    verify = config.verify
    spec = data_set(config, verify.trusted_forwarders)
    forwarders, problems = HostList.read(spec, "verify.trusted_forwarders", base=config.folder)
    dmarc = DmarcCheck(
        obey=verify.dmarc,
        quarantine=verify.quarantine,
        malformed_from=verify.malformed_from,
        overrides={domain: DmarcPolicy(wanted) for domain, wanted in verify.overrides.items()},
        forwarders=forwarders,
        lists=verify.trusted_lists,
        sealers=verify.trusted_sealers,
    )
    counting: tuple[Check, ...] = (ReportCounter(),) if verify.count and Method.DMARC in verify.methods else ()
    checks: dict[Method, Check] = {Method.DKIM: config.checks.dkim, Method.DMARC: dmarc}
    wanted = (*counting, *(check for method, check in checks.items() if method in verify.methods))
    problems = [placed(config, problem, "verify") for problem in problems]
    known = tuple(name for name in conditions if Method(name) in verify.methods and "v" in config.milter.mode)
    for name in sorted({*conditions} - {*known}):
        what = f"an access table demands if={name}, which never holds: the milter does not verify {name}"
        problems.append(config.problem(("verify", "methods"), what, warning=True))
    return (*wanted, ProofRecorder(conditions=known)) if known else wanted, problems


def _place(config: Config, at: KeyPath, restriction: Restriction) -> SourceLine:
    """Where a restriction stands: in a string of several lines, or as one of a list."""
    if restriction.index is None:
        return _at(config.problem(at, "", below=restriction.lines_below))
    return _at(config.problem((*at, restriction.index), ""))


def _at(problem: Problem) -> SourceLine:
    return SourceLine(problem.file, problem.line)


def _others(config: Config) -> Iterator[Problem]:
    """What is wrong with the options that nothing above reads."""
    try:
        check_url(config.store.url)
    except ValueError as error:
        yield config.problem(("store", "url"), f"store.url: {error}")
    if config.verify.unsigned_ours and {Method.SPF, Method.IPREV, Method.DMARC} & {*config.verify.methods}:
        what = 'verify.unsigned_ours judges mail of our own clients, not of mail servers: it needs methods = ["dkim"]'
        yield config.problem(("verify", "unsigned_ours"), what)
    # Only root becomes somebody else: for everybody else these options are not used.
    unused = os.geteuid() != 0
    for option, names, lookup in (
        (("user",), config.user, pwd.getpwnam),
        (("group",), config.group, grp.getgrnam),
        (("policy", "socket_group"), config.policy.socket_group, grp.getgrnam),
        (("milter", "socket_group"), config.milter.socket_group, grp.getgrnam),
    ):
        try:
            if names:
                lookup(names)
        except KeyError:
            what = f"{'.'.join(option)}: there is no {option[-1].removeprefix('socket_')} {names!r} on this machine"
            yield config.problem(option, what, warning=unused)


class App:
    """One process's world: who answers DNS, where state is, and what was planned."""

    def __init__(
        self, plan: Plan, resolver: Resolver, store: Store, clock: Clock = time.time, lists: ListMonitor | None = None
    ) -> None:
        self.plan = plan
        self.resolver = resolver
        self.store = store
        self.clock = clock
        self._alone = MemoryStore(clock)
        self._keys = lru_cache(maxsize=4)(Keys)
        self.connections = Connections(plan.limiter, store, self._alone)
        self._connect = Pipeline({CLIENT: (self.connections,)}, plan.config.mode == "observe")
        self.lists = lists or ListMonitor(resolver, budget=plan.config.dns.list_timeout, uses=plan.lists)
        self._watching: asyncio.Task[None] | None = None
        checks = (check for of_list in plan.milter_pipeline.lists.values() for check in of_list)
        self.keeps_proofs = any(isinstance(check, ProofRecorder | ReportCounter) for check in checks)
        """Whether judging a message writes to the store. If not, judging never waits for the store."""

    @property
    def site(self) -> Site:
        """What this relay is."""
        return self.plan.site

    def facts(self, request: Request) -> Facts:
        """What can be known about `request`, nothing of it asked yet."""
        return Facts(
            self.resolver,
            client=request.client,
            helo=request.helo,
            sender=request.sender,
            receiver=self.site.hostname,
        )

    def verifier(self, headers: Sequence[Header]) -> DkimVerifier:
        """The verifier of the signatures in `headers`, to be fed with the body."""
        verify = self.plan.config.verify
        return DkimVerifier(
            headers,
            now=self.clock(),
            max_signatures=verify.max_signatures,
            minimum_bits=verify.minimum_key_bits,
            clock_skew=verify.clock_drift,
        )

    def pipeline(self, request: Request) -> Pipeline:
        """The lists for the request's policy_context; those of [policy] for one that has none of its own."""
        return self.plan.pipelines.get(request.policy_context) or self.plan.pipelines[""]

    async def context(self, facts: Facts, *, observe: bool = False) -> Context:
        """What checks may use for one request. In observe mode state is kept apart."""
        # Asked each time: a store that was emptied has a new secret (stores/shared_values.py).
        return self._context(facts, await self.store.secret(), observe)

    def _context(self, facts: Facts, secret: bytes, observe: bool) -> Context:
        prefix = _OBSERVE if observe else ""
        return Context(
            site=self.site,
            resolver=self.resolver,
            store=self.store,
            clock=self.clock,
            keys=self._keys(secret, prefix),
            facts=facts,
            alone=self._alone,
            lists=ListQueries(self.lists),
        )

    def watch_lists(self) -> None:
        """Probe the DNS lists from now on: for a process that lives on."""
        self._watching = self.lists.start()

    async def decide(self, request: Request, facts: Facts | None = None) -> tuple[Decision, Context]:
        """The policy daemon's decision. The context's side effects are the caller's to settle, after the answer."""
        return await self._decide(self.pipeline(request), request, facts)

    async def decide_connection(self, request: Request) -> tuple[Decision, Context]:
        """The milter's decision when a client connects; `request.instance` is a name that `connections` gave it."""
        return await self._decide(self._connect, request, None)

    async def decide_message(self, request: Request, facts: Facts | None = None) -> tuple[Decision, Context]:
        """The milter's decision at the end of a message, on facts that know it; to be settled likewise."""
        pipeline = self.plan.milter_pipeline
        if facts is not None and not self.keeps_proofs:
            context = self._context(facts, b"", pipeline.observe)
            return await pipeline.decide(request, context), context
        return await self._decide(pipeline, request, facts)

    async def _decide(self, pipeline: Pipeline, request: Request, facts: Facts | None) -> tuple[Decision, Context]:
        known = facts or self.facts(request)
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
    """The app of this process, on `resolver` and `store` or those that the configuration names. A store that does not
    answer is no error: decisions go on without it."""
    config = plan.config
    probe = resolver
    if resolver is None:
        probe = LiveResolver(config.dns.nameservers, config.dns.timeout)
        resolver = CachingResolver(probe, clock)
    lists = ListMonitor(resolver, probe=probe, budget=config.dns.list_timeout, uses=plan.lists)
    if store is None:
        store = await open_store(config.store.url, clock, config.store.timeout)
    return App(plan, resolver, store, clock, lists)
