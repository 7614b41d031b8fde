# SPDX-License-Identifier: GPL-3.0-or-later
"""Finding Authentication-Results fields that claim to be ours (RFC 8601 section 5).

They are removed before we add our own.

What counts is what a later reader may take a field for, and readers differ: they remove comments before or after they
split, decode encoded words, stop at the first space. So a well-formed field is read by the grammar, and a malformed one
claims to be ours if our name stands where the authserv-id belongs. The fields of others are kept, even if they mention
us. Takes linear time in the field's length, without recursion.
"""

import re
import unicodedata
from base64 import b64decode
from quopri import decodestring
from typing import NamedTuple

from gatekeeper.auth.domains import normal_domain
from gatekeeper.core.message import Header

_NAME = b"authentication-results"
_COMMENT_EDGE = re.compile(r"[()]|\\.?", re.DOTALL)
_ID = re.compile(r"[^\s()<>@,;:\\\"/\[\]?=\x00-\x1f\x7f]+")
_QUOTED_ID = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_VERSION = re.compile(r"[0-9]+")
_SPACE = re.compile(r"\s*")
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f]")
_INVISIBLE = ("Cf", "Cs")  # format characters, and bytes that are not UTF-8, which some readers drop
_NOISE = re.compile(r'[\s"\\]+')
_WORD_GAP = re.compile(r"(\?=)\s+(?==\?)")
_ENCODED_WORD = re.compile(r"=\?([^?]{1,40})\?([BbQq])\?([^?]*)\?=")


class _Head(NamedTuple):
    """The beginning of a field by the grammar: `name` is the authserv-id, `comments` the raw text of its comments."""

    name: str
    well_formed: bool
    comments: str


def claims_to_be_ours(field: Header, authserv_id: str) -> bool:
    """Return whether a reader may take `field` for one that we added under `authserv_id`. Never raises."""
    if field.name.strip().lower() != _NAME:
        return False
    ours = _normalized(authserv_id)
    raw = field.value.decode("utf-8", "surrogateescape").replace("\r\n", "")
    text = _normalized(raw)
    mention = re.compile(rf"(?<![\w.-]){re.escape(ours)}\.?(?![\w-]|\.\w)")
    if "=?" in text:
        # some readers decode before they parse, though nothing here may be encoded (RFC 2047 section 5)
        decoded = _normalized(_ENCODED_WORD.sub(_decode, _WORD_GAP.sub(r"\1", raw)))
        if decoded != text and _names_us(decoded, ours, mention):
            return True
    return _names_us(text, ours, mention)


def mentions_method(field: Header, method: str) -> bool:
    """Return whether a reader may find a result of `method` in `field`; True if in doubt. Never raises."""
    text = _normalized(field.value.decode("utf-8", "surrogateescape"))
    return "=?" in text or method in text or method in _squeezed(text)


def _names_us(text: str, ours: str, mention: re.Pattern[str]) -> bool:
    """Return whether `text` names `ours` as its authserv-id; `mention` finds that name in a text."""
    head = _parse(text)
    # OpenDKIM's AuthservIDWithJobID appends a slash and the queue id
    if head.name and _same_id(head.name.partition("/")[0], ours):
        return True
    if _CONTROL.search(text):
        return mention.search(text) is not None  # some readers may see a new field after a bare line end
    if head.well_formed:
        # a comment that a simpler reader may end too early or too late
        tricky = head.comments.count("(") > 1 or any(character in head.comments for character in '\\";')
        return tricky and mention.search(head.comments) is not None
    beginning = text.partition(";")[0] if head.name else text
    return mention.search(beginning) is not None or mention.match(_squeezed(beginning)) is not None


def _parse(text: str) -> _Head:
    start = _skip_comments(text, 0)
    if start < 0:
        return _Head("", False, "")
    match = _QUOTED_ID.match(text, start) or _ID.match(text, start)
    if match is None:
        return _Head("", False, "")
    name = re.sub(r"\\(.)", r"\1", match[1], flags=re.DOTALL).strip() if match.re is _QUOTED_ID else match[0]
    end = _skip_comments(text, match.end())
    if end >= 0 and (version := _VERSION.match(text, end)):
        end = _skip_comments(text, version.end())
    if end < 0:
        return _Head(name, False, "")
    comments = text[:start] + text[match.end() : end]
    return _Head(name, end == len(text) or text[end] == ";", comments)


def _skip_comments(text: str, at: int) -> int:
    """Return the position after the white space and comments at `at`; -1 if a comment is not terminated."""
    while True:
        space = _SPACE.match(text, at)
        assert space is not None
        at = space.end()
        if not text.startswith("(", at):
            return at
        depth = 0
        for edge in _COMMENT_EDGE.finditer(text, at):
            depth += {"(": 1, ")": -1}.get(edge[0], 0)
            if not depth:
                at = edge.end()
                break
        else:
            return -1


def _same_id(name: str, ours: str) -> bool:
    name, ours = name.removesuffix("."), ours.removesuffix(".")
    return name == ours or ("" != normal_domain(name) == normal_domain(ours))


def _normalized(text: str) -> str:
    """Return `text` as it is compared: compatibility forms and case folded, and without invisible characters."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        text = "".join(character for character in text if unicodedata.category(character) not in _INVISIBLE)
    return text.lower()


def _squeezed(text: str) -> str:
    """Return `text` without white space, quotes, backslashes and comments, as a lax reader may see it."""
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
    """Return the text of an encoded word, or what can be made of it if its character set or encoding is wrong."""
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
