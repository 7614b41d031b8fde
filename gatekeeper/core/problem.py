# SPDX-License-Identifier: GPL-3.0-or-later
"""Mistakes in files that people write: each with its file and line, all of them reported at once.

Code that reads a file collects Problems and goes on; ConfigError carries the whole list to whoever reports them.

A warning that opens something (it trusts more people than was meant, or than the program before us did) says `OPENS:`
where one about style says `warning:`, in every command and log, because somebody who reads fifty lines reads the first.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from gatekeeper.core import redaction


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One mistake: `what` says what is wrong, and what is allowed or how to fix it.

    `line` is 0 for the file as a whole. A `warning` does not keep the configuration from being used; one that `opens`
    lets in, or trusts, more than was probably meant; one that is `trouble` says that something asked for will not work
    all the same: mail waits for a key, or Postfix cannot connect. What looks like the key of a DNS list, or a password
    in a url, is left out.
    """

    file: str
    line: int
    what: str
    warning: bool = False
    opens: bool = False
    trouble: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "what", redaction.hide_passwords(redaction.hide_known_keys(self.what)))

    def __str__(self) -> str:
        return self.labelled("OPENS: " if self.opens else "warning: " if self.warning else "")

    def labelled(self, label: str) -> str:
        """Return it as a line for people, with `label` before what is wrong."""
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {label}{self.what}"

    def opening(self) -> "Problem":
        """Return the same as a warning about what it opens."""
        return replace(self, warning=True, opens=True)


class ConfigError(Exception):
    """The configuration, or a table or key that it names, cannot be used."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))
