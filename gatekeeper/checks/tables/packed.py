# SPDX-License-Identifier: GPL-3.0-or-later
"""A hash table of keys and texts in two blocks of memory, without a Python object for each entry.

A million entries take their own size and 8 MB more, and are shared by all processes after the fork (there are no
reference counts that a lookup would write to); a lookup takes one or two probes. Filled once, by `add`, then only read.

Known limit: 4 GiB of entries.
"""

from array import array


class Packed:
    """Texts by key, in a hash table with open addressing; `capacity` is the greatest number of entries."""

    __slots__ = ("_blob", "_mask", "_slots", "count")

    def __init__(self, capacity: int) -> None:
        size = 1 << (max(capacity, 4) * 3 // 2).bit_length()
        self._mask = size - 1
        self._slots = array("I", bytes(4 * size))  # offsets into the blob, 0 for none
        self._blob = bytearray(b"\n")
        self.count = 0

    def add(self, key: bytes, text: bytes) -> bool:
        """Add an entry; return False, and do nothing, if there is one for `key`.

        A key must not contain a tab, nor a text a line end.
        """
        entry = key + b"\t"
        slots, mask, blob = self._slots, self._mask, self._blob
        slot = hash(key) & mask
        while at := slots[slot]:
            if blob.startswith(entry, at):
                return False
            slot = (slot + 1) & mask
        slots[slot] = len(blob)
        blob += entry
        blob += text
        blob += b"\n"
        self.count += 1
        return True

    @property
    def end(self) -> int:
        """The order (`find_ordered`) of the next entry."""
        return len(self._blob)

    def find(self, key: bytes) -> bytes | None:
        """Return the text for `key`; None if there is no entry."""
        if not self._slots[hash(key) & self._mask]:  # most often the slot is empty
            return None
        return self.find_ordered(key)[1]

    def find_ordered(self, key: bytes) -> tuple[int, bytes | None]:
        """Return a number that grows in the order of adding, and the text for `key`; 0 and None if it has no entry."""
        entry = key + b"\t"
        slots, mask, blob = self._slots, self._mask, self._blob
        slot = hash(key) & mask
        while at := slots[slot]:
            if blob.startswith(entry, at):
                begin = at + len(entry)
                return at, bytes(blob[begin : blob.index(b"\n", begin)])
            slot = (slot + 1) & mask
        return 0, None

    def keys(self) -> list[bytes]:
        """Return every key, in the order of adding."""
        return [entry.partition(b"\t")[0] for entry in bytes(self._blob[1:-1]).split(b"\n")] if self.count else []
