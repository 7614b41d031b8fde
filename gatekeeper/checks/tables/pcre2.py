# SPDX-License-Identifier: GPL-3.0-or-later
"""PCRE2, the library that Postfix's own pcre: tables use, called through ctypes, with a limit on every match.

Subjects come from strangers, and Python's `re` has no limit of any kind. PCRE2 counts its steps: a match gives up after
STEPS of them (pcre2api(3), "The match context"), some 70 ms at worst, as in Postfix (there after ten million steps for
each start, dict_pcre.c). Bytes are matched, not characters, with the ASCII tables, as Postfix does.

libpcre2-8 comes with grep on Debian and with glib elsewhere. A compiled pattern is used by one thread at a time.
"""

import ctypes
import functools
from enum import IntFlag

STEPS = 5_000_000
"""Limit on the steps of one match over all starts in the subject; PCRE2 itself counts anew for each start."""

_NO_MATCH = -1
_MATCH_LIMIT = -47
_CAPTURES = 4  # PCRE2_INFO_CAPTURECOUNT
_UNSET = ctypes.c_size_t(-1).value


class PcreOption(IntFlag):
    """Compile options (pcre2.h)."""

    ANCHORED = 0x80000000
    CASELESS = 0x00000008
    DOLLAR_ENDONLY = 0x00000010
    DOTALL = 0x00000020
    EXTENDED = 0x00000080
    MULTILINE = 0x00000400
    UNGREEDY = 0x00040000


class PcreMissing(Exception):
    """libpcre2-8 is not installed; the text says how to install it."""


class MatchLimitReached(Exception):
    """A match was given up: the pattern takes too long on this subject."""


@functools.cache
def _library() -> ctypes.CDLL:
    """Load libpcre2-8 and declare its functions. Raises PcreMissing."""
    try:
        library = ctypes.CDLL("libpcre2-8.so.0")
    except OSError:
        raise PcreMissing(
            "regexp: and pcre: tables need libpcre2-8: apt-get install libpcre2-8-0 (dnf: pcre2)"
        ) from None
    void, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32
    for name, result, arguments in (
        ("compile", void, (ctypes.c_char_p, size, number, void, void, void)),
        ("pattern_info", ctypes.c_int, (void, number, void)),
        ("get_error_message", ctypes.c_int, (ctypes.c_int, ctypes.c_char_p, size)),
        ("match_context_create", void, (void,)),
        ("set_match_limit", ctypes.c_int, (void, number)),
        ("set_depth_limit", ctypes.c_int, (void, number)),
        ("set_heap_limit", ctypes.c_int, (void, number)),
        ("match_data_create_from_pattern", void, (void, void)),
        ("get_ovector_pointer", ctypes.POINTER(size), (void,)),
        ("match", ctypes.c_int, (void, ctypes.c_char_p, size, size, number, void, void)),
        ("match_data_free", None, (void,)),
        ("match_context_free", None, (void,)),
        ("code_free", None, (void,)),
    ):
        function = getattr(library, f"pcre2_{name}_8")
        function.restype, function.argtypes = result, arguments
    return library


class PcrePattern:
    """A compiled pattern. Raises PcreMissing, and ValueError with what is wrong with the pattern."""

    def __init__(self, pattern: bytes, options: PcreOption) -> None:
        self._code = self._context = self._data = None
        library = self._library = _library()
        code, offset = ctypes.c_int(), ctypes.c_size_t()
        self._code = library.pcre2_compile_8(
            pattern, len(pattern), options, ctypes.byref(code), ctypes.byref(offset), None
        )
        if not self._code:
            text = ctypes.create_string_buffer(256)
            library.pcre2_get_error_message_8(code, text, len(text))
            at = f" (after {pattern[: offset.value].decode('utf-8', 'replace')!r})" if offset.value else ""
            raise ValueError(f"cannot be used as a regular expression: {text.value.decode()}{at}")
        count = ctypes.c_uint32()
        library.pcre2_pattern_info_8(self._code, _CAPTURES, ctypes.byref(count))
        self.groups = count.value
        """The number of groups in the pattern."""
        self._data = library.pcre2_match_data_create_from_pattern_8(self._code, None)
        self._context = library.pcre2_match_context_create_8(None)
        if not self._data or not self._context:
            raise MemoryError("out of memory for a pattern")
        library.pcre2_set_heap_limit_8(self._context, 4096)  # KiB
        library.pcre2_set_depth_limit_8(self._context, 100_000)

    def search(self, subject: bytes) -> tuple[bytes, ...] | None:
        """Return the groups of the first match, empty where they took no part; None if nothing matches.

        Raises MatchLimitReached.
        """
        library = self._library
        library.pcre2_set_match_limit_8(self._context, STEPS // (len(subject) + 1) + 1)
        found = library.pcre2_match_8(self._code, subject, len(subject), 0, 0, self._data, self._context)
        if found == _NO_MATCH:
            return None
        if found < 0:
            raise MatchLimitReached("limit of steps" if found == _MATCH_LIMIT else f"PCRE2 error {found}")
        if not self.groups:
            return ()
        at = library.pcre2_get_ovector_pointer_8(self._data)
        spans = [(at[2 * number], at[2 * number + 1]) for number in range(1, self.groups + 1)]
        return tuple(b"" if start == _UNSET else subject[start:end] for start, end in spans)

    def __del__(self) -> None:
        if self._data:
            self._library.pcre2_match_data_free_8(self._data)
        if self._context:
            self._library.pcre2_match_context_free_8(self._context)
        if self._code:
            self._library.pcre2_code_free_8(self._code)
