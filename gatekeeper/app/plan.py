# SPDX-License-Identifier: GPL-3.0-or-later
"""Turns a Config into a Plan: every table, list and key that it names is read; nothing is opened.

`prepare` raises every mistake at once. In the service it runs in the privileged parent, and a worker, which could no
longer read those files, gets the Plan by fork: all but the private keys, which neither the parent nor a policy worker
ever has (daemon/loading.py).
"""

import grp
import os
import pwd
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gatekeeper.app.signing_plan import ReadKeys, placed, sign_options, signing_policy
from gatekeeper.auth.dmarc_record import DmarcPolicy
from gatekeeper.auth.results import Method
from gatekeeper.checks.authentication.dmarc import DmarcCheck
from gatekeeper.checks.authentication.report_counter import ReportCounter
from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.builder.builder import CheckBuilder
from gatekeeper.checks.dnslists.rbl import prefetch_adjacent
from gatekeeper.checks.limits.ratelimit import Limiter
from gatekeeper.checks.tables.client_list_reader import read_client_list
from gatekeeper.checks.tables.sender_proof import ProofRecorder
from gatekeeper.config.config_file import Config
from gatekeeper.config.locations import KeyPath
from gatekeeper.config.schema import ChecksSection, RestrictionLists
from gatekeeper.core.problem import ConfigError, Problem
from gatekeeper.core.verdict import Mode
from gatekeeper.dnslists.monitor import ListUse
from gatekeeper.pipeline.check import Check
from gatekeeper.pipeline.pipeline import END_OF_DATA, Pipeline
from gatekeeper.pipeline.site import Site
from gatekeeper.postfix.client_list import ClientList
from gatekeeper.postfix.restriction_list import Restriction
from gatekeeper.signing.host_list import HostList
from gatekeeper.signing.policy import SigningPolicy
from gatekeeper.signing.signer import SignOptions
from gatekeeper.stores.store_url import check_url


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
    rejected: tuple[Problem, ...] = ()
    """Lines of tables that cannot be used: a start goes on without them, a reload keeps what is in force instead."""


def prepare(
    config: Config,
    *,
    thorough: bool = False,
    found: Sequence[Problem] = (),
    lenient: bool = False,
    keys: ReadKeys | None = None,
) -> Plan:
    """Read everything that `config` names.

    `thorough` validates each key (37 ms for an RSA key), for check-config. `lenient` goes on without keys that cannot
    be used. `keys` are those of its [signing], if they have been read already. Raises ConfigError with every problem,
    those `found` before included.
    """
    observe = config.mode == "observe"
    builder = _check_builder(config)
    pipelines = {"": _pipeline(config, builder, config.policy, ("policy",))}
    for name, lists in config.policy.contexts.items():
        pipelines[name] = _pipeline(config, builder, lists, ("policy", "contexts", name))
    builder.check_classes()
    limiter = builder.limiter()
    mynetworks, found_in_list = _mynetworks(config)
    signing, problems = signing_policy(
        config,
        mynetworks,
        builder.owners(config.hostname, config.recipient_delimiter),
        thorough=thorough,
        lenient=lenient,
        keys=keys,
    )
    of_messages, found_there = _message_checks(config, builder.conditions)
    problems = sorted(
        {*found, *config.warnings, *_other_problems(config), *builder.problems, *problems, *found_there}
        | {*found_in_list}
    )
    if any(not problem.warning for problem in problems):
        raise ConfigError(problems)
    return Plan(
        config=config,
        site=config.site(mynetworks),
        pipelines=pipelines,
        milter_pipeline=Pipeline({END_OF_DATA: of_messages}, observe),
        limiter=limiter,
        signing=signing,
        sign_options=sign_options(config),
        lists=builder.lists,
        warnings=tuple(sorted({*problems, *builder.tallies})),
        rejected=tuple(builder.rejected),
    )


def summary(plan: Plan) -> str:
    """Say what a plan holds, in half a sentence."""
    checks = {name: sum(map(len, pipeline.lists.values())) for name, pipeline in plan.pipelines.items()}
    contexts = [f"{count} in context {name}" for name, count in checks.items() if name]
    listen = [*plan.config.policy.listen, *plan.config.milter.listen]
    signing = plan.signing
    parts = [", ".join([f"{checks['']} checks", *contexts]), f"{len(signing.key_table)} keys"]
    parts += [f"{len(signing.signing_table)} lines in the signing table", f"listening on {', '.join(map(str, listen))}"]
    return "; ".join(filter(None, (*parts, observed(plan))))


def observed(plan: Plan) -> str:
    """Say what only observes: everything, or some checks; empty if all counts."""
    if plan.config.mode == "observe":
        return 'mode = "observe": nothing is refused, delayed, signed or changed; the log tells what would be (judged=)'
    pipelines = (*plan.pipelines.values(), plan.milter_pipeline)
    checks = [check for pipeline in pipelines for of_list in pipeline.lists.values() for check in of_list]
    names = sorted({check.name for check in (*checks, plan.limiter) if check.mode is Mode.OBSERVE})
    return f'only observed (mode = "observe"), and counting for nothing: {", ".join(names)}' if names else ""


def _mynetworks(config: Config) -> tuple[ClientList, list[Problem]]:
    """Return the list of who is internal, by our own file or by main.cf, and what is wrong with it."""
    relay = config.main_cf
    if relay is None:
        place = _source_line(config.problem(("mynetworks",), ""))
        return read_client_list(config.mynetworks, "mynetworks", place, config.folder, opened=_INTERNAL)
    place = SourceLine(relay.file)
    folder = Path(relay.file).parent
    return read_client_list(
        config.mynetworks, "mynetworks", place, folder, of_postfix=True, parents=relay.parents, opened=_INTERNAL
    )


_INTERNAL = "permit_mynetworks lets these hosts pass, and their mail from our domains is signed"


def _check_builder(config: Config) -> CheckBuilder:
    """Return what makes checks of words, with all that they may name."""
    policy = config.policy
    return CheckBuilder(
        {name: getattr(config.checks, name) for name in ChecksSection.model_fields},
        config.folder,
        classes={
            name: [
                (found.words, _restriction_line(config, ("policy", "classes", name), found)) for found in restrictions
            ]
            for name, restrictions in policy.classes.items()
        },
        maps={
            option: (getattr(policy, option), _source_line(config.problem(("policy", option), "")))
            for option in ("sender_login_maps", "relay_clientcerts")
        },
        where=lambda section, option, index: _source_line(config.problem(("checks", section, option, index), "")),
    )


def _pipeline(config: Config, builder: CheckBuilder, lists: RestrictionLists, at: KeyPath) -> Pipeline:
    checks: dict[str, tuple[Check, ...]] = {}
    for name, key, restrictions in lists.lists():
        builder.warn_unreachable([(one.words, _restriction_line(config, (*at, key), one)) for one in restrictions])
        found = [builder.check(one.words, _restriction_line(config, (*at, key), one), name) for one in restrictions]
        checks[name] = prefetch_adjacent([check for check in found if check is not None])
    return Pipeline(checks, config.mode == "observe")


def _message_checks(config: Config, conditions: tuple[str, ...]) -> tuple[tuple[Check, ...], list[Problem]]:
    """Return the milter's checks, of the methods that are asked, and what is wrong with their options."""
    verify = config.verify
    forwarders, problems = HostList.read(verify.trusted_forwarders, "verify.trusted_forwarders", base=config.folder)
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
    problems = [*(placed(config, problem, "verify") for problem in problems), *_trusted_top_levels(config)]
    if verify.dmarc != "observe" and not verify.malformed_from and Method.DMARC in verify.methods:
        verb = {"quarantine": "quarantines", "reject": "refuses"}[verify.dmarc]
        what = (
            f'verify.dmarc = "{verify.dmarc}" also {verb} mail whose From names no domain at all, which could not be '
            f'judged: look for dmarc.permerror in the log, and write malformed_from = "{verify.dmarc}", or "accept"'
        )
        problems.append(config.problem(("verify", "dmarc"), what, warning=True))
    known = tuple(name for name in conditions if Method(name) in verify.methods and "v" in config.milter.mode)
    for name in sorted({*conditions} - {*known}):
        what = f"an access table demands if={name}, which never holds: the milter does not verify {name}"
        problems.append(config.problem(("verify", "methods"), what, warning=True))
    return (*wanted, ProofRecorder(conditions=known)) if known else wanted, problems


def _trusted_top_levels(config: Config) -> Iterator[Problem]:
    """Say where all domains of a top-level domain are trusted."""
    verify = config.verify
    for option in ("trusted_lists", "trusted_sealers"):
        for domain in getattr(verify, option):
            if "." not in domain:
                what = f"verify.{option}: {domain} is every domain below {domain}: they are all trusted; name yours"
                yield config.problem(("verify", option), what).opening()
    for domain, wanted in verify.overrides.items():
        if wanted == "none" and domain.startswith(".") and "." not in domain[1:]:
            what = f"verify.overrides: {domain} is every domain below {domain[1:]}: forged mail of them all passes"
            yield config.problem(("verify", "overrides"), f"{what}; name yours").opening()


def _restriction_line(config: Config, at: KeyPath, restriction: Restriction) -> SourceLine:
    """Where a restriction stands: in a string of several lines, or as one of a list."""
    if restriction.index is None:
        return _source_line(config.problem(at, "", below=restriction.line_offset))
    return _source_line(config.problem((*at, restriction.index), ""))


def _source_line(problem: Problem) -> SourceLine:
    return SourceLine(problem.file, problem.line)


def _other_problems(config: Config) -> Iterator[Problem]:
    """Find what is wrong with the options that nothing else here reads."""
    try:
        check_url(config.store.url)
    except ValueError as error:
        yield config.problem(("store", "url"), f"store.url: {error}")
    if config.verify.unsigned_ours and {Method.SPF, Method.IPREV, Method.DMARC} & {*config.verify.methods}:
        what = 'verify.unsigned_ours judges mail of our own clients, not of mail servers: it needs methods = ["dkim"]'
        yield config.problem(("verify", "unsigned_ours"), what)
    for name, section in (("policy", config.policy), ("milter", config.milter)):
        for family, can_come in zip(("unix", "inet"), section.peers.kinds, strict=True):
            deserted = [str(one) for one in section.listen if (one.family == "unix") == (family == "unix")]
            if deserted and not can_come:
                kind = "users" if family == "unix" else "addresses"
                what = f"{name}.peers names no {kind}, so nobody could connect to {deserted[0]}"
                yield config.problem((name, "peers"), what)
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
