# SPDX-License-Identifier: GPL-3.0-or-later
"""Which rotations are selected and which are due, and the selector and file of each new key."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

from gatekeeper.config.config_file import Config
from gatekeeper.dnsclient.authoritative import Authorities
from gatekeeper.rotation.configured_keys import ConfiguredKey, KeyConfiguration, KeySelection
from gatekeeper.rotation.state import KeyReference, RotationRefused, RotationStage, RotationState
from gatekeeper.signing import key_generation

IN_FLIGHT = timedelta(days=7)
"""How long mail may be in transit: Postfix gives up after five days (maximal_queue_lifetime), and so do most MTAs."""
_LETTERS = {"rsa": "r", "ed25519": "e"}


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What a rotation depends on. `kind` and `bits` are those of the old key if they are None."""

    config: Config
    authorities: Authorities
    in_flight: timedelta = IN_FLIGHT
    kind: key_generation.KeyType | None = None
    bits: int | None = None
    dry_run: bool = False
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


StoredRotation = tuple[Path, RotationState]
"""The folder of a rotation's state file, and that state."""


class Plans:
    """The rotations that have been `started`, and those that could be."""

    def __init__(self, world: World, tables: KeyConfiguration, started: Iterable[StoredRotation]) -> None:
        self._world = world
        self._tables = tables
        self._rotations: dict[str, list[RotationState]] = defaultdict(list)
        self._selectors: dict[str, set[str]] = defaultdict(set)
        self._used_paths = {key.reference.path for key in tables.keys}
        for _, state in started:
            self._add(state)
        for key in tables.keys:
            for domain in key.domains:
                self._selectors[domain].add(key.reference.selector)

    def rotation_of(self, key: ConfiguredKey) -> RotationState | None:
        """Return the rotation that `key` takes part in or resulted from; of several, the one that is under way."""
        found = [state for state in self._rotations[key.domains[0]] if key.reference in (state.old, state.new)]
        under_way = [state for state in found if state.stage is not RotationStage.RETIRED]
        return next(iter(under_way or [state for state in found if state.new == key.reference]), None)

    def is_due(self, selection: KeySelection, key: ConfiguredKey, past: RotationState | None) -> bool:
        """Return whether to begin: a named key is due unless a rotation made it; otherwise its age decides."""
        if selection.older is None:
            return selection.is_named and past is None
        return key.created is not None and (self._world.now() - key.created).total_seconds() >= selection.older

    def begin(self, key: ConfiguredKey) -> StoredRotation:
        """Choose selector and file of the successor of `key`. Raises RotationRefused."""
        if "%" in key.domains:
            what = f"the key with selector {key.reference.selector} signs for any domain (%)"
            raise RotationRefused(
                f"{what}, so the names of its records are not known; name the domains in the KeyTable"
            )
        world = self._world
        kind, bits = (world.kind, 2048) if world.kind else key.successor_type()
        used = set().union(*(self._selectors[domain] for domain in key.domains))
        folder = self._tables.folder_of(key.reference)
        for selector in _selectors(world.now(), kind):
            path = next((path for path in _paths(key, selector, folder) if self._is_free(path)), None)
            if selector not in used and path is not None:
                break
        new = KeyReference(selector=selector, path=str(path))
        state = RotationState(domains=key.domains, old=key.reference, new=new, kind=kind, bits=world.bits or bits)
        self._tables.check(state)
        self._add(state)
        return folder, state

    def _add(self, state: RotationState) -> None:
        self._used_paths.add(state.new.path)
        for domain in state.domains:
            self._rotations[domain].append(state)
            self._selectors[domain] |= {state.old.selector, state.new.selector}

    def _is_free(self, path: Path) -> bool:
        return str(path) not in self._used_paths and not path.exists() and not path.with_suffix(".txt").exists()


def is_selected(selection: KeySelection, domains: Iterable[str], *keys: KeyReference) -> bool:
    """Return whether the rotation of one of `keys` is selected."""
    selectors = {reference.selector for reference in keys}
    return selection.domain in ("", *domains) and (not selection.selector or selection.selector in selectors)


def _selectors(now: datetime, kind: key_generation.KeyType) -> Iterator[str]:
    """Yield 202611r, 202611r2, …: year and month, and a letter for the kind, because a domain may have both kinds."""
    stem = f"{now:%Y%m}{_LETTERS[kind]}"
    yield stem
    for number in count(2):
        yield f"{stem}{number}"


def _paths(key: ConfiguredKey, selector: str, folder: Path) -> Iterator[Path]:
    """Yield the name of the old file with the new selector in it, then one of domain and selector."""
    old = Path(key.reference.path).name
    if old.startswith(f"{key.reference.selector}."):
        yield folder / f"{selector}{old.removeprefix(key.reference.selector)}"
    elif f".{key.reference.selector}." in old:
        yield folder / old.replace(f".{key.reference.selector}.", f".{selector}.")
    yield folder / f"{key.domains[0]}.{selector}.private"
