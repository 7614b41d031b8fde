# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a rotation has come: DOMAIN.SELECTOR.rotation.json beside the keys, written anew at each step.

It is written before the key that it names is made, so that a key never lies about of which nobody knows why; and a time
stands in it only once what it says has been done. It holds nothing secret.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from gatekeeper.signing import key_generation

SUFFIX = ".rotation.json"


class RotationRefused(Exception):
    """A rotation cannot be begun or go on; the text says why and what to do."""


class Busy(RotationRefused):
    """Another one is at it."""


class RotationStage(StrEnum):
    """The last step that has been done."""

    PLANNED = "planned"
    GENERATED = "generated"
    PUBLISHED = "published"
    ACTIVE = "active"
    RETIRED = "retired"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Which(_Frozen):
    """One key: `path` is empty for one that stands in the KeyTable itself."""

    selector: str
    path: str


class RotationState(_Frozen):
    """The key `new` takes the place of `old`; `domains` are several where one key is configured for all of them."""

    version: Literal[1] = 1
    domains: tuple[str, ...]
    old: Which
    new: Which
    kind: key_generation.KeyType = "rsa"
    bits: int = 2048
    generated: datetime | None = None
    published: datetime | None = None
    active: datetime | None = None
    retired: datetime | None = None

    @property
    def stage(self) -> RotationStage:
        """How far it has come."""
        for stage in (RotationStage.RETIRED, RotationStage.ACTIVE, RotationStage.PUBLISHED, RotationStage.GENERATED):
            if getattr(self, stage.value) is not None:
                return stage
        return RotationStage.PLANNED

    @property
    def file_name(self) -> str:
        """What its file is called."""
        return f"{self.domains[0]}.{self.old.selector}{SUFFIX}"

    def save(self, folder: Path) -> None:
        """Write it. Raises OSError."""
        text = json.dumps(self.model_dump(mode="json"), indent=2) + "\n"
        key_generation.write_key(folder / self.file_name, text.encode(), mode=0o644, replace=True)


def load(folder: Path) -> Iterator[RotationState]:
    """Every rotation whose keys are in `folder`. Raises Refused for a file that makes no sense."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            yield RotationState.model_validate_json(path.read_bytes())
        except (ValidationError, OSError, ValueError):
            # The library's words would be about JSON; it is no file that people write.
            what = "is no state of a rotation that can be read; look at it, and remove it to begin anew"
            raise RotationRefused(f"{path} {what}") from None


@contextmanager
def locked(folders: Iterable[Path]) -> Iterator[None]:
    """Nobody else rotates in `folders` meanwhile. Raises Busy, OSError."""
    with ExitStack() as stack:
        for folder in sorted(set(folders)):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Busy(f"another gatekeeper dkim rotate is at work in {folder}") from None
        yield
