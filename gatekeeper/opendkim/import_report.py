# SPDX-License-Identifier: GPL-3.0-or-later
"""What changes when gatekeeper takes the place of OpenDKIM with this configuration, line by line, for a postmaster."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from gatekeeper.core.problem import Problem
from gatekeeper.core.verdict import printable
from gatekeeper.opendkim.conf import ConfSetting
from gatekeeper.opendkim.deviations import concerning
from gatekeeper.opendkim.mapping import ImportedConfig, load
from gatekeeper.opendkim.options import Fate, OptionKind
from gatekeeper.postfix import postconf

_NOT_IN_THE_FILE = {
    "background": "not in the file: gatekeeper stays in the foreground, as systemd likes it",
    "basedirectory": "paths are written out; relative paths of keys in a KeyTable start at the folder of the new file",
    "pidfile": "not in the file: gatekeeper stays in the foreground, and systemd knows its process",
    "userid": "the same: workers become this user; give it no other rights. If gatekeeper has run as another before: "
    "chown -R USER: /var/lib/gatekeeper",
}


def read(path: Path, *, ask: postconf.Ask = postconf.ask_postfix) -> ImportedConfig:
    """The relay to import, with what is not supported as warnings. Raises ConfigError for all other mistakes."""
    return load(path, ask=ask, need_socket=False, tolerant=True)


def lines(relay: ImportedConfig, found: Sequence[Problem] = ()) -> Iterator[str]:
    """The report: each setting, then what was `found` in the tables, then what is different on purpose."""
    for setting in sorted(relay.settings.values(), key=lambda one: (one.file, one.line)):
        yield f"{setting.file}:{setting.line}: {setting.option.name} {printable(setting.value, 80)}: {_said(setting)}"
    if found:
        yield ""
        yield "In the tables:"
        yield from (f"  {problem}" for problem in found)
    yield ""
    yield "Different from OpenDKIM on purpose (docs/opendkim.md):"
    for deviation in concerning(relay.settings):
        yield f"  {deviation.on}: {deviation}"


def unsupported(relay: ImportedConfig) -> list[ConfSetting]:
    """The settings without which the relay would do something else."""
    return [setting for setting in relay.settings.values() if setting.option.fate is Fate.REFUSED and _is_set(setting)]


def _said(setting: ConfSetting) -> str:
    option = setting.option
    if not _is_set(setting) and option.fate is not Fate.WORKS:
        return "off, and so it is here"
    match option.fate:
        case Fate.WORKS:
            special = _NOT_IN_THE_FILE.get(option.name.lower())
            return special or (f"works; {option.word}" if option.word else "the same")
        case Fate.NEEDLESS:
            return f"nothing to do: {option.word}"
        case Fate.IGNORED:
            return f"WITHOUT EFFECT: {option.word}"
    return f"NOT SUPPORTED: {option.word}"


def _is_set(setting: ConfSetting) -> bool:
    return setting.option.kind is not OptionKind.BOOLEAN or setting.flag
