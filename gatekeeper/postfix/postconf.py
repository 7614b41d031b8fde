# SPDX-License-Identifier: GPL-3.0-or-later
"""Defaults for the top level of the configuration, taken from the Postfix on this machine.

Which Postfix, where there are several: the one whose configuration directory `--postfix` or $MAIL_CONFIG names, as for
Postfix's own commands. Nothing of it is known beforehand, its queue directory neither.

Runs `postconf -x` once. mynetworks is taken with all that Postfix understands there; what Postfix itself takes for a
mistake ends it (postfix/client_list.py). Of the lists of domains, what Postfix looks up in a table
(`hash:/etc/postfix/domains`) or negates cannot be used here. All that is left out is returned as a warning, because a
list that is silently shorter refuses or passes the wrong mail; main.cf is recorded as read, so that a change in it is
noticed (core/watched_files.py).
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gatekeeper.core import watched_files
from gatekeeper.core.working_folder import absolute
from gatekeeper.postfix.client_list import COMMENT, THE_END, ClientPattern, end_of_list, parse_postfix_pattern
from gatekeeper.postfix.restriction_list import split_words

Ask = Callable[[Sequence[str]], Mapping[str, str]]
"""Returns the values of main.cf parameters by name; empty where Postfix is not installed."""

_TIMEOUT = 5.0
_PARAMETERS = (
    "config_directory",
    "myhostname",
    "mynetworks",
    "mydestination",
    "virtual_alias_domains",
    "virtual_mailbox_domains",
    "relay_domains",
    "recipient_delimiter",
    "parent_domain_matches_subdomains",
    "smtpd_null_access_lookup_key",
    "queue_directory",
    "mail_owner",
)


@dataclass(frozen=True, slots=True)
class PostfixSettings:
    """Top-level options with the `values` that Postfix has, and `warnings`: (option, what could not be used).

    `file` is its main.cf. `parents` tells whether a name in mynetworks stands for what is below it too.
    `queue_directory` is what its processes see as / in a chroot, `mail_owner` whom they run as; None and empty where
    there is no Postfix.
    """

    values: Mapping[str, object] = field(default_factory=dict)
    warnings: tuple[tuple[str, str], ...] = ()
    file: str = "main.cf"
    parents: bool = True
    queue_directory: Path | None = None
    mail_owner: str = ""


class NoInstance(Exception):
    """There is no such Postfix; the text says what is missing."""


@contextmanager
def instance(folder: Path | None) -> Iterator[None]:
    """Ask the Postfix whose main.cf is in `folder` meanwhile, in this process and those that it starts.

    None is the one of the environment. Raises NoInstance.
    """
    if folder is None:
        yield
        return
    if not (folder / "main.cf").exists():
        raise NoInstance(f"there is no main.cf in {folder}")
    if _postconf() is None:
        raise NoInstance(f"there is no postconf to ask about {folder}")
    before = os.environ.get("MAIL_CONFIG")
    os.environ["MAIL_CONFIG"] = str(absolute(folder))
    try:
        yield
    finally:
        del os.environ["MAIL_CONFIG"]
        if before is not None:
            os.environ["MAIL_CONFIG"] = before


def chrooted_services(programs: Sequence[str]) -> list[str]:
    """Return the services of master.cf that run one of `programs` in a chroot, each as `smtp/inet`."""
    try:
        lines = _run(program, "-M").splitlines() if (program := _postconf()) else []
    except (OSError, subprocess.SubprocessError):
        return []
    fields = [line.split() for line in lines]
    return [f"{one[0]}/{one[1]}" for one in fields if len(one) > 7 and one[4] == "y" and one[7] in programs]


def ask_postfix(names: Sequence[str]) -> Mapping[str, str]:
    """Return the values that `postconf -x` prints; empty if Postfix is not installed or its main.cf cannot be read."""
    program = _postconf()
    if program is None:
        return {}
    try:
        # Where there is no main.cf, postconf -x sleeps for a second before it says so.
        folder = os.environ.get("MAIL_CONFIG") or _run(program, "-dh", "config_directory").strip()
        main_cf = Path(folder) / "main.cf"
        watched_files.record(main_cf)
        if not main_cf.exists():
            return {}
        lines = _run(program, "-x", *names).splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}
    pairs = (line.partition("=") for line in lines)
    return {name.strip(): value.strip() for name, equals, value in pairs if equals}


def _postconf() -> str | None:
    return shutil.which("postconf", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


def _run(program: str, *arguments: str) -> str:
    return subprocess.run(  # noqa: S603 (a fixed program with fixed arguments)
        [program, *arguments],
        capture_output=True,
        timeout=_TIMEOUT,
        check=True,
        encoding="utf-8",
        errors="replace",
    ).stdout


def read_settings(ask: Ask = ask_postfix) -> PostfixSettings:
    """Return what main.cf sets, under the names of our own options.

    These are hostname, mynetworks, local_domains, relay_domains and recipient_delimiter. What Postfix does not have is
    left out.
    """
    parameters = ask(_PARAMETERS)
    if not parameters:
        return PostfixSettings()
    parents = parameters.get("parent_domain_matches_subdomains", "mynetworks, smtpd_access_maps")
    with_parents = {word for _, word in split_words(parents)}
    warnings: list[tuple[str, str]] = []

    def words(option: str, *names: str) -> list[str]:
        accepted: list[str] = []
        for name in names:
            for word in re.split(r"[\s,]+", parameters.get(name, "")):
                if word.startswith(("!", "/", "$", "#", "[")) or re.match(r"[a-z]+:", word):
                    what = f"{name} says {word!r}, which cannot be used here; set {option} in gatekeeper.toml"
                    warnings.append((option, what))
                elif word and word not in accepted:
                    accepted.append(word)
        return accepted

    if (null := parameters.get("smtpd_null_access_lookup_key", "<>")) != "<>":
        what = f"smtpd_null_access_lookup_key is {null!r}, but gatekeeper asks access tables for '<>'; write that there"
        warnings.append(("", what))
    if "smtpd_access_maps" not in with_parents:
        what = "parent_domain_matches_subdomains is without smtpd_access_maps, but in gatekeeper's access tables"
        warnings.append(("", f"{what} example.com stands for what is below it too, and .example.com for nothing"))
    values: dict[str, object] = {}
    if "mynetworks" in parameters:
        networks, found = _read_mynetworks(parameters["mynetworks"], "mynetworks" in with_parents)
        values["mynetworks"] = networks
        warnings += [("mynetworks", f"mynetworks: {what}") for what in found]
    values["local_domains"] = words(
        "local_domains", "mydestination", "virtual_alias_domains", "virtual_mailbox_domains"
    )
    relayed = words("relay_domains", "relay_domains")
    if "relay_domains" in with_parents:
        relayed += [f".{domain}" for domain in relayed if not domain.startswith(".")]
    values["relay_domains"] = relayed
    values["recipient_delimiter"] = parameters.get("recipient_delimiter", "")
    if hostname := parameters.get("myhostname"):
        values["hostname"] = hostname
    file = str(Path(parameters.get("config_directory", "")) / "main.cf")
    queue = Path(parameters.get("queue_directory", ""))
    return PostfixSettings(
        values,
        tuple(warnings),
        file,
        "mynetworks" in with_parents,
        queue if queue.is_absolute() else None,
        parameters.get("mail_owner", ""),
    )


def _read_mynetworks(text: str, parents: bool) -> tuple[list[ClientPattern], list[str]]:
    """Return the patterns in mynetworks, up to the first that cannot be used, and what is to be said about them."""
    patterns: list[ClientPattern] = []
    said: list[str] = []
    for _, word in split_words(text):
        if word.startswith("#"):
            said.append(COMMENT.format(word))
            break
        try:
            pattern = parse_postfix_pattern(word)
        except ValueError as error:
            said.append(f"{error}; {THE_END}")
            patterns.append(end_of_list(word))
            break
        if pattern.kind == "name" and parents and str(pattern.value).startswith("."):
            said.append(f"{word!r} matches nothing in Postfix; write {str(pattern.value)[1:]!r}")
        patterns.append(pattern)
    return patterns, said
