# SPDX-License-Identifier: GPL-3.0-or-later
"""Plays a case against a configuration in this process.

Pipelines, checks and milter session are those of production, in a world of the case's own: DNS is dns.zone, the store
starts empty, and the clock jumps where a client waits. Nothing is taken from the machine, so a case comes out the same
everywhere: neither what its Postfix says nor its name, and it need not have the users that the configuration names.

What Postfix does in between is in postfix_model.py. The service is also asked at DATA and at the end of the message, if
it has restrictions for them. The milter gets only messages that reach DATA.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from gatekeeper.app.app import App, open_app
from gatekeeper.app.plan import prepare
from gatekeeper.config import config_file
from gatekeeper.config.locations import KeyPath
from gatekeeper.core.message import Header, crlf, parse
from gatekeeper.core.problem import ConfigError, Problem
from gatekeeper.core.request import UNKNOWN, Client, Stage, parse_address
from gatekeeper.core.verdict import printable
from gatekeeper.dnsclient.resolver import TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.milter.edits import Edits
from gatekeeper.milter.session import MilterSession
from gatekeeper.policy.protocol import action, to_request
from gatekeeper.replay.compare import ConnectionOutcome, MessageOutcome
from gatekeeper.replay.fixture import Case, RecordedConnection, RecordedMessage, client_names
from gatekeeper.replay.postfix_model import Envelope, Restrictions, refusal
from gatekeeper.replay.smtp import look_up_names
from gatekeeper.stores.memory import MemoryStore

FIRST_PORT = 50001
"""The client port of a case's first connection; each further one has the next. Trace ids are derived from it."""


HOSTNAME = "relay.invalid"
"""The name of a relay whose configuration names none."""
_OF_THE_MACHINE: tuple[KeyPath, ...] = (
    ("user",),
    ("group",),
    *((section, option) for section in ("policy", "milter") for option in ("listen", "socket_group", "peers")),
)
"""Options for whoever serves: they may name users that are not on this machine, and play no part in a case."""


class JumpingClock:
    """A clock that stands still between jumps, in seconds since the epoch. It starts now: signatures have dates."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


async def play(case: Case, config_path: Path | None = None) -> tuple[ConnectionOutcome, ...]:
    """Play `case` with the configuration at `config_path` or its own, and return the outcome of each connection.

    Raises ConfigError.
    """
    path = config_path or case.config
    if path is None:
        raise ConfigError(
            [Problem(str(case.folder), 0, "no gatekeeper.toml in it or above it; name one with --config")]
        )
    clock = JumpingClock()
    resolver = TableResolver(Zone.parse(case.zone))
    config = config_file.load(path, _no_postfix, ignoring=_OF_THE_MACHINE)
    app = await open_app(prepare(config), resolver=resolver, store=MemoryStore(clock), clock=clock)
    try:
        outcomes = []
        for number, connection in enumerate(case.connections):
            clock.now += connection.wait
            outcomes.append(await _connection(app, case, connection, number))
        return tuple(outcomes)
    finally:
        await app.close()


def _no_postfix(names: Sequence[str]) -> Mapping[str, str]:
    """Answer in the place of postconf(1)."""
    return {"myhostname": HOSTNAME} if "myhostname" in names else {}


async def _connection(app: App, case: Case, connection: RecordedConnection, number: int) -> ConnectionOutcome:
    name, reverse_name = client_names(connection) or await look_up_names(app.resolver, connection.client)
    address = parse_address(connection.client)
    client = Client(address=address, name=name, reverse_name=reverse_name, port=FIRST_PORT + number)
    milter = MilterSession(app)
    daemon_name = "ORIGINATING" if connection.sasl_user else "smtpd"
    host = f"[{connection.client}]" if name == UNKNOWN else name
    milter.connect(host, connection.client, client.port, daemon_name=daemon_name)
    try:
        if app.connections.limited and (await milter.opened()).refuses:
            # Postfix's own words for a milter's 421
            return ConnectionOutcome(replies=(f"421 {app.site.hostname} Service unavailable - try again later",))
        outcomes = await _messages(app, case, connection, number, client, milter)
    finally:
        milter.closed()
    return ConnectionOutcome(replies=(f"220 {app.site.hostname} ESMTP",), messages=tuple(outcomes))


async def _messages(
    app: App, case: Case, connection: RecordedConnection, number: int, client: Client, milter: MilterSession
) -> list[MessageOutcome]:
    """Play the messages of the `number`-th connection, and return their outcomes."""
    if connection.helo is not None:
        milter.helo(connection.helo)
    outcomes = []
    for index, message in enumerate(connection.messages):
        envelope = Envelope(
            client=client,
            helo=connection.helo,
            sasl_user=connection.sasl_user,
            sender=message.sender,
            instance=f"replay.{number}.{index}",
        )
        outcomes.append(await _Transaction(app, envelope, milter).play(message, case.content(message)))
    return outcomes


class _Transaction:
    """One message in progress: what has been decided so far, and why."""

    def __init__(self, app: App, envelope: Envelope, milter: MilterSession) -> None:
        self._app = app
        self._envelope = envelope
        self._milter = milter
        self._queue_id = ""
        self._reasons: dict[str, None] = {}
        self._prepended: list[Header] = []

    async def play(self, message: RecordedMessage, content: bytes | None) -> MessageOutcome:
        replies, accepted = [], []
        for recipient in message.recipients:
            refused = await self._ask(Stage.RCPT, Restrictions.RECIPIENT, recipient, recipient=recipient)
            replies.append(refused or "250 2.1.5 Ok")
            if not refused:
                accepted.append(recipient)
                self._queue_id = "REPLAYED"
        added: tuple[Header, ...] = ()
        removed: tuple[Header, ...] = ()
        if accepted and content is not None:
            reply, added, removed = await self._data(accepted, content)
            replies.append(reply)
        return MessageOutcome(
            replies=tuple(replies), reasons=tuple(self._reasons), headers_added=added, headers_removed=removed
        )

    async def _ask(
        self, stage: Stage, restrictions: Restrictions, name: str, *, recipient: str = "", count: int = 0
    ) -> str:
        """Ask the app as the policy server would, and return the reply that refuses, or an empty string."""
        attributes = self._envelope.attributes(stage, recipient=recipient, count=count, queue_id=self._queue_id)
        request = to_request(attributes)
        if not self._app.pipeline(request).checks_at(stage):
            return ""
        decision, context = await self._app.decide(request)
        await context.settle(decision)
        self._reasons |= dict.fromkeys(decision.reasons)
        answer = action(decision.verdict, request)
        word, _, field = answer.partition(" ")
        if word.upper() == "PREPEND" and ":" in field:
            field_name, _, value = field.partition(":")
            self._prepended.append(Header(field_name.encode(), value.encode("utf-8", "surrogateescape")))
        return refusal(answer, restrictions, name)

    async def _data(self, accepted: list[str], content: bytes) -> tuple[str, tuple[Header, ...], tuple[Header, ...]]:
        """Send the data, and return the reply to it and the header fields that were added and removed."""
        recipient = accepted[0] if len(accepted) == 1 else ""
        for stage, restrictions, command in (
            (Stage.DATA, Restrictions.DATA, "DATA"),
            (Stage.END_OF_MESSAGE, Restrictions.END_OF_DATA, "END-OF-MESSAGE"),
        ):
            refused = await self._ask(stage, restrictions, command, recipient=recipient, count=len(accepted))
            if refused:
                return refused, (), ()
        headers, body = parse(_as_sent(content))
        headers = [*self._prepended, *headers]
        edits = await self._filter(accepted, headers, body)
        if edits.decision is not None:
            self._reasons |= dict.fromkeys(edits.decision.reasons)
        if edits.reply is not None:
            reply = edits.reply
            return f"{reply.code} {reply.enhanced} {printable(reply.text)}", (), ()
        inserted = [Header(i.name.encode(), i.value.replace("\n", "\r\n").encode()) for i in edits.insertions]
        removed = [_field(headers, removal.name, removal.index) for removal in edits.removals]
        return "250 2.0.0 Ok: queued as REPLAYED", (*reversed(inserted), *self._prepended), tuple(reversed(removed))

    async def _filter(self, accepted: list[str], headers: list[Header], body: bytes) -> Edits:
        """Run the milter's callbacks for a message, in their order."""
        milter, user = self._milter, self._envelope.sasl_user
        method = "PLAIN" if user else ""
        milter.mail(f"<{self._envelope.sender}>", sasl_user=user, sasl_method=method)
        for recipient in accepted:
            milter.rcpt(f"<{recipient}>")
        for field in headers:
            milter.header(field.name, field.value)
        milter.end_of_header(queue_id=self._queue_id)
        milter.body(body)
        edits = await milter.end_of_message()
        await milter.settle()
        return edits


def _as_sent(content: bytes) -> bytes:
    """Return the message as smtp.py sends it: every line ends in CRLF, the last one too."""
    content = crlf(content)
    return content if not content or content.endswith(b"\r\n") else content + b"\r\n"


def _field(headers: list[Header], name: str, index: int) -> Header:
    """Return the `index`-th field (from 1) called `name`, as a milter counts them."""
    return [field for field in headers if field.name.lower() == name.lower().encode()][index - 1]
