# SPDX-License-Identifier: GPL-3.0-or-later
"""What Postfix's programs write, from postscreen(8) to bounce(8), as events.

The tag is `SYSLOG_NAME/DAEMON`, where syslog_name is `postfix`, `postfix/submission`, the name of an instance
(`postfix-out`), or whatever master.cf says: only the last word counts. Lines that tell nothing about a mail or a
session are None: most kinds of line are.
"""

import re
from collections.abc import Callable, Mapping

from gatekeeper.maillog.events import Found, Kind

_QUEUE_ID = re.compile(r"([0-9A-F]{6,20}|[0-9B-DF-HJ-NP-TV-Zb-df-hj-np-tv-z]{10,30}): ")
"""A short one (hexadecimal) or a long one (enable_long_queue_ids, in 52 characters without vowels)."""
_PEER = r"(?P<name>[^\s\[]*)\[(?P<client>[^\]\s]*)\](?::(?P<port>\d+|unknown))?"
_FROM = re.compile(_PEER)
_STAGE = re.compile(r"(?P<stage>[A-Z-]+(?: [A-Z-]+)?|unknown command) from " + _PEER + "(?=[:;])")
_CONTENT = re.compile(
    rf"(?P<stage>header|body|mime-error|MIME header|nested header) (?P<content>.*) from (?:local|{_PEER})(?=;)",
    re.DOTALL,
)
"""What header_checks and its kin found. The content is a stranger's; Postfix's words stand behind the last `from`."""
_REPLY = re.compile(
    r"(?P<reply>[245]\d\d(?: [245]\.\d{1,3}\.\d{1,3})?|[245]\.\d{1,3}\.\d{1,3}) (?P<text>.*)", re.DOTALL
)
_ENVELOPE = re.compile(
    r"[;,]?(?: from=<(?P<sender>.*?)>,?)?(?: to=<(?P<recipient>.*?)>,?)? proto=(?P<proto>\w+),?"
    r"(?: helo=<(?P<helo>.*?)>)?(?: sasl_username=<(?P<sasl_user>.*)>)?(?:: (?P<rest>.*))?$",
    re.DOTALL,
)
_ACTIONS = frozenset(
    {
        *("reject", "filter", "hold", "discard", "redirect", "warn", "info", "prepend", "replace", "strip", "permit"),
        "bcc",
    }
)
_MILTER = frozenset(("milter-reject", "milter-hold", "milter-discard"))
_DELIVERY = re.compile(
    r"to=<(?P<recipient>.*?)>, (?:orig_to=<(?P<original_recipient>.*?)>, )?relay=(?P<relay>[^ ]*?), "
    r"(?:conn_use=\d+, )?delay=(?P<delay>[\d.]+)(?:, delays=[\d./]+)?(?:, dsn=(?P<dsn>[\d.]+))?, "
    r"status=(?P<status>[\w-]+)(?: \((?P<text>.*)\))?",
    re.DOTALL,
)
_NEXT = re.compile(r"\bqueued as ([0-9A-Za-z]{6,30})\b")
_QUEUED = re.compile(r"from=<(?P<sender>.*)>, size=(?P<size>\d+), nrcpt=(?P<recipients>\d+) ", re.DOTALL)
_TLS = re.compile(r"\w+ TLS connection established from " + _PEER + r": (?P<tls>\S+)")
_LOST = re.compile(r"(?:lost connection|timeout|too many errors|improper command pipelining) after (?P<lost>.+?) from ")
_SCREENED = re.compile(
    r"(?P<verdict>PASS (?:NEW|OLD)|ALLOWLISTED|WHITELISTED|DENYLISTED|BLACKLISTED|DNSBL rank -?\d+|PREGREET|HANGUP"
    r"|COMMAND [A-Z ]+?|BARE NEWLINE|NON-SMTP COMMAND)\b.*? ?(?:from |for )?\[(?P<client>[0-9a-fA-F.:]+)\]:\d+"
)
_NOTIFICATION = re.compile(r"(?P<what>.+ notification): (?P<next_id>\w+)$")
_NOTHING: Mapping[str, str] = {}


def understand(daemon: str, text: str) -> Found | None:
    """Return what the program `daemon` (smtpd, qmgr, ...) says in `text`; None if it is nothing about mail."""
    if (parse := _PARSERS.get(daemon)) is None:
        return None
    if found := _QUEUE_ID.match(text):
        return parse(found[1], text[found.end() :])
    return parse("", text)


def is_daemon(name: str) -> bool:
    """Tell whether this is the last word of a tag of Postfix's."""
    return name in _PARSERS


def _smtpd(queue_id: str, text: str) -> Found | None:
    if queue_id:
        if text.startswith("client="):
            return _accepted(queue_id, text)
        return _refused(queue_id, text)
    if text.startswith("NOQUEUE: "):
        return _refused("", text[9:])
    if text.startswith("connect from "):
        return _session(Kind.CONNECTED, text, 13)
    if text.startswith("disconnect from "):
        return _session(Kind.DISCONNECTED, text, 16)
    if found := _LOST.match(text):
        session = _session(Kind.DISCONNECTED, text, found.end())
        return session and (*session[:2], {**session[2], "lost": found["lost"]})
    if found := _TLS.match(text):
        return "", Kind.TLS, {"client": found["client"], "name": found["name"], "tls": found["tls"]}
    return _trouble("", text)


def _session(kind: Kind, text: str, at: int) -> Found | None:
    found = _FROM.match(text, at)
    return found and ("", kind, {"client": found["client"], "name": found["name"]})


def _accepted(queue_id: str, text: str) -> Found | None:
    if (found := _FROM.match(text, 7)) is None:
        return None
    fields = {"client": found["client"], "name": found["name"]}
    rest = text[found.end() :]
    if rest:
        for pair in rest.removeprefix(", ").split(", "):
            name, equals, value = pair.partition("=")
            if equals and name in _ACCEPTED:
                fields[_ACCEPTED[name]] = value
    return queue_id, Kind.ACCEPTED, fields


_ACCEPTED = {"sasl_username": "sasl_user", "sasl_method": "sasl_method", "orig_queue_id": "original_id"}


def _refused(queue_id: str, text: str) -> Found | None:
    """Parse `ACTION: STAGE from NAME[ADDRESS]: REPLY; from=<> to=<> proto=ESMTP helo=<>`, and cleanup's forms of it."""
    action, colon, rest = text.partition(": ")
    if not colon:
        return None
    milter, warned = action in _MILTER, action == "reject_warning"
    word = action.removeprefix("milter-") if milter else "reject" if warned else action
    if word not in _ACTIONS:
        return None
    stage, fields = _whose(rest)
    if stage is None:
        return None
    fields["stage"] = stage
    if milter:
        fields["milter"] = "yes"
    if warned:
        fields["warned"] = "yes"
    if word == "reject":
        return queue_id, Kind.REFUSED, fields
    fields["action"] = word
    return queue_id, Kind.ACTED, fields


def _whose(text: str) -> tuple[str | None, dict[str, str]]:
    """Return the stage, and who was refused with which words."""
    if found := _STAGE.match(text):
        stage, fields = found["stage"], {"client": found["client"], "name": found["name"]}
    elif found := _CONTENT.match(text):
        stage, fields = found["stage"], {"content": found["content"]}
        if found["client"] is not None:
            fields |= {"client": found["client"], "name": found["name"]}
    else:
        return None, {}
    rest = text[found.end() :]
    said = rest[2:] if rest.startswith(": ") else ""
    envelope = None
    begin = rest.rfind(" proto=")
    if begin >= 0:
        begin = next((place for mark in (" from=<", " to=<") if (place := rest.find(mark)) >= 0), begin)
        envelope = _ENVELOPE.match(rest, begin)
    if envelope:
        for name in ("sender", "recipient", "helo", "sasl_user"):
            if envelope[name] is not None:
                fields[name] = envelope[name]
        said = envelope["rest"] or rest[2:begin].rstrip(" ;,")
    if found := _REPLY.match(said):
        fields["reply"], fields["text"] = found["reply"], found["text"]
    elif said:
        fields["text"] = said
    return stage, fields


def _cleanup(queue_id: str, text: str) -> Found | None:
    if not queue_id:
        return _trouble("", text)
    if text.startswith("message-id="):
        return queue_id, Kind.MESSAGE_ID, {"message_id": text[11:]}
    return _refused(queue_id, text)


def _qmgr(queue_id: str, text: str) -> Found | None:
    if not queue_id:
        return _trouble("", text)
    if text == "removed":
        return queue_id, Kind.REMOVED, _NOTHING
    if found := _QUEUED.match(text):
        return queue_id, Kind.QUEUED, found.groupdict()
    if "status=expired" in text or "status=force-expired" in text:
        return queue_id, Kind.EXPIRED, _NOTHING
    return _delivery(queue_id, text)


def _delivery(queue_id: str, text: str) -> Found | None:
    if not queue_id:
        return _trouble("", text)
    if (found := _DELIVERY.match(text)) is None:
        return None
    fields = {name: value for name, value in found.groupdict().items() if value is not None}
    if found["status"] == "sent" and (following := _NEXT.search(fields.get("text", ""))):
        fields["next_id"] = following[1]
    return queue_id, Kind.DELIVERED, fields


def _bounce(queue_id: str, text: str) -> Found | None:
    found = _NOTIFICATION.match(text) if queue_id else None
    return (queue_id, Kind.NOTIFIED, found.groupdict()) if found else _trouble(queue_id, text)


_PICKUP = re.compile(r"uid=(?P<uid>\d+) from=<(?P<sender>.*)>$", re.DOTALL)


def _pickup(queue_id: str, text: str) -> Found | None:
    found = _PICKUP.match(text) if queue_id else None
    return (queue_id, Kind.SUBMITTED, found.groupdict()) if found else _trouble(queue_id, text)


def _postscreen(_queue_id: str, text: str) -> Found | None:
    if text.startswith("NOQUEUE: "):
        return _refused("", text[9:])
    if text.startswith(("CONNECT from ", "DISCONNECT ")):
        found = _FROM.match(text, 13 if text[0] == "C" else 11)
        kind = Kind.CONNECTED if text[0] == "C" else Kind.DISCONNECTED
        return found and ("", kind, {"client": found["client"], "name": ""})
    if found := _SCREENED.match(text):
        return "", Kind.SCREENED, found.groupdict()
    return _trouble("", text)


def _postsuper(queue_id: str, text: str) -> Found | None:
    return (queue_id, Kind.REMOVED, _NOTHING) if queue_id and text.startswith("removed") else None


def _trouble(queue_id: str, text: str) -> Found | None:
    if text.startswith(("warning: ", "error: ", "fatal: ", "panic: ", "connect to ")):
        return queue_id, Kind.TROUBLE, {"text": text}
    return None


def _only_trouble(queue_id: str, text: str) -> Found | None:
    return _trouble(queue_id, text)


_PARSERS: Mapping[str, Callable[[str, str], Found | None]] = {
    "smtpd": _smtpd,
    "postscreen": _postscreen,
    "cleanup": _cleanup,
    "pickup": _pickup,
    "qmgr": _qmgr,
    "nqmgr": _qmgr,
    **dict.fromkeys(("smtp", "lmtp", "local", "virtual", "pipe", "error", "retry", "discard"), _delivery),
    "bounce": _bounce,
    "postsuper": _postsuper,
    **dict.fromkeys(
        ("master", "trivial-rewrite", "proxymap", "dnsblog", "tlsproxy", "postqueue", "verify"), _only_trouble
    ),
}
