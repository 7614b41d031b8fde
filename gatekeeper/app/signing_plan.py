# SPDX-License-Identifier: GPL-3.0-or-later
"""[signing] -> SigningPolicy and SignOptions: every table, list and key that it names is read, once, by the parent.

What is wrong with one key alone does not keep the service from starting: its mail has `without_key`, the rest is
signed. A reload is refused over it, because the old keys are better; unless the old key is what `without_key` wants.
"""

import os
import pwd
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from gatekeeper.config.config_file import Config
from gatekeeper.core.problem import Problem
from gatekeeper.postfix.client_list import ClientList
from gatekeeper.signing import data_set as opendkim_data_set
from gatekeeper.signing.host_list import HostList
from gatekeeper.signing.key_table import KeyTable
from gatekeeper.signing.keys import KeyFiles, KeyRequirements
from gatekeeper.signing.name_set import MacroList, NameSet
from gatekeeper.signing.policy import SigningPolicy, WithoutKey
from gatekeeper.signing.sender_binding import Owners, SenderBinding
from gatekeeper.signing.signer import ONE_CLICK, SignOptions
from gatekeeper.signing.signing_table import SigningTable

_Spec = str | tuple[str, ...]
_Read = Callable[..., tuple[Any, list[Problem]]]


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
    old: SigningPolicy | None = None,
) -> tuple[SigningPolicy, list[Problem]]:
    """Whom to sign for; without tables nobody, but whose mail is ours is still known.

    `mynetworks` tells who is internal if `internal_hosts` does not, `owners` the logins of an address, for `bind`.
    `thorough` validates each key (37 ms for an RSA key). `lenient` makes a warning of what is wrong with one key alone.
    `old` is the policy that serves until this one does.
    """
    options = config.signing
    reader = _Reader(config)
    keys, table = reader.tables()
    soft = {*keys.unusable, *table.unusable}
    if thorough:
        reader.problems += keys.check()
    if old is not None and options.without_key is WithoutKey.PREVIOUS:
        keys.inherit(old.key_table)
        lenient = True
    policy = SigningPolicy(
        signing_table=table,
        key_table=keys,
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
        problems = [_softened(problem, then) if problem in soft else problem for problem in problems]
    return policy, [*_contradictions(config), *(placed(config, problem) for problem in problems)]


_MEANWHILE = {
    WithoutKey.TEMPFAIL: "mail that it should sign waits",
    WithoutKey.UNSIGNED: "mail that it should sign leaves unsigned",
    WithoutKey.PREVIOUS: "mail that it should sign has the key from before the last reload, or waits",
}


def _softened(problem: Problem, then: str) -> Problem:
    return replace(problem, what=f"{problem.what}; {then} (signing.without_key)", warning=True)


def key_table(config: Config) -> tuple[KeyTable, list[Problem]]:
    """Read the keys alone, and return them with what is wrong with them."""
    reader = _Reader(config)
    keys, _ = reader.tables()
    return keys, [placed(config, problem) for problem in reader.problems]


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
        spec = data_set(self._config, getattr(self._config.signing, option) or ())
        made, problems = read(spec, *args, where=f"signing.{option}", base=self._config.folder)
        self.problems += problems
        return made

    def tables(self) -> tuple[KeyTable, SigningTable]:
        """KeyTable and SigningTable, or what one key for some domains comes to."""
        config, options = self._config, self._config.signing
        requirements = KeyRequirements(options.minimum_key_bits, options.algorithm)
        files = KeyFiles(key_owners(config), require_safe=options.safe_keys, requirements=requirements)
        if options.key_table is not None or not (options.domains and options.selector and options.key_file):
            specs: tuple[_Spec, _Spec] = (_path(config, "key_table"), _path(config, "signing_table"))
            names = ("signing.key_table", "signing.signing_table")
        else:
            specs, names = self._one_key(), ("signing.key_file", "signing.domains")
        keys, problems = KeyTable.read(specs[0], names[0], base=config.folder, files=files)
        table, found = SigningTable.read(specs[1], keys, names[1], base=config.folder)
        # of one key, that it is missing says nothing more
        self.problems += problems if problems and options.key_table is None else problems + found
        return keys, table

    def _one_key(self) -> tuple[_Spec, _Spec]:
        """Return the tables that say what Domain, SubDomains, Selector and KeyFile say in OpenDKIM.

        d= is the entry of Domain, or with `*` the domain in From; a subdomain is named by its i=.
        """
        config, options = self._config, self._config.signing
        data, problems = opendkim_data_set.read(data_set(config, options.domains), "signing.domains", config.folder)
        self.problems += problems
        if data.kind == "refile":
            self.problems.append(
                Problem(data.name, 0, "patterns need key_table and signing_table, not signing.domains")
            )
        location = f"{options.selector}:{os.path.join(config.folder, options.key_file)}"
        domains = list(dict.fromkeys(entry.key.lower() for entry in data.entries))
        keys = [f"{domain} {'%' if domain == '*' else domain}:{location}" for domain in domains]
        rules = [f"{domain} {domain}" for domain in domains]
        if options.subdomains and "*" not in domains:
            rules += [f".{domain} {domain}:@{domain}" for domain in domains]
        return tuple(keys), tuple(rules)


def _path(config: Config, option: str) -> _Spec:
    """Return a table whose lone word cannot be a list: lists of keys have `=` in them."""
    table = getattr(config.signing, option) or ()
    lone = isinstance(table, str) and not table.startswith("/") and not set(table) & set(":=,")
    return f"file:{table}" if lone else data_set(config, table)


def data_set(config: Config, table: _Spec) -> _Spec:
    """Return the data set in OpenDKIM's words, where a relative path without a prefix would be a comma list."""
    if isinstance(table, str) and not table.startswith("/") and (config.folder / table).is_file():
        return f"file:{table}"
    return table


def placed(config: Config, problem: Problem, ours: str = "signing") -> Problem:
    """Return a problem of a table that is written in our own file, in the section `ours`, at its line there."""
    section, dot, option = problem.file.partition(".")
    if section != ours or option not in type(getattr(config, ours)).model_fields:
        return problem
    return config.problem((section, option), f"{section}{dot}{option}: {problem.what}", warning=problem.warning)


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
    if options.body_length is not None:
        what = "signing.body_length (l=) lets anybody put text behind a signed message; better leave it out"
        yield config.problem(("signing", "body_length"), what, warning=True)


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
