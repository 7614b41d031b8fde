# SPDX-License-Identifier: GPL-3.0-or-later
"""Loading the configuration file: TOML in, one frozen Config out, or every mistake at once, each with its line.

The top level is declared here, the sections in config/schema.py. Only the file itself is opened (and postconf is run,
for defaults): tables and keys are read by app/plan.py. Paths in the file are relative to the file.
"""

import os
import pwd
import re
import socket
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv6Network
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, StrictStr, ValidationError

from gatekeeper.config import postfix_sockets
from gatekeeper.config.errors import validation_errors
from gatekeeper.config.locations import KeyLocations, KeyPath
from gatekeeper.config.postfix_sockets import PostfixSockets
from gatekeeper.config.schema import (
    ChecksSection,
    DnsSection,
    LogSection,
    MilterSection,
    PolicySection,
    Section,
    SigningSection,
    StoreSection,
    VerifySection,
)
from gatekeeper.config.values import ClientPatterns, Delimiter, Domains, Hostname
from gatekeeper.core.problem import ConfigError, Problem
from gatekeeper.core.text_files import read_text
from gatekeeper.core.toml_reader import TOMLLimitError, parse_toml
from gatekeeper.core.working_folder import absolute, working_folder
from gatekeeper.pipeline.site import Site
from gatekeeper.postfix import postconf
from gatekeeper.postfix.client_list import ClientList, ClientPattern, parse_pattern
from gatekeeper.signing import data_set

DEFAULT_PATH = Path("/etc/gatekeeper/gatekeeper.toml")
NOT_YET = ("capture", "metrics", "reports")
"""Sections that are reserved for features which this version does not have yet."""


def default_user() -> str:
    """Return `gatekeeper` if that user exists, as after installing the package, else `nobody`."""
    try:
        return pwd.getpwnam("gatekeeper").pw_name
    except KeyError:
        return "nobody"


class Config(Section):
    """The whole configuration file, with the location of each option in it."""

    hostname: Hostname = Field(default_factory=socket.gethostname)
    authserv_id: Hostname | None = None
    mynetworks: ClientPatterns = (parse_pattern("127.0.0.0/8"), parse_pattern("::1"))
    local_domains: Domains = ()
    relay_domains: Domains = ()
    recipient_delimiter: Delimiter = ""
    user: StrictStr = Field(default_factory=default_user)
    group: StrictStr = ""
    mode: Literal["enforce", "observe"] = "enforce"
    dns: DnsSection = DnsSection()
    store: StoreSection = Field(default_factory=StoreSection)
    policy: PolicySection = PolicySection()
    checks: ChecksSection = ChecksSection()
    milter: MilterSection = MilterSection()
    signing: SigningSection = SigningSection()
    verify: VerifySection = VerifySection()
    log: LogSection = LogSection()

    _file: Path | None = PrivateAttr(None)
    _base: Path = PrivateAttr(default_factory=working_folder)
    _locations: KeyLocations = PrivateAttr(KeyLocations(""))
    _tree: Mapping[str, Any] = PrivateAttr(default_factory=dict)
    _ask: postconf.Ask = PrivateAttr(default_factory=lambda: postconf.ask_postfix)
    _relay: postconf.PostfixSettings = PrivateAttr(postconf.PostfixSettings())
    _import_warnings: tuple[Problem, ...] = PrivateAttr(())
    _drift: tuple[Problem, ...] = PrivateAttr(())
    _sockets: PostfixSockets | None = PrivateAttr(None)

    @property
    def folder(self) -> Path:
        """The folder that relative paths start at: the file's, or the working directory without a file.

        It is absolute, so that a path below it is known to be one wherever paths and other values may stand (the keys
        of a KeyTable), and means the same if the process goes to another directory.
        """
        return self._base

    @property
    def file(self) -> Path | None:
        """The file that this was read from; None for the defaults."""
        return self._file

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """Problems found while loading that do not keep the configuration from being used."""
        of_postfix = (what for option, what in self._relay.warnings if option not in self._tree)
        return (*self._import_warnings, *(Problem(self._relay.file, 0, what, warning=True) for what in of_postfix))

    @property
    def drift(self) -> tuple[Problem, ...]:
        """Warnings where the file differs from Postfix's own settings, for check-config and at start."""
        return self._drift

    @property
    def sockets(self) -> PostfixSockets | None:
        """Where Postfix's own sockets are, if they are used because the file says no address."""
        return self._sockets

    @property
    def postfix(self) -> postconf.PostfixSettings:
        """What the Postfix on this machine says of itself; nothing where there is none."""
        return self._relay

    @property
    def main_cf(self) -> postconf.PostfixSettings | None:
        """Where mynetworks is from, if it is Postfix's own."""
        return None if "mynetworks" in self._tree or "mynetworks" not in self._relay.values else self._relay

    def site(self, mynetworks: ClientList) -> Site:
        """Return the top level in the form that checks use, with the list that was made of `mynetworks`."""
        return Site(
            hostname=self.hostname,
            authserv_id=self.authserv_id or self.hostname,
            mynetworks=mynetworks,
            local_domains=self.local_domains,
            relay_domains=self.relay_domains,
            recipient_delimiter=self.recipient_delimiter,
            unknown_client_reject_code=self.policy.unknown_client_reject_code,
            unknown_hostname_reject_code=self.policy.unknown_hostname_reject_code,
            unknown_address_reject_code=self.policy.unknown_address_reject_code,
        )

    def is_replaced(self, path: tuple[str, str]) -> bool:
        """Return whether an option of a section is a default because what the file says there was left out as wrong."""
        section, option = path
        written = self._tree.get(section)
        wrong = written is not None and not isinstance(written, Mapping)
        return wrong or (
            isinstance(written, Mapping) and option in written and option not in getattr(self, section).model_fields_set
        )

    def without_keys(self) -> "Config":
        """Return the same configuration without private keys that stand in it, and without its text, which has them.

        `signing.key_table` is then an empty list, unless it names a file.
        """
        bare = self.model_copy()
        table = self.signing.key_table
        if table is not None and not data_set.is_file(table, self.folder):
            bare = self.model_copy(update={"signing": self.signing.model_copy(update={"key_table": "csl:"})})
        bare._locations = self._locations.without_text()
        bare._tree = dict.fromkeys(self._tree)
        return bare

    def problem(self, path: KeyPath, what: str, *, below: int | None = None, warning: bool = False) -> Problem:
        """Return a Problem at the line of `path`, or, with `below`, so many line ends into the string at `path`."""
        if below is None:
            return self._locations.problem(self._name, path, what, warning=warning)
        return Problem(self._name, self._locations.line_inside(path, below), what, warning)

    @property
    def _name(self) -> str:
        return str(self._file or "the default configuration")


def find(path: str | None = None) -> Path | None:
    """Return the file to read: `path`, else $GATEKEEPER_CONFIG, else DEFAULT_PATH if it exists."""
    if name := path or os.environ.get("GATEKEEPER_CONFIG"):
        return Path(name)
    return DEFAULT_PATH if DEFAULT_PATH.exists() else None


def defaults(ask: postconf.Ask = postconf.ask_postfix) -> Config:
    """Return the configuration of an empty file."""
    return _build({}, None, KeyLocations(""), ask)[0]


def load(path: Path, ask: postconf.Ask = postconf.ask_postfix, *, ignoring: Sequence[KeyPath] = ()) -> Config:
    """Load the configuration in `path`, as if the options in `ignoring` were not written.

    Raises ConfigError with every mistake, or with the first TOML syntax error.
    """
    config, problems = examine(path, ask, ignoring=ignoring)
    if problems:
        raise ConfigError(problems)
    return config


def refreshed(config: Config) -> Config:
    """Return `config` as it is with what Postfix says now; the file itself is not read again. Raises ConfigError."""
    new, problems = _build(dict(config._tree), config._file, config._locations, config._ask)
    if config._relay.values and not new._relay.values:
        problems = [Problem(config._relay.file, 0, "postconf does not tell any more what is in it")]
    if problems:
        raise ConfigError(problems)
    new._base, new._import_warnings = config._base, config._import_warnings
    return new


def examine(
    path: Path, ask: postconf.Ask = postconf.ask_postfix, *, ignoring: Sequence[KeyPath] = ()
) -> tuple[Config, list[Problem]]:
    """Return what is usable of the configuration in `path`, and every mistake in it.

    So check-config can go on to check the tables. Raises ConfigError for a file that cannot be read or is not TOML.
    """
    try:
        text = read_text(path)
        tree = parse_toml(text)
    except OSError as error:
        raise ConfigError([Problem(str(path), 0, f"cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        line = path.read_bytes().count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(str(path), line, "is not UTF-8 text")]) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_syntax_error(path, text, error)]) from error
    except TOMLLimitError as error:
        raise ConfigError([Problem(str(path), 0, str(error))]) from error
    for option in ignoring:
        if _has(tree, option):
            tree = _without(tree, option)
    return _build(tree, path, KeyLocations(text), ask)


def from_tree(
    tree: dict[str, Any],
    file: str,
    locations: KeyLocations,
    *,
    base: Path,
    found: Iterable[Problem] = (),
    ask: postconf.Ask = postconf.ask_postfix,
) -> Config:
    """Return the configuration in a tree that was made from another program's `file`; relative paths start at `base`.

    `found` are the problems found while making the tree. Raises ConfigError with all mistakes and warnings if there is
    a mistake.
    """
    config, problems = _build(tree, Path(file), locations, ask)
    all_problems = sorted({*found, *problems})
    if any(not problem.warning for problem in all_problems):
        raise ConfigError(all_problems)
    config._base, config._import_warnings = absolute(base), tuple(all_problems)
    return config


def _syntax_error(path: Path, text: str, error: tomllib.TOMLDecodeError) -> Problem:
    """Return the TOML parser's error as a Problem with its line, and with a hint if the error is a common one."""
    match = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", str(error))
    if match is None:
        return Problem(str(path), 0, f"not TOML: {error}")
    line = int(match[2] or text.rstrip().count("\n") + 1)
    what = f"not TOML: {match[1]}" + (f" (column {match[3]})" if match[3] else "")
    hint = next((hint for beginning, hint in _SYNTAX_HINTS.items() if match[1].startswith(beginning)), "")
    return Problem(str(path), line, f"{what}; {hint}" if hint else what)


_SYNTAX_HINTS = {
    "Invalid value": 'strings need quotes, as name = "value", even if they are copied from main.cf',
    "Illegal character '\\n'": 'a string of several lines needs """ before and after it',
    "Unescaped '\\'": "a string with backslashes needs single quotes, '...' or '''...'''",
    "Unclosed array": "values in [...] need commas between them",
    "Unterminated string": "the closing quotes are missing",
    "Cannot overwrite a value": "the key occurs here a second time",
    "Cannot declare": "this [section] occurs here a second time",
    "Expected '=' after a key": 'a line is name = "value" or [section]',
}
"""Hints for people who write TOML for the first time, by the beginning of the parser's error message."""


def _build(
    tree: dict[str, Any], path: Path | None, locations: KeyLocations, ask: postconf.Ask
) -> tuple[Config, list[Problem]]:
    relay = _usable(postconf.read_settings(ask))
    file = str(path or "the default configuration")
    found = list(_tree_errors(tree))
    usable = {**relay.values, **{name: value for name, value in tree.items() if name not in NOT_YET}}
    if sockets := postfix_sockets.find(tree, relay):
        usable = postfix_sockets.with_defaults(usable, sockets)
    while True:
        try:
            config = Config.model_validate(usable)
            break
        except ValidationError as error:
            errors = list(validation_errors(error, Config))
            found += errors
            rest = usable
            for at, _ in errors:
                rest = _without(rest, at)
            # If there is nothing left to remove, a default is wrong; that must not loop for ever.
            usable = rest if rest != usable else {}
    config._file, config._locations, config._sockets = path, locations, sockets
    config._base = absolute(path.parent if path else Path())
    config._tree, config._ask, config._relay = tree, ask, relay
    config._drift = tuple(
        locations.problem(file, (option,), what, warning=True) for option, what in _drift(config, tree, relay)
    )
    return config, sorted({locations.problem(file, at, what) for at, what in found})


def _usable(relay: postconf.PostfixSettings) -> postconf.PostfixSettings:
    """Return what Postfix has without what our options cannot be: it is not a mistake in our own file."""
    values, warnings = dict(relay.values), list(relay.warnings)
    for option, value in relay.values.items():
        if not (wrong := _mistakes(option, value)):
            continue
        del values[option]
        if isinstance(value, list):
            kept = values[option] = [word for word in value if not _mistakes(option, [word])]
            wrong = [f"{word!r} cannot be used here" for word in value if word not in kept]
        warnings += [(option, f"{what}; set {option} in gatekeeper.toml") for what in wrong]
    return replace(relay, values=values, warnings=tuple(warnings))


def _mistakes(option: str, value: object) -> list[str]:
    try:
        Config.model_validate({option: value})
    except ValidationError as error:
        return [what for _, what in validation_errors(error, Config)]
    return []


def _drift(config: Config, tree: Mapping[str, Any], relay: postconf.PostfixSettings) -> Iterator[tuple[str, str]]:
    """Yield the options of the relay that differ from Postfix's settings, each with a sentence.

    Values that could not be taken over from Postfix are not compared.
    """
    unsure = {option for option, _ in relay.warnings}
    values = {option: value for option, value in relay.values.items() if option in tree and option not in unsure}
    try:
        postfix = Config.model_validate(values)
    except ValidationError:
        return  # Postfix's value is not valid here; mistakes in main.cf are not ours to report
    for option in values:
        ours, theirs = getattr(config, option), getattr(postfix, option)
        if isinstance(ours, str):
            if ours.lower() != theirs.lower():
                yield option, f"{option} is {ours!r} here and {theirs!r} in Postfix; leave it out to use Postfix's"
            continue
        mine, its = ({one for one in some if not _matches_nobody(one)} for some in (ours, theirs))
        differences = {"here": mine - its, "in Postfix": its - mine}
        if any(differences.values()):
            parts = [
                f"only {where}: {', '.join(sorted(map(str, some)))}" for where, some in differences.items() if some
            ]
            yield option, f"{option} differs from Postfix's ({'; '.join(parts)}); leave it out to use Postfix's"


def _matches_nobody(one: object) -> bool:
    """Return whether this is a network of IPv4 written as IPv6, as Debian's main.cf has one: no client is in it."""
    return (
        isinstance(one, ClientPattern)
        and isinstance(one.value, IPv6Network)
        and one.value.network_address.ipv4_mapped is not None
    )


def _has(tree: Any, at: KeyPath) -> bool:
    """Return whether there is an option at `at`."""
    return not at or (isinstance(tree, dict) and at[0] in tree and _has(tree[str(at[0])], at[1:]))


def _without(tree: dict[str, Any], at: KeyPath) -> dict[str, Any]:
    """Return `tree` without the option at `at`.

    A list is removed as a whole, and so is a rule: the rest of it would be wrong in another way. So each round leaves
    fewer mistakes.
    """
    key, *rest = at or ("",)
    inner = tree.get(str(key))
    if rest and isinstance(inner, dict) and str(rest[0]) in inner:
        if key == "rules":
            rest = rest[:1]
        return {**tree, str(key): _without(inner, tuple(rest))}
    return {name: value for name, value in tree.items() if name != key}


def _tree_errors(tree: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Yield the mistakes that the models cannot find, because they concern no single field."""
    for name in NOT_YET:
        if name in tree:
            yield (name,), f"[{name}] is not available in this version yet; remove it"
    policy = tree.get("policy")
    if not isinstance(policy, Mapping):
        return
    contexts = policy.get("contexts")
    sets: list[tuple[KeyPath, Any]] = [(("policy",), policy)]
    if isinstance(contexts, Mapping):
        sets += [(("policy", "contexts", name), lists) for name, lists in contexts.items()]
    for at, lists in sets:
        if isinstance(lists, Mapping) and {"restrictions", "recipient_restrictions"} <= lists.keys():
            what = "restrictions and recipient_restrictions name the same list; use only one of them"
            yield (*at, "recipient_restrictions"), what
