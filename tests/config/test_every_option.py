# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules that hold for every option: one form for domains however they are written, one place where paths start.

Each option that holds text stands in one of the tables below; a new one fails here until it does.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from enum import EnumType
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from gatekeeper.app.plan import Plan, prepare
from gatekeeper.checks.authentication.dmarc import DmarcCheck
from gatekeeper.checks.limits.applies_to import SessionPattern, load_patterns
from gatekeeper.checks.limits.limit import Limit
from gatekeeper.checks.tables.access import search_mailbox
from gatekeeper.checks.tables.indexed import parse_indexed
from gatekeeper.checks.tables.table import Actions
from gatekeeper.config import config_file
from gatekeeper.config.config_file import Config
from gatekeeper.config.errors import section_of
from gatekeeper.core import watched_files
from gatekeeper.core.problem import ConfigError
from gatekeeper.core.request import Client, Request, Stage
from gatekeeper.pipeline.site import Site
from tests.support.postconf import no_postfix
from tests.support.signing_world import write_key

NAME, UMLAUTS = "xn--bcher-kva.example", "bücher.example"
SPELLINGS = (NAME, NAME.upper(), f"{NAME}.", UMLAUTS, "BÜCHER.example", f"{UMLAUTS}.", f" {NAME} ", f" {UMLAUTS}.  ")
CLIENT = Client(address=ip_address("192.0.2.1"), name=NAME, reverse_name=NAME)
BELOW = CLIENT._replace(name=f"a.{NAME}")

Probe = Callable[[Plan], object]
Cases = list[tuple[str, Probe]]

LISTS = ("client", "helo", "sender", "recipient", "etrn", "data", "end_of_data")
RULE = "[checks.ratelimit.rules.r]\nby = 'client'\nmessages = '1/1m'\n"
KEYS = "[signing]\nkey_table = ['k example.com:s:./k.pem']\n"


def dmarc(plan: Plan) -> DmarcCheck:
    (check,) = [one for found in plan.milter_pipeline.lists.values() for one in found if isinstance(one, DmarcCheck)]
    return check


def meant(patterns: tuple[SessionPattern, ...]) -> bool:
    """Whether the patterns are for a session with NAME everywhere, and for one that says it with umlauts."""
    loaded, problems = load_patterns(patterns, Path())
    sessions = [
        Request(stage=Stage.RCPT, client=CLIENT, sender=mailbox, recipient=mailbox, sasl_user=mailbox)
        for mailbox in (f"Joe@{NAME}", f"Joe@{UMLAUTS}")
    ]
    return not problems and all(loaded.matches(one, Site(hostname="h", authserv_id="h")) for one in sessions)


def signed(user: str = "joe", domain: str = NAME) -> Probe:
    return lambda plan: [*plan.signing.signing_table.match(user, domain)]


def zone(plan: Plan) -> bool:
    return NAME in {dns_list.zone for dns_list, _ in plan.lists}


def restrictions(section: str, at: str = "") -> Mapping[str, Cases]:
    names = ("restrictions", *(f"{name}_restrictions" for name in LISTS))
    return {f"{section}.{at}{name}": zones(section + at and f"{section}{at and '.c'}", name) for name in names}


def zones(section: str, option: str) -> Cases:
    return [(f"[{section}]\n{option} = ['reject_rbl_client {{d}}']", zone)]


DOMAINS: Mapping[str, Cases] = {
    "hostname": [("hostname = '{d}'", lambda plan: plan.site.hostname.lower() == NAME)],
    "authserv_id": [("authserv_id = '{d}'", lambda plan: plan.site.authserv_id.lower() == NAME)],
    "mynetworks": [
        ("mynetworks = ['{d}']", lambda plan: plan.site.is_internal(CLIENT) and plan.site.is_internal(BELOW)),
        ("mynetworks = ['!a.{d}', 'example']", lambda plan: not plan.site.is_internal(BELOW)),
        ("mynetworks = ['{f}/names']", lambda plan: plan.site.is_internal(CLIENT)),
    ],
    "local_domains": [
        ("local_domains = ['{d}']", lambda plan: plan.site.is_local(NAME) and plan.site.is_local(UMLAUTS)),
        ("local_domains = ['.{d}']", lambda plan: plan.site.is_local(f"a.{NAME}") and not plan.site.is_local(NAME)),
    ],
    "relay_domains": [("relay_domains = ['{d}']", lambda plan: plan.site.is_ours(NAME))],
    "verify.overrides": [("[verify]\noverrides = {'{d}' = 'none'}", lambda plan: NAME in dmarc(plan).overrides)],
    "verify.trusted_lists": [("[verify]\ntrusted_lists = ['{d}']", lambda plan: (NAME,) == dmarc(plan).lists)],
    "verify.trusted_sealers": [("[verify]\ntrusted_sealers = ['{d}']", lambda plan: (NAME,) == dmarc(plan).sealers)],
    "verify.trusted_forwarders": [
        ("[verify]\ntrusted_forwarders = ['{d}']", lambda plan: dmarc(plan).forwarders.find(CLIENT)),
    ],
    "verify.remove_results_of": [
        (
            "[verify]\nremove_results_of = ['{d}']",
            lambda plan: [NAME] == [name.lower() for name in plan.config.verify.remove_results_of],
        )
    ],
    "signing.domains": [
        (f"[signing]\nselector = 's'\nkey_file = 'k.pem'\ndomains = {value}", signed())
        for value in ("['{d}']", "'csl:{d},example.com'", "'file:names'", "['example.com', '{d}']")
    ],
    "signing.key_table": [
        (
            "[signing]\nkey_table = ['k {d}:s:./k.pem']\nsigning_table = ['* k']",
            lambda plan: (key := plan.signing.key_table.find("k", NAME)) and key.domain == NAME,
        ),
    ],
    "signing.signing_table": [
        *((f"{KEYS}signing_table = ['{pattern} k']", signed()) for pattern in ("{d}", "joe@{d}", "*@{d}")),
        *((f"{KEYS}signing_table = 'refile:{file}'", signed()) for file in ("one", "all", "some", "odd")),
        *((f"{KEYS}signing_table = [{row}]", signed("joe", f"a.{NAME}")) for row in ("'.{d} k'", "'joe@.{d} k'")),
        (f"{KEYS}signing_table = 'refile:below'", signed("joe", f"a.{NAME}")),
    ],
    "signing.internal_hosts": [
        ("[signing]\ninternal_hosts = ['{d}']", lambda plan: plan.signing.internal_hosts.find(CLIENT)),
        ("[signing]\ninternal_hosts = ['.{d}']", lambda plan: plan.signing.internal_hosts.find(BELOW)),
        ("[signing]\ninternal_hosts = 'csl:{d},::1'", lambda plan: plan.signing.internal_hosts.find(CLIENT)),
        ("[signing]\ninternal_hosts = 'refile:names'", lambda plan: plan.signing.internal_hosts.find(CLIENT)),
        ("[signing]\ninternal_hosts = 'refile:names-below'", lambda plan: plan.signing.internal_hosts.find(BELOW)),
    ],
    "signing.peers": [("[signing]\npeers = ['{d}']", lambda plan: plan.signing.peers.find(CLIENT))],
    "signing.external_ignore": [
        ("[signing]\nexternal_ignore = ['{d}']", lambda plan: plan.signing.external.find(CLIENT)),
    ],
    "signing.exempt_domains": [
        ("[signing]\nexempt_domains = ['{d}']", lambda plan: plan.signing.exempt.find(NAME)),
        ("[signing]\nexempt_domains = 'refile:names'", lambda plan: plan.signing.exempt.find(NAME)),
    ],
    "signing.dont_sign_to": [
        ("[signing]\ndont_sign_to = ['ann@{d}']", lambda plan: plan.signing.never_to.find(f"Ann@{NAME}")),
        ("[signing]\ndont_sign_to = ['ann@{d}']", lambda plan: plan.signing.never_to.find(f"ann@{UMLAUTS}.")),
    ],
    "checks.ratelimit.exceptions": [
        (
            f"[checks.ratelimit]\nexceptions = ['{what}{{d}}']",
            lambda plan: meant(plan.config.checks.ratelimit.exceptions),
        )
        for what in ("client:", "user:@", "user:joe@", "sender:@", "sender:joe@", "recipient:@", "recipient:joe@")
    ],
    "checks.ratelimit.rules.for": [
        (f"{RULE}for = ['sender:@{{d}}']", lambda plan: meant(plan.config.checks.ratelimit.rules["r"].applies_to)),
    ],
    "checks.ratelimit.rules.except": [
        (f"{RULE}except = ['client:{{d}}']", lambda plan: meant(plan.config.checks.ratelimit.rules["r"].excepted)),
    ],
    "checks.dnsbl.lists": [("[checks.dnsbl]\nlists = ['{d}']", zone)],
    "checks.dnsbl.helo_lists": [("[checks.dnsbl]\nhelo_lists = ['{d}']", zone)],
    "checks.dnsbl.sender_lists": [("[checks.dnsbl]\nsender_lists = ['{d}']", zone)],
    "checks.dnsbl.reverse_name_lists": [("[checks.dnsbl]\nreverse_name_lists = ['{d}']", zone)],
    "checks.greylist.lists": [("[checks.greylist]\nlists = ['{d}']", zone)],
    **{
        f"{section}.{option}": zones(section.replace("contexts", "contexts.c"), option)
        for section in ("policy", "policy.contexts")
        for option in ("restrictions", *(f"{name}_restrictions" for name in LISTS))
    },
    "policy.classes": [("[policy]\nrestrictions = ['c']\nclasses = {c = ['reject_rbl_client {d}']}", zone)],
}
"""Options with domains: TOML with the spelling as {d}, and whether NAME is then found by it."""

TABLES = {
    "names": "{d}\n",
    "names-below": "*.{d}\n",
    "one": "joe@{d} k\n",
    "all": "*@{d} k\n",
    "some": "j*@{d} k\n",
    "odd": "(joe|ann)@*{d} k\n",
    "below": "*@*.{d} k\n",
}
"""Files beside the configuration."""

AS_POSTFIX = {
    *(f"checks.access.{kind}" for kind in ("client", "helo", "sender", "recipient")),
    "checks.greylist.allow_clients",
    "checks.greylist.allow_recipients",
    "policy.sender_login_maps",
    "policy.relay_clientcerts",
}
"""Tables of Postfix's, whose keys are compared as in Postfix, with the case folded and nothing else."""

NO_NAMES = {
    *("recipient_delimiter", "user", "group", "dns.nameservers", "store.url", "log.syslog", "log.syslog_name"),
    *(f"{section}.{option}" for section in ("policy", "milter") for option in ("listen", "socket_group", "peers")),
    *("policy.unknown_client_reject_code", "policy.unknown_hostname_reject_code", "policy.unknown_address_reject_code"),
    *("signing.selector", "signing.key_file", "signing.daemon_names", "signing.macros", "signing.canonicalization"),
    *("signing.sender_headers", "signing.sign_headers", "signing.omit_headers", "signing.oversign_headers"),
    "checks.ratelimit.rules.by",
}
"""Options with text that is neither a domain nor compared with one."""

SETS = ("{p}", "file:{p}", "refile:{p}")
PATHS: Mapping[str, tuple[list[str], str]] = {
    "signing.key_table": (
        [f"[signing]\nkey_table = '{form}'\nsigning_table = ['* k']" for form in SETS]
        + ["[signing]\nkey_table = ['k example.com:s:{p}']\nsigning_table = ['* k']"],
        "k example.com:s:/nowhere",
    ),
    "signing.signing_table": ([f"{KEYS}signing_table = '{form}'" for form in SETS], "* k"),
    "signing.key_file": (["[signing]\ndomains = 'example.com'\nselector = 's'\nkey_file = '{p}'"], "a key"),
    "signing.domains": (
        [f"[signing]\nselector = 's'\nkey_file = '/nowhere'\ndomains = '{form}'" for form in SETS[:2]],
        "example.com",
    ),
    **{
        f"signing.{option}": ([f"[signing]\n{option} = '{form}'" for form in SETS], "name")
        for option in (
            *("internal_hosts", "peers", "external_ignore", "exempt_domains", "dont_sign_to", "daemon_names", "macros"),
        )
    },
    "verify.trusted_forwarders": ([f"[verify]\ntrusted_forwarders = '{form}'" for form in SETS], "name"),
    "mynetworks": (["mynetworks = ['hash:{p}']", "mynetworks = 'cidr:{p}'"], "192.0.2.0 OK"),
    **{
        f"checks.access.{kind}": ([f"[checks.access]\n{kind} = ['hash:{{p}}']"], "example.com REJECT")
        for kind in ("client", "helo", "sender", "recipient")
    },
    **{
        f"checks.greylist.{option}": ([f"[checks.greylist]\n{option} = ['hash:{{p}}']"], "example.com OK")
        for option in ("allow_clients", "allow_recipients")
    },
    "policy.sender_login_maps": (
        ["[policy]\nsender_login_maps = ['hash:{p}']\nrestrictions = ['reject_sender_login_mismatch']"],
        "a@example.com a",
    ),
    "policy.relay_clientcerts": (
        ["[policy]\nrelay_clientcerts = ['hash:{p}']\nrestrictions = ['permit_tls_clientcerts']"],
        "AA:BB a",
    ),
    **{
        f"{section}.{option}": (
            [f"[{section.replace('contexts', 'contexts.c')}]\n{option} = ['check_client_access hash:{{p}}']"],
            "example.com REJECT",
        )
        for section in ("policy", "policy.contexts")
        for option in ("restrictions", *(f"{name}_restrictions" for name in LISTS))
    },
    "policy.classes": (
        ["[policy]\nrestrictions = ['c']\nclasses = {c = ['check_client_access hash:{p}']}"],
        "example.com REJECT",
    ),
    "checks.ratelimit.exceptions": (
        ["[checks.ratelimit]\nexceptions = ['user:{p}']", "[checks.ratelimit]\nexceptions = ['cidr:{p}']"],
        "192.0.2.0 OK",
    ),
    "checks.ratelimit.rules.for": ([f"{RULE}for = ['user:{{p}}']", f"{RULE}for = ['hash:{{p}}']"], "name OK"),
    "checks.ratelimit.rules.except": ([f"{RULE}except = ['client:{{p}}']"], "name"),
}
"""Options with paths: TOML with the path as {p}, and what the file holds."""

NEVER_RELATIVE = {
    "store.url": "[store]\nurl = 'sqlite:{p}'",
    "policy.listen": "[policy]\nlisten = 'unix:{p}'",
    "milter.listen": "[milter]\nlisten = 'unix:{p}'",
}
"""Options with paths of what is not only read: those must be absolute, and anything else is a mistake."""

NO_PATHS = {
    *("hostname", "authserv_id", "local_domains", "relay_domains", "recipient_delimiter", "user", "group"),
    *("dns.nameservers", "log.syslog", "log.syslog_name", "checks.ratelimit.rules.by", "checks.greylist.lists"),
    *(f"{section}.{option}" for section in ("policy", "milter") for option in ("socket_group", "peers")),
    *("policy.unknown_client_reject_code", "policy.unknown_hostname_reject_code", "policy.unknown_address_reject_code"),
    *("signing.selector", "signing.canonicalization"),
    *("signing.sender_headers", "signing.sign_headers", "signing.omit_headers", "signing.oversign_headers"),
    *("verify.overrides", "verify.trusted_lists", "verify.trusted_sealers", "verify.remove_results_of"),
    *(f"checks.dnsbl.{option}" for option in ("lists", "helo_lists", "sender_lists", "reverse_name_lists")),
}
"""Options with text in which no path can stand."""


def options(model: type[BaseModel] = Config, above: str = "") -> Iterator[str]:
    """Every option that could hold a domain or path: no numbers, no choices."""
    for name, field in model.model_fields.items():
        shown = f"{above}{field.validation_alias or name}"
        if section := section_of(model, str(field.validation_alias or name)):
            yield from options(section, f"{shown}.")
        elif not _is_plain(field.annotation):
            yield shown


def _is_plain(annotation: Any) -> bool:
    if get_origin(annotation) is Literal or isinstance(annotation, EnumType):
        return True
    if get_origin(annotation) is Annotated:
        return _is_plain(get_args(annotation)[0])
    if inner := [part for part in get_args(annotation) if part is not Ellipsis]:
        return all(map(_is_plain, inner))
    return annotation in (bool, int, float, Limit, type(None))


@pytest.mark.parametrize("here", [{*DOMAINS, *AS_POSTFIX, *NO_NAMES}, {*PATHS, *NEVER_RELATIVE, *NO_PATHS}])
def test_every_option_with_text_is_here(here: set[str]) -> None:
    assert set() == {*options()} - here, "say of a new option whether it holds domains, and whether it holds paths"
    assert set() == here - {*options()}


def write(folder: Path, toml: str, spelling: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    write_key(folder / "k.pem")
    for name, text in TABLES.items():
        (folder / name).write_text(text.replace("{d}", spelling.strip()))
    (folder / "g.toml").write_text(toml.replace("{d}", spelling).replace("{f}", str(folder)))
    return folder / "g.toml"


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("option", DOMAINS)
def test_a_domain_is_found_however_it_is_written(tmp_path: Path, option: str, spelling: str) -> None:
    for toml, found in DOMAINS[option]:
        # blanks around a value alone; in front of or behind something else they separate words
        alone = "'{d}'" in toml
        plan = prepare(config_file.load(write(tmp_path, toml, spelling if alone else spelling.strip()), no_postfix))
        assert found(plan), toml


@pytest.mark.parametrize("other", ["EXAMPLE.com", "example.com.", " example.com"])
def test_two_policies_for_one_domain_are_a_mistake(tmp_path: Path, other: str) -> None:
    toml = f"[verify.overrides]\n'example.com' = 'reject'\n'{other}' = 'none'\n"
    with pytest.raises(ConfigError, match=r"'example\.com' and .* are the same domain"):
        config_file.load(write(tmp_path, toml), no_postfix)


@pytest.mark.parametrize("key", SPELLINGS)
def test_tables_of_postfix_have_keys_as_postfix_compares_them(key: str) -> None:
    """In any case, but never with a final dot or in the other spelling of a domain (access(5))."""
    name = key.strip()
    table = parse_indexed(f"{name} REJECT\n".encode(), Actions("access", lambda _: ()))
    found = [search_mailbox(table, f"joe@{domain}", "") is not None for domain in (NAME, UMLAUTS)]
    assert [name.lower() == NAME, name.lower() == UMLAUTS] == found


@pytest.mark.parametrize("path", ["./x", "x", "deeper/x", "../x"])
@pytest.mark.parametrize("option", PATHS)
def test_a_relative_path_starts_at_the_folder_of_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, path: str
) -> None:
    forms, text = PATHS[option]
    above, sub = tmp_path / "above", tmp_path / "above" / "sub"
    (sub / "deeper").mkdir(parents=True)
    for place in (sub / path, above / path, above / "deeper" / "x"):
        place.parent.mkdir(exist_ok=True)
        place.write_text(f"{text}\n")
    monkeypatch.chdir(above)
    for toml in forms:
        # where something else may stand in its place, a path says that it is one
        if not path.startswith(".") and (":{p}" in toml and any(word in toml for word in ("user:", "client:", ":s:"))):
            continue
        write(sub, toml.replace("{p}", path))
        with watched_files.recording() as read, suppress(ConfigError):
            prepare(config_file.load(Path("sub/g.toml"), no_postfix))
        wanted = [name for name in read if Path(name).name == "x"]
        assert [str((sub / path).resolve())] == [str(Path(name).resolve()) for name in wanted], toml
        assert all(name.startswith("/") for name in wanted)


@pytest.mark.parametrize("path", ["./x", "x", "../x"])
@pytest.mark.parametrize("option", NEVER_RELATIVE)
def test_what_is_not_only_read_has_an_absolute_path(tmp_path: Path, option: str, path: str) -> None:
    with pytest.raises(ConfigError, match="absolute"):
        prepare(config_file.load(write(tmp_path, NEVER_RELATIVE[option].replace("{p}", path)), no_postfix))


def test_the_keys_of_a_table_in_a_folder_of_its_own_start_at_the_configuration_too(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "KeyTable").write_text("k example.com:s:./k.pem\n")
    toml = "[signing]\nkey_table = 'tables/KeyTable'\nsigning_table = ['* k']"
    key = prepare(config_file.load(write(tmp_path, toml), no_postfix)).signing.key_table.find("k", "")
    assert key is not None
    assert str(tmp_path / "k.pem") == key.path


def test_a_key_file_beside_a_configuration_in_another_folder_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "sub", "[signing]\ndomains = 'example.com'\nselector = 's'\nkey_file = 'k.pem'")
    monkeypatch.chdir(tmp_path)
    key = prepare(config_file.load(Path("sub/g.toml"), no_postfix)).signing.key_table.find("example.com", "")
    assert key is not None
    assert str(tmp_path / "sub" / "k.pem") == key.path
