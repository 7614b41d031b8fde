# SPDX-License-Identifier: GPL-3.0-or-later
"""A reader of postgrey's command-line options, in Debian's /etc/default/postgrey.

Knows the options that determine what postgrey's state means, and those that gatekeeper has an option for.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gatekeeper.core import toml_writer
from gatekeeper.core.text_files import read_text

CONFIG = Path("/etc/postgrey")
DEFAULT_FILE = Path("/etc/default/postgrey")
_LINE = re.compile(r"^\s*(?:export\s+)?POSTGREY_OPTS=(.*)$", re.MULTILINE)
_DAY = 86400


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """postgrey's options, with its defaults; times in seconds. `clients` and `recipients` are its allow lists."""

    delay: int = 300
    retry_window: int = 2 * _DAY
    max_age: int = 35 * _DAY
    auto_allow: int = 5
    ipv4_prefix: int = 24
    ipv6_prefix: int = 64
    folder: Path | None = None
    clients: tuple[Path, ...] = (CONFIG / "whitelist_clients", CONFIG / "whitelist_clients.local")
    recipients: tuple[Path, ...] = (CONFIG / "whitelist_recipients", CONFIG / "whitelist_recipients.local")

    def as_toml(self) -> Iterator[str]:
        """Yield the lines of [checks.greylist] that preserve postgrey's behaviour."""
        yield toml_writer.line("clients", "all")
        default = Options()
        if self.delay != default.delay:
            yield toml_writer.line("delay", f"{self.delay}s")
        if self.retry_window != default.retry_window:
            yield toml_writer.line("retry_window", f"{self.retry_window}s")
        if self.max_age != default.max_age:
            yield toml_writer.line("lifetime", f"{self.max_age}s")
        for name in ("auto_allow", "ipv4_prefix", "ipv6_prefix"):
            if getattr(self, name) != getattr(default, name):
                yield toml_writer.line(name, getattr(self, name))


def read_options(file: Path, *, must_exist: bool = False) -> Options:
    """Read the options in `file`; without such a file, return postgrey's defaults, unless it `must_exist`.

    Raises OSError, and ValueError for what is not valid shell syntax or not a valid value.
    """
    try:
        text = read_text(file, "replace")
    except FileNotFoundError:
        if must_exist:
            raise
        return Options()
    lines = _LINE.findall(text)
    return parse_options(shlex.split(" ".join(shlex.split(lines[-1], comments=True)))) if lines else Options()


def parse_options(words: list[str]) -> Options:
    """Parse postgrey's command line; options that do not matter here are ignored. Raises ValueError."""
    found: dict[str, list[str]] = {}
    rest = iter(words)
    for word in rest:
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in _TAKES_VALUE:
            found.setdefault(name, []).append(value if equals else next(rest, ""))
        elif word.startswith("--auto-whitelist-clients"):
            found["auto-whitelist-clients"] = [value]
    values: dict[str, int] = {}
    for name, (attribute, unit) in _NUMBERS.items():
        for text in found.get(name, ()):
            hours = name == "retry-window" and text.lower().endswith("h")
            number = text[:-1] if hours else text
            if number.isdecimal():
                values[attribute] = int(number) * (3600 if hours else unit)
            elif number:
                raise ValueError(f"--{name}={text}: not a number")
    files = {
        attribute: tuple(map(Path, found[name]))
        for name, attribute in (("whitelist-clients", "clients"), ("whitelist-recipients", "recipients"))
        if name in found
    }
    folder = Path(found["dbdir"][-1]) if "dbdir" in found else None
    return Options(**values, **files, folder=folder)  # type: ignore[arg-type]  # each attribute has the type of its option


_NUMBERS = {
    "delay": ("delay", 1),
    "retry-window": ("retry_window", _DAY),
    "max-age": ("max_age", _DAY),
    "auto-whitelist-clients": ("auto_allow", 1),
    "ipv4cidr": ("ipv4_prefix", 1),
    "ipv6cidr": ("ipv6_prefix", 1),
}
_TAKES_VALUE = {"delay", "retry-window", "max-age", "ipv4cidr", "ipv6cidr", "dbdir"} | {
    "whitelist-clients",
    "whitelist-recipients",
}
