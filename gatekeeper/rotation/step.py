# SPDX-License-Identifier: GPL-3.0-or-later
"""Goes as far with a rotation as can be gone now, and says what was done, what is waited for and what comes next.

    planned     selector and file of the new key are chosen and written down
    generated   the key and its record are there
    published   every authoritative server of the zone has the record, and it is that of the key
    active      the tables name the new key; the service reads them by itself
    retired     mail that was signed with the old key has arrived, so that its record may go

The old key is never removed, and neither is its record: it is said that they may be.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

from gatekeeper.config import Config
from gatekeeper.published.dkim import judge
from gatekeeper.published.key_record import KeyRecord, name_of, revoked
from gatekeeper.resolver import DNSError
from gatekeeper.resolvers import Authorities, Voice
from gatekeeper.rotation.state import Refused, Stage, State, Which, load, locked
from gatekeeper.rotation.tables import Configured, Tables, Wanted
from gatekeeper.sign_plan import key_owners
from gatekeeper.signing import make
from gatekeeper.signing.keys import BadKey, PrivateKey, read_key
from gatekeeper.units import duration_text

IN_FLIGHT = timedelta(days=7)
"""How long mail is on its way: Postfix gives up after five days (maximal_queue_lifetime), and so do most."""
_LETTERS = {"rsa": "r", "ed25519": "e"}


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What a rotation goes by. `kind` and `bits` are those of the old key if they are None."""

    config: Config
    authorities: Authorities
    in_flight: timedelta = IN_FLIGHT
    kind: make.Kind | None = None
    bits: int | None = None
    dry: bool = False
    now: Callable[[], datetime] = lambda: datetime.now(UTC)


@dataclass(slots=True)
class Outcome:
    """What came of one rotation in this run. `waits` are reasons; without any it is done."""

    state: State
    did: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return not self.waits


@dataclass(slots=True)
class Run:
    """What came of all rotations in one run; `refused` says which could not be begun, and why."""

    outcomes: list[Outcome] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


async def rotate(world: World, wanted: Wanted) -> Run:
    """Go on with every rotation that is meant, and begin those that are due. Raises Refused, OSError."""
    tables, run = Tables(world.config), Run()
    folders = _folders(tables)
    with locked(folders):
        begun = [(folder, state) for folder in folders for state in load(folder)]
        going = [
            (folder, state)
            for folder, state in begun
            if state.stage is not Stage.RETIRED and _means(wanted, state.domains, (state.old, state.new))
        ]
        for key in tables.keys:
            its = [state for _, state in begun if set(state.domains) & set(key.domains)]
            if any(key.which in (state.old, state.new) for state in its if state.stage is not Stage.RETIRED):
                continue
            past = next((state for state in its if state.new == key.which), None)
            if not _means(wanted, key.domains, (key.which,)):
                continue
            if _due(world, wanted, key, past):
                try:
                    begun.append((_folder_of(key.which, tables), _plan(world, key, tables, [s for _, s in begun])))
                    going.append(begun[-1])
                except Refused as refused:
                    run.refused.append(str(refused))
            elif past is not None and wanted.older is None:
                run.outcomes.append(Outcome(past))
        for folder, state in going:
            run.outcomes.append(await _Rotation(world, folder, state).advance())
    if wanted.domain and wanted.older is None and not (run.outcomes or run.refused):
        which = f"{wanted.domain} with selector {wanted.selector}" if wanted.selector else wanted.domain
        what = [problem for problem in tables.problems if not problem.warning]
        raise Refused("\n".join([f"the tables of [signing] have no key of {which}", *map(str, what)]))
    return run


def _means(wanted: Wanted, domains: Iterable[str], keys: Iterable[Which]) -> bool:
    selectors = {which.selector for which in keys}
    return wanted.domain in ("", *domains) and (not wanted.selector or wanted.selector in selectors)


def _due(world: World, wanted: Wanted, key: Configured, past: State | None) -> bool:
    """Whether to begin: a key that is named, unless it is the outcome of a rotation; or one that is old enough."""
    if wanted.older is None:
        return bool(wanted.domain) and past is None
    return key.made is not None and (world.now() - key.made).total_seconds() >= wanted.older


def _folders(tables: Tables) -> list[Path]:
    return sorted({folder for key in tables.keys if (folder := _folder_of(key.which, tables)).is_dir()})


def _folder_of(which: Which, tables: Tables) -> Path:
    """Where the state and the new key lie: beside the old key; for one without a file, beside the KeyTable."""
    beside = which.path or str(tables.file or Path.cwd())
    return Path(beside).resolve().parent if beside != str(Path.cwd()) else Path.cwd()


def _plan(world: World, key: Configured, tables: Tables, begun: list[State]) -> State:
    """Choose selector and file of the key that follows `key`. Raises Refused."""
    if "%" in key.domains:
        what = f"the key with selector {key.which.selector} signs for any domain (%)"
        raise Refused(f"{what}, so that nobody knows where to look for its record; name the domains in the KeyTable")
    kind, bits = (world.kind, 2048) if world.kind else key.size()
    used = {other.which.selector for other in tables.keys if set(other.domains) & set(key.domains)}
    ours = [state for state in begun if set(state.domains) & set(key.domains)]
    used |= {which.selector for state in ours for which in (state.old, state.new)}
    claimed = {state.new.path for state in begun} | {other.which.path for other in tables.keys}
    for selector in _selectors(world.now(), kind):
        path = next(
            (path for path in _paths(key, selector, _folder_of(key.which, tables)) if _free(path, claimed)), None
        )
        if selector not in used and path is not None:
            break
    state = State(
        domains=key.domains,
        old=key.which,
        new=Which(selector=selector, path=str(path)),
        kind=kind,
        bits=world.bits or bits,
    )
    tables.check(state)
    return state


def _selectors(now: datetime, kind: make.Kind) -> Iterator[str]:
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


def _free(path: Path, claimed: set[str]) -> bool:
    return str(path) not in claimed and not path.exists() and not path.with_suffix(".txt").exists()


class _Rotation:
    """One rotation on its way. Whatever was done before is found done, and the rest is done."""

    def __init__(self, world: World, folder: Path, state: State) -> None:
        self._world = world
        self._folder = folder
        self._out = Outcome(state)

    @property
    def _state(self) -> State:
        return self._out.state

    async def advance(self) -> Outcome:
        """As far as it goes now."""
        try:
            if self._generate() and await self._publish() and self._activate():
                self._retire()
        except Refused as refused:
            self._out.waits.append(str(refused))
        except BadKey as bad:
            self._out.waits.append(f"{self._state.new.path}: {bad}")
        return self._out

    def _reached(self, stage: Stage, *what: str) -> None:
        """Write down that `stage` has been reached now, and say what was done."""
        self._out.did += [f"{stage}: {line}" if number == 0 else line for number, line in enumerate(what)]
        self._out.state = self._state.model_copy(update={stage.value: self._world.now()})
        self._state.save(self._folder)

    def _only_said(self, what: str) -> bool:
        """With --dry-run, say what would be done; True if that was all."""
        if self._world.dry:
            self._out.waits.append(f"--dry-run: would {what}")
        return self._world.dry

    def _generate(self) -> bool:
        state = self._state
        path = Path(state.new.path)
        if state.generated is not None:
            return True
        if self._only_said(f"make a key ({_described(state)}) with selector {state.new.selector} in {path}"):
            return False
        state.save(self._folder)
        mode, owner = self._as_the_old_one()
        if not path.exists():  # else the last run was interrupted just here
            make.write(path, make.generate(state.kind, state.bits), mode=mode, owner=owner)
        self._write_record(self._key())
        self._reached(Stage.GENERATED, f"{path}, and its DNS record in {path.with_suffix('.txt')}")
        return True

    def _as_the_old_one(self) -> tuple[int, tuple[int, int] | None]:
        """Mode and owner for the new key: those of the old one, as far as they are safe."""
        try:
            status = os.stat(self._state.old.path)
        except OSError:
            return 0o600, make.owner_in(self._folder, key_owners(self._world.config))
        return status.st_mode & 0o640 | 0o600, (status.st_uid, status.st_gid) if os.geteuid() == 0 else None

    def _write_record(self, key: PrivateKey) -> None:
        state = self._state
        text = "".join(KeyRecord.of(state.new.selector, domain, key).zone() for domain in state.domains)
        make.write(Path(state.new.path).with_suffix(".txt"), text.encode(), mode=0o644, replace=True)

    def _key(self) -> PrivateKey:
        """The new key, as the service will read it. Raises Refused with what keeps it from that, BadKey."""
        config = self._world.config
        safe = config.signing.safe_keys
        key, problems = read_key(self._state.new.path, owners=key_owners(config), require_safe=safe)
        if key is None:
            raise Refused("; ".join(map(str, problems)))
        key.public()
        return key

    async def _publish(self) -> bool:
        """Whether every authoritative server has the record of the new key, in every domain."""
        state = self._state
        if state.active is not None or Tables(self._world.config).has(state.domains, state.new):
            return True
        key, good, nobody = self._key(), 0, True
        for domain in state.domains:
            name = name_of(state.new.selector, domain)
            try:
                voices = await self._world.authorities.texts(name)
            except DNSError as error:
                self._out.waits.append(f"who serves {domain} cannot be found out: {error}")
                continue
            self._out.waits += _lagging(voices, key, name)
            nobody = nobody and not any(voice.records for voice in voices)
            good += len(voices)
        if self._out.waits:
            self._say_what_to_publish(key, whole=nobody)
            return False
        if state.published is None and not self._world.dry:
            servers = "1 authoritative server has" if good == 1 else f"all {good} authoritative servers have"
            self._reached(Stage.PUBLISHED, f"{servers} {name_of(state.new.selector, state.domains[0])}")
        return True

    def _say_what_to_publish(self, key: PrivateKey, *, whole: bool) -> None:
        state = self._state
        text = Path(state.new.path).with_suffix(".txt")
        self._out.next.append(
            f"publish what {text} says, in the zone of {', '.join(state.domains)}; then run this again"
        )
        for domain in state.domains if whole else ():
            record = KeyRecord.of(state.new.selector, domain, key)
            self._out.next += record.zone().splitlines()
            self._out.next.append(f"or in a web panel: {record.name}  TXT  {record.text}")

    def _activate(self) -> bool:
        state = self._state
        if state.active is not None:
            return True
        tables = Tables(self._world.config)
        if not tables.has(state.domains, state.new):
            if not tables.has(state.domains, state.old):
                file = self._folder / state.file_name
                what = f"the tables have no key of {state.domains[0]} with selector {state.old.selector} any more"
                raise Refused(f"{what}; if that is meant, remove {file}")
            if self._only_said(f"put selector {state.new.selector} into the place of {state.old.selector}"):
                return False
            changed = tables.switch(state)
        else:
            if self._only_said(f"note that the tables name {state.new.selector}"):
                return False
            changed = [f"the tables name {state.new.selector}"]
        self._reached(Stage.ACTIVE, *changed, "the service reads a table by itself, within seconds")
        return True

    def _retire(self) -> None:
        state, world = self._state, self._world
        assert state.active is not None
        left = state.active + world.in_flight - world.now()
        if left > timedelta():
            what = f"mail that was signed with {state.old.selector} is on its way for"
            self._out.waits.append(f"{what} {duration_text(world.in_flight.total_seconds())}, {_rough(left)} from now")
            self._out.next.append(f"leave the record of {state.old.selector} as it is; then run this again")
            return
        if self._only_said(f"take {state.old.selector} for retired"):
            return
        self._reached(Stage.RETIRED, f"nothing needs selector {state.old.selector} any more")
        self._out.next += ["the old record may now be emptied, which tells receivers that the key is withdrawn:"]
        self._out.next += [revoked(state.old.selector, domain) for domain in state.domains]
        if state.old.path:
            self._out.next.append(f"the old private key was left in {state.old.path}; remove it once that is done")


def _lagging(voices: Iterable[Voice], key: PrivateKey, name: str) -> Iterator[str]:
    """Which servers do not have the record of `key` at `name`, and what they have."""
    for voice in voices:
        if voice.trouble:
            yield f"{voice} {voice.trouble}"
        elif not voice.records:
            yield f"{voice} does not have {name} yet"
        else:
            for wrong in (remark.what for remark in judge(voice.records, key) if remark.error):
                yield f"{voice} has a wrong record at {name}: {wrong}"


def _described(state: State) -> str:
    return f"rsa, {state.bits} bits" if state.kind == "rsa" else state.kind


def _rough(left: timedelta) -> str:
    hours = left.total_seconds() / 3600
    return f"{hours / 24:.0f} days" if hours >= 48 else f"{max(hours, 1):.0f} hours"
