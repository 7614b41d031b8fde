# SPDX-License-Identifier: GPL-3.0-or-later
"""How the parent gets a Plan without ever having a private key in its memory, from which all workers are forked.

A configuration, a KeyTable and the files that it names may all hold keys, and memory that was freed keeps what was in
it. So a short-lived child reads them. It tells the parent the configuration without them and what is wrong with each,
and writes the keys into memory of their own (memfd_create(2)) that the parent holds as a descriptor and never reads. A
milter worker reads it before it gives its privileges up, then closes it; a policy worker closes it unread.

What was read is what is in force: a key file that changes or vanishes later harms no worker that is started after it,
and a key that cannot sign leaves the one from before in force, which comes from the memory of the plan before.
"""

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

from gatekeeper.app.plan import Plan, prepare
from gatekeeper.app.signing_plan import ReadKeys, read_keys
from gatekeeper.config.config_file import Config, refreshed
from gatekeeper.core import watched_files
from gatekeeper.core.problem import ConfigError, Problem
from gatekeeper.core.watched_files import FileState
from gatekeeper.daemon.short_lived import run_in_child
from gatekeeper.signing import key_transfer
from gatekeeper.signing.key_table import KeyTable

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class KeyMemory:
    """Memory with a configuration and its keys: written once, by the process that reads them. Raises OSError."""

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("gatekeeper-keys", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)

    def write(self, config: Config, table: KeyTable) -> None:
        """Fill it; nobody can change it afterwards."""
        data = memoryview(key_transfer.to_bytes((config, table)))
        while data:
            data = data[os.write(self._descriptor, data) :]
        fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, _SEALS)

    def read(self) -> tuple[Config, KeyTable]:
        """Return what is in it. The parent must not call this."""
        size = os.fstat(self._descriptor).st_size
        data = bytearray()
        while len(data) < size:
            data += os.pread(self._descriptor, size - len(data), len(data))
        found: tuple[Config, KeyTable] = key_transfer.from_bytes(bytes(data))
        return found

    def plan_with_keys(self, plan: Plan) -> Plan:
        """Return `plan` with the keys, and close this. For a process that signs."""
        _, table = self.read()
        self.close()
        return replace(plan, signing=replace(plan.signing, key_table=table))

    def close(self) -> None:
        """Let go of it; it vanishes with its last holder."""
        os.close(self._descriptor)


@dataclass(frozen=True, slots=True)
class _Read:
    """What the child tells: the configuration and the names of the keys, or the `problems` that it could not read."""

    states: dict[str, FileState]
    problems: tuple[Problem, ...] = ()
    config: Config | None = None
    keys: ReadKeys | None = None


def load_plan(
    load: Callable[[], Config],
    let_go: Callable[[], None],
    states: dict[str, FileState],
    old: KeyMemory | None = None,
    *,
    again: bool = False,
) -> tuple[Plan, KeyMemory]:
    """Return the plan of what `load` loads, but for its keys, and the keys; what was read is added to `states`.

    `old` are the keys in force; with `again`, their configuration is taken instead of a new one, and only Postfix is
    asked again. `let_go` closes in the child what it must not hold. Raises ConfigError with every mistake, or OSError.
    """
    memory = KeyMemory()

    def read() -> _Read:
        with watched_files.recording() as seen:
            try:
                before = old.read() if old is not None else None
                config = refreshed(before[0]) if before is not None and again else load()
                keys = read_keys(config, old=before[1] if before is not None else None, prove=True)
            except ConfigError as error:
                return _Read(seen, problems=error.problems)
        memory.write(config, keys.table)
        return _Read(seen, config=config.without_keys(), keys=keys.without_keys())

    try:
        found = run_in_child(read, let_go)
        states |= found.states
        return _prepare(found, states), memory
    except BaseException:
        memory.close()
        raise


def _prepare(found: _Read, states: dict[str, FileState]) -> Plan:
    """Read what the child has not read, which every worker may have. Raises ConfigError."""
    if found.config is None:
        raise ConfigError(found.problems)
    with watched_files.recording() as seen:
        try:
            return prepare(found.config, lenient=True, keys=found.keys)
        finally:
            for path, state in seen.items():
                states.setdefault(path, state)  # of two readings the first counts, so that no change is missed
