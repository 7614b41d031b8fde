# SPDX-License-Identifier: GPL-3.0-or-later
"""Creating a key and its record as two files, SELECTOR.private and SELECTOR.txt, as opendkim-genkey names them."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from gatekeeper.core.working_folder import working_folder
from gatekeeper.records.key_record import KeyRecord, RecordOptions
from gatekeeper.signing import key_generation
from gatekeeper.signing.keys import PrivateKey, read_key

_DEFAULT = RecordOptions()


@dataclass(frozen=True, slots=True)
class NewKey:
    """What was written: the private key to `path`, and `record` in zone file form to `text_path`.

    `remarks` say why the key cannot be used, if so.
    """

    record: KeyRecord
    path: Path
    text_path: Path
    remarks: tuple[str, ...] = ()

    def table_lines(self) -> Iterator[str]:
        """Yield what to add to KeyTable and SigningTable."""
        domain, selector = self.record.domain, self.record.selector
        name = f"{selector}._domainkey.{domain}"
        yield f"KeyTable:     {name} {domain}:{selector}:{working_folder() / self.path}"
        yield f"SigningTable: *@{domain} {name}        (refile:)"


def write(
    folder: Path,
    selector: str,
    domain: str,
    *,
    kind: key_generation.KeyType = "rsa",
    bits: int = 2048,
    record_options: RecordOptions = _DEFAULT,
    absolute: bool = False,
    owners: Collection[int] = (),
    replace: bool = False,
) -> NewKey:
    """Create a key in `folder`. `owners` are the user ids that may own keys.

    Raises ValueError for a key or record that is not allowed, FileExistsError if a file exists and may not be replaced
    (`replace`), and OSError.
    """
    path, text_path = folder / f"{selector}.private", folder / f"{selector}.txt"
    if not replace:
        for existing in (path, text_path):
            if existing.exists():
                raise FileExistsError(17, "it already exists", str(existing))
    data = key_generation.generate_key(kind, bits)
    record = KeyRecord.of(selector, domain, PrivateKey(data, str(path)), record_options)
    key_generation.write_key(path, data, owner=key_generation.owner_in(folder, owners), replace=replace)
    key_generation.write_key(text_path, record.zone(absolute=absolute).encode(), mode=0o644, replace=replace)
    _, problems = read_key(working_folder() / path, owners=owners or None)
    return NewKey(record, path, text_path, tuple(map(str, problems)))
