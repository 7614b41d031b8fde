# SPDX-License-Identifier: GPL-3.0-or-later
"""The types of option values: each parser takes what TOML gives, and its error message says what is allowed.

Where Postfix has a list, the value is a list or one string, separated by white space or commas as in main.cf. Domains
become the form in which mail is compared with them (auth/domains.py), in every option by the same function.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, StrictInt

from gatekeeper.auth.domains import configured_domain
from gatekeeper.checks.tables.client_list_reader import parse_own_pattern
from gatekeeper.core.log import FACILITIES
from gatekeeper.core.peers import Peers, parse_peers
from gatekeeper.dnsclient.live import parse_nameserver
from gatekeeper.postfix.client_list import ClientPattern
from gatekeeper.postfix.listen_address import ListenAddress, parse_listen_address
from gatekeeper.postfix.restriction_list import split_if_string


def _split_words(value: Any) -> Any:
    """Return a list as it is, and one string split at white space and commas, as in main.cf."""
    return [word for word in re.split(r"[\s,]+", value) if word] if isinstance(value, str) else value


def _client_pattern(value: Any) -> ClientPattern:
    return value if isinstance(value, ClientPattern) else parse_own_pattern(str(value))


def _domain(value: Any) -> str:
    if name := configured_domain(value) if isinstance(value, str) else "":
        return name
    raise ValueError(f'{value!r} is not a domain; allowed: "example.com", or ".example.com" for its subdomains')


def _distinct(value: Any) -> Any:
    """Refuse a domain that stands twice in a table, in two spellings: one of them would be forgotten."""
    first: dict[str, object] = {}
    for key in value if isinstance(value, Mapping) else ():
        name = configured_domain(str(key))
        if name and first.setdefault(name, key) is not key:
            raise ValueError(f"{first[name]!r} and {key!r} are the same domain; write one of them")
    return value


def _listen(value: Any) -> ListenAddress:
    return value if isinstance(value, ListenAddress) else parse_listen_address(str(value))


def _peers(value: Any) -> Peers:
    if isinstance(value, Peers):
        return value
    words = _split_words(value)
    if not isinstance(words, list | tuple):
        raise ValueError(f"{value!r} is not a list of users, user ids, addresses and networks")  # noqa: TRY004 (pydantic wants ValueError)
    return parse_peers([str(word) for word in words])


def _file_mode(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch("0?[0-7]{3}", value):
        return int(value, 8)
    raise ValueError(f'{value!r} is not a file mode; allowed: three octal digits as a string, "0660"')


def _reject_code(value: Any) -> str:
    if re.fullmatch("[45][0-9]{2}", str(value)):
        return str(value)
    raise ValueError(f"{value!r} is not a reply code that refuses; allowed: 400 to 599")


def _nameserver(value: Any) -> str:
    parse_nameserver(str(value))
    return str(value)


def _non_empty(values: tuple[ListenAddress, ...]) -> tuple[ListenAddress, ...]:
    if not values:
        raise ValueError("is an empty list; allowed: at least one address")
    return values


def _one_or_more(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _hostname(value: Any) -> str:
    name = value.strip().removesuffix(".") if isinstance(value, str) else ""
    if re.fullmatch(r"[A-Za-z0-9._-]{1,255}", name := name if name.isascii() else configured_domain(name)):
        return name
    raise ValueError(f'{value!r} is not a host name; allowed: letters, digits, dots and hyphens, as "mail.example.com"')


def _delimiter(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[!-~]*", value) and "@" not in value:
        return value
    raise ValueError(f'{value!r} is not a delimiter; allowed: characters as in main.cf, "+" or "+-", or "" for none')


def _data_set_spec(value: Any) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(line, str) for line in value):
        return tuple(value)
    raise ValueError('is not a table; allowed: "FILE", "refile:FILE", or its lines as a list of strings')


def _facility(value: Any) -> str:
    if value == "" or value in FACILITIES:
        return str(value)
    raise ValueError(f'{value!r} is not a syslog facility; allowed: {", ".join(FACILITIES)}, or "" for standard error')


def _canonicalization(value: Any) -> tuple[str, str]:
    header, _, body = value.partition("/") if isinstance(value, str) else ("", "", "")
    if {header, body or "simple"} <= {"relaxed", "simple"}:
        return header, body or "simple"
    raise ValueError(f'{value!r} is not a canonicalization; allowed: HEADER/BODY, each "relaxed" or "simple"')


def _header(value: Any) -> str:
    if isinstance(value, str) and re.fullmatch(r"[!-9<-~]+", value):
        return value
    raise ValueError(f'{value!r} is not the name of a header field; allowed: names without a colon, as "Subject"')


def _check_changes(names: tuple[str, ...]) -> tuple[str, ...]:
    change = next((name for name in names if name[0] in "+-"), "")
    if change and "*" not in names:
        raise ValueError(f'{change!r} changes the default set, which is written "*": write "*, {change}"')
    return names


Hostname = Annotated[str, BeforeValidator(_hostname)]
Hostnames = Annotated[tuple[Hostname, ...], BeforeValidator(_split_words)]
ClientPatterns = Annotated[
    tuple[Annotated[ClientPattern, PlainValidator(_client_pattern)], ...], BeforeValidator(split_if_string)
]
"""The words of a list of clients, which is still to be read (postfix/client_list.py)."""
Domain = Annotated[str, BeforeValidator(_domain)]
Domains = Annotated[tuple[Domain, ...], BeforeValidator(_split_words)]
ByDomain = BeforeValidator(_distinct)
"""Of a mapping by domain."""
Delimiter = Annotated[str, BeforeValidator(_delimiter)]
Addresses = Annotated[
    tuple[Annotated[ListenAddress, BeforeValidator(_listen)], ...],
    BeforeValidator(_one_or_more),
    AfterValidator(_non_empty),
]
Facility = Annotated[str, PlainValidator(_facility)]
PeerList = Annotated[Peers, PlainValidator(_peers)]
FileMode = Annotated[int, BeforeValidator(_file_mode)]
RejectCode = Annotated[str, BeforeValidator(_reject_code)]
Nameservers = Annotated[tuple[Annotated[str, BeforeValidator(_nameserver)], ...], BeforeValidator(_one_or_more)]
Canonicalization = Annotated[tuple[str, str], PlainValidator(_canonicalization)]
Headers = Annotated[tuple[Annotated[str, BeforeValidator(_header)], ...], BeforeValidator(_split_words)]
HeaderSet = Annotated[Headers, AfterValidator(_check_changes)]
"""Names of header fields, or changes to the default set: `*, +name, -name`."""
Workers = Annotated[StrictInt, Field(ge=1, le=64)]
DataSetSpec = Annotated[str | tuple[str, ...], PlainValidator(_data_set_spec)]
"""A data set in OpenDKIM's notation (`refile:FILE`, a path, a list with commas), or its lines as a list."""
