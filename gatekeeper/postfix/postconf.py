# SPDX-License-Identifier: GPL-3.0-or-later
"""Defaults for the top level of the configuration, taken from the Postfix on this machine.

Runs `postconf -x` once. Values that Postfix looks up in a table (`hash:/etc/postfix/domains`) or negates (`!net`)
cannot be used here; they are returned as warnings, because a list that is silently shorter refuses or passes the wrong
mail.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Ask = Callable[[Sequence[str]], Mapping[str, str]]
"""Returns the values of main.cf parameters by name; empty where Postfix is not installed."""

_TIMEOUT = 5.0
_PARAMETERS = (
    "myhostname",
    "mynetworks",
    "mydestination",
    "virtual_alias_domains",
    "virtual_mailbox_domains",
    "relay_domains",
    "recipient_delimiter",
    "parent_domain_matches_subdomains",
)


@dataclass(frozen=True, slots=True)
class PostfixSettings:
    """Top-level options with the `values` that Postfix has, and `warnings`: (option, what could not be used)."""

    values: Mapping[str, object] = field(default_factory=dict)
    warnings: tuple[tuple[str, str], ...] = ()


def ask_postfix(names: Sequence[str]) -> Mapping[str, str]:
    """Return the values that `postconf -x` prints; empty if Postfix is not installed or its main.cf cannot be read."""
    program = shutil.which("postconf", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        return {}
    try:
        # Where there is no main.cf, postconf -x sleeps for a second before it says so.
        folder = os.environ.get("MAIL_CONFIG") or _run(program, "-dh", "config_directory").strip()
        if not (Path(folder) / "main.cf").exists():
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

    These are hostname, mynetworks, local_domains, relay_domains and recipient_delimiter. What Postfix does not have,
    and an empty mynetworks, is left out.
    """
    parameters = ask(_PARAMETERS)
    if not parameters:
        return PostfixSettings()
    warnings: list[tuple[str, str]] = []

    def words(option: str, *names: str) -> list[str]:
        accepted: list[str] = []
        for name in names:
            for word in re.split(r"[\s,]+", parameters.get(name, "")):
                if word.startswith(("!", "/", "$")) or re.match(r"[a-z]+:", word):
                    what = f"Postfix's {name} says {word!r}, which cannot be used here; set {option} yourself"
                    warnings.append((option, what))
                elif word and word not in accepted:
                    accepted.append(word)
        return accepted

    values: dict[str, object] = {}
    if networks := words("mynetworks", "mynetworks"):
        values["mynetworks"] = [network.replace("[", "").replace("]", "") for network in networks]
    values["local_domains"] = words(
        "local_domains", "mydestination", "virtual_alias_domains", "virtual_mailbox_domains"
    )
    relayed = words("relay_domains", "relay_domains")
    if "relay_domains" in parameters.get("parent_domain_matches_subdomains", ""):
        relayed += [f".{domain}" for domain in relayed if not domain.startswith(".")]
    values["relay_domains"] = relayed
    values["recipient_delimiter"] = parameters.get("recipient_delimiter", "")
    if hostname := parameters.get("myhostname"):
        values["hostname"] = hostname
    return PostfixSettings(values, tuple(warnings))
