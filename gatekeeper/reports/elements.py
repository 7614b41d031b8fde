# SPDX-License-Identifier: GPL-3.0-or-later
"""The XML of a report as elements: exactly where it is well-formed, as far as it makes sense where it is not.

Reporters write elements without an end, `&` and `<` in names, bytes of another character set than they declare. A
parser of XML stops there, and the report is lost. So there are two readings. The strict one is what XML says. The
other, for what is not well-formed, knows the places of the elements of a report: an element whose place is further out
closes what is open within, an end without a beginning is ignored. In both, what does not look like a tag is text, and
bytes that are no characters become the character for that.

Nothing can grow here: entities that a document defines do not exist, attributes are passed over, the depth and number
of elements and the length of texts are limited, and only one child of the root is kept at a time.
"""

import codecs
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import unescape
from io import BytesIO

MAX_DEPTH = 12
MAX_ELEMENTS = 2000
"""Elements in one child of the root."""
MAX_TAGS = 3_000_000
"""Tags in one root: 64 MiB of a real report have fewer."""
MAX_TEXT = 1000
"""Bytes of the text of one element that are kept."""

_TOKEN = re.compile(
    rb"""<(?:(/?)([A-Za-z_][\w.:-]{0,200})((?:[\s/](?:[^<>"']++|"[^"<]*+"|'[^'<]*+')*+)?|[\s/][^<>]*+)>"""
    rb"""|(!--)|(!\[CDATA\[)|\?)"""
)
_ENCODING = re.compile(rb"""<\?xml\s[^>]{0,200}encoding\s*=\s*["']([\w.-]{1,40})["']""")
_SUPERSET_OF_ASCII = re.compile(r"(?:iso8859-\d+|cp125\d|koi8-[ru]|gb\w+|big5\w*|euc_\w+)\Z")
_CHUNK = 65536


class NotWellFormed(ValueError):
    """The strict reading is at its end; `at` is where, in bytes from the beginning of the document."""

    def __init__(self, at: int) -> None:
        super().__init__("the XML is not well-formed")
        self.at = at


class TooMuch(ValueError):
    """The document exceeds a limit."""


@dataclass(slots=True)
class Element:
    """An element with its name without a prefix, its text, and where it begins, in bytes."""

    name: str
    at: int = 0
    text: str = ""
    children: "list[Element]" = field(default_factory=list)

    def all(self, name: str) -> "Iterator[Element]":
        """Yield the children with this name."""
        return (child for child in self.children if child.name == name)

    def one(self, name: str) -> "Element":
        """Return the first child with this name; an empty one if there is none."""
        return next(self.all(name), _NOTHING)


_NOTHING = Element("")


def as_utf8(document: bytes) -> tuple[bytes, str]:
    """Return the document in a superset of ASCII, and the name of that; UTF-16 becomes UTF-8."""
    if encoding := _utf_16(document):
        decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
        utf8 = BytesIO()
        for start in range(0, len(document), _CHUNK):
            utf8.write(decoder.decode(document[start : start + _CHUNK]).encode("utf-8", "replace"))
        return utf8.getvalue(), "utf-8"
    declared = _ENCODING.search(document, 0, 1000)
    try:
        name = codecs.lookup(declared[1].decode("ascii")).name if declared else "utf-8"
    except LookupError:
        name = "utf-8"
    return document, name if _SUPERSET_OF_ASCII.match(name) else "utf-8"


def _utf_16(document: bytes) -> str:
    """Return the kind of UTF-16 by the zero before or behind the first `<`, whatever is declared; empty if none is."""
    at = document.find(b"<", 0, 64)
    if at % 2:
        return "utf-16-be" if at > 0 and document[at - 1] == 0 else ""
    return "utf-16-le" if document[at + 1 : at + 2] == b"\0" else ""


class Root:
    """The root element that begins at `at` in a document; iterating yields its children, one by one.

    After that, `at` is where it ends. `places` says in which elements an element may stand: with it, what is not
    well-formed is read as well as possible; without it, it raises NotWellFormed. Both raise TooMuch.
    """

    def __init__(self, document: bytes, at: int, encoding: str, places: Mapping[str, frozenset[str]] | None = None):
        self.at = at
        self.ended = False
        self._document = document
        self._encoding = encoding
        self._places = places
        self._open: list[Element] = []
        self._elements = 0
        self._tags = 0
        self._missing: set[bytes] = set()

    def __iter__(self) -> Iterator[Element]:
        document, opened = self._document, self._open
        while token := _TOKEN.search(document, self.at):
            start = token.start()
            if start > self.at:
                self._take_text(self.at, start)
            self.at = token.end()
            self._tags += 1
            if self._tags > MAX_TAGS:
                raise TooMuch(f"the XML has more than {MAX_TAGS} tags")
            closing, tag, rest, comment, cdata = token.groups()
            if tag is None:
                self._skip(token, comment, cdata)
                continue
            name = tag.decode("ascii")
            if b":" in tag:
                name = name.rpartition(":")[2]
            if closing:
                done = self._close(self._where(name, start))
            elif opened and name == opened[0].name:  # another report, and this one has no end
                self.at = start
                break
            else:
                if self._places is not None and (done := self._close(self._place(name))) is not None:
                    yield done
                self._begin(name, start)
                done = self._close(len(opened) - 1) if rest and rest.endswith(b"/") else None
            if done is not None:
                yield done
            if not opened:
                self.ended = True
                return
        if self._places is None:
            raise NotWellFormed(self.at)
        self._open.clear()  # what has no end may lack more than that

    def _begin(self, name: str, at: int) -> None:
        self._elements += 1
        if len(self._open) >= MAX_DEPTH or self._elements > MAX_ELEMENTS:
            raise TooMuch("the XML is nested too deeply, or has too many elements in one place")
        element = Element(name, at)
        if len(self._open) > 1:
            self._open[-1].children.append(element)
        self._open.append(element)

    def _where(self, name: str, at: int) -> int:
        """Return how many elements stay open where the one called `name` ends."""
        last = len(self._open) - 1
        if self._open[last].name == name:
            return last
        if self._places is None:
            raise NotWellFormed(at)
        return next((n for n in range(last, -1, -1) if self._open[n].name == name), last + 1)

    def _place(self, name: str) -> int:
        """Return how many elements stay open where one called `name` begins."""
        outer = self._places.get(name) if self._places is not None else None
        last = len(self._open) - 1
        return next((n + 1 for n in range(last, -1, -1) if outer and self._open[n].name in outer), last + 1)

    def _close(self, depth: int) -> Element | None:
        """Close all but the outermost `depth` elements. Return the child of the root, if it is among them."""
        closed = self._open[depth:]
        del self._open[depth:]
        if depth > 1 or not closed:
            return None
        self._elements = 0
        return closed[1 - depth] if len(closed) > 1 - depth else None

    def _skip(self, token: re.Match[bytes], comment: bytes | None, cdata: bytes | None) -> None:
        end = b"-->" if comment else b"]]>" if cdata else b"?>"
        at = -1 if end in self._missing else self._document.find(end, token.end())
        if at < 0:
            if self._places is None:
                raise NotWellFormed(token.start())
            self._missing.add(end)  # so that nobody makes us look for it again and again
            return  # what looked like a comment is text
        if cdata:
            self._add(self._document[token.end() : min(at, token.end() + MAX_TEXT)].decode(self._encoding, "replace"))
        self.at = at + len(end)

    def _take_text(self, start: int, end: int) -> None:
        if end > start and self._open:
            text = self._document[start : min(end, start + MAX_TEXT)]
            if not text.isspace():
                decoded = text.decode(self._encoding, "replace")
                self._add(unescape(decoded) if "&" in decoded else decoded)

    def _add(self, text: str) -> None:
        element = self._open[-1]
        if len(element.text) < MAX_TEXT:
            element.text += text
