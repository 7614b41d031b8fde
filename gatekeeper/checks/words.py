# SPDX-License-Identifier: GPL-3.0-or-later
"""Postfix's words (postconf(5)): those that can be had, their old names, and why the others cannot."""

from collections.abc import Mapping

from gatekeeper.checks import address, client, generic, helo, rbl
from gatekeeper.checks.access import (
    Find,
    LookUp,
    find_client,
    find_helo,
    find_recipient,
    find_reverse_client,
    find_sasl,
    find_sender,
)
from gatekeeper.checks.address import RECIPIENT, SENDER, NonFqdn, UnknownDomain
from gatekeeper.checks.dnslist import parse_list
from gatekeeper.checks.entries import Table
from gatekeeper.checks.opinion import Judge, Word

_HELO, _SENDER, _RECIPIENT = ("helo",), ("sender",), ("recipient",)

_PLAIN: tuple[tuple[str, Judge, tuple[str, ...]], ...] = (
    ("permit", generic.PERMIT, ()),
    ("reject", generic.REJECT, ()),
    ("defer", generic.DEFER, ()),
    ("defer_if_permit", generic.DEFER_IF_PERMIT, ()),
    ("defer_if_reject", generic.DEFER_IF_REJECT, ()),
    ("permit_mynetworks", generic.permit_mynetworks, ()),
    ("permit_sasl_authenticated", generic.permit_sasl_authenticated, ()),
    ("reject_plaintext_session", generic.reject_plaintext_session, ()),
    ("reject_multi_recipient_bounce", generic.reject_multi_recipient_bounce, _SENDER),
    ("reject_unknown_client_hostname", client.reject_unknown_client_hostname, ()),
    ("reject_unknown_reverse_client_hostname", client.reject_unknown_reverse_client_hostname, ()),
    ("reject_invalid_helo_hostname", helo.reject_invalid_helo_hostname, _HELO),
    ("reject_non_fqdn_helo_hostname", helo.reject_non_fqdn_helo_hostname, _HELO),
    ("reject_unknown_helo_hostname", helo.reject_unknown_helo_hostname, _HELO),
    ("reject_non_fqdn_sender", NonFqdn(SENDER), _SENDER),
    ("reject_non_fqdn_recipient", NonFqdn(RECIPIENT), _RECIPIENT),
    ("reject_unknown_sender_domain", UnknownDomain(SENDER), _SENDER),
    ("reject_unknown_recipient_domain", UnknownDomain(RECIPIENT), _RECIPIENT),
)
PLAIN_WORDS: Mapping[str, Word] = {name: Word(name, judge, needs) for name, judge, needs in _PLAIN}

LIST_WORDS: Mapping[str, tuple[rbl.Subject, str, tuple[str, ...]]] = {
    "reject_rbl_client": (rbl.client_address, rbl.CLIENT, ()),
    "reject_rhsbl_client": (rbl.client_name, rbl.CLIENT, ()),
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
}

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
_LOGIN = "it needs smtpd_sender_login_maps; leave it in main.cf"
_LATER = "this version does not know it yet; leave it in main.cf"

REFUSED: Mapping[str, str] = {
    "permit_inet_interfaces": "only Postfix knows its own addresses; add them to mynetworks, or leave it in main.cf",
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
    "reject_sender_login_mismatch": _LOGIN,
    "reject_authenticated_sender_login_mismatch": _LOGIN,
    "reject_known_sender_login_mismatch": _LOGIN,
    "reject_unauthenticated_sender_login_mismatch": _LOGIN,
    "reject_unauth_pipelining": "only Postfix sees how commands arrive; leave it in main.cf",
    "permit_tls_clientcerts": "it needs relay_clientcerts, which only Postfix reads; leave it in main.cf",
    "permit_tls_all_clientcerts": "only Postfix knows whether it trusts the certificate; leave it in main.cf",
    "check_policy_service": "gatekeeper is a policy service and asks no other; leave it in main.cf",
    "check_ccert_access": _LATER,
    "check_etrn_access": _LATER,
    "permit_naked_ip_address": "Postfix has dropped it; use permit_mynetworks",
    "reject_maps_rbl": "Postfix has dropped it; use reject_rbl_client ZONE",
    "sleep": "it would hold up other mail; leave it in main.cf",
} | {
    f"check_{whose}_{what}_access": _LATER
    for whose in ("client", "reverse_client_hostname", "helo", "sender", "recipient")
    for what in ("a", "mx", "ns")
}
"""Words of Postfix that are not to be had, with the reason and what to do."""


def build_list(word: str, argument: str) -> Word:
    """A restriction with a DNS list. Raises ValueError with what is allowed."""
    subject, label, needs = LIST_WORDS[word]
    site = parse_list(argument)
    if "*" in argument:
        raise ValueError(f"{word} knows no weights; lists with weights stand in [checks.dnsbl]")
    reason = word.partition("_")[2].rpartition("_")[0]  # reject_rhsbl_sender: rhsbl
    name = f"{word} {site.shown}"
    if word.startswith("permit_"):
        return Word(name, rbl.PermitListed(site, subject, f"{reason}.listed"), needs)
    return Word(name, rbl.RejectListed(site, label, subject, f"{'dnsbl' if reason == 'rbl' else reason}.listed"), needs)


def build_access(word: str, name: str, table: Table) -> Word:
    """A restriction with an access table that has been read."""
    find, needs = ACCESS_WORDS[word]
    what = word.removeprefix("check_").removesuffix("_access")
    may_allow = word != "check_reverse_client_hostname_access"  # whoever owns the address writes its PTR
    return Word(f"{word} {name}", LookUp(f"{what} in {name}", find, table, may_allow), needs)
