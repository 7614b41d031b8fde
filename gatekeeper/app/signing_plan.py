# SPDX-License-Identifier: GPL-3.0-or-later
"""[signing] -> SigningPolicy and SignOptions: every table, list and key that it names is read, once.

What is wrong with one key alone keeps the service neither from starting nor from a reload, with a warning: a key that
signed before goes on in the place of the one that cannot (`KeyTable.inherit`); without one, its mail has `without_key`.
The rest is signed. The keys are read apart from everything else (`read_keys`), so that a process that is to serve may
have everything but them.
"""

import os
import pwd
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gatekeeper.auth.domains import configured_domain
from gatekeeper.config.config_file import Config
from gatekeeper.core.problem import Problem
from gatekeeper.postfix.client_list import ClientList
from gatekeeper.signing import data_set as opendkim_data_set
from gatekeeper.signing.host_list import HostList
from gatekeeper.signing.key_table import KeyTable, is_selector
from gatekeeper.signing.keys import KeyFiles, KeyRequirements
from gatekeeper.signing.name_set import MacroList, NameSet
from gatekeeper.signing.policy import SigningPolicy, WithoutKey
from gatekeeper.signing.sender_binding import Owners, SenderBinding
from gatekeeper.signing.signer import ONE_CLICK, SignOptions
from gatekeeper.signing.signing_table import SigningTable

_Spec = str | tuple[str, ...]
_Read = Callable[..., tuple[Any, list[Problem]]]


@dataclass(frozen=True, slots=True)
class ReadKeys:
    """The KeyTable and what is wrong with it; `replacing`: the keys of an earlier one go on where these cannot sign."""

    table: KeyTable
    problems: tuple[Problem, ...]
    replacing: bool = False

    def without_keys(self) -> "ReadKeys":
        """Return the same with the names of the keys alone."""
        return replace(self, table=self.table.without_keys())


def sign_options(config: Config) -> SignOptions:
    """How the signer signs."""
    options = config.signing
    header, body = options.canonicalization
    return SignOptions(
        header_canonicalization=header,
        body_canonicalization=body,
        sign_headers=options.sign_headers,
        omit_headers=options.omit_headers,
        oversign_headers=options.oversign_headers,
        oversign_present=ONE_CLICK if ONE_CLICK[-1] in options.sign_headers else (),
        lifetime=int(options.signature_ttl) or None,
        body_length=options.body_length,
        line_length_limit=options.line_length_limit,
        request_reports=options.request_reports,
        remove_old=options.remove_old_signatures,
    )


def signing_policy(
    config: Config,
    mynetworks: ClientList,
    owners: Owners,
    *,
    thorough: bool = False,
    lenient: bool = False,
    keys: ReadKeys | None = None,
) -> tuple[SigningPolicy, list[Problem]]:
    """Whom to sign for; without tables nobody, but whose mail is ours is still known.

    `mynetworks` tells who is internal if `internal_hosts` does not, `owners` the logins of an address, for `bind`.
    `thorough` validates each key (37 ms for an RSA key). `lenient` makes a warning of what is wrong with one key alone.
    `keys` are those that have been read already.
    """
    options = config.signing
    reader = _Reader(config)
    keys = keys or read_keys(config)
    table = reader.signing_table(keys)
    # At a reload a rule without a key refuses it: until then that sender's mail was signed, or left as it was.
    soft = {*keys.table.unusable, *(() if keys.replacing else table.unusable)}
    if thorough:
        found = keys.table.check()
        reader.problems += found
        soft |= {problem for problem in found if not problem.warning}
    policy = SigningPolicy(
        signing_table=table,
        key_table=keys.table,
        internal_hosts=mynetworks if options.internal_hosts is None else reader.read(HostList.read, "internal_hosts"),
        daemon_names=reader.read(NameSet.read, "daemon_names"),
        macros=reader.read(MacroList.read, "macros"),
        peers=reader.read(HostList.read, "peers"),
        external=reader.read(HostList.read, "external_ignore"),
        exempt=reader.read(NameSet.read, "exempt_domains"),
        never_to=reader.read(NameSet.read, "dont_sign_to"),
        sender_headers=options.sender_headers,
        binding=SenderBinding(options.bind, owners, options.mismatch),
        multiple=options.multiple_signatures,
        without_key=options.without_key,
        local_domains=config.local_domains,
    )
    problems = reader.problems
    if lenient:
        then = _MEANWHILE[options.without_key]
        if keys.replacing:
            then = f"the key from before signs on; if there was none, {then}"
        problems = [
            _softened(problem, then, not keys.replacing) if problem in soft else problem for problem in problems
        ]
    problems = [placed(config, problem) for problem in problems]
    return policy, [*_contradictions(config), *_openings(config, policy), *problems]


_MEANWHILE = {
    WithoutKey.TEMPFAIL: "mail that it should sign waits",
    WithoutKey.UNSIGNED: "mail that it should sign leaves unsigned",
    WithoutKey.PREVIOUS: "mail that it should sign waits",
}


def _softened(problem: Problem, then: str, trouble: bool) -> Problem:
    return replace(problem, what=f"{problem.what}; {then} (signing.without_key)", warning=True, trouble=trouble)


def read_keys(config: Config, *, old: KeyTable | None = None, prove: bool = False) -> ReadKeys:
    """Read the keys alone. `prove` tries each; `old` is the table whose keys go on where the new ones cannot sign."""
    reader = _Reader(config)
    table, problems = reader.key_table()
    if prove:
        problems += table.prove()
    if old is not None:
        table.inherit(old)
    return ReadKeys(table, tuple(problems), replacing=old is not None)


def key_table(config: Config) -> tuple[KeyTable, list[Problem]]:
    """Read the keys alone, and return them with what is wrong with them and with the rules that name them."""
    reader, keys = _Reader(config), read_keys(config)
    reader.signing_table(keys)
    return keys.table, [placed(config, problem) for problem in reader.problems]


def key_table_file(config: Config) -> Path | None:
    """Return the file of the KeyTable; None if it stands in the configuration, or if there is none."""
    data, _ = opendkim_data_set.read(_path(config, "key_table"), "signing.key_table", config.folder)
    return Path(data.name) if data.kind in ("file", "refile") else None


class _Reader:
    """Reads what options name; `problems` is everything that was wrong so far."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.problems: list[Problem] = []

    def read(self, read: _Read, option: str, *args: Any) -> Any:
        """Read the table in `option` by `read`, and collect its problems."""
        spec = getattr(self._config.signing, option) or ()
        made, problems = read(spec, *args, where=f"signing.{option}", base=self._config.folder)
        self.problems += problems
        return made

    def key_table(self) -> tuple[KeyTable, list[Problem]]:
        """Return the KeyTable, or what one key for some domains comes to, and what is wrong with it."""
        config, options = self._config, self._config.signing
        requirements = KeyRequirements(options.minimum_key_bits, options.algorithm)
        files = KeyFiles(key_owners(config), require_safe=options.safe_keys, requirements=requirements)
        spec, name = (_path(config, "key_table"), "signing.key_table") if self._has_tables else self._one_key()[0]
        return KeyTable.read(spec, name, base=config.folder, files=files)

    def signing_table(self, keys: ReadKeys) -> SigningTable:
        """Return the SigningTable to `keys`, or what one key comes to; `problems` gets theirs and its own."""
        config = self._config
        tables = (_path(config, "signing_table"), "signing.signing_table")
        spec, name = tables if self._has_tables else self._one_key()[1]
        table, found = SigningTable.read(spec, keys.table, name, base=config.folder)
        # of one key, that it is missing says nothing more
        more = [] if keys.problems and config.signing.key_table is None else found
        self.problems += [*keys.problems, *more]
        return table

    @property
    def _has_tables(self) -> bool:
        options = self._config.signing
        return options.key_table is not None or not (options.domains and options.selector and options.key_file)

    def _one_key(self) -> tuple[tuple[_Spec, str], tuple[_Spec, str]]:
        """Return the tables that say what Domain, SubDomains, Selector and KeyFile say in OpenDKIM, and their options.

        d= is the entry of Domain, or with `*` the domain in From; a subdomain is named by its i=.
        """
        config, options = self._config, self._config.signing
        data, problems = opendkim_data_set.read(options.domains, "signing.domains", config.folder)
        self.problems += problems
        if data.kind == "refile":
            self.problems.append(
                Problem(data.name, 0, "patterns need key_table and signing_table, not signing.domains")
            )
        location = f"{options.selector}:{os.path.join(config.folder, options.key_file)}"
        domains: list[str] = []
        for entry in data.entries:
            domain = "*" if entry.key == "*" else configured_domain(entry.key)
            if not domain or domain.startswith(".") or entry.value:
                what = f"{' '.join((entry.key, entry.value)).strip()!r} is not a domain; {_ALLOWED_DOMAINS}"
                self.problems.append(data.problem(entry, what))
            elif domain not in domains:
                domains.append(domain)
        if not is_selector(options.selector):
            what = f"{options.selector!r} is not a valid selector; allowed: letters, digits and hyphens, such as 2024a"
            self.problems.append(Problem("signing.selector", 0, what))
            domains = []
        keys = [f"{domain} {'%' if domain == '*' else domain}:{location}" for domain in domains]
        rules = [f"{domain} {domain}" for domain in domains]
        if options.subdomains and "*" not in domains:
            rules += [f".{domain} {domain}:@{domain}" for domain in domains]
        return (tuple(keys), "signing.key_file"), (tuple(rules), "signing.domains")


_ALLOWED_DOMAINS = "allowed: example.com, several with commas between them, or * for any"


def _path(config: Config, option: str) -> _Spec:
    """Return a table whose lone word cannot be a list: lists of keys have `=` in them."""
    table = getattr(config.signing, option) or ()
    lone = isinstance(table, str) and not table.startswith("/") and not set(table) & set(":=,")
    return f"file:{table}" if lone else table


def placed(config: Config, problem: Problem, ours: str = "signing") -> Problem:
    """Return a problem of a table that is written in our own file, in the section `ours`, at its line there."""
    section, dot, option = problem.file.partition(".")
    if section != ours or option not in type(getattr(config, ours)).model_fields:
        return problem
    here = config.problem((section, option), f"{section}{dot}{option}: {problem.what}")
    return replace(problem, file=here.file, line=here.line, what=here.what)


def _contradictions(config: Config) -> Iterator[Problem]:
    """Options that do nothing without another one, or beside it."""
    options = config.signing

    def alone(there: str, missing: str) -> Iterator[Problem]:
        if getattr(options, there) and not getattr(options, missing):
            yield config.problem(("signing", there), f"signing.{there} signs nothing without signing.{missing}")

    for there, missing in (("key_table", "signing_table"), ("signing_table", "key_table")):
        yield from alone(there, missing)
    one_key = [name for name in ("domains", "selector", "key_file") if getattr(options, name)]
    if options.key_table is None:
        for name in one_key:
            for missing in ("domains", "selector", "key_file"):
                yield from alone(name, missing)
    elif one_key:
        what = f"signing.{one_key[0]} does nothing beside signing.key_table"
        yield config.problem(("signing", one_key[0]), what, warning=True)


def _openings(config: Config, policy: SigningPolicy) -> Iterator[Problem]:
    """Say what options open that are not wrong by themselves."""

    def opened(option: str, what: str) -> Problem:
        return config.problem(("signing", option), f"signing.{option}: {what}").opening()

    if config.signing.body_length is not None:
        yield opened("body_length", "with l= anybody can put text behind a signed message; better leave it out")
    if entry := policy.daemon_names.find(config.hostname):
        what = f"{entry} is what every service of Postfix is called without milter_macro_daemon_name"
        yield opened("daemon_names", f"{what}: mail of anybody from our domains is signed; name the services of yours")
    if entry := policy.macros.find(dict.fromkeys(_ALWAYS_SET, "any value")).partition("=")[0]:
        yield opened("macros", f"{entry} is set for everybody, whose mail from our domains is signed; remove it")
    anybodys = {policy.exempt.find(domain) for domain in ("example.com", "mail.example.net", "x1.example.org")}
    if len(anybodys) == 1 and (entry := anybodys.pop()):
        yield opened("exempt_domains", f"{entry} is every domain: no mail is signed or judged; name the domains")


_ALWAYS_SET = (
    *("j", "i", "v", "_", "{daemon_name}", "{daemon_addr}", "{daemon_port}", "{mail_addr}", "{mail_host}"),
    *("{client_addr}", "{client_name}", "{client_port}", "{client_ptr}", "{client_resolve}", "{client_connections}"),
    *("{mail_mailer}", "{rcpt_addr}", "{rcpt_host}", "{rcpt_mailer}"),
)
"""Macros that Postfix has for everybody (MILTER_README)."""


def key_owners(config: Config) -> frozenset[int]:
    """Return who may own private keys besides root.

    These are the user who reads them, the user whom the workers become, and `opendkim`, who owns them on Debian.
    """
    owners = {os.geteuid()}
    for user in (config.user, "opendkim"):
        try:
            owners.add(pwd.getpwnam(user).pw_uid)
        except KeyError:
            continue
    return frozenset(owners)
