# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration file: TOML in, one frozen Config out, or every mistake at once, each with its line.

The top level is declared here, the sections in config/schema.py. Nothing is opened but the file itself (and postconf,
for defaults): tables and keys are read by app/app.py. Paths in the file are relative to the file.
"""

import os
import pwd
import re
import socket
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, StrictStr, ValidationError

from gatekeeper.config.errors import validation_errors
from gatekeeper.config.locations import KeyLocations, KeyPath
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
from gatekeeper.config.values import Delimiter, Domains, Hostname, Networks
from gatekeeper.core.problem import ConfigError, Problem
from gatekeeper.pipeline.site import Site
from gatekeeper.postfix import postconf

DEFAULT_PATH = Path("/etc/gatekeeper/gatekeeper.toml")
NOT_YET = ("capture", "metrics", "reports")
"""Sections that the product has names for and this version cannot do yet."""


def default_user() -> str:
    """`gatekeeper` where that user exists, as after installing the package, else `nobody`."""
    try:
        return pwd.getpwnam("gatekeeper").pw_name
    except KeyError:
        return "nobody"


class Config(Section):
    """The whole file, and where in it each thing stands."""

    hostname: Hostname = Field(default_factory=socket.gethostname)
    authserv_id: Hostname | None = None
    mynetworks: Networks = (ip_network("127.0.0.0/8"), ip_network("::1"))
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
    _base: Path | None = PrivateAttr(None)
    _places: KeyLocations = PrivateAttr(KeyLocations(""))
    _warnings: tuple[str, ...] = PrivateAttr(())
    _noticed: tuple[Problem, ...] = PrivateAttr(())
    _drift: tuple[Problem, ...] = PrivateAttr(())

    @property
    def folder(self) -> Path:
        """What relative paths are relative to: the file's folder, or the working directory without a file."""
        return self._base or (self._file.parent if self._file else Path.cwd())

    @property
    def warnings(self) -> tuple[Problem, ...]:
        """What was noticed while reading that keeps nothing from working."""
        return (*self._noticed, *(self.problem((), what, warning=True) for what in self._warnings))

    @property
    def drift(self) -> tuple[Problem, ...]:
        """What the file says of the relay otherwise than Postfix does: warnings for who checks or starts it."""
        return self._drift

    @property
    def site(self) -> Site:
        """The top level in the form that checks use."""
        return Site(
            hostname=self.hostname,
            authserv_id=self.authserv_id or self.hostname,
            mynetworks=self.mynetworks,
            local_domains=self.local_domains,
            relay_domains=self.relay_domains,
            recipient_delimiter=self.recipient_delimiter,
            unknown_client_reject_code=self.policy.unknown_client_reject_code,
            unknown_hostname_reject_code=self.policy.unknown_hostname_reject_code,
            unknown_address_reject_code=self.policy.unknown_address_reject_code,
        )

    def problem(self, path: KeyPath, what: str, *, below: int | None = None, warning: bool = False) -> Problem:
        """A Problem at the line of `path`, or `below` line ends into the string that stands there."""
        if below is None:
            return self._places.problem(self._name, path, what, warning=warning)
        return Problem(self._name, self._places.line_inside(path, below), what, warning)

    @property
    def _name(self) -> str:
        return str(self._file or "the default configuration")


def find(named: str | None = None) -> Path | None:
    """The file to read: the one that was named, else $GATEKEEPER_CONFIG, else the usual one if it is there."""
    if name := named or os.environ.get("GATEKEEPER_CONFIG"):
        return Path(name)
    return DEFAULT_PATH if DEFAULT_PATH.exists() else None


def defaults(ask: postconf.Ask = postconf.ask_postfix) -> Config:
    """The configuration of an empty file."""
    return _build({}, None, KeyLocations(""), ask)[0]


def load(path: Path, ask: postconf.Ask = postconf.ask_postfix) -> Config:
    """The configuration in `path`. Raises ConfigError with every mistake; of errors in TOML's grammar, the first."""
    config, problems = examine(path, ask)
    if problems:
        raise ConfigError(problems)
    return config


def examine(path: Path, ask: postconf.Ask = postconf.ask_postfix) -> tuple[Config, list[Problem]]:
    """What can be used of the configuration in `path`, and every mistake in it: so that check-config can go on and look
    into the tables. Raises ConfigError for a file that is no TOML.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tree = tomllib.loads(text)
    except OSError as error:
        raise ConfigError([Problem(str(path), 0, f"cannot be read: {error.strerror}")]) from error
    except UnicodeDecodeError as error:
        line = path.read_bytes().count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(str(path), line, "is no UTF-8 text here")]) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([_grammar(path, text, error)]) from error
    except RecursionError as error:
        raise ConfigError([Problem(str(path), 0, "is nested too deeply")]) from error
    return _build(tree, path, KeyLocations(text), ask)


def from_tree(
    tree: dict[str, Any],
    file: str,
    places: KeyLocations,
    *,
    base: Path,
    found: Iterable[Problem] = (),
    ask: postconf.Ask = postconf.ask_postfix,
) -> Config:
    """The configuration in a tree that was made from another program's `file`, where relative paths start at `base`.

    `found` is what was noticed in making it. Raises ConfigError with all that is wrong.
    """
    config, problems = _build(tree, Path(file), places, ask)
    noticed = sorted({*found, *problems})
    if any(not problem.warning for problem in noticed):
        raise ConfigError(noticed)
    config._base, config._noticed = base, tuple(noticed)
    return config


def _grammar(path: Path, text: str, error: tomllib.TOMLDecodeError) -> Problem:
    """TOML's own complaint with its line in the usual place."""
    match = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", str(error))
    if match is None:
        return Problem(str(path), 0, f"not TOML: {error}")
    line = int(match[2] or text.rstrip().count("\n") + 1)
    what = f"not TOML: {match[1]}" + (f" (column {match[3]})" if match[3] else "")
    hint = next((hint for said, hint in _GRAMMAR.items() if match[1].startswith(said)), "")
    return Problem(str(path), line, f"{what}; {hint}" if hint else what)


_GRAMMAR = {
    "Invalid value": 'texts stand in quotes, as name = "value"; what is copied from main.cf, too',
    "Illegal character '\\n'": 'a text of several lines stands between """ and """',
    "Unescaped '\\'": "a text with backslashes stands in single quotes, '...' or '''...'''",
    "Unclosed array": "values in [...] have a comma between them",
    "Unterminated string": "the quotes that end the text are missing",
    "Cannot overwrite a value": "the key stands here a second time",
    "Cannot declare": "this [section] stands here a second time",
    "Expected '=' after a key": 'a line is name = "value" or [section]',
}
"""What people do who write TOML for the first time, by the beginning of the parser's complaint."""


def _build(
    tree: dict[str, Any], path: Path | None, places: KeyLocations, ask: postconf.Ask
) -> tuple[Config, list[Problem]]:
    relay = postconf.read_settings(ask)
    file = str(path or "the default configuration")
    found = list(_outside_the_models(tree))
    usable = {**relay.values, **{name: value for name, value in tree.items() if name not in NOT_YET}}
    while True:
        try:
            config = Config.model_validate(usable)
            break
        except ValidationError as error:
            wrong = list(validation_errors(error, Config))
            found += wrong
            rest = usable
            for at, _ in wrong:
                rest = _without(rest, at)
            # Nothing left to take out would mean that a default is wrong: no reason to go round for ever.
            usable = rest if rest != usable else {}
    config._file, config._places = path, places
    config._warnings = tuple(what for option, what in relay.warnings if option not in tree)
    config._drift = tuple(
        places.problem(file, (option,), what, warning=True) for option, what in _drift(config, tree, relay)
    )
    return config, sorted({places.problem(file, at, what) for at, what in found})


def _drift(config: Config, tree: Mapping[str, Any], relay: postconf.PostfixSettings) -> Iterator[tuple[str, str]]:
    """What the file says of the relay otherwise than Postfix, by option. Values that could not be taken over from
    Postfix are nothing to compare with.
    """
    unsure = {option for option, _ in relay.warnings}
    said = {option: value for option, value in relay.values.items() if option in tree and option not in unsure}
    try:
        postfix = Config.model_validate(said)
    except ValidationError:
        return  # Postfix's own value is none of ours: it is not ours to say what is wrong with it
    for option in said:
        ours, theirs = getattr(config, option), getattr(postfix, option)
        if isinstance(ours, str):
            if ours.lower() != theirs.lower():
                yield option, f"{option} is {ours!r} here and {theirs!r} in Postfix; leave it out to have Postfix's"
            continue
        differences = {"here": set(ours) - set(theirs), "in Postfix": set(theirs) - set(ours)}
        if any(differences.values()):
            parts = [
                f"only {where}: {', '.join(sorted(map(str, some)))}" for where, some in differences.items() if some
            ]
            yield option, f"{option} is not what Postfix has ({'; '.join(parts)}); leave it out to have Postfix's"


def _without(tree: dict[str, Any], at: KeyPath) -> dict[str, Any]:
    """`tree` without the option at `at`; a list goes as a whole, and so does a rule: what is left of it would be wrong
    in another way. So every round leaves less to be wrong.
    """
    key, *rest = at or ("",)
    inner = tree.get(str(key))
    if rest and isinstance(inner, dict) and str(rest[0]) in inner:
        if key == "rules":
            rest = rest[:1]
        return {**tree, str(key): _without(inner, tuple(rest))}
    return {name: value for name, value in tree.items() if name != key}


def _outside_the_models(tree: Mapping[str, Any]) -> Iterator[tuple[KeyPath, str]]:
    """Mistakes that no single field shows."""
    for name in NOT_YET:
        if name in tree:
            yield (name,), f"[{name}] is not available yet in this version; take it out"
    policy = tree.get("policy")
    if not isinstance(policy, Mapping):
        return
    contexts = policy.get("contexts")
    sets: list[tuple[KeyPath, Any]] = [(("policy",), policy)]
    if isinstance(contexts, Mapping):
        sets += [(("policy", "contexts", name), lists) for name, lists in contexts.items()]
    for at, lists in sets:
        if isinstance(lists, Mapping) and {"restrictions", "recipient_restrictions"} <= lists.keys():
            what = "restrictions and recipient_restrictions name the same list; write one of them"
            yield (*at, "recipient_restrictions"), what
