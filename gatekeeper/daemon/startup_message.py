# SPDX-License-Identifier: GPL-3.0-or-later
"""What `run` says once it serves: the lines for Postfix's main.cf, and a question that can be asked at once.

The lines say what postfix-snippets/ says, on the addresses that were really opened.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from gatekeeper.daemon.worker import WorkerKind
from gatekeeper.postfix.listen_address import ListenAddress

_SESSION = "--client 192.0.2.1 --helo localhost --from a@example.com --to b@example.org"


def startup_message(addresses: Mapping[WorkerKind, ListenAddress], config_path: Path | None) -> str:
    """Return the text, for one address of each kind that is served."""
    lines = ["", "Put into Postfix's main.cf, as postfix-snippets/ explains (who may relay is decided before):"]
    if WorkerKind.POLICY in addresses:
        service = f"{_for_postfix(addresses[WorkerKind.POLICY])}, timeout=30s, default_action=DUNNO"
        lines.append(f"  smtpd_recipient_restrictions = check_policy_service {{ {service} }}")
    if WorkerKind.MILTER in addresses:
        lines.append(f"  smtpd_milters = {{ {_for_postfix(addresses[WorkerKind.MILTER])}, default_action=accept }}")
    option = f"--config {config_path.absolute()} " if config_path else ""
    lines += ["and ask it about a session:", f"  {_command()} {option}explain {_SESSION}"]
    return "\n".join(lines)


def _command() -> str:
    """How we were called, so that it can be said again."""
    return f"{sys.executable} -m gatekeeper" if sys.argv[0].endswith("__main__.py") else sys.argv[0]


def _for_postfix(listen: ListenAddress) -> str:
    """Postfix takes a unix path relative to its queue directory, and ours as it is if it lies elsewhere."""
    return str(listen).replace("unix:/var/spool/postfix/", "unix:")
