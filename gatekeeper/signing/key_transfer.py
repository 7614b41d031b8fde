# SPDX-License-Identifier: GPL-3.0-or-later
"""How private keys go from the process that reads them to those that sign: as bytes, for memory that only these get.

A private key refuses to be pickled, so that none leaves its process by accident. This is the one exception, and what it
makes must reach nothing that outlives the service.
"""

import io
import pickle
from typing import Any

from gatekeeper.signing.keys import PrivateKey


class _KeyPickler(pickle.Pickler):
    def reducer_override(self, value: object) -> Any:
        return (PrivateKey, value.parts) if isinstance(value, PrivateKey) else NotImplemented


def to_bytes(value: object) -> bytes:
    """Return `value` with all private keys in it. Raises pickle.PicklingError."""
    written = io.BytesIO()
    _KeyPickler(written, pickle.HIGHEST_PROTOCOL).dump(value)
    return written.getvalue()


def from_bytes(data: bytes) -> Any:
    """Return what `to_bytes` was given; `data` must come from there."""
    return pickle.loads(data)  # noqa: S301 (written by this program, into memory that nobody else can write to)
