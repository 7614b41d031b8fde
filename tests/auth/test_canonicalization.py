# SPDX-License-Identifier: GPL-3.0-or-later
"""Canonical forms against dkimpy's, which is an implementation of somebody else's; in any chunking."""

import hashlib
from base64 import b64encode
from itertools import pairwise

import pytest
from dkim.canonicalization import Relaxed, Simple
from hypothesis import example, given
from hypothesis import strategies as st

from gatekeeper.auth.canonicalization import BodyHash, header
from gatekeeper.core.message import Header

# What matters to canonicalization, and little else, so that every mixture of it comes up.
PIECES = st.sampled_from([b"\r\n", b"\r", b"\n", b" ", b"\t", b"a", b"b.", b"\xff", b"\r\n\r\n", b"  \r\n"])
BODIES = st.lists(PIECES, max_size=24).map(b"".join)
RULES = {True: Relaxed, False: Simple}


def feed(body: bytes, cuts: list[int], relaxed: bool, limit: int | None = None) -> tuple[bytes, int]:
    """The digest of `body` cut into chunks at `cuts`, and the length of its canonical form."""
    hashed = BodyHash(relaxed, limit=limit)
    for start, end in pairwise([0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]):
        hashed.update(body[start:end])
    return hashed.digest(limit), hashed.length


@given(body=BODIES, cuts=st.lists(st.integers(0, 60), max_size=6), relaxed=st.booleans())
@example(body=b"", cuts=[], relaxed=False)
@example(body=b"", cuts=[], relaxed=True)
@example(body=b" \r\n\t\r\n", cuts=[1, 2, 3], relaxed=True)
def test_any_chunking_of_a_body_gives_dkimpys_hash(body: bytes, cuts: list[int], relaxed: bool) -> None:
    body += b"\r\n"  # as SMTP delivers it: the last line ends too
    canonical = RULES[relaxed].canonicalize_body(body)
    assert (hashlib.sha256(canonical).digest(), len(canonical)) == feed(body, cuts, relaxed)


@given(body=BODIES, relaxed=st.booleans())
def test_a_body_fed_byte_by_byte_gives_the_same_hash(body: bytes, relaxed: bool) -> None:
    assert feed(body, [], relaxed) == feed(body, list(range(len(body))), relaxed)


@given(body=BODIES, cuts=st.lists(st.integers(0, 60), max_size=6), relaxed=st.booleans(), limit=st.integers(0, 30))
def test_a_limit_hashes_the_beginning_and_still_counts_everything(
    body: bytes, cuts: list[int], relaxed: bool, limit: int
) -> None:
    body += b"\r\n"
    canonical = RULES[relaxed].canonicalize_body(body)
    assert (hashlib.sha256(canonical[:limit]).digest(), len(canonical)) == feed(body, cuts, relaxed, limit)


@pytest.mark.parametrize("relaxed", [True, False])
def test_a_body_without_its_last_line_end_counts_as_having_one(relaxed: bool) -> None:
    assert feed(b"text\r\n", [], relaxed) == feed(b"text", [], relaxed)


def test_the_empty_body_has_the_hashes_that_the_rfc_prints() -> None:
    simple, relaxed = BodyHash(False), BodyHash(True)
    assert "frcCV1k9oG9oKj3dpUqdJg1PxRT2RSN/XKdLCPjaYaY=" == b64encode(simple.digest()).decode()
    assert "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=" == b64encode(relaxed.digest()).decode()


def test_a_body_of_empty_lines_costs_no_time_for_each_of_them() -> None:
    hashed = BodyHash(True)
    for _ in range(64):
        hashed.update(b"\r\n" * 500_000)
    hashed.digest()
    assert 0 == hashed.length


NAMES = st.sampled_from([b"Subject", b"from", b"X-A"])
VALUES = st.lists(st.sampled_from([b" ", b"\t", b"\r\n ", b"\r\n\t", b"a", b"B", b"\xe9"]), max_size=12).map(b"".join)


@given(name=NAMES, value=VALUES)
def test_a_relaxed_field_is_as_dkimpy_makes_it(name: bytes, value: bytes) -> None:
    [(expected_name, expected_value)] = Relaxed.canonicalize_headers([(name, value + b"\r\n")])
    assert expected_name + b":" + expected_value == header(Header(name, value), relaxed=True) + b"\r\n"


@given(name=NAMES, value=VALUES)
def test_a_simple_field_is_the_bytes_that_came(name: bytes, value: bytes) -> None:
    assert name + b":" + value == header(Header(name, value), relaxed=False)


@given(body=BODIES, relaxed=st.booleans(), limits=st.lists(st.none() | st.integers(0, 30), min_size=1, max_size=5))
def test_any_number_of_limits_is_one_hash(body: bytes, relaxed: bool, limits: list[int | None]) -> None:
    hashed = BodyHash(relaxed, limits[0])
    for limit in limits:
        hashed.want(limit)
    hashed.update(body)
    assert [feed(body, [], relaxed, limit)[0] for limit in limits] == [hashed.digest(limit) for limit in limits]
