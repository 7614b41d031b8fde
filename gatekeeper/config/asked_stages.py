# SPDX-License-Identifier: GPL-3.0-or-later
"""Where Postfix asks the policy daemon and nothing is checked: a warning for check-config.

The lists at DATA and at the end of a message are empty by default, so limits that stood behind Postfix's lists of these
names would silently be none. Addresses are compared as main.cf writes them: a path of a socket starts in Postfix's
queue directory, a port may be on any name of this host. A daemon of somebody else is not ours to judge.
"""

import re
from collections.abc import Iterator

from gatekeeper.config.config_file import Config
from gatekeeper.core.problem import Problem
from gatekeeper.postfix import postconf
from gatekeeper.postfix.listen_address import ListenAddress

_LISTS = {
    "smtpd_data_restrictions": "data_restrictions",
    "smtpd_end_of_data_restrictions": "end_of_data_restrictions",
}
_SERVICE = re.compile(r"check_policy_service[\s,{]+([^\s,{}]+)")


def asked_in_vain(config: Config, ask: postconf.Ask = postconf.ask_postfix) -> Iterator[Problem]:
    """Yield a warning for each list that is empty though Postfix asks for it."""
    parameters = ask(tuple(_LISTS))
    for parameter, option in _LISTS.items():
        if any(getattr(lists, option) for lists in (config.policy, *config.policy.contexts.values())):
            continue
        addresses = _SERVICE.findall(parameters.get(parameter, ""))
        if any(_is_at(listen, address) for listen in config.policy.listen for address in addresses):
            what = (
                f"Postfix's {parameter} asks here, but policy.{option} is empty, so nothing is checked or counted "
                f'there; for limits on recipients write {option} = "ratelimit" (docs/limits.md)'
            )
            yield config.problem(("policy", option), what, warning=True)


def _is_at(listen: ListenAddress, address: str) -> bool:
    kind, _, where = address.partition(":")
    if listen.family == "unix":
        return kind == "unix" and f"/{listen.path}".endswith(f"/{where.lstrip('/')}")
    return kind == "inet" and where.rpartition(":")[2] == str(listen.port)
