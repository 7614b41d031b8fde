# SPDX-License-Identifier: GPL-3.0-or-later
"""Postfix's restrictions (postconf(5)): those that are supported, their old names, and why the others are not.

Two of our own are among them: `permit_always_reachable`, `reject_helo_ours`.
"""

from collections.abc import Mapping, Sequence

from gatekeeper.checks.base.always_reachable import permit_always_reachable
from gatekeeper.checks.base.check_types import Judge, PostfixCheck
from gatekeeper.checks.dnslists import rbl
from gatekeeper.checks.dnslists.lookup import parse_list
from gatekeeper.checks.restrictions import address, client, generic, helo
from gatekeeper.checks.restrictions.address import RECIPIENT, SENDER, NonFqdn, UnknownDomain
from gatekeeper.checks.restrictions.helo_ours import reject_helo_ours
from gatekeeper.checks.tables import server_access
from gatekeeper.checks.tables.access import (
    Find,
    LookUp,
    find_client,
    find_etrn,
    find_helo,
    find_recipient,
    find_reverse_client,
    find_sasl,
    find_sender,
)
from gatekeeper.checks.tables.certificate_access import CertificateAccess, PermitCertificates, parse_search
from gatekeeper.checks.tables.keys import Asked
from gatekeeper.checks.tables.sender_login import LoginMismatch
from gatekeeper.checks.tables.table import Table
from gatekeeper.pipeline.pipeline import CLIENT, ETRN, HELO
from gatekeeper.pipeline.pipeline import RECIPIENT as RECIPIENTS
from gatekeeper.pipeline.pipeline import SENDER as SENDERS

_HELO, _SENDER, _RECIPIENT = ("helo",), ("sender",), ("recipient",)

_PLAIN: tuple[tuple[str, Judge, tuple[str, ...]], ...] = (
    ("permit", generic.PERMIT, ()),
    ("reject", generic.REJECT, ()),
    ("defer", generic.DEFER, ()),
    ("defer_if_permit", generic.DEFER_IF_PERMIT, ()),
    ("defer_if_reject", generic.DEFER_IF_REJECT, ()),
    ("permit_mynetworks", generic.permit_mynetworks, ()),
    ("permit_inet_interfaces", generic.permit_inet_interfaces, ()),
    ("permit_always_reachable", permit_always_reachable, _RECIPIENT),
    ("permit_sasl_authenticated", generic.permit_sasl_authenticated, ()),
    ("reject_plaintext_session", generic.reject_plaintext_session, ()),
    ("reject_multi_recipient_bounce", generic.reject_multi_recipient_bounce, _SENDER),
    ("reject_unknown_client_hostname", client.reject_unknown_client_hostname, ()),
    ("reject_unknown_reverse_client_hostname", client.reject_unknown_reverse_client_hostname, ()),
    ("reject_invalid_helo_hostname", helo.reject_invalid_helo_hostname, _HELO),
    ("reject_non_fqdn_helo_hostname", helo.reject_non_fqdn_helo_hostname, _HELO),
    ("reject_unknown_helo_hostname", helo.reject_unknown_helo_hostname, _HELO),
    ("permit_naked_ip_address", helo.permit_naked_ip_address, _HELO),
    ("reject_helo_ours", reject_helo_ours, _HELO),
    ("reject_non_fqdn_sender", NonFqdn(SENDER), _SENDER),
    ("reject_non_fqdn_recipient", NonFqdn(RECIPIENT), _RECIPIENT),
    ("reject_unknown_sender_domain", UnknownDomain(SENDER), _SENDER),
    ("reject_unknown_recipient_domain", UnknownDomain(RECIPIENT), _RECIPIENT),
)
PLAIN_WORDS: Mapping[str, PostfixCheck] = {name: PostfixCheck(name, judge, needs) for name, judge, needs in _PLAIN}

LIST_WORDS: Mapping[str, tuple[rbl.SubjectSource, str, tuple[str, ...]]] = {
    "reject_rbl_client": (rbl.client_address, rbl.CLIENT_LABEL, ()),
    "reject_rhsbl_client": (rbl.client_name, rbl.CLIENT_LABEL, ()),
    "reject_rhsbl_reverse_client": (rbl.reverse_client_name, "Unverified Client host", ()),
    "reject_rhsbl_helo": (rbl.helo, "Helo command", _HELO),
    "reject_rhsbl_sender": (rbl.sender, address.SENDER.label, _SENDER),
    "reject_rhsbl_recipient": (rbl.recipient, address.RECIPIENT.label, _RECIPIENT),
    "permit_dnswl_client": (rbl.client_address, "", ()),
    "permit_rhswl_client": (rbl.client_name, "", ()),
}

ACCESS_WORDS: Mapping[str, tuple[Find, tuple[str, ...]]] = {
    "check_client_access": (find_client, ()),
    "check_reverse_client_hostname_access": (find_reverse_client, ()),
    "check_helo_access": (find_helo, _HELO),
    "check_sender_access": (find_sender, _SENDER),
    "check_recipient_access": (find_recipient, _RECIPIENT),
    "check_sasl_access": (find_sasl, ()),
    "check_etrn_access": (find_etrn, ()),
}

_SERVER_NAMES: tuple[tuple[str, server_access.NameSource, tuple[str, ...]], ...] = (
    ("client", server_access.of_client, ()),
    ("reverse_client_hostname", server_access.of_reverse_client, ()),
    ("helo", server_access.of_helo, _HELO),
    ("sender", server_access.of_sender, _SENDER),
    ("recipient", server_access.of_recipient, _RECIPIENT),
)
SERVER_WORDS: Mapping[str, tuple[server_access.NameSource, str, tuple[str, ...]]] = {
    f"check_{subject}_{type.lower()}_access": (name_of, type, needs)
    for subject, name_of, needs in _SERVER_NAMES
    for type in ("A", "MX", "NS")
}
CERTIFICATE_ACCESS = "check_ccert_access"
TABLE_WORDS = (*ACCESS_WORDS, *SERVER_WORDS, CERTIFICATE_ACCESS)
"""Words that take an access table."""

ASKED: Mapping[str, Asked] = {
    "check_client_access": Asked.CLIENT,
    "check_reverse_client_hostname_access": Asked.CLIENT,
    "check_helo_access": Asked.HELO,
    "check_sender_access": Asked.SENDER,
    "check_recipient_access": Asked.RECIPIENT,
    "check_sasl_access": Asked.LOGIN,
    "check_etrn_access": Asked.DOMAIN,
    CERTIFICATE_ACCESS: Asked.CERTIFICATE,
    **{
        word: Asked.SERVER_ADDRESS if type == "A" else Asked.SERVER
        for word, (_name_of, type, _needs) in SERVER_WORDS.items()
    },
}
"""What the tables of each word are asked for."""

OK_FORBIDDEN = frozenset({"check_reverse_client_hostname_access", *SERVER_WORDS})
"""Words whose tables may not answer OK: whoever owns the address or the name chooses what is looked up."""

ALLOWS_STRANGERS: Mapping[str, str] = {
    "check_sender_access": "an OK for a sender lets in whoever forges it; demand proof: OK if=spf, if=dkim or if=dmarc",
    "check_helo_access": "an OK for a HELO name lets in whoever says it; write DUNNO, or name the client's address or "
    "network in a table of clients",
    **dict.fromkeys(
        OK_FORBIDDEN, "an OK for what a stranger chooses (PTR, servers) is answered 451 4.3.5; write DUNNO"
    ),
}
"""Words whose keys a stranger can claim, and what is to be said of an OK (or `permit`) in their tables."""

BARE_TABLES: Mapping[str, str] = {
    CLIENT: "check_client_access",
    HELO: "check_helo_access",
    SENDERS: "check_sender_access",
    RECIPIENTS: "check_recipient_access",
    ETRN: "check_etrn_access",
}
"""The restriction that a table without a word stands for, by list."""

LOGIN_WORDS: Mapping[str, tuple[bool, bool, bool]] = {
    "reject_sender_login_mismatch": (True, True, False),
    "reject_authenticated_sender_login_mismatch": (True, False, False),
    "reject_unauthenticated_sender_login_mismatch": (False, True, False),
    "reject_known_sender_login_mismatch": (True, True, True),
}
CERTIFICATE_WORDS: Mapping[str, bool] = {"permit_tls_clientcerts": False, "permit_tls_all_clientcerts": True}
MAP_WORDS: Mapping[str, str] = {
    **dict.fromkeys(LOGIN_WORDS, "sender_login_maps"),
    **dict.fromkeys(CERTIFICATE_WORDS, "relay_clientcerts"),
}
"""Words that look in tables of `[policy]`, and the option that names these."""
MAP_ASKED: Mapping[str, Asked] = {"sender_login_maps": Asked.OWNER, "relay_clientcerts": Asked.KNOWN_CERTIFICATE}

OLD_NAMES: Mapping[str, str] = {
    "reject_invalid_hostname": "reject_invalid_helo_hostname",
    "reject_non_fqdn_hostname": "reject_non_fqdn_helo_hostname",
    "reject_unknown_hostname": "reject_unknown_helo_hostname",
    "reject_unknown_client": "reject_unknown_client_hostname",
    "reject_unknown_address": "reject_unknown_sender_domain",
    "reject_rbl": "reject_rbl_client",
}

_TABLES = "it needs Postfix's own tables; leave it in main.cf"
_RELAY = "only Postfix knows where it would send the mail; leave it in main.cf, before check_policy_service"

UNSUPPORTED: Mapping[str, str] = {
    "permit_auth_destination": _RELAY,
    "reject_unauth_destination": _RELAY,
    "defer_unauth_destination": _RELAY,
    "permit_mx_backup": _RELAY,
    "check_relay_domains": _RELAY,
    "reject_unlisted_sender": _TABLES,
    "reject_unlisted_recipient": _TABLES,
    "check_recipient_maps": _TABLES,
    "reject_unverified_sender": "it needs Postfix's verify(8) service; leave it in main.cf",
    "reject_unverified_recipient": "it needs Postfix's verify(8) service; leave it in main.cf",
    "reject_unauth_pipelining": "only Postfix sees how commands arrive; leave it in main.cf",
    "check_policy_service": "gatekeeper is a policy service and queries no other; leave it in main.cf",
    "reject_maps_rbl": "its lists are in maps_rbl_domains, which Postfix has dropped; use reject_rbl_client ZONE",
    "sleep": "gatekeeper answers at once; leave it in main.cf, where it delays the session as well",
}
"""Postfix's words that are not supported, with the reason and what to do."""


def build_list(word: str, argument: str) -> PostfixCheck:
    """Return the check for a restriction with a DNS list. Raises ValueError with what is allowed."""
    subject, label, needs = LIST_WORDS[word]
    site = parse_list(argument)
    if "*" in argument:
        raise ValueError(f"{word} takes no weights; lists with weights go into [checks.dnsbl]")
    reason = word.partition("_")[2].rpartition("_")[0]  # reject_rhsbl_sender: rhsbl
    name = f"{word} {site.shown}"
    if word.startswith("permit_"):
        return PostfixCheck(name, rbl.PermitListed(site, subject, f"{reason}.listed"), needs)
    return PostfixCheck(
        name, rbl.RejectListed(site, label, subject, f"{'dnsbl' if reason == 'rbl' else reason}.listed"), needs
    )


def build_access(word: str, name: str, table: Table, attributes: Sequence[str] = ()) -> PostfixCheck:
    """Return the check for a restriction with an access table that has been read.

    `attributes` are the Request's attributes that check_ccert_access looks up.
    """
    if word in SERVER_WORDS:
        name_of, type, needs = SERVER_WORDS[word]
        return PostfixCheck(f"{word} {name}", server_access.ServerAccess(name_of, type, table), needs)
    if word == CERTIFICATE_ACCESS:
        return PostfixCheck(f"{word} {name}", CertificateAccess(table, tuple(attributes)))
    find, needs = ACCESS_WORDS[word]
    what = word.removeprefix("check_").removesuffix("_access")
    return PostfixCheck(f"{word} {name}", LookUp(f"{what} in {name}", find, table, word not in OK_FORBIDDEN), needs)


def parse_table_argument(word: str, argument: str) -> tuple[str, tuple[str, ...]]:
    """Return the table that a word's argument names, and the attributes of check_ccert_access. Raises ValueError."""
    return parse_search(argument) if word == CERTIFICATE_ACCESS else (argument, ())


def build_map_check(word: str, tables: Sequence[Table]) -> PostfixCheck:
    """Return the check for a restriction that looks in tables of `[policy]`."""
    if word in CERTIFICATE_WORDS:
        return PostfixCheck(word, PermitCertificates(tuple(tables), trusted=CERTIFICATE_WORDS[word]))
    return PostfixCheck(word, LoginMismatch(tuple(tables), *LOGIN_WORDS[word]), _SENDER)
