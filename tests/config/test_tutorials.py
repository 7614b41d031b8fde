# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists as five kinds of tutorials have them in main.cf, copied: each word works, or is refused with the reason."""

from pathlib import Path

import pytest

from gatekeeper.app.plan import Plan, prepare
from gatekeeper.config.config_file import examine, load
from gatekeeper.core.problem import ConfigError

UNAUTH = "only Postfix knows where it would send the mail"
SERVICE = "gatekeeper is a policy service"
PIPELINING = "only Postfix sees how commands arrive"
TABLES = "needs Postfix's own tables"

DEBIAN = (
    """
client_restrictions = '''permit_mynetworks, permit_sasl_authenticated, check_client_access hash:access,
    reject_unknown_reverse_client_hostname'''
helo_restrictions = "permit_mynetworks, reject_non_fqdn_hostname, reject_invalid_hostname, check_helo_access pcre:p"
sender_restrictions = "permit_sasl_authenticated permit_mynetworks reject_non_fqdn_sender reject_unknown_sender_domain"
restrictions = '''
    reject_unauth_pipelining,
    reject_non_fqdn_recipient, reject_unknown_recipient_domain,
    permit_mynetworks, permit_sasl_authenticated,
    reject_unauth_destination,
    check_policy_service inet:127.0.0.1:10023,
    reject_rbl_client zen.spamhaus.org,
    reject_rhsbl_helo dbl.spamhaus.org, reject_rhsbl_sender dbl.spamhaus.org,
    permit
'''
data_restrictions = "reject_multi_recipient_bounce, permit"
""",
    {7: PIPELINING, 10: UNAUTH, 11: SERVICE},
)
IREDMAIL = (
    """
helo_restrictions = '''
    permit_mynetworks
    permit_sasl_authenticated
    check_helo_access pcre:p
    reject_non_fqdn_helo_hostname
    reject_unknown_helo_hostname
'''
sender_restrictions = '''
    reject_non_fqdn_sender
    reject_unlisted_sender
    permit_mynetworks
    check_sender_access pcre:p
    reject_unknown_sender_domain
'''
""",
    {11: TABLES},
)
MAILCOW = (
    """
recipient_restrictions = "check_recipient_mx_access proxy:mysql:/opt/sql/mx.cf, permit_sasl_authenticated, permit"
sender_restrictions = "reject_authenticated_sender_login_mismatch, permit_mynetworks, check_sasl_access regexp:p"
relay_restrictions = "permit_mynetworks, reject_unauth_destination"
""",
    {2: "tables of type mysql cannot be read", 3: "name them in policy.sender_login_maps", 4: "stays in main.cf"},
)
ISPMAIL = (
    """
recipient_restrictions = '''
    permit_mynetworks permit_sasl_authenticated
    check_client_access cidr:{ {192.0.2.0/24 OK}, {198.51.100.7 REJECT go away, please} }
    reject_rbl_client zen.spamhaus.org=127.0.0.[2..11]
    permit_dnswl_client list.dnswl.org=127.0.[0..255].[1..3],
    warn_if_reject reject_rhsbl_reverse_client dbl.spamhaus.org=127.0.1.[2..99]
    check_sender_access hash:access
    sleep 1
'''
""",
    {9: "leave it in main.cf"},
)
POSTFIX = (
    """
recipient_restrictions = '''
    permit_mynetworks, check_recipient_access inline:{ {postmaster@ = OK}, root@=REJECT },
    check_sender_ns_access cidr:{ { 192.0.2.0/24 REJECT } }, $my_restrictions,
    reject_unknown_client, reject_unknown_hostname, reject_unknown_address, reject_unverified_sender,
    check_client_access { hash:access },
    defer
    reject_unlisted_recipient
'''
etrn_restrictions = "check_etrn_access hash:access, permit_mynetworks, reject"
""",
    {4: "postconf -xh my_restrictions", 5: "verify(8)", 6: "only check_ccert_access", 8: TABLES},
)


@pytest.mark.parametrize(
    ("lists", "refused"),
    [DEBIAN, IREDMAIL, MAILCOW, ISPMAIL, POSTFIX],
    ids=["debian", "iredmail", "mailcow", "ispmail", "postfix"],
)
def test_a_list_from_a_tutorial_works_or_tells_word_by_word_what_has_to_stay_in_main_cf(
    tmp_path: Path, lists: str, refused: dict[int, str]
) -> None:
    (tmp_path / "access").write_text("example.com REJECT\n")
    (tmp_path / "p").write_text("/^x$/ REJECT\n")
    file = tmp_path / "gatekeeper.toml"
    file.write_text("[policy]" + lists)
    with pytest.raises(ConfigError) as wrong:
        load_and_prepare(file)
    found = {problem.line: problem.what for problem in wrong.value.problems if not problem.warning}
    assert refused.keys() == found.keys()
    assert {line: why for line, why in refused.items() if why not in found[line]} == {}


def test_what_stands_behind_the_end_of_a_list_is_told(tmp_path: Path) -> None:
    file = tmp_path / "gatekeeper.toml"
    file.write_text("[policy]\nrestrictions = '''\n  permit_mynetworks,\n  reject,\n  dnsbl, spf'''\n")
    warnings = prepare(load(file, lambda names: {})).warnings
    assert [f"{file}:5: warning: dnsbl after reject is never reached"] == list(map(str, warnings))


def load_and_prepare(file: Path) -> Plan:
    """As check-config goes about it, but for its output: every mistake at once."""
    usable, found = examine(file, lambda names: {})
    return prepare(usable, found=found)
