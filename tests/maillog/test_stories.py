# SPDX-License-Identifier: GPL-3.0-or-later
"""What belongs together: mails by queue id and across a filter, sessions by process and client."""

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.maillog import stories
from gatekeeper.maillog.events import Kind
from gatekeeper.maillog.lines import Line
from gatekeeper.maillog.programs import read_events
from gatekeeper.maillog.stories import LINGER, MAX_EVENTS, Story, join

Said = tuple[str, str] | tuple[str, str, float]


def told(*said: Said, host: str = "mx") -> list[Story]:
    """The stories in lines of `program[pid]` and text, a second apart or at the time that stands third."""
    lines, at = [], 0.0
    for tag, text, *when in said:
        at = when[0] if when else at + 1
        program, _, pid = tag.partition("[")
        lines.append(Line(at, host, program, pid.rstrip("]"), text))
    return list(join(read_events(lines, Counter())))


def kinds(story: Story) -> list[Kind]:
    return [event.kind for event in story.events]


C, D, A, R = Kind.CONNECTED, Kind.DISCONNECTED, Kind.ACCEPTED, Kind.REFUSED
M, Q, S, END = Kind.MESSAGE_ID, Kind.QUEUED, Kind.DELIVERED, Kind.REMOVED


def mail(
    queue_id: str, *, pid: str = "7", client: str = "192.0.2.1", sender: str = "a@x", message_id: str = "<m>"
) -> list[Said]:
    """A mail that is received and delivered."""
    return [
        (f"postfix/smtpd[{pid}]", f"{queue_id}: client=x[{client}]"),
        ("postfix/cleanup[8]", f"{queue_id}: message-id={message_id}"),
        ("postfix/qmgr[9]", f"{queue_id}: from=<{sender}>, size=1, nrcpt=1 (queue active)"),
        (
            "postfix/smtp[10]",
            f"{queue_id}: to=<b@y>, relay=r[192.0.2.9]:25, delay=1, delays=0/0/0/1, dsn=2.0.0, status=sent (250 ok)",
        ),
        ("postfix/qmgr[9]", f"{queue_id}: removed"),
    ]


def connects(pid: str = "7", client: str = "192.0.2.1") -> Said:
    return f"postfix/smtpd[{pid}]", f"connect from x[{client}]"


def leaves(pid: str = "7", client: str = "192.0.2.1") -> Said:
    return f"postfix/smtpd[{pid}]", f"disconnect from x[{client}] quit=1"


def refuses(recipient: str, pid: str = "7", client: str = "192.0.2.1") -> Said:
    return (
        f"postfix/smtpd[{pid}]",
        f"NOQUEUE: reject: RCPT from x[{client}]: 450 4.2.0 no; from=<a@x> to=<{recipient}> proto=SMTP helo=<h>",
    )


def decides(recipient: str, client: str = "192.0.2.1", trace: str = "T", more: str = "") -> Said:
    return (
        "gatekeeper[1]",
        f"side=policy trace={trace}{more} stage=RCPT action=DUNNO client={client} sender=<a@x> recipient=<{recipient}>",
    )


def test_a_mail_is_one_story_from_connecting_to_its_end() -> None:
    (story,) = told(connects(), *mail("4B1F2A0"), leaves())
    assert ["4B1F2A0"] == story.queue_ids
    assert [C, A, M, Q, S, END, D] == kinds(story)


def test_two_mails_of_one_session_are_two_stories_that_begin_alike() -> None:
    one, two = told(connects(), *mail("4B1F2A0"), *mail("4B1F2A1"), leaves())
    assert [C, A, M, Q, S, END] == kinds(one)
    assert [C, A, M, Q, S, END, D] == kinds(two)


def test_a_session_that_is_refused_is_a_story_without_a_queue_id() -> None:
    (story,) = told(connects(), refuses("b@y"), leaves())
    assert ([], [C, R, D]) == (story.queue_ids, kinds(story))


def test_a_session_in_which_nothing_happened_is_no_story() -> None:
    assert [] == told(connects(), leaves())


def test_a_recipient_that_is_refused_before_another_is_accepted_belongs_to_the_mail() -> None:
    (story,) = told(connects(), refuses("nobody@y"), *mail("4B1F2A0"), leaves())
    assert [C, R, A, M, Q, S, END, D] == kinds(story)


def test_what_is_refused_after_a_mail_is_a_story_of_its_own() -> None:
    one, two = told(connects(), *mail("4B1F2A0"), refuses("nobody@y"), leaves())
    assert {("4B1F2A0",), ()} == {tuple(one.queue_ids), tuple(two.queue_ids)}


def test_a_content_filter_that_hands_a_mail_back_makes_one_story_of_two_queue_ids() -> None:
    first, second = mail("4B1F2A0"), mail("4B1F2A1", pid="17", client="127.0.0.1")
    sent = (
        "postfix/smtp[10]",
        "4B1F2A0: to=<b@y>, relay=filter[127.0.0.1]:10024, delay=1, status=sent (250 Ok: queued as 4B1F2A1)",
    )
    (story,) = told(
        connects(), *first[:3], leaves(), connects("17", "127.0.0.1"), *second[:3], sent, first[4], *second[3:]
    )
    assert ["4B1F2A0", "4B1F2A1"] == story.queue_ids
    assert 2 == kinds(story).count(END)


def test_a_filter_that_names_the_first_queue_id_needs_no_answer_to_be_joined() -> None:
    first, second = mail("4B1F2A0"), mail("4B1F2A1", pid="17", client="127.0.0.1")
    second[0] = (second[0][0], f"{second[0][1]}, orig_queue_id=4B1F2A0")
    (story,) = told(*first[:3], *second, *first[3:])
    assert ["4B1F2A0", "4B1F2A1"] == story.queue_ids


def test_another_hosts_queue_id_is_not_taken_for_ours() -> None:
    sent = (
        "postfix/smtp[10]",
        "4B1F2A0: to=<b@y>, relay=far[192.0.2.9]:25, delay=1, dsn=2.0.0, status=sent (250 Ok: queued as 4B1F2A1)",
    )
    assert 2 == len(told(*mail("4B1F2A1", message_id="<other>"), *mail("4B1F2A0")[:3], sent, mail("4B1F2A0")[4]))


def test_a_queue_id_that_is_used_again_begins_another_story() -> None:
    assert [[C, A, M, Q, S, END]] * 2 == [
        kinds(story) for story in told(connects(), *mail("4B1F2A0"), connects(), *mail("4B1F2A0"))
    ]


def test_a_policy_decision_belongs_to_the_mail_whose_session_it_was_asked_for() -> None:
    (story,) = told(connects(), decides("b@y"), *mail("4B1F2A0"), leaves())
    assert [C, Kind.DECIDED, A, M, Q, S, END, D] == kinds(story)


def test_a_decision_that_is_written_after_its_refusal_belongs_to_it_even_if_the_session_is_over() -> None:
    (story,) = told(connects(), refuses("b@y"), leaves(), decides("b@y"))
    assert {C, R, D, Kind.DECIDED} == set(kinds(story))


def test_decisions_about_two_sessions_of_one_client_at_once_are_told_apart() -> None:
    both = told(
        connects("7"), connects("8"),
        decides("b@y"), decides("c@y"), refuses("c@y", "8"), refuses("b@y", "7"),
        leaves("7"), leaves("8"),
    )  # fmt: skip
    recipients = [
        {event.fields["recipient"] for event in story.events if event.kind in (R, Kind.DECIDED)} for story in both
    ]
    assert [{"b@y"}, {"c@y"}] == sorted(recipients, key=min)


def test_the_trace_of_a_connection_tells_which_of_two_sessions_a_decision_belongs_to() -> None:
    milter = ("gatekeeper[2]", "side=milter trace=T2 queue_id=4B1F2A1 action=DUNNO client=192.0.2.1")
    one, two = mail("4B1F2A0", pid="7"), mail("4B1F2A1", pid="8")
    found = told(
        connects("7"), connects("8"), decides("b@y", trace="T2"),
        one[0], two[0], one[1], two[1], milter, *one[2:], *two[2:],
        leaves("7"), leaves("8"),
    )  # fmt: skip
    assert {"4B1F2A0": 0, "4B1F2A1": 2} == {story.queue_ids[0]: kinds(story).count(Kind.DECIDED) for story in found}


def test_a_client_that_a_proxy_names_later_is_the_one_that_was_decided_about() -> None:
    (story,) = told(connects(client="127.0.0.1"), decides("b@y"), *mail("4B1F2A0"), leaves())
    assert [C, Kind.DECIDED, A, M, Q, S, END, D] == kinds(story)


def test_decisions_alone_are_stories_too() -> None:
    (story,) = told(decides("b@y"), decides("c@y"))
    assert [Kind.DECIDED] * 2 == kinds(story)


def test_a_mail_that_a_milter_refuses_at_its_end_is_finished() -> None:
    refused = (
        "postfix/cleanup[8]",
        "4B1F2A0: milter-reject: END-OF-MESSAGE from x[192.0.2.1]: 5.7.1 no; from=<a@x> to=<b@y> proto=SMTP helo=<h>",
    )
    first, *_ = told(
        connects(), *mail("4B1F2A0")[:2], refused, leaves(), ("postfix/qmgr[9]", "4B1F2A9: removed", 1000.0)
    )
    assert (["4B1F2A0"], [C, A, M, R, D]) == (first.queue_ids, kinds(first))


def test_postscreens_clients_are_told_apart_though_one_process_has_them_all() -> None:
    def screen(client: str, text: str) -> Said:
        return "postfix/postscreen[5]", text.replace("C", f"[{client}]:1")

    one, two = told(
        screen("192.0.2.1", "CONNECT from C to [192.0.2.99]:25"),
        screen("192.0.2.2", "CONNECT from C to [192.0.2.99]:25"),
        screen("192.0.2.2", "DNSBL rank 3 for C"),
        screen("192.0.2.1", "PREGREET 4 after 0 from C: EHLO"),
        screen("192.0.2.1", "DISCONNECT C"),
        screen("192.0.2.2", "DISCONNECT C"),
    )
    assert {"192.0.2.1": "PREGREET", "192.0.2.2": "DNSBL rank 3"} == {
        story.first("client"): story.first("verdict") for story in (one, two)
    }


def test_that_postscreen_let_somebody_pass_is_no_story() -> None:
    passed = ("postfix/postscreen[5]", "PASS NEW [192.0.2.1]:1"), ("postfix/postscreen[5]", "DISCONNECT [192.0.2.1]:1")
    assert [] == told(("postfix/postscreen[5]", "CONNECT from [192.0.2.1]:1 to [192.0.2.99]:25"), *passed)


def test_a_story_is_given_out_before_the_log_ends_and_late_lines_still_reach_it() -> None:
    late = ("opendkim[3]", "4B1F2A0: DKIM verification successful", LINGER)
    lines = [*((tag, text, 0.0) for tag, text, *_ in mail("4B1F2A0")), late]
    joined = join(
        read_events(
            [
                Line(at, "mx", tag.partition("[")[0], "7", text)
                for tag, text, at in [*lines, ("postfix/qmgr[9]", "4B1F2A1: removed", LINGER + 1)]
            ],
            Counter(),
        )
    )
    assert Kind.DKIM in kinds(next(joined))


def test_a_story_keeps_a_bounded_number_of_events() -> None:
    deferred = ("postfix/smtp[10]", "4B1F2A0: to=<b@y>, relay=none, delay=1, dsn=4.0.0, status=deferred (x)")
    (story,) = told(*mail("4B1F2A0")[:3], *[deferred] * MAX_EVENTS)
    assert (MAX_EVENTS, 3) == (len(story.events), story.left_out)


def test_a_log_without_ends_is_joined_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stories, "MAX_OPEN", 10)
    found = told(*[(f"postfix/cleanup[{n}]", f"{n:06X}B: message-id=<{n}>") for n in range(100)])
    assert 100 == len(found)


def test_a_session_whose_end_is_missing_is_over_after_an_hour_and_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stories, "_SWEEP", 1)
    first, *_ = told(
        connects(),
        refuses("b@y"),
        (*connects("8", "192.0.2.2"), 9000.0),
        (*connects("9", "192.0.2.3"), 9400.0),
        (*leaves("9", "192.0.2.3"), 9800.0),
    )
    assert [C, R] == kinds(first)


SENT = "4B1F2A0: to=<b@y>, relay=x, delay=1, status=sent (queued as 4B1F2A1)"
SOME: Sequence[Said] = [
    *(*mail("4B1F2A0"), *mail("4B1F2A1", pid="8"), connects(), connects("8"), leaves(), leaves("8")),
    *(refuses("b@y"), refuses("b@y", "8"), decides("b@y"), decides("b@y", more=" queue_id=4B1F2A0")),
    ("postfix/smtp[10]", SENT),
    ("postfix/smtp[10]", SENT.replace("2A0", "2AX").replace("2A1", "2A0").replace("2AX", "2A1")),
    ("postfix/smtpd[8]", "4B1F2A1: client=x[192.0.2.1], orig_queue_id=4B1F2A0"),
    ("opendkim[3]", "4B1F2A0: DKIM verification successful"),
    ("postgrey[4]", "action=pass, reason=x, client_address=192.0.2.1, sender=a@x, recipient=b@y"),
]


@given(st.lists(st.tuples(st.sampled_from(SOME), st.floats(0, 2 * LINGER)), max_size=60))
def test_no_event_is_lost_or_told_twice_but_the_opening_of_a_session(said: list[tuple[Said, float]]) -> None:
    at, lines = 0.0, []
    for (tag, text, *_), later in said:
        at += later
        program, _, pid = tag.partition("[")
        lines.append(Line(at, "mx", program, pid.rstrip("]"), text))
    events = list(read_events(lines, Counter()))
    given_out = [event for story in join(events) for event in story.events]
    assert Counter(id(one) for one in events if one.kind not in (C, D)) == Counter(
        id(one) for one in given_out if one.kind not in (C, D)
    )
    assert {id(one) for one in given_out} <= {id(one) for one in events}
