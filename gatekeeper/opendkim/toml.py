# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes an ImportedConfig as gatekeeper.toml: what differs from our defaults, each with the line it comes from."""

from collections.abc import Iterator, Mapping
from typing import Any

import tomlkit

from gatekeeper.config import config_file
from gatekeeper.config.config_file import Config
from gatekeeper.config.locations import KeyPath
from gatekeeper.core import toml_writer
from gatekeeper.opendkim.mapping import ImportedConfig

_LEFT_OUT = {("store", "url")}
"""What only serves a milter that runs alone."""


def write(relay: ImportedConfig) -> str:
    """Return the text of the whole file."""
    shown = [(path, value) for path, value in _leaves(relay.tree) if path not in _LEFT_OUT and _differs(relay, path)]
    document = tomlkit.document()
    document.add(tomlkit.comment("Written by gatekeeper import-opendkim; what is not here has gatekeeper's default."))
    for path, value in sorted(shown, key=lambda leaf: (len(leaf[0]) > 1, _section_order(leaf[0]))):
        section: Any = document
        for name in path[:-1]:
            if name not in section:
                section.add(name, tomlkit.table())
            section = section[name]
        section.add(tomlkit.comment(_origin(relay, path)))
        section.add(path[-1], toml_writer.item(value))
    return toml_writer.text(document)


def _origin(relay: ImportedConfig, path: KeyPath) -> str:
    setting = relay.setting_by_key.get(path)
    return f"{setting.option.name}, {setting.file}:{setting.line}" if setting is not None else "OpenDKIM's default"


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
