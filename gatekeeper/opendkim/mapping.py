# SPDX-License-Identifier: GPL-3.0-or-later
"""The translation of an opendkim.conf into the tree of an equivalent gatekeeper.toml, and into its Config.

The tree starts from OpenDKIM's defaults, which are not ours, and goes through the same models, tables and checks as
that of gatekeeper.toml: the only decision made here is which option corresponds to which. Each key of the tree is
recorded with the setting it comes from, so that mistakes are reported with their line in opendkim.conf. What concerns
only the process (pid file, background) is in ImportedConfig.
"""

import grp
import os
import pwd
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gatekeeper.config import config_file
from gatekeeper.config.config_file import Config
from gatekeeper.config.locations import KeyLocations, KeyPath
from gatekeeper.core.problem import Problem
from gatekeeper.core.working_folder import working_folder
from gatekeeper.opendkim import conf
from gatekeeper.opendkim.conf import ConfSetting
from gatekeeper.opendkim.options import Fate, OptionKind
from gatekeeper.postfix import postconf
from gatekeeper.postfix.listen_address import parse_listen_address
from gatekeeper.signing import data_set
from gatekeeper.signing.signer import OMITTED, OPENDKIM_HEADERS

DEFAULT_PATH = Path("/etc/opendkim.conf")

_ACTIONS = {word[0]: word for word in ("accept", "discard", "quarantine", "reject", "tempfail")}
_QUOTES = "\"'"
_MAX_DNS_TIMEOUT = "60s"
_MAX_SIGNATURES = 100
_OPENDKIM_MAX_HEADER = 65536
"""Bytes: the limit of OpenDKIM without MaximumHeaders."""

Tree = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedConfig:
    """An opendkim.conf in gatekeeper's terms.

    `setting_by_key` maps a key of the tree to the setting that it comes from. `settings` is everything that is set, by
    lower-case name; the last setting of a name counts.
    """

    config: Config
    tree: Mapping[str, Any]
    setting_by_key: Mapping[KeyPath, ConfSetting]
    settings: Mapping[str, ConfSetting]
    pid_file: Path | None
    background: bool


def load(
    path: Path | None,
    overrides: Sequence[ConfSetting] = (),
    *,
    ask: postconf.Ask = postconf.ask_postfix,
    need_socket: bool = True,
    testing: bool = False,
    tolerant: bool = False,
) -> ImportedConfig:
    """Load the opendkim.conf at `path`, with `overrides` from the command line.

    With `testing`, mail is only verified unless Mode is set; with `tolerant`, an unsupported option is a warning.
    Raises ConfigError with every mistake.
    """
    file_settings, problems = conf.read(path) if path else ([], [])
    settings: dict[str, ConfSetting] = {}
    for setting in (*file_settings, *overrides):
        name = setting.option.name.lower()
        overridden = settings.pop(name, None)
        if overridden is not None and setting.line:
            problems.append(overridden.problem(f"line {setting.line} of {setting.file} sets it again", warning=True))
        settings[name] = setting
    mapper = _Mapper(settings, problems)
    if testing:
        mapper.tree["milter"]["mode"] = "v"
    mapper.map(need_socket=need_socket, tolerant=tolerant)
    file = str(path or "opendkim.conf")
    locations = _SettingLocations(mapper.setting_by_key)
    built = config_file.from_tree(mapper.tree, file, locations, base=mapper.base, found=problems, ask=ask)
    pid_file = settings.get("pidfile")
    background = settings.get("background")
    return ImportedConfig(
        config=built,
        tree=mapper.tree,
        setting_by_key=mapper.setting_by_key,
        settings=settings,
        pid_file=mapper.path(pid_file.value) if pid_file else None,
        background=background.flag if background else True,
    )


class _SettingLocations(KeyLocations):
    """Locations in an opendkim.conf: a problem of a key is reported for the option that the key comes from."""

    def __init__(self, setting_by_key: Mapping[KeyPath, ConfSetting]) -> None:
        super().__init__("")
        self._setting_by_key = setting_by_key

    def problem(self, file: str, path: KeyPath, what: str, *, warning: bool = False) -> Problem:
        """Return a problem as KeyLocations.problem does, with the name of OpenDKIM's option."""
        for length in range(len(path), 0, -1):
            if (setting := self._setting_by_key.get(tuple(path[:length]))) is not None:
                name = ".".join(str(part) for part in path[:length])
                what = re.sub(rf"^{re.escape(name)}(:| is)? ?", "", what)
                return setting.problem(what, warning=warning)
        return Problem(file, 0, what, warning)

    def without_text(self) -> "_SettingLocations":
        """Return the same places without the values, which may be keys."""
        return _SettingLocations({at: replace(one, value="") for at, one in self._setting_by_key.items()})


def _defaults() -> Tree:
    """Return OpenDKIM's defaults, where ours differ. The milter alone needs no lasting store."""
    return {
        "store": {"url": "memory:"},
        "milter": {},
        "signing": {
            "internal_hosts": "csl:127.0.0.1",
            "daemon_names": [],
            "canonicalization": "simple/simple",
            "sign_headers": list(OPENDKIM_HEADERS),
            "oversign_headers": [],
        },
        "verify": {"methods": ["dkim"], "tell_none": False, "remove_results": "told", "unsigned_ours": True},
        "checks": {"dkim": {"mode": "enforce", "dns_error": "tempfail", "internal_error": "tempfail"}},
        "dns": {},
        "log": {"level": "error"},
    }


_LOG_LEVELS = {"syslog": "warning", "syslogsuccess": "info", "logresults": "info", "logwhy": "debug"}
"""What each option asks to be logged, the most last; without any of them only errors are."""


@dataclass(slots=True)
class _Mapper:
    """Translates `settings`, by lower-case name; `tree`, `setting_by_key` and `problems` are filled on the way."""

    settings: Mapping[str, ConfSetting]
    problems: list[Problem]
    tree: Tree = field(default_factory=_defaults)
    setting_by_key: dict[KeyPath, ConfSetting] = field(default_factory=dict)

    def map(self, *, need_socket: bool, tolerant: bool) -> None:
        """Translate every setting."""
        self._unsupported(tolerant=tolerant)
        self._socket(needed=need_socket)
        self._user()
        self._log()
        self._results()
        self._actions()
        self._headers()
        self._keys()
        for name, (key, convert) in _DIRECT.items():
            if (setting := self.settings.get(name)) is not None:
                self._put(key, convert(self, setting), setting)

    @property
    def base(self) -> Path:
        """The directory that relative paths start from."""
        setting = self.settings.get("basedirectory")
        return working_folder() / setting.value if setting else working_folder()

    def path(self, value: str) -> Path:
        """Return a path, relative to BaseDirectory."""
        return self.base / value

    def table(self, setting: ConfSetting) -> str:
        """Return a data set, spelled so that it means the same in gatekeeper.toml."""
        match = re.match(r"(file|refile):(?!:)(.*)", setting.value, re.IGNORECASE)
        if match:
            return f"{match[1].lower()}:{self.path(match[2].strip())}"
        if setting.value.startswith("/") or re.match(r"(?!csl:)[a-z]{2,}:(?!:)", setting.value, re.IGNORECASE):
            return setting.value
        return "csl:" + re.sub("^csl:", "", setting.value, flags=re.IGNORECASE)

    def names(self, setting: ConfSetting) -> list[str]:
        """Return the entries of a data set, for an option that is a list in gatekeeper.toml."""
        data, problems = data_set.read(self.table(setting), setting.option.name, self.base)
        for problem in problems:
            in_file = problem.file != setting.option.name
            self.problems.append(problem if in_file else setting.problem(problem.what, warning=problem.warning))
        return [entry.key for entry in data.entries]

    def headers(self, setting: ConfSetting, default: Sequence[str]) -> list[str]:
        """Return a list of header fields: as it is, or with `*` the default plus each `+name` less each `-name`."""
        names = self.names(setting)
        if "*" not in names:
            return names
        added = [name[1:] for name in names if name.startswith("+")]
        removed = {name[1:].lower() for name in names if name.startswith("-")}
        return [name for name in (*default, *added) if name.lower() not in removed]

    def _put(self, key: KeyPath, value: object, setting: ConfSetting) -> None:
        *sections, name = map(str, key)
        inner = self.tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
        self.setting_by_key[key] = setting

    def _flag(self, name: str) -> bool:
        setting = self.settings.get(name)
        return setting is not None and setting.flag

    def _error(self, setting: ConfSetting, what: str, *, warning: bool = False) -> None:
        self.problems.append(setting.problem(what, warning=warning))

    def _unsupported(self, *, tolerant: bool) -> None:
        for setting in self.settings.values():
            option = setting.option
            if option.kind is OptionKind.BOOLEAN and not setting.flag:
                continue
            if option.kind is OptionKind.STRING and option.fate is Fate.WORKS and setting.value[0] in _QUOTES:
                what = "the quotes are part of the value, as in OpenDKIM, and what they touch is not found; remove them"
                self._error(setting, what, warning=True)
            if option.fate is Fate.REFUSED:
                self._error(setting, f"not supported: {option.comment}", warning=tolerant)
            elif option.fate is Fate.IGNORED:
                self._error(setting, f"without effect here: {option.comment}", warning=True)

    def _socket(self, *, needed: bool) -> None:
        setting = self.settings.get("socket")
        if setting is None:
            if needed:
                what = (
                    "there is no Socket, and without one it does not start; write one, such as "
                    "Socket local:/run/opendkim/opendkim.sock, or give -p"
                )
                self.problems.append(Problem(self._file(), 0, what))
            return
        text = setting.value
        if text.isdigit():
            self._error(setting, f"{text!r} is a path to OpenDKIM; for a port write inet:{text}@localhost")
            return
        if ":" not in text or re.match(r"(local|unix):(?!/)", text):  # OpenDKIM takes a lone path, and a relative one
            text = f"unix:{self.path(text.rpartition(':')[2])}"
        try:
            parse_listen_address(text)
        except ValueError as error:
            self._error(setting, str(error))
            return
        self._put(("milter", "listen"), text, setting)
        mask = self.settings.get("umask")
        bits = mask.number if mask else _umask()
        if not 0 <= bits <= 0o777:
            assert mask is not None
            self._error(mask, f"{mask.value!r} is not a valid umask; allowed: 0 to 0777, in octal, such as 007")
            return
        self._put(("milter", "socket_mode"), f"0{0o777 & ~bits:03o}", mask or setting)

    def _file(self) -> str:
        return next((setting.file for setting in self.settings.values() if setting.line), "opendkim.conf")

    def _user(self) -> None:
        setting = self.settings.get("userid")
        if setting is None:
            return
        name, _, group = setting.value.partition(":")
        try:
            user = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
        except KeyError:
            self._error(setting, f"there is no user {name!r} on this machine", warning=os.geteuid() != 0)
            return
        try:
            found = grp.getgrgid(int(group or user.pw_gid)) if group.isdigit() or not group else grp.getgrnam(group)
        except KeyError:
            self._error(setting, f"there is no group {group or user.pw_gid!r} on this machine")
            return
        self._put(("user",), user.pw_name, setting)
        self._put(("group",), found.gr_name, setting)
        listen = self.tree["milter"].get("listen")
        if listen and parse_listen_address(listen).family == "unix" and os.geteuid() == 0:
            self._put(("milter", "socket_group"), found.gr_name, setting)

    def _log(self) -> None:
        """Translate what is logged, and where: what is asked for is shown, without Syslog on standard error."""
        for option, level in _LOG_LEVELS.items():
            if self._flag(option):
                self._put(("log", "level"), level, self.settings[option])
        if not self._flag("syslog"):
            return
        facility = self.settings.get("syslogfacility")
        name = self.settings.get("syslogname")
        syslog = self.settings["syslog"]
        self._put(("log", "syslog"), facility.value.lower() if facility else "mail", facility or syslog)
        self._put(("log", "syslog_name"), name.value if name else "opendkim", name or syslog)

    def _results(self) -> None:
        for name, value in (("removearall", "ours"), ("keepauthresults", "none")):
            if self._flag(name):
                self._put(("verify", "remove_results"), value, self.settings[name])
        for name in ("softwareheader", "x-header"):
            if self._flag(name):
                self._put(("milter", "software_header"), True, self.settings[name])
        if (bits := self.settings.get("minimumkeybits")) is not None:
            if bits.number < 1024:
                self._error(bits, "keys below 1024 bits are never accepted (RFC 8301); write 1024", warning=True)
            for section in ("verify", "signing"):
                self._put((section, "minimum_key_bits"), max(1024, bits.number), bits)

    def _actions(self) -> None:
        """Translate each On-… option, with On-Default for those that are not set."""
        default = self.settings.get("on-default")
        for name, key in _ACTION_KEYS.items():
            setting = self.settings.get(name) or default
            if setting is None:
                continue
            word = setting.value.lower()
            action = _ACTIONS.get(word[0])
            if action is None or word not in (action, action[0]):
                allowed = ", ".join(f"{word} ({letter})" for letter, word in _ACTIONS.items())
                self._error(setting, f"{setting.value!r} is not a valid action; allowed: {allowed}")
                continue
            self._put(("checks", "dkim", key), action, setting)
        always = self.settings.get("alwaysaddarheader")
        if always is not None and always.flag and self.tree["checks"]["dkim"].get("no_signature", "accept") != "accept":
            what = "as in OpenDKIM, On-NoSignature has no effect beside it, and unsigned mail is accepted"
            self._error(always, what, warning=True)
            self._put(("checks", "dkim", "no_signature"), "accept", always)

    def _headers(self) -> None:
        """Translate MaximumHeaders; On-Security without it implies OpenDKIM's own limit."""
        limit, security = self.settings.get("maximumheaders"), self.settings.get("on-security")
        if (setting := limit or security) is not None:
            max_header = limit.number if limit else _OPENDKIM_MAX_HEADER
            self._put(("checks", "dkim", "max_header"), max(0, max_header), setting)

    def _keys(self) -> None:
        """Translate the tables, or one key for some domains, by OpenDKIM's rules about which option needs which."""
        get = self.settings.get
        table, rules, domain, selector, key = map(get, ("keytable", "signingtable", "domain", "selector", "keyfile"))
        mode = get("mode")
        if mode is not None and "s" not in mode.value:
            return
        if rules and not table:
            self._error(rules, "it names keys in a KeyTable, and there is none")
        if table and not rules:
            self._error(table, "nothing says who signs with these keys; write a SigningTable too")
        if table:
            for ignored in filter(None, (domain, selector, key)):
                self._error(ignored, "without effect beside a KeyTable, as in OpenDKIM", warning=True)
            self._put(("signing", "key_table"), self.table(table), table)
            if rules:
                self._put(("signing", "signing_table"), self.table(rules), rules)
            return
        for one, other in ((selector, "KeyFile"), (key, "Selector"), (domain, "KeyFile"), (domain, "Selector")):
            if one and not get(other.lower()):
                self._error(one, f"it needs a {other}")
        if domain and selector and key:
            self._put(("signing", "domains"), self.table(domain), domain)
            self._put(("signing", "selector"), selector.value, selector)
            self._put(("signing", "key_file"), str(self.path(key.value)), key)


_ACTION_KEYS = {
    "on-nosignature": "no_signature",
    "on-badsignature": "bad_signature",
    "on-keynotfound": "key_not_found",
    "on-dnserror": "dns_error",
    "on-internalerror": "internal_error",
    "on-security": "long_header",
}

_Convert = Callable[[_Mapper, ConfSetting], object]


def _flag(_mapper: _Mapper, setting: ConfSetting) -> object:
    return setting.flag


def _number(_mapper: _Mapper, setting: ConfSetting) -> object:
    return setting.number


def _mode(mapper: _Mapper, setting: ConfSetting) -> object:
    if set(setting.value) <= set("sv"):
        return "".join(letter for letter in "sv" if letter in setting.value)
    mapper.problems.append(setting.problem(f"{setting.value!r} is not a valid mode; allowed: s (sign), v (verify), sv"))
    return "sv"


def _canonicalization(_mapper: _Mapper, setting: ConfSetting) -> object:
    return setting.value.lower()


def _algorithm(mapper: _Mapper, setting: ConfSetting) -> object:
    value = setting.value.lower()
    if value != "rsa-sha1":
        return value
    what = "no verifier accepts rsa-sha1 any more (RFC 8301); rsa-sha256 is used"
    mapper.problems.append(setting.problem(what, warning=True))
    return "rsa-sha256"


def _clock_drift(_mapper: _Mapper, setting: ConfSetting) -> object:
    return f"{setting.number or 300}s"


def _max_signatures(_mapper: _Mapper, setting: ConfSetting) -> object:
    return min(setting.number, _MAX_SIGNATURES) if setting.number > 0 else _MAX_SIGNATURES


def _dns_timeout(_mapper: _Mapper, setting: ConfSetting) -> object:
    return f"{setting.number}s" if setting.number else _MAX_DNS_TIMEOUT


def _authserv_id(_mapper: _Mapper, setting: ConfSetting) -> object:
    return socket.gethostname() if setting.value == "HOSTNAME" else setting.value


def _servers(_mapper: _Mapper, setting: ConfSetting) -> object:
    return [server.strip() for server in setting.value.split(",") if server.strip()]


def _sign_headers(mapper: _Mapper, setting: ConfSetting) -> object:
    return mapper.headers(setting, OPENDKIM_HEADERS)


def _omit_headers(mapper: _Mapper, setting: ConfSetting) -> object:
    # "." and "-" are OpenDKIM's ways to omit nothing: a text that is not the name of any field
    return [name for name in mapper.headers(setting, OMITTED) if name not in (".", "-")]


_DIRECT: dict[str, tuple[KeyPath, _Convert]] = {
    "alwaysaddarheader": (("verify", "tell_none"), _flag),
    "authservid": (("authserv_id",), _authserv_id),
    "authservidwithjobid": (("verify", "job_id"), _flag),
    "canonicalization": (("signing", "canonicalization"), _canonicalization),
    "clockdrift": (("verify", "clock_drift"), _clock_drift),
    "dnstimeout": (("dns", "timeout"), _dns_timeout),
    "dontsignmailto": (("signing", "dont_sign_to"), _Mapper.table),
    "exemptdomains": (("signing", "exempt_domains"), _Mapper.table),
    "externalignorelist": (("signing", "external_ignore"), _Mapper.table),
    "internalhosts": (("signing", "internal_hosts"), _Mapper.table),
    "macrolist": (("signing", "macros"), _Mapper.table),
    "maximumsignaturestoverify": (("verify", "max_signatures"), _max_signatures),
    "maximumsignedbytes": (("signing", "body_length"), _number),
    "mode": (("milter", "mode"), _mode),
    "mta": (("signing", "daemon_names"), _Mapper.table),
    "multiplesignatures": (("signing", "multiple_signatures"), _flag),
    "nameservers": (("dns", "nameservers"), _servers),
    "omitheaders": (("signing", "omit_headers"), _omit_headers),
    "oversignheaders": (("signing", "oversign_headers"), _Mapper.names),
    "peerlist": (("signing", "peers"), _Mapper.table),
    "removearfrom": (("verify", "remove_results_of"), _Mapper.names),
    "removeoldsignatures": (("signing", "remove_old_signatures"), _flag),
    "requestreports": (("signing", "request_reports"), _flag),
    "requiredheaders": (("checks", "dkim", "required_headers"), _flag),
    "requiresafekeys": (("signing", "safe_keys"), _flag),
    "senderheaders": (("signing", "sender_headers"), _Mapper.names),
    "signaturealgorithm": (("signing", "algorithm"), _algorithm),
    "signaturettl": (("signing", "signature_ttl"), _number),
    "signheaders": (("signing", "sign_headers"), _sign_headers),
    "subdomains": (("signing", "subdomains"), _flag),
}


def _umask() -> int:
    """Return the umask of this process, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
