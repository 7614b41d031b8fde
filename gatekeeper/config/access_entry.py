# SPDX-License-Identifier: GPL-3.0-or-later
"""Adding an entry to a table of [checks.access], for `gatekeeper allow` and `gatekeeper deny`.

The file is replaced as a whole, keeping its owner and mode, so that neither Postfix nor we ever read half of it, and
locked meanwhile, so that of several entries that are added at once none is lost (core/file_lock.py). An entry that an
earlier line would override is not written: a person should look at both. The effect of the entry is described in words,
from the position of `access` in the restriction lists.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Literal

from gatekeeper.checks.tables.indexed import cut_key, fold
from gatekeeper.checks.tables.sender_proof import CONDITIONS
from gatekeeper.checks.tables.table import logical_lines
from gatekeeper.config.config_file import Config
from gatekeeper.core import file_lock
from gatekeeper.core.safe_path import real_path
from gatekeeper.core.text_files import without_bom
from gatekeeper.core.units import parse_network
from gatekeeper.core.verdict import Mode
from gatekeeper.pipeline.pipeline import RECIPIENT

EntryKind = Literal["client", "helo", "sender", "recipient"]
ENTRY_KINDS: tuple[EntryKind, ...] = ("client", "helo", "sender", "recipient")
_EXACT = ("hash", "lmdb", "btree", "dbm", "texthash")
_NAME = re.compile(r"(?=.{1,255}$)[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*", re.IGNORECASE)
_LOCAL = re.compile(r"[^\s@\"\\<>()\[\],;:]{1,64}")


class EntryRefused(Exception):
    """The entry cannot be added; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class AccessEntry:
    """An entry for a table of `kind`: `key`, and `action` with its text; `remark` becomes a comment above it."""

    kind: EntryKind
    key: str
    action: str
    remark: str = ""
    network: IPv4Network | IPv6Network | None = None

    @property
    def allows(self) -> bool:
        """Whether the action is OK."""
        return self.action.startswith("OK")


def allow(key: str, reason: str = "", condition: str = "", kind: EntryKind | None = None) -> AccessEntry:
    """Return the entry `key OK`, with `if=condition` if there is one. Raises EntryRefused for invalid arguments."""
    if condition and condition not in CONDITIONS:
        raise EntryRefused(f"--if {condition} is not a condition; allowed: {', '.join(CONDITIONS)}")
    return _entry(key, f"OK if={condition}" if condition else "OK", _line("REASON", reason), kind)


def deny(key: str, text: str = "", kind: EntryKind | None = None) -> AccessEntry:
    """Return the entry `key REJECT text`. Raises EntryRefused for invalid arguments."""
    text = _line("TEXT", text)
    if not text.isascii():
        raise EntryRefused("TEXT goes into a reply, which must be ASCII; leave out other characters")
    return _entry(key, f"REJECT {text}".strip(), "", kind)


def _line(what: str, text: str) -> str:
    text = text.strip()
    if not text.isprintable() or len(text) > 400:
        raise EntryRefused(f"{what} must be one line of at most 400 printable characters")
    return text


def _entry(key: str, action: str, remark: str, kind: EntryKind | None) -> AccessEntry:
    """Return the entry for `key` in the table that it belongs in. Raises EntryRefused.

    An address or network is a client, a key with an @ is a sender, and any other name is the domain of a sender, unless
    `kind` says otherwise.
    """
    network = None
    try:
        network = parse_network(key)
    except ValueError as error:
        if "/" in key:
            raise EntryRefused(str(error)) from None
    if network is not None:
        if kind not in (None, "client"):
            raise EntryRefused(f"{key} is an address; tables for {kind} are not searched by address")
        plain = network.prefixlen == network.max_prefixlen
        return AccessEntry("client", str(network.network_address if plain else network), action, remark, network)
    key = key.lower().removesuffix(".")
    if key == "<>":
        return AccessEntry(kind or "sender", key, action, remark)
    local, at, domain = key.rpartition("@")
    valid = (not at or not local or _LOCAL.fullmatch(local)) and (not domain or _NAME.fullmatch(domain))
    if not valid or not (local or domain) or re.fullmatch(r"[\d.]+", domain):
        raise EntryRefused(
            f"{key!r} is not a valid key; allowed: ADDRESS, NETWORK/LENGTH, example.com, user@example.com, user@, <>"
        )
    if at and kind in ("client", "helo"):
        raise EntryRefused(f"{key} is a mailbox; tables for {kind} are not searched by mailbox")
    # example.com covers its subdomains too, and is what Postfix understands
    return AccessEntry(kind or "sender", key if local or not at else domain, action, remark)


@dataclass(frozen=True, slots=True)
class AddedEntry:
    """The result of adding an entry: `lines` describe it; `in_effect` is False if no check uses the table yet."""

    lines: tuple[str, ...]
    in_effect: bool


def add(config: Config, entry: AccessEntry, default_folder: Path) -> AddedEntry:
    """Add `entry` to the right table, in `default_folder` if none is configured. Raises EntryRefused and OSError."""
    type, path, configured = _table(config, entry, default_folder)
    lines = [_write(path, type, entry), *_describe_effect(config, entry)]
    if not configured:
        lines.append(f'[checks.access] does not name this table yet. Add: {entry.kind} = ["{type}:{path}"]')
    elif entry.network is not None and type in _EXACT and "/" in entry.key:
        lines.append(f"Postfix itself never matches a network in a {type}: table; gatekeeper does.")
    lines += [
        f"If Postfix reads this table too: postmap {type}:{path}"
        for suffix in (".db", ".lmdb")
        if path.with_name(path.name + suffix).exists()
    ]
    return AddedEntry(tuple(lines), configured and not _why_without_effect(config))


def _table(config: Config, entry: AccessEntry, folder: Path) -> tuple[str, Path, bool]:
    """Return type and file of the table for `entry`, and whether the configuration names it. Raises OSError."""
    names = [name.partition(":")[::2] for name in getattr(config.checks.access, entry.kind)]
    wide = entry.network is not None and "/" in entry.key
    types = ("cidr", *_EXACT) if wide else (*_EXACT, *(["cidr"] if entry.network else []))
    for type in types:
        for found, file in names:
            if found == type:
                return type, real_path(config.folder / file), True
    return ("cidr" if wide else "hash"), folder / f"access_{entry.kind}{'_cidr' if wide else ''}", False


def _overriding_line(data: bytes, type: str, entry: AccessEntry) -> tuple[int, str, str] | None:
    """Return number, key and action of the line that would override an entry at the end; None if there is none."""
    for line, content in logical_lines(without_bom(data)):
        key, action = (part.decode("utf-8", "replace") for part in cut_key(content))
        if type != "cidr":
            if fold(key.encode()) == fold(entry.key.encode()):
                return line, entry.key, action
            continue
        try:
            network = parse_network(key)
        except ValueError:
            continue  # an if or endif, or a mistake that check-config reports
        ours = entry.network
        if ours is None or network.version != ours.version:
            continue
        if network.prefixlen <= ours.prefixlen and ours.network_address in network:
            return line, entry.key if network == ours else key, action
    return None


def _write(path: Path, type: str, entry: AccessEntry) -> str:
    """Write the entry unless it is there, and return its place and text. Raises EntryRefused and OSError."""
    line = f"{entry.key}\t{entry.action}"
    with file_lock.changing(path) as table:
        old = table.data or b""
        found = _overriding_line(old, type, entry)
        if found is not None and found[2] == entry.action and found[1] == entry.key:
            return f"{path}:{found[0]} already has it: {line}"
        if found is not None:
            what = f"{path}:{found[0]} comes first and says {found[1]} {found[2]}"
            raise EntryRefused(f"{what}; change or remove that line")
        before = old + (b"\n" if old and not old.endswith(b"\n") else b"")
        remark = f"# {entry.remark}\n" if entry.remark else ""
        table.replace(before + f"{remark}{line}\n".encode())
    return f"{path}:{before.count(10) + remark.count(chr(10)) + 1}: {line}"


def _position(config: Config) -> tuple[str, list[str], list[str]] | None:
    """Return the list in which `access` stands, what comes before it and what after; None if no list has it."""
    for name, _, restrictions in config.policy.lists():
        words = [str(found) for found in restrictions]
        if "access" in words:
            at = words.index("access")
            return name, words[:at], words[at + 1 :]
    return None


def _why_without_effect(config: Config) -> str:
    """Return why no entry has an effect now, in words; empty if entries have one."""
    if _position(config) is None:
        return "no list of [policy] contains access"
    observing = {"mode": config.mode, "checks.access.mode": config.checks.access.mode}
    why = [f'{option} is "{value}"' for option, value in observing.items() if value != Mode.ENFORCE]
    return " and ".join(why)


_MAIL = {
    "client": "from the client",
    "helo": "from clients that say HELO",
    "sender": "from the sender",
    "recipient": "to the recipient",
}


def _describe_effect(config: Config, entry: AccessEntry) -> Iterator[str]:
    wide = entry.kind in ("sender", "recipient", "helo") and "@" not in entry.key and entry.key != "<>"
    mail = f"Mail {_MAIL[entry.kind]} {entry.key}" + (" and its subdomains" if wide else "")
    if entry.kind == "client" and entry.network is None:
        mail += " (its confirmed name) and its subdomains"
    position, why = _position(config), _why_without_effect(config)
    if position is None or why:
        yield f"It has no effect now: {why}."
        return
    name, before, after = position
    refusing = [word for word in before if not word.startswith("permit")]
    if entry.allows:
        yield f"{mail} skips what comes after access in the {name} list: {', '.join(after) or 'nothing'}."
        if entry.kind == "sender" and "if=" not in entry.action:
            yield "Warning: anybody can forge this sender and gets in by it; demand proof: --if spf, dkim or dmarc"
        if refusing:
            yield f"It does not skip what comes earlier: {', '.join(refusing)}."
        if name != RECIPIENT:
            yield "Later lists still apply."
        yield "Postfix's own restrictions and the milter still apply."
    else:
        yield f"{mail} is refused with 554 5.7.1."
        passing = [word for word in before if word.startswith("permit")]
        if passing:
            yield f"It still passes by what comes earlier: {', '.join(passing)}."
    yield from _describe_precedence(config, entry)


def _describe_precedence(config: Config, entry: AccessEntry) -> Iterator[str]:
    """Yield sentences about entries that come before `entry`: in tables of other kinds, and for more specific keys."""
    kinds = ENTRY_KINDS[: ENTRY_KINDS.index(entry.kind)]
    earlier = [kind for kind in kinds if getattr(config.checks.access, kind)]
    if earlier:
        yield f"The tables for {', '.join(earlier)} are searched first, and the first entry that decides counts."
    if entry.network is not None:
        yield "An entry for the client's name takes precedence over one for its address."
    elif "@" not in entry.key and entry.key != "<>":
        yield "A more specific entry (user@domain, a subdomain) takes precedence."
