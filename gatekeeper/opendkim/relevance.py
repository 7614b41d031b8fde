# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of the differences from OpenDKIM an opendkim.conf can meet, so that the one that concerns it is not buried.

A difference that lies in the configuration is met if a setting, or a line of a table, is of its kind: that is looked
up here for each topic, or by the options that the difference names. One that depends on the mail alone can be met by
whoever signs, or whoever verifies. What the import itself would refuse is met by nobody.
"""

import os
import pwd
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address, ip_network
from pathlib import Path

from gatekeeper.app.plan import Plan
from gatekeeper.opendkim.deviations import DEVIATIONS, Deviation, Topic
from gatekeeper.opendkim.mapping import ImportedConfig
from gatekeeper.signing import data_set
from gatekeeper.signing.data_set import DataSet
from gatekeeper.signing.key_table import is_path

_ADDRESS_PATTERN = re.compile(r"!?[0-9.*]*\*[0-9.*]*")
_LONGEST_INLINE_KEY = 1024
"""Characters of a key in a KeyTable that OpenDKIM reads."""


@dataclass(frozen=True, slots=True)
class Met:
    """The deviations that a configuration meets: by what is written in it, or with some mail."""

    written: tuple[Deviation, ...]
    by_mail: tuple[Deviation, ...]


def met(imported: ImportedConfig, plan: Plan) -> Met:
    """Return what the configuration `imported`, of which `plan` was made, can meet."""
    reading = _Reading(imported, plan)
    modes = {*imported.config.milter.mode}
    written: list[Deviation] = []
    by_mail: list[Deviation] = []
    for one in DEVIATIONS:
        if one.topic in _BY_MAIL:
            wanted, unless = _BY_MAIL[one.topic]
            if modes & {*wanted} and not reading.sets(*unless):
                by_mail.append(one)
        elif is_met := _WRITTEN.get(one.topic):
            if is_met(reading):
                written.append(one)
        elif one.options:
            if reading.sets(*one.options):
                written.append(one)
        else:
            by_mail.append(one)
    return Met(tuple(written), tuple(by_mail))


class _Reading:
    """What is written in the configuration and in its tables, read when it is asked for."""

    def __init__(self, imported: ImportedConfig, plan: Plan) -> None:
        self.imported = imported
        self.plan = plan

    def sets(self, *options: str) -> bool:
        return any(option.lower() in self.imported.settings for option in options)

    def value(self, option: str) -> str:
        setting = self.imported.settings.get(option.lower())
        return setting.value if setting else ""

    def table(self, option: str) -> DataSet:
        spec = getattr(self.imported.config.signing, option) or ()
        return data_set.read(spec, option, self.imported.config.folder)[0]

    @cached_property
    def hosts(self) -> list[DataSet]:
        return [self.table(option) for option in ("internal_hosts", "peers", "external_ignore")]

    @property
    def key_fields(self) -> Iterator[list[str]]:
        yield from (entry.value.split(":", 2) for entry in self.table("key_table").entries)

    @property
    def key_files(self) -> Iterator[Path]:
        yield from (Path(key.path) for key in self.plan.signing.key_table if key.path)


def _has_negated_pattern(reading: _Reading) -> bool:
    return any(
        hosts.kind == "refile" and entry.key.startswith("*") for hosts in reading.hosts for entry in hosts.entries
    )


def _has_brackets(reading: _Reading) -> bool:
    return any(hosts.kind == "refile" and "[" in entry.key for hosts in reading.hosts for entry in hosts.entries)


def _has_address_pattern(reading: _Reading) -> bool:
    return any(
        hosts.kind == "refile" and _ADDRESS_PATTERN.fullmatch(entry.key)
        for hosts in reading.hosts
        for entry in hosts.entries
    )


def _has_odd_domain(reading: _Reading) -> bool:
    return any(fields[0] != fields[0].lower() or not fields[0].isascii() for fields in reading.key_fields)


def _has_odd_network(reading: _Reading) -> bool:
    return any(_is_odd(entry.key.strip("![]")) for hosts in reading.hosts for entry in hosts.entries)


def _is_odd(text: str) -> bool:
    """Return whether this is a network that OpenDKIM, which compares text, never finds."""
    address, slash, bits = text.partition("/")
    try:
        network = ip_network(text, strict=False)
        return bool(slash) and (
            ip_address(address.strip("[]")) != network.network_address or bits != str(network.prefixlen)
        )
    except ValueError:
        return False


def _has_star_at(reading: _Reading) -> bool:
    table = reading.table("signing_table")
    return table.kind != "refile" and any(entry.key.startswith("*@") for entry in table.entries)


def _has_spaces(reading: _Reading) -> bool:
    return any(part != part.strip() for fields in reading.key_fields for part in fields)


def _has_long_inline_key(reading: _Reading) -> bool:
    return any(
        len(fields) == 3 and not is_path(fields[2].strip()) and len(fields[2]) > _LONGEST_INLINE_KEY
        for fields in reading.key_fields
    )


def _has_signer_without_at(reading: _Reading) -> bool:
    signers = (entry.value.partition(":")[2].strip() for entry in reading.table("signing_table").entries)
    return any(signer and "@" not in signer for signer in signers)


def _signs_several_times(reading: _Reading) -> bool:
    return reading.imported.config.signing.multiple_signatures and len(reading.table("signing_table").entries) > 2


def _signs_twice_with_a_key(reading: _Reading) -> bool:
    names = Counter(entry.value.partition(":")[0].strip() for entry in reading.table("signing_table").entries)
    return reading.imported.config.signing.multiple_signatures and any(count > 1 for count in names.values())


def _quarantines(reading: _Reading) -> bool:
    capture = reading.imported.settings.get("captureunknownerrors")
    return "quarantine" in _actions(reading) and not (capture is not None and capture.flag)


def _refuses(reading: _Reading) -> bool:
    return bool({"reject", "tempfail"} & _actions(reading)) or reading.imported.config.checks.dkim.required_headers


def _actions(reading: _Reading) -> set[str]:
    """Return the actions that the file asks for; defaults are OpenDKIM's."""
    chosen: Mapping[str, object] = reading.imported.tree["checks"]["dkim"]
    return {str(value) for key, value in chosen.items() if ("checks", "dkim", key) in reading.imported.setting_by_key}


def _is_weak(reading: _Reading) -> bool:
    bits = reading.imported.settings.get("minimumkeybits")
    return reading.value("SignatureAlgorithm").lower() == "rsa-sha1" or (bits is not None and bits.number < 1024)


def _keys_are_opendkims(reading: _Reading) -> bool:
    try:
        owner = pwd.getpwnam("opendkim").pw_uid
    except KeyError:
        return False
    return reading.imported.config.user != "opendkim" and any(_status(key).st_uid == owner for key in reading.key_files)


def _keys_are_in_sticky_folders(reading: _Reading) -> bool:
    return any(_status(above).st_mode & stat.S_ISVTX for key in reading.key_files for above in key.parents)


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError:
        return os.stat_result((0,) * 10)


_WRITTEN: dict[Topic, Callable[[_Reading], bool]] = {
    Topic.HOST_PATTERN: _has_negated_pattern,
    Topic.HOST_ANYBODY: lambda _: False,  # refused
    Topic.HOST_ADDRESSES: _has_address_pattern,
    Topic.HOST_BITS: _has_odd_network,
    Topic.HOST_BRACKETS: _has_brackets,
    Topic.SIGNING_DOMAIN: _has_odd_domain,
    Topic.STAR_AT_DOMAIN: _has_star_at,
    Topic.KEY_SPACES: _has_spaces,
    Topic.INLINE_KEY: _has_long_inline_key,
    Topic.SIGNER_WITHOUT_AT: _has_signer_without_at,
    Topic.THREE_SIGNATURES: _signs_several_times,
    Topic.SAME_KEY_TWICE: _signs_twice_with_a_key,
    Topic.QUARANTINE: _quarantines,
    Topic.REPLIES: _refuses,
    Topic.WEAK: _is_weak,
    Topic.KEY_OWNER: _keys_are_opendkims,
    Topic.STICKY_FOLDER: _keys_are_in_sticky_folders,
    Topic.STRICT_CONFIGURATION: lambda _: False,
}
"""How it is seen that something written meets a difference; of others the options decide."""

_BY_MAIL: dict[Topic, tuple[str, tuple[str, ...]]] = {
    Topic.DOMAIN_SPELLING: ("s", ()),
    Topic.LAST_LINE: ("sv", ()),
    Topic.SEVERAL_FROM: ("s", ()),
    Topic.AMBIGUOUS_FROM: ("s", ()),
    Topic.SIGNED_BEFORE: ("s", ()),
    Topic.CANONICALIZATION_HEADER: ("s", ()),
    Topic.LONG_LINES: ("s", ()),
    Topic.LONG_HEADER: ("sv", ("MaximumHeaders", "On-Security")),
    Topic.SIGNALS: ("sv", ()),
    Topic.LOG: ("sv", ()),
    Topic.NO_ATPS: ("v", ()),
    Topic.MALFORMED: ("v", ()),
    Topic.DETAIL: ("v", ()),
    Topic.AUTHSERV_ID: ("v", ("AuthservID",)),
}
"""Whom some mail, or a day with it, makes meet a difference: who signs or verifies, without one of these options."""
