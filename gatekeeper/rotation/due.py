# SPDX-License-Identifier: GPL-3.0-or-later
"""Which rotations are meant, which are due, and what the key that follows is called and where it goes."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

from gatekeeper.config.config_file import Config
from gatekeeper.dnsclient.authoritative import Authorities
from gatekeeper.rotation.configured_keys import Configured, KeyConfiguration, Wanted
from gatekeeper.rotation.state import RotationRefused, RotationStage, RotationState, Which
from gatekeeper.signing import key_generation

IN_FLIGHT = timedelta(days=7)
"""How long mail is on its way: Postfix gives up after five days (maximal_queue_lifetime), and so do most."""
_LETTERS = {"rsa": "r", "ed25519": "e"}


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What a rotation goes by. `kind` and `bits` are those of the old key if they are None."""

    config: Config
    authorities: Authorities
    in_flight: timedelta = IN_FLIGHT
    kind: key_generation.KeyType | None = None
    bits: int | None = None
    dry: bool = False
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


Placed = tuple[Path, RotationState]
"""A rotation, and the folder where its state lies."""


class Plans:
    """The rotations that have been `begun`, and those that could be."""

    def __init__(self, world: World, tables: KeyConfiguration, begun: Iterable[Placed]) -> None:
        self._world = world
        self._tables = tables
        self._begun: dict[str, list[RotationState]] = defaultdict(list)
        self._selectors: dict[str, set[str]] = defaultdict(set)
        self._claimed = {key.which.path for key in tables.keys}
        for _, state in begun:
            self._note(state)
        for key in tables.keys:
            for domain in key.domains:
                self._selectors[domain].add(key.which.selector)

    def of(self, key: Configured) -> RotationState | None:
        """The rotation that `key` takes part in, or whose outcome it is; of several the one that goes on."""
        found = [state for state in self._begun[key.domains[0]] if key.which in (state.old, state.new)]
        going = [state for state in found if state.stage is not RotationStage.RETIRED]
        return next(iter(going or [state for state in found if state.new == key.which]), None)

    def due(self, wanted: Wanted, key: Configured, past: RotationState | None) -> bool:
        """Whether to begin: a key that is named, unless it is the outcome of a rotation; or one that is old enough."""
        if wanted.older is None:
            return wanted.is_named and past is None
        return key.made is not None and (self._world.now() - key.made).total_seconds() >= wanted.older

    def begin(self, key: Configured) -> Placed:
        """Choose selector and file of the key that follows `key`. Raises Refused."""
        if "%" in key.domains:
            what = f"the key with selector {key.which.selector} signs for any domain (%)"
            raise RotationRefused(
                f"{what}, so that nobody knows where to look for its record; name the domains in the KeyTable"
            )
        world = self._world
        kind, bits = (world.kind, 2048) if world.kind else key.size()
        used = set().union(*(self._selectors[domain] for domain in key.domains))
        folder = self._tables.folder_of(key.which)
        for selector in _selectors(world.now(), kind):
            path = next((path for path in _paths(key, selector, folder) if self._is_free(path)), None)
            if selector not in used and path is not None:
                break
        new = Which(selector=selector, path=str(path))
        state = RotationState(domains=key.domains, old=key.which, new=new, kind=kind, bits=world.bits or bits)
        self._tables.check(state)
        self._note(state)
        return folder, state

    def _note(self, state: RotationState) -> None:
        self._claimed.add(state.new.path)
        for domain in state.domains:
            self._begun[domain].append(state)
            self._selectors[domain] |= {state.old.selector, state.new.selector}

    def _is_free(self, path: Path) -> bool:
        return str(path) not in self._claimed and not path.exists() and not path.with_suffix(".txt").exists()


def means(wanted: Wanted, domains: Iterable[str], *keys: Which) -> bool:
    """Whether the rotation of one of `keys` is meant."""
    selectors = {which.selector for which in keys}
    return wanted.domain in ("", *domains) and (not wanted.selector or wanted.selector in selectors)


def _selectors(now: datetime, kind: key_generation.KeyType) -> Iterator[str]:
    """202611r, 202611r2, …: year and month, and a letter for the kind, as a domain may have both."""
    stem = f"{now:%Y%m}{_LETTERS[kind]}"
    yield stem
    for number in count(2):
        yield f"{stem}{number}"


def _paths(key: Configured, selector: str, folder: Path) -> Iterator[Path]:
    """The name of the old file with the new selector in it, or else one that says all."""
    old = Path(key.which.path).name
    if old.startswith(f"{key.which.selector}."):
        yield folder / f"{selector}{old.removeprefix(key.which.selector)}"
    elif f".{key.which.selector}." in old:
        yield folder / old.replace(f".{key.which.selector}.", f".{selector}.")
    yield folder / f"{key.domains[0]}.{selector}.private"
