# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands that diagnose one session or message and change nothing: explain, verify, sign."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gatekeeper.cli.common import (
    OK,
    Add,
    add_json,
    add_session,
    print_json,
    print_lines,
    read,
    run_with_app,
    session_from_options,
)

if TYPE_CHECKING:
    from gatekeeper.app.app import App
    from gatekeeper.diagnose.explain import NotingResolver


def add_to(add: Add) -> None:
    """Add the commands of this file."""
    _add_explain(add("explain", explain, "say what one session would be answered, and why; changes no state"))
    _add_verify(add("verify", verify, "report SPF, iprev, DKIM, DMARC and ARC of a message"))
    _add_sign(add("sign", sign, "write a message signed as the milter would"))


def _add_explain(command: argparse.ArgumentParser) -> None:
    add_session(command)
    command.add_argument("--to", metavar="ADDR", dest="recipient", help="the recipient")
    command.add_argument("--sasl-user", metavar="USER", default="", help="who authenticated")
    command.add_argument("--message", metavar="FILE", type=Path, help="a message: say what the milter would do with it")
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
    """Explain the policy daemon's answer to one session, and with --message the milter's."""
    from gatekeeper.diagnose import explain, message_report

    mail = message_report.Mail.read(read(options.message)) if options.message else None
    session = session_from_options(options)

    async def work(app: "App", resolver: "NotingResolver") -> int:
        explanation = await explain.explain(app, resolver, session, probe=options.dns is None)
        report = await message_report.sign_or_verify(app, explanation.decision.request, mail) if mail else None
        if options.json:
            message = {"message": message_report.report_as_json(report)} if report else {}
            print_json(explain.as_json(explanation) | message)
        else:
            print_lines(explain.sentences(explanation))
            print_lines(message_report.report_sentences(report) if report else ())
        return OK

    return run_with_app(options, work)


def verify(options: argparse.Namespace) -> int:
    """Report what authentication finds out about a message."""
    from dataclasses import replace

    from gatekeeper.diagnose import explain, message_report

    mail = message_report.Mail.read(read(options.message))
    session = session_from_options(options)
    if session.sender is None:
        session = replace(session, sender=mail.return_path())

    async def work(app: "App", resolver: "NotingResolver") -> int:
        request = await explain.build_request(resolver, session)

        def set_note(note: "message_report.DnsNote") -> None:
            resolver.note = note

        findings = await message_report.verify(app, request, mail, set_note)
        edits = await message_report.play(app, request, mail)
        if options.json:
            print_json(message_report.as_json(findings) | message_report.judgement_as_json(edits))
        else:
            print_lines(message_report.sentences(findings, edits, message_report.not_judged(app, request, mail)))
        return OK

    return run_with_app(options, work)


def sign(options: argparse.Namespace) -> int:
    """Write the message to stdout as it would leave, and to stderr why it is signed or not."""
    from gatekeeper.diagnose import explain, message_report

    mail = message_report.Mail.read(read(options.message))
    session = session_from_options(options)
    submitted = options.client is None and not options.sasl_user

    async def work(app: "App", resolver: "NotingResolver") -> int:
        request = await explain.build_request(resolver, session)
        signed, why = await message_report.sign(app, request, mail, submitted=submitted)
        print(why, file=sys.stderr)
        sys.stdout.buffer.write(signed)
        return OK

    return run_with_app(options, work)
