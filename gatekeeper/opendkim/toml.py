# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes an ImportedConfig as gatekeeper.toml: what differs from our defaults, each with the line it comes from."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from gatekeeper.config import config_file
from gatekeeper.config.config_file import Config
from gatekeeper.config.locations import KeyPath
from gatekeeper.opendkim.mapping import ImportedConfig

_LEFT_OUT = {("store", "url")}
"""What only serves a milter that runs alone."""
_WIDTH = 120


def write(relay: ImportedConfig) -> str:
    """Return the text of the whole file."""
    shown = [(path, value) for path, value in _leaves(relay.tree) if path not in _LEFT_OUT and _differs(relay, path)]
    lines = ["# Written by gatekeeper import-opendkim; what is not here has gatekeeper's default."]
    section: KeyPath = ()
    for path, value in sorted(shown, key=lambda leaf: (len(leaf[0]) > 1, _section_order(leaf[0]))):
        if path[:-1] != section:
            section = path[:-1]
            lines += ["", f"[{'.'.join(map(str, section))}]"]
        lines += [*_comment(relay, path), *_assignment(str(path[-1]), value)]
    return "\n".join(lines) + "\n"


def value(plain: object) -> str:
    """Return a string, number, boolean or list in TOML's syntax."""
    if isinstance(plain, bool):
        return "true" if plain else "false"
    if isinstance(plain, list):
        return f"[{', '.join(map(value, plain))}]"
    if isinstance(plain, str):
        # JSON escapes as TOML's basic strings do, but for DEL and for bytes that were no UTF-8
        text = json.dumps(plain, ensure_ascii=False).replace("\x7f", "\\u007f")
        return re.sub("[\ud800-\udfff]", "\ufffd", text)
    return str(plain)


def _assignment(name: str, plain: object) -> Iterator[str]:
    line = f"{name} = {value(plain)}"
    if len(line) <= _WIDTH or not isinstance(plain, list):
        yield line
        return
    yield f"{name} = ["
    for item in plain:
        yield f"  {value(item)},"
    yield "]"


def _comment(relay: ImportedConfig, path: KeyPath) -> Iterator[str]:
    setting = relay.setting_by_key.get(path)
    if setting is not None:
        yield f"# {setting.option.name}, {setting.file}:{setting.line}"
    else:
        yield "# OpenDKIM's default"


def _leaves(tree: Mapping[str, Any], above: KeyPath = ()) -> Iterator[tuple[KeyPath, object]]:
    for key, inner in tree.items():
        if isinstance(inner, dict):
            yield from _leaves(inner, (*above, key))
        else:
            yield (*above, key), inner


def _section_order(path: KeyPath) -> tuple[str, ...]:
    return tuple(map(str, path[:-1]))


def _differs(relay: ImportedConfig, path: KeyPath) -> bool:
    """Whether the option is another than it would be without this file, on any machine."""
    return path in (("user",), ("authserv_id",)) or _at(relay.config, path) != _at(
        config_file.defaults(lambda _: {}), path
    )


def _at(built: Config, path: KeyPath) -> object:
    found: object = built
    for key in path:
        found = getattr(found, str(key))
    return found
