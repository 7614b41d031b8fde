# SPDX-License-Identifier: GPL-3.0-or-later
"""The milter as Postfix meets it: over its socket, through libmilter, with everything a message can do to it."""

import fcntl
import re
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dns.name
import dns.rdatatype
import pytest

from gatekeeper.dnsclient.zone import Zone, ZoneAnswer
from gatekeeper.milter.open_sockets import open_sockets
from tests.support.milter_client import ALL_STEPS, CONTINUE, HEADER, LEADING_SPACE, REPLY, MilterClient
from tests.support.milter_service import INBOUND, OUTBOUND, ZONE, serving, verifies

pytestmark = pytest.mark.integration("gatekeeper")


@pytest.fixture(scope="module")
def socket_path() -> Iterator[str]:
    with serving() as path:
        yield path


@pytest.fixture
def postfix(socket_path: str) -> Iterator[MilterClient]:
    with MilterClient(socket_path) as client:
        yield client


def results_of(client: MilterClient, raw: bytes = INBOUND, sender: bytes = b"a@client.example") -> str:
    client.envelope(sender)
    outcome = client.content(raw)
    assert CONTINUE == outcome.answer
    [(name, value)] = outcome.fields
    assert "Authentication-Results" == name
    return value


def test_no_callback_but_the_last_asks_for_an_answer_and_header_values_come_exactly(postfix: MilterClient) -> None:
    assert postfix.steps & LEADING_SPACE
    assert 0xFF080 == postfix.steps & 0xFF080 & ~0x20000 | 0x20000


def test_a_mail_from_outside_gets_the_truth_on_top(postfix: MilterClient) -> None:
    postfix.open()
    results = results_of(postfix)
    assert re.match(r" mx\.ours\.example;", results)
    assert re.search(r"spf=pass[^;]*smtp\.mailfrom=(a@)?client\.example", results)
    assert "dkim=none" in results
    assert re.search(r"dmarc=pass[^;]*header\.from=client\.example", results)


def test_a_mail_of_an_authenticated_user_is_signed_and_not_judged(postfix: MilterClient) -> None:
    postfix.open()
    postfix.envelope(b"ann@ours.example", auth_type="PLAIN", auth_authen="ann")
    outcome = postfix.content(OUTBOUND)
    assert ["DKIM-Signature"] == [name for name, _ in outcome.fields]
    assert verifies(OUTBOUND, outcome.fields)
    assert not verifies(OUTBOUND.replace(b"Hello", b"Hullo"), outcome.fields)


@pytest.mark.parametrize(("client", "daemon_name"), [("192.0.2.1", "ORIGINATING"), ("198.51.100.7", "smtpd")])
def test_a_submission_service_and_an_internal_host_are_ours(
    postfix: MilterClient, client: str, daemon_name: str
) -> None:
    postfix.open(client=client, daemon_name=daemon_name)
    postfix.envelope(b"ann@ours.example")
    assert ["DKIM-Signature"] == [name for name, _ in postfix.content(OUTBOUND).fields]


def test_an_mta_that_knows_neither_leading_space_nor_silence_is_served_as_well(socket_path: str) -> None:
    with MilterClient(socket_path, steps=0x7F) as old:
        assert not old.steps & LEADING_SPACE
        old.open(daemon_name="ORIGINATING")
        old.envelope(b"ann@ours.example")
        assert verifies(OUTBOUND, old.content(OUTBOUND).fields)


FOLDED = (
    b"From: Ann\r\n\t<ann@ours.example>\r\nSubject:\r\n  two \r\n\tfolds\r\n"
    b"To: b@client.example,\r\n c@client.example\r\n\r\nHello\r\n"
)


@pytest.mark.parametrize("form", ["simple/simple", "relaxed/relaxed"])
def test_header_fields_are_signed_and_judged_alike_however_the_mta_ends_their_lines(form: str) -> None:
    """Some MTAs fold with CRLF what sendmail and Postfix fold with LF; what is added is LF for all (smfi_insheader)."""
    with serving(signing=f"canonicalization = '{form}'\n") as path:
        told = []
        for fold in (b"\n", b"\r\n"):
            with MilterClient(path, fold=fold) as client:
                client.open()
                client.envelope(b"ann@ours.example", auth_type="PLAIN", auth_authen="ann")
                signature = client.content(FOLDED).fields
                assert verifies(FOLDED, signature)
                [(name, value)] = signature
                signed = f"{name}:{value}\n".replace("\n", "\r\n").encode() + FOLDED
                client.envelope()
                outcome = client.content(b"Authentication-Results:\r\n\tmx.ours.example; dkim=fail\r\n" + signed)
                assert [("Authentication-Results", 1)] == outcome.removed
                [(_, results)] = outcome.fields
                assert "dkim=pass" in results
                assert "\r" not in value + results
                told.append(results)
        assert 1 == len({re.sub(r"header\.b=\S+", "", results) for results in told})


def test_every_chunking_of_the_body_signs_the_same_message(postfix: MilterClient) -> None:
    raw = OUTBOUND + b" \t\r\n\r\n\r\r\nx\r\n\r\n"
    for chunk in (1, 2, 7, 65535):
        postfix.open(daemon_name="ORIGINATING") if chunk == 1 else None
        postfix.envelope(b"ann@ours.example")
        assert verifies(raw, postfix.content(raw, chunk=chunk).fields)


def test_one_connection_carries_several_messages_and_forgets_each(postfix: MilterClient) -> None:
    postfix.open()
    postfix.envelope(b"ann@ours.example", auth_type="PLAIN", auth_authen="ann")
    assert ["DKIM-Signature"] == [name for name, _ in postfix.content(OUTBOUND).fields]
    assert "dmarc=pass" in results_of(postfix)
    postfix.envelope()
    postfix.header(b"Subject", b" given up")
    postfix.abort()
    assert "dmarc=pass" in results_of(postfix)


def test_forged_results_are_removed_back_to_front_and_others_stay(postfix: MilterClient) -> None:
    forged = (
        b"Authentication-Results: mx.ours.example; spf=pass\r\n"
        b"Authentication-Results: other.example; spf=pass\r\n"
        b"authentication-RESULTS: (c) MX.ours.\r\n example 1; dkim=pass\r\n"
        b'Authentication-Results:\r\n\t"mx.ours.example"; dmarc=pass\r\n'
    ).replace(b"ours.\r\n example", b"OURS.example")
    postfix.open()
    postfix.envelope()
    outcome = postfix.content(forged + INBOUND)
    assert [("authentication-results", n) for n in (4, 3, 1)] == [(name.lower(), n) for name, n in outcome.removed]


def test_a_user_cannot_forge_results_either(postfix: MilterClient) -> None:
    postfix.open()
    postfix.envelope(b"ann@ours.example", auth_type="PLAIN", auth_authen="ann")
    outcome = postfix.content(b"Authentication-Results: mx.ours.example; spf=pass\r\n" + OUTBOUND)
    assert [("Authentication-Results", 1)] == outcome.removed


def test_results_of_an_internal_host_survive(postfix: MilterClient) -> None:
    postfix.open(client="198.51.100.7")
    postfix.envelope(b"x@elsewhere.example")
    outcome = postfix.content(b"Authentication-Results: mx.ours.example; spf=pass\r\n" + INBOUND)
    assert ([], []) == (outcome.removed, outcome.fields)


def test_a_dead_name_server_gives_temperror_and_not_silence(postfix: MilterClient) -> None:
    postfix.open()
    assert "spf=temperror" in results_of(postfix, sender=b"a@slow.example")


@pytest.mark.parametrize(
    ("helo", "sender"),
    [
        (b"\xff\xfe", b"a@client.example"),
        (b"x" * 2000, b"\xc3\x28@\xff.example"),
        (b"", b""),
        (b"a\rb", b'"a\\"@b"@client.example'),
    ],
)
def test_an_odd_envelope_gets_an_answer(postfix: MilterClient, helo: bytes, sender: bytes) -> None:
    postfix.open(helo=helo)
    results = results_of(postfix, sender=sender)
    assert re.fullmatch(r"[ -~\n\t]+", results)


@pytest.mark.parametrize(
    "header",
    [
        b"From: \xff\xfe@client.example\r\n",
        b"From: a@client.example\r\nFrom: b@other.example\r\n",
        b"DKIM-Signature: v=1; a=rsa-sha256; d=client.example; s=x; h=From; bh=; b=\xff\r\n",
        b"DKIM-Signature: " + b"(" * 5000 + b"\r\n",
        b"X-Many: x\r\n" * 5000,
        b"From: " + b"(" * 5000 + b"a@client.example\r\n",
        b"Authentication-Results: " + b"(" * 5000 + b"\r\n",
    ],
    ids=["8-bit", "two-from", "bad-signature", "nested-signature", "many", "nested-from", "nested-results"],
)
def test_an_odd_header_gets_an_answer(postfix: MilterClient, header: bytes) -> None:
    postfix.open()
    assert "spf=pass" in results_of(postfix, header + b"Subject: x\r\n\r\nHello\r\n")


def test_a_message_with_nothing_in_it_gets_an_answer(postfix: MilterClient) -> None:
    postfix.open()
    assert "dmarc=" in results_of(postfix, b"")


def test_a_client_that_vanishes_in_the_middle_harms_nobody(socket_path: str) -> None:
    for _ in range(5):
        lost = MilterClient(socket_path)
        lost.open()
        lost.envelope()
        lost._send(HEADER, b"Subject\0 x")  # no final NUL
        lost.sock.close()
    with MilterClient(socket_path) as next_one:
        next_one.open()
        assert "dmarc=pass" in results_of(next_one)


def test_a_key_that_is_there_but_nothing_to_sign_for_leaves_the_mail_alone(postfix: MilterClient) -> None:
    postfix.open(daemon_name="ORIGINATING")
    postfix.envelope(b"x@unknown.example")
    outcome = postfix.content(b"From: x@unknown.example\r\n\r\nHello\r\n")
    assert (CONTINUE, [], []) == (outcome.answer, outcome.fields, outcome.removed)


def test_a_client_that_says_nonsense_is_dropped_and_the_next_is_served(socket_path: str) -> None:
    broken = MilterClient(socket_path)
    broken.sock.sendall(struct.pack("!L", 0x7FFFFFFF) + b"Z")
    assert b"" == broken.sock.recv(1)
    broken.close()
    with MilterClient(socket_path) as next_one:
        next_one.open()
        assert "dmarc=pass" in results_of(next_one)


def test_what_is_offered_is_never_exceeded(socket_path: str) -> None:
    for steps in (0, 0x7F, 0x3FF, ALL_STEPS & ~0x80):
        with MilterClient(socket_path, steps=steps) as client:
            # libmilter takes an MTA that offers nothing for one of version 1, which knew these (SMFI_V1_PROT)
            assert 0 == client.steps & ~(steps or 0x3F)
            client.open()
            assert "dmarc=pass" in results_of(client)


def test_a_forged_mail_is_refused_for_good_once_the_configuration_says_reject() -> None:
    with serving("verify.dmarc = 'reject'\n") as path, MilterClient(path) as client:
        client.open(client="203.0.113.9")
        client.envelope()
        outcome = client.content(INBOUND)
        assert (REPLY, "550 5.7.1 ") == (outcome.answer, outcome.text[:10])
        assert "client.example" in outcome.text


def test_a_forged_mail_is_held_once_the_configuration_says_quarantine() -> None:
    with serving("verify.dmarc = 'quarantine'\n") as path, MilterClient(path) as client:
        client.open(client="203.0.113.9")
        client.envelope()
        outcome = client.content(INBOUND)
        assert (CONTINUE, True) == (outcome.answer, "client.example" in outcome.held)
        assert "dmarc=fail" in outcome.fields[0][1]


def test_quarantine_may_be_a_field_below_ours_instead() -> None:
    with serving("verify.dmarc = 'quarantine'\nverify.quarantine = 'header'\n") as path, MilterClient(path) as client:
        client.open(client="203.0.113.9")
        client.envelope()
        outcome = client.content(INBOUND)
        assert (CONTINUE, "") == (outcome.answer, outcome.held)
        assert ["Authentication-Results", "X-Gatekeeper-Quarantine"] == [name for name, _ in outcome.fields]
        assert " DMARC policy of client.example" == outcome.fields[1][1]


FROM_BAD = b"From: x@bad.example\r\n\r\nHello\r\n"


def test_a_mail_whose_key_is_broken_waits(postfix: MilterClient) -> None:
    postfix.open(daemon_name="ORIGINATING")
    postfix.envelope(b"x@bad.example")
    outcome = postfix.content(FROM_BAD)
    assert (REPLY, "451 4.7.5 ") == (outcome.answer, outcome.text[:10])


def test_a_mail_whose_key_is_broken_leaves_unsigned_if_the_configuration_says_so() -> None:
    with serving(signing="without_key = 'unsigned'\n") as path, MilterClient(path) as client:
        client.open(daemon_name="ORIGINATING")
        client.envelope(b"x@bad.example")
        outcome = client.content(FROM_BAD)
        assert (CONTINUE, []) == (outcome.answer, outcome.fields)


def test_in_observe_mode_a_message_is_left_as_it_is() -> None:
    with serving("mode = 'observe'\nverify.dmarc = 'reject'\n") as path, MilterClient(path) as client:
        client.open(client="203.0.113.9")
        client.envelope()
        judged = client.content(b"Authentication-Results: mx.ours.example; spf=pass\r\n" + INBOUND)
        client.envelope(b"ann@ours.example", auth_type="PLAIN", auth_authen="ann")
        signed = client.content(OUTBOUND)
        assert [(CONTINUE, [], [])] * 2 == [(one.answer, one.fields, one.removed) for one in (judged, signed)]


@pytest.mark.parametrize("signing", ['peers = ["192.0.2.1"]\n', 'exempt_domains = ["client.example"]\n'])
def test_a_peer_and_an_exempt_domain_are_left_alone(signing: str) -> None:
    with serving(signing=signing) as path, MilterClient(path) as postfix:
        postfix.open(client="192.0.2.1")
        for _ in range(2):
            postfix.envelope()
            outcome = postfix.content(INBOUND)
            assert (CONTINUE, [], []) == (outcome.answer, outcome.fields, outcome.removed)


def test_old_signatures_go_if_they_are_to_go_and_ours_is_made() -> None:
    old = b"DKIM-Signature: v=1; d=old.example\r\nReceived: x\r\ndkim-signature: v=1; d=older.example\r\n"
    with serving(signing="remove_old_signatures = true\n") as path, MilterClient(path) as postfix:
        postfix.open(client="198.51.100.7")
        postfix.envelope(b"ann@ours.example")
        outcome = postfix.content(old + OUTBOUND)
    assert [("DKIM-Signature", 2), ("DKIM-Signature", 1)] == outcome.removed
    [(name, _)] = outcome.fields
    assert "DKIM-Signature" == name
    assert verifies(OUTBOUND, outcome.fields)


def test_who_is_bound_to_another_domain_is_refused() -> None:
    signing = 'bind = "envelope"\nmismatch = "reject"\n'
    with serving(signing=signing) as path, MilterClient(path) as postfix:
        postfix.open(client="198.51.100.7")
        postfix.envelope(b"eve@client.example")
        outcome = postfix.content(OUTBOUND)
        assert (REPLY, "550 5.7.1 You may not send mail from ours.example") == (outcome.answer, outcome.text)
        postfix.envelope(b"ann@ours.example")
        assert ["DKIM-Signature"] == [name for name, _ in postfix.content(OUTBOUND).fields]


def test_mail_to_some_is_not_signed() -> None:
    with serving(signing='dont_sign_to = ["robot@client.example"]\n') as path, MilterClient(path) as postfix:
        postfix.open(client="198.51.100.7")
        for recipient, count in ((b"robot@client.example", 0), (b"b@client.example", 1)):
            postfix.envelope(b"ann@ours.example", recipient)
            assert count == len(postfix.content(OUTBOUND).fields)


class Gated(Zone):
    """Says nothing about slow.example until the gate is open."""

    gate: threading.Event

    def lookup(self, name: str | dns.name.Name, rdtype: str | dns.rdatatype.RdataType) -> ZoneAnswer:
        if str(name).lower().startswith("slow.example"):
            self.gate.wait(60)
        return super().lookup(name, rdtype)


def test_slow_dns_of_one_message_delays_no_other() -> None:
    zone = Gated.parse(ZONE.replace("slow.example. TXT !TIMEOUT", 'slow.example. TXT "v=spf1 ip4:192.0.2.1 -all"'))
    zone.gate = threading.Event()
    done: list[str] = []

    def deliver(path: str, sender: bytes) -> str:
        with MilterClient(path) as client:
            client.open()
            results = results_of(client, sender=sender)
        done.append(sender.decode())
        return results

    with serving(zone=zone, timeout="30s") as path, ThreadPoolExecutor(52) as threads:
        slow = threads.submit(deliver, path, b"a@slow.example")
        others = [threads.submit(deliver, path, b"a@client.example") for _ in range(50)]
        assert all("spf=pass" in other.result() for other in others)
        assert (50, False) == (len(done), slow.done())
        zone.gate.set()
        assert "spf=pass" in slow.result()


TWO_FROM = [
    b"From: x@evil.example\r\n" + INBOUND,
    b"From : x@evil.example\r\n" + INBOUND,
    INBOUND.replace(b"From: ", b"From: x@evil.example, "),
    INBOUND.replace(b"From: ", b"From: x@evil.example <").replace(b".example\r\nSubj", b".example>\r\nSubj"),
]


def test_a_message_of_two_authors_never_passes_dmarc_and_is_refused_on_demand() -> None:
    with serving("verify.malformed_from = 'reject'\n") as path, MilterClient(path) as client:
        client.open()
        for raw in TWO_FROM:
            client.envelope()
            outcome = client.content(raw)
            assert (REPLY, "550 5.7.1 From must name one author's domain") == (
                outcome.answer,
                outcome.text.partition(":")[0],
            )


EVASIONS = [
    INBOUND.replace(b"a@client.example", b"Customer Service, Bank <a@client.example>"),
    b"From: a@client.example\r\n" + INBOUND,
    INBOUND.replace(b"a@client.example", b"a@client.example <x@evil.example>"),
    INBOUND.replace(b"a@client.example", b"x@evil.example,\r\n\t<a@client.example>"),
    INBOUND.replace(b"a@client.example", b'"a@client.example"'),
    INBOUND.replace(b"a@client.example", b"a@cli\xe2\x80\x8bent.example"),
]


def test_a_from_that_is_a_little_wrong_is_refused_as_a_clean_one_is() -> None:
    with serving("verify.dmarc = 'reject'\n") as path, MilterClient(path) as client:
        client.open(client="192.0.2.200")
        for raw in [INBOUND, *EVASIONS]:
            client.envelope(b"x@evil.example")
            outcome = client.content(raw)
            refused = "550 5.7.1 DMARC policy of client.example refuses mail"
            assert (REPLY, refused) == (outcome.answer, outcome.text[: len(refused)]), raw
        client.envelope(b"x@evil.example")
        assert "550 5.7.1 From must name one author's domain: From names no domain" == (
            client.content(INBOUND.replace(b"a@client.example", b"Bank")).text
        )


def test_looking_for_libmilters_socket_ends_no_lock_of_the_process(tmp_path: Path) -> None:
    take = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    command = [sys.executable, "-c", take, str(tmp_path / "locked")]
    with (tmp_path / "locked").open("w") as locked, socket.socket() as ours:
        fcntl.lockf(locked, fcntl.LOCK_EX)
        assert ours.fileno() in [descriptor for descriptor, _ in open_sockets()]
        assert "BlockingIOError" in subprocess.run(command, capture_output=True, text=True).stderr
    assert 0 == subprocess.run(command).returncode
