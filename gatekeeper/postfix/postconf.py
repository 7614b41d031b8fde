# SPDX-License-Identifier: GPL-3.0-or-later
"""Defaults for the top level of the configuration, taken from the Postfix on this machine.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gatekeeper.core import watched_files
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
)


@dataclass(frozen=True, slots=True)
class PostfixSettings:
    """Top-level options with the `values` that Postfix has, and `warnings`: (option, what could not be used).

    `file` is its main.cf. `parents` tells whether a name in mynetworks stands for what is below it too.
    """

    values: Mapping[str, object] = field(default_factory=dict)
    warnings: tuple[tuple[str, str], ...] = ()
    file: str = "main.cf"
    parents: bool = True


def ask_postfix(names: Sequence[str]) -> Mapping[str, str]:
    """Return the values that `postconf -x` prints; empty if Postfix is not installed or its main.cf cannot be read."""
    program = shutil.which("postconf", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
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
    return PostfixSettings(values, tuple(warnings), file, "mynetworks" in with_parents)


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
