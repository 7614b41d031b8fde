# SPDX-License-Identifier: GPL-3.0-or-later
"""Does an Authentication-Results field claim to be ours? Such fields are removed before ours is added (RFC 8601
section 5).

What counts is what a later reader may take it for, and readers differ: they take comments out before or after they
split, decode encoded words, stop at the first space. So a field that is well-formed is read by the grammar, and one
that is not claims to be ours if our name stands where the authserv-id belongs. Fields of others are kept, also when
they mention us. Linear in the field's length, without recursion.
"""

import re
import unicodedata
from base64 import b64decode
from quopri import decodestring
from typing import NamedTuple

from gatekeeper.auth.domains import normal_domain
from gatekeeper.core.message import Header

_NAME = b"authentication-results"
_EDGE = re.compile(r"[()]|\\.?", re.DOTALL)
_ID = re.compile(r"[^\s()<>@,;:\\\"/\[\]?=\x00-\x1f\x7f]+")
_QUOTED_ID = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_VERSION = re.compile(r"[0-9]+")
_SPACE = re.compile(r"\s*")
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f]")
_INVISIBLE = ("Cf", "Cs")  # format characters, and bytes that are no UTF-8, which some readers drop
_NOISE = re.compile(r'[\s"\\]+')
_WORD_GAP = re.compile(r"(\?=)\s+(?==\?)")
_ENCODED_WORD = re.compile(r"=\?([^?]{1,40})\?([BbQq])\?([^?]*)\?=")


class _Head(NamedTuple):
    """The beginning of a field by the grammar: `name` is empty if there is none, `comments` is their raw text."""

    name: str
    well_formed: bool
    comments: str


def claims_to_be_ours(field: Header, authserv_id: str) -> bool:
    """True if a reader may take `field` for one that we added under `authserv_id`. Never raises."""
    if field.name.strip().lower() != _NAME:
        return False
    ours = _plain(authserv_id)
    raw = field.value.decode("utf-8", "surrogateescape").replace("\r\n", "")
    text = _plain(raw)
    mentioned = re.compile(rf"(?<![\w.-]){re.escape(ours)}\.?(?![\w-]|\.\w)")
    if "=?" in text:
        # some readers decode before they parse, though nothing here may be encoded (RFC 2047 section 5)
        decoded = _plain(_ENCODED_WORD.sub(_decode, _WORD_GAP.sub(r"\1", raw)))
        if decoded != text and _claims(decoded, ours, mentioned):
            return True
    return _claims(text, ours, mentioned)


def mentions_method(field: Header, method: str) -> bool:
    """True if a reader may find a result of `method` in `field`, or if that cannot be ruled out. Never raises."""
    text = _plain(field.value.decode("utf-8", "surrogateescape"))
    return "=?" in text or method in text or method in _squeezed(text)


def _claims(text: str, ours: str, mentioned: re.Pattern[str]) -> bool:
    head = _parse(text)
    # OpenDKIM's AuthservIDWithJobID appends a slash and the queue id
    if head.name and _same(head.name.partition("/")[0], ours):
        return True
    if _CONTROL.search(text):
        return mentioned.search(text) is not None  # a bare line end may begin a field of its own for somebody
    if head.well_formed:
        # a comment that a simpler reader ends too early, or too late
        tricky = head.comments.count("(") > 1 or any(character in head.comments for character in '\\";')
        return tricky and mentioned.search(head.comments) is not None
    place = text.partition(";")[0] if head.name else text
    return mentioned.search(place) is not None or mentioned.match(_squeezed(place)) is not None


def _parse(text: str) -> _Head:
    start = _skip(text, 0)
    if start < 0:
        return _Head("", False, "")
    match = _QUOTED_ID.match(text, start) or _ID.match(text, start)
    if match is None:
        return _Head("", False, "")
    name = re.sub(r"\\(.)", r"\1", match[1], flags=re.DOTALL).strip() if match.re is _QUOTED_ID else match[0]
    end = _skip(text, match.end())
    if end >= 0 and (version := _VERSION.match(text, end)):
        end = _skip(text, version.end())
    if end < 0:
        return _Head(name, False, "")
    comments = text[:start] + text[match.end() : end]
    return _Head(name, end == len(text) or text[end] == ";", comments)


def _skip(text: str, at: int) -> int:
    """The place behind white space and comments from `at` on; -1 if a comment has no end."""
    while True:
        space = _SPACE.match(text, at)
        assert space is not None
        at = space.end()
        if not text.startswith("(", at):
            return at
        depth = 0
        for edge in _EDGE.finditer(text, at):
            depth += {"(": 1, ")": -1}.get(edge[0], 0)
            if not depth:
                at = edge.end()
                break
        else:
            return -1


def _same(name: str, ours: str) -> bool:
    name, ours = name.removesuffix("."), ours.removesuffix(".")
    return name == ours or ("" != normal_domain(name) == normal_domain(ours))


def _plain(text: str) -> str:
    """`text` as compared: compatibility forms and case folded, and without what cannot be seen."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        text = "".join(character for character in text if unicodedata.category(character) not in _INVISIBLE)
    return text.lower()


def _squeezed(text: str) -> str:
    """`text` without white space, quotes, backslashes and comments, as a lax reader may take it."""
    kept, depth, last = [], 0, 0
    for edge in re.finditer(r"[()]", text):
        if not depth:
            kept.append(text[last : edge.start()])
        depth = depth + 1 if edge[0] == "(" else max(depth - 1, 0)
        last = edge.end()
    if not depth:
        kept.append(text[last:])
    return _NOISE.sub("", "".join(kept))


def _decode(word: re.Match[str]) -> str:
    """An encoded word's text; a character set or an encoding that is wrong costs nothing but a worse reading."""
    charset, encoding, content = word.groups()
    data = content.encode("utf-8", "surrogateescape")
    try:
        data = b64decode(data + b"===") if encoding in "Bb" else decodestring(data, header=True)
    except ValueError:
        return word[0]
    try:
        return data.decode(charset.partition("*")[0], "replace")
    except (LookupError, ValueError):
        return data.decode("latin-1")
