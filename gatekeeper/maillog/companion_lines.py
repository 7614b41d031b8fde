# SPDX-License-Identifier: GPL-3.0-or-later
"""What the programs beside Postfix write: gatekeeper, and those that it replaces.

policyd-rate-limit writes nothing about a mail: what it refuses stands in Postfix's own line.
"""

import re
from collections.abc import Callable, Mapping

from gatekeeper.core.log import read_decision
from gatekeeper.maillog.events import Found, Kind

_QUEUE_ID = re.compile(r"([0-9A-F]{6,20}|[0-9B-DF-HJ-NP-TV-Zb-df-hj-np-tv-z]{10,30}):? ")


def understand(program: str, text: str) -> Found | None:
    """Return what `program` says in `text`; None if it is nothing about a mail."""
    parse = _PARSERS.get(program)
    return parse(text) if parse else None


def is_companion(program: str) -> bool:
    """Tell whether this is the tag of a program that understand() knows."""
    return program in _PARSERS


def _gatekeeper(text: str) -> Found | None:
    if not text.startswith("side=") or (pairs := read_decision(f" {text}")) is None:
        return None
    for name in ("sender", "recipient"):
        if name in pairs:
            pairs[name] = pairs[name].removeprefix("<").removesuffix(">")
    return pairs.pop("queue_id", ""), Kind.DECIDED, pairs


_SIGNED = re.compile(r"DKIM-Signature field added \(s=(?P<selector>[^,\s]+), d=(?P<domain>[^)\s]+)\)")
_VERIFIED = {
    "DKIM verification successful": "pass",
    "bad signature data": "fail",
    "no signature data": "none",
}
_SIGNATURE = re.compile(r"s=(?P<selector>\S+) d=(?P<domain>\S+)(?: a=\S+)? (?P<text>SSL.*)", re.DOTALL)
_UNSIGNED = re.compile(
    r"no signing table match for|not authenticated$|.* not internal$|external host .* attempted to send as "
)


def _opendkim(text: str) -> Found | None:
    if text.startswith("side="):  # gatekeeper under opendkim's name
        return _gatekeeper(text)
    if (found := _QUEUE_ID.match(text)) is None:
        return None
    queue_id, said = found[1], text[found.end() :]
    if (result := _VERIFIED.get(said)) is not None:
        return queue_id, Kind.DKIM, {"result": result}
    if signed := _SIGNED.match(said):
        return queue_id, Kind.SIGNED, signed.groupdict()
    if signature := _SIGNATURE.match(said):
        return queue_id, Kind.DKIM, {"result": "fail" if ":" in signature["text"] else "", **signature.groupdict()}
    if said.startswith("key retrieval failed"):
        return queue_id, Kind.DKIM, {"result": "temperror" if "try again" in said else "permerror", "text": said}
    if _UNSIGNED.match(said):
        return queue_id, Kind.UNSIGNED, {"why": said}
    return queue_id, Kind.TROUBLE, {"text": said}


_DMARC = re.compile(r"(?P<domain>[^\s:()]+) (?P<result>pass|fail|none|reject|quarantine|policy|temperror|permerror)$")
_SPF = re.compile(r"SPF\((?P<identity>mailfrom|helo)\): (?P<sender>\S*) (?P<result>\w+)$")


def _opendmarc(text: str) -> Found | None:
    if (found := _QUEUE_ID.match(text)) is None:
        return None
    queue_id, said = found[1], text[found.end() :]
    if spf := _SPF.match(said):
        return queue_id, Kind.SPF, spf.groupdict()
    if dmarc := _DMARC.match(said):
        return queue_id, Kind.DMARC, dmarc.groupdict()
    return None


_RECEIVED_SPF = re.compile(
    r"(?:prepend|Header field not prepended:|result_only) (?:Received-SPF: (?P<result>\w+) |Authentication-Results: .*?"
    r"spf=(?P<spf>\w+))(?P<rest>.*)",
    re.DOTALL,
)
_SPF_REFUSED = re.compile(r"(?P<reply>[45]\d\d [45]\.\d+\.\d+) (?P<text>.*)", re.DOTALL)
_SPF_FIELDS = {
    "identity": "identity",
    "client-ip": "client",
    "helo": "helo",
    "envelope-from": "sender",
    "receiver": "recipient",
    "s": "identity",  # of the link in a refusal
    "id": "sender",
    "ip": "client",
}
_SPF_RESULTS = ("softfail", "fail", "permerror", "temperror")
_BETWEEN_PAIRS = re.compile(r"[;?()\s]+")


def _policyd_spf(text: str) -> Found | None:
    queue_id = ""
    if found := _QUEUE_ID.match(text):
        queue_id, text = found[1], text[found.end() :]
    if found := _RECEIVED_SPF.match(text):
        fields = {"result": (found["result"] or found["spf"]).lower()}
        rest = found["rest"]
    elif found := _SPF_REFUSED.match(text):
        said = rest = found["text"]
        result = next((word for word in _SPF_RESULTS if f" {word}" in said.lower()), "")
        fields = {"result": result, "reply": found["reply"], "text": said}
    else:
        return None
    for pair in _BETWEEN_PAIRS.split(rest):
        name, equals, value = pair.partition("=")
        if equals and name in _SPF_FIELDS:
            fields[_SPF_FIELDS[name]] = value.strip('"<>')
    if fields.get("identity") == "mfrom":
        fields["identity"] = "mailfrom"
    elif fields.get("identity") not in ("mailfrom", "helo"):
        fields.pop("identity", None)
    if fields.get("recipient") == "UNKNOWN":
        del fields["recipient"]
    return queue_id, Kind.SPF, fields


_POSTGREY = {"client_name": "name", "client_address": "client"}


def _postgrey(text: str) -> Found | None:
    found = _QUEUE_ID.match(text)
    said = text[found.end() :] if found else text
    if not said.startswith("action="):
        return None
    fields = {}
    for pair in said.split(", "):
        name, _, value = pair.partition("=")
        fields[_POSTGREY.get(name, name)] = value
    return (found[1] if found else "", Kind.GREYLISTED, fields) if fields["action"] in ("greylist", "pass") else None


_RSPAMD = re.compile(
    r"(?:<\w*>; )?(?:\w+; )?rspamd_task_write_log: id: <(?P<message_id>.*?)>, (?:qid: <(?P<queue_id>\w*)>, )?"
    r"ip: (?P<client>[^, ]+), (?:user: (?P<sasl_user>[^,]*), )?(?:smtp_)?from: <(?P<sender>[^>]*)>.*?"
    r"\(default: \w \((?P<action>[^)]*)\): \[(?P<score>-?[\d.]+)/[-\d.]+\] \[(?P<symbols>.*?)\]\)",
    re.DOTALL,
)


def _rspamd(text: str) -> Found | None:
    if (found := _RSPAMD.match(text)) is None:
        return None
    fields = {name: value for name, value in found.groupdict().items() if value}
    if "message_id" in fields:
        fields["message_id"] = f"<{fields['message_id']}>"
    return fields.pop("queue_id", ""), Kind.SCANNED, fields


_PARSERS: Mapping[str, Callable[[str], Found | None]] = {
    "gatekeeper": _gatekeeper,
    "opendkim": _opendkim,
    "opendmarc": _opendmarc,
    "policyd-spf": _policyd_spf,
    "postgrey": _postgrey,
    "rspamd": _rspamd,
    "rspamd_proxy": _rspamd,
}
