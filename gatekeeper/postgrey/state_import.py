# SPDX-License-Identifier: GPL-3.0-or-later
"""The import of postgrey's state into gatekeeper's store, and of its allow lists into tables. It may be repeated.

A triplet that has passed is known for the rest of `lifetime` since its last mail; one that waits does so for the rest
of `delay`, and may come back within the rest of `retry_window`; a client that postgrey lets pass (auto-whitelisting)
makes its network known. Newer entries in the store are kept. postgrey stores `#` for the numbers in a sender:
checks/greylisting/triplet.py looks for that, too.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from gatekeeper.checks.base.client_network import network_of
from gatekeeper.checks.greylisting.greylist import Greylist
from gatekeeper.checks.greylisting.triplet import ClientIdentity, TripletState, first_value, known_value, read_state
from gatekeeper.checks.greylisting.verp import normal_sender
from gatekeeper.core import toml_writer
from gatekeeper.core.file_lock import changing
from gatekeeper.postgrey import lists
from gatekeeper.postgrey.database import CLIENTS, TRIPLETS, read
from gatekeeper.postgrey.options import Options
from gatekeeper.postgrey.state import KnownClient, Triplet, UnusableEntry, parse_client, parse_triplet
from gatekeeper.stores.store import Keys, Store

Entry = TypeVar("Entry", Triplet, KnownClient)

HEADER = "# Brought over from postgrey by `gatekeeper import-postgrey`, which writes this file anew each time."
"""The first line of a table that we may overwrite. It must stay as it is: older files have it."""
EXPIRED = "older than what is still worth anything"
ALREADY = "already there"
BELOW = "clients with too few mails to be known: their triplets are what counts"


@dataclass(slots=True)
class ImportedState:
    """The result of an import: counts of what was imported, by kind, and of what was not, by reason."""

    imported: Counter[str] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)
    files: list[str] = field(default_factory=list)
    toml: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def count(self, what: str) -> None:
        """Count one entry, by its kind or the reason why it was not imported."""
        (self.skipped if what in (ALREADY, EXPIRED, BELOW) else self.imported)[what] += 1


@contextmanager
def _counting_unusable(result: ImportedState) -> Iterator[None]:
    try:
        yield
    except UnusableEntry as error:
        result.skipped[f"entries {error}"] += 1


class Entries(NamedTuple):
    """The pairs of postgrey's two databases."""

    triplets: list[tuple[bytes, bytes]]
    clients: list[tuple[bytes, bytes]]


def read_entries(folder: Path) -> Entries:
    """Read the databases in `folder`. Raises DatabaseError."""
    return Entries(read(folder, TRIPLETS), read(folder, CLIENTS))


def has_databases(folder: Path) -> bool:
    """Return whether postgrey has written anything in `folder`."""
    return any((folder / file).exists() for file in (TRIPLETS, CLIENTS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The target of an import: a store, and the keys that `greylist` looks up. `now` in seconds since the epoch."""

    store: Store
    keys: Keys
    greylist: Greylist
    options: Options
    now: float

    def identity(self, triplet: Triplet) -> ClientIdentity:
        """Return the identity under which the greylist knows the triplet's client."""
        network = network_of(triplet.address, self.greylist.ipv4_prefix, self.greylist.ipv6_prefix)
        sender = normal_sender(triplet.sender)
        return ClientIdentity.of(self.keys, network, sender, triplet.recipient, self.greylist.lifetime)

    async def import_state(self, entries: Entries, result: ImportedState) -> None:
        """Import all entries. Raises StoreError."""
        for pair in entries.triplets:
            with _counting_unusable(result):
                result.count(await self._triplet(self._in_the_past(parse_triplet(*pair))))
        for pair in entries.clients:
            with _counting_unusable(result):
                result.count(await self._client(self._in_the_past(parse_client(*pair))))

    def _in_the_past(self, entry: Entry) -> Entry:
        """Return `entry` as if its last mail came now, if it came in the future (core/stored_time.py)."""
        ahead = max(0, entry.last - int(self.now))
        if isinstance(entry, Triplet):
            return replace(entry, first=entry.first - ahead, last=entry.last - ahead)
        return replace(entry, last=entry.last - ahead)

    async def _triplet(self, triplet: Triplet) -> str:
        identity = self.identity(triplet)
        existing = await read_state(identity, self.store)
        if triplet.last - triplet.first >= self.options.delay:
            return await self._known(identity, existing, triplet.last)
        left = triplet.first + self.greylist.retry_window - self.now
        if left <= 0:
            return EXPIRED
        if existing.known is not None or (existing.first is not None and existing.first <= triplet.first):
            return ALREADY
        await self.store.set(identity.triplet, first_value(triplet.first), left)
        return "triplets that wait"

    async def _known(self, identity: ClientIdentity, existing: TripletState, last: int) -> str:
        left = last + self.greylist.lifetime - self.now
        if left <= 0:
            return EXPIRED
        if existing.known is not None and existing.known >= last:
            return ALREADY
        await self.store.set(identity.triplet, known_value(last), left)
        await self.store.hit([identity.passed])
        return "triplets that have passed"

    async def _client(self, client: KnownClient) -> str:
        if not self.options.auto_allow or client.count < self.options.auto_allow:
            return BELOW
        network = network_of(client.address, self.greylist.ipv4_prefix, self.greylist.ipv6_prefix)
        key = ClientIdentity.of(self.keys, network, "", "", self.greylist.lifetime).allowed
        left = client.last + self.greylist.lifetime - self.now
        if left <= 0:
            return EXPIRED
        if await self.store.get(key) is not None:
            return ALREADY
        await self.store.set(key, known_value(client.last), left)
        return "clients that are known"


def import_lists(options: Options, folder: Path, result: ImportedState, base: Path | None = None) -> None:
    """Write the allow lists as tables into `folder`; files that are not ours are left alone. Raises OSError.

    `base` is where paths in the configuration start, if that is another folder.
    """
    here = folder.resolve()
    prefix = "" if base is None or here == base.resolve() else f"{here}/"
    for kind, files, convert in (
        ("clients", options.clients, lists.convert_client),
        ("recipients", options.recipients, lists.convert_recipient),
    ):
        tables = lists.AllowTables()
        for file in files:
            if file.is_file():
                tables.read(file, convert)
            elif file not in getattr(Options(), kind):  # the ones that are there by default need not be
                result.remarks.append(f"{file} is not there, which postgrey's options name")
        result.imported[f"{kind} on allow lists"] += tables.entries
        result.skipped["lines of allow lists"] += len(tables.problems)
        result.remarks += [str(problem) for problem in tables.problems]
        names = [
            f"{type}:{prefix}{name}"
            for type, name, lines in lists.table_files(kind, tables)
            if _write(folder, name, lines, result)
        ]
        if names:
            result.toml.append(toml_writer.line(f"allow_{kind}", names))


def _write(folder: Path, name: str, lines: Sequence[str], result: ImportedState) -> bool:
    """Write a table; return False if there is a file that is not ours."""
    path = folder / name
    text = "\n".join([HEADER, *lines, ""])
    with changing(path) as table:
        if table.data is not None and not table.data.startswith(HEADER.encode()):
            result.remarks.append(f"{path} already exists and is not ours: move it away and import again")
            return False
        if table.data != text.encode():
            table.replace(text.encode())
            result.files.append(str(path))
    return True


def remarks(options: Options, greylist: Greylist) -> Iterator[str]:
    """Say which options keep imported state from being found."""
    for name, bits in (("ipv4_prefix", options.ipv4_prefix), ("ipv6_prefix", options.ipv6_prefix)):
        if getattr(greylist, name) != bits:
            yield f"postgrey's networks are /{bits}, {name} is {getattr(greylist, name)}: set it, and import again"


def as_json(result: ImportedState) -> dict[str, object]:
    """Return the report for programs."""
    return {"came": dict(result.imported), "stayed": dict(result.skipped)} | {
        name: getattr(result, name) for name in ("files", "toml", "remarks")
    }


def sentences(result: ImportedState) -> Iterator[str]:
    """Yield the report for people, line by line."""
    for what, count in result.imported.items():
        if count:
            yield f"{count} {what}: imported"
    for what, count in result.skipped.items():
        if count:
            yield f"{count} {what}: skipped" if what != ALREADY else f"{count} already there"
    yield from result.remarks
    yield from (f"written: {path}" for path in result.files)
    if result.toml:
        yield "for gatekeeper.toml, to behave as with postgrey:"
        yield "    [checks.greylist]"
        yield from (f"    {line}" for line in result.toml)
