# SPDX-License-Identifier: GPL-3.0-or-later
"""The policy delegation protocol as bytes: what Postfix sends is understood, what we answer cannot be misread."""

import re
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.core.request import Stage
from gatekeeper.core.verdict import PASS, Outcome, Verdict, defer_if_permit, defer_if_reject, permit, reject
from gatekeeper.policy.protocol import (
    MAX_REPLY,
    MAX_REQUEST,
    NotUnderstood,
    ProtocolError,
    RequestParser,
    encode_answer,
    to_request,
)

RCPT = {
    "request": "smtpd_access_policy",
    "protocol_state": "RCPT",
    "protocol_name": "ESMTP",
    "client_address": "192.0.2.1",
    "client_name": "mail.example.org",
    "client_port": "50123",
    "reverse_client_name": "mail.example.org",
    "helo_name": "mail.example.org",
    "sender": "alice@example.org",
    "recipient": "bob@example.net",
    "recipient_count": "0",
    "queue_id": "",
    "instance": "123.456.7",
    "size": "12345",
    "sasl_method": "",
    "policy_context": "submission",
}
"""What Postfix 3.7 sends at RCPT, in its order; some attributes left out."""


def frame(attributes: dict[str, str]) -> bytes:
    lines = "".join(f"{name}={value}\n" for name, value in attributes.items()) + "\n"
    return lines.encode("utf-8", "surrogateescape")


def parse(*chunks: bytes) -> list[dict[str, str]]:
    """All requests that come out of `chunks`, read after each of them."""
    parser = RequestParser()
    requests = []
    for chunk in chunks:
        parser.feed(chunk)
        while (attributes := parser.next()) is not None:
            requests.append(attributes)
    return requests


def each_byte(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def request(**changes: str) -> dict[str, str]:
    return RCPT | changes


def test_a_request_gives_its_attributes() -> None:
    assert [RCPT] == parse(frame(RCPT))


def test_pipelined_requests_come_out_in_order() -> None:
    second = request(recipient="carol@example.net")
    assert [RCPT, second] == parse(frame(RCPT) + frame(second))


@pytest.mark.parametrize("value", ["", "a=b=c", "=", " leading", "tab\there", "ünïcode", "\udcff\udc80", "x" * 2048])
def test_a_value_may_hold_anything_but_line_ends_and_nul(value: str) -> None:
    assert value == parse(frame(request(helo_name=value)))[0]["helo_name"]


def test_the_first_of_two_attributes_counts() -> None:
    assert "a" == parse(b"request=smtpd_access_policy\nsender=a\nsender=b\n\n")[0]["sender"]


def test_a_cr_before_the_line_end_is_dropped_and_others_are_kept() -> None:
    (attributes,) = parse(b"request=smtpd_access_policy\r\nhelo_name=a\rb\r\nsender=c\r\n\r\n")
    assert ("a\rb", "c") == (attributes["helo_name"], attributes["sender"])


@pytest.mark.parametrize(
    "broken",
    [
        b"\n",
        b"\r\n",
        b"sender=a\n\n",
        b"request=smtpd_access_policy\nno equals sign\n\n",
        b"request=smtpd_access_policy\n=no name\n\n",
        b"request=smtpd_access_policy\nsender=a\0b\n\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"x" * (MAX_REQUEST + 3),
    ],
)
def test_a_broken_frame_is_an_error_however_it_comes(broken: bytes) -> None:
    for chunks in ([broken], each_byte(broken)):
        with pytest.raises(ProtocolError):
            parse(*chunks)


def test_requests_before_a_broken_frame_come_out() -> None:
    parser = RequestParser()
    parser.feed(frame(RCPT) + b"\n")
    assert RCPT == parser.next()
    with pytest.raises(ProtocolError):
        parser.next()


@pytest.mark.parametrize("surplus", [-1, 0, 1, 2])
def test_the_length_limit_does_not_depend_on_the_chunks(surplus: int) -> None:
    start = b"request=smtpd_access_policy\nsender="
    data = start + b"x" * (MAX_REQUEST - len(start) + surplus) + b"\r\n\r\n"

    def outcome(*chunks: bytes) -> int:
        try:
            return len(parse(*chunks))
        except ProtocolError:
            return -1

    assert (1 if surplus < 0 else -1) == outcome(data) == outcome(data[:-4], *each_byte(data[-4:]))


names = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1).filter(lambda name: name != "request")
values = st.text(st.characters(codec="utf-8", exclude_characters="\n\0")).map(lambda value: value.rstrip("\r"))
requests = st.dictionaries(names, values, max_size=8).map(lambda some: {**some, "request": "smtpd_access_policy"})


@given(st.lists(requests, max_size=4), st.data())
def test_any_chunking_gives_the_same_requests(wanted: list[dict[str, str]], data: st.DataObject) -> None:
    stream = b"".join(map(frame, wanted))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert wanted == parse(stream) == parse(*chunks) == parse(*each_byte(stream))


@given(st.binary())
def test_arbitrary_bytes_give_requests_or_an_error_whatever_the_chunks(data: bytes) -> None:
    def outcome(*chunks: bytes) -> object:
        try:
            return parse(*chunks)
        except ProtocolError:
            return ProtocolError

    assert outcome(data) == outcome(*each_byte(data))


def test_a_request_at_rcpt_becomes_a_question() -> None:
    asked = to_request(RCPT)
    assert (Stage.RCPT, ip_address("192.0.2.1"), 50123) == (asked.stage, asked.client.address, asked.client.port)
    assert ("mail.example.org", "mail.example.org") == (asked.client.name, asked.client.reverse_name)
    assert ("mail.example.org", "alice@example.org", "bob@example.net") == (asked.helo, asked.sender, asked.recipient)
    assert ("123.456.7", 12345, "submission") == (asked.instance, asked.size, asked.policy_context)


@pytest.mark.parametrize(
    ("state", "stage", "sender", "recipient"),
    [
        ("CONNECT", Stage.CONNECT, None, None),
        ("HELO", Stage.HELO, None, None),
        ("EHLO", Stage.HELO, None, None),
        ("MAIL", Stage.MAIL, "", None),
        ("RCPT", Stage.RCPT, "", ""),
        ("DATA", Stage.DATA, "", None),
        ("BDAT", Stage.DATA, "", None),
        ("END-OF-MESSAGE", Stage.END_OF_MESSAGE, "", None),
        ("VRFY", Stage.VRFY, None, None),
        ("ETRN", Stage.ETRN, None, None),
    ],
)
def test_an_empty_value_means_nothing_yet_or_the_null_sender(
    state: str, stage: Stage, sender: str | None, recipient: str | None
) -> None:
    asked = to_request(request(protocol_state=state, helo_name="", sender="", recipient=""))
    assert (stage, None, sender, recipient) == (asked.stage, asked.helo, asked.sender, asked.recipient)


def test_a_single_recipient_is_known_at_the_end_of_the_message() -> None:
    asked = to_request(request(protocol_state="END-OF-MESSAGE", recipient_count="1"))
    assert ("bob@example.net", 1) == (asked.recipient, asked.recipient_count)


def test_missing_and_odd_attributes_become_unknown() -> None:
    asked = to_request({"request": "smtpd_access_policy", "protocol_state": "RCPT", "size": "-1", "client_port": "x"})
    assert (None, "unknown", "unknown", None) == (
        asked.client.address,
        asked.client.name,
        asked.client.reverse_name,
        asked.client.port,
    )
    assert (0, 0, "") == (asked.size, asked.recipient_count, asked.instance)


@pytest.mark.parametrize("changes", [{"request": "junk"}, {"protocol_state": "XYZZY"}, {"protocol_state": ""}])
def test_a_well_framed_request_for_something_else_is_not_understood(changes: dict[str, str]) -> None:
    with pytest.raises(NotUnderstood):
        to_request(request(**changes))


@pytest.mark.parametrize(
    ("verdict", "answer"),
    [
        (PASS, b"DUNNO"),
        (permit("mynetworks"), b"DUNNO"),
        (Verdict(Outcome.ACCEPT, "access.ok"), b"OK"),
        (reject("helo.invalid", "501", "5.5.2", "Invalid name"), b"501 5.5.2 Invalid name"),
        (reject("greylist.early", "450", "4.7.1", "Come back"), b"450 4.7.1 Come back"),
        (reject("x", "554", "5.7.1", ""), b"554 5.7.1 Service unavailable"),
        (reject("x", "554", "", "No"), b"554 No"),
        (defer_if_permit("x", "4.4.3", "DNS is slow"), b"DEFER_IF_PERMIT 4.4.3 DNS is slow"),
        (defer_if_reject("x", "4.7.1", "Later"), b"DEFER_IF_REJECT 4.7.1 Later"),
        (Verdict(Outcome.ACTION, "access.hold", text="HOLD look at it"), b"HOLD look at it"),
        (Verdict(Outcome.ACTION, "access.hold", text=" "), b"DUNNO"),
    ],
)
def test_a_verdict_is_one_action_line(verdict: Verdict, answer: bytes) -> None:
    assert b"action=" + answer + b"\n\n" == encode_answer(verdict)


@given(st.sampled_from(Outcome), st.text(), st.text(max_size=5), st.text(max_size=9))
def test_nothing_in_a_verdict_ends_the_answer_early(outcome: Outcome, text: str, code: str, enhanced: str) -> None:
    answer = encode_answer(Verdict(outcome, "x", code, enhanced, text))
    assert answer.startswith(b"action=")
    assert answer.endswith(b"\n\n")
    line = answer[len(b"action=") : -2]
    assert line
    assert not re.search(rb"[\x00-\x1f\x7f]", line)
    assert outcome is Outcome.ACTION or line.isascii()
    assert len(line) <= (998 if outcome is Outcome.ACTION else MAX_REPLY)


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ("REDIRECT bürger@example.com", "REDIRECT bürger@example.com".encode()),
        ("REDIRECT 用户@例え.example", "REDIRECT 用户@例え.example".encode()),
        ("REDIRECT b\udcfcrger@example.com", b"REDIRECT b\xfcrger@example.com"),
        ("PREPEND X-User: a\u00a0b\u2028", "PREPEND X-User: a\u00a0b\u2028".encode()),
        ("PREPEND X-User: a\r\nX-Evil: b\0", b"PREPEND X-User: a??X-Evil: b?"),
        ("PREPEND X: " + "ü" * 600, b"PREPEND X: " + "ü".encode() * 493),
    ],
)
def test_what_an_action_is_about_keeps_its_bytes(text: str, sent: bytes) -> None:
    assert b"action=" + sent + b"\n\n" == encode_answer(Verdict(Outcome.ACTION, "x", text=text))


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=320), st.integers(0, 600))
def test_the_reply_that_postfix_makes_of_it_fits_a_line(recipient: str, length: int) -> None:
    answer = encode_answer(reject("x", "550", "5.7.1", "x" * length), to_request(request(recipient=recipient)))
    said = answer.decode().strip().partition("=")[2]
    reply = f"{said[:10]}<{recipient}>: Recipient address rejected: {said[10:]}"
    assert len(reply) <= MAX_REPLY
