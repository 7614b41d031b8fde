# SPDX-License-Identifier: GPL-3.0-or-later
"""A relay's log, made up session by session."""

from collections.abc import Iterable
from datetime import UTC, datetime

from gatekeeper.maillog.lines import Line

START = 1_772_334_245.0


class Log:
    """Lines of a log, written as sessions of one client after the other."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._mails = 0

    def say(self, at: float, tag: str, text: str) -> None:
        program, _, pid = tag.partition("[")
        self.lines.append(Line(START + at, "mx", program, pid.rstrip("]"), text))

    def mail(
        self, at: float, *, sender: str = "a@x.example", recipient: str = "b@y.example", client: str = "192.0.2.1",
        login: str = "", also: Iterable[tuple[str, str]] = (),
    ) -> None:  # fmt: skip
        self._mails += 1
        queue_id = f"4B1F{self._mails:04X}"
        user = f", sasl_method=PLAIN, sasl_username={login}" if login else ""
        self.say(at, "postfix/smtpd[7]", f"connect from h.example[{client}]")
        self.say(at, "postfix/smtpd[7]", f"{queue_id}: client=h.example[{client}]{user}")
        self.say(at, "postfix/cleanup[8]", f"{queue_id}: message-id=<{queue_id}@x>")
        for tag, text in also:
            self.say(at, tag, text.format(queue_id=queue_id))
        self.say(at, "postfix/qmgr[9]", f"{queue_id}: from=<{sender}>, size=1, nrcpt=1 (queue active)")
        self.say(at, "postfix/smtp[6]", f"{queue_id}: to=<{recipient}>, relay=r, delay=1, status=sent (250 ok)")
        self.say(at, "postfix/qmgr[9]", f"{queue_id}: removed")
        self.say(at, "postfix/smtpd[7]", f"disconnect from h.example[{client}]")

    def refusal(self, at: float, said: str, *, client: str = "192.0.2.1", ours: str = "") -> None:
        self.say(at, "postfix/smtpd[7]", f"connect from h.example[{client}]")
        if ours:
            self.say(
                at, "gatekeeper[1]", f"side=policy {ours} client={client} sender=<a@x.example> recipient=<b@y.example>"
            )
        envelope = "from=<a@x.example> to=<b@y.example> proto=ESMTP helo=<h.example>"
        self.say(at, "postfix/smtpd[7]", f"NOQUEUE: reject: RCPT from h.example[{client}]: {said}; {envelope}")
        self.say(at, "postfix/smtpd[7]", f"disconnect from h.example[{client}]")

    def text(self) -> str:
        """The lines as syslog writes them."""
        return "".join(
            f"{datetime.fromtimestamp(line.at, UTC).isoformat()} mx {line.program}[{line.pid}]: {line.text}\n"
            for line in self.lines
        )
