# SPDX-License-Identifier: GPL-3.0-or-later
"""What became of all mail in a log, counted: by day and hour, by who refused and why, by client, domain and login.

A story counts once, as what became of it (maillog/fates.py); refusals count for each recipient that was refused. A mail
that was asked to come back (4xx) came back if the same sender reached the same recipient later, from any client of the
same network; what has not by the end of the log still may. Memory is bounded, and what is dropped is counted.
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import ip_network

from gatekeeper.core.request import domain_of, parse_address
from gatekeeper.core.verdict import printable
from gatekeeper.evidence.refusals import our_reason, reason_of
from gatekeeper.evidence.tops import Tops
from gatekeeper.maillog.envelope import envelope_sender
from gatekeeper.maillog.events import Event, Kind
from gatekeeper.maillog.fates import Fate, deliveries, fate, is_temporary, refusals
from gatekeeper.maillog.stories import Story

MAX_WAITING = 200_000
"""How many deferred mails are remembered because they may come back; beyond that the oldest count as not come back."""
SIGNED = frozenset(("sign.ok", "sign.previous_key"))
_VERIFIED = ("spf", "dkim", "dmarc", "arc")


@dataclass(slots=True)
class Waited:
    """Mail that was asked to come back."""

    asked: int = 0
    waits: list[float] = field(default_factory=list)
    """Seconds that those waited that came back."""
    given_up: int = 0
    """Those that were forgotten, because too many wait."""


Refused = tuple[str, str, bool]
"""Who refused, why, and whether for now (4xx)."""


class Statistics:
    """Counts stories as they come. All counts are of mails unless they say otherwise."""

    def __init__(self) -> None:
        self.stories = 0
        self.fates: Counter[Fate] = Counter()
        self.days: dict[str, Counter[str]] = {}
        """By local date: `accepted`, `refused`, `deferred`."""
        self.hours: list[Counter[str]] = [Counter() for _ in range(24)]
        self.refused: Tops[Refused] = Tops()
        """Recipients (or sessions) that were refused."""
        self.examples: dict[Refused, str] = {}
        """What `gatekeeper why` shows an example with."""
        self.observed: Tops[str] = Tops()
        """Recipients and messages that observe mode would have refused, by reason code."""
        self.networks: Tops[tuple[str, str]] = Tops()
        """Client networks (/24, /64) with `accepted`, `refused`, `deferred`."""
        self.senders: Tops[tuple[str, str]] = Tops()
        self.recipients: Tops[tuple[str, str]] = Tops()
        self.logins: Tops[tuple[str, str]] = Tops()
        self.signed: Tops[str] = Tops()
        """By d=."""
        self.unsigned: Tops[tuple[str, str]] = Tops()
        """Mail that is ours and left unsigned, by domain of the sender and why."""
        self.verified: Tops[tuple[str, str]] = Tops()
        """By method and result."""
        self.failing: Tops[tuple[str, str]] = Tops()
        """DMARC failures, by domain and result."""
        self.lists: Tops[str] = Tops()
        """Refusals by DNS lists, by list."""
        self.limits: Tops[tuple[str, str]] = Tops()
        """Refusals by limits, by login or client, and reason."""
        self.waited = Waited()
        self._waiting: dict[tuple[str, str, str], float] = {}

    @property
    def waiting(self) -> int:
        """How many mails were asked to come back and have not, as far as is remembered."""
        return len(self._waiting) + self.waited.given_up

    def add(self, story: Story) -> None:
        """Count a story."""
        if not story.events:
            return
        became = fate(story)
        self.stories += 1
        self.fates[became] += 1
        at = story.events[0].at
        refused = refusals(story)
        word = _word(became)
        if word:
            moment = time.localtime(at)
            self.days.setdefault(time.strftime("%Y-%m-%d", moment), Counter())[word] += 1
            self.hours[moment.tm_hour][word] += 1
            self._by_whom(story, word)
        for refusal in refused:
            self._refusal(refusal, story)
        for event in story.events:
            self._event(event)
        self._returns(story, refused)

    def _by_whom(self, story: Story, word: str) -> None:
        sender = envelope_sender(story)
        if sender is not None:
            self.senders.add((domain_of(sender).lower() or "<>", word))
        client = story.first("client", Kind.ACCEPTED, Kind.REFUSED)
        if client and (network := network_of(client)):
            self.networks.add((network, word))
        for recipient in deliveries(story):
            self.recipients.add((domain_of(recipient).lower(), word))
        if login := story.first("sasl_user", Kind.ACCEPTED, Kind.REFUSED, Kind.DECIDED):
            self.logins.add((login.lower(), word))

    def _refusal(self, refusal: Event, story: Story) -> None:
        by, why = reason_of(refusal, story.events)
        temporary = is_temporary(refusal)
        key = (by, why, temporary)
        self.refused.add(key)
        if key not in self.examples and len(self.examples) < 1000:
            self.examples[key] = story.queue_ids[0] if story.queue_ids else refusal.fields.get("client", "")
        if why.startswith("listed by "):
            self.lists.add(why.removeprefix("listed by "))
        if not story.queue_ids and (recipient := refusal.fields.get("recipient")):
            self.recipients.add((domain_of(recipient).lower(), "deferred" if temporary else "refused"))

    def _event(self, event: Event) -> None:
        fields = event.fields
        match event.kind:
            case Kind.DECIDED:
                self._decided(event)
            case Kind.SIGNED:
                self.signed.add(fields["domain"])
            case Kind.DKIM | Kind.SPF if fields["result"] and "domain" not in fields:  # opendkim says more beside it
                self.verified.add((str(event.kind), fields["result"]))
            case Kind.DMARC:
                self.verified.add(("dmarc", fields["result"]))
                if fields["result"] not in ("pass", "none"):
                    self.failing.add((fields["domain"].lower(), fields["result"]))

    def _decided(self, event: Event) -> None:
        fields = event.fields
        codes = [code for code in fields.get("reasons", "").split(",") if code]
        if fields.get("judged", "")[:1] in "45" and fields.get("judged"):
            self.observed.add(codes[-1] if codes else "refused")
        for code in codes:
            part, _, result = code.partition(".")
            if part in _VERIFIED:
                self.verified.add((part, result))
            elif part in ("ratelimit", "connections") and our_reason(event) == code:
                self.limits.add((fields.get("sasl_user") or fields.get("client", ""), code))
            elif part == "sign" and fields.get("side") == "milter":
                domain = domain_of(fields.get("sender", "")).lower()
                if code in SIGNED:
                    self.signed.add(fields.get("d") or domain)
                elif "why" in fields:
                    self.unsigned.add((domain, f"{code}: {fields['why']}"))

    def _returns(self, story: Story, refused: list[Event]) -> None:
        """Note who was asked to come back, and who has."""
        at = story.events[0].at
        client = story.first("client", Kind.ACCEPTED, Kind.REFUSED) or ""
        network, sender = network_of(client), (envelope_sender(story) or "").lower()
        for refusal in refused:
            if is_temporary(refusal) and (recipient := refusal.fields.get("recipient")):
                key = (network, sender, recipient.lower())
                if key not in self._waiting:
                    self.waited.asked += 1
                    if len(self._waiting) >= MAX_WAITING:
                        del self._waiting[next(iter(self._waiting))]
                        self.waited.given_up += 1
                    self._waiting[key] = refusal.at
        if story.message_id:
            refused_now = {event.fields.get("recipient", "").lower() for event in refused}
            for event in story.events:
                if event.kind is Kind.DELIVERED:
                    recipient = (event.fields.get("original_recipient") or event.fields["recipient"]).lower()
                    since = self._waiting.get((network, sender, recipient))
                    if since is not None and recipient not in refused_now:
                        del self._waiting[network, sender, recipient]
                        self.waited.waits.append(max(0.0, at - since))


def network_of(client: str) -> str:
    """Return the network that one operator probably has, /24 or /64; the text itself if it is no address."""
    address = parse_address(client)
    if address is None:
        return printable(client, 64)
    return str(ip_network((str(address), 24 if address.version == 4 else 64), strict=False))


def _word(became: Fate) -> str:
    if became is Fate.REFUSED:
        return "refused"
    if became is Fate.DEFERRED:
        return "deferred"
    return "" if became in (Fate.UNKNOWN, Fate.GONE) else "accepted"
