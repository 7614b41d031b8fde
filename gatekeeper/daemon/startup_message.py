# SPDX-License-Identifier: GPL-3.0-or-later
"""What `run` says once it serves: the lines for Postfix's main.cf, and a question that can be asked at once.

The lines say what postfix-snippets/ says, on the addresses that were really opened, as the Postfix that is asked has to
write them: relative to its queue directory, which is / for what runs in a chroot there.
"""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from gatekeeper.core.working_folder import absolute
from gatekeeper.daemon.worker import WorkerKind
from gatekeeper.postfix.listen_address import ListenAddress
from gatekeeper.postfix.service_address import for_postfix, not_seen_from_chroot

_SESSION = "--client 192.0.2.1 --helo localhost --from a@example.com --to b@example.org"


_ON_TCP = (
    "On TCP whoever reaches the port is believed: any user of this machine can have mail signed, or count against "
    "others. Unix sockets are for Postfix alone (postfix-snippets/)."
)


def startup_message(
    addresses: Mapping[WorkerKind, ListenAddress], files: Mapping[str, Path | None], queue_directory: Path | None
) -> str:
    """Return the text, for one address of each kind that is served.

    `files` are the options that name the configuration and the Postfix to ask; `queue_directory` is that Postfix's.
    """
    lines = ["", "Put into Postfix's main.cf, as postfix-snippets/ explains (who may relay is decided before):"]
    if WorkerKind.POLICY in addresses:
        service = f"{for_postfix(addresses[WorkerKind.POLICY], queue_directory)}, timeout=30s, default_action=DUNNO"
        lines.append(f"  smtpd_recipient_restrictions = check_policy_service {{ {service} }}")
    if WorkerKind.MILTER in addresses:
        service = f"{for_postfix(addresses[WorkerKind.MILTER], queue_directory)}, default_action=accept"
        lines.append(f"  smtpd_milters = {{ {service} }}")
    if any(address.family != "unix" for address in addresses.values()):
        lines.append(_ON_TCP)
    lines += [
        not_seen for address in addresses.values() if (not_seen := not_seen_from_chroot(address, queue_directory))
    ]
    named = "".join(f"{option} {shlex.quote(str(absolute(file)))} " for option, file in files.items() if file)
    lines += ["and ask it about a session:", f"  {_command()} {named}explain {_SESSION}"]
    return "\n".join(lines)


def _command() -> str:
    """How we were called, so that it can be said again."""
    return f"{sys.executable} -m gatekeeper" if sys.argv[0].endswith("__main__.py") else sys.argv[0]
