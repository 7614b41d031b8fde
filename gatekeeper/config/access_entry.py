# SPDX-License-Identifier: GPL-3.0-or-later
"""One entry more in a table of [checks.access], for `gatekeeper allow` and `gatekeeper deny`.

The file is replaced as a whole, with its owner and mode, so that neither Postfix nor we ever read half of it. An entry
that an earlier line keeps from counting is not written: a person should see both. What it will do is said in words,
from where `access` stands in the lists.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Literal

from gatekeeper.checks.tables.indexed import cut_key, fold
from gatekeeper.checks.tables.sender_proof import CONDITIONS
from gatekeeper.checks.tables.table import logical_lines
from gatekeeper.config.config_file import Config
from gatekeeper.core.units import parse_network
from gatekeeper.core.verdict import Mode
from gatekeeper.pipeline.pipeline import RECIPIENT

Kind = Literal["client", "helo", "sender", "recipient"]
KINDS: tuple[Kind, ...] = ("client", "helo", "sender", "recipient")
_EXACT = ("hash", "lmdb", "btree", "dbm", "texthash")
_NAME = re.compile(r"(?=.{1,255}$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*", re.IGNORECASE)
_LOCAL = re.compile(r"[^\s@\"\\<>()\[\],;:]{1,64}")


class EntryRefused(Exception):
    """The entry cannot be made; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class AccessEntry:
    """What is to stand in a table of `kind`: `key`, and `action` with its text. `remark` becomes a comment above it."""

    kind: Kind
    key: str
    action: str
    remark: str = ""
    network: IPv4Network | IPv6Network | None = None

    @property
    def allows(self) -> bool:
        """True for an OK."""
        return self.action.startswith("OK")


def allow(key: str, reason: str = "", condition: str = "", kind: Kind | None = None) -> AccessEntry:
    """`key OK`, with `if=condition`. Raises Refused for nonsense."""
    if condition and condition not in CONDITIONS:
        raise EntryRefused(f"--if {condition} is no condition; allowed: {', '.join(CONDITIONS)}")
    return _entry(key, f"OK if={condition}" if condition else "OK", _line("REASON", reason), kind)


def deny(key: str, text: str = "", kind: Kind | None = None) -> AccessEntry:
    """`key REJECT text`. Raises Refused for nonsense."""
    text = _line("TEXT", text)
    if not text.isascii():
        raise EntryRefused("TEXT goes into a reply, which is ASCII; leave out what is not")
    return _entry(key, f"REJECT {text}".strip(), "", kind)


def _line(what: str, text: str) -> str:
    text = text.strip()
    if not text.isprintable() or len(text) > 400:
        raise EntryRefused(f"{what} must be one line of at most 400 printable characters")
    return text


def _entry(key: str, action: str, remark: str, kind: Kind | None) -> AccessEntry:
    """Which table, and what the key is: an address or network is a client, what has an @ a sender, any other name the
    domain of a sender, unless `kind` says otherwise.
    """
    network = None
    try:
        network = parse_network(key)
    except ValueError as error:
        if "/" in key:
            raise EntryRefused(str(error)) from None
    if network is not None:
        if kind not in (None, "client"):
            raise EntryRefused(f"{key} is an address, which no {kind} is looked up by")
        plain = network.prefixlen == network.max_prefixlen
        return AccessEntry("client", str(network.network_address if plain else network), action, remark, network)
    key = key.lower().removesuffix(".")
    if key == "<>":
        return AccessEntry(kind or "sender", key, action, remark)
    local, at, domain = key.rpartition("@")
    valid = (not at or not local or _LOCAL.fullmatch(local)) and (not domain or _NAME.fullmatch(domain))
    if not valid or not (local or domain) or re.fullmatch(r"[\d.]+", domain):
        raise EntryRefused(
            f"{key!r} is no key; allowed: ADDRESS, NETWORK/LENGTH, example.com, user@example.com, user@, <>"
        )
    if at and kind in ("client", "helo"):
        raise EntryRefused(f"{key} is a mailbox, which no {kind} is looked up by")
    # example.com holds for all below it too, and is what Postfix understands
    return AccessEntry(kind or "sender", key if local or not at else domain, action, remark)


@dataclass(frozen=True, slots=True)
class AddedEntry:
    """What became of it: `lines` for a person. `counts` is False if nothing asks the table yet."""

    lines: tuple[str, ...]
    counts: bool


def add(config: Config, entry: AccessEntry, default_folder: Path) -> AddedEntry:
    """Write `entry` into the right table. Raises Refused, OSError."""
    type, path, named = _table(config, entry, default_folder)
    old = path.read_bytes() if path.exists() else b""
    line = f"{entry.key}\t{entry.action}"
    found = _in_the_way(old, type, entry)
    if found is not None and found[2] == entry.action and found[1] == entry.key:
        lines = [f"{path}:{found[0]} has it already: {line}"]
    elif found is not None:
        raise EntryRefused(f"{path}:{found[0]} comes first and says {found[1]} {found[2]}; change or remove that line")
    else:
        before = old + (b"\n" if old and not old.endswith(b"\n") else b"")
        remark = f"# {entry.remark}\n" if entry.remark else ""
        _write(path, before + f"{remark}{line}\n".encode())
        lines = [f"{path}:{before.count(10) + remark.count(chr(10)) + 1}: {line}"]
    lines += _meaning(config, entry)
    if not named:
        lines.append(f'No table of [checks.access] is asked for it yet. Add: {entry.kind} = ["{type}:{path}"]')
    elif entry.network is not None and type in _EXACT and "/" in entry.key:
        lines.append(f"Postfix itself never matches a network in a {type}: table; gatekeeper does.")
    for suffix in (".db", ".lmdb"):
        if path.with_name(path.name + suffix).exists():
            lines.append(f"If Postfix reads this table too: postmap {type}:{path}")
    return AddedEntry(
        tuple(lines), bool(named) and bool(_position(config)) and config.checks.access.mode is Mode.ENFORCE
    )


def _table(config: Config, entry: AccessEntry, folder: Path) -> tuple[str, Path, bool]:
    """Type and file of the table, and whether the configuration names it."""
    names = [name.partition(":")[::2] for name in getattr(config.checks.access, entry.kind)]
    wide = entry.network is not None and "/" in entry.key
    types = ("cidr", *_EXACT) if wide else (*_EXACT, *(["cidr"] if entry.network else []))
    for type in types:
        for found, file in names:
            if found == type:
                return type, (config.folder / file).resolve(), True
    return ("cidr" if wide else "hash"), folder / f"access_{entry.kind}{'_cidr' if wide else ''}", False


def _in_the_way(data: bytes, type: str, entry: AccessEntry) -> tuple[int, str, str] | None:
    """The line that is found before one that is added at the end: number, key, action."""
    for line, content in logical_lines(data):
        key, action = (part.decode("utf-8", "replace") for part in cut_key(content))
        if type != "cidr":
            if fold(key.encode()) == fold(entry.key.encode()):
                return line, entry.key, action
            continue
        try:
            network = parse_network(key)
        except ValueError:
            continue  # a condition, or a mistake that check-config names
        ours = entry.network
        if ours is None or network.version != ours.version:
            continue
        if network.prefixlen <= ours.prefixlen and ours.network_address in network:
            return line, entry.key if network == ours else key, action
    return None


def _write(path: Path, data: bytes) -> None:
    """Replace the file at once, with its owner and mode."""
    new = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False)  # noqa: SIM115 (it becomes the file)
    try:
        with new:
            new.write(data)
            new.flush()
            if path.exists():
                status = path.stat()
                os.fchown(new.fileno(), status.st_uid, status.st_gid)
                os.fchmod(new.fileno(), status.st_mode & 0o7777)
            else:
                os.fchmod(new.fileno(), 0o644)
            os.fsync(new.fileno())
        os.replace(new.name, path)
    except BaseException:
        Path(new.name).unlink(missing_ok=True)
        raise


def _position(config: Config) -> tuple[str, list[str], list[str]] | None:
    """The list in which `access` stands, what comes before it and what after."""
    for name, _, restrictions in config.policy.lists():
        words = [str(found) for found in restrictions]
        if "access" in words:
            at = words.index("access")
            return name, words[:at], words[at + 1 :]
    return None


_WHAT = {
    "client": "from the client",
    "helo": "from clients that say HELO",
    "sender": "from the sender",
    "recipient": "to the recipient",
}


def _meaning(config: Config, entry: AccessEntry) -> Iterator[str]:
    wide = entry.kind in ("sender", "recipient", "helo") and "@" not in entry.key and entry.key != "<>"
    whom = f"{_WHAT[entry.kind]} {entry.key}" + (" and all below it" if wide else "")
    if entry.kind == "client" and entry.network is None:
        whom += " (its confirmed name) and all below it"
    position = _position(config)
    if position is None or config.checks.access.mode is not Mode.ENFORCE:
        why = (
            "no list of [policy] names access"
            if position is None
            else f'checks.access.mode is "{config.checks.access.mode}"'
        )
        yield f"It does nothing now: {why}."
        return
    name, before, after = position
    refusing = [word for word in before if not word.startswith("permit")]
    if entry.allows:
        yield f"Mail {whom} is spared what comes after access in the {name} list: {', '.join(after) or 'nothing'}."
        if entry.kind == "sender" and "if=" not in entry.action:
            yield "Warning: senders are forged, and this lets in whoever says so; demand proof: --if spf, dkim, dmarc"
        if refusing:
            yield f"It is not spared what comes earlier: {', '.join(refusing)}."
        if name != RECIPIENT:
            yield "Later lists are asked all the same."
        yield "Postfix's own restrictions, and the milter, go on as before."
    else:
        yield f"Mail {whom} is refused with 554 5.7.1."
        passing = [word for word in before if word.startswith("permit")]
        if passing:
            yield f"It still passes by what comes earlier: {', '.join(passing)}."
    yield from _overruled(config, entry)


def _overruled(config: Config, entry: AccessEntry) -> Iterator[str]:
    """Tables of other kinds that are asked before, and names that come before addresses."""
    earlier = [kind for kind in KINDS[: KINDS.index(entry.kind)] if getattr(config.checks.access, kind)]
    if earlier:
        yield f"The tables for {', '.join(earlier)} are asked before it, and the first entry that decides counts."
    if entry.network is not None:
        yield "An entry for the client's name comes before one for its address."
    elif "@" not in entry.key and entry.key != "<>":
        yield "A closer entry (user@domain, a name below) comes before it where there is one."
