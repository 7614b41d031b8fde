# SPDX-License-Identifier: GPL-3.0-or-later
"""Events joined: one story for each mail, and one for each session that left no mail.

A mail is known by its queue id. Where a content filter hands it back under a new one, both are one story, if the filter
names the old one (XFORWARD), or the answer `queued as` names a queue file with the same Message-ID.

What is told before there is a queue id (refusals, a policy daemon's decisions) belongs to the client's session:
Postfix's lines by host and process, those of a policy daemon, which knows no process, by the client's address. If
several sessions of one client are open, such a line waits until gatekeeper's trace, or sender and recipient, tell whose
it is. What precedes a mail in its session stands in the story of that mail.

A story is given out when it is finished and LINGER seconds of the log's own time have passed, because programs write
late; what is unfinished, at the end of the log. Memory is bounded: beyond MAX_OPEN the oldest mail is given out as it
is, and a story keeps MAX_EVENTS events.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter

from gatekeeper.maillog.events import Event, Kind

MAX_OPEN = 50_000
MAX_EVENTS = 400
LINGER = 300.0
_SILENT = 3600.0
"""Seconds after which a session that nothing is heard of is over: the line that ended it may be missing."""
_LATE = 10.0
"""Seconds after its session in which a policy daemon still writes about it."""
_SWEEP = 4096
"""Events between two looks at all sessions."""
_MARKS = frozenset((Kind.REFUSED, Kind.ACTED, Kind.DECIDED, Kind.SPF, Kind.GREYLISTED, Kind.SCREENED))
"""A session without a mail is a story if one of these was said about it. That postscreen passed it on is none."""
_BEGINS = frozenset((Kind.ACCEPTED, Kind.SUBMITTED, Kind.MESSAGE_ID))
_AFTER_THE_BODY = "END-OF-MESSAGE"


@dataclass(slots=True, eq=False)
class Story:
    """What happened to one mail, or in one session without a mail (then `queue_ids` is empty)."""

    host: str
    queue_ids: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    left_out: int = 0
    """How many events beyond MAX_EVENTS there were."""
    message_id: str = ""
    in_queue: set[str] = field(default_factory=set)
    """Queue ids that the log has not called removed, or refused after the body."""
    given: bool = False
    part_of: "Story | None" = None
    """The story that this one was found to be a part of, and to which all that is added now belongs."""

    def add(self, event: Event) -> None:
        """Add what happened."""
        whole = self.whole
        if len(whole.events) < MAX_EVENTS:
            whole.events.append(event)
        else:
            whole.left_out += 1

    @property
    def whole(self) -> "Story":
        """The story of which this is all or a part."""
        story = self
        while story.part_of is not None:
            story = story.part_of
        return story

    def first(self, name: str, *kinds: Kind) -> str | None:
        """Return the first value of a field, of these kinds of event or of any; None if nothing tells it."""
        for event in self.events:
            if (not kinds or event.kind in kinds) and (value := event.fields.get(name)) is not None:
                return value
        return None


@dataclass(slots=True, eq=False)
class _Session:
    """A connection to one process of Postfix's."""

    host: str
    client: str
    last: float
    opening: list[Event] = field(default_factory=list)
    """What every mail of it begins with: the connection, TLS."""
    events: list[Event] = field(default_factory=list)
    """What no mail of it has yet."""
    mail: Story | None = None
    """The mail that came through it last."""

    def add(self, event: Event) -> None:
        """Add what was said about this session: to the mail that is being received, else to what comes next."""
        self.last = event.at
        mail = self.mail and self.mail.whole
        if mail is not None and not (mail.message_id or mail.given):
            mail.add(event)
        elif len(self.events) < MAX_EVENTS:
            self.events.append(event)


def join(events: Iterable[Event], *, received: bool = False) -> Iterator[Story]:
    """Yield the stories that `events`, in order of time, tell. The events of each are in order of time.

    A mail is finished when it has left the queue; with `received` as soon as it is in it, so that stories come nearly
    in the order in which their mail came. What happens to it later is then a story of its own, without a client.
    """
    joiner = _Joiner(received)
    for event in events:
        joiner.take(event)
        if joiner.ready:
            yield from joiner.hand_out()
    joiner.end()
    yield from joiner.hand_out()


class _Joiner:
    def __init__(self, received: bool) -> None:
        self._received = received
        self.ready: list[Story] = []
        self._mails: dict[tuple[str, str], Story] = {}
        self._sessions: dict[tuple[str, str, str], _Session] = {}
        self._of_client: dict[tuple[str, str], list[_Session]] = {}
        self._waiting: dict[tuple[str, str], list[Event]] = {}
        self._ended: dict[tuple[str, str], tuple[float, Story]] = {}
        """What the last session of a client left, for lines that are written after its end."""
        self._finished: deque[tuple[float, Story]] = deque()
        self._taken = 0

    def hand_out(self) -> Iterator[Story]:
        """Yield what is ready."""
        ready, self.ready = self.ready, []
        for story in ready:
            story.events.sort(key=attrgetter("at"))
            yield story

    def take(self, event: Event) -> None:
        """Join one event."""
        at = event.at
        while self._finished and self._finished[0][0] < at - LINGER:
            _, story = self._finished.popleft()
            if self._received or not story.in_queue:
                self._give(story)
        if event.queue_id:
            self._about_mail(event)
        else:
            self._about_session(event)
        self._taken += 1
        if self._taken % _SWEEP == 0:
            self._sweep(at)

    def end(self) -> None:
        """Give out what is left."""
        for key, session in list(self._sessions.items()):
            self._close(key, session)
        for _, story in self._finished:
            self._give(story)
        self._finished.clear()
        for story in list(self._mails.values()):
            self._give(story)

    # --- mails --------------------------------------------------------------------------------------------------------

    def _about_mail(self, event: Event) -> None:
        key, kind = (event.host, event.queue_id), event.kind
        story = self._mails.get(key)
        if story is not None and kind in _BEGINS and event.queue_id not in story.in_queue:
            self._give(story)  # Postfix uses the id of a removed file again
            story = None
        if story is None:
            story = self._mails[key] = Story(event.host, [event.queue_id], in_queue={event.queue_id})
            if len(self._mails) > MAX_OPEN:
                self._give(next(iter(self._mails.values())))
        if kind is Kind.ACCEPTED:
            story = self._accepted(event, story)
        elif kind is Kind.MESSAGE_ID:
            story.message_id = story.message_id or event.fields["message_id"]
        elif kind is Kind.DECIDED and (trace := event.fields.get("trace")):
            self._claim(event, story, lambda waiting: waiting.fields.get("trace") == trace)
        elif kind is Kind.QUEUED and (client := story.first("client", Kind.ACCEPTED)):
            sender = event.fields["sender"].lower()
            self._claim(event, story, lambda waiting: waiting.fields.get("sender", "").lower() == sender, client)
        story.add(event)
        if kind is Kind.DELIVERED and (following := event.fields.get("next_id")):
            self._absorb(story, self._mails.get((event.host, following)), same_message=True)
        elif kind is Kind.REMOVED or (kind is Kind.REFUSED and event.fields["stage"] == _AFTER_THE_BODY):
            self._leaves_queue(event.at, story, event.queue_id)
        elif kind is Kind.QUEUED and self._received:
            self._finished.append((event.at, story))

    def _accepted(self, event: Event, story: Story) -> Story:
        session = self._session_of(event)
        for earlier in (*session.opening, *session.events):
            story.add(earlier)
        session.events = []
        session.last = event.at
        original = self._mails.get((event.host, event.fields.get("original_id", "")))
        if original is not None and original is not story:
            self._absorb(original, story, same_message=False)
            story = original
        session.mail = story
        return story

    def _absorb(self, story: Story, other: Story | None, *, same_message: bool) -> None:
        """Make `other` a part of `story`; only if both have the same Message-ID, where that is asked."""
        if other is None or other is story:
            return
        if same_message and not (other.message_id and other.message_id == story.message_id):
            return
        for event in other.events:
            story.add(event)
        story.left_out += other.left_out
        story.in_queue |= other.in_queue
        for queue_id in other.queue_ids:
            self._mails[other.host, queue_id] = story
        story.queue_ids += other.queue_ids
        other.part_of, other.given, other.queue_ids, other.events = story, True, [], []

    def _leaves_queue(self, at: float, story: Story, queue_id: str) -> None:
        story.in_queue.discard(queue_id)
        if not story.in_queue:
            self._finished.append((at, story))

    def _give(self, story: Story) -> None:
        for queue_id in story.queue_ids:
            if self._mails.get((story.host, queue_id)) is story:
                del self._mails[story.host, queue_id]
        if not story.given:
            story.given = True
            self.ready.append(story)

    # --- sessions -----------------------------------------------------------------------------------------------------

    def _about_session(self, event: Event) -> None:
        kind = event.kind
        if "/" in event.program:
            key = _key(event)
            if kind is Kind.CONNECTED:
                if (earlier := self._sessions.get(key)) is not None:
                    self._close(key, earlier)
                self._session_of(event).opening.append(event)
                return
            if key not in self._sessions and "client" not in event.fields:
                return
            session = self._session_of(event)
            if kind is Kind.TLS:
                session.opening.append(event)
                return
            if kind is Kind.REFUSED and "recipient" in event.fields:
                self._claim_refused(event, session)
            session.last = event.at
            if len(session.events) < MAX_EVENTS:
                session.events.append(event)
            if kind is Kind.DISCONNECTED:
                self._close(key, session)
        elif client := event.fields.get("client"):
            self._about_client(event, client)

    def _about_client(self, event: Event, client: str) -> None:
        """Take a policy daemon's line, which names the client, and not the process of Postfix's that asked."""
        sessions = self._of_client.get((event.host, client))
        if not sessions:
            ended, story = self._ended.get((event.host, client), (0.0, None))
            if story is not None and not story.whole.given and event.at <= ended + _LATE:
                story.add(event)
            else:
                self._session_of(event).add(event)
        elif len(sessions) == 1:
            sessions[0].add(event)
        else:
            waiting = self._waiting.setdefault((event.host, client), [])
            if len(waiting) < MAX_EVENTS:
                waiting.append(event)

    def _claim_refused(self, event: Event, session: _Session) -> None:
        envelope = _envelope(event)
        waiting = self._waiting.get((session.host, session.client))
        if waiting:
            session.events += [one for one in waiting if _envelope(one) == envelope]
            waiting[:] = [one for one in waiting if _envelope(one) != envelope]

    def _claim(self, event: Event, story: Story, belongs: Callable[[Event], bool], client: str = "") -> None:
        """Give the story what waits for it of its client."""
        waiting = self._waiting.get((event.host, client or event.fields.get("client", "")))
        if not waiting:
            return
        for one in [one for one in waiting if belongs(one)]:
            waiting.remove(one)
            story.add(one)

    def _session_of(self, event: Event) -> _Session:
        """Return the session in which something happened, a new one if none is known."""
        key = _key(event)
        session = self._sessions.get(key)
        client = event.fields.get("client", session.client if session else "")
        if session is None:
            session = self._sessions[key] = _Session(event.host, client, event.at)
            self._of_client.setdefault((event.host, client), []).append(session)
        if session.client != client or key[1]:
            self._speaks_for(session, client)
        return session

    def _speaks_for(self, session: _Session, client: str) -> None:
        """Note whose session it is: a proxy may have told that only now (XCLIENT), and a policy daemon before."""
        if session.client != client:
            self._forget(session)
            session.client = client
            self._of_client.setdefault((session.host, client), []).append(session)
        if (known := self._sessions.pop((session.host, "", client), None)) is not None:
            self._forget(known)
            session.events += known.events

    def _forget(self, session: _Session) -> None:
        of_client = (session.host, session.client)
        self._of_client[of_client].remove(session)
        if not self._of_client[of_client]:
            del self._of_client[of_client]

    def _close(self, key: tuple[str, str, str], session: _Session) -> None:
        del self._sessions[key]
        self._forget(session)
        of_client = (session.host, session.client)
        if of_client not in self._of_client:
            session.events += self._waiting.pop(of_client, ())
        mail = session.mail and session.mail.whole
        if mail is not None and mail.given:
            mail = None
        if mail is not None and not mail.message_id:
            self._leaves_queue(session.last, mail, mail.queue_ids[0])
        if mail is not None and not any(event.kind in (Kind.REFUSED, Kind.ACTED) for event in session.events):
            for event in session.events:
                mail.add(event)
            self._ended[of_client] = (session.last, mail)
        elif any(map(_left_a_mark, session.events)):
            story = Story(session.host, events=[*session.opening, *session.events])
            self._finished.append((session.last, story))
            self._ended[of_client] = (session.last, story)

    def _sweep(self, at: float) -> None:
        for key, session in list(self._sessions.items()):
            if session.last < at - _SILENT:
                self._close(key, session)
        self._ended = {client: ended for client, ended in self._ended.items() if ended[0] > at - _LATE}


def _left_a_mark(event: Event) -> bool:
    return event.kind in _MARKS and not event.fields.get("verdict", "").startswith("PASS")


def _key(event: Event) -> tuple[str, str, str]:
    """Return what distinguishes a session: the process, or where one process has many (postscreen), the client."""
    program = event.program
    if "/" not in program:
        return event.host, "", event.fields["client"]
    return event.host, program, event.fields.get("client", "") if program.endswith("/postscreen") else event.pid


def _envelope(event: Event) -> tuple[str, str]:
    return event.fields.get("sender", "").lower(), event.fields.get("recipient", "").lower()
