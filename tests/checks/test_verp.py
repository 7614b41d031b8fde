# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a sender stays from message to message, and that two people stay two."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.checks.greylisting.verp import normal_sender, postgrey_sender

ONE_SENDER = {
    "ann@example.com": (
        "Ann@Example.com",
        "prvs=1234abcdef=ann@example.com",
        "prvs=ann=1234abcdef@example.com",
        "btv1==1234abcdef==ann@example.com",
        "msprvs1=18223xyz_ab=ann@example.com",
        "prvs=0123456789=ann+news@example.com",
    ),
    "ann@gmail.com": ("ann+caf_=me=example.com@gmail.com", "ann+lists@gmail.com"),
    "srs0=#=#=example.com=ann@forward.example": (
        "SRS0=Ab1c=XY=example.com=ann@forward.example",
        "SRS0=zzzz=QQ=example.com=ann@forward.example",
        "SRS0+zzzz=QQ=example.com=ann@forward.example",
        "SRS0-zzzz=QQ=example.com=ann@forward.example",
    ),
    "srs0=#=#=example.com=bounce-#@forward.example": ("SRS0=Ab1c=XY=example.com=bounce-123-x@forward.example",),
    "srs1=#=first.example==#=#=example.com=ann@second.example": (
        "SRS1=Ab1c=first.example==HHH=XY=example.com=ann@second.example",
        "SRS1=0000=first.example==GGG=ZZ=example.com=ann@second.example",
    ),
    "list-bounces@lists.example": ("list-bounces+ann=example.com@lists.example", "list-bounces@lists.example"),
    "list-return-#@lists.example": (
        "list-return-1234-ann=example.com@lists.example",
        "list-return-1235-ann-b=example.com@lists.example",
        "list-return-7@lists.example",
    ),
    "bounce-#@list.example": (
        "bounce-12345-user=domain@list.example",
        "bounce-54321-user=domain@list.example",
        "bounce-123_HTML-45678-901-2345-0@list.example",
        "bounce-mc.us12_12345678.1234567-abc123@list.example",
        "bounce-md_30112948.5f3a1234.v1-0123456789abcdef0123456789abcdef@list.example",
    ),
    "bounces@em.example.com": ("bounces+1234567-a1b2-ann=example.com@em.example.com",),
    "bounce@sympa.example": ("bounce+list=ann==a.example@sympa.example", "bounce+125==ann==a.example@sympa.example"),
    "owner-news-#@listserv.example": (
        "owner-news*ann**example*-com@listserv.example",
        "owner-news-12345*ann**example*-com@listserv.example",
    ),
    "#@eu-west-1.amazonses.com": (
        "0102018f1234abcd-1234abcd-12ab-34cd-56ef-1234567890ab-000000@eu-west-1.amazonses.com",
        "010201900000ffee-00000000-aaaa-bbbb-cccc-dddddddddddd-000000@eu-west-1.amazonses.com",
    ),
    "news-#@news.example": ("news-123-john.doe=example.com@news.example", "news-456-jd=example.com@news.example"),
}


@pytest.mark.parametrize(
    ("normal", "sender"), [(normal, sender) for normal, senders in ONE_SENDER.items() for sender in senders]
)
def test_what_varies_from_message_to_message_goes(normal: str, sender: str) -> None:
    assert normal == normal_sender(sender)


@pytest.mark.parametrize("normal", ONE_SENDER)
def test_what_is_normal_stays(normal: str) -> None:
    assert normal == normal_sender(normal)


@pytest.mark.parametrize(
    "sender",
    [
        "",
        "ann.1985@gmail.com",
        "12345@qq.com",
        "491701234567@mms.example",
        "ab12cd34@student.example",
        "mariagonzalez198712@gmail.com",
        "mail4you2day@example.com",
        "owner-linux-kernel@vger.kernel.org",
        "ann-marie.o'neill@example.com",
        "ann=example.com@gateway.example",
        "bounce@example.com",
        "returns-department@example.com",
        "deadbeef@example.com",
        '"ann+b 12-bounce-34"@example.com',
        "+491701234567@example.com",
        "jörg.1970@exämple.de",
        "no-at-sign-123",
    ],
)
def test_people_stay_themselves(sender: str) -> None:
    assert sender == normal_sender(sender)


WORDS = (
    'prvs=|btv1==|msprvs1=|srs0=|srs1=|==|=|-|+|.|_|*|#|@|"|bounce|return|12|a|é|İ|deadbeef00112233|example.com| |\n'
)
PARTS = st.lists(st.sampled_from([*WORDS.split("|"), "\udcff"]), max_size=30).map("".join)


@given(st.one_of(PARTS, st.text(max_size=600)))
def test_any_text_is_taken_and_normal_once_and_for_all(sender: str) -> None:
    normal = normal_sender(sender)
    assert normal == normal_sender(normal)


@given(PARTS)
def test_the_domain_is_never_touched(sender: str) -> None:
    assert sender.lower().rpartition("@")[2] == normal_sender(sender).rpartition("@")[2] or "@" not in sender


PEOPLE = st.from_regex(r"[a-z]{1,12}([._-][a-z]{1,12}){0,2}[0-9]{0,6}", fullmatch=True)


# `deadbeefcafe000000` is a hash: sixteen hexadecimal digits look like one, whoever has them for a name.
@given(PEOPLE.filter(lambda local: not re.search("[0-9a-f]{16}", local)))
def test_names_with_a_number_behind_them_are_people(local: str) -> None:
    assert f"{local}@example.com" == normal_sender(f"{local}@example.com")


def postgrey(sender: str) -> str:
    """What postgrey 1.37 does to a sender (do_sender_substitutions), BATV aside."""
    user, _, domain = sender.partition("@")
    return re.sub(r"\b\d+\b", "#", re.sub(r"\+.*", "", user), flags=re.ASCII).lower() + "@" + domain.lower()


@pytest.mark.parametrize(
    "sender",
    [
        *(senders[0] for senders in ONE_SENDER.values() if "=" not in senders[0][:5]),
        "ann.1985@gmail.com",
        "12345@qq.com",
        "ann@example.com",
    ],
)
def test_what_postgrey_has_kept_is_found_again(sender: str) -> None:
    normal = normal_sender(sender)
    assert normal_sender(postgrey(sender)) in (normal, postgrey_sender(normal))


def test_long_hostile_senders_take_no_time() -> None:
    for part in ("bounce-", "prvs=a=", "1a", "a-", "=a.", "*", "0" * 15 + "g", "a1b2c3"):
        normal_sender((part * 600)[:500] + "@example.com")
        normal_sender((part * 600)[:499] + "!@example.com")
