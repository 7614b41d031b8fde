# SPDX-License-Identifier: GPL-3.0-or-later
"""A new key with its record, as files side by side: SELECTOR.private and SELECTOR.txt, the names of opendkim-genkey."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from gatekeeper.records.key_record import KeyRecord, Terms
from gatekeeper.signing import key_generation
from gatekeeper.signing.keys import PrivateKey, read_key

_USUAL = Terms()


@dataclass(frozen=True, slots=True)
class NewKey:
    """What was written: the private key at `path`, `record` as a zone file has it at `text_path`. `remarks` are what
    keeps the key from being used.
    """

    record: KeyRecord
    path: Path
    text_path: Path
    remarks: tuple[str, ...] = ()

    def table_lines(self) -> Iterator[str]:
        """What to add to KeyTable and SigningTable."""
        domain, selector = self.record.domain, self.record.selector
        name = f"{selector}._domainkey.{domain}"
        yield f"KeyTable:     {name} {domain}:{selector}:{self.path.absolute()}"
        yield f"SigningTable: *@{domain} {name}        (refile:)"


def write(
    folder: Path,
    selector: str,
    domain: str,
    *,
    kind: key_generation.KeyType = "rsa",
    bits: int = 2048,
    terms: Terms = _USUAL,
    absolute: bool = False,
    owners: Collection[int] = (),
    replace: bool = False,
) -> NewKey:
    """Make a key in `folder`. `owners` are those who may own keys.

    Raises ValueError for what cannot be, FileExistsError for what is there unless it may `replace`, and OSError.
    """
    path, text_path = folder / f"{selector}.private", folder / f"{selector}.txt"
    if not replace:
        for there in (path, text_path):
            if there.exists():
                raise FileExistsError(17, "it is there already", str(there))
    data = key_generation.generate_key(kind, bits)
    record = KeyRecord.of(selector, domain, PrivateKey(data, str(path)), terms)
    key_generation.write_key(path, data, owner=key_generation.owner_in(folder, owners), replace=replace)
    key_generation.write_key(text_path, record.zone(absolute=absolute).encode(), mode=0o644, replace=replace)
    _, problems = read_key(path.absolute(), owners=owners or None)
    return NewKey(record, path, text_path, tuple(map(str, problems)))
