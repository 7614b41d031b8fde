# SPDX-License-Identifier: GPL-3.0-or-later
"""An address that we listen on, as Postfix has to write it in main.cf to connect there, also from a chroot."""

from collections.abc import Sequence
from pathlib import Path

from gatekeeper.postfix.listen_address import ListenAddress
from gatekeeper.postfix.postconf import chrooted_services

_LOOPBACK = {"inet": "127.0.0.1", "inet6": "[::1]"}


def for_postfix(listen: ListenAddress, queue_directory: Path | None) -> str:
    """Return the address as it stands in main.cf, where there is no `inet6:` and nobody connects to `*`."""
    if listen.family == "unix":
        path = Path(listen.path)
        if queue_directory is not None and (inside := _below(path, queue_directory)) is not None:
            path = inside
        return f"unix:{path}"
    if listen.host in ("", "0.0.0.0", "::"):  # noqa: S104 (it is what people write)
        return f"inet:{_LOOPBACK[listen.family]}:{listen.port}"
    host = f"[{listen.host}]" if ":" in listen.host else listen.host
    return f"inet:{host}:{listen.port}"


def lies_in_queue(listen: ListenAddress, queue_directory: Path | None) -> bool:
    """Return whether a socket lies below Postfix's queue directory."""
    return bool(listen.path) and queue_directory is not None and _below(Path(listen.path), queue_directory) is not None


def not_seen_from_chroot(
    listen: ListenAddress, queue_directory: Path | None, programs: Sequence[str] = ("smtpd", "cleanup")
) -> str:
    """Return a sentence if one of Postfix's `programs` runs in a chroot that a socket lies outside of, or nothing."""
    if not listen.path or queue_directory is None or lies_in_queue(listen, queue_directory):
        return ""
    services = ", ".join(chrooted_services(programs))
    what = f"{services} of master.cf run in a chroot in {queue_directory} and do not see {listen.path}"
    return f"{what}: put the socket below {queue_directory}, as postfix-snippets/ does" if services else ""


def _below(path: Path, folder: Path) -> Path | None:
    """Return `path` relative to `folder`, whichever links lead to either; None if it does not lie below it."""
    try:
        return (path.parent.resolve() / path.name).relative_to(folder.resolve())
    except ValueError:
        return None
