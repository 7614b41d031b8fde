# SPDX-License-Identifier: GPL-3.0-or-later
"""The progress of a rotation: DOMAIN.SELECTOR.rotation.json beside the keys, rewritten at each step.

It is written before the key that it names is generated, so that there is never a key of unknown purpose; and it has the
time of a step only once that step has been done. It contains no secrets.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from gatekeeper.core import file_lock, safe_files
from gatekeeper.signing import key_generation

SUFFIX = ".rotation.json"


class RotationRefused(Exception):
    """A rotation cannot begin or continue; the text says why and what to do."""


class Busy(RotationRefused):
    """Another process is rotating keys in the same folder."""


class RotationStage(StrEnum):
    """The last step that has been done."""

    PLANNED = "planned"
    GENERATED = "generated"
    PUBLISHED = "published"
    ACTIVE = "active"
    RETIRED = "retired"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KeyReference(_Frozen):
    """A key by selector and file; `path` is empty for a key that is written in the KeyTable itself."""

    selector: str
    path: str


class RotationState(_Frozen):
    """The rotation of the key `old` to `new`, for all `domains` that this key is configured for."""

    version: Literal[1] = 1
    domains: tuple[str, ...]
    old: KeyReference
    new: KeyReference
    kind: key_generation.KeyType = "rsa"
    bits: int = 2048
    generated: datetime | None = None
    published: datetime | None = None
    active: datetime | None = None
    retired: datetime | None = None

    @property
    def stage(self) -> RotationStage:
        """The last step that has been done."""
        for stage in (RotationStage.RETIRED, RotationStage.ACTIVE, RotationStage.PUBLISHED, RotationStage.GENERATED):
            if getattr(self, stage.value) is not None:
                return stage
        return RotationStage.PLANNED

    @property
    def file_name(self) -> str:
        """The name of the state file."""
        return f"{self.domains[0]}.{self.old.selector}{SUFFIX}"

    @property
    def is_printable(self) -> bool:
        """Whether every name in it can be written into a table without becoming more than one line."""
        names = (*self.domains, self.old.selector, self.old.path, self.new.selector, self.new.path)
        return all(name.isprintable() for name in names)

    def save(self, folder: Path) -> None:
        """Write the state file. Raises OSError."""
        text = json.dumps(self.model_dump(mode="json"), indent=2) + "\n"
        key_generation.write_key(folder / self.file_name, text.encode(), mode=0o644, replace=True)


def load(folder: Path) -> Iterator[RotationState]:
    """Yield every rotation whose keys are in `folder`. Raises RotationRefused for a file that is not valid.

    Whoever owns the folder could have written it, so it is believed only about keys in this folder.
    """
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            state = RotationState.model_validate_json(safe_files.read(path))
        except (ValidationError, OSError, ValueError):
            # The library's message would be about JSON, but people do not write this file.
            what = "is not the state of a rotation; look at it, and remove it to start over"
            raise RotationRefused(f"{path} {what}") from None
        if state.file_name != path.name or Path(state.new.path).parent != folder or not state.is_printable:
            raise RotationRefused(f"{path} names a key outside of its folder; look at it, and remove it to start over")
        yield state


@contextmanager
def locked(folders: Iterable[Path]) -> Iterator[None]:
    """Keep other processes from rotating keys in `folders` meanwhile. Raises Busy, OSError."""
    with ExitStack() as stack:
        for folder in sorted(set(folders)):
            try:
                stack.enter_context(file_lock.locked(folder / "rotation", wait=0))
            except file_lock.Locked as error:
                raise Busy(f"another gatekeeper dkim rotate is at work in {folder}: {error.strerror}") from None
        yield
