# SPDX-License-Identifier: GPL-3.0-or-later
"""postgrey's state into gatekeeper's store, and its allow lists into tables: as often as one likes, nothing gets worse.

A triplet that has passed is known for the rest of `lifetime` since its last mail; one that waits waits the rest of
`delay`, and may come back within the rest of `retry_window`; a client that postgrey lets pass by itself makes its
network known. What the store knows better already stays. postgrey keeps `#` for
the numbers in a sender: triplet.py looks for that, too.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gatekeeper.checks.base.client_network import network_of
from gatekeeper.checks.greylisting.greylist import Greylist
from gatekeeper.checks.greylisting.triplet import ClientIdentity, TripletState, first_value, known_value, read_state
from gatekeeper.checks.greylisting.verp import normal_sender
from gatekeeper.postgrey import lists
from gatekeeper.postgrey.database import CLIENTS, TRIPLETS, read
from gatekeeper.postgrey.options import Options
from gatekeeper.postgrey.state import KnownClient, Triplet, UnusableEntry, parse_client, parse_triplet
from gatekeeper.stores.store import Keys, Store

HEADER = "# Brought over from postgrey by `gatekeeper import-postgrey`, which writes this file anew each time."
EXPIRED = "older than what is still worth anything"
ALREADY = "already there"
BELOW = "clients with too few mails to be known: their triplets are what counts"


@dataclass(slots=True)
class ImportedState:
    """What came, by what it is, and what did not, by why."""

    came: Counter[str] = field(default_factory=Counter)
    stayed: Counter[str] = field(default_factory=Counter)
    files: list[str] = field(default_factory=list)
    toml: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def note(self, what: str) -> None:
        """Count one entry."""
        (self.stayed if what in (ALREADY, EXPIRED, BELOW) else self.came)[what] += 1


@contextmanager
def _noting(brought: ImportedState) -> Iterator[None]:
    try:
        yield
    except UnusableEntry as error:
        brought.stayed[f"entries {error}"] += 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where state goes to: a store with the keys under which `greylist` will look. `now` in seconds since the epoch."""

    store: Store
    keys: Keys
    greylist: Greylist
    options: Options
    now: float

    def identity(self, triplet: Triplet) -> ClientIdentity:
        """What the triplet's client is known as."""
        network = network_of(triplet.address, self.greylist.ipv4_prefix, self.greylist.ipv6_prefix)
        sender = normal_sender(triplet.sender)
        return ClientIdentity.of(self.keys, network, sender, triplet.recipient, self.greylist.lifetime)

    async def bring(self, folder: Path, brought: ImportedState) -> None:
        """All entries of the databases in `folder`. Raises DatabaseError and StoreError."""
        for pair in read(folder, TRIPLETS):
            with _noting(brought):
                brought.note(await self._triplet(parse_triplet(*pair)))
        for pair in read(folder, CLIENTS):
            with _noting(brought):
                brought.note(await self._client(parse_client(*pair)))

    async def _triplet(self, triplet: Triplet) -> str:
        identity = self.identity(triplet)
        there = await read_state(identity, self.store)
        if triplet.last - triplet.first >= self.options.delay:
            return await self._known(identity, there, triplet.last)
        left = triplet.first + self.greylist.retry_window - self.now
        if left <= 0:
            return EXPIRED
        if there.known is not None or (there.first is not None and there.first <= triplet.first):
            return ALREADY
        await self.store.set(identity.triplet, first_value(triplet.first), left)
        return "triplets that wait"

    async def _known(self, identity: ClientIdentity, there: TripletState, last: int) -> str:
        left = last + self.greylist.lifetime - self.now
        if left <= 0:
            return EXPIRED
        if there.known is not None and there.known >= last:
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


def import_lists(options: Options, folder: Path, brought: ImportedState) -> None:
    """Write the allow lists as tables into `folder`; files there that are not ours are left alone. Raises OSError."""
    for kind, files, convert in (
        ("clients", options.clients, lists.client),
        ("recipients", options.recipients, lists.recipient),
    ):
        tables = lists.AllowTables()
        for file in files:
            if file.is_file():
                tables.read(file, convert)
        brought.came[f"{kind} on allow lists"] += tables.entries
        brought.stayed["lines of allow lists"] += len(tables.problems)
        brought.remarks += [str(problem) for problem in tables.problems]
        names = [_write(folder, name, type, lines, brought) for type, name, lines in lists.table_names(kind, tables)]
        if any(names):
            listed = ", ".join(f'"{name}"' for name in names if name)
            brought.toml.append(f"allow_{kind} = [{listed}]")


def _write(folder: Path, name: str, type: str, lines: Sequence[str], brought: ImportedState) -> str:
    """The table's name in a configuration; empty if the file is somebody else's."""
    path = folder / name
    text = "\n".join([HEADER, *lines, ""])
    if path.exists():
        there = path.read_text("utf-8", "replace")
        if not there.startswith(HEADER):
            brought.remarks.append(f"{path} is there already and not ours: move it away and import again")
            return ""
        if there == text:
            return f"{type}:{name}"
    path.write_text(text, "utf-8")
    brought.files.append(str(path))
    return f"{type}:{name}"


def remarks(options: Options, greylist: Greylist) -> Iterator[str]:
    """What about the options keeps state from being found again."""
    for name, bits in (("ipv4_prefix", options.ipv4_prefix), ("ipv6_prefix", options.ipv6_prefix)):
        if getattr(greylist, name) != bits:
            yield f"postgrey's networks are /{bits}, {name} is {getattr(greylist, name)}: set it, and import again"


def as_json(brought: ImportedState) -> dict[str, object]:
    """The report for a program."""
    return {"came": dict(brought.came), "stayed": dict(brought.stayed)} | {
        name: getattr(brought, name) for name in ("files", "toml", "remarks")
    }


def sentences(brought: ImportedState) -> Iterator[str]:
    """The report."""
    for what, count in brought.came.items():
        if count:
            yield f"{count} {what}: brought over"
    for what, count in brought.stayed.items():
        if count:
            yield f"{count} {what}: left out" if what != ALREADY else f"{count} already there"
    yield from brought.remarks
    yield from (f"written: {path}" for path in brought.files)
    if brought.toml:
        yield "for gatekeeper.toml, to go on as with postgrey:"
        yield "    [checks.greylist]"
        yield from (f"    {line}" for line in brought.toml)
