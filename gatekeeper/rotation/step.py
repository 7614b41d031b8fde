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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from gatekeeper.app.signing_plan import key_owners
from gatekeeper.core.units import duration_text
from gatekeeper.dnsclient.authoritative import ServerAnswer
from gatekeeper.dnsclient.resolver import DNSError
from gatekeeper.records.dkim import judge
from gatekeeper.records.key_record import KeyRecord, key_record_name, revoked_zone_line
from gatekeeper.rotation.configured_keys import KeyConfiguration
from gatekeeper.rotation.due import World
from gatekeeper.rotation.state import RotationRefused, RotationStage, RotationState
from gatekeeper.signing import key_generation
from gatekeeper.signing.keys import BadKey, PrivateKey, read_key


@dataclass(slots=True)
class StepResult:
    """What came of one rotation in this run. `waits` are reasons; without any it is done."""

    state: RotationState
    did: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return not self.waits


class Rotation:
    """One rotation on its way. Whatever was done before is found done, and the rest is done."""

    def __init__(self, world: World, tables: KeyConfiguration, folder: Path, state: RotationState) -> None:
        self._world = world
        self._tables = tables
        self._folder = folder
        self._out = StepResult(state)
        self._was_active = state.active is not None

    @property
    def _state(self) -> RotationState:
        return self._out.state

    async def advance(self) -> StepResult:
        """As far as it goes now."""
        try:
            if self._generate() and await self._publish() and self._activate():
                self._retire()
        except RotationRefused as refused:
            self._out.waits.append(str(refused))
        except BadKey as bad:
            self._out.waits.append(f"{self._state.new.path}: {bad}")
        return self._out

    def _reached(self, stage: RotationStage, *what: str) -> None:
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
            key_generation.write_key(path, key_generation.generate_key(state.kind, state.bits), mode=mode, owner=owner)
        self._write_record(self._key())
        self._reached(RotationStage.GENERATED, f"{path}, and its DNS record in {path.with_suffix('.txt')}")
        return True

    def _as_the_old_one(self) -> tuple[int, tuple[int, int] | None]:
        """Mode and owner for the new key: those of the old one, as far as they are safe."""
        try:
            status = os.stat(self._state.old.path)
        except OSError:
            return 0o600, key_generation.owner_in(self._folder, key_owners(self._world.config))
        return status.st_mode & 0o640 | 0o600, (status.st_uid, status.st_gid) if os.geteuid() == 0 else None

    def _write_record(self, key: PrivateKey) -> None:
        state = self._state
        text = "".join(KeyRecord.of(state.new.selector, domain, key).zone() for domain in state.domains)
        key_generation.write_key(Path(state.new.path).with_suffix(".txt"), text.encode(), mode=0o644, replace=True)

    def _key(self) -> PrivateKey:
        """The new key, as the service will read it. Raises Refused with what keeps it from that, BadKey."""
        config = self._world.config
        safe = config.signing.safe_keys
        key, problems = read_key(self._state.new.path, owners=key_owners(config), require_safe=safe)
        if key is None:
            raise RotationRefused("; ".join(map(str, problems)))
        key.public()
        return key

    async def _publish(self) -> bool:
        """Whether every authoritative server has the record of the new key, in every domain."""
        state = self._state
        if state.active is not None or self._tables.has(state.domains, state.new):
            return True
        key, good, nobody = self._key(), 0, True
        for domain in state.domains:
            name = key_record_name(state.new.selector, domain)
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
            self._reached(RotationStage.PUBLISHED, f"{servers} {key_record_name(state.new.selector, state.domains[0])}")
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
        tables = self._tables
        if not tables.has(state.domains, state.new):
            if not tables.has(state.domains, state.old):
                file = self._folder / state.file_name
                what = f"the tables have no key of {state.domains[0]} with selector {state.old.selector} any more"
                raise RotationRefused(f"{what}; if that is meant, remove {file}")
            if self._only_said(f"put selector {state.new.selector} into the place of {state.old.selector}"):
                return False
            changed = tables.switch(state)
        else:
            if self._only_said(f"note that the tables name {state.new.selector}"):
                return False
            changed = [f"the tables name {state.new.selector}"]
        self._reached(RotationStage.ACTIVE, *changed)
        return True

    def _retire(self) -> None:
        state, world = self._state, self._world
        assert state.active is not None
        if self._was_active:
            self._check_tables()
        left = state.active + world.in_flight - world.now()
        if left > timedelta():
            what = f"mail that was signed with {state.old.selector} is on its way for"
            self._out.waits.append(f"{what} {duration_text(world.in_flight.total_seconds())}, {_rough(left)} from now")
            self._out.next.append(f"leave the record of {state.old.selector} as it is; then run this again")
            return
        if self._only_said(f"take {state.old.selector} for retired"):
            return
        self._reached(RotationStage.RETIRED, f"nothing needs selector {state.old.selector} any more")
        self._out.next += ["the old record may now be emptied, which tells receivers that the key is withdrawn:"]
        self._out.next += [revoked_zone_line(state.old.selector, domain) for domain in state.domains]
        if state.old.path:
            self._out.next.append(f"the old private key was left in {state.old.path}; remove it once that is done")

    def _check_tables(self) -> None:
        """Raise Refused if somebody has changed the tables since: then the old key may well be in use."""
        state, tables = self._state, self._tables
        file = self._folder / state.file_name
        if tables.signs(state.domains, state.old.selector):
            what = f"the tables name selector {state.old.selector} again"
        elif not tables.has(state.domains, state.new):
            what = f"the tables do not name selector {state.new.selector} any more"
        else:
            return
        raise RotationRefused(f"{what}; mend them, or remove {file} to give this rotation up")


def _lagging(voices: Iterable[ServerAnswer], key: PrivateKey, name: str) -> Iterator[str]:
    """Which servers do not have the record of `key` at `name`, and what they have."""
    for voice in voices:
        if voice.trouble:
            yield f"{voice} {voice.trouble}"
        elif not voice.records:
            yield f"{voice} does not have {name} yet"
        else:
            for wrong in (remark.what for remark in judge(voice.records, key) if remark.error):
                yield f"{voice} has a wrong record at {name}: {wrong}"


def _described(state: RotationState) -> str:
    return f"rsa, {state.bits} bits" if state.kind == "rsa" else state.kind


def _rough(left: timedelta) -> str:
    hours = left.total_seconds() / 3600
    return f"{hours / 24:.0f} days" if hours >= 48 else f"{max(hours, 1):.0f} hours"
