# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions about one session or message, answered without changing anything: explain, verify, sign."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gatekeeper.cli.common import OK, Add, add_json, add_session, asked_session, print_json, print_lines, read, with_app

if TYPE_CHECKING:
    from gatekeeper.app.app import App
    from gatekeeper.diagnose.explain import NotingResolver


def add_to(add: Add) -> None:
    """The commands of this file."""
    _add_explain(add("explain", explain, "what would be answered to one session, and why; changes no state"))
    _add_verify(add("verify", verify, "SPF, iprev, DKIM, DMARC and ARC of a message, as a report"))
    _add_sign(add("sign", sign, "write a message signed as the milter would"))


def _add_explain(command: argparse.ArgumentParser) -> None:
    add_session(command)
    command.add_argument("--to", metavar="ADDR", dest="recipient", help="the recipient")
    command.add_argument("--sasl-user", metavar="USER", default="", help="who authenticated")
    command.add_argument("--message", metavar="FILE", type=Path, help="the message: what the milter does with it")
    command.add_argument("--context", metavar="NAME", default="", help="the policy_context that Postfix sends")
    add_json(command)


def _add_verify(command: argparse.ArgumentParser) -> None:
    command.add_argument("message", metavar="FILE.eml", type=Path)
    add_session(command)
    add_json(command)


def _add_sign(command: argparse.ArgumentParser) -> None:
    command.add_argument("message", metavar="FILE.eml", type=Path)
    add_session(command)
    command.add_argument("--to", metavar="ADDR", dest="recipient", help="the recipient")
    command.add_argument("--sasl-user", metavar="USER", default="", help="who authenticated")


def explain(options: argparse.Namespace) -> int:
    """The policy daemon's answer to one session, and with --message the milter's."""
    from gatekeeper.diagnose import explain, message_report

    mail = message_report.Mail.read(read(options.message)) if options.message else None
    asked = asked_session(options)

    async def work(app: "App", resolver: "NotingResolver") -> int:
        explanation = await explain.explain(app, resolver, asked, probe=options.dns is None)
        told = await message_report.explain(app, explanation.decision.request, mail) if mail else None
        if options.json:
            print_json(explain.as_json(explanation) | ({"message": message_report.told_json(told)} if told else {}))
        else:
            print_lines(explain.sentences(explanation))
            print_lines(message_report.told_sentences(told) if told else ())
        return OK

    return with_app(options, work)


def verify(options: argparse.Namespace) -> int:
    """What authentication finds out about a message."""
    from dataclasses import replace

    from gatekeeper.diagnose import explain, message_report

    mail = message_report.Mail.read(read(options.message))
    asked = asked_session(options)
    if asked.sender is None:
        asked = replace(asked, sender=mail.return_path())

    async def work(app: "App", resolver: "NotingResolver") -> int:
        request = await explain.request(resolver, asked)

        def listen(listener: "message_report.Listener") -> None:
            resolver.note = listener

        findings = await message_report.verify(app, request, mail, listen)
        if options.json:
            print_json(message_report.as_json(findings))
        else:
            print_lines(message_report.sentences(findings))
        return OK

    return with_app(options, work)


def sign(options: argparse.Namespace) -> int:
    """The message on stdout as it would leave, and on stderr why it is not signed if it is not."""
    from gatekeeper.diagnose import explain, message_report

    mail = message_report.Mail.read(read(options.message))
    asked = asked_session(options)
    handed_in = options.client is None and not options.sasl_user

    async def work(app: "App", resolver: "NotingResolver") -> int:
        request = await explain.request(resolver, asked)
        signed, why = await message_report.sign(app, request, mail, submitted=handed_in)
        print(why, file=sys.stderr)
        sys.stdout.buffer.write(signed)
        return OK

    return with_app(options, work)
