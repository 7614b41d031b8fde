# SPDX-License-Identifier: GPL-3.0-or-later
"""Where keys are configured, and how a new one gets there.

That is a line of the KeyTable, or selector and key_file in gatekeeper.toml. Everything else in the file stays as it
was, byte for byte, with its owner and mode. Lists in the configuration (csl:, TOML lists) and opendkim.conf are left to
people: the report says what to write.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError

from gatekeeper.app.signing_plan import key_table, key_table_file
from gatekeeper.auth.domains import configured_domain
from gatekeeper.config.config_file import Config
from gatekeeper.config.locations import KeyLocations
from gatekeeper.core import file_lock, toml_writer
from gatekeeper.core.safe_path import real_path
from gatekeeper.core.text_files import without_bom
from gatekeeper.core.working_folder import absolute
from gatekeeper.rotation.state import KeyReference, RotationRefused, RotationState
from gatekeeper.signing import key_generation
from gatekeeper.signing.key_table import is_path
from gatekeeper.signing.keys import ALGORITHMS, BadKey, PrivateKey

_LINE = re.compile(r"(?P<before>\s*[^\s#]+\s+)(?P<value>[^#]*?)(?P<after>\s*(?:#.*)?)\r?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class KeySelection:
    """KeyReference keys are selected: those of a domain, with a selector, or `older` than so many seconds."""

    domain: str = ""
    selector: str = ""
    older: float | None = None

    @property
    def is_named(self) -> bool:
        """Whether keys are selected by domain or selector."""
        return bool(self.domain or self.selector)

    def __str__(self) -> str:
        return " ".join(filter(None, (self.domain, self.selector and f"with selector {self.selector}")))


@dataclass(frozen=True, slots=True)
class ConfiguredKey:
    """A key as it is configured, for all the `domains` that it serves."""

    domains: tuple[str, ...]
    reference: KeyReference
    private: PrivateKey | None = None

    @property
    def created(self) -> datetime | None:
        """The time of the key's file; None if it is not known."""
        path = self.reference.path
        try:
            return datetime.fromtimestamp(Path(path).stat().st_mtime, UTC) if path else None
        except OSError:
            return None

    def successor_type(self) -> tuple[key_generation.KeyType, int]:
        """Return the kind of the key that replaces this one, and its size if that is RSA. Raises RotationRefused."""
        try:
            if self.private is not None:
                ed25519 = self.private.kind == "ed25519"
                return (
                    ("ed25519", 2048)
                    if ed25519
                    else ("rsa", max(2048, min(self.private.bits, key_generation.MAXIMUM_BITS)))
                )
        except BadKey:
            pass
        what = f"the key of {self.domains[0]} with selector {self.reference.selector} cannot be read"
        raise RotationRefused(f"{what}; `gatekeeper check-config` says why; choose the type of the new one with --type")


class KeyConfiguration:
    """The keys that `config` names, as they are now."""

    def __init__(self, config: Config) -> None:
        self._config = config
        keys, self.problems = key_table(config)
        self.file = key_table_file(config)
        domains_by_key: dict[tuple[str, str, str], list[str]] = {}
        private: dict[tuple[str, str, str], PrivateKey | None] = {}
        for key in keys:
            own_domain = key.domain if config.signing.key_table is not None else ""
            group = (own_domain, key.selector, key.path)
            domains_by_key.setdefault(group, []).append(key.domain)
            private[group] = key.private
        self.keys = tuple(
            ConfiguredKey(tuple(dict.fromkeys(domains)), KeyReference(selector=group[1], path=group[2]), private[group])
            for group, domains in domains_by_key.items()
        )
        self._configured = {(domain, key.reference) for key in self.keys for domain in key.domains}
        self.folders = sorted({folder for key in self.keys if (folder := self.folder_of(key.reference)).is_dir()})
        """The folders of the keys."""

    def has(self, domains: Iterable[str], reference: KeyReference) -> bool:
        """Return whether this key is configured for all of `domains`."""
        return all((domain, reference) in self._configured for domain in domains)

    def signs(self, domains: Iterable[str], selector: str) -> bool:
        """Return whether any of `domains` has a key with this selector, in whichever file."""
        return any(reference.selector == selector and domain in domains for domain, reference in self._configured)

    def folder_of(self, reference: KeyReference) -> Path:
        """Return the folder for the new key and the state of its rotation, without symbolic links in its path.

        That is the folder of the old key; for a key without a file, that of the KeyTable or the configuration. Raises
        OSError for a link that somebody else could have put there.
        """
        named = Path(reference.path) if reference.path else self.file or self._config.folder / "gatekeeper.toml"
        try:
            return real_path(absolute(named)).parent
        except FileNotFoundError:
            return absolute(named).parent

    def check(self, state: RotationState) -> None:
        """Raise RotationRefused if there will be no line to change when the time comes to switch."""
        if self._config.signing.key_table is None or self.file is None:
            return
        if not switched(_read(self.file), state, self._config.folder)[1]:
            what = f"{self.file} has no line with {state.domains[0]}:{state.old.selector}:{state.old.path}"
            raise RotationRefused(f"{what} to change; a line with % serves many domains: give this one its own")

    def switch(self, state: RotationState) -> list[str]:
        """Replace the old key with the new one, and say what was changed.

        Raises RotationRefused with what a person has to write instead, and OSError.
        """
        if self._config.signing.key_table is None:
            return self._switch_option(state)
        if self.file is None:
            line = f"{state.domains[0]}:{state.new.selector}:{state.new.path}"
            raise RotationRefused(
                f"{self._place('key_table')}: this list is not edited; write {line} for its key there"
            )
        path = absolute(self.file)
        with file_lock.changing(path) as table:
            text, lines = switched(_text(table), state, self._config.folder)
            if not lines:
                what = f"{state.domains[0]}:{state.old.selector}:{state.old.path}"
                raise RotationRefused(f"{path} has no line with {what}")
            table.replace(_bytes(text))
        changes = [f"{path}:{line}: {state.domains[0]}:{state.new.selector}:{state.new.path}" for line in lines]
        return [*changes, "the service reads it by itself, within seconds"]

    def _switch_option(self, state: RotationState) -> list[str]:
        """Change `selector` and `key_file` in gatekeeper.toml, both at once."""
        place = self._config.problem(("signing", "selector"), "")
        wanted = {"selector": state.new.selector, "key_file": state.new.path}
        written = " and ".join(toml_writer.line(name, value) for name, value in wanted.items())
        path = Path(place.file)
        with file_lock.changing(absolute(path)) as file:
            try:
                text = with_options(_text(file), wanted)
            except tomllib.TOMLDecodeError:
                # It is an opendkim.conf.
                text, written = None, f"Selector {state.new.selector} and KeyFile {state.new.path}"
            if text is None:
                what = f"not edited; write {written} there, and reload the service"
                raise RotationRefused(f"{self._place('selector')}: {what}")
            file.replace(_bytes(text))
        return [f"{path}:{place.line}: {written}", "this file is read at a reload: systemctl reload gatekeeper"]

    def _place(self, option: str) -> str:
        """Return file and line of `option` in the configuration."""
        problem = self._config.problem(("signing", option), "")
        return f"{problem.file}:{problem.line}" if problem.line else problem.file


def switched(text: str, state: RotationState, base: Path) -> tuple[str, list[int]]:
    """Return the KeyTable `text` with the new key in the lines of the old one, and the numbers of these lines.

    Relative paths start at `base`.
    """
    lines, changed = text.split("\n"), []
    for number, line in enumerate(lines):
        match = _LINE.fullmatch(line)
        if match is None or not match["value"]:
            continue
        fields = [field.strip() for field in match["value"].split(":", 2)]
        domain = configured_domain(fields[0]) or fields[0]
        if len(fields) < 3 or domain not in state.domains or fields[1] != state.old.selector:
            continue
        path, algorithm = _location(fields[2], domain, base)
        if path == state.old.path:
            value = f"{fields[0]}:{state.new.selector}:{state.new.path}{algorithm}"
            lines[number] = f"{match['before']}{value}{line[match.end('value') :]}"
            changed.append(number + 1)
    return "\n".join(lines), changed


def _location(text: str, domain: str, base: Path) -> tuple[str, str]:
    """Return the path of a key as KeyTable reads it, and its algorithm with a colon in front.

    The path is empty for a key that is written in the KeyTable itself.
    """
    location, _, algorithm = text.rpartition(":")
    if algorithm not in ALGORITHMS:
        location, algorithm = text, ""
    if not is_path(location):
        return "", algorithm and f":{algorithm}"
    path = location if location.startswith("/") else str(base / location)
    return path.replace("%", domain), algorithm and f":{algorithm}"


def with_options(text: str, wanted: Mapping[str, str]) -> str | None:
    """Return the configuration `text` with other values for options that it has in [signing], and no other change.

    None if that cannot be done. Raises TOMLDecodeError for what is not TOML.
    """
    before = tomllib.loads(text)
    if not wanted.keys() <= before.get("signing", {}).keys():
        return None
    document: Any
    try:
        document = tomlkit.parse(text)
        for name, value in wanted.items():
            document["signing"][name] = value
        changed = document.as_string()
        same = _without_lines(text, wanted) == _without_lines(changed, wanted)
        return changed if same and tomllib.loads(changed) == before | {"signing": before["signing"] | wanted} else None
    except (TOMLKitError, tomllib.TOMLDecodeError, RecursionError):
        return None  # tomlkit is another parser than the one that took the text


def _without_lines(text: str, options: Iterable[str]) -> list[str]:
    """Return all lines of the configuration but those of these options in [signing]."""
    locations = KeyLocations(text)
    theirs = {locations.line(("signing", option)) for option in options}
    return [line for number, line in enumerate(text.split("\n"), 1) if number not in theirs]


def _read(path: Path) -> str:
    # Not read_text: line endings stay as they are.
    return without_bom(path.read_bytes()).decode("utf-8", "surrogateescape")


def _text(file: file_lock.LockedFile) -> str:
    return without_bom(file.data or b"").decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
