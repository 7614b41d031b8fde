# SPDX-License-Identifier: GPL-3.0-or-later
"""The sections of the configuration file, a model each.

An option is declared here, or in the check or signer that it belongs to, and nowhere else; `config/gatekeeper.toml`
explains each one, and a test proves that it does.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from gatekeeper.auth.dkim import CLOCK_SKEW, MAX_SIGNATURES
from gatekeeper.auth.results import ALL_METHODS, Method
from gatekeeper.checks.authentication.dkim import DkimCheck
from gatekeeper.checks.authentication.spf import SpfCheck
from gatekeeper.checks.dnslists.dnsbl import Dnsbl
from gatekeeper.checks.greylisting.greylist import Greylist
from gatekeeper.checks.limits.ratelimit import RateLimit
from gatekeeper.checks.tables.access import AccessOptions
from gatekeeper.config.values import (
    Addresses,
    ByDomain,
    Canonicalization,
    DataSetSpec,
    Domain,
    Domains,
    Facility,
    FileMode,
    Headers,
    HeaderSet,
    Hostnames,
    Nameservers,
    PeerList,
    RejectCode,
    Workers,
)
from gatekeeper.core.peers import EVERYBODY
from gatekeeper.core.units import Duration, PositiveDuration
from gatekeeper.dnslists.monitor import LIST_TIMEOUT
from gatekeeper.pipeline.pipeline import LISTS, RECIPIENT
from gatekeeper.postfix.listen_address import ListenAddress
from gatekeeper.postfix.restriction_list import Restriction, Restrictions, TableNames, parse_restrictions
from gatekeeper.signing.policy import WithoutKey
from gatekeeper.signing.sender_binding import BindTo, Mismatch
from gatekeeper.signing.signer import SignOptions

DEFAULT_RESTRICTIONS = (
    "permit_mynetworks, permit_always_reachable, ratelimit, permit_sasl_authenticated, reject_invalid_helo_hostname, "
    "reject_non_fqdn_helo_hostname, reject_helo_ours, reject_non_fqdn_sender, reject_non_fqdn_recipient, access, "
    "reject_unknown_sender_domain, reject_unknown_recipient_domain, dnsbl, spf, greylist"
)
"""The default recipient list; limits come before the permit for authenticated users, because accounts are stolen."""


class Section(BaseModel):
    """The base of every section: an unknown key is a mistake, and nothing changes after loading."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class DnsSection(Section):
    """`[dns]`: name servers and timeouts, in seconds."""

    nameservers: Nameservers = ()
    timeout: Duration = 5.0
    list_timeout: PositiveDuration = LIST_TIMEOUT


def default_store() -> str:
    """Return the URL of the embedded store: in /var/lib/gatekeeper if we may write there, else in the user's folder."""
    system = Path("/var/lib/gatekeeper")
    if os.geteuid() == 0 or os.access(system, os.W_OK):
        return f"sqlite:{system}/state.db"
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return f"sqlite:{Path(home)}/gatekeeper/state.db"


class StoreSection(Section):
    """`[store]`: where state is kept, and the timeout of the store, in seconds."""

    url: StrictStr = Field(default_factory=default_store, repr=False)
    timeout: Duration = 0.08


class RestrictionLists(Section):
    """One set of restriction lists, empty by default; `restrictions` is another name for the recipient list."""

    restrictions: Restrictions = ()
    client_restrictions: Restrictions = ()
    helo_restrictions: Restrictions = ()
    sender_restrictions: Restrictions = ()
    recipient_restrictions: Restrictions = ()
    etrn_restrictions: Restrictions = ()
    data_restrictions: Restrictions = ()
    end_of_data_restrictions: Restrictions = ()

    def lists(self) -> Iterator[tuple[str, str, tuple[Restriction, ...]]]:
        """Yield for each list of the pipeline its name, the key that it was written under, and its restrictions."""
        for name in LISTS:
            key = f"{name}_restrictions"
            if name == RECIPIENT and "restrictions" in self.model_fields_set:
                key = "restrictions"
            yield name, key, getattr(self, key)


class PolicySection(RestrictionLists):
    """`[policy]`: the policy server, the restriction lists, and Postfix's parameters for them."""

    listen: Addresses = (ListenAddress("inet", "127.0.0.1", 10040),)
    socket_mode: FileMode = 0o660
    socket_group: StrictStr = ""
    peers: PeerList = EVERYBODY
    workers: Workers = 2
    recipient_restrictions: Restrictions = tuple(parse_restrictions(DEFAULT_RESTRICTIONS))
    contexts: Mapping[str, RestrictionLists] = {}
    classes: Mapping[str, Restrictions] = {}
    sender_login_maps: TableNames = ()
    relay_clientcerts: TableNames = ()
    unknown_client_reject_code: RejectCode = "450"
    unknown_hostname_reject_code: RejectCode = "450"
    unknown_address_reject_code: RejectCode = "450"


class MilterSection(Section):
    """`[milter]`: the milter server, and whether it signs, verifies or both."""

    listen: Addresses = (ListenAddress("inet", "127.0.0.1", 8891),)
    socket_mode: FileMode = 0o660
    socket_group: StrictStr = ""
    peers: PeerList = EVERYBODY
    workers: Workers = 2
    mode: Literal["s", "v", "sv"] = "sv"
    on_error: Literal["accept", "tempfail"] = "accept"
    software_header: StrictBool = False


_SIGN = SignOptions()


class SigningSection(Section):
    """`[signing]`: DKIM keys, which mail is signed, and how."""

    key_table: DataSetSpec | None = None
    signing_table: DataSetSpec | None = None
    multiple_signatures: StrictBool = False
    domains: DataSetSpec = ()
    subdomains: StrictBool = False
    selector: StrictStr = ""
    key_file: StrictStr = ""
    internal_hosts: DataSetSpec | None = None
    daemon_names: DataSetSpec = ("ORIGINATING",)
    macros: DataSetSpec = ()
    peers: DataSetSpec = ()
    external_ignore: DataSetSpec = ()
    exempt_domains: DataSetSpec = ()
    sender_headers: Headers = ("From",)
    dont_sign_to: DataSetSpec = ()
    bind: BindTo = BindTo.NONE
    mismatch: Mismatch = Mismatch.UNSIGNED
    canonicalization: Canonicalization = ("relaxed", "simple")
    sign_headers: HeaderSet = _SIGN.sign_headers
    omit_headers: HeaderSet = _SIGN.omit_headers
    oversign_headers: Headers = _SIGN.oversign_headers
    signature_ttl: Duration = 0.0
    body_length: Annotated[StrictInt, Field(ge=0)] | None = None
    line_length_limit: Annotated[StrictInt, Field(ge=0)] = _SIGN.line_length_limit
    request_reports: StrictBool = False
    remove_old_signatures: StrictBool = False
    without_key: WithoutKey = WithoutKey.TEMPFAIL
    safe_keys: StrictBool = True
    minimum_key_bits: Annotated[StrictInt, Field(ge=1024)] = 1024
    algorithm: Literal["", "rsa-sha256", "ed25519-sha256"] = ""


class ChecksSection(Section):
    """`[checks.NAME]`: the options of the check with that name."""

    access: AccessOptions = AccessOptions()
    ratelimit: RateLimit = RateLimit()
    dnsbl: Dnsbl = Dnsbl()
    spf: SpfCheck = SpfCheck()
    greylist: Greylist = Greylist()
    dkim: DkimCheck = DkimCheck()


class VerifySection(Section):
    """`[verify]`: which methods verify mail, the DMARC policy, and Authentication-Results."""

    methods: tuple[Method, ...] = ALL_METHODS
    dmarc: Literal["observe", "quarantine", "reject"] = "observe"
    quarantine: Literal["hold", "header"] = "hold"
    malformed_from: Literal["", "accept", "quarantine", "reject"] = ""
    overrides: Annotated[Mapping[Domain, Literal["none", "quarantine", "reject"]], ByDomain] = {}
    trusted_forwarders: DataSetSpec = ()
    trusted_lists: Domains = ()
    trusted_sealers: Domains = ()
    tell_none: StrictBool = True
    remove_results: Literal["ours", "told", "none"] = "ours"
    remove_results_of: Hostnames = ()
    job_id: StrictBool = False
    minimum_key_bits: Annotated[StrictInt, Field(ge=1024)] = 1024
    max_signatures: Annotated[StrictInt, Field(ge=1, le=100)] = MAX_SIGNATURES
    clock_drift: Duration = CLOCK_SKEW
    unsigned_ours: StrictBool = False
    count: StrictBool = False


class LogSection(Section):
    """`[log]`: the level and the destination of log lines."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    syslog: Facility = ""
    syslog_name: StrictStr = "gatekeeper"
