# SPDX-License-Identifier: GPL-3.0-or-later
"""A report for the postmaster, line by line, of what changes when gatekeeper replaces OpenDKIM."""

from collections.abc import Iterator
from pathlib import Path

from gatekeeper.app.plan import Plan
from gatekeeper.core.problem import Problem
from gatekeeper.core.verdict import printable
from gatekeeper.opendkim.conf import ConfSetting
from gatekeeper.opendkim.deviations import DEVIATIONS
from gatekeeper.opendkim.mapping import ImportedConfig, load
from gatekeeper.opendkim.options import Fate, OptionKind
from gatekeeper.opendkim.relevance import met
from gatekeeper.postfix import postconf

_NOT_IN_THE_FILE = {
    "background": "not in the file: gatekeeper stays in the foreground, as systemd expects",
    "basedirectory": "paths are written in full; relative key paths in a KeyTable start at the new file's folder",
    "pidfile": "not in the file: gatekeeper stays in the foreground, and systemd knows its process",
    "userid": "the same: workers run as this user; give it no other rights. If gatekeeper has run as another before: "
    "chown -R USER: /var/lib/gatekeeper",
}


def read(path: Path, *, ask: postconf.Ask = postconf.ask_postfix) -> ImportedConfig:
    """Load the opendkim.conf at `path`; unsupported options are warnings, other mistakes raise ConfigError."""
    return load(path, ask=ask, need_socket=False, tolerant=True)


def lines(imported: ImportedConfig, plan: Plan, *, everything: bool = False) -> Iterator[str]:
    """Yield the report: each setting, the problems in the file and in the tables, what is different on purpose.

    Of what is different, the differences that this configuration can meet; with `everything` all that there are.
    """
    for setting in sorted(imported.settings.values(), key=lambda one: (one.file, one.line)):
        yield f"{setting.file}:{setting.line}: {setting.option.name} {printable(setting.value, 80)}: {_effect(setting)}"
    if in_file := [*_warnings(imported)]:
        yield ""
        yield "In the file:"
        yield from (f"  {problem}" for problem in in_file)
    if table_problems := [problem for problem in plan.warnings if problem not in imported.config.warnings]:
        yield ""
        yield "In the tables:"
        # what opens something first: a postmaster may stop reading
        yield from (f"  {problem}" for problem in sorted(table_problems, key=lambda one: not one.opens))
    yield ""
    if everything:
        yield "Different from OpenDKIM on purpose (docs/opendkim.md):"
        yield from (f"  {deviation.topic}: {deviation}" for deviation in DEVIATIONS)
        return
    found = met(imported, plan)
    if found.written:
        yield "Different from OpenDKIM on purpose, and met here (docs/opendkim.md):"
        yield from (f"  {deviation.topic}: {deviation}" for deviation in found.written)
    else:
        yield "Nothing that is written here means something else than in OpenDKIM."
    if found.by_mail:
        topics = ", ".join(deviation.topic for deviation in found.by_mail)
        yield f"Different with some mail, or in operation (--all tells each): {topics}"


def _warnings(imported: ImportedConfig) -> Iterator[Problem]:
    """Yield the warnings about settings that work; of the others all is said with each."""
    others = {(one.file, one.line) for one in imported.settings.values() if one.option.fate is not Fate.WORKS}
    yield from (one for one in imported.config.warnings if one.line and (one.file, one.line) not in others)


def unsupported(imported: ImportedConfig) -> list[ConfSetting]:
    """Return the settings that are not supported and would change which mail is signed or refused."""
    return [
        setting for setting in imported.settings.values() if setting.option.fate is Fate.REFUSED and _is_set(setting)
    ]


def _effect(setting: ConfSetting) -> str:
    option = setting.option
    if not _is_set(setting) and option.fate is not Fate.WORKS:
        return "off, and off here too"
    match option.fate:
        case Fate.WORKS:
            special = _NOT_IN_THE_FILE.get(option.name.lower())
            return special or (f"works; {option.comment}" if option.comment else "the same")
        case Fate.NEEDLESS:
            return f"nothing to do: {option.comment}"
        case Fate.IGNORED:
            return f"WITHOUT EFFECT: {option.comment}"
    return f"NOT SUPPORTED: {option.comment}"


def _is_set(setting: ConfSetting) -> bool:
    return setting.option.kind is not OptionKind.BOOLEAN or setting.flag
