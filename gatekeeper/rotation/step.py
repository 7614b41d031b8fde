# SPDX-License-Identifier: GPL-3.0-or-later
"""Takes a rotation as far as possible now, and says what was done, what it waits for and what comes next.

    planned     selector and file of the new key have been chosen and recorded
    generated   the key and its record exist
    published   every authoritative server of the zone has the record, and it matches the key
    active      the tables name the new key; the service reads them by itself
    retired     mail that was signed with the old key has arrived, so its record may be removed

Neither the old key nor its record is ever removed: the report says when they may be.
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
    """The outcome of one rotation in this run. `waits` are the reasons to wait; without any the rotation is done."""

    state: RotationState
    did: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return not self.waits


class Rotation:
    """One rotation. Steps that have been done before are recognised and not repeated."""

    def __init__(self, world: World, tables: KeyConfiguration, folder: Path, state: RotationState) -> None:
        self._world = world
        self._tables = tables
        self._folder = folder
        self._result = StepResult(state)
        self._was_active = state.active is not None

    @property
    def _state(self) -> RotationState:
        return self._result.state

    async def advance(self) -> StepResult:
        """Take the rotation as far as it goes now."""
        try:
            if self._generate() and await self._publish() and self._activate():
                self._retire()
        except RotationRefused as refused:
            self._result.waits.append(str(refused))
        except BadKey as bad:
            self._result.waits.append(f"{self._state.new.path}: {bad}")
        return self._result

    def _complete(self, stage: RotationStage, *what: str) -> None:
        """Record that `stage` has been completed now, and report what was done."""
        self._result.did += [f"{stage}: {line}" if number == 0 else line for number, line in enumerate(what)]
        self._result.state = self._state.model_copy(update={stage.value: self._world.now()})
        self._state.save(self._folder)

    def _dry_run(self, what: str) -> bool:
        """Return whether this is a dry run; if so, report what would be done."""
        if self._world.dry_run:
            self._result.waits.append(f"--dry-run: would {what}")
        return self._world.dry_run

    def _generate(self) -> bool:
        state = self._state
        path = Path(state.new.path)
        if state.generated is not None:
            return True
        if self._dry_run(f"make a key ({_key_type(state)}) with selector {state.new.selector} in {path}"):
            return False
        state.save(self._folder)
        mode, owner = self._mode_and_owner()
        if not path.exists():  # if it does, the last run was interrupted at this point
            key_generation.write_key(path, key_generation.generate_key(state.kind, state.bits), mode=mode, owner=owner)
        self._write_record(self._key())
        self._complete(RotationStage.GENERATED, f"{path}, and its DNS record in {path.with_suffix('.txt')}")
        return True

    def _mode_and_owner(self) -> tuple[int, tuple[int, int] | None]:
        """Return mode and owner for the new key: those of the old one, as far as they are safe."""
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
        """Read the new key as the service will. Raises RotationRefused if the service could not read it, and BadKey."""
        config = self._world.config
        safe = config.signing.safe_keys
        key, problems = read_key(self._state.new.path, owners=key_owners(config), require_safe=safe)
        if key is None:
            raise RotationRefused("; ".join(map(str, problems)))
        key.public()
        return key

    async def _publish(self) -> bool:
        """Return whether every authoritative server has the record of the new key, in every domain."""
        state = self._state
        if state.active is not None or self._tables.has(state.domains, state.new):
            return True
        key, good, unpublished = self._key(), 0, True
        for domain in state.domains:
            name = key_record_name(state.new.selector, domain)
            try:
                answers = await self._world.authorities.texts(name)
            except DNSError as error:
                self._result.waits.append(f"the name servers of {domain} cannot be found: {error}")
                continue
            self._result.waits += _unpublished(answers, key, name)
            unpublished = unpublished and not any(answer.records for answer in answers)
            good += len(answers)
        if self._result.waits:
            self._say_what_to_publish(key, show_records=unpublished)
            return False
        if state.published is None and not self._world.dry_run:
            servers = "1 authoritative server has" if good == 1 else f"all {good} authoritative servers have"
            self._complete(
                RotationStage.PUBLISHED, f"{servers} {key_record_name(state.new.selector, state.domains[0])}"
            )
        return True

    def _say_what_to_publish(self, key: PrivateKey, *, show_records: bool) -> None:
        state = self._state
        text = Path(state.new.path).with_suffix(".txt")
        self._result.next.append(
            f"publish the record in {text}, in the zone of {', '.join(state.domains)}; then run this again"
        )
        for domain in state.domains if show_records else ():
            record = KeyRecord.of(state.new.selector, domain, key)
            self._result.next += record.zone().splitlines()
            self._result.next.append(f"or in a web panel: {record.name}  TXT  {record.text}")

    def _activate(self) -> bool:
        state = self._state
        if state.active is not None:
            return True
        tables = self._tables
        if not tables.has(state.domains, state.new):
            if not tables.has(state.domains, state.old):
                file = self._folder / state.file_name
                what = f"the tables have no key of {state.domains[0]} with selector {state.old.selector} any more"
                raise RotationRefused(f"{what}; if that is intended, remove {file}")
            if self._dry_run(f"replace selector {state.old.selector} with {state.new.selector}"):
                return False
            changed = tables.switch(state)
        else:
            if self._dry_run(f"record that the tables name {state.new.selector}"):
                return False
            changed = [f"the tables name {state.new.selector}"]
        self._complete(RotationStage.ACTIVE, *changed)
        return True

    def _retire(self) -> None:
        state, world = self._state, self._world
        assert state.active is not None
        if self._was_active:
            self._check_tables()
        active = min(state.active, world.now())
        if active < state.active and not world.dry_run:  # a clock was ahead: it counts from now (core/stored_time.py)
            state = self._result.state = state.model_copy(update={"active": active})
            state.save(self._folder)
        left = active + world.in_flight - world.now()
        if left > timedelta():
            what = f"mail that was signed with {state.old.selector} may be in transit for"
            in_flight = duration_text(world.in_flight.total_seconds())
            self._result.waits.append(f"{what} {in_flight}, {_approximate(left)} from now")
            self._result.next.append(f"leave the record of {state.old.selector} as it is; then run this again")
            return
        if self._dry_run(f"count {state.old.selector} as retired"):
            return
        self._complete(RotationStage.RETIRED, f"nothing needs selector {state.old.selector} any more")
        self._result.next += ["the old record may now be emptied, which tells receivers that the key is revoked:"]
        self._result.next += [revoked_zone_line(state.old.selector, domain) for domain in state.domains]
        if state.old.path:
            self._result.next.append(f"the old private key was left in {state.old.path}; remove it once that is done")

    def _check_tables(self) -> None:
        """Raise RotationRefused if the tables have been changed since: then the old key may well be in use."""
        state, tables = self._state, self._tables
        file = self._folder / state.file_name
        if tables.signs(state.domains, state.old.selector):
            what = f"the tables name selector {state.old.selector} again"
        elif not tables.has(state.domains, state.new):
            what = f"the tables do not name selector {state.new.selector} any more"
        else:
            return
        raise RotationRefused(f"{what}; fix them, or remove {file} to give up this rotation")


def _unpublished(answers: Iterable[ServerAnswer], key: PrivateKey, name: str) -> Iterator[str]:
    """Say which servers do not have the record of `key` at `name`, and what they have."""
    for answer in answers:
        if answer.trouble:
            yield f"{answer} {answer.trouble}"
        elif not answer.records:
            yield f"{answer} does not have {name} yet"
        else:
            for wrong in (remark.what for remark in judge(answer.records, key) if remark.error):
                yield f"{answer} has a wrong record at {name}: {wrong}"


def _key_type(state: RotationState) -> str:
    return f"rsa, {state.bits} bits" if state.kind == "rsa" else state.kind


def _approximate(left: timedelta) -> str:
    hours = left.total_seconds() / 3600
    return f"{hours / 24:.0f} days" if hours >= 48 else f"{max(hours, 1):.0f} hours"
