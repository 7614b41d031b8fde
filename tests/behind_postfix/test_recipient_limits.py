# SPDX-License-Identifier: GPL-3.0-or-later
"""A limit on recipients behind a real Postfix, at RCPT or where the message is complete, and mail that is given up."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from gatekeeper.replay.smtp import SmtpClient
from tests.lab import Lab
from tests.support.lab import new_lab
from tests.support.service import need_milter

pytestmark = pytest.mark.integration("gatekeeper", "postfix")

CONFIG = """\
hostname = "mx.example.org"
mynetworks = "10.0.0.0/8"
local_domains = "example.org"
[policy]
workers = 1
{lists}
[checks.ratelimit]
user_messages = []
user_recipients = "10/1h"
"""
AT_RCPT = 'recipient_restrictions = "ratelimit"'
AT_DATA = 'recipient_restrictions = []\ndata_restrictions = "ratelimit"'
AT_END = 'recipient_restrictions = []\nend_of_data_restrictions = "ratelimit"'
EVERYWHERE = (
    'recipient_restrictions = "ratelimit"\ndata_restrictions = "ratelimit"\nend_of_data_restrictions = "ratelimit"'
)
ASKED_EVERYWHERE = """
smtpd_data_restrictions = $smtpd_end_of_data_restrictions
smtpd_end_of_data_restrictions = check_policy_service { unix:gatekeeper/policy.sock, timeout=30s, default_action=DUNNO }
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A Postfix that asks at RCPT, at DATA and at the end of the message."""
    need_milter()
    with new_lab() as lab:
        with (lab.postfix.config / "main.cf").open("a") as main_cf:
            main_cf.write(ASKED_EVERYWHERE)
        os.utime(lab.postfix.config / "main.cf", (0, 0))
        master = int((lab.postfix.queue / "pid" / "master.pid").read_text())
        os.kill(master, signal.SIGHUP)
        yield lab


def run(lab: Lab, lists: str) -> None:
    config = lab.root / "gatekeeper.toml"
    config.write_text(CONFIG.format(lists=lists))
    lab.run(config)


@contextmanager
def alice(lab: Lab) -> Iterator[SmtpClient]:
    """A session of an authenticated user."""
    with SmtpClient("127.0.0.1", lab.postfix.ports.submission) as smtp:
        smtp.command("EHLO pc")
        smtp.xclient({"ADDR": "192.0.2.10", "NAME": "laptop.example", "LOGIN": "alice"})
        smtp.command("EHLO laptop.example")
        yield smtp


def begin(smtp: SmtpClient, count: int) -> int:
    """Name `count` recipients; how many are accepted."""
    smtp.command("MAIL FROM:<alice@example.org>")
    return [smtp.command(f"RCPT TO:<r{number}@example.org>")[:3] for number in range(count)].count("250")


def send(lab: Lab, count: int) -> str:
    """What Postfix says in the end to a message to `count` recipients, all of which it accepts."""
    with alice(lab) as smtp:
        assert count == begin(smtp, count)
        reply = smtp.command("DATA")
        return smtp.content(b"From: alice@example.org\r\nSubject: x\r\n\r\nHello\r\n") if reply[:3] == "354" else reply


def give_up(lab: Lab, count: int) -> int:
    """How many of `count` recipients are accepted for a message that is never sent."""
    with alice(lab) as smtp:
        accepted = begin(smtp, count)
        smtp.command("RSET")
        return accepted


@pytest.mark.parametrize("lists", [AT_DATA, AT_END], ids=["DATA", "END-OF-MESSAGE"])
def test_where_the_message_is_complete_only_what_is_sent_counts(lab: Lab, lists: str) -> None:
    run(lab, lists)
    assert 15 == give_up(lab, 15)
    assert "250" == send(lab, 6)[:3]
    refused = send(lab, 6)
    assert "450" == refused[:3]
    assert "Error: too many recipients from alice: the limit is 10 in 1h; try again in" in refused
    assert "this message has 15" in send(lab, 15)
    assert ["250", "450"] == [send(lab, 4)[:3], send(lab, 1)[:3]]


def test_at_rcpt_what_is_given_up_counts_and_a_list_that_is_asked_in_vain_is_told(lab: Lab) -> None:
    run(lab, AT_RCPT)
    assert [8, 2] == [give_up(lab, 8), give_up(lab, 8)]
    assert [0] == [give_up(lab, 1)]
    run(lab, AT_RCPT)
    assert "250" == send(lab, 10)[:3]
    for stage, option in (("DATA", "data_restrictions"), ("END-OF-MESSAGE", "end_of_data_restrictions")):
        told = f"Postfix asks at {stage}, but policy.{option} is empty"
        assert 1 == sum(told in line for line in lab.service.log.splitlines())


def test_a_message_that_is_asked_about_three_times_counts_once(lab: Lab) -> None:
    run(lab, EVERYWHERE)
    assert ["250", "250"] == [send(lab, 5)[:3], send(lab, 5)[:3]]
    assert 0 == give_up(lab, 1)
