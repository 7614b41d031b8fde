# SPDX-License-Identifier: GPL-3.0-or-later
"""Keys and texts in two blocks of memory, without a Python object for each.

A million entries take their own size and 8 MB more, are shared by all processes after the fork (no reference counts
that a look-up would write to), and cost a look-up one or two probes. Filled once, by `add`, then only read.

Known limit: 4 GiB of entries.
"""

from array import array


class Packed:
    """Entries by key, as a hash table with open addressing. `capacity` is how many there may be."""

    __slots__ = ("_blob", "_mask", "_slots", "count")

    def __init__(self, capacity: int) -> None:
        size = 1 << (max(capacity, 4) * 3 // 2).bit_length()
        self._mask = size - 1
        self._slots = array("I", bytes(4 * size))  # offsets into the blob, 0 for none
        self._blob = bytearray(b"\n")
        self.count = 0

    def add(self, key: bytes, text: bytes) -> bool:
        """Add an entry; False, and nothing done, if there is one for `key`. A key holds no tab, a text no line end."""
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

    def find(self, key: bytes) -> bytes | None:
        """The text for `key`."""
        if not self._slots[hash(key) & self._mask]:  # most often it is nobody's
            return None
        return self.find_ordered(key)[1]

    def find_ordered(self, key: bytes) -> tuple[int, bytes | None]:
        """The text for `key` with a number that grows in the order of adding; 0 and None if there is no entry."""
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
        """Every key, in the order of adding."""
        return [entry.partition(b"\t")[0] for entry in bytes(self._blob[1:-1]).split(b"\n")] if self.count else []
